//! One shard of the gateway as it is, in this process: its own thread, event loop, listener and pools, and no control thread.

use crate::script::PRIVATE;
use pilotlight::config::{Addr, Endpoint, Overrides, load};
use pilotlight::control::link::{Acks, Command, Selector, ShardShared};
use pilotlight::http::hops;
use pilotlight::io::core::Common;
use pilotlight::io::listener::Bound;
use pilotlight::io::mailbox::{self, ControlLane};
use pilotlight::io::runtime::{self, Start};
use pilotlight::route::table::Table;
use pilotlight::shard::slots::{self, Slots};
use pilotlight::shard::state::{RoutePolicy, State};
use pilotlight::shard::warm::Warm;
use std::collections::HashMap;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Time-outs are long: whatever runs into one is a conversation that nobody ends, and a finding.
const CONFIG: &str = r#"
[server]
shards = 1
idle_timeout = "60s"
header_timeout = "60s"
body_timeout = "60s"
max_request_body = "64k"
[cache]
memory = "4MiB"
max_object = "64k"
[upstreams.o]
servers = ["127.0.0.1:1"]
max_concurrency = 2
first_byte_timeout = "60s"
read_timeout = "60s"
queue_timeout = "60s"
[[routes]]
path = "/"
upstream = "o"
[[routes]]
path = "/pass/"
upstream = "o"
cache = false
[[routes]]
path = "/PRIVATE/"
upstream = "o"
cache = { authorization = "per-credential" }
"#;

pub struct Gateway {
    pub addr: SocketAddr,
    lane: ControlLane,
    acks: Arc<Acks>,
    purges: u64,
}

impl Gateway {
    /// Runs until the process ends.
    #[must_use]
    pub fn start(origin: SocketAddr) -> Self {
        let text = CONFIG.replace("PRIVATE", PRIVATE);
        let config = Arc::new(load::parse("fuzz.toml", &text, &Overrides::default()).expect("a constant that loads"));
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a socket");
        let addr = listener.local_addr().expect("it is bound");
        let shared: Arc<[ShardShared]> = [ShardShared::new(0)].into();
        let acks = Arc::new(Acks::new(1).expect("a descriptor"));
        let common = Arc::new(Common {
            table: Table::new(&config.routes),
            // The same in every run, so that a finding is the same when it is replayed.
            hasher: ahash::RandomState::with_seeds(1, 2, 3, 4),
            shared: Arc::clone(&shared),
            acks: Arc::clone(&acks),
            exports: None,
            endpoints: vec![vec![Endpoint { server: 0, addr: Addr::Tcp(origin), up: true }]],
            connections_max: 1000,
            cdn_loop: hops::cdn_loop_member(&config.server.name, 1),
            clients: [AtomicUsize::new(0)].into(),
            config: Arc::clone(&config),
        });
        let policy = |route| RoutePolicy { upstream: 0, refresh_ahead: 0.8, lease_ms: common.lease_ms(route), limit: None };
        let routes: Arc<[RoutePolicy]> = (0..config.routes.len() as u16).map(policy).collect();
        let memory = config.cache.memory;
        let state = move || {
            let policy = slots::Policy {
                max: 2,
                background_share: 0.5,
                background_max: 1,
                reserve: Some(0),
                queue_max: 1024,
                queue_timeout_ms: 30_000,
                route_max: HashMap::new(),
            };
            let slots = HashMap::from([(0, Slots::new(policy))]);
            State::new(0, 1, routes, memory, slots, Warm::new(Vec::new(), vec![1], 0), 1)
        };
        let (mut mailboxes, mut lanes) = mailbox::build(1).expect("descriptors");
        let (inbox, outbox) = mailboxes.remove(0);
        let bound = vec![Bound::Tcp(listener)];
        let start = Start { id: 0, count: 1, cpu: None, common, state: Box::new(state), inbox, outbox, bound, journal: None };
        std::thread::spawn(move || runtime::run(start).expect("an event loop"));
        while !shared[0].ready.load(Ordering::Acquire) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Self { addr, lane: lanes.remove(0), acks, purges: 0 }
    }

    /// Drops all that is stored, so that an input finds what every other one does.
    pub fn forget(&mut self) {
        self.purges += 1;
        assert!(self.lane.send(Command::Purge { id: self.purges, selector: Selector::Prefix(b"/".to_vec()) }));
        while self.acks.completed(0, self.purges).is_none() {
            let mut bell = libc::pollfd { fd: self.acks.doorbell().as_raw_fd(), events: libc::POLLIN, revents: 0 };
            // SAFETY: one pollfd, which is ours during the call.
            unsafe { libc::poll(&raw mut bell, 1, 1000) };
            self.acks.silence();
        }
    }
}
