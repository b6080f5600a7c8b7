//! What a shard tells of its requests: records for the access log and for spans, put into a ring for the log's thread.
//!
//! A shard never waits for that thread: a record that finds the ring full is dropped and counted. Of a hit as little as possible is noted
//! while its head is at hand: the stored response, which knows its host and target; only for the few that are told of it becomes a record.
//! Which of the others are told of is drawn in advance, as the number of those in between, so that most hits only count down.
//! While there is neither a log nor tracing a hit pays for one branch.
//!
//! What is told follows the configuration: a record names the edition of it by which it was told, so that the log's thread knows where it belongs.

use super::clock;
use super::core::Shard;
use crate::base::outcome::{FetchKind, Outcome};
use crate::base::random::Random;
use crate::base::record::{EDITION_FIRST, Fetch, Record, Span};
use crate::cache::key;
use crate::cache::partition::Stored;
use crate::config::Config;
use crate::http::encode::Trace;
use crate::http::fields::FieldId;
use crate::http::head::{FieldsView, Method, RequestHead};
use crate::http::traceparent::{self, Traceparent};
use crate::shard::query::Query;
use metrics::{Counter, counter, describe_counter};
use rtrb::Producer;
use std::cell::{Cell, OnceCell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;

/// Boxes for the traces of hits: so many from the start, so that a burst need not make them, and so many kept.
const SPARE: usize = 64;
const SPARE_MAX: usize = 256;
/// What a status line that we write begins with; the status follows.
const STATUS_LINE: &[u8] = b"HTTP/1.1 ";

pub struct Journal {
    shard: usize,
    ring: RefCell<Producer<Record>>,
    rules: Cell<Rules>,
    /// Of the configuration: the same number as the log's thread has for it.
    edition: Cell<u64>,
    /// So many requests that might be left out are, before the next one is logged.
    skip: Cell<u64>,
    #[expect(clippy::vec_box, reason = "the boxes go to connections and come back")]
    spare: RefCell<Vec<Box<Span>>>,
    random: RefCell<Random>,
    /// Registered when there is something to be told.
    dropped: OnceCell<Counter>,
}

/// What is to be told.
#[derive(Clone, Copy, Default)]
struct Rules {
    log: Option<Log>,
    tracing: Option<Tracing>,
}

/// Which requests are logged.
#[derive(Clone, Copy)]
struct Log {
    share: Share,
    slow_ns: u64,
}

#[derive(Clone, Copy)]
struct Tracing {
    share: Share,
    /// Spans go somewhere, so they may stand as parents in requests.
    exporting: bool,
}

impl Rules {
    fn of(config: &Config) -> Self {
        let log = config.log.access.as_ref().map(|_| Log {
            share: Share(config.log.sample),
            slow_ns: u64::try_from(config.log.slow.as_nanos()).unwrap_or(u64::MAX),
        });
        let tracing = config
            .tracing
            .as_ref()
            .map(|tracing| Tracing { share: Share(tracing.sample), exporting: tracing.endpoint.is_some() });
        Self { log, tracing }
    }
}

/// A part of all random numbers.
#[derive(Clone, Copy)]
struct Share(f64);

impl Share {
    fn takes(self, random: u64) -> bool {
        // 53 bits, as many as a float tells apart below 1.
        ((random >> 11) as f64) < self.0 * (1_u64 << 53) as f64
    }

    /// How many are left out before the next one that is taken: the geometric distribution, by inversion. So each is taken with the
    /// probability of the share, whatever was taken before, and the random number is needed only for those that are.
    fn gap(self, random: u64) -> u64 {
        if self.0 >= 1.0 {
            return 0;
        }
        if self.0 <= 0.0 {
            return u64::MAX;
        }
        // Above 0 and up to 1, so the logarithm is finite.
        let uniform = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
        // Casting saturates.
        (uniform.ln() / (-self.0).ln_1p()) as u64
    }
}

/// A hit that is answered and not written yet: its route, and what is needed to tell of it.
pub struct Hit {
    pub route: u16,
    /// The digits, as they were written: they become a number when it is told of.
    status: [u8; 3],
    method: Method,
    sent_bytes: u64,
    arrived_mono_ms: u64,
    /// What was answered with; `None`: nobody wants to know.
    object: Option<Stored>,
    /// Where it stands in a trace, if it does.
    trace: Option<Box<Span>>,
}

impl Hit {
    /// One of which nothing is told.
    #[must_use]
    pub fn untold(route: u16) -> Self {
        Self {
            route,
            status: *b"000",
            method: Method::Get,
            sent_bytes: 0,
            arrived_mono_ms: 0,
            object: None,
            trace: None,
        }
    }
}

/// A connection keeps room for the first few.
const _: () = assert!(size_of::<Hit>() <= 40);

/// Who a request came from.
#[derive(Debug, Clone, Copy)]
pub struct Sender {
    pub peer: Option<IpAddr>,
    pub trusted: bool,
}

impl Journal {
    /// For the thread that will use it: counters are registered with it.
    #[must_use]
    pub fn new(config: &Config, shard: usize, seed: u64, ring: Producer<Record>) -> Self {
        let journal = Self {
            shard,
            ring: RefCell::new(ring),
            rules: Cell::default(),
            edition: Cell::new(EDITION_FIRST),
            skip: Cell::new(0),
            spare: RefCell::default(),
            random: RefCell::new(Random::new(seed)),
            dropped: OnceCell::new(),
        };
        journal.go_by(config);
        journal
    }

    /// The next edition of the configuration is in force.
    pub fn follow(&self, config: &Config) {
        self.edition.set(self.edition.get() + 1);
        self.go_by(config);
    }

    fn go_by(&self, config: &Config) {
        let rules = Rules::of(config);
        self.rules.set(rules);
        self.skip.set(rules.log.map_or(u64::MAX, |log| log.share.gap(self.random())));
        if !self.tells() {
            return;
        }
        self.dropped.get_or_init(|| {
            describe_counter!(
                "pilotlight_access_log_dropped_total",
                "Requests that were to be logged or traced, and that the log's thread had no room for."
            );
            counter!("pilotlight_access_log_dropped_total", "shard" => self.shard.to_string())
        });
        let mut spare = self.spare.borrow_mut();
        if spare.capacity() == 0 {
            spare.reserve(SPARE_MAX);
            spare.resize_with(SPARE, || Box::new(Span::EMPTY));
        }
    }

    /// Whether there is a log, or tracing.
    #[must_use]
    pub fn tells(&self) -> bool {
        let rules = self.rules.get();
        rules.log.is_some() || rules.tracing.is_some()
    }

    fn random(&self) -> u64 {
        self.random.borrow_mut().number()
    }

    /// Notes a hit while its head is at hand; `answer` is what was appended for it.
    pub fn hit(
        &self,
        route: u16,
        (method, view): (Method, FieldsView<'_>),
        object: Stored,
        answer: &[u8],
        rest_bytes: usize,
        now_mono_ms: u64,
    ) -> Hit {
        let traced = self.rules.get().tracing.is_some() || view.has(FieldId::Traceparent);
        Hit {
            route,
            status: status_digits(answer).unwrap_or(*b"000"),
            method,
            sent_bytes: (answer.len() + rest_bytes) as u64,
            arrived_mono_ms: now_mono_ms,
            object: Some(object),
            trace: if traced { self.boxed_place(view) } else { None },
        }
    }

    fn boxed_place(&self, view: FieldsView<'_>) -> Option<Box<Span>> {
        let (place, _) = self.place(view)?;
        let mut spare = self.spare.borrow_mut().pop().unwrap_or_else(|| Box::new(Span::EMPTY));
        *spare = place;
        Some(spare)
    }

    /// The hit is written: tells of it, if it is one of those.
    #[inline]
    pub fn hit_done(&self, shard: &Shard, hit: Hit, from: Sender, start_ns: u64, elapsed_ns: u64) {
        let logged = self.is_logged(hit.status[0] >= b'5', elapsed_ns);
        if logged || hit.trace.is_some() {
            self.tell_hit(shard, hit, Some(Outcome::Hit), from, (start_ns, elapsed_ns), logged);
        }
    }

    /// The client of the hit has left before all of it was written; how much was is not known.
    pub fn hit_left(&self, shard: &Shard, mut hit: Hit, from: Sender) {
        hit.sent_bytes = 0;
        let start_ns = hit.arrived_mono_ms * 1_000_000;
        let elapsed_ns = clock::mono_ns().saturating_sub(start_ns);
        let logged = self.is_logged(true, elapsed_ns);
        self.tell_hit(shard, hit, None, from, (start_ns, elapsed_ns), logged);
    }

    #[inline(never)]
    fn tell_hit(
        &self,
        shard: &Shard,
        hit: Hit,
        outcome: Option<Outcome>,
        from: Sender,
        (start_ns, elapsed_ns): (u64, u64),
        logged: bool,
    ) {
        let Some(object) = &hit.object else { return };
        let trace = hit.trace.as_deref().map(|place| Span { sampled: self.sampled(*place, from.trusted), ..*place });
        let mut record = Record {
            start_unix_ns: shard.unix_ns_at(start_ns),
            duration_ns: elapsed_ns,
            sent_bytes: hit.sent_bytes,
            client: from.peer,
            route: Some(hit.route),
            status: number_of(hit.status).unwrap_or(0),
            outcome,
            trace,
            logged,
            ..Record::EMPTY
        };
        let (host, target) = key::host_and_target(object.key());
        record.text.set(if hit.method == Method::Head { b"HEAD" } else { b"GET" }, host, target);
        leave_exemplar(shard, &record);
        self.tell(record);
        if let Some(place) = hit.trace {
            let mut spare = self.spare.borrow_mut();
            if spare.len() < SPARE_MAX {
                spare.push(place);
            }
        }
    }

    /// Where a request stands in its trace, and what it carried. `None`: in none that anybody else could know.
    fn place(&self, view: FieldsView<'_>) -> Option<(Span, Option<Traceparent>)> {
        let carried = Traceparent::of(view);
        let tracing = self.rules.get().tracing;
        let id = match &tracing {
            Some(_) => traceparent::span_id(self.random()),
            None => [0; 8],
        };
        match (carried, &tracing) {
            (Some(carried), _) => {
                let parent_id = Some(carried.parent_id);
                Some((Span { trace_id: carried.trace_id, id, parent_id, sampled: carried.sampled() }, Some(carried)))
            }
            (None, Some(tracing)) => {
                let trace_id = traceparent::trace_id(self.random(), self.random());
                let sampled = tracing.share.takes(self.random());
                Some((Span { trace_id, id, parent_id: None, sampled }, None))
            }
            (None, None) => None,
        }
    }

    /// Gives a request its place in a trace, and says what its upstream is to be told.
    fn begin(&self, record: &mut Record, view: FieldsView<'_>, trusted: bool) -> Trace {
        let Some((mut place, carried)) = self.place(view) else { return Trace::PassedOn };
        place.sampled = self.sampled(place, trusted);
        record.trace = Some(place);
        let Some(tracing) = self.rules.get().tracing else { return Trace::PassedOn };
        let fetch_span_id = traceparent::span_id(self.random());
        record.fetch_span_id = fetch_span_id;
        match carried {
            // Without spans of ours in between, the upstream's parent is the client.
            Some(carried) if !tracing.exporting => {
                Trace::Replaced { parent: carried.with(carried.parent_id, place.sampled), keep_state: true }
            }
            Some(carried) => Trace::Replaced { parent: carried.with(fetch_span_id, place.sampled), keep_state: true },
            None => {
                let started = Traceparent::started(place.trace_id);
                Trace::Replaced { parent: started.with(fetch_span_id, place.sampled), keep_state: false }
            }
        }
    }

    /// Slow and failed requests always, of the others a part.
    fn is_logged(&self, failed: bool, elapsed_ns: u64) -> bool {
        let Some(log) = self.rules.get().log else { return false };
        if failed || elapsed_ns >= log.slow_ns {
            return true;
        }
        let skip = self.skip.get();
        if skip > 0 {
            self.skip.set(skip - 1);
            return false;
        }
        self.skip.set(log.share.gap(self.random()));
        true
    }

    fn sampled(&self, place: Span, trusted: bool) -> bool {
        match self.rules.get().tracing {
            None => false,
            // What came with the flag came from somebody: strangers do not decide how much work we do.
            Some(tracing) if place.parent_id.is_some() && !trusted => tracing.share.takes(self.random()),
            Some(_) => place.sampled,
        }
    }

    fn tell(&self, mut record: Record) {
        let exporting = self.rules.get().tracing.is_some_and(|tracing| tracing.exporting);
        let exported = exporting && record.trace.is_some_and(|trace| trace.sampled);
        record.edition = self.edition.get();
        if (record.logged || exported)
            && self.ring.borrow_mut().push(record).is_err()
            && let Some(dropped) = self.dropped.get()
        {
            dropped.increment(1);
        }
    }
}

/// Whether something went wrong with it.
fn has_failed(record: &Record) -> bool {
    record.error.is_some()
        || record.status >= 500
        || matches!(record.outcome, None | Some(Outcome::Error | Outcome::Rejected))
}

/// A request under way that is more than a hit, or a fetch without a client: what is known of it so far.
pub struct Trail {
    record: RefCell<Record>,
    trace: Trace,
    start_ns: u64,
    /// When something was last written to the client.
    last_ns: Cell<u64>,
    /// When its upstream was first wanted; 0: it is not any more.
    fetch_ns: Cell<u64>,
}

/// The end of a trail that tells of it when it is dropped.
pub struct Entry {
    shard: Rc<Shard>,
    pub trail: Rc<Trail>,
}

impl Entry {
    /// Begins the record of a client's request.
    #[must_use]
    pub fn of(shard: &Rc<Shard>, head: &RequestHead, buf: &[u8], from: Sender, start_ns: u64) -> Option<Self> {
        let journal = shard.journal()?;
        let mut record = Record { client: from.peer, ..Record::EMPTY };
        record.text.set(head.method_span.of(buf), &head.host, head.target.of(buf));
        let trace = journal.begin(&mut record, head.view(buf), from.trusted);
        Some(Self::new(shard, record, trace, start_ns))
    }

    /// Begins the record of a request that was refused before it was understood.
    #[must_use]
    pub fn unread(shard: &Rc<Shard>, from: Sender, start_ns: u64) -> Option<Self> {
        shard.journal()?;
        let record = Record { client: from.peer, ..Record::EMPTY };
        Some(Self::new(shard, record, Trace::PassedOn, start_ns))
    }

    /// Begins the record of a fetch that no client waits for: a trace of its own, and no line in the log.
    #[must_use]
    pub fn background(shard: &Rc<Shard>, query: &Query) -> Option<Self> {
        let journal = shard.journal().filter(|journal| journal.rules.get().tracing.is_some())?;
        let mut record = Record { route: Some(query.route), ..Record::EMPTY };
        record.text.set(b"GET", &query.head.host, query.head.target.of(&query.buf));
        let trace = journal.begin(&mut record, RequestHead::new().view(&[]), true);
        Some(Self::new(shard, record, trace, clock::mono_ns()))
    }

    fn new(shard: &Rc<Shard>, record: Record, trace: Trace, start_ns: u64) -> Self {
        let record = Record { start_unix_ns: shard.unix_ns_at(start_ns), ..record };
        let trail =
            Trail { record: RefCell::new(record), trace, start_ns, last_ns: Cell::new(0), fetch_ns: Cell::new(0) };
        Self { shard: Rc::clone(shard), trail: Rc::new(trail) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let Some(journal) = self.shard.journal() else { return };
        if self.trail.fetch_ns.get() > 0 {
            // It goes on without its client.
            self.trail.with_fetch(|fetch, us| fetch.total_us = us);
        }
        let mut record = *self.trail.record.borrow();
        let end_ns = match self.trail.last_ns.get() {
            0 => clock::mono_ns(),
            last_ns => last_ns,
        };
        record.duration_ns = end_ns.saturating_sub(self.trail.start_ns);
        let background = record.fetch.is_some_and(|fetch| fetch.kind != FetchKind::Foreground);
        record.logged = !background && journal.is_logged(has_failed(&record), record.duration_ns);
        if !background {
            leave_exemplar(&self.shard, &record);
        }
        journal.tell(record);
    }
}

/// A request that stands in a trace may stand for others of its latency.
fn leave_exemplar(shard: &Shard, record: &Record) {
    if let (Some(route), Some(outcome), Some(span)) = (record.route, record.outcome, record.trace) {
        let ended_unix_ms = (record.start_unix_ns + record.duration_ns) / 1_000_000;
        let (took, trace_id) = (Duration::from_nanos(record.duration_ns), u128::from_be_bytes(span.trace_id));
        shard.telemetry.request_traced(route.into(), outcome, took, trace_id, ended_unix_ms);
    }
}

impl Trail {
    /// What the upstream is told of the trace.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.trace
    }

    /// The id of the trace, in which to look for this request.
    #[must_use]
    pub fn trace_id(&self) -> Option<[u8; 16]> {
        self.record.borrow().trace.map(|trace| trace.trace_id)
    }

    pub fn routed(&self, route: u16) {
        self.record.borrow_mut().route = Some(route);
    }

    pub fn answered(&self, outcome: Outcome) {
        self.record.borrow_mut().outcome = Some(outcome);
    }

    pub fn failed(&self, label: &'static str) {
        self.record.borrow_mut().error = Some(label);
    }

    /// These bytes are about to be written to the client: the final status is in the first of them.
    pub fn writing(&self, bytes: &[u8]) {
        let mut record = self.record.borrow_mut();
        // 1xx come before the final response, but for 101, which is one.
        if matches!(record.status, 0 | 100 | 102..200) {
            record.status = status_of(bytes).unwrap_or(record.status);
        }
    }

    /// So many bytes were written.
    pub fn wrote(&self, bytes: usize) {
        self.record.borrow_mut().sent_bytes += bytes as u64;
        self.last_ns.set(clock::mono_ns());
    }

    /// Its upstream is wanted.
    pub fn fetch_begins(&self, shard: &Shard, upstream: u16, kind: FetchKind) {
        let now_ns = clock::mono_ns();
        self.fetch_ns.set(now_ns);
        self.record.borrow_mut().fetch = Some(Fetch {
            upstream,
            kind,
            start_unix_ns: shard.unix_ns_at(now_ns),
            queue_us: 0,
            first_byte_us: 0,
            total_us: 0,
            status: 0,
            error: None,
        });
    }

    /// It has a slot of its upstream.
    pub fn fetch_has_slot(&self) {
        self.with_fetch(|fetch, us| (fetch.queue_us, fetch.total_us) = (us, us));
    }

    /// The head of the response is there, or it never will be.
    pub fn fetch_answered(&self, result: Result<u16, &'static str>) {
        self.with_fetch(|fetch, us| {
            fetch.total_us = us;
            match result {
                Ok(status) => (fetch.status, fetch.first_byte_us) = (status, us.max(1)),
                Err(label) => fetch.error = Some(label),
            }
        });
    }

    fn with_fetch(&self, change: impl FnOnce(&mut Fetch, u32)) {
        let us = (clock::mono_ns().saturating_sub(self.fetch_ns.get())) / 1000;
        if let Some(fetch) = &mut self.record.borrow_mut().fetch {
            change(fetch, u32::try_from(us).unwrap_or(u32::MAX));
        }
    }
}

/// Goes with an exchange: whenever that ends, the time is noted.
pub struct FetchEnd(pub Rc<Trail>);

impl Drop for FetchEnd {
    fn drop(&mut self) {
        self.0.with_fetch(|fetch, us| fetch.total_us = us);
        self.0.fetch_ns.set(0);
    }
}

impl FetchEnd {
    /// The body broke off.
    pub fn failed(&self, label: &'static str) {
        self.0.with_fetch(|fetch, _| fetch.error = Some(label));
    }
}

/// The status in a status line of ours.
fn status_of(bytes: &[u8]) -> Option<u16> {
    number_of(*bytes.strip_prefix(STATUS_LINE)?.first_chunk()?)
}

/// Where the status is in what begins with a status line of ours.
#[inline]
fn status_digits(answer: &[u8]) -> Option<[u8; 3]> {
    answer.get(STATUS_LINE.len()..)?.first_chunk().copied()
}

fn number_of(digits: [u8; 3]) -> Option<u16> {
    digits.iter().try_fold(0, |status, digit| digit.is_ascii_digit().then(|| status * 10 + u16::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_takes_its_part() {
        for (share, random, taken) in [
            (0.0, 0, false),
            (0.0, u64::MAX, false),
            (1.0, u64::MAX, true),
            (0.5, u64::MAX / 2 - 4096, true),
            (0.5, u64::MAX / 2 + 4096, false),
            (0.01, u64::MAX / 101, true),
            (0.01, u64::MAX / 99, false),
        ] {
            assert_eq!(Share(share).takes(random), taken, "{share} of {random}");
        }
    }

    #[test]
    fn gaps_make_up_a_share() {
        assert_eq!(Share(0.0).gap(0), u64::MAX);
        assert_eq!((Share(1.0).gap(0), Share(1.0).gap(u64::MAX)), (0, 0));
        // The largest number gives the shortest gap, the smallest one the longest.
        assert_eq!(Share(0.01).gap(u64::MAX), 0);
        assert_eq!(Share(0.5).gap(0), 53);
        let mut random = Random::new(11);
        for share in [0.001, 0.01, 0.3, 0.9] {
            let gaps = 100_000;
            let passed: u64 = (0..gaps).map(|_| Share(share).gap(random.number()) + 1).sum();
            let taken = gaps as f64 / passed as f64;
            assert!((taken / share - 1.0).abs() < 0.02, "{taken} of {share}");
        }
    }

    #[test]
    fn the_status_is_read_off_what_is_written() {
        for (bytes, status) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.1 404", Some(404)),
            (b"HTTP/1.1 20", None),
            (b"HTTP/1.1 2x0 ", None),
            (b"body", None),
            (b"", None),
        ] {
            assert_eq!(status_of(bytes), status, "{}", bytes.escape_ascii());
        }
    }
}
