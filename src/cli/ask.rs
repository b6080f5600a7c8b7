//! `purge`, `warm` and `status`: one request to the admin address of a running gateway, and its answer for people.
//! A small blocking HTTP/1.1 client: Content-Length, chunked, and until-close bodies, one total deadline.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::{EXIT_REFUSED, EXIT_USAGE, PurgeArgs, ReloadArgs, StatusArgs, WarmArgs};
use crate::config::Addr;
use crate::config::addr::parse_connect;

/// From connecting to the last byte of the answer.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Longest pause between two pieces of a stream that has one each second.
const SILENCE: Duration = Duration::from_secs(5);
/// For an upgrade, which lasts until the new process is ready; the gateway ends it by server.upgrade_timeout.
const UPGRADE_TIMEOUT: Duration = Duration::from_secs(24 * 3600);
/// Longest answer that is read.
const ANSWER_BYTES_MAX: u64 = 64 << 20;

/// Why there is no answer: one line.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("{0}")]
    Usage(String),
    #[error("cannot reach the gateway's admin address {admin}: {why}")]
    Unreachable { admin: String, why: String },
    #[error("the gateway refused: {status} {reason}")]
    Refused { status: u16, reason: String },
}

impl AskError {
    /// The exit code that goes with it.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Unreachable { .. } | Self::Refused { .. } => EXIT_REFUSED,
        }
    }
}

/// `pilotlight purge`: what to print.
pub fn purge(args: &PurgeArgs) -> Result<String, AskError> {
    let what = [("url", &args.what.url), ("prefix", &args.what.prefix), ("tag", &args.what.tag)];
    let Some((key, value)) = what.into_iter().find_map(|(key, value)| Some((key, value.as_deref()?))) else {
        return Err(AskError::Usage("nothing to purge: give --url, --prefix or --tag".to_owned()));
    };
    let answer = ask(&args.admin.admin, "POST", &format!("/purge?{key}={}", percent_encode(value)), b"")?;
    Ok(or_else(&answer, "purged"))
}

/// `pilotlight warm`: what to print.
pub fn warm(args: &WarmArgs) -> Result<String, AskError> {
    let mut body = String::new();
    for url in &args.urls {
        if url == "-" {
            io::stdin()
                .read_to_string(&mut body)
                .map_err(|error| AskError::Usage(format!("standard input: {error}")))?;
        } else {
            body.push_str(url);
        }
        body.push('\n');
    }
    if body.trim().is_empty() {
        return Err(AskError::Usage("no URL to warm".to_owned()));
    }
    let answer = ask(&args.admin.admin, "POST", "/warm", body.as_bytes())?;
    Ok(or_else(&answer, "warming"))
}

/// `pilotlight status`: what to print.
pub fn status(args: &StatusArgs) -> Result<String, AskError> {
    let answer = ask(&args.admin.admin, "GET", "/status", b"")?;
    Ok(if args.json { answer } else { pretty(&answer) })
}

/// `pilotlight reload`: what to print.
pub fn reload(args: &ReloadArgs) -> Result<String, AskError> {
    let answer = ask(&args.admin.admin, "POST", "/reload", b"")?;
    Ok(pretty(&answer))
}

/// `pilotlight upgrade`: what to print.
pub fn upgrade(args: &ReloadArgs) -> Result<String, AskError> {
    let answer = ask_within(&args.admin.admin, "POST", "/upgrade", b"", UPGRADE_TIMEOUT)?;
    Ok(pretty(&answer))
}

fn or_else(answer: &str, empty: &str) -> String {
    if answer.trim().is_empty() { empty.to_owned() } else { pretty(answer) }
}

/// JSON with line breaks; anything else as it came.
fn pretty(answer: &str) -> String {
    let json: Option<serde_json::Value> = serde_json::from_str(answer).ok();
    json.and_then(|json| serde_json::to_string_pretty(&json).ok()).unwrap_or_else(|| answer.trim_end().to_owned())
}

/// Everything but RFC 3986's unreserved characters and `/` as `%XX`.
fn percent_encode(text: &str) -> String {
    use fmt::Write as _;
    text.bytes().fold(String::with_capacity(text.len()), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

/// The body of a 2xx answer.
fn ask(admin: &str, method: &str, target: &str, body: &[u8]) -> Result<String, AskError> {
    ask_within(admin, method, target, body, TIMEOUT)
}

fn ask_within(admin: &str, method: &str, target: &str, body: &[u8], within: Duration) -> Result<String, AskError> {
    let addr = parse_connect(admin).map_err(|message| AskError::Usage(format!("--admin: {message}")))?;
    let unreachable = |error: io::Error| AskError::Unreachable { admin: admin.to_owned(), why: explain(&error) };
    let answer = request(&addr, method, target, &[], body, within).map_err(unreachable)?;
    let text = String::from_utf8_lossy(&answer.body).into_owned();
    if (200..300).contains(&answer.status) {
        return Ok(text);
    }
    let json: Option<serde_json::Value> = serde_json::from_str(&text).ok();
    let detail = json.as_ref().and_then(|answer| answer["detail"].as_str());
    let reason = detail.unwrap_or_else(|| text.lines().next().unwrap_or_default().trim()).to_owned();
    Err(AskError::Refused { status: answer.status, reason })
}

/// The stream of `/events`, without what was before; each read waits for so long that a gateway which still lives has sent something.
pub(super) fn events(admin: &str) -> Result<impl BufRead + use<>, AskError> {
    let addr = parse_connect(admin).map_err(|message| AskError::Usage(format!("--admin: {message}")))?;
    let unreachable = |error: io::Error| AskError::Unreachable { admin: admin.to_owned(), why: explain(&error) };
    let open = || -> io::Result<(Answer, BufReader<Stream>)> {
        let mut stream = Stream::connect(&addr, Instant::now() + TIMEOUT)?;
        let host = host(&addr);
        // Of HTTP/1.0, since then the body has no framing: it is lines from here to the end.
        stream.write_all(format!("GET /events?past=no HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes())?;
        let mut stream = BufReader::new(stream);
        let mut answer = read_head(&mut stream)?;
        if answer.status != 200 {
            answer.body = read_body(&mut stream, &answer)?;
        }
        Ok((answer, stream))
    };
    let (answer, mut stream) = open().map_err(unreachable)?;
    if answer.status != 200 {
        let reason = String::from_utf8_lossy(&answer.body).lines().next().unwrap_or_default().trim().to_owned();
        return Err(AskError::Refused { status: answer.status, reason });
    }
    stream.get_mut().silence = Some(SILENCE);
    Ok(stream)
}

/// What a request says in Host. A name is not passed on: the gateway knows only the names of its configuration, which are for browsers.
fn host(addr: &Addr) -> String {
    if matches!(addr, Addr::Tcp(_)) { addr.to_string() } else { "localhost".to_owned() }
}

pub(super) fn explain(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => "it did not answer in time".to_owned(),
        _ => error.to_string(),
    }
}

/// A response read to its end.
#[derive(Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: u16,
    /// As received, names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    /// The first field of that (lower-case) name.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }
}

/// Sends one request and reads the answer, all within `timeout`. A `Host` among `headers` replaces the address's own.
pub fn request(
    addr: &Addr,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    timeout: Duration,
) -> io::Result<Answer> {
    let mut stream = Stream::connect(addr, Instant::now() + timeout)?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\nContent-Length: {}\r\n", body.len());
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head.push_str(&format!("Host: {}\r\n", host(addr)));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    read_answer(BufReader::new(stream.take(ANSWER_BYTES_MAX)))
}

/// A blocking stream on which every operation ends at the deadline.
struct Stream {
    io: Io,
    deadline: Instant,
    /// Of a stream without an end: each read starts anew with so much time.
    silence: Option<Duration>,
}

enum Io {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    fn connect(addr: &Addr, deadline: Instant) -> io::Result<Self> {
        let io = match addr {
            Addr::Unix(path) => Io::Unix(UnixStream::connect(path)?),
            Addr::Tcp(addr) => Io::Tcp(TcpStream::connect_timeout(addr, left(deadline)?)?),
            Addr::Name(host, port) => Io::Tcp(connect_first((host.as_str(), *port).to_socket_addrs()?, deadline)?),
        };
        Ok(Self { io, deadline, silence: None })
    }
}

fn connect_first(addrs: impl Iterator<Item = SocketAddr>, deadline: Instant) -> io::Result<TcpStream> {
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    for addr in addrs {
        match TcpStream::connect_timeout(&addr, left(deadline)?) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = match self.silence {
            Some(silence) => Some(silence),
            None => Some(left(self.deadline)?),
        };
        match &mut self.io {
            Io::Tcp(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(buffer)),
            Io::Unix(stream) => stream.set_read_timeout(left).and_then(|()| stream.read(buffer)),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let left = Some(left(self.deadline)?);
        match &mut self.io {
            Io::Tcp(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
            Io::Unix(stream) => stream.set_write_timeout(left).and_then(|()| stream.write(bytes)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("its answer is not HTTP/1.1 ({what})"))
}

fn read_answer(mut stream: impl BufRead) -> io::Result<Answer> {
    let mut answer = read_head(&mut stream)?;
    answer.body = read_body(&mut stream, &answer)?;
    Ok(answer)
}

/// Status and fields; the body is empty.
fn read_head(mut stream: &mut impl BufRead) -> io::Result<Answer> {
    let status_line = line(&mut stream)?;
    let mut words = status_line.splitn(3, ' ');
    if !words.next().is_some_and(|version| version.starts_with("HTTP/1.")) {
        return Err(bad("no status line"));
    }
    let status = words.next().and_then(|word| word.parse().ok()).ok_or_else(|| bad("no status"))?;
    let mut answer = Answer { status, headers: Vec::new(), body: Vec::new() };
    loop {
        let field = line(&mut stream)?;
        if field.is_empty() {
            break;
        }
        let (name, value) = field.split_once(':').ok_or_else(|| bad("a field without a colon"))?;
        answer.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    Ok(answer)
}

/// RFC 9112 §6.3: Transfer-Encoding before Content-Length, and without either until the connection closes.
fn read_body(stream: &mut impl BufRead, answer: &Answer) -> io::Result<Vec<u8>> {
    let mut body = Vec::new();
    if answer.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = line(stream)?;
            let size = size.split(';').next().unwrap_or_default().trim();
            let size = u64::from_str_radix(size, 16).map_err(|_| bad("a bad chunk size"))?;
            if size == 0 {
                return Ok(body);
            }
            read_exactly(stream, size, &mut body)?;
            line(stream)?;
        }
    }
    match answer.header("content-length") {
        Some(length) => read_exactly(stream, length.parse().map_err(|_| bad("a bad Content-Length"))?, &mut body)?,
        None => drop(stream.read_to_end(&mut body)?),
    }
    Ok(body)
}

/// Grows with what arrives, never by what was announced.
fn read_exactly(stream: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(length).read_to_end(body)?;
    if u64::try_from(read).is_ok_and(|read| read == length) { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut bytes = Vec::new();
    stream.take(64 << 10).read_until(b'\n', &mut bytes)?;
    if bytes.pop() != Some(b'\n') {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "it closed the connection before the end of its answer",
        ));
    }
    if bytes.last() == Some(&b'\r') {
        bytes.pop();
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::super::{AdminArg, PurgeWhat};
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn answers() {
        for (wire, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi more", Some((200, "hi"))),
            ("HTTP/1.1 200 OK\r\n\r\nto the end", Some((200, "to the end"))),
            (
                "HTTP/1.1 503 No\r\ntransfer-encoding: chunked\r\n\r\n2;x=y\r\nhi\r\nA\r\n0123456789\r\n0\r\n\r\n",
                Some((503, "hi0123456789")),
            ),
            ("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi", None),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", None),
            ("HTTP/1.1 200 OK\r\nContent-Le", None),
            ("SSH-2.0-x\r\n", None),
            ("", None),
        ] {
            let got = read_answer(wire.as_bytes())
                .ok()
                .map(|answer| (answer.status, String::from_utf8(answer.body).unwrap()));
            assert_eq!(got, expected.map(|(status, body)| (status, body.to_owned())), "{wire}");
        }
    }

    /// A gateway that gives one answer; the request it got.
    fn gateway(answer: &'static str) -> (String, std::thread::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        let seen = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut buffer = [0; 4096];
            let length = stream.read(&mut buffer).unwrap();
            stream.write_all(answer.as_bytes()).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        (addr, seen)
    }

    fn purge_args(admin: String) -> PurgeArgs {
        let what = PurgeWhat { url: Some("http://a:1/b?c=d&e".to_owned()), prefix: None, tag: None };
        PurgeArgs { admin: AdminArg { admin }, what }
    }

    #[test]
    fn a_purge_and_its_answer() {
        let (admin, seen) = gateway("HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n{\"purged\":3}");
        assert_eq!(purge(&purge_args(admin)).unwrap(), "{\n  \"purged\": 3\n}");
        assert!(seen.join().unwrap().starts_with("POST /purge?url=http%3A//a%3A1/b%3Fc%3Dd%26e HTTP/1.1\r\n"));
    }

    #[test]
    fn refusals() {
        let (admin, _) = gateway("HTTP/1.1 400 Bad\r\nContent-Length: 5\r\n\r\nwrong");
        let refused = purge(&purge_args(admin)).unwrap_err();
        assert_eq!((refused.exit_code(), refused.to_string().as_str()), (2, "the gateway refused: 400 wrong"));
        let gone = purge(&purge_args("unix:/nonexistent/admin.sock".to_owned())).unwrap_err();
        assert_eq!(gone.exit_code(), 2);
        assert!(
            gone.to_string()
                .starts_with("cannot reach the gateway's admin address unix:/nonexistent/admin.sock: No such file")
        );
        let wrong = purge(&purge_args("nowhere".to_owned())).unwrap_err();
        assert_eq!(wrong.exit_code(), 1);
        assert!(wrong.to_string().starts_with("--admin: bad address \"nowhere\""), "{wrong}");
    }
}
