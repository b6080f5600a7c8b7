//! What `pilotlight demo` runs beside the gateway: the embedded slow origin, its configuration, and an onlooker that measures.
//! Plain threads and blocking sockets: the origin stands for a synchronous Django, and is meant to be as stuck as one.
//!
//! Like gunicorn's sync workers, each of the origin's workers takes one connection, answers one request and closes. Waiting
//! connections queue in the kernel.

use std::io::{self, BufRead, BufReader, IsTerminal, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{Builder, JoinHandle, sleep};
use std::time::{Duration, Instant, SystemTime};

use crate::cli::ask::{Answer, request};
use crate::config::{Addr, Config};

const WORKERS: usize = 4;
const FARMS: u64 = 8;
const HEAVY_TIME: Duration = Duration::from_secs(2);
/// A connection that sends nothing for so long is closed.
const IDLE_TIME: Duration = Duration::from_secs(2);
const HEAD_BYTES_MAX: u64 = 16 * 1024;
/// One call of the onlooker; the origin's queue can be long.
const CALL_TIME: Duration = Duration::from_secs(30);
const POLL_TIME: Duration = Duration::from_millis(100);

/// The running origin; dropping it ends its workers.
#[derive(Debug)]
pub struct Origin {
    addr: SocketAddr,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    requests: AtomicU64,
    stop: AtomicBool,
}

/// Starts the origin: four synchronous workers on one listener. Port 0 picks a free one, see `Origin::addr`.
///
/// `GET /api/v1/farms/{1..8}/ndvi/latest/` blocks its worker for 2 s and says nothing about its lifetime;
/// `GET /api/v1/light/` answers at once with `no-store`; everything else is 404.
pub fn start(addr: SocketAddr) -> io::Result<Origin> {
    start_with(addr, HEAVY_TIME)
}

fn start_with(addr: SocketAddr, heavy_time: Duration) -> io::Result<Origin> {
    let listener = TcpListener::bind(addr)?;
    let mut origin = Origin { addr: listener.local_addr()?, shared: Arc::default(), workers: Vec::new() };
    for number in 0..WORKERS {
        let (listener, shared) = (listener.try_clone()?, Arc::clone(&origin.shared));
        let work = move || work(&listener, &shared, heavy_time);
        origin.workers.push(Builder::new().name(format!("demo-origin-{number}")).spawn(work)?);
    }
    Ok(origin)
}

impl Origin {
    /// Where it listens.
    #[must_use]
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// How many requests it has received.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        // One connection wakes one worker out of `accept`.
        for _ in &self.workers {
            let _ = TcpStream::connect_timeout(&self.addr, POLL_TIME);
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

fn work(listener: &TcpListener, shared: &Shared, heavy_time: Duration) {
    while !shared.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            // A client that left is not the origin's problem.
            Ok((stream, _)) => drop(serve(stream, shared, heavy_time)),
            // Out of file descriptors, say: wait rather than spin.
            Err(_) => sleep(POLL_TIME),
        }
    }
}

/// One connection, one request, as gunicorn's sync workers do it.
fn serve(mut stream: TcpStream, shared: &Shared, heavy_time: Duration) -> io::Result<()> {
    stream.set_read_timeout(Some(IDLE_TIME))?;
    stream.set_write_timeout(Some(IDLE_TIME))?;
    let Some((method, path)) = read_head(&stream)? else {
        return Ok(());
    };
    shared.requests.fetch_add(1, Ordering::Relaxed);
    let (status, extra, body) = answer(&path, heavy_time);
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nServer: demo-origin\r\nDate: {}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         {extra}Connection: close\r\n\r\n",
        httpdate::fmt_http_date(SystemTime::now())
    );
    let body = if method == "HEAD" { "" } else { &body };
    stream.write_all(format!("{head}{body}").as_bytes())
}

/// Method and path; `None` when the connection ended before a request came.
fn read_head(stream: &TcpStream) -> io::Result<Option<(String, String)>> {
    let mut lines = BufReader::new(stream.take(HEAD_BYTES_MAX));
    let mut first = String::new();
    lines.read_line(&mut first)?;
    let mut words = first.split_ascii_whitespace().map(str::to_owned);
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Ok(None);
    };
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line)? > 0 && !matches!(line.as_slice(), b"\r\n" | b"\n") {
        line.clear();
    }
    let path = target.split('?').next().unwrap_or_default().to_owned();
    Ok(Some((method, path)))
}

/// Status, further header lines, body. Blocks for the heavy ones.
fn answer(path: &str, heavy_time: Duration) -> (&'static str, &'static str, String) {
    if path == "/api/v1/light/" {
        return ("200 OK", "Cache-Control: no-store\r\n", envelope(r#"{"pong":true}"#));
    }
    let Some(farm) = farm(path) else {
        let body = r#"{"status":1,"message":"not found","data":null,"errors":["no such path"]}"#;
        return ("404 Not Found", "", body.to_owned());
    };
    sleep(heavy_time);
    let ndvi = 0.31 + 0.05 * f64::from(u32::try_from(farm).unwrap_or(0));
    let computed_at = humantime::format_rfc3339_seconds(SystemTime::now());
    ("200 OK", "", envelope(&format!(r#"{{"farm":{farm},"ndvi":{ndvi:.2},"computed_at":"{computed_at}"}}"#)))
}

fn envelope(data: &str) -> String {
    format!(r#"{{"status":0,"message":"OK","data":{data},"errors":null}}"#)
}

fn farm(path: &str) -> Option<u64> {
    let farm = path.strip_prefix("/api/v1/farms/")?.strip_suffix("/ndvi/latest/")?.parse().ok()?;
    (1..=FARMS).contains(&farm).then_some(farm)
}

/// The demo's configuration: the origin's four workers, the heavy path kept warm.
#[must_use]
pub fn config_toml(origin: SocketAddr) -> String {
    format!(
        r#"[server]
listen = ["127.0.0.1:8080"]

[admin]
listen = "127.0.0.1:9180"

[upstreams.django]
servers          = ["{origin}"]
max_concurrency  = {WORKERS}      # its synchronous workers
background_share = 0.5    # two of them at most for warming: clients always find the others

[[routes]]
path     = "/api/v1/farms/"
upstream = "django"
[routes.cache]
ttl                    = "30s"
stale_while_revalidate = "1m"
stale_if_error         = "1h"

[[routes]]
path     = "/"
upstream = "django"

[[warm]]
name  = "farms"
host  = "127.0.0.1:8080"  # part of the key: a client that says localhost:8080 asks for something else
paths = ["/api/v1/farms/{{1..{FARMS}}}/ndvi/latest/"]
"#
    )
}

/// What `demo` prints at its start.
#[must_use]
pub fn what_to_try() -> String {
    "\
The origin has 4 synchronous workers, and each NDVI call blocks one for 2 s. The gateway is at http://127.0.0.1:8080, and
fetches the 8 NDVI answers before anybody asks: about 8 s, two workers at a time, until http://127.0.0.1:9180/readyz says 200.

Try, in another terminal:

  curl -i http://127.0.0.1:8080/api/v1/farms/3/ndvi/latest/    # warm: a hit within milliseconds, see Cache-Status and Age
  curl -i http://127.0.0.1:8080/api/v1/light/                  # no-store: passed through, never held up by the heavy calls
  pilotlight status                                            # or http://127.0.0.1:9180/ in a browser
  curl http://127.0.0.1:9180/metrics                           # answers at once, whatever the origin does
  pilotlight purge --prefix http://127.0.0.1:8080/api/v1/farms/

Ctrl-C ends it.
"
    .to_owned()
}

/// Watches on a thread of its own: calls the origin directly once, waits for `/readyz`, then calls each of the 8 URLs through the
/// gateway and prints what it measured. Ends by itself after that, or soon after `stop` is set.
pub fn watch(config: &Config, origin: SocketAddr, stop: Arc<AtomicBool>) -> io::Result<JoinHandle<()>> {
    let (gateway, admin) = (config.server.listen[0].clone(), config.admin.clone());
    Builder::new().name("demo-watch".to_owned()).spawn(move || watch_all(&gateway, &admin, origin, &stop))
}

fn watch_all(gateway: &Addr, admin: &Addr, origin: SocketAddr, stop: &AtomicBool) {
    print_call("origin, directly", &Addr::Tcp(origin), &heavy_path(1));
    if !wait_until_ready(admin, stop) {
        return;
    }
    for farm in 1..=FARMS {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        print_call("through pilotlight", gateway, &heavy_path(farm));
    }
    print_call("through pilotlight", gateway, "/api/v1/light/");
}

fn heavy_path(farm: u64) -> String {
    format!("/api/v1/farms/{farm}/ndvi/latest/")
}

/// Whether the gateway became ready before `stop`. Counts the seconds on a terminal, otherwise says once that it waits.
fn wait_until_ready(admin: &Addr, stop: &AtomicBool) -> bool {
    let begun = Instant::now();
    let terminal = io::stdout().is_terminal();
    if !terminal {
        say("warming: waiting for /readyz\n");
    }
    while !stop.load(Ordering::Relaxed) {
        let ready = request(admin, "GET", "/readyz", &[], b"", Duration::from_secs(1));
        if terminal {
            say(&format!("\rwarming: {:.0} s ", begun.elapsed().as_secs_f64()));
        }
        if ready.is_ok_and(|answer| answer.status == 200) {
            let start = if terminal { "\r" } else { "" };
            say(&format!("{start}ready after {:.1} s\n", begun.elapsed().as_secs_f64()));
            return true;
        }
        sleep(POLL_TIME);
    }
    false
}

/// Calls once and prints the line about it.
fn print_call(through: &str, addr: &Addr, path: &str) {
    let begun = Instant::now();
    let answer = request(addr, "GET", path, &[], b"", CALL_TIME);
    let took_ms = begun.elapsed().as_secs_f64() * 1e3;
    let outcome = match &answer {
        Ok(answer) => format!("{}  {}", answer.status, cache_status(answer)),
        Err(error) => format!("failed: {error}"),
    };
    say(&format!("{through:<18}  GET {path:<32} {took_ms:9.2} ms  {outcome}\n"));
}

fn cache_status(answer: &Answer) -> &str {
    answer.header("cache-status").unwrap_or("(no Cache-Status)")
}

/// A closed standard output is no reason to panic.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Overrides, load};

    const LOCAL: &str = "127.0.0.1:0";

    fn get(origin: &Origin, path: &str) -> Answer {
        request(&Addr::Tcp(origin.addr()), "GET", path, &[], b"", CALL_TIME).unwrap()
    }

    #[test]
    fn the_configuration_loads() {
        let config =
            load::parse("demo", &config_toml("127.0.0.1:4000".parse().unwrap()), &Overrides::default()).unwrap();
        assert_eq!(config.warm[0].targets.len(), 8);
        assert_eq!(config.warm[0].targets[7], heavy_path(8));
        assert_eq!(
            (config.routes.len(), config.upstreams[0].max_concurrency),
            (2, Some(crate::config::Concurrency::Fixed(4)))
        );
    }

    #[test]
    fn what_it_answers() {
        let origin = start_with(LOCAL.parse().unwrap(), Duration::from_millis(1)).unwrap();
        let heavy = get(&origin, &heavy_path(3));
        let body = String::from_utf8(heavy.body.clone()).unwrap();
        assert_eq!((heavy.status, heavy.header("cache-control")), (200, None));
        assert!(
            body.starts_with(r#"{"status":0,"message":"OK","data":{"farm":3,"ndvi":0.46,"computed_at":"2"#),
            "{body}"
        );
        let light = get(&origin, "/api/v1/light/?x");
        assert_eq!((light.status, light.header("cache-control")), (200, Some("no-store")));
        for path in ["/", "/api/v1/farms/9/ndvi/latest/", "/api/v1/farms/x/ndvi/latest/"] {
            assert_eq!(get(&origin, path).status, 404, "{path}");
        }
        assert_eq!(origin.requests(), 5);
    }

    #[test]
    fn four_at_once_and_no_more() {
        let heavy_time = Duration::from_millis(150);
        let origin = start_with(LOCAL.parse().unwrap(), heavy_time).unwrap();
        let begun = Instant::now();
        std::thread::scope(|scope| {
            for farm in 1..=5 {
                let origin = &origin;
                scope.spawn(move || get(origin, &heavy_path(farm)));
            }
        });
        assert!(begun.elapsed() >= 2 * heavy_time, "five calls of four workers took one round");
        assert!(begun.elapsed() < 5 * heavy_time, "the workers took turns");
    }
}
