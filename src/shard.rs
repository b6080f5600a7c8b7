//! One core's state: messages in, actions out. No I/O, no clock, no async: `now` is a parameter, and what is to be done in the
//! world comes back as `Action`s. So a simulation can run any number of shards with a clock of its own.
//!
//! ```text
//!   connection ──ask──▶ asker's State ──Message──▶ owner's State ──Message──▶ asker's State ──Reply──▶ connection
//!                        (replicas)                 (partition, leases)
//! ```
//! Invariants: a key has one owner; the owner grants at most one lease per lease key at a time; every token that was asked with
//! gets exactly one `Reply`, unless its asker gives it up first.

pub mod clients;
pub mod concurrency;
pub mod hot;
pub mod lease;
pub mod limits;
pub mod message;
pub mod query;
pub mod refresh;
pub mod schedule;
pub mod service_time;
pub mod slots;
pub mod state;
pub mod warm;
