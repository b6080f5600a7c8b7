//! The access log: takes what the shards say of each request out of their rings, writes it as lines of JSON, and hands sampled spans on.
//!
//! One thread does it, so that neither a shard nor the control thread ever waits for a disk. Between the two is a bounded ring for each
//! shard: when this thread is stuck, the shards count what they drop and go on. Nobody is woken for a line: the rings are looked at
//! a few times a second, more often while there is something in them, and not at all while nothing is to be told.
//!
//! Must hold across reloads: a record is written by the edition of the configuration that its shard told it by, so each line is in the file
//! that was configured when its request ended; and no edition goes before all that was told by it is written.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, UNIX_EPOCH};

use metrics::{Counter, counter, describe_counter};
use rtrb::Consumer;
use serde::Serialize;

use super::trace::Exporter;
use crate::base::record::{EDITION_FIRST, Record};
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

/// Orders that wait for the thread. It takes them many times a second, so a reload that finds no room finds a thread that hangs.
const ORDERS_MAX: usize = 16;

/// The running thread.
pub struct AccessLog {
    follower: Follower,
    thread: JoinHandle<()>,
}

/// Tells the thread of new configurations.
#[derive(Clone)]
pub struct Follower {
    orders: SyncSender<Order>,
    reopen: Arc<AtomicBool>,
}

/// What the thread is told, in the order in which it was sent.
enum Order {
    /// From now on there may be records of this edition.
    Follow(Edition),
    /// There will be none of an earlier one.
    Settle(u64),
    /// Write what is there, and end.
    End,
}

/// A configuration that the shards are about to change over to, as far as this thread is concerned.
pub struct Edition {
    number: u64,
    config: Arc<Config>,
    sink: Next<Sink>,
    exporter: Next<Exporter>,
}

/// What becomes of a file or a collector with a new edition.
enum Next<T> {
    /// The one before goes on.
    Same,
    Other(Option<T>),
}

impl AccessLog {
    /// Opens the log and starts the thread. One consumer for each shard, in their order.
    ///
    /// # Errors
    /// When the file cannot be opened, or the system has no thread to give.
    pub fn start(config: Arc<Config>, rings: Vec<Consumer<Record>>) -> io::Result<Self> {
        let sink = Next::Other(config.log.access.as_ref().map(Sink::open).transpose()?);
        let reopen = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&reopen))?;
        let exporter = Next::Other(Exporter::start(&config)?);
        let (orders, received) = sync_channel(ORDERS_MAX);
        let follower = Follower { orders, reopen: Arc::clone(&reopen) };
        // There is room for the first.
        let _ = follower.order(Order::Follow(Edition { number: EDITION_FIRST, config, sink, exporter }));
        let thread = thread::Builder::new().name("log".to_owned()).spawn(move || {
            Teller { orders: received, rings, editions: Vec::new(), settled: EDITION_FIRST, ending: false, reopen }
                .run();
        })?;
        Ok(Self { follower, thread })
    }

    /// The way to tell it of new configurations.
    #[must_use]
    pub fn follower(&self) -> Follower {
        self.follower.clone()
    }

    /// Writes what is left and ends, if the disk lets it.
    pub fn finish(self) {
        let _ = self.follower.order(Order::End);
        let by = Instant::now() + END_WITHIN;
        while !self.thread.is_finished() && Instant::now() < by {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Follower {
    /// Gets ready for a new configuration; nothing changes yet. Opening a file may wait for its disk.
    ///
    /// # Errors
    /// When the file cannot be opened, or the system has no thread to give.
    pub fn prepare(&self, old: &Config, new: &Arc<Config>, number: u64) -> io::Result<Edition> {
        let sink = match &new.log.access {
            same if *same == old.log.access => Next::Same,
            other => Next::Other(other.as_ref().map(Sink::open).transpose()?),
        };
        let exporter = if Exporter::is_same(old, new) { Next::Same } else { Next::Other(Exporter::start(new)?) };
        Ok(Edition { number, config: Arc::clone(new), sink, exporter })
    }

    /// Before the first shard changes over to it; false when the thread hangs. The file that stays is opened anew, as by SIGUSR1.
    #[must_use]
    pub fn follow(&self, edition: Edition) -> bool {
        self.reopen();
        self.order(Order::Follow(edition))
    }

    /// When every shard has changed over to edition `number`.
    pub fn settle(&self, number: u64) {
        // Without it the edition before is kept until the next one is settled.
        let _ = self.order(Order::Settle(number));
    }

    /// Has the file opened anew.
    pub fn reopen(&self) {
        self.reopen.store(true, Relaxed);
    }

    /// Never waits.
    fn order(&self, order: Order) -> bool {
        self.orders.try_send(order).is_ok()
    }
}

/// An edition that records may belong to. What stays the same from one to the next they share.
struct Live {
    number: u64,
    config: Arc<Config>,
    writer: Option<Rc<RefCell<Writer>>>,
    exporter: Option<Rc<RefCell<Exporter>>>,
}

/// The thread.
struct Teller {
    orders: Receiver<Order>,
    /// By shard.
    rings: Vec<Consumer<Record>>,
    /// Ascending by number. The last one goes on; more than one only while the shards change over.
    editions: Vec<Live>,
    /// Nothing will be told by earlier ones.
    settled: u64,
    ending: bool,
    reopen: Arc<AtomicBool>,
}

impl Teller {
    fn run(mut self) {
        loop {
            // Before the rings: what came before the wish to stop, or before the last shard had changed over, is still written.
            self.take_orders();
            let (settled, ending) = (self.settled, self.ending);
            let busiest = self.take_records();
            let asked = self.reopen.swap(false, Relaxed);
            for writer in self.editions.iter().filter_map(|live| live.writer.as_ref()) {
                let mut writer = writer.borrow_mut();
                writer.flush();
                writer.look(asked);
            }
            if ending {
                // Editions share them; each ends with the last that has it.
                let exporters: Vec<_> = self.editions.drain(..).filter_map(|live| live.exporter).collect();
                exporters.into_iter().filter_map(Rc::into_inner).for_each(|exporter| exporter.into_inner().finish());
                return;
            }
            self.editions.retain(|live| live.number >= settled);
            self.wait(busiest);
        }
    }

    fn wait(&mut self, busiest: usize) {
        let tells = self.editions.iter().any(|live| live.writer.is_some() || live.exporter.is_some());
        // Half full would be too late: so the next look comes before the rings can be a quarter full.
        let pause = if busiest > RING_RECORDS / 8 { IDLE / 10 } else { IDLE };
        let order = match tells {
            true => self.orders.recv_timeout(pause),
            false => self.orders.recv().map_err(RecvTimeoutError::from),
        };
        match order {
            Ok(order) => self.carry_out(order),
            Err(RecvTimeoutError::Timeout) => {}
            // Whoever could say so is gone.
            Err(RecvTimeoutError::Disconnected) => self.ending = true,
        }
    }

    fn take_orders(&mut self) {
        while let Ok(order) = self.orders.try_recv() {
            self.carry_out(order);
        }
    }

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Follow(Edition { number, config, sink, exporter }) => {
                let before = self.editions.last();
                // Counters belong to the thread that registers them: this one.
                let writer = match sink {
                    Next::Same => before.and_then(|live| live.writer.clone()),
                    Next::Other(sink) => sink.map(|sink| Rc::new(RefCell::new(Writer::new(sink)))),
                };
                let exporter = match exporter {
                    Next::Same => before.and_then(|live| live.exporter.clone()),
                    Next::Other(exporter) => exporter.map(|mut exporter| {
                        exporter.count();
                        Rc::new(RefCell::new(exporter))
                    }),
                };
                self.editions.push(Live { number, config, writer, exporter });
            }
            Order::Settle(number) => self.settled = number,
            Order::End => self.ending = true,
        }
    }

    /// Takes what is in the rings; returns how much was in the fullest.
    fn take_records(&mut self) -> usize {
        let mut busiest = 0;
        for shard in 0..self.rings.len() {
            let waiting = self.rings[shard].slots();
            busiest = busiest.max(waiting);
            // As many as there were: a shard that goes on writing must not keep the others waiting.
            for _ in 0..waiting {
                let Ok(record) = self.rings[shard].pop() else { break };
                if self.editions.last().is_none_or(|live| live.number < record.edition) {
                    // The order came before the record, but after the last look at the orders.
                    self.take_orders();
                }
                self.tell(shard, &record);
            }
        }
        busiest
    }

    fn tell(&self, shard: usize, record: &Record) {
        // One of a shard that was late may be older than all.
        let own = self.editions.iter().rev().find(|live| live.number <= record.edition);
        let Some(Live { config, writer, exporter, .. }) = own.or(self.editions.first()) else { return };
        if let Some(writer) = writer.as_ref().filter(|_| record.logged) {
            writer.borrow_mut().line(config, shard, record);
        }
        if let Some(exporter) = exporter.as_ref().filter(|_| record.trace.is_some_and(|trace| trace.sampled)) {
            exporter.borrow_mut().record(config, shard, record);
        }
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
    fn new(sink: Sink) -> Self {
        describe_counter!("pilotlight_access_log_lines_total", "Lines written to the access log.");
        describe_counter!("pilotlight_access_log_failed_total", "Lines that could not be written, as on a full disk.");
        Self {
            sink,
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
    fn look(&mut self, asked: bool) {
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
