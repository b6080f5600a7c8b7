//! The control thread.

mod exposition;
pub mod histogram;
pub mod link;
pub mod recorder;
#[cfg(test)]
mod strict;
pub mod url;
