//! pilotlight: a caching API gateway.

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
