//! pilotlight: a caching API gateway.

pub mod base;
pub mod config;
pub mod control;
pub mod http;
pub mod telemetry;
