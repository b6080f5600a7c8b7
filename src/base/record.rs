//! What is told of a request after it: for the access log and for its spans. A record has a fixed size and no pointers of its own, so
//! that a shard can put it into a ring without allocating; names of routes and upstreams are numbers, and long texts are cut.

use std::net::IpAddr;

use super::outcome::{FetchKind, Outcome};

/// Room for the method, the host and the target together.
const TEXT_BYTES: usize = 240;
/// Longest method kept; the longest registered one has 17 bytes.
const METHOD_BYTES_MAX: usize = 18;
/// Longest host kept; what is left is for the target.
const HOST_BYTES_MAX: usize = 80;

/// The edition of the configuration that a process starts with.
pub const EDITION_FIRST: u64 = 1;

/// A request that has been answered, or a fetch that no client waited for.
#[derive(Debug, Clone, Copy)]
pub struct Record {
    /// Of the configuration by which it is told; one more with each reload.
    pub edition: u64,
    /// Nanoseconds since the epoch of Unix.
    pub start_unix_ns: u64,
    pub duration_ns: u64,
    /// Head and body, as written to the client.
    pub sent_bytes: u64,
    /// `None`: a Unix socket, or no client.
    pub client: Option<IpAddr>,
    /// Index into the configuration's routes.
    pub route: Option<u16>,
    /// 0: there was no response.
    pub status: u16,
    /// `None`: the client left, or there was none.
    pub outcome: Option<Outcome>,
    /// The label of what went wrong.
    pub error: Option<&'static str>,
    pub fetch: Option<Fetch>,
    /// What its client span is called, if there will be one.
    pub fetch_span_id: [u8; 8],
    pub trace: Option<Span>,
    /// For the access log, and not only for its spans.
    pub logged: bool,
    pub text: Text,
}

/// The part of an upstream in it. Times count from when the upstream was first wanted.
#[derive(Debug, Clone, Copy)]
pub struct Fetch {
    /// Index into the configuration's upstreams.
    pub upstream: u16,
    pub kind: FetchKind,
    pub start_unix_ns: u64,
    /// Until there was a slot.
    pub queue_us: u32,
    /// Until the head of the response was there; 0: it never was.
    pub first_byte_us: u32,
    /// Until it was over.
    pub total_us: u32,
    /// 0: there was no response.
    pub status: u16,
    pub error: Option<&'static str>,
}

/// Where a request stands in its trace.
#[derive(Debug, Clone, Copy)]
pub struct Span {
    pub trace_id: [u8; 16],
    /// Of the server span.
    pub id: [u8; 8],
    /// The span of whoever sent the request; `None`: the trace began here.
    pub parent_id: Option<[u8; 8]>,
    /// To be exported.
    pub sampled: bool,
}

impl Span {
    /// In no trace.
    pub const EMPTY: Self = Self { trace_id: [0; 16], id: [0; 8], parent_id: None, sampled: false };
}

/// Method, host and target, one behind the other.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    bytes: [u8; TEXT_BYTES],
    method_len: u8,
    host_len: u8,
    target_len: u8,
    /// The length of the target before it was cut.
    target_bytes: u32,
}

impl Text {
    pub const EMPTY: Self = Self { bytes: [0; TEXT_BYTES], method_len: 0, host_len: 0, target_len: 0, target_bytes: 0 };

    /// Takes as much of each as there is room for.
    pub fn set(&mut self, method: &[u8], host: &[u8], target: &[u8]) {
        let mut at = 0;
        let mut put = |text: &[u8], most: usize| {
            let len = text.len().min(most).min(TEXT_BYTES - at);
            self.bytes[at..at + len].copy_from_slice(&text[..len]);
            at += len;
            len as u8
        };
        self.method_len = put(method, METHOD_BYTES_MAX);
        self.host_len = put(host, HOST_BYTES_MAX);
        self.target_len = put(target, TEXT_BYTES);
        self.target_bytes = u32::try_from(target.len()).unwrap_or(u32::MAX);
    }

    #[must_use]
    pub fn method(&self) -> &[u8] {
        &self.bytes[..self.host_at()]
    }

    #[must_use]
    pub fn host(&self) -> &[u8] {
        &self.bytes[self.host_at()..self.target_at()]
    }

    #[must_use]
    pub fn target(&self) -> &[u8] {
        &self.bytes[self.target_at()..self.target_at() + usize::from(self.target_len)]
    }

    /// The length that the target had, if it was cut.
    #[must_use]
    pub fn target_cut(&self) -> Option<u32> {
        (self.target_bytes > u32::from(self.target_len)).then_some(self.target_bytes)
    }

    fn host_at(&self) -> usize {
        usize::from(self.method_len)
    }

    fn target_at(&self) -> usize {
        self.host_at() + usize::from(self.host_len)
    }
}

impl Record {
    /// Nothing is known yet.
    pub const EMPTY: Self = Self {
        edition: EDITION_FIRST,
        start_unix_ns: 0,
        duration_ns: 0,
        sent_bytes: 0,
        client: None,
        route: None,
        status: 0,
        outcome: None,
        error: None,
        fetch: None,
        fetch_span_id: [0; 8],
        trace: None,
        logged: false,
        text: Text::EMPTY,
    };
}

/// A ring of some thousands of them for each shard is a few MiB.
const _: () = assert!(size_of::<Record>() <= 512);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_where_there_is_no_room() {
        let long = [b'x'; 9000];
        let mut text = Text::EMPTY;
        for (method, host, target, kept, cut) in [
            (3, 5, 7, (3, 5, 7), None),
            (0, 0, 0, (0, 0, 0), None),
            (32, 255, 8000, (18, 80, 142), Some(8000)),
            (3, 9, 228, (3, 9, 228), None),
            (3, 9, 229, (3, 9, 228), Some(229)),
        ] {
            text.set(&long[..method], &long[..host], &long[..target]);
            assert_eq!((text.method().len(), text.host().len(), text.target().len()), kept);
            assert_eq!(text.target_cut(), cut);
        }
        text.set(b"GET", b"h", b"/t");
        assert_eq!((text.method(), text.host(), text.target()), (&b"GET"[..], &b"h"[..], &b"/t"[..]));
    }
}
