//! The access log: takes what the shards say of each request out of their rings, writes it as lines of JSON, and hands sampled spans on.
//!
//! One thread does it, so that neither a shard nor the control thread ever waits for a disk. Between the two is a bounded ring for each
//! shard: when this thread is stuck, the shards count what they drop and go on. Nobody is woken for a line: the rings are looked at
//! a few times a second, more often while there is something in them.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use metrics::{Counter, counter, describe_counter};
use rtrb::Consumer;
use serde::Serialize;

use super::trace::Exporter;
use crate::base::record::Record;
use crate::config::{Config, LogTarget};

/// Records that wait for this thread, for each shard: a third of a second at 50 000 requests a second.
pub const RING_RECORDS: usize = 16 * 1024;
/// How long it sleeps when there is nothing to do, and at most when there is.
const IDLE: Duration = Duration::from_millis(50);
/// Written at once when so much has gathered.
const WRITE_BYTES: usize = 64 * 1024;
/// How often it is looked whether the file was renamed or removed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long the end of the program waits for the last lines.
const END_WITHIN: Duration = Duration::from_secs(1);

/// The running thread.
pub struct AccessLog {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl AccessLog {
    /// Opens the log and starts the thread. One consumer for each shard, in their order.
    ///
    /// # Errors
    /// When the file cannot be opened, or the system has no thread to give.
    pub fn start(config: Arc<Config>, rings: Vec<Consumer<Record>>) -> io::Result<Self> {
        let sink = config.log.access.as_ref().map(Sink::open).transpose()?;
        let reopen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&reopen))?;
        let exporter = Exporter::start(&config)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || {
            // The counters belong to the thread that registers them.
            let writer = sink.map(|sink| Writer::new(sink, reopen));
            run(&config, rings, writer, exporter, &stopped);
        })?;
        Ok(Self { stop, thread })
    }

    /// Writes what is left and ends, if the disk lets it.
    pub fn finish(self) {
        self.stop.store(true, Relaxed);
        let by = Instant::now() + END_WITHIN;
        while !self.thread.is_finished() && Instant::now() < by {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn run(
    config: &Config,
    mut rings: Vec<Consumer<Record>>,
    mut writer: Option<Writer>,
    mut exporter: Option<Exporter>,
    stop: &AtomicBool,
) {
    exporter.iter_mut().for_each(Exporter::count);
    loop {
        // Looked at before the rings: what came before the wish to stop is still written.
        let last = stop.load(Relaxed);
        let mut busiest = 0;
        for (shard, ring) in rings.iter_mut().enumerate() {
            let waiting = ring.slots();
            busiest = busiest.max(waiting);
            // As many as there were: a shard that goes on writing must not keep the others waiting.
            for _ in 0..waiting {
                let Ok(record) = ring.pop() else { break };
                if let Some(writer) = writer.as_mut().filter(|_| record.logged) {
                    writer.line(config, shard, &record);
                }
                if let Some(exporter) = &mut exporter
                    && record.trace.is_some_and(|trace| trace.sampled)
                {
                    exporter.record(config, shard, &record);
                }
            }
        }
        if let Some(writer) = &mut writer {
            writer.flush();
            writer.look();
        }
        if last {
            if let Some(exporter) = exporter {
                exporter.finish();
            }
            return;
        }
        // Half full would be too late: so the next look comes before the rings can be a quarter full.
        thread::sleep(if busiest > RING_RECORDS / 8 { IDLE / 10 } else { IDLE });
    }
}

/// Where lines go.
enum Sink {
    Stdout,
    Stderr,
    File(PathBuf, File),
}

impl Sink {
    fn open(target: &LogTarget) -> io::Result<Self> {
        Ok(match target {
            LogTarget::Stdout => Self::Stdout,
            LogTarget::Stderr => Self::Stderr,
            LogTarget::File(path) => Self::File(path.clone(), open(path)?),
        })
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Stdout => io::stdout().lock().write(bytes),
            Self::Stderr => io::stderr().lock().write(bytes),
            Self::File(_, file) => file.write(bytes),
        }
    }
}

fn open(path: &PathBuf) -> io::Result<File> {
    File::options().append(true).create(true).open(path)
}

/// Gathers lines and writes them; what cannot be written is counted and forgotten.
struct Writer {
    sink: Sink,
    reopen: Arc<AtomicBool>,
    looked: Instant,
    lines: Vec<u8>,
    /// Lines in `lines`.
    count: u64,
    /// Lines lost since writing began to fail.
    lost: u64,
    failing: bool,
    /// Writing failed in the middle of a line.
    torn: bool,
    written: Counter,
    failed: Counter,
}

impl Writer {
    fn new(sink: Sink, reopen: Arc<AtomicBool>) -> Self {
        describe_counter!("pilotlight_access_log_lines_total", "Lines written to the access log.");
        describe_counter!("pilotlight_access_log_failed_total", "Lines that could not be written, as on a full disk.");
        Self {
            sink,
            reopen,
            looked: Instant::now(),
            lines: Vec::with_capacity(2 * WRITE_BYTES),
            count: 0,
            lost: 0,
            failing: false,
            torn: false,
            written: counter!("pilotlight_access_log_lines_total"),
            failed: counter!("pilotlight_access_log_failed_total"),
        }
    }

    fn line(&mut self, config: &Config, shard: usize, record: &Record) {
        let whole = self.lines.len();
        if serde_json::to_writer(&mut self.lines, &Line::of(config, shard, record)).is_err() {
            // A Vec takes everything, and the line has nothing that JSON cannot say.
            return self.lines.truncate(whole);
        }
        self.lines.push(b'\n');
        self.count += 1;
        if self.lines.len() >= WRITE_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if self.lines.is_empty() {
            return;
        }
        if self.torn {
            // Whoever reads it loses the one line, and not the next.
            self.lines.insert(0, b'\n');
        }
        let mut done = 0;
        let failure = loop {
            match self.sink.write(&self.lines[done..]) {
                Ok(0) => break Some(io::ErrorKind::WriteZero.into()),
                Ok(more) => done += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(error),
            }
            if done == self.lines.len() {
                break None;
            }
        };
        if done > 0 {
            self.torn = self.lines[done - 1] != b'\n';
        }
        // A line of which not all is there is lost.
        let lost = self.lines[done..].iter().filter(|byte| **byte == b'\n').count() as u64;
        self.written.increment(self.count.saturating_sub(lost));
        self.failed.increment(lost);
        self.lost += lost;
        match failure {
            Some(error) if !self.failing => {
                self.failing = true;
                tracing::error!(%error, "the access log cannot be written; lines are lost and counted");
            }
            None if self.failing => {
                tracing::warn!(lost = self.lost, "the access log is written again");
                (self.failing, self.lost) = (false, 0);
            }
            _ => {}
        }
        self.lines.clear();
        self.count = 0;
    }

    /// Opens the file anew when somebody asked for it, or moved it away.
    fn look(&mut self) {
        let asked = self.reopen.swap(false, Relaxed);
        let Sink::File(path, file) = &mut self.sink else { return };
        if !asked && self.looked.elapsed() < LOOK_EVERY {
            return;
        }
        self.looked = Instant::now();
        let id = |found: io::Result<std::fs::Metadata>| found.ok().map(|found| (found.dev(), found.ino()));
        if !asked && id(std::fs::metadata(&*path)) == id(file.metadata()) {
            return;
        }
        match open(path) {
            Ok(anew) => {
                *file = anew;
                self.torn = false;
            }
            Err(error) if !self.failing => {
                // The old one is still open, and lines go on there.
                tracing::error!(%error, path = %path.display(), "the access log cannot be opened anew");
            }
            Err(_) => {}
        }
    }
}

/// One line. Absent is what is not known or does not apply.
#[derive(Serialize)]
struct Line<'a> {
    /// When the request was there, RFC 3339.
    time: String,
    shard: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    client: Option<std::net::IpAddr>,
    #[serde(skip_serializing_if = "str::is_empty")]
    method: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    host: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    target: &'a str,
    /// Its length, when the target was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    target_bytes: Option<u32>,
    status: u16,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    route: Option<&'a str>,
    bytes: u64,
    duration_ms: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_status: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_queue_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_first_byte_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    upstream_ms: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    trace_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'static str>,
}

/// The outcome of a request whose client did not wait.
pub(super) const CLIENT_LEFT: &str = "client_left";

impl<'a> Line<'a> {
    fn of(config: &'a Config, shard: usize, record: &'a Record) -> Self {
        let fetch = record.fetch.as_ref();
        let started = UNIX_EPOCH + Duration::from_nanos(record.start_unix_ns);
        Self {
            time: humantime::format_rfc3339_micros(started).to_string(),
            shard,
            client: record.client,
            method: text(record.text.method()),
            host: text(record.text.host()),
            target: text(record.text.target()),
            target_bytes: record.text.target_cut(),
            status: record.status,
            outcome: record.outcome.map_or(CLIENT_LEFT, |outcome| outcome.as_str()),
            route: record.route.and_then(|route| config.routes.get(usize::from(route))).map(|route| &*route.name),
            bytes: record.sent_bytes,
            duration_ms: ms(record.duration_ns / 1000),
            upstream: fetch.and_then(|fetch| config.upstreams.get(usize::from(fetch.upstream))).map(|up| &*up.name),
            upstream_status: fetch.map(|fetch| fetch.status).filter(|status| *status > 0),
            upstream_queue_ms: fetch.map(|fetch| ms(fetch.queue_us.into())),
            upstream_first_byte_ms: fetch.filter(|fetch| fetch.first_byte_us > 0).map(|f| ms(f.first_byte_us.into())),
            upstream_ms: fetch.map(|fetch| ms(fetch.total_us.into())),
            trace_id: record.trace.map(|trace| hex(&trace.trace_id)),
            error: record.error,
        }
    }
}

/// Methods, hosts and targets are ASCII when they have passed the parser.
pub(super) fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or("?")
}

fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
