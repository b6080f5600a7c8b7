//! How much memory this process may use, so that a cache that cannot fit is said so at the start and not by the kernel's killer later.

use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Resident memory beside the cache: the program, its threads, rings and tables, and buffers of some clients.
const BESIDE_BYTES: u64 = 32 << 20;
const READ_AGAIN: Duration = Duration::from_secs(10);

/// The least of all that bound it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    pub bytes: u64,
    /// Where it comes from.
    pub source: String,
}

/// The limit in force now; `None` when nothing can be read.
#[must_use]
pub fn limit() -> Option<Limit> {
    let of = |bytes, source: &str| Limit { bytes, source: source.to_owned() };
    let resources = [(libc::RLIMIT_AS, "RLIMIT_AS"), (libc::RLIMIT_DATA, "RLIMIT_DATA")];
    let resources = resources.into_iter().filter_map(|(resource, name)| Some(of(resource_limit(resource)?, name)));
    let files = limit_in(Path::new("/proc"), Path::new("/sys/fs/cgroup"));
    resources.chain(files).min_by_key(|limit| limit.bytes)
}

/// The limit of a moment ago.
#[derive(Debug, Default)]
pub(super) struct Recent(Cell<Option<(Instant, Option<u64>)>>);

impl Recent {
    /// In bytes, not older than [`READ_AGAIN`]: to read it takes dozens of system calls, and it hardly ever changes.
    pub(super) fn bytes(&self) -> Option<u64> {
        if let Some((read_at, bytes)) = self.0.get()
            && read_at.elapsed() < READ_AGAIN
        {
            return bytes;
        }
        let bytes = limit().map(|limit| limit.bytes);
        self.0.set(Some((Instant::now(), bytes)));
        bytes
    }
}

/// Says so in the log when a cache of so many bytes may be more than there is.
pub fn check(cache_bytes: u64) {
    let Some(Limit { bytes, source }) = limit() else { return };
    if !fits(cache_bytes, bytes) {
        tracing::warn!(
            cache_memory = cache_bytes,
            allowed = bytes,
            source,
            "cache.memory is more than there is room for: a full cache will get this process killed, or end it"
        );
    }
}

/// A tenth more than the cache, for half-used pages of the allocator until the budget follows ([`super::memory`]), and what is beside it.
fn fits(cache_bytes: u64, limit_bytes: u64) -> bool {
    cache_bytes.saturating_add(cache_bytes / 10).saturating_add(BESIDE_BYTES) <= limit_bytes
}

/// What a control group or the size of the machine allows.
fn limit_in(proc: &Path, groups: &Path) -> Option<Limit> {
    let machine = fs::read_to_string(proc.join("meminfo")).ok().and_then(|text| total(&text));
    let machine = machine.map(|bytes| Limit { bytes, source: "the machine's memory".to_owned() });
    let membership = fs::read_to_string(proc.join("self/cgroup")).unwrap_or_default();
    let groups = membership.lines().flat_map(|line| group_files(line, groups)).filter_map(|file| {
        // `max`, and the huge number that the first version has for it, are no limits: the machine has less.
        let bytes = fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        Some(Limit { bytes, source: file.display().to_string() })
    });
    groups.chain(machine).min_by_key(|limit| limit.bytes)
}

/// Where the limits stand of the group that a line of /proc/self/cgroup names, and of those around it.
fn group_files(line: &str, groups: &Path) -> Vec<PathBuf> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { return Vec::new() };
    let (root, name) = match controllers {
        "" => (groups.to_owned(), "memory.max"),
        controllers if controllers.split(',').any(|name| name == "memory") => {
            (groups.join("memory"), "memory.limit_in_bytes")
        }
        _ => return Vec::new(),
    };
    // In a container the path may be that of the host, and the root is the container's own group.
    let path = Path::new(path.trim_start_matches('/'));
    path.ancestors().map(|group| root.join(group).join(name)).collect()
}

/// `MemTotal` of /proc/meminfo.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn resource_limit(resource: libc::__rlimit_resource_t) -> Option<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the pointer is to an rlimit of ours that outlives the call.
    let failed = unsafe { libc::getrlimit(resource, &raw mut limit) };
    (failed == 0 && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn the_least_of_the_groups_and_the_machine_counts() {
        let folder = std::env::temp_dir().join(format!("pilotlight-room-{}", std::process::id()));
        let put = |path: &str, text: &str| {
            let path = folder.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let limit = || limit_in(&folder.join("proc"), &folder.join("cgroup")).map(|limit| limit.bytes / MIB);
        assert_eq!(limit(), None, "nothing to read");
        put("proc/meminfo", "MemTotal:        8388608 kB\nMemFree: 1 kB\n");
        put("proc/self/cgroup", "4:memory:/a\n1:cpu:/x\n0::/system.slice/gw.service\n");
        assert_eq!(limit(), Some(8192), "no group says anything");
        put("cgroup/system.slice/gw.service/memory.max", "max\n");
        put("cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(limit(), Some(8192), "no group has a limit");
        put("cgroup/system.slice/gw.service/memory.max", "1073741824\n");
        assert_eq!(limit(), Some(1024));
        put("cgroup/system.slice/memory.max", "536870912\n");
        assert_eq!(limit(), Some(512), "the group around it has less");
        put("cgroup/memory/memory.limit_in_bytes", "268435456\n");
        assert_eq!(limit(), Some(256), "the first version of control groups");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn room_for_a_cache() {
        assert!(fits(512 * MIB, 1024 * MIB));
        assert!(!fits(512 * MIB, 512 * MIB));
        assert!(!fits(900 * MIB, 1000 * MIB), "with what is beside it");
        assert!(!fits(u64::MAX, u64::MAX - 1));
    }
}
