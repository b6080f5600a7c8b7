//! Which route takes a request, which server of its upstream, what becomes of failures, and how
//! many requests a client may make. Pure: values, a time and random numbers
//! in, decisions out; knows neither the cache nor any I/O.

pub mod balance;
pub mod breaker;
pub mod client;
pub mod health;
pub mod limit;
pub mod retry;
pub mod table;
