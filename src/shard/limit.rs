//! How many requests an upstream may have at once: a fixed number.

/// `u32::MAX`: unlimited.
#[derive(Debug, Clone)]
pub enum Limit {
    Fixed(u32),
}

impl Limit {
    #[must_use]
    pub fn now(&self) -> u32 {
        match self {
            Self::Fixed(max) => *max,
        }
    }
}
