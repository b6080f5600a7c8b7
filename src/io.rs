//! The world: sockets, buffers, the clock, and linear async code that carries out what `shard/` decides. The only part of the
//! gateway that knows monoio (the load generator, a program of its own, does too).
//!
//! Invariants: every wait on a peer has a deadline in `deadlines`; every buffer a bound; a `RefCell` is never borrowed across an await.

pub mod body;
pub mod clock;
pub mod core;
pub mod deadlines;
pub mod downstream;
pub mod exchange;
pub mod export;
pub mod fetch;
pub mod hit;
pub mod journal;
pub mod leaving;
pub mod limit;
pub mod listener;
pub mod mailbox;
pub mod notify;
pub mod pace;
pub mod pass;
pub mod pool;
pub mod reply;
pub mod runtime;
pub mod seal;
pub mod serve;
pub mod setup;
pub mod shield;
pub mod spin;
pub mod stream;
pub mod timing;
pub mod tunnel;
pub mod upstream;
