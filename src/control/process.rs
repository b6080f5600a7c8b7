//! The process's own figures under the names that Prometheus clients agree on, read from /proc once a second.
//! A figure that cannot be read is left out.

use std::fs;
use std::os::unix::fs::MetadataExt as _;

use super::exposition::Page;
use super::recorder::Kind;

/// What is read from /proc. Every scrape would pay a third of a millisecond for it where the kernel's own caches are cold.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Figures {
    /// Virtual and resident.
    memory_bytes: Option<(f64, f64)>,
    memory_limit_bytes: Option<u64>,
    open_fds: Option<f64>,
    max_fds: Option<f64>,
    threads: Option<f64>,
}

impl Figures {
    pub(super) fn read(memory_limit_bytes: Option<u64>) -> Self {
        Self {
            memory_bytes: memory_bytes(),
            memory_limit_bytes,
            open_fds: open_fds(),
            max_fds: max_fds(),
            threads: threads(),
        }
    }
}

/// Writes the families `process_*`, and how many bytes of memory the process may use.
pub(super) fn render(page: &mut Page<'_>, started_unix_secs: f64, figures: &Figures) {
    let mut gauge = |name: &str, help: &str, value: Option<f64>| family(page, name, Kind::Gauge, help, value);
    let memory = figures.memory_bytes;
    gauge("process_resident_memory_bytes", "Resident memory size in bytes.", memory.map(|(_, resident)| resident));
    gauge("process_virtual_memory_bytes", "Virtual memory size in bytes.", memory.map(|(virtual_, _)| virtual_));
    let help =
        "Memory that this process may use: the least of its control groups, its resource limits and the machine.";
    gauge("pilotlight_memory_limit_bytes", help, figures.memory_limit_bytes.map(|bytes| bytes as f64));
    gauge("process_open_fds", "Number of open file descriptors.", figures.open_fds);
    gauge("process_max_fds", "Maximum number of open file descriptors.", figures.max_fds);
    gauge("process_start_time_seconds", "Start time since the Unix epoch in seconds.", Some(started_unix_secs));
    gauge("process_threads", "Number of threads.", figures.threads);
    let help = "User and system CPU time spent in seconds.";
    family(page, "process_cpu_seconds_total", Kind::Counter, help, cpu_secs(libc::CLOCK_PROCESS_CPUTIME_ID));
}

fn family(page: &mut Page<'_>, name: &str, kind: Kind, help: &str, value: Option<f64>) {
    if let Some(value) = value {
        page.head(name, kind, help);
        page.number(name, "", value);
    }
}

/// CPU time of one of our threads, also of one that stands still; `None` when it has ended.
pub(super) fn thread_cpu_secs(tid: i32) -> Option<f64> {
    // The clock id of a thread as Linux makes it: the complement of the id, then "per thread" and "what the scheduler counted".
    cpu_secs((!tid << 3) | 4 | 2)
}

fn threads() -> Option<f64> {
    // One hard link for each thread, besides `.` and the name itself.
    Some(fs::metadata("/proc/self/task").ok()?.nlink().checked_sub(2)? as f64)
}

/// Virtual and resident size.
fn memory_bytes() -> Option<(f64, f64)> {
    let [virtual_, resident, _] = statm_bytes()?;
    Some((virtual_ as f64, resident as f64))
}

/// What is resident and belongs to no file and to nobody else.
pub(super) fn anonymous_bytes() -> Option<u64> {
    let [_, resident, shared] = statm_bytes()?;
    Some(resident.saturating_sub(shared))
}

/// Virtual, resident, and what is shared of that.
fn statm_bytes() -> Option<[u64; 3]> {
    let text = fs::read_to_string("/proc/self/statm").ok()?;
    let mut pages = text.split_ascii_whitespace().map_while(|pages| pages.parse::<u64>().ok());
    // SAFETY: sysconf only reads a constant of the system.
    let page_bytes = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
    Some([pages.next()? * page_bytes, pages.next()? * page_bytes, pages.next()? * page_bytes])
}

fn open_fds() -> Option<f64> {
    // Since Linux 6.2 the directory's size is the number of descriptors; listing tens of thousands would make a scrape slow.
    let size = fs::metadata("/proc/self/fd").ok()?.size();
    if size > 0 {
        return Some(size as f64);
    }
    Some(fs::read_dir("/proc/self/fd").ok()?.count() as f64)
}

fn max_fds() -> Option<f64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an rlimit of ours that outlives the call.
    let failed = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    (failed == 0).then_some(limit.rlim_cur as f64)
}

fn cpu_secs(clock: libc::clockid_t) -> Option<f64> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours that outlives the call.
    let failed = unsafe { libc::clock_gettime(clock, &raw mut time) };
    (failed == 0).then_some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_time_of_a_thread_is_its_own() {
        // SAFETY: gettid takes nothing and cannot fail.
        let tid = unsafe { libc::gettid() };
        let before = thread_cpu_secs(tid).unwrap();
        while thread_cpu_secs(tid).unwrap() < before + 0.02 {
            std::hint::spin_loop();
        }
        std::thread::scope(|scope| {
            let other = scope.spawn(|| {
                // SAFETY: as above.
                thread_cpu_secs(unsafe { libc::gettid() }).unwrap()
            });
            assert!(other.join().unwrap() < before + 0.02, "a thread that did nothing used nothing");
        });
        assert!(threads().unwrap() >= 1.0);
    }
}
