//! The load generator against origins whose delays are known. Bounds are wide where a busy machine could move them: what is asserted
//! is what a wrong instrument would get wrong by far.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use pilotlight::bench::{self, BenchArgs, Report};

#[derive(Parser)]
struct Line {
    #[command(flatten)]
    args: BenchArgs,
}

fn measure(line: &str) -> Report {
    let args = std::iter::once("bench").chain(line.split_whitespace());
    bench::measure(&Line::try_parse_from(args).expect("valid arguments").args).expect("a report")
}

/// A server on threads: one for each connection, which lives as long as the test.
struct Origin {
    addr: SocketAddr,
    requests: Arc<AtomicU64>,
    connections: Arc<AtomicU64>,
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";

impl Origin {
    /// `answer` is called for each request with its first line; what it returns is sent, and the connection ended if that is empty.
    fn start(answer: impl Fn(&str) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (requests, connections) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let (seen, accepted, answer) = (Arc::clone(&requests), Arc::clone(&connections), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                accepted.fetch_add(1, Ordering::Relaxed);
                let (seen, answer) = (Arc::clone(&seen), Arc::clone(&answer));
                std::thread::spawn(move || converse(stream, &seen, answer.as_ref()));
            }
        });
        Self { addr, requests, connections }
    }

    fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

fn converse(stream: TcpStream, seen: &AtomicU64, answer: &dyn Fn(&str) -> Vec<u8>) {
    stream.set_nodelay(true).unwrap();
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut writer = stream;
    loop {
        let (mut first, mut length, mut close) = (String::new(), 0, false);
        if reader.read_line(&mut first).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            let line = line.trim().to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length: ") {
                length = value.parse().unwrap();
            }
            close |= line == "connection: close";
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        seen.fetch_add(1, Ordering::Relaxed);
        let bytes = answer(&first);
        if bytes.is_empty() || writer.write_all(&bytes).is_err() || close {
            return;
        }
    }
}

/// Silent for the first 100 ms of each second: whoever asks then is answered at its end.
fn stalling() -> Origin {
    let began = Instant::now();
    Origin::start(move |_| {
        let into_second = Duration::from_nanos((began.elapsed().as_nanos() % 1_000_000_000) as u64);
        std::thread::sleep(Duration::from_millis(100).saturating_sub(into_second));
        OK.to_vec()
    })
}

#[test]
fn a_constant_rate_shows_a_stall_in_full() {
    let origin = stalling();
    let line = format!("http://{}/ --rate 1000 --connections 8 --duration 3s --warmup 0s", origin.addr);
    let target = &measure(&line).targets[0];
    assert_eq!((target.latency.count, target.errors.total()), (3000, 0));
    // Ten of a hundred requests fall into the silence, and wait for what is left of it: 0 to 100 ms, uniformly.
    assert!(target.latency.max_us >= 98_000.0, "max {}", target.latency.max_us);
    let affected = 100.0 - percentile_of(target, 5_000.0);
    assert!((8.0..=14.0).contains(&affected), "{affected} % waited for more than 5 ms");
    let p99 = target.latency.p99_us / 1000.0;
    assert!((85.0..=110.0).contains(&p99), "p99 {p99} ms");
    // Eight of each hundred could be sent at once, the others found every connection busy.
    assert!(target.queued >= 200, "queued {}", target.queued);
}

/// The share of the values that are at most `us`, by the spectrum.
fn percentile_of(target: &bench::report::TargetReport, us: f64) -> f64 {
    let below = target.latency.spectrum.iter().take_while(|point| point.us <= us);
    below.last().map_or(0.0, |point| point.percentile)
}

#[test]
fn a_load_that_spins_counts_the_same() {
    let origin = stalling();
    let line = format!("http://{}/ --rate 500 --connections 4 --duration 2s --warmup 0s --busy-poll", origin.addr);
    let target = &measure(&line).targets[0];
    assert_eq!((target.latency.count, target.errors.total(), origin.requests()), (1000, 0, 1000));
    assert!(target.latency.max_us >= 98_000.0, "max {}", target.latency.max_us);
    let affected = 100.0 - percentile_of(target, 5_000.0);
    assert!((8.0..=16.0).contains(&affected), "{affected} % waited for more than 5 ms");
}

#[test]
fn a_closed_loop_hides_the_same_stall() {
    let origin = stalling();
    let target = &measure(&format!("http://{}/ --connections 1 --duration 2s --warmup 0s", origin.addr)).targets[0];
    // It sends nothing during the silence: two of thousands of its requests know about it.
    assert!(target.latency.max_us >= 80_000.0, "max {}", target.latency.max_us);
    assert!(target.latency.p99_us < 50_000.0, "p99 {}", target.latency.p99_us);
}

#[test]
fn a_fixed_delay_is_found() {
    let origin = Origin::start(|_| {
        std::thread::sleep(Duration::from_millis(20));
        OK.to_vec()
    });
    let report = measure(&format!("http://{}/ --rate 100 -c 8 -t 2 --duration 2s --warmup 200ms", origin.addr));
    let target = &report.targets[0];
    let p50 = target.latency.p50_us / 1000.0;
    assert!((19.5..=22.0).contains(&p50), "p50 {p50} ms");
    assert!(target.latency.min_us >= 19_500.0, "min {}", target.latency.min_us);
    // With the 20 of the warm-up.
    assert_eq!((target.answers, origin.requests()), (200, 220));
    assert_eq!(target.bytes_in, 200 * OK.len() as u64);
    assert!(report.hiccups.count >= 500, "{} hiccups", report.hiccups.count);
    assert_eq!(target.send_error.count + target.queued, 200);
}

#[test]
fn counts_are_what_the_origin_saw() {
    let origin = Origin::start(|_| OK.to_vec());
    let kept = measure(&format!("http://{}/ -c 4 -t 2 --duration 300ms --warmup 0s", origin.addr));
    assert_eq!((kept.targets[0].answers, kept.targets[0].errors.total()), (origin.requests(), 0));
    assert_eq!((kept.targets[0].connects, origin.connections.load(Ordering::Relaxed)), (4, 4));

    let origin = Origin::start(|_| OK.to_vec());
    let line = format!("http://{}/ --rate 200 -c 4 --duration 500ms --warmup 0s --new-connections", origin.addr);
    let new = measure(&line);
    assert_eq!((new.targets[0].answers, origin.requests()), (100, 100));
    assert_eq!((new.targets[0].connects, origin.connections.load(Ordering::Relaxed)), (100, 100));
}

#[test]
fn errors_are_told_apart() {
    let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let refused = &measure(&format!("http://{gone}/ --rate 50 -c 2 --duration 200ms --warmup 0s")).targets[0];
    assert_eq!((refused.errors.connect, refused.errors.total(), refused.answers), (10, 10, 0));

    let origin = Origin::start(|first| match first.split(' ').nth(1) {
        Some("/500") => b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n".to_vec(),
        Some("/404") => b"HTTP/1.1 404 No\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n".to_vec(),
        Some("/reset") => Vec::new(),
        Some("/short") => b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nshort".to_vec(),
        Some("/noise") => b"SSH-2.0-OpenSSH_9.6\r\n\r\n".to_vec(),
        Some("/long") => b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nlong".to_vec(),
        Some("/slow") => {
            std::thread::sleep(Duration::from_millis(600));
            OK.to_vec()
        }
        _ => OK.to_vec(),
    });
    type Kind = fn(&bench::report::TargetReport) -> u64;
    let rows: [(&str, Kind); 7] = [
        ("/500", |target| target.errors.status_5xx),
        ("/404", |target| target.errors.status_4xx),
        ("/reset", |target| target.errors.reset),
        ("/noise", |target| target.errors.malformed),
        ("/long", |target| target.errors.malformed),
        ("/slow", |target| target.errors.timeout),
        ("/short", |target| target.errors.timeout),
    ];
    for (path, kind) in rows {
        let line = format!("http://{}{path} --rate 50 -c 10 --duration 200ms --warmup 0s --timeout 200ms", origin.addr);
        let target = &measure(&line).targets[0];
        assert_eq!((kind(target), target.errors.total()), (10, 10), "{path}: {:?}", target.errors);
        assert_eq!(target.answers, if path.starts_with("/4") || path.starts_with("/5") { 10 } else { 0 }, "{path}");
    }
}

#[test]
fn what_cannot_be_sent_is_counted_all_the_same() {
    let origin = Origin::start(|_| {
        std::thread::sleep(Duration::from_millis(100));
        OK.to_vec()
    });
    let line = format!("http://{}/ --rate 200 -c 1 --duration 300ms --warmup 0s --timeout 300ms", origin.addr);
    let target = &measure(&line).targets[0];
    assert_eq!(target.answers + target.errors.unsent, 60);
    assert!(target.errors.unsent >= 40, "{:?}", target.errors);
}

#[test]
fn targets_are_compared_in_turns() {
    let delayed = |ms| {
        Origin::start(move |_| {
            std::thread::sleep(Duration::from_millis(ms));
            OK.to_vec()
        })
    };
    let (quick, slow) = (delayed(10), delayed(30));
    let line = format!(
        "http://{}/ --compare http://{}/ --rate 100 -c 8 --duration 900ms --slice 300ms --warmup 0s --pid {} --pid {}",
        quick.addr,
        slow.addr,
        std::process::id(),
        std::process::id()
    );
    let report = measure(&line);
    assert_eq!((report.settings.rounds, report.targets[0].slices.len(), report.targets[1].slices.len()), (3, 3, 3));
    let order: Vec<f64> = report.targets.iter().flat_map(|target| &target.slices).map(|slice| slice.at_s).collect();
    assert!(order[0] < order[3] && order[4] < order[1] && order[2] < order[5], "the order rotates: {order:?}");
    let ratio = report.comparisons[0].p50.as_ref().expect("both have answered");
    assert!((2.0..=3.5).contains(&ratio.median) && ratio.min <= ratio.median && ratio.median <= ratio.max, "{ratio:?}");
    assert!(report.targets[0].cpu_us_per_request.is_some());
    assert_eq!((quick.requests(), slow.requests()), (90, 90));
}

#[test]
fn requests_come_from_a_file_by_weight() {
    let (heavy, posted) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let (h, p) = (Arc::clone(&heavy), Arc::clone(&posted));
    let origin = Origin::start(move |first| {
        h.fetch_add(u64::from(first.starts_with("GET /heavy ")), Ordering::Relaxed);
        p.fetch_add(u64::from(first.starts_with("POST /posted ")), Ordering::Relaxed);
        OK.to_vec()
    });
    let dir = std::env::temp_dir().join(format!("pilotlight-bench-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (urls, body) = (dir.join("urls"), dir.join("body"));
    std::fs::write(&urls, "# a mix\n9 GET /heavy\n1 POST http://elsewhere/posted\n").unwrap();
    std::fs::write(&body, "a body").unwrap();
    let line = format!(
        "http://{}/ --urls {} --body {} --rate 1000 -c 4 --duration 1s --warmup 0s",
        origin.addr,
        urls.display(),
        body.display()
    );
    let target = &measure(&line).targets[0];
    std::fs::remove_dir_all(&dir).unwrap();
    assert_eq!((target.answers, target.errors.total()), (1000, 0));
    let (heavy, posted) = (heavy.load(Ordering::Relaxed), posted.load(Ordering::Relaxed));
    assert!(heavy + posted == 1000 && (850..=950).contains(&heavy), "{heavy} and {posted}");
}
