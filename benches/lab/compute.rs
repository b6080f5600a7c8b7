//! The compute service of the lab: waits for remote data as long as it is told, then averages the NDVI of a raster.
//! `compute ADDR WAIT_MS`. A thread for each connection, one request on each: enough for what Django asks.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

/// Pixels of the raster: some milliseconds of work.
const PIXELS: u64 = 1024 * 1024;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(wait_ms)) = (arguments.next(), arguments.next()) else {
        return Err("usage: compute ADDR WAIT_MS".into());
    };
    let wait = Duration::from_millis(wait_ms.parse()?);
    for stream in TcpListener::bind(address)?.incoming() {
        let stream = stream?;
        // A client that has gone is no concern of the others.
        std::thread::spawn(move || answer(stream, wait).ok());
    }
    Ok(())
}

fn answer(mut stream: TcpStream, wait: Duration) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines.next().transpose()?.is_some_and(|line| !line.is_empty()) {}
    let farm: u64 = request.split(['/', ' ']).find_map(|part| part.parse().ok()).unwrap_or(0);
    std::thread::sleep(wait);
    let body = format!("{{\"farm\":{farm},\"mean\":{:.4}}}", mean_ndvi(farm));
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )
}

/// NDVI = (near infrared - red) / (near infrared + red), over pixels made up from the farm's number.
fn mean_ndvi(farm: u64) -> f64 {
    let mut state = farm.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut sum = 0.0;
    for _ in 0..PIXELS {
        // xorshift64 (Marsaglia 2003).
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let (infrared, red) = (1.0 + (state & 0xffff) as f64, 1.0 + (state >> 48) as f64);
        sum += (infrared - red) / (infrared + red);
    }
    sum / PIXELS as f64
}
