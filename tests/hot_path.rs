//! What a hit may cost, logged and traced besides: a whole gateway in this process, an allocator that counts what its shard's thread asks for,
//! and hits over the loopback.

#[path = "counted/gateway.rs"]
mod counted;

use counted::{ALLOCATIONS, COUNTED, clock_reads, connect, gateway, shard_tid};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

/// More than the buffer of an idle connection holds: it is changed for a larger one and back.
const PIPELINED: usize = 16;
/// In-process requests: what Caddy sends, and the answer depends on one of the fields.
const REQUEST: &str = "GET /object?lat=-1.3 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: test\r\nAccept: */*\r\n\
    Accept-Encoding: gzip, br\r\nCache-Control: max-age=600\r\nX-Forwarded-For: 203.0.113.7\r\n\
    X-Forwarded-Proto: https\r\n\r\n";
const BODY: &str = "a body that is stored once";

#[test]
fn a_hit_allocates_nothing_and_looks_at_the_clock_twice() {
    let origin = origin();
    let gateway = gateway(origin, "[log]\naccess = \"/dev/null\"\nsample = 1\n[tracing]\nsample = 1\n");
    let mut client = connect(gateway);
    client.write_all(REQUEST.as_bytes()).expect("the request is sent");
    let miss = read_answers(&mut client, 1);
    assert!(miss.contains("fwd=miss"), "{miss}");
    // Buffers, histogram cells and the like come with the first hits, of each kind.
    for _ in 0..200 {
        hits(&mut client, 1);
        hits(&mut client, PIPELINED);
    }

    COUNTED.store(shard_tid(), Ordering::Relaxed);
    // The counter counts: a new connection needs memory.
    hits(&mut connect(gateway), 1);
    assert!(ALLOCATIONS.load(Ordering::Relaxed) > 0, "a new connection needs memory");
    thread::sleep(Duration::from_millis(300));

    for (pipelined, rounds) in [(1, 5000), (PIPELINED, 500)] {
        let (allocations, reads) = (ALLOCATIONS.load(Ordering::Relaxed), clock_reads());
        for _ in 0..rounds {
            hits(&mut client, pipelined);
        }
        let allocations = ALLOCATIONS.load(Ordering::Relaxed) - allocations;
        // The store's buffers grow to what is needed once each, whichever of them comes first; nothing else may, whatever the number of hits.
        assert!(allocations <= 2, "{allocations} allocations for {rounds} times {pipelined} hits");
        // One when a request has arrived, one when its answer is written; what else the shard does by the clock it does a few times a second.
        let reads = clock_reads() - reads;
        assert!(reads <= 2 * rounds + rounds / 10, "{reads} looks at the clock for {rounds} times {pipelined} hits");
    }
}

/// So many requests in one write, and their answers.
fn hits(client: &mut TcpStream, count: usize) {
    client.write_all(REQUEST.repeat(count).as_bytes()).expect("the requests are sent");
    let answers = read_answers(client, count);
    assert_eq!(answers.matches("Cache-Status: pilotlight; hit").count(), count, "{answers}");
}

fn read_answers(client: &mut TcpStream, count: usize) -> String {
    let (mut answers, mut buf) = (String::new(), [0; 16 * 1024]);
    while answers.matches(BODY).count() < count {
        let got = client.read(&mut buf).expect("an answer");
        assert!(got > 0, "closed after {answers:?}");
        answers.push_str(std::str::from_utf8(&buf[..got]).expect("text"));
    }
    answers
}

/// Answers every request with the same cacheable response.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                if client.read(&mut byte).expect("a request") == 0 {
                    break;
                }
                head.push(byte[0]);
            }
            let answer = format!(
                "HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nVary: Accept-Encoding\r\nContent-Length: {}\r\n\r\n{BODY}",
                BODY.len()
            );
            client.write_all(answer.as_bytes()).expect("the answer is sent");
        }
    });
    addr
}
