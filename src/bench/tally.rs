//! What happened to the requests: counts, bytes, errors by kind, and the histograms. Values in nanoseconds.

use hdrhistogram::Histogram;
use serde::Serialize;

/// The longest time that is told apart from longer ones.
const LONGEST_NS: u64 = 100_000_000_000;
/// Three digits: a value is known to 0.1 %.
const DIGITS: u8 = 3;

/// An empty histogram of times.
#[must_use]
pub fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_NS, DIGITS).expect("the bounds are valid ones")
}

/// Why a request has no complete answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection could be made.
    Connect,
    /// The answer was not complete in time.
    Timeout,
    /// The connection ended or broke before the answer was complete.
    Reset,
    /// What came was not a response, or went on after its end.
    Malformed,
}

/// Errors by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Errors {
    pub connect: u64,
    pub timeout: u64,
    pub reset: u64,
    pub malformed: u64,
    /// Answers of the class 4xx, and so on: complete, and counted among the latencies.
    pub status_4xx: u64,
    pub status_5xx: u64,
    /// Requests of the schedule that could not be sent before the turn was over and its time-out too.
    pub unsent: u64,
}

impl Errors {
    #[must_use]
    pub fn total(&self) -> u64 {
        self.connect + self.timeout + self.reset + self.malformed + self.status_4xx + self.status_5xx + self.unsent
    }

    /// The kinds that have happened, by name.
    #[must_use]
    pub fn by_kind(&self) -> Vec<(&'static str, u64)> {
        let all = [
            ("connect", self.connect),
            ("timeout", self.timeout),
            ("reset", self.reset),
            ("malformed", self.malformed),
            ("4xx", self.status_4xx),
            ("5xx", self.status_5xx),
            ("unsent", self.unsent),
        ];
        all.into_iter().filter(|(_, count)| *count > 0).collect()
    }
}

/// What one turn, or all of them, came to.
#[derive(Debug, Clone)]
pub struct Tally {
    /// Complete answers, whatever their status.
    pub answers: u64,
    /// Of these, the ones that were complete before the turn's end: what throughput is counted from.
    pub answers_in_time: u64,
    pub errors: Errors,
    pub bytes_in: u64,
    pub bytes_out: u64,
    pub connects: u64,
    /// Requests of the schedule that found every connection busy; their wait is part of their latency.
    pub queued: u64,
    /// From the intended send time (open loop) or the send time (closed loop) to the last byte of the answer. Time-outs are
    /// in it with the time they had taken, because leaving out the slowest would flatter.
    pub latency: Histogram<u64>,
    /// From the actual send time to the last byte of the answer.
    pub service: Histogram<u64>,
    /// How much later than intended requests were sent although a connection was free: the error of this instrument.
    pub send_error: Histogram<u64>,
    /// How long the turn was meant to last.
    pub elapsed_ns: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            answers: 0,
            answers_in_time: 0,
            errors: Errors::default(),
            bytes_in: 0,
            bytes_out: 0,
            connects: 0,
            queued: 0,
            latency: histogram(),
            service: histogram(),
            send_error: histogram(),
            elapsed_ns: 0,
        }
    }
}

impl Tally {
    pub fn answer(&mut self, status: u16, latency_ns: u64, service_ns: u64) {
        self.answers += 1;
        match status {
            400..=499 => self.errors.status_4xx += 1,
            500..=599 => self.errors.status_5xx += 1,
            _ => {}
        }
        self.latency.saturating_record(latency_ns);
        self.service.saturating_record(service_ns);
    }

    pub fn failure(&mut self, failure: Failure, latency_ns: u64) {
        match failure {
            Failure::Connect => self.errors.connect += 1,
            Failure::Timeout => {
                self.errors.timeout += 1;
                self.latency.saturating_record(latency_ns);
            }
            Failure::Reset => self.errors.reset += 1,
            Failure::Malformed => self.errors.malformed += 1,
        }
    }

    /// Adds what another thread saw of the same turn.
    pub fn beside(&mut self, other: &Self) {
        let elapsed_ns = self.elapsed_ns.max(other.elapsed_ns);
        self.after(other);
        self.elapsed_ns = elapsed_ns;
    }

    /// Adds another turn.
    pub fn after(&mut self, other: &Self) {
        self.answers += other.answers;
        self.answers_in_time += other.answers_in_time;
        let (errors, more) = (&mut self.errors, &other.errors);
        errors.connect += more.connect;
        errors.timeout += more.timeout;
        errors.reset += more.reset;
        errors.malformed += more.malformed;
        errors.status_4xx += more.status_4xx;
        errors.status_5xx += more.status_5xx;
        errors.unsent += more.unsent;
        self.bytes_in += other.bytes_in;
        self.bytes_out += other.bytes_out;
        self.connects += other.connects;
        self.queued += other.queued;
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.service, &other.service),
            (&mut self.send_error, &other.send_error),
        ] {
            mine.add(theirs).expect("all histograms have the same bounds");
        }
        self.elapsed_ns += other.elapsed_ns;
    }

    /// Complete answers a second.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        if self.elapsed_ns == 0 { 0.0 } else { self.answers_in_time as f64 * 1e9 / self.elapsed_ns as f64 }
    }
}
