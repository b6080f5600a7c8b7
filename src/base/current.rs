//! A value that is replaced now and then while tasks refer to what it was before: those keep the old one, whoever looks next gets
//! the new one. On one thread; reading it is one look into a list.
//!
//! What was replaced stays until all of it is dropped, so replacements must be rare and bounded ([`super::limits::RELOADS_MAX`]).

use elsa::FrozenVec;
use std::ops::Deref;
use std::sync::Arc;

/// Dereferences to what was put last.
pub struct Current<T>(FrozenVec<Arc<T>>);

impl<T> Current<T> {
    #[must_use]
    pub fn new(first: Arc<T>) -> Self {
        let all = FrozenVec::new();
        all.push(first);
        Self(all)
    }

    pub fn replace(&self, next: Arc<T>) {
        self.0.push(next);
    }
}

impl<T> Deref for Current<T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.last().expect("it begins with one, and nothing is taken out")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_holds_the_old_value_keeps_it() {
        let current = Current::new(Arc::new(1));
        let before = &*current;
        current.replace(Arc::new(2));
        assert_eq!((*before, *current), (1, 2));
    }
}
