//! The vocabulary every layer shares: time, outcomes, limits. Must not know any other module of this crate.

pub mod current;
pub mod exemplar;
pub mod limits;
pub mod outcome;
pub mod pages;
pub mod random;
pub mod record;
pub mod size_class;
pub mod time;
