//! The program: see `lib.rs`.
fn main() {}
