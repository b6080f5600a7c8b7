//! The admin HTTP server: ordinary code on the control thread. It answers from what the shards share, so it answers also when every
//! shard is stuck; only `/purge` waits for them, and not for ever. Everything is bounded: connections, heads, bodies, time.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, VARY};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::dispatch::{self, DispatchError};
use super::link::{Command, Selector};
use super::listener::Listener;
use super::live::Events;
use super::openmetrics::Format;
use super::snapshot::SaveError;
use super::{State, guard, page, reload, scrape, status, upgrade, url};

/// Beyond it the oldest connection is closed, so that stuck clients cannot keep others out.
const CONNECTIONS_MAX: usize = 64;
/// From the opening of a connection, or the end of the answer before, to the end of a head.
const HEAD_WITHIN: Duration = Duration::from_secs(10);
const BODY_WITHIN: Duration = Duration::from_secs(10);
const BODY_BYTES_MAX: usize = 1024 * 1024;
const HEAD_BYTES_MAX: usize = 16 * 1024;
const STALL_MS_MAX: u64 = 60_000;
/// Pause after a failed accept: it fails for want of descriptors, and trying at once would only burn the core.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);
/// Descriptors that nobody but an operator gets. A shard's accept that was in flight already may take what is given up for one, and then
/// the next is given up; shards hold back as soon as one of their accepts has failed.
const SPARE_DESCRIPTORS: usize = 4;

const JSON: &str = "application/json";
const PLAIN: &str = "text/plain; charset=utf-8";
const EVENTS: &str = "text/event-stream";

type Reply = Response<Either<Full<Bytes>, Events>>;

/// Serves until it is dropped.
pub(super) async fn serve(listener: Listener, state: Rc<State>) -> std::io::Result<Infallible> {
    match listener {
        Listener::Tcp(listener) => {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let prompt = |(stream, _): (tokio::net::TcpStream, _)| {
                // Or the end of a long page waits for the client's delayed acknowledgement, some 40 ms. Where it fails the client is gone.
                let _ = stream.set_nodelay(true);
                stream
            };
            accept_all(async || listener.accept().await.map(prompt), &state).await
        }
        Listener::Unix(listener, _file) => {
            let listener = tokio::net::UnixListener::from_std(listener)?;
            accept_all(async || listener.accept().await.map(|(stream, _)| stream), &state).await
        }
    }
}

async fn accept_all<S>(accept: impl AsyncFn() -> std::io::Result<S>, state: &Rc<State>) -> std::io::Result<Infallible>
where
    S: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let mut open: VecDeque<JoinHandle<()>> = VecDeque::new();
    let spare = Rc::new(Spare::default());
    spare.keep();
    loop {
        let mut accepted = accept().await;
        if accepted.is_err() && spare.give() {
            // Whoever asks what is wrong when all descriptors are taken gets one that was kept for that. Without a descriptor accept
            // fails also when nobody waits; then it must not stay free, or a shard has it.
            accepted = match tokio::time::timeout(Duration::ZERO, accept()).await {
                Ok(accepted) => accepted,
                Err(_) => {
                    spare.keep();
                    continue;
                }
            };
        }
        let Ok(stream) = accepted else {
            tokio::time::sleep(ACCEPT_RETRY).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        while open.len() >= CONNECTIONS_MAX {
            open.pop_front().inspect(JoinHandle::abort);
        }
        let (state, spare) = (state.clone(), spare.clone());
        open.push_back(tokio::task::spawn_local(async move {
            connection(stream, state).await;
            spare.keep();
        }));
    }
}

/// Descriptors that are kept for an operator.
#[derive(Default)]
struct Spare(RefCell<Vec<std::fs::File>>);

impl Spare {
    /// Takes what is missing, as far as it is to be had: best right after a connection has given back its own.
    fn keep(&self) {
        let mut kept = self.0.borrow_mut();
        let missing = SPARE_DESCRIPTORS - kept.len();
        kept.extend(std::iter::repeat_with(|| std::fs::File::open("/dev/null")).map_while(Result::ok).take(missing));
    }

    /// Closes one; whether there was one.
    fn give(&self) -> bool {
        self.0.borrow_mut().pop().is_some()
    }
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + 'static, state: Rc<State>) {
    let cut = Rc::new(Notify::new());
    let cut_off = cut.clone();
    let service = service_fn(move |request| {
        let (state, cut) = (state.clone(), cut.clone());
        async move { Ok::<_, Infallible>(answer(&state, request, &cut).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WITHIN).max_buf_size(HEAD_BYTES_MAX);
    tokio::select! {
        // A client that breaks off or talks nonsense is its own problem; hyper has answered what could be answered.
        _ = server.serve_connection(TokioIo::new(stream), service) => {}
        () = cut_off.notified() => {}
    }
}

/// `cut` ends the connection.
async fn answer(state: &State, request: Request<Incoming>, cut: &Rc<Notify>) -> Reply {
    let path = request.uri().path().to_owned();
    let allowed = match path.as_str() {
        "/metrics" | "/healthz" | "/readyz" | "/status" | "/events" => "GET, HEAD",
        "/purge" | "/warm" | "/snapshot" | "/drain" | "/reload" | "/upgrade" => "POST",
        "/debug/stall" | "/debug/panic" | "/debug/seal" if debug_hooks() => "POST",
        page if page::file(page).is_some() => "GET, HEAD",
        _ => return error(StatusCode::NOT_FOUND, "not_found", "see / for what there is"),
    };
    // Machines find these by whatever name, and they hold nothing that a stranger could use.
    let for_machines = matches!(path.as_str(), "/metrics" | "/healthz" | "/readyz");
    if !for_machines && let Err(refusal) = guard::host(request.headers(), &state.config.admin_hosts) {
        return error(StatusCode::FORBIDDEN, refusal.label(), refusal.detail());
    }
    if !allowed.split(", ").any(|method| method == request.method()) {
        return not_allowed(allowed);
    }
    match *request.method() {
        Method::POST => act(state, &path, request).await,
        Method::GET if path == "/events" => events(state, request.uri().query(), cut),
        _ => show(state, &path, &request),
    }
}

fn show(state: &State, path: &str, request: &Request<Incoming>) -> Reply {
    match path {
        "/metrics" => metrics(state, request),
        "/healthz" => reply(StatusCode::OK, PLAIN, "ok"),
        "/readyz" => {
            let readiness = status::readiness(state);
            let code = if readiness.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            reply_json(code, &json!(readiness))
        }
        "/status" => reply_json(StatusCode::OK, &json!(status::status(state))),
        "/events" => reply(StatusCode::OK, EVENTS, ""),
        path => file(path),
    }
}

/// Rendered for each scrape anew: what it says is true now.
fn metrics(state: &State, request: &Request<Incoming>) -> Reply {
    let fields = request.headers().get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let format = Format::preferred(&fields.collect::<Vec<_>>().join(","));
    let mut reply = reply(StatusCode::OK, format.content_type(), scrape::text(state, format));
    reply.headers_mut().insert(VARY, HeaderValue::from_static("Accept"));
    reply
}

fn file(path: &str) -> Reply {
    let Some((kind, content)) = page::file(path) else { return reply(StatusCode::NOT_FOUND, PLAIN, "") };
    let mut reply = reply(StatusCode::OK, kind, content);
    reply.headers_mut().extend(page::headers());
    reply
}

fn events(state: &State, query: Option<&str>, cut: &Rc<Notify>) -> Reply {
    let Some(events) = state.live.subscribe(query != Some("past=no"), cut.clone()) else {
        return error(StatusCode::SERVICE_UNAVAILABLE, "too_many_watchers", "as many pages and terminals watch as may");
    };
    let mut reply = reply(StatusCode::OK, EVENTS, "");
    *reply.body_mut() = Either::Right(events);
    reply
}

async fn act(state: &State, path: &str, request: Request<Incoming>) -> Reply {
    if let Err(refusal) = guard::same_site(request.headers()) {
        return error(StatusCode::FORBIDDEN, refusal.label(), refusal.detail());
    }
    match path {
        "/purge" => purge(state, request.uri().query().unwrap_or_default()).await,
        "/warm" => warm(state, request).await,
        "/reload" => reload(state).await,
        "/upgrade" => upgrade(state).await,
        "/debug/stall" | "/debug/panic" | "/debug/seal" => {
            disturb(state, &path["/debug/".len()..], request.uri().query().unwrap_or_default())
        }
        "/snapshot" => save(state).await,
        _ => {
            state.drain_requested.notify_one();
            reply_json(StatusCode::ACCEPTED, &json!({ "draining": true }))
        }
    }
}

async fn reload(state: &State) -> Reply {
    use reload::{ReloadError, Reloaded};
    let done = |generation: u64, changed: bool| json!({ "generation": generation, "changed": changed });
    match reload::reload(state).await {
        Ok(Reloaded::Applied { generation }) => reply_json(StatusCode::OK, &done(generation, true)),
        Ok(Reloaded::Unchanged { generation }) => reply_json(StatusCode::OK, &done(generation, false)),
        Err(why) => {
            let (code, label) = match &why {
                ReloadError::Rejected(_) => (StatusCode::UNPROCESSABLE_ENTITY, "configuration_rejected"),
                ReloadError::Busy | ReloadError::LogHangs | ReloadError::Draining => {
                    (StatusCode::SERVICE_UNAVAILABLE, "busy")
                }
                ReloadError::Unanswered(_) | ReloadError::Late(_) => (StatusCode::GATEWAY_TIMEOUT, "shards_unanswered"),
            };
            error(code, label, &why.to_string())
        }
    }
}

async fn upgrade(state: &State) -> Reply {
    use upgrade::UpgradeError::{Busy, Draining};
    match upgrade::upgrade(state).await {
        Ok(pid) => reply_json(StatusCode::OK, &json!({ "pid": pid })),
        Err(why @ (Busy | Draining)) => error(StatusCode::SERVICE_UNAVAILABLE, "busy", &why.to_string()),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, "not_upgraded", &why.to_string()),
    }
}

async fn purge(state: &State, query: &str) -> Reply {
    let selectors = match selectors(query.as_bytes()) {
        Ok(selectors) => selectors,
        Err(detail) => return error(StatusCode::BAD_REQUEST, "bad_request", &detail),
    };
    match dispatch::purge(state, selectors).await {
        Ok(purged) => reply_json(StatusCode::OK, &json!({ "purged": purged })),
        Err(why) => undone(&why),
    }
}

/// Whether tests may disturb the gateway on purpose.
pub(super) fn debug_hooks() -> bool {
    std::env::var_os("PILOTLIGHT_DEBUG_HOOKS").is_some()
}

/// `shard=N`, and `ms=N` where it is to stall: that shard does nothing for so long, as if its thread had been stopped. Or it panics, or
/// cannot wait for anything any more.
fn disturb(state: &State, how: &str, query: &str) -> Reply {
    let number = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(name, _)| *name == wanted)?.1.parse::<u64>().ok()
    };
    let command = match (how, number("ms")) {
        ("stall", Some(ms @ ..=STALL_MS_MAX)) => Some(Command::Stall { ms }),
        ("panic", _) => Some(Command::Panic),
        ("seal", _) => Some(Command::Seal),
        _ => None,
    };
    match (number("shard"), command) {
        (Some(shard), Some(command)) if shard < state.shards.count() as u64 => {
            if state.shards.send(shard as usize, command) {
                reply_json(StatusCode::ACCEPTED, &json!({ "shard": shard, "ms": number("ms") }))
            } else {
                undone(&DispatchError::Busy)
            }
        }
        _ => error(StatusCode::BAD_REQUEST, "bad_request", "expected ?shard=NUMBER, and &ms=NUMBER for a stall"),
    }
}

/// What a purge's query means. It holds one parameter, whose value is the whole rest: a URL may be given with its `?` and `&` as they are.
fn selectors(query: &[u8]) -> Result<Vec<Selector>, String> {
    const USAGE: &str = "expected one of ?url=, ?prefix=, ?tag=";
    let equals = query.iter().position(|b| *b == b'=').ok_or(USAGE)?;
    let (name, value) = (&query[..equals], &query[equals + 1..]);
    let url = |text: &[u8]| url::absolute(text).map(|parts| Selector::Url(parts.key()));
    let prefix = |text: &[u8]| url::prefix(text).map(Selector::Prefix);
    match name {
        b"url" => readings(value, url),
        b"prefix" => readings(value, prefix),
        b"tag" if !value.is_empty() => Ok(vec![Selector::Tag(url::decode(value))]),
        _ => Err(USAGE.to_owned()),
    }
}

/// The value percent-decoded once; and as it stands, where that is a valid reading too: `url=http://h/a%20b` may be the URL itself, not
/// encoded again. Purging both is safe, guessing is not.
fn readings(value: &[u8], read: impl Fn(&[u8]) -> Result<Selector, url::UrlError>) -> Result<Vec<Selector>, String> {
    let decoded = url::decode(value);
    let first = read(&decoded);
    let looks_raw = value.starts_with(b"/") || value.windows(3).any(|part| part == b"://");
    let second = if looks_raw && decoded != value { read(value).ok() } else { None };
    match (first, second) {
        (Err(why), None) => Err(why.to_string()),
        (first, second) => Ok(first.into_iter().chain(second).collect()),
    }
}

async fn warm(state: &State, request: Request<Incoming>) -> Reply {
    let body = match read_body(request.into_body()).await {
        Ok(body) => body,
        Err(refusal) => return refusal,
    };
    let urls = match urls(&body) {
        Ok(urls) => urls,
        Err(detail) => return error(StatusCode::BAD_REQUEST, "bad_request", &detail),
    };
    let accepted = urls.len();
    match dispatch::warm(state, urls).await {
        Ok(()) => reply_json(StatusCode::ACCEPTED, &json!({ "accepted": accepted })),
        Err(why) => undone(&why),
    }
}

/// One URL a line; empty lines are skipped.
fn urls(body: &[u8]) -> Result<Vec<(String, String)>, String> {
    let lines = body.split(|b| *b == b'\n').map(<[u8]>::trim_ascii).enumerate();
    let read = |(at, line): (usize, &[u8])| {
        let place = |why: &dyn std::fmt::Display| format!("line {}: {why}", at + 1);
        let parts = url::absolute(line).map_err(|why| place(&why))?;
        // These bytes go to the upstream as a request target, where RFC 3986 §2 has only ASCII.
        let target = String::from_utf8(parts.target).ok().filter(|target| target.is_ascii());
        Ok((parts.host, target.ok_or_else(|| place(&"percent-encode what is not ASCII"))?))
    };
    lines.filter(|(_, line)| !line.is_empty()).map(read).collect()
}

async fn read_body(body: Incoming) -> Result<Bytes, Reply> {
    let too_large = || error(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body may hold at most 1 MiB");
    if body.size_hint().lower() > BODY_BYTES_MAX as u64 {
        return Err(too_large());
    }
    match tokio::time::timeout(BODY_WITHIN, Limited::new(body, BODY_BYTES_MAX).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(why)) if why.is::<LengthLimitError>() => Err(too_large()),
        Ok(Err(_)) => Err(error(StatusCode::BAD_REQUEST, "bad_request", "the body broke off")),
        Err(_) => Err(error(StatusCode::REQUEST_TIMEOUT, "timeout", "the body took longer than 10 s")),
    }
}

async fn save(state: &State) -> Reply {
    match dispatch::save(state, false).await {
        Ok(saved) => reply_json(
            StatusCode::OK,
            &json!({ "entries": saved.entries, "bytes": saved.bytes, "duration_ms": saved.duration.as_millis() as u64 }),
        ),
        Err(why @ SaveError::Off) => error(StatusCode::CONFLICT, "snapshot_off", &why.to_string()),
        Err(why) => error(StatusCode::INTERNAL_SERVER_ERROR, "snapshot_failed", &why.to_string()),
    }
}

fn undone(why: &DispatchError) -> Reply {
    match why {
        DispatchError::Busy => {
            error(StatusCode::SERVICE_UNAVAILABLE, "busy", "earlier commands are still waiting for the shards")
        }
        DispatchError::Replaced => error(
            StatusCode::SERVICE_UNAVAILABLE,
            "replaced",
            "another process serves by now: ask once more, and it will answer",
        ),
        DispatchError::Unrecorded(why) => {
            let detail = format!("dropped, but after a restart it may be there again: {why}");
            error(StatusCode::INTERNAL_SERVER_ERROR, "purge_not_recorded", &detail)
        }
        DispatchError::Unanswered(shards) => {
            let detail = format!("shards {shards:?} did not answer within 5 s");
            reply_json(
                StatusCode::GATEWAY_TIMEOUT,
                &json!({ "error": "shards_unanswered", "detail": detail, "shards": shards }),
            )
        }
    }
}

fn not_allowed(allowed: &'static str) -> Reply {
    let mut reply = error(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", &format!("allowed here: {allowed}"));
    reply.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    reply
}

fn error(code: StatusCode, label: &str, detail: &str) -> Reply {
    reply_json(code, &json!({ "error": label, "detail": detail }))
}

fn reply_json(code: StatusCode, value: &Value) -> Reply {
    reply(code, JSON, format!("{value}\n"))
}

fn reply(code: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Either::Left(Full::new(body.into())));
    *reply.status_mut() = code;
    reply.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    reply.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    reply
}

#[cfg(test)]
#[path = "admin_tests.rs"]
mod tests;
