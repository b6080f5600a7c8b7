//! Keeps up with the servers of every upstream: looks their names up again, asks them how they are, and tells the shards what has
//! changed. A shard that does not take its mail is told later, and then what is true by then. What shards find out from their own requests is
//! no business of this.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::link::{Command, Shards};
use crate::config::{Addr, Config, Endpoint, HealthCheck};

/// Longest wait for an answer about a name.
const LOOKUP_WITHIN: Duration = Duration::from_secs(5);
/// How often a shard whose ring was full is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(100);

/// Where names are looked up.
pub(super) trait Resolver: 'static {
    fn lookup(&self, host: &str, port: u16) -> impl Future<Output = io::Result<Vec<SocketAddr>>>;
}

/// The system's: files, DNS, whatever it is set up for.
pub(super) struct System;

impl Resolver for System {
    async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

struct Known {
    endpoint: Endpoint,
    /// Checks in a row that contradict `endpoint.up`.
    streak: u32,
}

/// What control knows of the servers of all upstreams.
pub(super) struct Servers {
    shards: Arc<dyn Shards>,
    config: Arc<Config>,
    known: RefCell<Vec<Vec<Known>>>,
    /// Upstream and shard that has not been told yet.
    untold: RefCell<BTreeSet<(usize, usize)>>,
    tasks: RefCell<JoinSet<()>>,
}

impl Servers {
    /// `endpoints`: what the shards start with.
    pub(super) fn new(shards: Arc<dyn Shards>, config: Arc<Config>, endpoints: Vec<Vec<Endpoint>>) -> Self {
        let known = |endpoint| Known { endpoint, streak: 0 };
        let known = endpoints.into_iter().map(|own| own.into_iter().map(known).collect()).collect();
        Self { shards, config, known: RefCell::new(known), untold: RefCell::default(), tasks: RefCell::default() }
    }

    /// Starts what goes on until it is stopped. Within a `LocalSet` only.
    pub(super) fn spawn(self: &Rc<Self>, resolver: Rc<impl Resolver>) {
        let mut tasks = self.tasks.borrow_mut();
        for (at, upstream) in self.config.upstreams.iter().enumerate() {
            if self.config.retired.upstreams.contains(&at) {
                continue;
            }
            if upstream.servers.iter().any(|server| matches!(server, Addr::Name(..))) {
                tasks.spawn_local(self.clone().resolve(at, resolver.clone()));
            }
            if let Some(check) = &upstream.health_check {
                tasks.spawn_local(self.clone().check(at, check.clone()));
            }
        }
        tasks.spawn_local(self.clone().tell());
    }

    /// A reload has put another one in its place.
    pub(super) fn stop(&self) {
        self.tasks.borrow_mut().abort_all();
    }

    /// The addresses of all servers by upstream, as they stand now.
    pub(super) fn endpoints(&self) -> Vec<Vec<Endpoint>> {
        let known = self.known.borrow();
        known.iter().map(|own| own.iter().map(|known| known.endpoint.clone()).collect()).collect()
    }

    /// The addresses of a configured server, and whether each is up.
    pub(super) fn addresses(&self, upstream: usize, server: usize) -> Vec<(String, bool)> {
        let known = self.known.borrow();
        let own = known.get(upstream).into_iter().flatten().filter(|known| known.endpoint.server as usize == server);
        own.map(|known| (known.endpoint.addr.to_string(), known.endpoint.up)).collect()
    }

    async fn resolve(self: Rc<Self>, at: usize, resolver: Rc<impl Resolver>) {
        let upstream = &self.config.upstreams[at];
        let mut failing = BTreeSet::new();
        loop {
            // The names were looked up just now, at the start.
            tokio::time::sleep(upstream.resolve_interval).await;
            for (server, addr) in upstream.servers.iter().enumerate() {
                let Addr::Name(host, port) = addr else { continue };
                let found = timeout(LOOKUP_WITHIN, resolver.lookup(host, *port)).await;
                let found = found.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
                match found {
                    Ok(found) if !found.is_empty() => {
                        failing.remove(&server);
                        if take_addresses(&mut self.known.borrow_mut()[at], server as u16, &found) {
                            tracing::info!(upstream = %upstream.name, server = %addr, ?found, "server has other addresses now");
                            self.changed(at);
                        }
                    }
                    // What was true is better than nothing.
                    found => {
                        if failing.insert(server) {
                            let error = found.err().map_or_else(|| "no address".to_owned(), |error| error.to_string());
                            tracing::warn!(upstream = %upstream.name, server = %addr, %error, "name not found: its addresses stay");
                        }
                    }
                }
            }
        }
    }

    async fn check(self: Rc<Self>, at: usize, check: HealthCheck) {
        let upstream = &self.config.upstreams[at];
        let mut ticks = interval(check.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let mut probes = JoinSet::new();
            for known in &self.known.borrow()[at] {
                let endpoint = &known.endpoint;
                let host = match (&check.host, &upstream.servers[endpoint.server as usize]) {
                    (Some(host), _) => host.clone(),
                    (None, Addr::Unix(_)) => "localhost".to_owned(),
                    (None, server) => server.to_string(),
                };
                probes.spawn_local(probe(endpoint.addr.clone(), host, check.path.clone(), check.timeout));
            }
            let results: BTreeMap<Addr, bool> = probes.join_all().await.into_iter().collect();
            let mut changed = false;
            for known in &mut self.known.borrow_mut()[at] {
                // One that came meanwhile has its turn next time.
                let Some(good) = results.get(&known.endpoint.addr) else { continue };
                if record(known, *good, &check) {
                    let (addr, up) = (&known.endpoint.addr, known.endpoint.up);
                    tracing::warn!(upstream = %upstream.name, server = %addr, up, "health check: server changed");
                    changed = true;
                }
            }
            if changed {
                self.changed(at);
            }
        }
    }

    /// Every shard is to be told of this upstream.
    fn changed(&self, at: usize) {
        self.untold.borrow_mut().extend((0..self.shards.count()).map(|shard| (at, shard)));
        self.flush();
    }

    fn flush(&self) {
        let known = self.known.borrow();
        self.untold.borrow_mut().retain(|&(at, shard)| {
            let endpoints = known[at].iter().map(|known| known.endpoint.clone()).collect();
            let gone = self.shards.shared()[shard].ended.load(Relaxed);
            !gone && !self.shards.send(shard, Command::Servers { upstream: at as u16, endpoints })
        });
    }

    async fn tell(self: Rc<Self>) {
        loop {
            tokio::time::sleep(RETRY_EVERY).await;
            self.flush();
        }
    }
}

/// Makes these the addresses of a server; who stays keeps its standing. False when nothing has changed.
fn take_addresses(known: &mut Vec<Known>, server: u16, found: &[SocketAddr]) -> bool {
    let found: BTreeSet<Addr> = found.iter().map(|addr| Addr::Tcp(*addr)).collect();
    let own = known.iter().filter(|known| known.endpoint.server == server);
    let before: BTreeSet<Addr> = own.map(|known| known.endpoint.addr.clone()).collect();
    if found == before {
        return false;
    }
    known.retain(|known| known.endpoint.server != server || found.contains(&known.endpoint.addr));
    let new = found.difference(&before).cloned();
    known.extend(new.map(|addr| Known { endpoint: Endpoint { server, addr, up: true }, streak: 0 }));
    true
}

/// Takes the result of one check; true when the server changes sides.
fn record(known: &mut Known, good: bool, check: &HealthCheck) -> bool {
    if good == known.endpoint.up {
        known.streak = 0;
        return false;
    }
    known.streak += 1;
    let changes = known.streak >= if good { check.healthy } else { check.unhealthy };
    if changes {
        known.endpoint.up = good;
        known.streak = 0;
    }
    changes
}

/// One check: good is a response below 400 in time.
async fn probe(addr: Addr, host: String, path: String, within: Duration) -> (Addr, bool) {
    let asked = async {
        match &addr {
            Addr::Tcp(at) => ask(TcpStream::connect(at).await.ok()?, &host, &path).await,
            Addr::Unix(at) => ask(UnixStream::connect(at).await.ok()?, &host, &path).await,
            Addr::Name(..) => None,
        }
    };
    let status = timeout(within, asked).await.ok().flatten();
    (addr, status.is_some_and(|status| status.is_success() || status.is_redirection()))
}

async fn ask(stream: impl AsyncRead + AsyncWrite + Unpin, host: &str, path: &str) -> Option<StatusCode> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::get(path).header(HOST, host).header(CONNECTION, "close");
    let request = request.header(USER_AGENT, concat!("pilotlight/", env!("CARGO_PKG_VERSION"), " (health check)"));
    let mut response = Box::pin(sender.send_request(request.body(http_body_util::Empty::<Bytes>::new()).ok()?));
    let mut connection = Box::pin(connection);
    let response = tokio::select! {
        biased;
        response = &mut response => response,
        // It may end with the response already delivered.
        _ = &mut connection => response.await,
    };
    response.ok().map(|response| response.status())
}

#[cfg(test)]
mod tests {
    use super::super::link::ShardShared;
    use super::*;
    use crate::config::{Overrides, load};
    use std::cell::Cell;
    use std::sync::Mutex;

    struct FakeShards {
        shared: Box<[ShardShared]>,
        sent: Mutex<Vec<(usize, Vec<Endpoint>)>>,
        full: Mutex<BTreeSet<usize>>,
    }

    impl Shards for FakeShards {
        fn send(&self, shard: usize, command: Command) -> bool {
            if self.full.lock().unwrap().contains(&shard) {
                return false;
            }
            let Command::Servers { upstream: 0, endpoints } = command else { panic!("{command:?}") };
            self.sent.lock().unwrap().push((shard, endpoints.to_vec()));
            true
        }
        fn count(&self) -> usize {
            self.shared.len()
        }
        fn shared(&self) -> &[ShardShared] {
            &self.shared
        }
    }

    fn shards() -> Arc<FakeShards> {
        let shared = (0..2).map(|_| ShardShared::new(0)).collect();
        Arc::new(FakeShards { shared, sent: Mutex::default(), full: Mutex::default() })
    }

    fn servers(shards: &Arc<FakeShards>, keys: &str, endpoints: Vec<Endpoint>) -> Rc<Servers> {
        let text = format!("[upstreams.app]\n{keys}\n");
        let config = load::parse("p.toml", &text, &Overrides::default()).unwrap();
        Rc::new(Servers::new(shards.clone(), Arc::new(config), vec![endpoints]))
    }

    fn endpoint(server: u16, addr: &str) -> Endpoint {
        Endpoint { server, addr: Addr::Tcp(addr.parse().unwrap()), up: true }
    }

    fn run(test: impl Future<Output = ()>) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, test);
    }

    async fn until(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..1_000 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain for {what}");
    }

    /// Each look-up has the next answer, and the last one for ever.
    struct Script(Vec<Result<Vec<&'static str>, io::ErrorKind>>, Cell<usize>);

    impl Resolver for Script {
        async fn lookup(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            assert_eq!((host, port), ("app.test", 80));
            let turn = self.1.get();
            self.1.set(turn + 1);
            let answer = self.0[turn.min(self.0.len() - 1)].clone()?;
            Ok(answer.into_iter().map(|addr| addr.parse().unwrap()).collect())
        }
    }

    #[test]
    fn a_name_that_changes_reaches_every_shard_and_one_that_fails_changes_nothing() {
        run(async {
            let shards = shards();
            let keys = "servers = ['app.test:80', '10.9.9.9:80']\nresolve_interval = '100ms'";
            let start = vec![endpoint(0, "10.0.0.1:80"), endpoint(0, "10.0.0.2:80"), endpoint(1, "10.9.9.9:80")];
            let servers = servers(&shards, keys, start);
            shards.full.lock().unwrap().insert(1);
            let script = Rc::new(Script(
                vec![
                    Ok(vec!["10.0.0.2:80", "10.0.0.1:80"]),
                    Err(io::ErrorKind::NotFound),
                    Ok(vec![]),
                    Ok(vec!["10.0.0.2:80", "10.0.0.3:80"]),
                ],
                Cell::new(0),
            ));
            servers.spawn(script.clone());
            until("three look-ups", || script.1.get() == 3).await;
            assert!(shards.sent.lock().unwrap().is_empty(), "another order, an error and nothing are no change");
            until("the change", || !shards.sent.lock().unwrap().is_empty()).await;
            let expected = vec![endpoint(0, "10.0.0.2:80"), endpoint(1, "10.9.9.9:80"), endpoint(0, "10.0.0.3:80")];
            assert_eq!(*shards.sent.lock().unwrap(), [(0, expected.clone())]);
            // The other shard takes its mail again.
            shards.full.lock().unwrap().clear();
            until("the late shard", || shards.sent.lock().unwrap().len() == 2).await;
            assert_eq!(shards.sent.lock().unwrap()[1], (1, expected));
            assert_eq!(servers.addresses(0, 0).len(), 2);
        });
    }

    #[test]
    fn a_server_changes_sides_after_so_many_checks_in_a_row() {
        let check = HealthCheck {
            path: "/".to_owned(),
            host: None,
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            healthy: 2,
            unhealthy: 3,
        };
        let mut known = Known { endpoint: endpoint(0, "10.0.0.1:80"), streak: 0 };
        for (at, (good, up)) in [
            (false, true),
            (false, true),
            (true, true),
            (false, true),
            (false, true),
            (false, false),
            (true, false),
            (false, false),
            (true, false),
            (true, true),
        ]
        .into_iter()
        .enumerate()
        {
            let before = known.endpoint.up;
            assert_eq!(record(&mut known, good, &check), before != up, "check {at}");
            assert_eq!(known.endpoint.up, up, "check {at}");
        }
    }
}
