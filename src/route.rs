//! Which route takes a request, which server of its upstream, and what becomes of failures. Pure: values, a time and random numbers
//! in, decisions out; knows neither the cache nor any I/O.

pub mod balance;
pub mod breaker;
pub mod health;
pub mod retry;
pub mod table;
