//! The intended send times of a constant rate: fixed beforehand, so that no stall of the server or of this program can move them.
//! Invariant: what was taken is always a prefix of the schedule; nothing is skipped.

/// The send times of one thread within one turn. The threads' times interleave: together they are evenly spread.
#[derive(Debug, Clone)]
pub struct Schedule {
    start_ns: u64,
    /// Nanoseconds between two requests of all threads together.
    interval_ns: f64,
    thread: u64,
    threads: u64,
    /// How many this thread has taken.
    taken: u64,
    /// How many it has in all.
    count: u64,
}

impl Schedule {
    /// `start_ns` and `end_ns` are on the monotonic clock; `rate` is per second, of all threads together.
    #[must_use]
    pub fn new(start_ns: u64, end_ns: u64, rate: f64, thread: usize, threads: usize) -> Self {
        assert!(thread < threads && rate > 0.0 && start_ns <= end_ns);
        let total = ((end_ns - start_ns) as f64 * rate / 1e9).round() as u64;
        let (thread, threads) = (thread as u64, threads as u64);
        // The numbers thread, thread + threads, thread + 2 × threads… below total.
        let count = total.saturating_sub(thread).div_ceil(threads);
        Self { start_ns, interval_ns: 1e9 / rate, thread, threads, taken: 0, count }
    }

    /// When the next one is to be sent; `None` when all were taken.
    #[must_use]
    pub fn next_ns(&self) -> Option<u64> {
        let number = self.thread + self.taken * self.threads;
        // Counted from the start, so that rounding does not add up.
        (self.taken < self.count).then(|| self.start_ns + (number as f64 * self.interval_ns) as u64)
    }

    /// Takes the next one if its time has come.
    pub fn take(&mut self, now_ns: u64) -> Option<u64> {
        let at_ns = self.next_ns().filter(|&at_ns| at_ns <= now_ns)?;
        self.taken += 1;
        Some(at_ns)
    }

    /// Gives the rest up; returns how many that were.
    pub fn abandon(&mut self) -> u64 {
        std::mem::replace(&mut self.count, self.taken) - self.taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_share_one_even_schedule() {
        for threads in 1..=4 {
            let mut times: Vec<u64> = (0..threads)
                .flat_map(|thread| {
                    let mut schedule = Schedule::new(1_000, 1_000_001_000, 7.0, thread, threads);
                    std::iter::from_fn(move || schedule.take(u64::MAX))
                })
                .collect();
            times.sort_unstable();
            let expected: Vec<u64> = (0..7).map(|i| 1_000 + (f64::from(i) * 1e9 / 7.0) as u64).collect();
            assert_eq!(times, expected, "{threads} threads");
        }
    }

    #[test]
    fn nothing_is_taken_early_and_nothing_is_lost() {
        let mut schedule = Schedule::new(0, 1_000_000_000, 10.0, 0, 1);
        assert_eq!((schedule.take(0), schedule.take(0)), (Some(0), None));
        assert_eq!(schedule.take(99_999_999), None);
        // After a stall all that was due comes at once, each with its own time.
        let late: Vec<u64> = std::iter::from_fn(|| schedule.take(350_000_000)).collect();
        assert_eq!(late, [100_000_000, 200_000_000, 300_000_000]);
        assert_eq!((schedule.abandon(), schedule.next_ns(), schedule.abandon()), (6, None, 0));
    }
}
