//! HTTP/1.1 on the wire: heads, framing, chunks, encoding. Strict both ways (RFC 9112); no I/O, no clock, no policy of caching.

pub mod chunked;
mod connection;
pub mod encode;
pub mod fault;
pub mod fields;
pub mod framing;
pub mod head;
pub mod hops;
mod host;
mod lines;
pub mod parse;
mod start_line;
pub mod traceparent;
