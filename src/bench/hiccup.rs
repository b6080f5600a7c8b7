//! The hiccup meter: a thread that only sleeps, and notes how much later than asked it woke. What it sees is what the platform
//! does to everybody; a tail that it shares is not the server's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use hdrhistogram::Histogram;

use super::tally::histogram;
use crate::io::clock::mono_ns;

const ASLEEP_NS: u64 = 1_000_000;

#[derive(Debug)]
pub struct Meter {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Histogram<u64>>>, // the meter's thread and the reporter, never a thread that sends
    thread: Option<JoinHandle<()>>,
}

impl Meter {
    /// # Errors
    /// When the system has no thread for it.
    pub fn start() -> std::io::Result<Self> {
        let (stop, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(histogram())));
        let (stopped, noted) = (Arc::clone(&stop), Arc::clone(&seen));
        let thread = std::thread::Builder::new().name("hiccups".to_owned()).spawn(move || watch(&stopped, &noted))?;
        Ok(Self { stop, seen, thread: Some(thread) })
    }

    /// What was seen since the last call.
    pub fn take(&self) -> Histogram<u64> {
        std::mem::replace(&mut *self.seen.lock().unwrap_or_else(PoisonError::into_inner), histogram())
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(stop: &AtomicBool, seen: &Mutex<Histogram<u64>>) {
    // SAFETY: prctl with PR_SET_TIMERSLACK takes a number and concerns this thread alone. Without it every sleep may be 50 us
    // longer by the kernel's choice, which would not be a hiccup.
    unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong) };
    while !stop.load(Ordering::Relaxed) {
        let asked_ns = mono_ns() + ASLEEP_NS;
        std::thread::sleep(std::time::Duration::from_nanos(ASLEEP_NS));
        let late_ns = mono_ns().saturating_sub(asked_ns);
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        // A stall of 100 ms is not one sample among a thousand: whoever came during it would have waited for the rest of it.
        let _ = seen.record_correct(late_ns.max(1), ASLEEP_NS);
    }
}
