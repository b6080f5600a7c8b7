//! Noticing that a client has left while its request is under way, without reading from it.
//!
//! Who waits for an upstream registers its client's socket; a few times a second every registered one is peeked at. That costs a
//! request which is answered before the next look nothing but an entry in a table. A reset counts at once. An end of the stream may
//! be all of a client's leaving, or only of its sending (RFC 9112 §9.6), and TCP does not tell which: so it counts after a time of grace.
//! Where bytes wait to be read (a pipelined request), what is behind them cannot be seen.

use super::stream::peek;
use slab::Slab;
use std::cell::RefCell;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::RawFd;
use std::pin::pin;
use std::task::{Poll, Waker};

/// How often sockets are looked at.
pub const LOOK_MS: u64 = 200;

#[derive(Debug)]
struct Entry {
    fd: RawFd,
    waker: Option<Waker>,
    /// Its sending side has ended: gone from then on.
    gone_at_mono_ms: Option<u64>,
    gone: bool,
}

#[derive(Debug, Default)]
pub struct Leaving {
    entries: RefCell<Slab<Entry>>,
}

impl Leaving {
    /// The result of `work`, or `None` as soon as the client has left. The socket must stay open meanwhile.
    pub async fn unless_left<T>(&self, fd: RawFd, work: impl Future<Output = T>) -> Option<T> {
        let entry = Entry { fd, waker: None, gone_at_mono_ms: None, gone: false };
        let watched = Watched { leaving: self, key: self.entries.borrow_mut().insert(entry) };
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(value) = work.as_mut().poll(cx) {
                return Poll::Ready(Some(value));
            }
            let entry = &mut self.entries.borrow_mut()[watched.key];
            if entry.gone {
                return Poll::Ready(None);
            }
            entry.waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Looks at every socket.
    pub fn look(&self, grace_ms: u64, now_mono_ms: u64) {
        for (_, entry) in self.entries.borrow_mut().iter_mut() {
            match glance(entry.fd) {
                Seen::Open => continue,
                Seen::Ended => {
                    let gone_at = *entry.gone_at_mono_ms.get_or_insert(now_mono_ms.saturating_add(grace_ms));
                    entry.gone = now_mono_ms >= gone_at;
                }
                Seen::Broken => entry.gone = true,
            }
            if entry.gone
                && let Some(waker) = entry.waker.take()
            {
                waker.wake();
            }
        }
    }
}

struct Watched<'a> {
    leaving: &'a Leaving,
    key: usize,
}

impl Drop for Watched<'_> {
    fn drop(&mut self) {
        self.leaving.entries.borrow_mut().remove(self.key);
    }
}

enum Seen {
    Open,
    Ended,
    Broken,
}

fn glance(fd: RawFd) -> Seen {
    match peek(fd) {
        0 => Seen::Ended,
        count if count > 0 => Seen::Open,
        _ => match io::Error::last_os_error().kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Seen::Open,
            _ => Seen::Broken,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::task::{Context, Wake};

    #[derive(Default)]
    struct Woken(AtomicU32);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_client_that_leaves_is_noticed_after_the_time_of_grace() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let leaving = Leaving::default();
        let fd = ours.as_raw_fd();
        let mut waiting = Box::pin(leaving.unless_left(fd, std::future::pending::<()>()));
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(woken.clone());
        let mut cx = Context::from_waker(&waker);
        assert!(waiting.as_mut().poll(&mut cx).is_pending());
        leaving.look(1_000, 0);
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        leaving.look(1_000, 200);
        leaving.look(1_000, 1_199);
        assert_eq!(woken.0.load(Ordering::Relaxed), 0);
        leaving.look(1_000, 1_200);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1, "who waits is woken");
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(None));
        drop(waiting);
        assert!(leaving.entries.borrow().is_empty());
    }

    #[test]
    fn work_that_is_done_wins() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let leaving = Leaving::default();
        let mut waiting = Box::pin(leaving.unless_left(ours.as_raw_fd(), std::future::ready(7)));
        let mut cx = Context::from_waker(Waker::noop());
        assert_eq!(waiting.as_mut().poll(&mut cx), Poll::Ready(Some(7)));
    }
}
