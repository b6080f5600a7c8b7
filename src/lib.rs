//! pilotlight: a caching API gateway.

pub mod base;
pub mod cli;
pub mod config;
pub mod demo;
pub mod http;
pub mod route;
