//! A request as the cache and the upstream side see it: owned, immutable, and able to travel between shards.

use crate::cache::directives::RequestDirectives;
use crate::cache::key;
use crate::http::head::{FieldsView, RequestHead};
use crate::http::parse::{self, Parsed};
use std::net::IpAddr;

/// What somebody wants fetched or looked up. `head` points into `buf`.
#[derive(Debug)]
pub struct Query {
    pub key: Box<[u8]>,
    pub hash: u64,
    pub buf: Box<[u8]>,
    pub head: RequestHead,
    pub route: u16,
    pub directives: RequestDirectives,
    /// The entry is kept for one value of the credentials.
    pub per_credential: bool,
    /// The client's address, for X-Forwarded-For; `None` for unix sockets and for our own requests.
    pub peer: Option<IpAddr>,
    /// Whether the peer may set X-Forwarded-*. Our own requests are trusted.
    pub trusted: bool,
}

impl Query {
    #[must_use]
    pub fn view(&self) -> FieldsView<'_> {
        self.head.view(&self.buf)
    }

    /// A request of our own (warm lists, refreshes), made from lines of text and parsed by the same rules as a client's.
    ///
    /// # Errors
    /// When the parts do not make a well-formed request.
    pub fn synthetic(
        host: &str,
        target: &str,
        scheme: &str,
        headers: impl Iterator<Item = (String, String)>,
    ) -> Result<(Box<[u8]>, RequestHead), &'static str> {
        let mut text = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nX-Forwarded-Proto: {scheme}\r\n");
        for (name, value) in headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text.push_str("\r\n");
        Self::reparse(text.into_bytes().into_boxed_slice())
    }

    /// Parses a head that is held in memory as a whole.
    ///
    /// # Errors
    /// When it is not one complete well-formed request head.
    pub fn reparse(buf: Box<[u8]>) -> Result<(Box<[u8]>, RequestHead), &'static str> {
        let mut head = RequestHead::new();
        match parse::request(&buf, &mut head) {
            Ok(Parsed::Complete) => Ok((buf, head)),
            Ok(Parsed::Partial) => Err("the request head is not complete"),
            Err(error) => Err(error.detail()),
        }
    }

    /// Completes a parsed head to a query.
    #[must_use]
    pub fn new(
        hasher: &ahash::RandomState,
        buf: Box<[u8]>,
        head: RequestHead,
        route: u16,
        per_credential: bool,
        peer: Option<IpAddr>,
        trusted: bool,
    ) -> Self {
        let credentials = per_credential.then(|| head.view(&buf));
        // Exactly, where there are no credentials: what is left over would have to be given back.
        let more = if per_credential { 64 } else { 0 };
        let mut bytes = Vec::with_capacity(head.host.len() + head.target.len().max(1) + more);
        key::write(&mut bytes, &head.host, head.target.of(&buf), credentials);
        let hash = key::hash(hasher, &bytes);
        let directives = RequestDirectives::of(head.view(&buf));
        Self { key: bytes.into_boxed_slice(), hash, buf, head, route, directives, per_credential, peer, trusted }
    }
}

impl Query {
    /// The same on another route; `None` only if the head that was parsed before cannot be parsed again.
    #[must_use]
    pub fn on_route(&self, route: u16) -> Option<Self> {
        let (buf, head) = Self::reparse(self.buf.clone()).ok()?;
        let (key, directives) = (self.key.clone(), self.directives);
        Some(Self { key, buf, head, directives, route, ..*self })
    }
}

/// Which of `shards` owns a key with this hash.
#[must_use]
pub fn owner_of(hash: u64, shards: usize) -> usize {
    // The high half, scaled: the low half is what the index of a partition uses.
    (((hash >> 32) * shards as u64) >> 32) as usize
}
