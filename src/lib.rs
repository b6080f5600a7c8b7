//! pilotlight: a caching API gateway.

pub mod base;
pub mod cache;
pub mod config;
pub mod http;
