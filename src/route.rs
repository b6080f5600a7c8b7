//! Which route takes a request. Pure: values in, an index out; knows neither the cache nor any I/O.

pub mod table;
