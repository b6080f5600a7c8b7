//! Spans to an OTLP collector: a server span for each sampled request, a client span for each of its fetches, and a client span that
//! begins a trace for each sampled fetch without a client.
//!
//! A thread of its own speaks to the collector, so that one that hangs delays neither the access log nor the control thread. What it
//! does not get rid of is dropped and counted; nothing is sent twice.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::Request;
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST, USER_AGENT};
use hyper_util::rt::TokioIo;
use metrics::{Counter, counter, describe_counter};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{AnyValue, InstrumentationScope, KeyValue, any_value::Value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status};
use prost::Message as _;

use super::access_log::text;
use crate::base::outcome::FetchKind;
use crate::base::record::{Fetch, Record, Span as Place};
use crate::config::{Collector, Config};

/// Spans that wait for the collector.
const QUEUE_SPANS: usize = 8192;
/// Most spans in one request, and how long the first of them waits for the others.
const BATCH_SPANS: usize = 512;
const BATCH_WITHIN: Duration = Duration::from_secs(1);
/// Connecting, sending and the answer together.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How long the end of the program waits for the last batch.
const END_WITHIN: Duration = Duration::from_secs(1);
/// Bit 0 of the flags of a span: its trace is sampled.
const SAMPLED: u32 = 1;

/// The near end: on the log's thread.
pub(super) struct Exporter {
    queue: SyncSender<Span>,
    thread: JoinHandle<()>,
    dropped: Counter,
}

impl Exporter {
    /// `None` when there is no collector.
    pub(super) fn start(config: &Config) -> io::Result<Option<Self>> {
        let Some(tracing) = &config.tracing else { return Ok(None) };
        let Some(collector) = tracing.endpoint.clone() else { return Ok(None) };
        let (queue, spans) = sync_channel(QUEUE_SPANS);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let resource = Resource {
            attributes: vec![
                string("service.name", &tracing.service),
                string("service.version", env!("CARGO_PKG_VERSION")),
                number("process.pid", i64::from(std::process::id())),
            ],
            ..Resource::default()
        };
        let thread = thread::Builder::new().name("trace".to_owned()).spawn(move || {
            Sender { collector, resource, runtime, failing: false, lost: 0 }.run(&spans);
        })?;
        Ok(Some(Self { queue, thread, dropped: Counter::noop() }))
    }

    /// Whether spans go on to the same collector, under the same name.
    pub(super) fn is_same(old: &Config, new: &Config) -> bool {
        let goal = |config: &Config| {
            let tracing = config.tracing.clone()?;
            Some((tracing.endpoint?, tracing.service))
        };
        goal(old) == goal(new)
    }

    /// Registers what this end counts, with the thread that calls it.
    pub(super) fn count(&mut self) {
        describe();
        self.dropped = dropped("queue_full");
    }

    pub(super) fn record(&mut self, config: &Config, shard: usize, record: &Record) {
        let Some(place) = record.trace else { return };
        let client = record.fetch.map(|fetch| client_span(config, shard, &place, &fetch, record));
        // Without an outcome and without a client's method there was no client.
        let server = (!is_background(record)).then(|| server_span(config, shard, &place, record));
        for span in server.into_iter().chain(client) {
            if self.queue.try_send(span).is_err() {
                self.dropped.increment(1);
            }
        }
    }

    /// Sends what is left and ends, if the collector lets it.
    pub(super) fn finish(self) {
        drop(self.queue);
        let by = Instant::now() + END_WITHIN;
        while !self.thread.is_finished() && Instant::now() < by {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

fn is_background(record: &Record) -> bool {
    record.fetch.is_some_and(|fetch| fetch.kind != FetchKind::Foreground)
}

fn describe() {
    describe_counter!("pilotlight_spans_exported_total", "Spans that the collector has taken.");
    describe_counter!("pilotlight_spans_dropped_total", "Spans that it did not get, by reason.");
}

fn dropped(reason: &'static str) -> Counter {
    counter!("pilotlight_spans_dropped_total", "reason" => reason)
}

/// The far end: on a thread of its own.
struct Sender {
    collector: Collector,
    resource: Resource,
    runtime: tokio::runtime::Runtime,
    failing: bool,
    /// Spans lost since the collector began to fail.
    lost: u64,
}

impl Sender {
    fn run(mut self, spans: &Receiver<Span>) {
        let (exported, refused) = (counter!("pilotlight_spans_exported_total"), dropped("export_failed"));
        while let Ok(first) = spans.recv() {
            let batch = gather(first, spans);
            let count = batch.len() as u64;
            let message = self.message(batch);
            let sent = self.runtime.block_on(async {
                tokio::time::timeout(EXPORT_WITHIN, post(&self.collector, message))
                    .await
                    .unwrap_or_else(|_| Err(format!("no answer within {EXPORT_WITHIN:?}")))
            });
            match sent {
                Ok(()) => {
                    exported.increment(count);
                    if std::mem::take(&mut self.failing) {
                        tracing::warn!(lost = std::mem::take(&mut self.lost), "the trace collector takes spans again");
                    }
                }
                Err(error) => {
                    refused.increment(count);
                    self.lost += count;
                    if !std::mem::replace(&mut self.failing, true) {
                        let Collector { host, port, .. } = &self.collector;
                        tracing::warn!(
                            host,
                            port,
                            error,
                            "the trace collector takes no spans; they are dropped and counted"
                        );
                    }
                }
            }
        }
    }

    fn message(&self, spans: Vec<Span>) -> Vec<u8> {
        let scope = InstrumentationScope { name: "pilotlight".to_owned(), ..InstrumentationScope::default() };
        let scope_spans = ScopeSpans { scope: Some(scope), spans, ..ScopeSpans::default() };
        let resource = Some(self.resource.clone());
        let of_this = ResourceSpans { resource, scope_spans: vec![scope_spans], ..ResourceSpans::default() };
        ExportTraceServiceRequest { resource_spans: vec![of_this] }.encode_to_vec()
    }
}

/// A batch that begins with `first`.
fn gather(first: Span, spans: &Receiver<Span>) -> Vec<Span> {
    let by = Instant::now() + BATCH_WITHIN;
    let mut batch = vec![first];
    while batch.len() < BATCH_SPANS {
        match spans.recv_timeout(by.saturating_duration_since(Instant::now())) {
            Ok(span) => batch.push(span),
            Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => break,
        }
    }
    batch
}

/// One request on a connection of its own: there is one a second at most, or a full batch.
async fn post(collector: &Collector, message: Vec<u8>) -> Result<(), String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let stream = tokio::net::TcpStream::connect((&*collector.host, collector.port)).await.map_err(|e| text(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| text(&e))?;
    let host = match collector.host.contains(':') {
        true => format!("[{}]:{}", collector.host, collector.port),
        false => format!("{}:{}", collector.host, collector.port),
    };
    let request = Request::post(&*collector.path)
        .header(HOST, host)
        .header(USER_AGENT, concat!("pilotlight/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .body(Full::new(Bytes::from(message)))
        .map_err(|e| text(&e))?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| text(&e))?;
        let status = response.status();
        let _ = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
        if status.is_success() { Ok(()) } else { Err(format!("the answer was {status}")) }
    };
    let connection = async {
        let _ = connection.await;
        std::future::pending().await
    };
    tokio::select! {
        result = exchange => result,
        never = connection => never,
    }
}

/// Names of attributes are those of the semantic conventions for HTTP 1.23, and our own begin with our name.
fn server_span(config: &Config, shard: usize, place: &Place, record: &Record) -> Span {
    let route = record.route.and_then(|route| config.routes.get(usize::from(route)));
    let (method, target) = (text(record.text.method()), text(record.text.target()));
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut attributes = vec![
        string("http.request.method", method),
        string("url.scheme", "http"),
        string("url.path", path),
        string("server.address", text(record.text.host())),
        number("http.response.body.size", record.sent_bytes.try_into().unwrap_or(i64::MAX)),
        number("pilotlight.shard", shard as i64),
    ];
    if !query.is_empty() {
        attributes.push(string("url.query", query));
    }
    if record.status > 0 {
        attributes.push(number("http.response.status_code", record.status.into()));
    }
    attributes.extend(route.map(|route| string("http.route", &route.name)));
    attributes.extend(record.client.map(|client| string("client.address", &client.to_string())));
    attributes.extend(record.outcome.map(|outcome| string("pilotlight.outcome", outcome.as_str())));
    attributes.extend(record.error.map(|error| string("error.type", error)));
    let end_unix_ns = record.start_unix_ns.saturating_add(record.duration_ns);
    Span {
        trace_id: place.trace_id.to_vec(),
        span_id: place.id.to_vec(),
        parent_span_id: place.parent_id.map_or_else(Vec::new, |id| id.to_vec()),
        flags: SAMPLED,
        name: route.map_or_else(|| method.to_owned(), |route| format!("{method} {}", route.name)),
        kind: SpanKind::Server.into(),
        start_time_unix_nano: record.start_unix_ns,
        end_time_unix_nano: end_unix_ns,
        attributes,
        status: failed(record.error.filter(|_| record.status == 0 || record.status >= 500)),
        ..Span::default()
    }
}

fn client_span(config: &Config, shard: usize, place: &Place, fetch: &Fetch, record: &Record) -> Span {
    let upstream = config.upstreams.get(usize::from(fetch.upstream)).map_or("", |upstream| &upstream.name);
    let method = text(record.text.method());
    let at = |us: u32| fetch.start_unix_ns.saturating_add(u64::from(us) * 1000);
    let mut attributes = vec![
        string("http.request.method", method),
        string("pilotlight.upstream", upstream),
        string("pilotlight.fetch.kind", fetch.kind.as_str()),
        number("pilotlight.shard", shard as i64),
        number("pilotlight.queue_us", fetch.queue_us.into()),
    ];
    if fetch.first_byte_us > 0 {
        attributes.push(number("pilotlight.first_byte_us", fetch.first_byte_us.into()));
    }
    if fetch.status > 0 {
        attributes.push(number("http.response.status_code", fetch.status.into()));
    }
    attributes.extend(fetch.error.map(|error| string("error.type", error)));
    if is_background(record) {
        let route = record.route.and_then(|route| config.routes.get(usize::from(route)));
        attributes.extend(route.map(|route| string("http.route", &route.name)));
        attributes
            .push(string("url.full", &format!("http://{}{}", text(record.text.host()), text(record.text.target()))));
    }
    Span {
        trace_id: place.trace_id.to_vec(),
        span_id: record.fetch_span_id.to_vec(),
        parent_span_id: if is_background(record) { Vec::new() } else { place.id.to_vec() },
        flags: SAMPLED,
        name: format!("{method} {upstream}"),
        kind: SpanKind::Client.into(),
        start_time_unix_nano: fetch.start_unix_ns,
        end_time_unix_nano: at(fetch.total_us),
        attributes,
        status: failed(fetch.error),
        ..Span::default()
    }
}

fn failed(error: Option<&'static str>) -> Option<Status> {
    error.map(|error| Status { message: error.to_owned(), code: StatusCode::Error.into() })
}

fn string(key: &str, value: &str) -> KeyValue {
    attribute(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: i64) -> KeyValue {
    attribute(key, Value::IntValue(value))
}

fn attribute(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { value: Some(value) }), ..KeyValue::default() }
}
