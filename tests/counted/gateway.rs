//! A whole gateway in this process, and an allocator that counts what its shard's thread asks for.

use pilotlight::boot;
use pilotlight::config::{Overrides, load};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Counts the allocations of one thread.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The thread that is counted; 0: none.
pub static COUNTED: AtomicI32 = AtomicI32::new(0);
pub static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static TID: Cell<i32> = const { Cell::new(0) };
}

impl Counting {
    fn note() {
        let counted = COUNTED.load(Ordering::Relaxed);
        if counted == 0 {
            return;
        }
        let tid = TID.try_with(|tid| {
            if tid.get() == 0 {
                // SAFETY: takes nothing and touches no memory.
                tid.set(unsafe { libc::gettid() });
            }
            tid.get()
        });
        if tid == Ok(counted) {
            ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        }
    }
}

// SAFETY: all is left to the system's allocator; what is noted beside touches no memory of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::note();
        // SAFETY: the caller's promises are those that are asked for here.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        Self::note();
        // SAFETY: as above.
        unsafe { System.realloc(at, layout, bytes) }
    }
}

/// Looks at the clock by the gateway's threads so far; they are counted in debug builds only.
pub fn clock_reads() -> u64 {
    #[cfg(debug_assertions)]
    return pilotlight::io::clock::READS.load(Ordering::Relaxed);
    #[cfg(not(debug_assertions))]
    0
}

pub fn connect(addr: SocketAddr) -> TcpStream {
    let client = TcpStream::connect(addr).expect("the gateway listens");
    client.set_nodelay(true).expect("nodelay");
    client.set_read_timeout(Some(Duration::from_secs(10))).expect("a timeout");
    client
}

/// Passes what it has not on to `origin`; `more` is of its configuration.
pub fn gateway(origin: SocketAddr, more: &str) -> SocketAddr {
    let port = || TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let (listen, admin) = (port(), port());
    let config = format!(
        "[server]\nlisten = [\"{listen}\"]\nshards = 1\n[admin]\nlisten = \"{admin}\"\n\
         [upstreams.app]\nservers = [\"{origin}\"]\n[[routes]]\npath = \"/\"\nupstream = \"app\"\n\
         {more}"
    );
    let config = load::parse("test", &config, &Overrides::default()).expect("a good configuration");
    thread::spawn(move || boot::serve(config.clone(), Box::new(move || Ok(config.clone()))));
    for _ in 0..200 {
        if TcpStream::connect(listen).is_ok() {
            return listen;
        }
        thread::sleep(Duration::from_millis(20));
    }
    panic!("the gateway does not listen");
}

/// The kernel's number of the shard's thread.
pub fn shard_tid() -> i32 {
    let tasks = fs::read_dir("/proc/self/task").expect("/proc").flatten();
    let is_shard = |path: &std::path::Path| fs::read_to_string(path.join("comm")).is_ok_and(|name| name == "shard-0\n");
    let task = tasks.map(|task| task.path()).find(|path| is_shard(path)).expect("a shard's thread");
    task.file_name().and_then(|name| name.to_str()?.parse().ok()).expect("a number")
}
