//! Waiting for a moment, finer than the event loop's own timers, whose wheel turns once a millisecond. Either asleep: a timerfd set to an
//! absolute time and polled through the loop, which the kernel's high-resolution timer ends. Or spinning, so that neither the send
//! time nor the answer waits for a thread to be woken. Answers are taken as they come meanwhile.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::rc::Rc;

use monoio::net::UnixStream;

use crate::config::BusyPoll;
use crate::io::clock::mono_ns;
use crate::io::spin::{self, Spin};

#[derive(Debug)]
pub enum Wait {
    Sleeping(Timer),
    Spinning(Rc<Spin>),
}

impl Wait {
    /// Only on a thread with an event loop.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn sleeping() -> io::Result<Self> {
        Timer::new().map(Self::Sleeping)
    }

    /// From now on this thread's event loop does not sleep. Once for each thread.
    ///
    /// # Errors
    /// When there is no descriptor left.
    pub fn spinning() -> io::Result<Self> {
        let spin = Rc::new(Spin::new(BusyPoll::Always));
        spin::start(&spin)?;
        Ok(Self::Spinning(spin))
    }

    /// Waits until then, on the monotonic clock. One waiter at a time.
    pub async fn until(&self, at_ns: u64) {
        match self {
            Self::Sleeping(timer) => timer.until(at_ns).await,
            Self::Spinning(spin) => {
                while mono_ns() < at_ns {
                    spin.round().await;
                }
            }
        }
    }
}

#[derive(Debug)]
pub struct Timer {
    /// Not a socket: only its descriptor and its readiness are used.
    fd: UnixStream,
}

impl Timer {
    fn new() -> io::Result<Self> {
        // SAFETY: timerfd_create touches no memory of ours.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC | libc::TFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the descriptor is fresh, open, and owned by nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { fd: UnixStream::from_std(fd.into())? })
    }

    async fn until(&self, at_ns: u64) {
        if at_ns <= mono_ns() {
            return;
        }
        self.set(at_ns);
        if self.fd.readable(false).await.is_ok() {
            self.clear();
        }
    }

    fn set(&self, at_ns: u64) {
        let zero = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let at = libc::timespec {
            tv_sec: (at_ns / 1_000_000_000) as libc::time_t,
            tv_nsec: (at_ns % 1_000_000_000) as libc::c_long,
        };
        let spec = libc::itimerspec { it_interval: zero, it_value: at };
        // SAFETY: `spec` is valid and only read, no old value is asked for, and the descriptor is open.
        let result = unsafe {
            libc::timerfd_settime(self.fd.as_raw_fd(), libc::TFD_TIMER_ABSTIME, &raw const spec, std::ptr::null_mut())
        };
        assert_eq!(result, 0, "a timer takes any valid time");
    }

    fn clear(&self) {
        let mut count = 0u64;
        // SAFETY: `count` is a valid place for the eight bytes that a timerfd gives; the descriptor does not block.
        unsafe { libc::read(self.fd.as_raw_fd(), (&raw mut count).cast(), size_of::<u64>()) };
    }
}
