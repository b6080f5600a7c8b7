//! What a pass may cost beside its four operations on sockets: a whole gateway in this process, an allocator that counts what its shard's thread
//! asks for, and requests over the loopback whose answers may not be stored.

#[path = "counted/gateway.rs"]
mod counted;

use counted::{ALLOCATIONS, COUNTED, clock_reads, connect, gateway, shard_tid};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

/// Looked up in vain, as the answer to the one before may not be stored.
const GET: &str = "GET /private?lat=-1.3 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: test\r\nAccept: */*\r\n\
    Accept-Encoding: gzip, br\r\nX-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n";
/// Not looked up.
const DELETE: &str = "DELETE /private?lat=-1.3 HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: test\r\n\
    X-Forwarded-For: 203.0.113.7\r\nX-Forwarded-Proto: https\r\n\r\n";
const BODY_BYTES: usize = 1024;
const ROUNDS: u64 = 2000;

#[test]
fn a_pass_allocates_little_and_looks_at_the_clock_seldom() {
    let gateway = gateway(origin(), "");
    let mut client = connect(gateway);
    // Buffers, histogram cells and the like come with the first ones.
    for request in [GET, DELETE] {
        (0..200).for_each(|_| pass(&mut client, request));
    }
    COUNTED.store(shard_tid(), Ordering::Relaxed);
    // The task of its own, the request's bytes, its key; what it is looked up with, or what it makes doubtful.
    for (what, request, allocations_max, reads_max) in [("GET", GET, 6.0, 7.0), ("DELETE", DELETE, 7.0, 7.0)] {
        let (allocations, reads) = (ALLOCATIONS.load(Ordering::Relaxed), clock_reads());
        let begun = Instant::now();
        (0..ROUNDS).for_each(|_| pass(&mut client, request));
        let allocations = (ALLOCATIONS.load(Ordering::Relaxed) - allocations) as f64 / ROUNDS as f64;
        let reads = (clock_reads() - reads) as f64 / ROUNDS as f64;
        println!("{what}: {allocations:.2} allocations, {reads:.2} looks at the clock");
        // What the gateway does by the clock, and the lookup that is for real every two seconds: the longer it takes, the more of it.
        let spare = 0.2 + 100.0 * begun.elapsed().as_secs_f64() / ROUNDS as f64;
        assert!(allocations <= allocations_max + spare, "{what}: {allocations} allocations for a pass");
        assert!(reads <= reads_max + spare, "{what}: {reads} looks at the clock for a pass");
    }
}

/// One request, and its answer.
fn pass(client: &mut TcpStream, request: &str) {
    client.write_all(request.as_bytes()).expect("the request is sent");
    let (mut answer, mut buf) = (Vec::new(), [0; 4096]);
    while !answer.ends_with(&[b'x'; BODY_BYTES]) {
        let got = client.read(&mut buf).expect("an answer");
        assert!(got > 0, "closed after {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&buf[..got]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 200 OK\r\n"), "{:?}", String::from_utf8_lossy(&answer));
}

/// Answers every request with what may not be stored, and keeps its connections.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("an address");
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.expect("a client");
            thread::spawn(move || {
                let mut lines = BufReader::new(client.try_clone().expect("a second handle")).lines();
                while let Some(Ok(line)) = lines.next() {
                    if line.is_empty() {
                        let answer = format!(
                            "HTTP/1.1 200 OK\r\nServer: origin\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
                             Content-Type: application/octet-stream\r\nContent-Length: {BODY_BYTES}\r\n\
                             Cache-Control: no-store\r\n\r\n{}",
                            "x".repeat(BODY_BYTES)
                        );
                        client.write_all(answer.as_bytes()).expect("the answer is sent");
                    }
                }
            });
        }
    });
    addr
}
