//! The control thread.

mod exposition;
pub mod histogram;
pub mod recorder;
#[cfg(test)]
mod strict;
