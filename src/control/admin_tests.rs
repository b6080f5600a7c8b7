//! The control thread over a real socket, in front of shards that are only made up.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use super::super::reload::{Planned, Renew};
use super::super::upgrade::{Started, Successor};
use super::*;
use crate::config::{Addr, BusyPoll, Cache, Config, Log, Route, Server, WarmList};
use crate::control::link::{Acks, Command, ShardShared, Shards};
use crate::control::recorder::Recorder;
use crate::control::signals::Signals;
use crate::control::{Control, Ended, strict};

/// Shards that answer at once, unless they are stuck; everything they were sent is kept.
struct FakeShards {
    shared: Box<[ShardShared]>,
    acks: Arc<Acks>,
    sent: Mutex<Vec<(usize, Command)>>,
    /// This shard takes commands and never answers.
    stuck: AtomicU64,
    /// So many sends find the ring full.
    full: AtomicU64,
}

const NONE: u64 = u64::MAX;

impl Shards for FakeShards {
    fn send(&self, shard: usize, command: Command) -> bool {
        if self.full.load(Relaxed) > 0 {
            self.full.fetch_sub(1, Relaxed);
            return false;
        }
        self.sent.lock().unwrap().push((shard, command.clone()));
        if self.stuck.load(Relaxed) == shard as u64 {
            return true;
        }
        match command {
            Command::Purge { id, .. } => {
                // From another thread, as a shard would.
                let acks = self.acks.clone();
                std::thread::spawn(move || acks.complete(shard, id, 10 + shard as u64));
            }
            Command::HotKeys { answer } => drop(answer.set(vec![(b"h/hot".to_vec(), 5)])),
            Command::Drain | Command::Leave => self.shared[shard].ended.store(true, Relaxed),
            Command::Warm { .. }
            | Command::Servers { .. }
            | Command::Export { .. }
            | Command::Stall { .. }
            | Command::Panic
            | Command::Seal
            | Command::Prepare { .. }
            | Command::Switch { .. } => {}
            Command::Open { .. } => {}
        }
        true
    }

    fn count(&self) -> usize {
        self.shared.len()
    }

    fn shared(&self) -> &[ShardShared] {
        &self.shared
    }
}

fn config() -> Config {
    let list = WarmList {
        name: "main".into(),
        host: "h".into(),
        scheme: "http".into(),
        targets: ["/1", "/2", "/3"].map(String::from).to_vec(),
        headers: Default::default(),
        headers_env: Default::default(),
    };
    Config {
        server: Server {
            listen: Vec::new(),
            shards: vec![None, None],
            busy_poll: BusyPoll::Off,
            idle_timeout: Duration::from_secs(180),
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(60),
            drain_timeout: Duration::from_millis(300),
            upgrade_timeout: Duration::from_secs(120),
            half_close_timeout: Duration::from_secs(1),
            max_connections: 1000,
            max_request_body: u64::MAX,
            trusted_proxies: Vec::new(),
            name: "pilotlight".into(),
            server_timing: false,
        },
        admin: Addr::Unix(PathBuf::new()),
        admin_hosts: vec!["gw.internal".into()],
        cache: Cache { memory: 1 << 20, max_object: 1 << 16, snapshot: None, snapshot_interval: Duration::ZERO },
        upstreams: Vec::new(),
        routes: vec![Route {
            shield: None,
            rate_limit: None,
            name: "/".into(),
            host: None,
            path: "/".into(),
            upstream: 0,
            max_concurrency: None,
            cache: None,
            server_timing: false,
        }],
        warm: vec![list],
        log: Log::default(),
        tracing: None,
        retired: Default::default(),
    }
}

struct NoRenewal;

impl Successor for NoRenewal {
    fn start(&self) -> std::io::Result<Started> {
        Err(std::io::Error::other("made by the test"))
    }
}

impl Renew for NoRenewal {
    fn load(&self) -> Result<Config, String> {
        Err("p.toml:1:1: made by the test".to_owned())
    }
    fn plan(&self, _: &Config, _: &Arc<Config>, _: &[Vec<crate::config::Endpoint>]) -> Result<Planned, String> {
        unreachable!("nothing loads")
    }
}

struct Running {
    addr: SocketAddr,
    shards: Arc<FakeShards>,
    thread: JoinHandle<Ended>,
}

fn start() -> Running {
    start_with(Recorder::new(), false)
}

fn start_with(recorder: Recorder, signals: bool) -> Running {
    let acks = Arc::new(Acks::new(2).unwrap());
    let shards = Arc::new(FakeShards {
        shared: (0..2).map(|_| ShardShared::new(1)).collect(),
        acks: acks.clone(),
        sent: Mutex::default(),
        stuck: AtomicU64::new(NONE),
        full: AtomicU64::new(0),
    });
    let listener = Listener::bind(&Addr::Tcp("127.0.0.1:0".parse().unwrap())).unwrap();
    let addr = listener.tcp_addr().unwrap();
    let control = Control {
        listener,
        shards: shards.clone(),
        acks,
        recorder,
        config: Arc::new(config()),
        snapshot: None,
        access_log: None,
        endpoints: Vec::new(),
        on_drain: Box::new(|| {}),
        renew: Arc::new(NoRenewal),
        successor: Arc::new(NoRenewal),
        handover: None,
        sockets_kept: false,
        signals: signals.then(|| Signals::take().unwrap()),
    };
    Running { addr, shards, thread: std::thread::spawn(move || control.run().unwrap().0) }
}

impl Running {
    /// Status and body.
    fn ask(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let length = body.len();
        self.raw(&format!(
            "{method} {target} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        ))
    }

    fn raw(&self, request: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(self.addr).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut reply = String::new();
        stream.read_to_string(&mut reply).unwrap();
        let (head, body) = reply.split_once("\r\n\r\n").unwrap();
        (head[9..12].parse().unwrap(), body.to_owned())
    }

    fn json(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (code, body) = self.ask(method, target, body);
        (code, serde_json::from_str(&body).unwrap())
    }

    fn sent(&self) -> Vec<(usize, Command)> {
        std::mem::take(&mut self.shards.sent.lock().unwrap())
    }
}

#[test]
fn readiness_names_what_is_missing() {
    let running = start();
    let reasons = |running: &Running| running.json("GET", "/readyz", "").1["reasons"].to_string();
    assert!(reasons(&running).contains("shard 1 has not started"));
    for shared in &running.shards.shared {
        shared.ready.store(true, Release);
    }
    running.shards.shared[0].warm[0].filled.store(2, Relaxed);
    assert_eq!(reasons(&running), r#"["warm list main: 2 of 3 filled"]"#);
    assert_eq!(running.ask("GET", "/readyz", "").0, 503);
    running.shards.shared[1].warm[0].filled.store(1, Relaxed);
    assert_eq!(running.json("GET", "/readyz", ""), (200, json!({"ready": true, "reasons": []})));
}

#[test]
fn it_shows_and_counts() {
    let running = start();
    let now_ms = running.shards.now_mono_ms();
    let shared = &running.shards.shared[1];
    shared.heartbeat_mono_ms.store(now_ms - 5_000, Relaxed);
    shared.driver.set("epoll").unwrap();
    shared.warm[0].oldest_mono_ms.store(now_ms - 60_000, Relaxed);
    assert_eq!(running.ask("GET", "/healthz", ""), (200, "ok".to_owned()));
    let (_, status) = running.json("GET", "/status", "");
    assert_eq!(status["shards"][1]["driver"], "epoll");
    assert_eq!((&status["shards"][1]["stalled"], &status["shards"][0]["stalled"]), (&json!(true), &json!(false)));
    let (code, text) = running.ask("GET", "/metrics", "");
    assert_eq!(code, 200);
    let samples = strict::parse(&text).unwrap();
    let age = samples.iter().find(|(series, _)| series == "pilotlight_warm_age_seconds{list=\"main\"}").unwrap().1;
    assert!((60.0..70.0).contains(&age), "{age}");
    assert!(samples.iter().any(|(series, value)| series == "process_open_fds" && *value > 3.0), "{text}");
    assert_eq!(running.ask("HEAD", "/metrics", ""), (200, String::new()));
}

#[test]
fn a_purge_waits_for_every_shard() {
    let running = start();
    running.shards.full.store(3, Relaxed);
    assert_eq!(running.json("POST", "/purge?url=http://H/p?a=1&b=2", ""), (200, json!({"purged": 21})));
    let sent = running.sent();
    assert_eq!(sent.len(), 2);
    for (_, command) in sent {
        let Command::Purge { selector, .. } = command else { panic!("{command:?}") };
        assert_eq!(selector, Selector::Url(b"h/p?a=1&b=2".to_vec()));
    }
    for _ in 0..40 {
        assert_eq!(running.json("POST", "/purge?prefix=/api/", "").1, json!({"purged": 21}));
    }
}

#[test]
fn a_stuck_shard_is_named_and_the_rest_goes_on() {
    let running = start();
    running.shards.stuck.store(1, Relaxed);
    std::thread::scope(|scope| {
        let purge = scope.spawn(|| running.json("POST", "/purge?tag=farm%201", ""));
        std::thread::sleep(Duration::from_millis(100));
        assert_eq!(running.ask("GET", "/healthz", "").0, 200);
        assert_eq!(running.ask("GET", "/metrics", "").0, 200);
        let (code, body) = purge.join().unwrap();
        assert_eq!((code, &body["shards"]), (504, &json!([1])));
    });
    running.shards.stuck.store(NONE, Relaxed);
    assert_eq!(running.json("POST", "/purge?tag=farm", "").0, 200);
}

#[test]
fn what_a_purge_means() {
    let url = |key: &str| Selector::Url(key.into());
    for (query, expected) in [
        ("url=http%3A%2F%2Fh%2Fp%3Fa%3D1%26b%3D2", vec![url("h/p?a=1&b=2")]),
        ("url=http://h/p%3Fa=1", vec![url("h/p?a=1"), url("h/p%3Fa=1")]),
        ("url=http://h/a%20b", vec![url("h/a%20b")]),
        ("url=http%3A%2F%2Fh%2Fa%2520b", vec![url("h/a%20b")]),
        ("prefix=http://h:80/a", vec![Selector::Prefix(b"h/a".to_vec())]),
        ("prefix=%2Fa", vec![Selector::Prefix(b"/a".to_vec())]),
        ("tag=farm%201", vec![Selector::Tag(b"farm 1".to_vec())]),
    ] {
        assert_eq!(selectors(query.as_bytes()), Ok(expected), "{query}");
    }
    for query in ["", "url", "url=", "url=/p", "tag=", "prefix=", "what=x", "url=ftp://h/"] {
        assert!(selectors(query.as_bytes()).is_err(), "{query}");
    }
}

#[test]
fn warm_urls_are_dealt_out() {
    let running = start();
    let got = running.json("POST", "/warm", "http://A/1\r\n\nhttp://a/2?x\nhttps://a/3\n");
    assert_eq!(got, (202, json!({"accepted": 3})));
    let urls = |pairs: &[(&str, &str)]| pairs.iter().map(|(h, t)| ((*h).into(), (*t).into())).collect();
    let expected = [
        (0, Command::Warm { id: 1, urls: urls(&[("a", "/1"), ("a", "/3")]) }),
        (1, Command::Warm { id: 1, urls: urls(&[("a", "/2?x")]) }),
    ];
    assert_eq!(running.sent(), expected);
    let (code, error) = running.json("POST", "/warm", "http://a/\nnonsense\n");
    assert_eq!(code, 400);
    assert!(error["detail"].as_str().unwrap().starts_with("line 2: "), "{error}");
}

#[test]
fn refusals_are_json() {
    let running = start();
    for (method, target, code, label) in [
        ("GET", "/nothing", 404, "not_found"),
        ("POST", "/metrics", 405, "method_not_allowed"),
        ("GET", "/purge?url=http://h/", 405, "method_not_allowed"),
        ("POST", "/purge?url=nonsense", 400, "bad_request"),
    ] {
        let (got, body) = running.json(method, target, "");
        assert_eq!((got, &body["error"]), (code, &json!(label)), "{method} {target}");
    }
    let head = "POST /warm HTTP/1.1\r\nHost: x\r\nContent-Length: 2000000\r\nConnection: close\r\n\r\n";
    assert_eq!(running.raw(head).0, 413);
    let chunks = format!("100001\r\n{}\r\n0\r\n\r\n", "x".repeat(0x0010_0001));
    let head = "POST /warm HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    assert_eq!(running.raw(&format!("{head}{chunks}")).0, 413);
    let head = "POST /drain HTTP/1.1\r\nHost: x\r\nSec-Fetch-Site: cross-site\r\nConnection: close\r\n\r\n";
    assert_eq!(running.raw(head).0, 403);
}

#[test]
fn the_newest_connection_gets_in() {
    let running = start();
    let idle: Vec<_> = (0..2 * CONNECTIONS_MAX).map(|_| TcpStream::connect(running.addr).unwrap()).collect();
    assert_eq!(running.ask("GET", "/healthz", "").0, 200);
    drop(idle);
}

#[test]
fn draining_ends_it() {
    let running = start();
    assert_eq!(running.ask("POST", "/drain", "").0, 202);
    assert_eq!(running.thread.join().unwrap(), Ended::Drained);
    let running = start();
    running.shards.stuck.store(0, Relaxed);
    assert_eq!(running.ask("POST", "/drain", "").0, 202);
    assert!(running.ask("GET", "/readyz", "").1.contains("draining"));
    assert_eq!(running.thread.join().unwrap(), Ended::TimedOut);
    let running = start();
    running.shards.shared.iter().for_each(|shared| shared.ended.store(true, Relaxed));
    assert_eq!(running.thread.join().unwrap(), Ended::ShardsGone);
}

/// Debian's `prometheus` package has it; where it is missing, the strict reader above has to do.
#[test]
fn promtool_has_nothing_to_say() {
    use std::process::{Command, Stdio};
    let promtool =
        Command::new("promtool").args(["check", "metrics"]).stdin(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let Ok(mut promtool) = promtool else { return };
    let recorder = Recorder::new();
    metrics::with_local_recorder(&recorder, || {
        let telemetry = crate::telemetry::Telemetry::register(0, &["h\"\\/", "/"], &["django"]);
        telemetry.request_done(1, crate::base::outcome::Outcome::Hit, Duration::from_micros(900));
        telemetry.rejected("head_too_large");
    });
    let running = start_with(recorder, false);
    let route = &running.json("GET", "/status", "").1["routes"][0];
    assert_eq!((&route["name"], &route["requests"]), (&json!("/"), &json!(1)));
    assert!((0.5..1.5).contains(&route["p99_ms"].as_f64().unwrap()), "{route}");
    let text = running.ask("GET", "/metrics", "").1;
    strict::parse(&text).unwrap();
    promtool.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let said = promtool.wait_with_output().unwrap();
    assert!(said.status.success() && said.stderr.is_empty(), "{}", String::from_utf8_lossy(&said.stderr));
}

/// Runs in a process of its own, because signal handlers stay: the test starts itself again.
#[test]
fn a_signal_drains_and_a_second_one_forces() {
    const CHILD: &str = "PILOTLIGHT_TEST_SIGNALS";
    if std::env::var_os(CHILD).is_none() {
        let name = "control::admin::tests::a_signal_drains_and_a_second_one_forces";
        let mut again = std::process::Command::new(std::env::current_exe().unwrap());
        assert!(again.args(["--exact", name]).env(CHILD, "1").status().unwrap().success());
        return;
    }
    let running = start_with(Recorder::new(), true);
    running.shards.stuck.store(0, Relaxed);
    // Once it answers, the handlers are in place.
    assert_eq!(running.ask("GET", "/healthz", "").0, 200);
    signal_hook::low_level::raise(signal_hook::consts::SIGTERM).unwrap();
    while !running.ask("GET", "/readyz", "").1.contains("draining") {}
    signal_hook::low_level::raise(signal_hook::consts::SIGINT).unwrap();
    assert_eq!(running.thread.join().unwrap(), Ended::Forced);
}
