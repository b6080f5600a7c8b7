//! Where the time of a hit goes, piece by piece, without sockets: `cargo bench --bench hot [-- FILTER]`.
//!
//! `lookup` compares a small cache with a large one: what differs between its two lines are the misses of the processor's caches. It needs
//! about 1.5 GB.

#[path = "fixture.rs"]
mod fixture;

use divan::{Bencher, black_box};
use pilotlight::cache::directives::RequestDirectives;
use pilotlight::cache::freshness;
use pilotlight::cache::key;
use pilotlight::http::head::RequestHead;
use pilotlight::http::parse;
use pilotlight::io::hit::Answered;
use pilotlight::io::mailbox::{self, Parcel};
use pilotlight::shard::message::Message;

const REQUESTS: [(&str, &str); 2] = [("plain", fixture::PLAIN), ("caddy", fixture::BEHIND_CADDY)];

fn main() {
    divan::main();
}

fn request(name: &str) -> &'static str {
    REQUESTS.iter().find(|(known, _)| *known == name).map_or(fixture::PLAIN, |(_, request)| *request)
}

#[divan::bench(args = ["plain", "caddy"])]
fn parse_head(bencher: Bencher, name: &str) {
    let (bytes, mut head) = (request(name).as_bytes(), RequestHead::new());
    bencher.bench_local(|| {
        let parsed = parse::request(black_box(bytes), &mut head);
        black_box(&head);
        parsed
    });
}

#[divan::bench]
fn route(bencher: Bencher) {
    let shard = fixture::shard();
    let target = b"/api/v1/weather/current/?lat=-1.3&lon=36.8";
    bencher.bench_local(|| shard.common.table.find(black_box(b"api.example.com"), black_box(target)));
}

/// Key, hash and the look into the index.
#[divan::bench]
fn probe(bencher: Bencher) {
    let shard = fixture::shard();
    fixture::store(&shard, fixture::BEHIND_CADDY, 1024);
    let query = fixture::query(&shard, fixture::BEHIND_CADDY);
    let mut bytes = Vec::new();
    bencher.bench_local(|| {
        bytes.clear();
        key::write(&mut bytes, &query.head.host, query.head.target.of(&query.buf), None);
        let hash = key::hash(&shard.common.hasher, &bytes);
        let found = shard.state.borrow_mut().find(hash, &bytes, query.view());
        assert!(found.is_some(), "it is stored");
        found
    });
}

#[divan::bench]
fn freshness_of_a_stored_response(bencher: Bencher) {
    let shard = fixture::shard();
    let query = fixture::query(&shard, fixture::BEHIND_CADDY);
    let object = fixture::object(&shard, &query, 1024);
    bencher.bench_local(|| {
        let directives = RequestDirectives::of(black_box(query.view()));
        freshness::judge(black_box(&object.validity), &directives, fixture::NOW_MONO_MS)
    });
}

/// A message to another shard that is awake, and taking it there.
#[divan::bench]
fn mailbox_there(bencher: Bencher) {
    let (mut mailboxes, _) = mailbox::build(2).expect("socket pairs");
    let (mut inbox, _) = mailboxes.pop().expect("a mailbox");
    let (_, mut outbox) = mailboxes.pop().expect("a mailbox");
    bencher.bench_local(|| {
        outbox.send(1, Parcel::Message(Message::Drop { hash: 1, key: Box::default() }));
        inbox.take().expect("it has arrived")
    });
}

#[divan::bench(args = ["plain", "caddy"])]
fn hit(bencher: Bencher, name: &str) {
    let (shard, request) = (fixture::shard(), request(name));
    fixture::store(&shard, request, 1024);
    let (mut out, mut answered) = (Vec::new(), Answered::default());
    bencher.bench_local(|| fixture::answer(&shard, black_box(request.as_bytes()), &mut out, &mut answered));
}

/// A hit among so many entries of 100 bytes, asked for in no order.
#[divan::bench(args = [1_000, 1_000_000])]
fn lookup(bencher: Bencher, entries: u64) {
    let shard = fixture::shard();
    let request = |n: u64| format!("GET /object/{n} HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n");
    for n in 0..entries {
        fixture::store(&shard, &request(n), 100);
    }
    let mut state = 5_u64;
    let requests: Vec<String> = (0..65_536)
        .map(|_| {
            // Knuth's MMIX generator; the high bits are the good ones.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            request((state >> 33) % entries)
        })
        .collect();
    let (mut out, mut answered, mut at) = (Vec::new(), Answered::default(), 0);
    bencher.bench_local(|| {
        at = (at + 1) % requests.len();
        fixture::answer(&shard, requests[at].as_bytes(), &mut out, &mut answered);
    });
}
