//! Once a second, how it goes: one line that is written over on a terminal, plain lines otherwise. On the error stream, so that the
//! report can be piped.

use std::io::{IsTerminal, Write};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::worker::Seen;
use crate::io::clock::mono_ns;

const EVERY_NS: u64 = 1_000_000_000;

pub struct Progress {
    threads: Vec<Arc<Seen>>,
    terminal: bool,
    told_ns: u64,
    told_answers: u64,
    wrote: bool,
}

impl Progress {
    #[must_use]
    pub fn new(threads: Vec<Arc<Seen>>) -> Self {
        Self { threads, terminal: std::io::stderr().is_terminal(), told_ns: mono_ns(), told_answers: 0, wrote: false }
    }

    /// Tells what is being done if it is time to; `share` of everything is behind us.
    pub fn tell(&mut self, doing: &str, share: f64) {
        let now_ns = mono_ns();
        let since_ns = now_ns - self.told_ns;
        if since_ns < EVERY_NS {
            return;
        }
        let sum = |count: fn(&Seen) -> u64| self.threads.iter().map(|seen| count(seen)).sum::<u64>();
        let answers = sum(|seen| seen.answers.load(Ordering::Relaxed));
        let errors = sum(|seen| seen.errors.load(Ordering::Relaxed));
        let per_s = (answers - self.told_answers) as f64 * 1e9 / since_ns as f64;
        let line = format!("{:3.0} %  {doing}  {per_s:.0} answers/s  {errors} errors", share.clamp(0.0, 1.0) * 100.0);
        // Nothing is to be done about a closed error stream.
        let _ = if self.terminal {
            write!(std::io::stderr(), "\r\x1b[K{line}")
        } else {
            writeln!(std::io::stderr(), "{line}")
        };
        self.wrote = self.terminal;
        self.told_ns = now_ns;
        self.told_answers = answers;
    }

    /// Leaves the terminal as it was.
    pub fn end(&mut self) {
        if std::mem::take(&mut self.wrote) {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
