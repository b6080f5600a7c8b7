//! The command line of `bench`, and what it adds up to: a `Plan` in which no value can be wrong any more.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::request::{Mix, MixError};
use super::target::{Target, TargetError};
use crate::config::units::parse_duration;

const AFTER_HELP: &str = "\
With --rate the load is an open loop: every request has its intended send time fixed beforehand, and its latency is counted from
that time, whether or not a connection was free. Without it every connection sends the next request when the answer is there.

Lines of --urls: `URL`, `METHOD URL` or `WEIGHT METHOD URL`; a URL may be a path alone. Whatever host a URL names becomes the Host
field; the connection always goes to the target.";

#[derive(Debug, Clone, PartialEq, Args)]
#[command(after_help = AFTER_HELP)]
pub struct BenchArgs {
    /// What to ask for: http://host:port/path
    #[arg(value_name = "URL")]
    pub url: String,
    /// Requests a second, all connections together (open loop); without it as many as the answers allow (closed loop)
    #[arg(long, value_name = "R")]
    pub rate: Option<f64>,
    /// Connections, all threads together
    #[arg(long, short = 'c', value_name = "N", default_value_t = 16)]
    pub connections: usize,
    /// How long each target is measured
    #[arg(long, short = 'd', value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub duration: Duration,
    /// How long each target is loaded beforehand without being measured
    #[arg(long, value_name = "D", default_value = "1s", value_parser = parse_duration)]
    pub warmup: Duration,
    /// Threads that make the load
    #[arg(long, short = 't', value_name = "N", default_value_t = 1)]
    pub threads: usize,
    /// Another target, measured in turn with the first; may be given several times
    #[arg(long, value_name = "URL")]
    pub compare: Vec<String>,
    /// How long one target's turn is when there are several
    #[arg(long, value_name = "D", default_value = "2s", value_parser = parse_duration)]
    pub slice: Duration,
    /// An answer that takes longer is an error; counted from the moment of sending
    #[arg(long, value_name = "D", default_value = "10s", value_parser = parse_duration)]
    pub timeout: Duration,
    /// Write everything that was measured
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Draw latency by percentile
    #[arg(long, value_name = "FILE.svg")]
    pub plot: Option<PathBuf>,
    /// Requests to choose from, one a line
    #[arg(long, value_name = "FILE")]
    pub urls: Option<PathBuf>,
    /// The method, where --urls names none
    #[arg(long, short = 'X', value_name = "M", default_value = "GET")]
    pub method: String,
    /// A field for every request, as 'Name: value'; may be given several times
    #[arg(long, short = 'H', value_name = "N: V")]
    pub header: Vec<String>,
    /// The body of every request whose method is not GET, HEAD, OPTIONS or DELETE
    #[arg(long, value_name = "FILE")]
    pub body: Option<PathBuf>,
    /// A new connection for every request, whose making is part of the latency
    #[arg(long)]
    pub new_connections: bool,
    /// Spin between requests instead of sleeping: waking up is then in no latency, and each thread takes a core
    #[arg(long)]
    pub busy_poll: bool,
    /// The process that serves, one for each target in order: its CPU time per request is reported, children included
    #[arg(long, value_name = "PID")]
    pub pid: Vec<u32>,
}

/// Most connections; ports of one client address run out near 28 000.
const CONNECTIONS_MAX: usize = 20_000;
const THREADS_MAX: usize = 256;
const RATE_MAX: f64 = 10_000_000.0;

#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    #[error("--{flag} {got} is out of bounds: {bounds} is allowed")]
    OutOfBounds { flag: &'static str, got: String, bounds: &'static str },
    #[error("--pid is given {got} times for {targets} targets")]
    Pids { got: usize, targets: usize },
    #[error("{0}")]
    Target(#[from] TargetError),
    #[error("{0}")]
    Mix(#[from] MixError),
}

/// When requests are sent.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Pace {
    /// As soon as the answer to the one before is there.
    Closed,
    /// So many a second, whatever the answers do.
    Rate(f64),
}

/// One server with the requests for it.
#[derive(Debug)]
pub struct Aim {
    pub target: Target,
    pub mix: Mix,
    pub pid: Option<u32>,
}

/// What to do. Invariants: at least one aim; 1 <= threads <= connections; the durations are not zero.
#[derive(Debug)]
pub struct Plan {
    pub aims: Vec<Aim>,
    pub pace: Pace,
    pub connections: usize,
    pub threads: usize,
    pub duration: Duration,
    pub warmup: Duration,
    /// How long one turn is; the whole duration when there is one target.
    pub slice: Duration,
    /// Turns that each target gets.
    pub rounds: usize,
    pub timeout: Duration,
    pub new_connections: bool,
    pub busy_poll: bool,
}

impl BenchArgs {
    /// # Errors
    /// When a value is out of bounds, or a URL or a file cannot be read.
    pub fn plan(&self) -> Result<Plan, PlanError> {
        bounded("connections", self.connections, (1..=CONNECTIONS_MAX).contains(&self.connections), "1 to 20000")?;
        bounded("threads", self.threads, (1..=THREADS_MAX).contains(&self.threads), "1 to 256")?;
        for (flag, value) in [("duration", self.duration), ("slice", self.slice), ("timeout", self.timeout)] {
            let ok = value >= Duration::from_millis(10) && value <= Duration::from_secs(86_400);
            bounded(flag, format!("{value:?}"), ok, "10ms to 1d")?;
        }
        bounded("warmup", format!("{:?}", self.warmup), self.warmup <= Duration::from_secs(86_400), "0s to 1d")?;
        let pace = match self.rate {
            None => Pace::Closed,
            Some(rate) => {
                bounded("rate", rate, (0.01..=RATE_MAX).contains(&rate), "0.01 to 10000000")?;
                Pace::Rate(rate)
            }
        };
        let aims = self.aims()?;
        let (slice, rounds) = if aims.len() == 1 {
            (self.duration, 1)
        } else {
            let rounds = self.duration.as_nanos().div_ceil(self.slice.as_nanos()).max(1);
            (self.slice.min(self.duration), usize::try_from(rounds).unwrap_or(usize::MAX))
        };
        Ok(Plan {
            aims,
            pace,
            connections: self.connections,
            threads: self.threads.min(self.connections),
            duration: self.duration,
            warmup: self.warmup,
            slice,
            rounds,
            timeout: self.timeout,
            new_connections: self.new_connections,
            busy_poll: self.busy_poll,
        })
    }

    fn aims(&self) -> Result<Vec<Aim>, PlanError> {
        let urls: Vec<&String> = std::iter::once(&self.url).chain(&self.compare).collect();
        if !self.pid.is_empty() && self.pid.len() != urls.len() {
            return Err(PlanError::Pids { got: self.pid.len(), targets: urls.len() });
        }
        let mut aims = Vec::new();
        for (at, url) in urls.into_iter().enumerate() {
            let target = Target::resolve(url)?;
            let mix = Mix::load(self, &target)?;
            aims.push(Aim { target, mix, pid: self.pid.get(at).copied() });
        }
        Ok(aims)
    }
}

fn bounded(flag: &'static str, got: impl ToString, ok: bool, bounds: &'static str) -> Result<(), PlanError> {
    if ok { Ok(()) } else { Err(PlanError::OutOfBounds { flag, got: got.to_string(), bounds }) }
}
