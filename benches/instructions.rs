//! Answers the same hit COUNT times, and nothing else: `scripts/hot-path` runs it under callgrind with two counts, whose difference is
//! the instructions of a hit without its sockets. SAMPLE is the part of them that an access log gets; none: there is no log.
//!
//! ```text
//!   instructions plain|caddy COUNT [SAMPLE]
//! ```

#[path = "fixture.rs"]
mod fixture;

use pilotlight::io::hit::Answered;
use std::hint::black_box;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let request = match args.first().map(String::as_str) {
        Some("plain") => fixture::PLAIN,
        Some("caddy") => fixture::BEHIND_CADDY,
        _ => panic!("usage: instructions plain|caddy COUNT [SAMPLE]"),
    };
    let count: u64 = args.get(1).and_then(|count| count.parse().ok()).expect("COUNT is a number");
    let shard = fixture::shard();
    // Must outlast the hits, or they would be dropped.
    let _log = args.get(2).map(|sample| fixture::log(&shard, sample.parse().expect("SAMPLE is a number")));
    fixture::store(&shard, request, 1024);
    let (mut out, mut answered) = (Vec::new(), Answered::default());
    for _ in 0..count {
        fixture::answer(black_box(&shard), black_box(request.as_bytes()), &mut out, &mut answered);
        black_box(&out);
    }
    assert!(out.starts_with(b"HTTP/1.1 200 OK\r\n") && out.len() > 1024, "a hit");
}
