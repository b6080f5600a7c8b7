//! Waking tasks of the same shard.

use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// Tasks that wait until something they can check has changed.
#[derive(Debug, Default)]
pub struct Notify {
    wakers: RefCell<Vec<Waker>>,
}

impl Notify {
    /// Wakes everybody who waits.
    pub fn wake(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }

    /// Waits until `check` gives something; it is asked again after each `wake`.
    pub async fn until<T>(&self, mut check: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match check() {
            Some(value) => Poll::Ready(value),
            None => {
                self.wakers.borrow_mut().push(cx.waker().clone());
                Poll::Pending
            }
        })
        .await
    }
}
