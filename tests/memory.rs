//! What the cache takes from the allocator, counted by the allocator: against what it says it takes, and against its limits.

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::ffi::c_void;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use pilotlight::base::pages;
use pilotlight::base::size_class::allocated_bytes;
use pilotlight::cache::freshness::Validity;
use pilotlight::cache::object::{self, Object, Parts};
use pilotlight::cache::partition::Partition;
use pilotlight::cache::vary::{self, Vary};
use pilotlight::http::head::{RequestHead, ResponseHead};
use pilotlight::http::parse;

unsafe extern "C" {
    /// Of mimalloc: the bytes of the block that a piece of memory lies in.
    fn mi_usable_size(block: *const c_void) -> usize;
}

thread_local! {
    /// Of this thread: bytes asked for, and bytes of the blocks they lie in.
    static ASKED: Cell<i64> = const { Cell::new(0) };
    static TAKEN: Cell<i64> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count(block: *mut u8, asked: usize, sign: i64) {
    if !block.is_null() {
        // SAFETY: the block comes from mimalloc and is not freed yet.
        let taken = unsafe { mi_usable_size(block.cast()) };
        ASKED.set(ASKED.get() + sign * asked as i64);
        TAKEN.set(TAKEN.get() + sign * taken as i64);
    }
}

// SAFETY: everything is done by mimalloc; beside it there are only counters without allocation.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises are mimalloc's.
        let block = unsafe { mimalloc::MiMalloc.alloc(layout) };
        count(block, layout.size(), 1);
        block
    }
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(block, layout.size(), -1);
        // SAFETY: as above.
        unsafe { mimalloc::MiMalloc.dealloc(block, layout) };
    }
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(block, layout.size(), -1);
        // SAFETY: as above.
        let moved = unsafe { mimalloc::MiMalloc.realloc(block, layout, size) };
        count(moved, size, 1);
        moved
    }
}

/// xorshift64* (Vigna 2016).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }
    /// Mostly small, seldom large: every doubling is as likely as the next.
    fn size(&mut self, doublings: u64) -> usize {
        let most = 1 << (1 + self.below(doublings));
        self.below(most) as usize
    }
}

const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nETag: \"0123456789\"\r\nContent-Length: 100\r\n";

fn object(n: u64, key: &[u8], body: Bytes, tags: &[Box<[u8]>], variant: Option<u64>) -> Rc<Arc<Object>> {
    let vary = variant.and_then(|variant| {
        let asked = format!("GET / HTTP/1.1\r\nHost: h\r\nX-V: {variant}\r\n\r\n").into_bytes();
        let sent = b"HTTP/1.1 200 OK\r\nVary: X-V\r\nContent-Length: 0\r\n\r\n";
        let (mut request, mut response) = (RequestHead::new(), ResponseHead::new());
        parse::request(&asked, &mut request).ok()?;
        parse::response(sent, pilotlight::http::head::Method::Get, &mut response).ok()?;
        match vary::of_response(response.view(sent), request.view(&asked)) {
            Vary::On(spec) => Some(spec),
            Vary::None | Vary::Star => None,
        }
    });
    assert_eq!(vary.is_some(), variant.is_some());
    Rc::new(Arc::new(Object::new(Parts {
        key,
        hash: n.wrapping_mul(0x9E37_79B9_7F4A_7C15),
        status: 200,
        head: HEAD,
        body,
        validity: Validity::default(),
        vary,
        request: b"",
        tags,
        route: 0,
        fetch_ms: 0,
        generation: n,
    })))
}

fn counted<T>(work: impl FnOnce() -> T) -> (T, i64, i64) {
    let (asked, taken) = (ASKED.get(), TAKEN.get());
    let result = work();
    (result, ASKED.get() - asked, TAKEN.get() - taken)
}

/// The size classes that the cache counts with are those of the allocator.
#[test]
fn size_classes_are_the_allocators() {
    for size in (1..2048).chain((2048..200_000).step_by(97)).chain((200_000..16_000_000).step_by(99_991)) {
        let (_block, _, taken) = counted(|| Vec::<u8>::with_capacity(size));
        let counted = allocated_bytes(size) as i64;
        assert!((taken - counted).abs() * 50 <= counted.max(800), "{size}: counted {counted}, taken {taken}");
    }
}

#[test]
fn an_entry_costs_at_most_200_bytes_besides_its_own() {
    for entries in [200_000u64, 230_000] {
        let mut partition = Partition::new(1 << 32);
        let body = vec![b'x'; 100];
        let mut own = 0;
        let (_, asked, taken) = counted(|| {
            for n in 0..entries {
                let key = format!("example.org/entry/{n}");
                own += key.len() + HEAD.len() + body.len();
                let stored = partition.insert(object(n, key.as_bytes(), Bytes::copy_from_slice(&body), &[], None));
                assert!(stored.stored && stored.evicted.is_empty());
            }
        });
        assert_eq!(partition.len() as u64, entries);
        let each = |bytes: i64| (bytes - own as i64) as f64 / entries as f64;
        println!(
            "{entries} entries: {:.1} bytes each, {:.1} with what the allocator rounds up",
            each(asked),
            each(taken)
        );
        assert!(each(asked) <= 200.0, "{} bytes", each(asked));
        assert!(each(taken) <= 256.0, "{} bytes", each(taken));
        assert!(partition.bytes() as i64 >= taken, "says {}, takes {taken}", partition.bytes());
    }
}

/// Whatever happens to it, a full cache takes what it may, within 2 %.
#[test]
fn the_limit_is_kept_under_churn() {
    const LIMIT: u64 = 24 << 20;
    for (name, doublings, variants) in [("mixed", 17, 0), ("small", 8, 0), ("variants", 12, 12), ("large", 20, 0)] {
        let mut random = Random(0x5EED);
        let mut partition = Partition::new(LIMIT);
        let (mut full, mut highest, mut lowest) = (false, 0.0f64, f64::MAX);
        let (asked, taken) = (ASKED.get(), TAKEN.get());
        for step in 0..if name == "small" { 150_000u64 } else { 40_000 } {
            let n = random.below(1 << 20);
            let key = if variants > 0 { format!("h/{}", n % 20_000) } else { format!("h/{n}") };
            let n = if variants > 0 { n % 20_000 } else { n };
            let variant = (variants > 0).then(|| random.below(variants));
            let tags: Vec<Box<[u8]>> = vec![format!("tag-{}", n % 5_000).into_bytes().into()];
            let body = object::body_to_store(vec![b'x'; random.size(doublings)]);
            full |= !partition.insert(object(n, key.as_bytes(), body, &tags, variant)).evicted.is_empty();
            match random.below(4_000) {
                0 => drop(partition.purge_tag(format!("tag-{}", random.below(5_000)).as_bytes())),
                1 => drop(partition.purge_prefix(format!("h/{}", random.below(1_000)).as_bytes())),
                _ => {}
            }
            // Purges make room, so it is full only after it has evicted again.
            if full && step % 500 == 0 {
                let share = (TAKEN.get() - taken + pages::taken_bytes() as i64) as f64 / LIMIT as f64;
                highest = highest.max(share);
                if partition.bytes() > LIMIT * 995 / 1000 {
                    lowest = lowest.min(share);
                }
            }
        }
        let said = partition.bytes() as f64 / LIMIT as f64;
        println!(
            "{name}: {} responses, says {said:.4}, takes {lowest:.4} to {highest:.4} of its limit, asks for {:.4}",
            partition.len(),
            (ASKED.get() - asked) as f64 / LIMIT as f64
        );
        assert!(full && highest <= 1.02, "{name}: {highest}");
        assert!(lowest >= 0.98, "{name}: {lowest}");
        drop(partition);
        assert_eq!(pages::taken_bytes(), 0, "{name}: pages are given back");
    }
}

/// A large body lies in memory once: for replicas, which are pointers to the same object, and for what a refresh makes of it.
#[test]
fn a_body_is_stored_once() {
    const BYTES: usize = 10 << 20;
    let body = Bytes::from(vec![b'x'; BYTES].into_boxed_slice());
    let (mut owner, mut replicas) = (Partition::new(1 << 30), Partition::new(1 << 30));
    let first = object(1, b"h/a", body, &[], None);
    let (_, _, taken) = counted(|| {
        owner.insert(Rc::clone(&first));
        replicas.insert(Rc::new(Arc::clone(&first)));
        let refreshed = Rc::new(Arc::new(Object::new(Parts {
            key: first.key(),
            hash: first.hash,
            status: 200,
            head: first.head(),
            body: first.share_body(),
            validity: first.validity,
            vary: None,
            request: first.request(),
            tags: &[],
            route: 0,
            fetch_ms: 0,
            generation: 2,
        })));
        assert_eq!(refreshed.body().as_ptr(), first.body().as_ptr());
        assert!(owner.insert(refreshed).replaced);
        replicas.remove(first.hash, first.key());
    });
    assert!(taken < 4096, "{taken} bytes for pointers");
    let (_, _, freed) = counted(|| drop((owner, replicas, first)));
    assert!(-freed >= BYTES as i64, "nobody else holds it");
}
