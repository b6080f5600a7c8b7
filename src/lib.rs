//! pilotlight: a caching API gateway for Linux that keeps heavy endpoints lit.
//!
//! It stands between a web server (Caddy) and an application whose answers are slow to make and good for a while. It answers from
//! memory what it may, asks the application once however many clients want the same, fetches what will be asked for before
//! anybody asks, and goes on answering when the application does not.
//!
//! This page is the map: which thread does what, which module may know which, who owns what, and why. Where it and the code
//! disagree, one of them is wrong.
//!
//! # Threads
//!
//! ```text
//!   clients ═══╦═════════════════╦═════════════════╗          operators, Prometheus
//!              ║ SO_REUSEPORT    ║                 ║                    ║
//!         ┌────╨────┐       ┌────╨────┐       ┌────╨────┐          ┌────╨────┐
//!         │ shard 0 │◀─────▶│ shard 1 │◀─────▶│ shard 2 │◀─────────│ control │
//!         │ core 2  │ rings │ core 3  │       │ core 4  │ commands │ no core │
//!         └────╥────┘       └────╥────┘       └────╥────┘          └────▲────┘
//!              ║                 ║                 ║                    │ relaxed loads
//!              ╚══ upstreams ════╩═════════════════╝       counters, heartbeats, warm lists
//! ```
//!
//! A **shard** is one thread pinned to one core, with an event loop, a listening socket of its own, the connections that the kernel
//! gave to that socket, a part of the cache, and its own connections to upstreams. All its tasks run on that thread, so its
//! state is in `Cell`s and `RefCell`s.
//!
//! Shards talk in messages through rings, one for each direction of each pair, each with one writer and one reader. What finds a
//! ring full waits in the sender's own queue, in order, and is tried again with the next message or tick; its length is bounded by
//! what the sender's connections can have asked for. A shard that is about to sleep says so, looks once more, and only then sleeps; a
//! sender rings the doorbell only of a sleeper ([`io::mailbox`]).
//!
//! The **control thread** takes signals, serves the admin address, renders metrics, watches heartbeats, looks names up and checks
//! the health of servers ([`control`]). It reads
//! what shards publish and never needs one of them to be well: `/metrics`, `/healthz` and `/status` answer while every shard
//! stands still. It is the main thread, on an ordinary runtime (tokio, hyper), pinned nowhere.
//!
//! The **log thread** sleeps while there is neither an access log nor tracing. Shards put a record of a fixed size for each request that is to be
//! told of into a ring of their own ([`io::journal`]), and drop it when the ring is full; the thread looks at the rings a few times a second,
//! writes lines ([`control::access_log`]) and hands spans to a thread that speaks to their collector ([`control::trace`]). Each may hang
//! without delaying anybody else. A reload may change all of it: a record names the edition of the configuration that it was told by, and the
//! thread keeps an edition until every shard has left it and what it told is written.
//!
//! # Layers
//!
//! ```text
//!   main  cli  demo  boot                      put the rest together
//!  ────────────────────────────────────────
//!   io ─────────▶ control::link                sockets, buffers, the clock, monoio
//!   │             control                      admin HTTP, recorder, watchdog
//!   │  telemetry                               handles of the metrics facade
//!  ─▼──────────────────────────────────────    below: no I/O, no clock, no async
//!   shard                                      who may fetch, who waits, what is due
//!   cache   route                              RFC 9111 and storage; paths to routes
//!   http    config                             the wire; checked values
//!   base                                       time, outcomes, limits
//! ```
//!
//! Arrows point down; `cache` and `route` do not see each other; `control` and `io` meet in [`control::link`] alone. `config` is on
//! the lower side because what others take from it are plain values. `tests/layers.rs` reads the source and fails when an arrow
//! turns.
//!
//! Below the line time is an argument ([`base::time::Now`]) and what should happen in the world is returned as values
//! ([`shard::message::Action`]). So leases, queues and eviction can be driven by a test with any number of shards and a clock of its
//! own, and the runtime could be replaced within one folder.
//!
//! # Who owns a key
//!
//! The hash of a key (host, target, and the credentials where a route keeps an entry for each) names its owner
//! ([`shard::query::owner_of`]). Only the owner stores it for good and only the owner says who fetches it.
//!
//! - **Hit.** On the owner: out of its partition. On another shard: out of its *replicas*, a smaller cache of pointers to the same
//!   immutable objects, filled with what the owner sent for this shard's own clients. Either way the connection is answered without
//!   leaving its core, and the body exists once.
//! - **Lease.** A request that finds nothing is put to the owner. The first to ask gets the *lease* and fetches on the shard it came
//!   in on; the answer is streamed to its client as it arrives and collected for the cache besides. The fetch is a task of its
//!   own: when the client leaves it goes on.
//! - **Waiters.** Whoever asks meanwhile waits at the owner, whatever shard it sits on. All are answered at once when the lease ends:
//!   with the object; with the failure, and a stale object where one may stand in; or with "fetch for yourself". A variant that does
//!   not suit a waiter makes it ask again, and then each variant has a lease of its own.
//! - **A holder that vanishes.** A fetch that is dropped says so, and one that overstays (the sum of all time-outs it may run into,
//!   [`io::core::Common::lease_ms`]) is passed over. The first who waits becomes the holder.
//! - **Uncacheable marker.** An answer that may not be shared ends the lease and leaves a marker. As long as it stands, requests for
//!   the key go upstream side by side: nobody queues behind an answer that will be no use to them. Every two seconds one of them
//!   finds out under a lease whether it is still true, and the others do not wait for that. After an error page, which says nothing
//!   of the next answer, and where something is stored for the key, the marker counts for two seconds only.
//! - **Purge.** Every shard drops what the selector matches, entries and replicas, and *taints* the leases of those keys: their
//!   results may still serve who waited, and are not stored, and who asks from then on starts a new fetch. Purges are numbered; an
//!   owner answers with the number of the last purge it has seen, and the asker keeps a replica only if that is its own last one too. The
//!   operator is answered when every shard has confirmed. A purge by tag taints all leases: what is under way may turn out to
//!   carry the tag.
//!
//! # Slots
//!
//! `max_concurrency` bounds an upstream for the whole gateway, so it cannot be counted by each shard alone. Every limited upstream
//! has a *home* shard ([`shard::state::home_of`]) that keeps its slots and its queue ([`shard::slots`]). Other shards ask
//! for a slot and give it back by message: one trip through a ring, beside a request that takes milliseconds at least. Clients
//! come before refreshing, refreshing before warming, but what waits ages; all background work together never holds more than
//! `background_share` of the slots, and requests that take long never hold the last ones, whose size the home learns by path.
//! The limit itself is given, or the home finds it out from how long requests take ([`shard::concurrency`]). Requests to an upstream without a limit ask nobody, except for background work.
//!
//! # Rate limits
//!
//! The bucket of a client of a limited route lies with the shard that the client's hash names ([`shard::limits`]). Other shards ask for a token and get
//! a few in advance for a client that is busy there, at most a twentieth of the burst in all; what is not used goes back. A refusal is
//! remembered until the next token comes. So the total is exact but for what lies in advance, and a flood costs as many messages as its limit
//! lets requests through on each shard, however large it is. The path of
//! a hit takes a token that is on its shard ([`io::hit`]), and leaves everything else to the slow path. Whom a request counts for is a keyed
//! hash ([`route::client`]), the arithmetic is in [`route::limit`].
//!
//! # Servers of an upstream
//!
//! Which server takes a request is each shard's own decision, from what it has in flight itself ([`route::balance`]): two random
//! choices need no agreement. What a shard learns from its requests it keeps too: ejections ([`route::health`]), the retry budget
//! ([`route::retry`]) and the circuit breaker ([`route::breaker`]). What costs requests of its own, or blocks, is done once, on the control thread:
//! health checks and name look-ups (`control::servers`), whose results come to the shards as commands with the whole list, so that
//! one that was missed is made good by the next. [`io::upstream`] gives the decisions their time and random numbers.
//!
//! # Warm lists and refreshing
//!
//! The owner of a key also looks after it when it stands on a warm list ([`shard::warm`]): it is fetched at the start, again when a
//! share of its lifetime has passed (jittered to the early side), and after a back-off when the upstream fails. `/readyz` says no until
//! every entry was fetched once; an answer that may not be stored counts as fetched, or the gateway would never be ready.
//! Entries on no list are refreshed ahead of their end when they were hit at least twice since they were stored; hits on replicas are
//! reported to the owner once a second. What is not popular expires, and `stale_while_revalidate` covers its next reader. That one
//! puts it into the same line ([`shard::refresh`]), where what ends earliest goes first, so that how stale anything gets has a bound.
//!
//! # Another configuration, another program
//!
//! Everything that requests refer to has a number: routes, upstreams. A reload gives a new configuration the numbers of the old one
//! ([`config::merge`]): what goes on keeps its number, what is new gets the next, what is gone keeps it and is retired. So numbers in
//! requests, stored responses and messages stay true, and nothing has to wait for the requests in progress. Shards act on each other's
//! messages, so the control thread goes in two steps (`control::reload`): every shard adds what is new to its state, and only when all have
//! confirmed does each change over, in one piece between two of its tasks ([`io::setup`]). What tasks hold a reference to is only
//! ever added to ([`base::current::Current`]), which is why a configuration that was replaced stays in memory, and why reloads are bounded.
//!
//! An upgrade hands the listening sockets to a new process ([`control::upgrade`]): the same open sockets, not others on the same port, since
//! with SO_REUSEPORT the kernel has already dealt connections to the queue of a socket that would be closed. The new process uses all that it
//! inherits, whatever its number of shards, and accepts only when it is ready; accepts of the old one that are in flight are cancelled one by
//! one, and a connection that one of them took nevertheless is served.
//!
//! # The snapshot
//!
//! Saved entries are pointers until they are bytes: a shard walks its partition in turns and hands over weak pointers ([`io::export`]), and
//! a thread of control orders them by worth and writes what the cache has not let go meanwhile ([`control::snapshot`], format in
//! [`cache::snapshot`]). Purges and saves meet in numbers: a purge gets its number in the journal when every shard has carried it out,
//! and a save notes the last number before it asks the shards; so what a snapshot has not seen is what the journal has beyond that number.
//! Loading comes before the shards run, since an empty cache in front of a slow application is what must not be.
//!
//! # Paths, and what each costs
//!
//! | path | what it does | where |
//! |---|---|---|
//! | hit | read, tokenise, route, hash, probe, one comparison of ages, append the stored head and `Age`, `Cache-Status`; bodies up to 32 KiB are copied behind it, larger ones written from where they lie | [`io::downstream`], [`io::serve`] |
//! | pipelined hits | the same in a loop without an await, one write for all that fit in 64 KiB | [`io::downstream`] |
//! | miss | a query is allocated and put to the owner; lease, slot, connection; streamed and collected | [`io::fetch`], [`io::exchange`] |
//! | pass | slot, connection, both bodies streamed in pieces with back-pressure, never collected | [`io::pass`] |
//! | tunnel | after a 101 bytes both ways, with a deadline on silence | [`io::tunnel`] |
//! | idle | a task of 880 bytes, an entry in the deadlines and 1.25 KiB of buffer | [`io::downstream`] |
//!
//! A hit allocates nothing, takes no lock and does no atomic read-modify-write: objects are behind an `Rc` of the shard (around the
//! `Arc` they travel in), counters have one writer, buffers come from a pool of the shard.
//!
//! # What memory the cache takes
//!
//! Each partition counts its objects by the blocks of the allocator that they lie in, and its tables by what they were made for
//! ([`cache::partition`]); `tests/memory.rs` holds that within 2 % of what the allocator says. The allocator itself takes more: blocks of one size
//! share pages, of half a MiB where the blocks are large, each thread has its own, and sizes that come and go leave them half used. With 64 MiB and sizes
//! that are log-normal around 8 KiB that was 1.7 times what was stored, whichever thread freed and in whatever order. Three things answer it:
//!
//! - Bodies of 8 to 512 KiB lie in pages of their own ([`base::pages`]): 1.2 times.
//! - Below 256 MiB there are no huge pages, of which a handful half used is too much there: 1.1 times. Above, they spare misses of the TLB.
//! - The rest comes out of the budget: `control::memory` looks at the resident memory once a second and has the shards hold less when there is more of it
//!   than `cache.memory`. It needs to know nothing of the allocator, and is bounded by a quarter.
//!
//! # Deadlines without timers
//!
//! Every wait for bytes has a deadline, and most are moved with every piece of data, so a timer for each would be made and
//! cancelled all the time. Instead each connection has an entry in a table ([`io::deadlines`]): arming it is two stores. Every 50 ms a
//! task looks through the table and calls `shutdown(2)` on what is overdue. The operation that was pending then returns by itself, so
//! nothing has to be cancelled while the kernel may still write into its buffer. The price is a granularity of 50 ms.
//! Timers remain where no socket is waited on yet: connecting, and waiting for a reply of another shard.
//!
//! # Where this is not the obvious design
//!
//! - **Slots live with a home shard**, not in shares for each shard: with four workers behind eight cores a share would be half a worker,
//!   and a queue on each shard could not put clients first.
//! - **A deadline table, not timers**, for the reasons above.
//! - **The doorbell is a socket pair**, not an eventfd: the event loop reads sockets on io_uring and on epoll alike, and a full buffer
//!   means that it was rung already.
//! - **A body that breaks off resets the connection.** Closing in order would let an HTTP/1.0 client take half a body for all of
//!   it; so there is no last chunk and no orderly end either.
//! - **Bodies are collected by copying** while they are streamed, since what is stored is one piece of memory; hits, which are many,
//!   then cost no gathering.
//! - **The event loop is forgotten, not dropped**, when a shard ends: operations may be in flight in its buffers, and the process is about
//!   to end.
//! - **The wall clock is only compared with what came over the wire.** Ages count on the monotonic one, so a step of the
//!   wall clock neither revives nor kills an entry.
//! - **A client that leaves is noticed by peeking**, not by reading ahead: what it pipelined must not be pulled in while its response is
//!   under way. It may have closed only its sending side, so it is given some time ([`io::leaving`]); streams without an end are the
//!   exception.
//! - **Hits read ahead**: the writing of one and the reading of what comes next, within the buffer of an idle connection, go to the
//!   kernel together.
//! - **New connections beyond the limit are closed**, rather than idle ones sacrificed: what is served goes on.
//!
//! # What is not there
//!
//! - No lock that two shards could both take; the one outside of `control` is on the control thread's end of a ring.
//! - No wait on a peer without a deadline, and no queue, buffer, table or message without a bound ([`base::limits`]).
//! - No clock below `io`, and no monoio outside of it.
//! - No `RefCell` borrowed across an await.
//! - No byte of a peer's framing in what is sent: heads are written from what was parsed, with one framing field of our own.
//! - No path, query or header value in a metric label: labels are routes, upstreams, shards, lists and enums.
//! - No decoding or sorting of a target: the bytes that were keyed are the bytes that are sent.
//! - No second fetch of a key while its lease lasts, except after a purge, for another variant, or beyond the bound on waiters.
//! - No stored response half received, and none that its origin forbade to share.
//! - No panic on what a peer sends; a panic of our own ends one connection, not its shard.
//! - No gateway that goes on without one of its shards: with its keys, its slots and its listener it would fail a part of everybody's
//!   requests. When one is dead the others finish, and the process ends for a supervisor to start it.

pub mod base;
pub mod bench;
pub mod boot;
pub mod cache;
pub mod cli;
pub mod config;
pub mod control;
pub mod demo;
pub mod http;
pub mod io;
pub mod route;
pub mod shard;
pub mod telemetry;
