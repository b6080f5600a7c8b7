//! Both ends of the gateway, played by one thread: two clients and an origin that records what reaches it. Every step that depends on
//! the gateway is waited for with one long deadline, so a conversation that nobody ends is a finding.

use crate::script::{Answer, End, Kind, Op, What};
use crate::wire::{Request, answers_of, body_of, head_of, requests_of};
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

/// Longer than anything takes on a busy machine, shorter than the gateway's own time-outs.
const HANG: Duration = Duration::from_secs(30);
/// How long a client that waits for an answer takes silence for the answer.
const SILENCE_MS: i32 = 40;
/// Most writes of one answer.
const PIECES_MAX: usize = 16;
pub const CANARY: &[u8] = b"canary/";

/// What went over one connection of a client.
#[derive(Debug, Default)]
pub struct Talk {
    pub sent: Vec<u8>,
    pub got: Vec<u8>,
    /// The client went away without waiting for its answers.
    pub left: bool,
}

struct Client {
    stream: TcpStream,
    talk: Talk,
    unsent: Vec<u8>,
    /// The gateway has ended the connection.
    ended: bool,
    half_close: bool,
    half_closed: bool,
}

/// A connection that the origin has accepted.
struct Upstream {
    stream: TcpStream,
    got: Vec<u8>,
    /// The place in `World::requests` of the request that is being read.
    reading: Option<usize>,
    /// It has its answer, before its body was here.
    answered: bool,
    /// Writes that are due; then the end.
    pieces: VecDeque<Vec<u8>>,
    end: End,
    finished: bool,
    /// It carried more than the response to its request: nobody may use it again.
    spoiled: bool,
    gone: bool,
}

pub struct World {
    gateway: SocketAddr,
    listener: TcpListener,
    upstreams: Vec<Upstream>,
    answers: VecDeque<Answer>,
    /// What reached the origin.
    pub requests: Vec<Request>,
    clients: [Client; 2],
    /// The clients' connections that are over.
    pub talks: Vec<Talk>,
    current: usize,
    began: Instant,
}

/// # Panics
/// When the system refuses a socket.
#[must_use]
pub fn listen() -> TcpListener {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.set_nonblocking(true).expect("a socket");
    listener
}

impl World {
    #[must_use]
    pub fn new(gateway: SocketAddr, listener: TcpListener) -> Self {
        Self {
            gateway,
            listener,
            upstreams: Vec::new(),
            answers: VecDeque::new(),
            requests: Vec::new(),
            clients: [Client::connect(gateway), Client::connect(gateway)],
            talks: Vec::new(),
            current: 0,
            began: Instant::now(),
        }
    }

    /// Plays a script until both clients have their answers or the end of their connection.
    pub fn play(&mut self, script: &[Op]) {
        let answers =
            script.iter().filter_map(|op| if let Op::Answer(answer) = op { Some(answer.clone()) } else { None });
        self.answers = answers.collect();
        for op in script {
            let client = &mut self.clients[self.current];
            match op {
                Op::Send(bytes) if !client.half_close => {
                    client.talk.sent.extend_from_slice(bytes);
                    client.unsent.extend_from_slice(bytes);
                    self.pump(0);
                }
                Op::HalfClose => {
                    client.half_close = true;
                    self.pump(0);
                }
                Op::Settle => self.settle(self.current),
                Op::Leave => self.end(self.current),
                Op::Reset => {
                    client.talk.left = true;
                    self.replace(self.current);
                }
                Op::Switch => self.current ^= 1,
                Op::Send(_) | Op::Answer(_) => {}
            }
        }
        self.end(0);
        self.end(1);
    }

    /// What a client that has done nothing wrong gets.
    pub fn canary(&mut self, target: &str) -> Vec<u8> {
        let client = &mut self.clients[0];
        client.unsent = format!("GET {target} HTTP/1.1\r\nHost: canary\r\nConnection: close\r\n\r\n").into_bytes();
        while !self.clients[0].ended {
            self.pump(1000);
        }
        std::mem::take(&mut self.clients[0].talk.got)
    }

    /// Drops every connection and leaves nothing of it in the kernel.
    #[must_use]
    pub fn close(self) -> TcpListener {
        let clients = self.clients.iter().map(|client| &client.stream);
        clients.chain(self.upstreams.iter().map(|upstream| &upstream.stream)).for_each(reset_on_close);
        self.listener
    }

    /// Until a client has as many answers as it has sent requests, or nothing happens any more.
    fn settle(&mut self, at: usize) {
        let sent = requests_of(&self.clients[at].talk.sent).0;
        let asked = sent.iter().filter(|request| request.body.is_some()).count();
        while !self.clients[at].ended && answers_of(&self.clients[at].talk.got, &sent).len() < asked {
            if !self.pump(SILENCE_MS) {
                return;
            }
        }
    }

    /// Lets a client send what it has, end its side, and take what comes until the gateway ends the other.
    fn end(&mut self, at: usize) {
        self.settle(at);
        self.clients[at].half_close = true;
        while !self.clients[at].ended {
            self.pump(1000);
        }
        self.replace(at);
    }

    fn replace(&mut self, at: usize) {
        let old = std::mem::replace(&mut self.clients[at], Client::connect(self.gateway));
        reset_on_close(&old.stream);
        self.talks.push(old.talk);
    }

    /// Waits for something to happen, and does what is due; false when nothing happened.
    fn pump(&mut self, wait_ms: i32) -> bool {
        assert!(self.began.elapsed() < HANG, "nobody ends this conversation: {}", self.state());
        let poll = |stream: &TcpStream, write: bool| libc::pollfd {
            fd: stream.as_raw_fd(),
            events: libc::POLLIN | if write { libc::POLLOUT } else { 0 },
            revents: 0,
        };
        let mut fds = vec![libc::pollfd { fd: self.listener.as_raw_fd(), events: libc::POLLIN, revents: 0 }];
        fds.extend(self.clients.iter().filter(|c| !c.ended).map(|c| poll(&c.stream, c.has_to_write())));
        fds.extend(self.upstreams.iter().map(|u| poll(&u.stream, !u.pieces.is_empty())));
        // SAFETY: an array of that length, which is ours during the call.
        if unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, wait_ms) } <= 0 {
            return false;
        }
        while let Ok((stream, _)) = self.listener.accept() {
            self.upstreams.push(Upstream::new(stream));
        }
        self.clients.iter_mut().filter(|client| !client.ended).for_each(Client::step);
        for upstream in &mut self.upstreams {
            upstream.step(&mut self.answers, &mut self.requests);
        }
        self.upstreams.retain(|upstream| !upstream.gone);
        true
    }

    fn state(&self) -> String {
        let talk = |talk: &Talk| format!("\n  sent {}\n  got {}", talk.sent.escape_ascii(), talk.got.escape_ascii());
        let clients: String = self.clients.iter().map(|client| talk(&client.talk)).collect();
        format!("{clients}\n  at the origin {:?}", self.requests)
    }
}

impl Client {
    fn connect(gateway: SocketAddr) -> Self {
        let stream = TcpStream::connect(gateway).expect("the gateway listens");
        prepare(&stream);
        Self { stream, talk: Talk::default(), unsent: Vec::new(), ended: false, half_close: false, half_closed: false }
    }

    fn has_to_write(&self) -> bool {
        !self.unsent.is_empty() || (self.half_close && !self.half_closed)
    }

    fn step(&mut self) {
        if !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(count) => drop(self.unsent.drain(..count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // The gateway has said all that it will, and that is still to be read.
                Err(_) => self.unsent.clear(),
            }
        }
        if self.half_close && !self.half_closed && self.unsent.is_empty() {
            let _ = self.stream.shutdown(Shutdown::Write);
            self.half_closed = true;
        }
        self.ended = read_all(&mut self.stream, &mut self.talk.got);
    }
}

impl Upstream {
    fn new(stream: TcpStream) -> Self {
        prepare(&stream);
        Self {
            stream,
            got: Vec::new(),
            reading: None,
            answered: false,
            pieces: VecDeque::new(),
            end: End::Keep,
            finished: false,
            spoiled: false,
            gone: false,
        }
    }

    fn step(&mut self, answers: &mut VecDeque<Answer>, requests: &mut Vec<Request>) {
        let over = read_all(&mut self.stream, &mut self.got);
        while let Some(head) = head_of(&self.got) {
            let at = *self.reading.get_or_insert_with(|| {
                assert!(!self.spoiled, "a request on a connection that carried more than a response");
                requests.push(head.request.clone());
                requests.len() - 1
            });
            let body = body_of(&self.got[head.len..], head.framing);
            let is_canary = head.request.url.starts_with(CANARY);
            let early = !is_canary && answers.front().is_some_and(|answer| answer.early);
            if !self.answered && !self.finished && (body.is_some() || early) {
                self.answered = true;
                let answer = if is_canary { None } else { answers.pop_front() };
                self.answer(&head.request, answer);
            }
            let Some((body, len)) = body else { break };
            requests[at].body = Some(body);
            self.got.drain(..head.len + len);
            (self.reading, self.answered) = (None, false);
        }
        self.write();
        self.gone |= over && self.pieces.is_empty();
        if self.gone {
            reset_on_close(&self.stream);
        }
    }

    fn answer(&mut self, request: &Request, answer: Option<Answer>) {
        let plain = Answer { what: What::Bound(Kind::Cacheable), piece_bytes: 0, early: false };
        let Answer { what, piece_bytes, .. } = answer.unwrap_or(plain);
        let (bytes, end) = match what {
            What::Raw(bytes, end) => (bytes, end),
            What::Bound(kind) => {
                self.spoiled = kind == Kind::ExtraBytes;
                kind.answer(&request.method, &String::from_utf8_lossy(&request.url))
            }
        };
        self.end = end;
        // What must not be there goes together with what must, or nobody could know in time.
        let whole = self.spoiled || piece_bytes == 0;
        let piece_bytes = if whole { bytes.len() } else { piece_bytes.max(bytes.len() / PIECES_MAX) };
        self.pieces = bytes.chunks(piece_bytes.max(1)).map(<[u8]>::to_vec).collect();
    }

    /// One write at a time, so that the gateway may see them apart.
    fn write(&mut self) {
        if let Some(mut piece) = self.pieces.pop_front() {
            match self.stream.write(&piece) {
                Ok(count) if count == piece.len() => {}
                Ok(count) => self.pieces.push_front(piece.split_off(count)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.pieces.push_front(piece),
                Err(_) => self.pieces.clear(),
            }
        }
        if !self.pieces.is_empty() {
            return;
        }
        match std::mem::replace(&mut self.end, End::Keep) {
            End::Keep => {}
            End::Fin => {
                let _ = self.stream.shutdown(Shutdown::Write);
                self.finished = true;
            }
            End::Rst => self.gone = true,
        }
    }
}

fn prepare(stream: &TcpStream) {
    stream.set_nonblocking(true).expect("a socket");
    stream.set_nodelay(true).expect("a TCP socket");
}

/// Reads what there is; true when there will be no more.
fn read_all(stream: &mut TcpStream, into: &mut Vec<u8>) -> bool {
    let mut buf = [0; 16 * 1024];
    loop {
        match stream.read(&mut buf) {
            Ok(0) => return true,
            Ok(count) => into.extend_from_slice(&buf[..count]),
            Err(error) => return error.kind() != ErrorKind::WouldBlock,
        }
    }
}

/// Closing resets the connection, which also keeps its port from waiting for a minute.
fn reset_on_close(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    let (level, name) = (libc::SOL_SOCKET, libc::SO_LINGER);
    let len = size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the option is a linger, which is ours during the call.
    unsafe { libc::setsockopt(stream.as_raw_fd(), level, name, (&raw const linger).cast(), len) };
}
