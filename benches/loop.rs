//! The floor that a hit is measured against: a shard's event loop that answers every request head with the same 1 KiB, and does
//! nothing else. It looks for the empty line and at no other byte; heads that came together are answered with one write.
//!
//! ```text
//!   cargo build --release --example loop
//!   target/release/examples/loop 127.0.0.1:8090 [CPU]
//! ```
//! It runs on CPU, or on the first one that it may use, until it is killed.

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::{TcpListener, TcpStream};
use pilotlight::io::runtime;
use std::io;
use std::process::ExitCode;

const BODY_BYTES: usize = 1024;
const READ_BYTES: usize = 16 * 1024;

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("loop: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: Vec<String>) -> io::Result<()> {
    let usage = || io::Error::other("usage: loop ADDR [CPU]");
    let addr = args.first().ok_or_else(usage)?;
    let allowed = core_affinity::get_core_ids().unwrap_or_default();
    let cpu = match args.get(1) {
        Some(cpu) => Some(core_affinity::CoreId { id: cpu.parse().map_err(|_| usage())? }),
        None => allowed.first().copied(),
    };
    if !cpu.is_some_and(core_affinity::set_for_current) {
        return Err(io::Error::other("cannot be pinned to that CPU"));
    }
    let listener = std::net::TcpListener::bind(addr)?;
    listener.set_nonblocking(true)?;
    let event_loop = runtime::build_loop()?;
    eprintln!("loop: {} on {addr}, CPU {}", event_loop.name(), cpu.map_or(0, |cpu| cpu.id));
    event_loop.block_on(accept(listener))
}

async fn accept(listener: std::net::TcpListener) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        monoio::spawn(async {
            // An error means that the client is gone.
            let _ = answer(stream).await;
        });
    }
}

async fn answer(mut stream: TcpStream) -> io::Result<()> {
    let one = response();
    let mut heads: Vec<u8> = Vec::with_capacity(READ_BYTES);
    let mut out = Vec::with_capacity(one.len());
    loop {
        if heads.len() == heads.capacity() {
            return Err(io::Error::other("a head that long is not answered"));
        }
        let from = heads.len();
        let (result, slice) = stream.read(heads.slice_mut(from..)).await;
        heads = slice.into_inner();
        if result? == 0 {
            return Ok(());
        }
        let mut answered = 0;
        while let Some(at) = memchr::memmem::find(&heads[answered..], b"\r\n\r\n") {
            answered += at + 4;
            out.extend_from_slice(&one);
        }
        // Nothing is moved when nothing is left, which is always but for pipelines that were cut.
        heads.drain(..answered);
        if !out.is_empty() {
            let (result, back) = stream.write_all(out).await;
            result?;
            out = back;
            out.clear();
        }
    }
}

fn response() -> Vec<u8> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {BODY_BYTES}\r\n\r\n");
    let mut response = head.into_bytes();
    response.resize(response.len() + BODY_BYTES, b'x');
    response
}
