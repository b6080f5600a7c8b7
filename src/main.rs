//! The program: says what was asked for and how it ended. Exit codes: 0 fine, 1 the configuration or arguments are wrong, 2 the
//! system refused.

use pilotlight::bench;
use pilotlight::boot;
use pilotlight::cli::{self, Command, EXIT_REFUSED, EXIT_USAGE, ask, watch};
use pilotlight::config::{self, Config, Overrides};
use pilotlight::control::Ended;
use pilotlight::demo;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Caches from this size on have huge pages, which spare lookups among a million entries many misses of the TLB. Below, what is half used of
/// them is more than the share that resident memory may lie above `cache.memory`.
const HUGE_PAGES_FROM_BYTES: u64 = 256 << 20;

fn main() -> ExitCode {
    match cli::parse() {
        Command::Demo => run_demo(),
        Command::Serve(args) => match args.load() {
            Ok(config) => serve(config, Box::new(move || args.load())),
            Err(error) => refuse(&error, EXIT_USAGE),
        },
        Command::Check(args) => match cli::check(&args.config) {
            Ok(text) => tell(&text),
            Err(error) => refuse(&error, EXIT_USAGE),
        },
        Command::Bench(args) => match bench::bench(&args) {
            Ok(text) => tell(&text),
            Err(error) => refuse(&error, error.exit_code()),
        },
        Command::Purge(args) => asked(ask::purge(&args)),
        Command::Warm(args) => asked(ask::warm(&args)),
        Command::Status(args) if args.watch => match watch::watch(&args.admin.admin) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => refuse(&error, error.exit_code()),
        },
        Command::Status(args) => asked(ask::status(&args)),
        Command::Upgrade(args) => asked(ask::upgrade(&args)),
        Command::Reload(args) => asked(ask::reload(&args)),
    }
}

fn refuse(error: &dyn std::fmt::Display, code: u8) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(code)
}

fn tell(text: &str) -> ExitCode {
    println!("{}", text.trim_end());
    ExitCode::SUCCESS
}

fn asked(answer: Result<String, ask::AskError>) -> ExitCode {
    match answer {
        Ok(text) => tell(&text),
        Err(error) => refuse(&error, error.exit_code()),
    }
}

fn start_log() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("PILOTLIGHT_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    let colours = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        // It would say so on standard error, and panic there: a full disk under the log must not end what was being done.
        .log_internal_errors(false)
        .init();
}

fn serve(config: Config, load: boot::Load) -> ExitCode {
    start_log();
    choose_page_size(config.cache.memory);
    match boot::serve(config, load) {
        Ok(Ended::ShardsGone) => refuse(&"every shard has ended; see the log for why", EXIT_REFUSED),
        Ok(Ended::ShardLost) => refuse(&"a shard is dead; see the log for what it died of", EXIT_REFUSED),
        Ok(ended) => {
            tracing::info!(?ended, "ended");
            ExitCode::SUCCESS
        }
        Err(error) => refuse(&error, EXIT_REFUSED),
    }
}

/// The kernel keeps this through an upgrade, so it is said either way. Where it fails there are no huge pages at all.
fn choose_page_size(cache_bytes: u64) {
    let disable = libc::c_ulong::from(cache_bytes < HUGE_PAGES_FROM_BYTES);
    // SAFETY: this option takes numbers only.
    unsafe {
        libc::prctl(libc::PR_SET_THP_DISABLE, disable, 0 as libc::c_ulong, 0 as libc::c_ulong, 0 as libc::c_ulong)
    };
}

/// A slow origin, the gateway in front of it, and somebody who looks at both.
fn run_demo() -> ExitCode {
    let origin = match demo::start(([127, 0, 0, 1], 0).into()) {
        Ok(origin) => origin,
        Err(error) => return refuse(&format_args!("cannot start the demo's origin: {error}"), EXIT_REFUSED),
    };
    let toml = demo::config_toml(origin.addr());
    let load = move || config::load::parse("demo", &toml, &Overrides::default());
    let config = match load() {
        Ok(config) => config,
        Err(error) => return refuse(&error, EXIT_USAGE),
    };
    print!("{}", demo::what_to_try());
    let stop = Arc::new(AtomicBool::new(false));
    let watching = demo::watch(&config, origin.addr(), Arc::clone(&stop));
    let code = serve(config, Box::new(load));
    stop.store(true, Ordering::Relaxed);
    if let Ok(watching) = watching {
        let _ = watching.join();
    }
    code
}
