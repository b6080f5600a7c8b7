//! The command line: what can be asked for, its help, and the commands that need no gateway of their own
//! (`check`, and `purge`, `warm`, `status` through `ask`). Exit codes: 0 fine, 1 the arguments or the configuration are wrong,
//! 2 the system or the running gateway refused. Must not start threads or shards: that is `main`'s.

pub mod ask;
pub mod watch;

use std::path::{Path, PathBuf};
use std::process::exit;

use clap::{Args, Parser, Subcommand};

use crate::bench::BenchArgs;
use crate::config::{self, Config, ConfigError, Overrides};

/// Exit code for arguments or a configuration that are wrong.
pub const EXIT_USAGE: u8 = 1;
/// Exit code for what the system, or the gateway asked, refused.
pub const EXIT_REFUSED: u8 = 2;

const ADMIN_DEFAULT: &str = "127.0.0.1:9180";

const AFTER_HELP: &str = "\
ADDR is host:port, :port or unix:/path.
Exit codes: 0 fine, 1 the configuration or the arguments are wrong, 2 the system or the gateway refused.
NO_COLOR is honoured.

  pilotlight demo                               see it work, nothing else needed
  pilotlight serve --upstream 127.0.0.1:8000    a working gateway on 127.0.0.1:8080, admin on 127.0.0.1:9180";

#[derive(Debug, Parser)]
#[command(name = "pilotlight", version, about = "A caching API gateway that keeps heavy endpoints lit", after_help = AFTER_HELP)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Subcommand)]
pub enum Command {
    /// Everything in one process: a slow synchronous origin, the gateway in front of it, and what to try next
    Demo,
    /// Run the gateway
    #[command(after_help = "With neither --config nor --upstream there is nothing to serve.")]
    Serve(ServeArgs),
    /// Validate a configuration and print the effective one, every default written out
    ///
    /// A mistake is reported as file:line:column: message, with exit code 1. What is printed loads again to the same configuration.
    Check(CheckArgs),
    /// Load one or several servers and measure latency, throughput and errors
    Bench(BenchArgs),
    /// Drop stored responses from a running gateway
    ///
    /// Returns once no shard can serve the old content any more.
    Purge(PurgeArgs),
    /// Have a running gateway fetch URLs into its cache
    Warm(WarmArgs),
    /// Show how a running gateway is doing
    Status(StatusArgs),
    /// Have a running gateway read its configuration again
    ///
    /// Returns once every shard serves by the new one; on any mistake the old one stays in force, and the exit code is 2.
    Reload(ReloadArgs),
    /// Replace a running gateway by the program that is installed now, without a refused or broken connection
    ///
    /// Returns once the new process accepts; when it does not get ready in time, the old one goes on, and the exit code is 2.
    Upgrade(ReloadArgs),
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Args)]
pub struct ServeArgs {
    /// The configuration (TOML); the flags below come on top of it
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where to listen, instead of the file's server.listen; may be given several times [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    pub listen: Vec<String>,
    /// The server to forward to
    ///
    /// Without a file: the only upstream, with a route for everything that caches what responses allow. With a file: replaces the
    /// servers of its only upstream, or of the one named `default`; where there is neither, adds `default` and a route / to it.
    #[arg(long, value_name = "ADDR")]
    pub upstream: Option<String>,
    /// Where metrics, health, status and purge are served [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// How many shards: auto (one for each allowed core), a number, or a CPU list such as 2-5,8 (one CPU alone: 4-4)
    #[arg(long, value_name = "N")]
    pub shards: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct CheckArgs {
    /// The configuration to check
    #[arg(long, short, value_name = "FILE")]
    pub config: PathBuf,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct AdminArg {
    /// The admin address of the running gateway
    #[arg(long, value_name = "ADDR", default_value = ADMIN_DEFAULT)]
    pub admin: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct PurgeArgs {
    #[command(flatten)]
    pub admin: AdminArg,
    #[command(flatten)]
    pub what: PurgeWhat,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
#[group(required = true, multiple = false)]
pub struct PurgeWhat {
    /// One URL, as clients send it: http://host:port/path?query
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Every URL that starts with this
    #[arg(long, value_name = "P")]
    pub prefix: Option<String>,
    /// Every response that carries this tag
    #[arg(long, value_name = "T")]
    pub tag: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct WarmArgs {
    #[command(flatten)]
    pub admin: AdminArg,
    /// URLs as clients send them: http://host:port/path?query; `-` reads them from standard input, one a line
    #[arg(value_name = "URL", required = true)]
    pub urls: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct StatusArgs {
    #[command(flatten)]
    pub admin: AdminArg,
    /// Print the JSON exactly as the gateway sent it
    #[arg(long, conflicts_with = "watch")]
    pub json: bool,
    /// Go on showing the essentials, once a second; plain lines where standard output is no terminal
    #[arg(long)]
    pub watch: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Args)]
pub struct ReloadArgs {
    #[command(flatten)]
    pub admin: AdminArg,
}

/// Reads the command line. Help and version end the process with 0, a mistake with 1.
pub fn parse() -> Command {
    match Cli::try_parse() {
        Ok(cli) => cli.command,
        Err(error) => {
            // clap writes in colour only to a terminal without NO_COLOR. Nothing can be done about a closed stream.
            let _ = error.print();
            exit(if error.use_stderr() { EXIT_USAGE.into() } else { 0 });
        }
    }
}

impl ServeArgs {
    /// The configuration that file and flags add up to.
    pub fn load(&self) -> Result<Config, ConfigError> {
        let flags = Overrides {
            listen: self.listen.clone(),
            upstream: self.upstream.clone(),
            admin: self.admin.clone(),
            shards: self.shards.clone(),
        };
        config::load(self.config.as_deref(), &flags)
    }
}

/// The effective configuration of `file` as TOML.
pub fn check(file: &Path) -> Result<String, ConfigError> {
    let config = config::load(Some(file), &Overrides::default())?;
    Ok(config::print::effective(&config))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parsed(line: &str) -> Result<Command, clap::Error> {
        Cli::try_parse_from(line.split(' ')).map(|cli| cli.command)
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn commands() {
        let serve = parsed("pilotlight serve --listen :1 --listen unix:/a --upstream :2 --shards 2-3").unwrap();
        let expected = ServeArgs {
            listen: vec![":1".to_owned(), "unix:/a".to_owned()],
            upstream: Some(":2".to_owned()),
            shards: Some("2-3".to_owned()),
            ..ServeArgs::default()
        };
        assert_eq!(serve, Command::Serve(expected));
        for line in [
            "demo",
            "check --config f",
            "purge --url u",
            "purge --tag t --admin :1",
            "warm a b",
            "warm -",
            "status --json",
            "status --watch",
            "reload --admin :1",
            "upgrade",
        ] {
            assert!(parsed(&format!("pilotlight {line}")).is_ok(), "{line}");
        }
        for line in [
            "",
            "check",
            "purge",
            "purge --url u --tag t",
            "warm",
            "status x",
            "status --watch --json",
            "serve --sards 1",
        ] {
            let error = parsed(&format!("pilotlight {line}")).expect_err(line);
            assert!(error.use_stderr(), "{line}");
        }
        for line in ["--help", "--version", "serve --help"] {
            assert!(!parsed(&format!("pilotlight {line}")).expect_err(line).use_stderr(), "{line}");
        }
    }
}
