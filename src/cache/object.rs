//! A stored response: everything that serving and refreshing it needs, computed once.
//! Must hold: it never changes. A refreshed response is a new object that shares the old body.

use bytes::Bytes;

use super::freshness::Validity;
use super::lines;
use super::vary::VarySpec;
use crate::base::pages::{PAGED_BYTES, Pages, is_paged, paged_bytes};
use crate::base::size_class::allocated_bytes;
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// Surrogate keys kept of one response; the rest is ignored, so that a response cannot fill the memory with them.
const TAGS_MAX: usize = 64;

/// Bodies up to this size lie in the block of the head: one block less, and one copy for both. Larger ones are shared with the
/// object that a refresh makes.
const INLINE_BODY_BYTES_MAX: usize = 1024;

/// A stored response, shared by shards behind an `Arc`. Everything of varying length is in one block, because every block costs
/// a pointer, a length and what the allocator rounds it up by.
#[derive(Debug)]
pub struct Object {
    /// Key, head, body if it is small, request, surrogate keys.
    text: Box<[u8]>,
    key_len: u32,
    head_len: u32,
    request_len: u32,
    /// Of a body in `text`.
    body_len: u32,
    etag_at: u32,
    etag_len: u16,
    pub status: u16,
    body: Option<Box<Bytes>>,
    pub validity: Validity,
    /// Of `key`, as `key::hash` makes it.
    pub hash: u64,
    /// `None`: it suits every request for the key.
    pub vary: Option<Box<VarySpec>>,
    pub route: u16,
    /// How long the fetch took.
    pub fetch_ms: u32,
    /// A number that no other object of this process has.
    pub generation: u64,
}

/// What an object is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    /// As `key::write` makes it.
    pub key: &'a [u8],
    /// Of `key`, as `key::hash` makes it.
    pub hash: u64,
    pub status: u16,
    /// As `http::encode::stored_head` writes it: status line and field lines, no final empty line.
    pub head: &'a [u8],
    pub body: Bytes,
    pub validity: Validity,
    pub vary: Option<VarySpec>,
    /// The request head as sent upstream, to send again when refreshing.
    pub request: &'a [u8],
    /// Surrogate keys (`Cache-Tag`, `Surrogate-Key`).
    pub tags: &'a [Box<[u8]>],
    pub route: u16,
    pub fetch_ms: u32,
    pub generation: u64,
}

impl Object {
    /// # Panics
    /// When one of the parts but the body has 4 GiB or more.
    #[must_use]
    pub fn new(parts: Parts<'_>) -> Self {
        let is_inline = parts.body.len() <= INLINE_BODY_BYTES_MAX;
        let inline = if is_inline { &*parts.body } else { &[] };
        let tags: usize = parts.tags.iter().map(|tag| tag.len() + 1).sum();
        let len = parts.key.len() + parts.head.len() + inline.len() + parts.request.len() + tags;
        let mut text = Vec::with_capacity(len);
        for part in [parts.key, parts.head, inline, parts.request] {
            text.extend_from_slice(part);
        }
        for tag in parts.tags {
            text.extend_from_slice(tag);
            text.push(b'\n');
        }
        let len32 = |part: &[u8]| u32::try_from(part.len()).expect("heads and keys are bounded");
        let etag = lines::first(parts.head, b"etag").and_then(|tag| Some((tag, u16::try_from(tag.len()).ok()?)));
        let etag_at = etag.map_or(0, |(tag, _)| tag.as_ptr() as usize - parts.head.as_ptr() as usize);
        Self {
            text: text.into_boxed_slice(),
            key_len: len32(parts.key),
            head_len: len32(parts.head),
            request_len: len32(parts.request),
            body_len: len32(inline),
            etag_at: etag_at as u32,
            etag_len: etag.map_or(NO_ETAG, |(_, len)| len),
            status: parts.status,
            body: (!is_inline).then(|| Box::new(parts.body)),
            validity: parts.validity,
            hash: parts.hash,
            vary: parts.vary.map(Box::new),
            route: parts.route,
            fetch_ms: parts.fetch_ms,
            generation: parts.generation,
        }
    }

    #[must_use]
    pub fn key(&self) -> &[u8] {
        &self.text[..self.key_len as usize]
    }

    /// Status line and field lines, no final empty line.
    #[must_use]
    pub fn head(&self) -> &[u8] {
        &self.text[self.key_len as usize..][..self.head_len as usize]
    }

    #[must_use]
    pub fn body(&self) -> &[u8] {
        match &self.body {
            Some(body) => body,
            None => &self.text[(self.key_len + self.head_len) as usize..][..self.body_len as usize],
        }
    }

    /// The body for another object: large ones are shared.
    #[must_use]
    pub fn share_body(&self) -> Bytes {
        match &self.body {
            Some(body) => Bytes::clone(body),
            None => Bytes::copy_from_slice(self.body()),
        }
    }

    /// The request head as sent upstream, to send again when refreshing.
    #[must_use]
    pub fn request(&self) -> &[u8] {
        &self.text[self.request_at()..][..self.request_len as usize]
    }

    #[must_use]
    pub fn etag(&self) -> Option<&[u8]> {
        (self.etag_len != NO_ETAG).then(|| &self.head()[self.etag_at as usize..][..self.etag_len as usize])
    }

    #[must_use]
    pub fn last_modified(&self) -> Option<&[u8]> {
        lines::first(self.head(), b"last-modified")
    }

    /// Surrogate keys (`Cache-Tag`, `Surrogate-Key`).
    pub fn tags(&self) -> impl Iterator<Item = &[u8]> {
        let tags = &self.text[self.request_at() + self.request_len as usize..];
        tags.split(|byte| *byte == b'\n').filter(|tag| !tag.is_empty())
    }

    /// Whether a tag is among its surrogate keys.
    #[must_use]
    pub fn has_tag(&self, tag: &[u8]) -> bool {
        self.tags().any(|own| own == tag)
    }

    /// The same with another request to repeat.
    #[must_use]
    pub fn with_request(self, request: &[u8]) -> Self {
        let tags: Vec<Box<[u8]>> = self.tags().map(Into::into).collect();
        Self::new(Parts {
            key: self.key(),
            hash: self.hash,
            status: self.status,
            head: self.head(),
            body: self.share_body(),
            validity: self.validity,
            vary: self.vary.as_deref().cloned(),
            request,
            tags: &tags,
            route: self.route,
            fetch_ms: self.fetch_ms,
            generation: self.generation,
        })
    }

    /// The memory it takes, the counts of its `Arc` and what the allocator rounds up included; without the index.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let body = self.body.as_ref().map_or(0, |body| BODY_COST_BYTES + body_block_bytes(body));
        let vary = self.vary.as_ref().map_or(0, |vary| allocated_bytes(size_of::<VarySpec>()) + vary.cost_bytes());
        OBJECT_COST_BYTES + allocated_bytes(self.text.len()) + body + vary
    }

    fn request_at(&self) -> usize {
        (self.key_len + self.head_len + self.body_len) as usize
    }
}

/// A body the way it should lie in memory while it is stored: in a block that is no larger than it must be.
#[must_use]
pub fn body_to_store(body: Vec<u8>) -> Bytes {
    // Anew, because the allocator leaves what it makes smaller by less than half where it is, and the cache counts by length.
    if PAGED_BYTES.contains(&body.len()) || allocated_bytes(body.capacity()) > allocated_bytes(body.len()) {
        return copy_to_store(&body);
    }
    body.into()
}

/// As `body_to_store`, of a body that stays somebody else's.
#[must_use]
pub fn copy_to_store(body: &[u8]) -> Bytes {
    let pages = if PAGED_BYTES.contains(&body.len()) { Pages::copy_of(body) } else { None };
    pages.map_or_else(|| Bytes::copy_from_slice(body), Bytes::from_owner)
}

fn body_block_bytes(body: &Bytes) -> usize {
    if is_paged(body) { paged_bytes(body.len()) } else { allocated_bytes(body.len()) }
}

const NO_ETAG: u16 = u16::MAX;
/// The object with the two counts of its `Arc`.
const OBJECT_COST_BYTES: usize = allocated_bytes(size_of::<Object>() + 2 * size_of::<usize>());
/// What points at a body of its own: the `Bytes`, and what it shares with others.
const BODY_COST_BYTES: usize = allocated_bytes(size_of::<Bytes>()) + allocated_bytes(3 * size_of::<usize>());
const _: () = assert!(OBJECT_COST_BYTES <= 128, "the largest part of what an entry costs besides its bytes");

/// The surrogate keys of a response: of `Cache-Tag` by commas, of `Surrogate-Key` by white space.
#[must_use]
pub fn tags(view: FieldsView) -> Vec<Box<[u8]>> {
    let mut tags: Vec<Box<[u8]>> = Vec::new();
    let by_comma = view.all(FieldId::CacheTag).flat_map(|v| v.split(|&b| b == b','));
    let by_space = view.all(FieldId::SurrogateKey).flat_map(|v| v.split(|b| b.is_ascii_whitespace()));
    for tag in by_comma.chain(by_space).map(<[u8]>::trim_ascii).filter(|t| !t.is_empty()) {
        if tags.len() < TAGS_MAX && !tags.iter().any(|t| &**t == tag) {
            tags.push(tag.into());
        }
    }
    tags
}

const _: () = {
    const fn shared_between_shards<T: Send + Sync>() {}
    shared_between_shards::<Object>();
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::testing::{object, response};

    #[test]
    fn surrogate_keys() {
        let both = response(200, "Cache-Tag: a b, c ,,a b\r\nSurrogate-Key: d  e c\r\n");
        let found = tags(both.view());
        let expected: Vec<Box<[u8]>> = [&b"a b"[..], b"c", b"d", b"e"].map(Into::into).to_vec();
        assert_eq!(found, expected);
        let many = format!("Surrogate-Key: {}\r\n", (0..1000).map(|n| format!("{n} ")).collect::<String>());
        assert_eq!(tags(response(200, &many).view()).len(), TAGS_MAX);
    }

    /// Whatever the size of the body, everything is where it was put.
    #[test]
    fn parts_come_out_as_they_went_in() {
        for size in [0, 1, INLINE_BODY_BYTES_MAX, INLINE_BODY_BYTES_MAX + 1, 100_000] {
            let body = "b".repeat(size);
            let fields = "ETag: \"e\"\r\nLast-Modified: l\r\nCache-Tag: one,two\r\n";
            let stored = object("h/key", "A: b\r\n", 200, fields, &body);
            assert_eq!((stored.key(), stored.body()), (&b"h/key"[..], body.as_bytes()));
            assert_eq!(stored.head(), format!("HTTP/1.1 200 X\r\n{fields}").as_bytes());
            assert_eq!(stored.request(), b"GET / HTTP/1.1\r\nA: b\r\n");
            assert_eq!((stored.etag(), stored.last_modified()), (Some(&b"\"e\""[..]), Some(&b"l"[..])));
            assert_eq!(stored.tags().collect::<Vec<_>>(), [b"one", b"two"]);
            assert!(stored.has_tag(b"two") && !stored.has_tag(b"on"));
            assert_eq!(stored.share_body(), body);
        }
        let bare = object("h/", "", 200, "", "");
        assert_eq!((bare.etag(), bare.last_modified(), bare.tags().count()), (None, None, 0));
    }

    #[test]
    fn every_part_costs() {
        let bare = object("h/", "", 200, "", "").cost_bytes();
        assert!(bare >= size_of::<Object>());
        let long = "x".repeat(200);
        for (case, other) in [
            ("key", object(&long, "", 200, "", "")),
            ("fields", object("h/", "", 200, &format!("A: {long}\r\n"), "")),
            ("body", object("h/", "", 200, "", &long)),
            ("request", object("h/", &format!("A: {long}\r\n"), 200, "", "")),
            ("tags", object("h/", "", 200, &format!("Cache-Tag: {long}\r\n"), "")),
            ("vary", object("h/", "", 200, "Vary: a\r\n", "")),
        ] {
            assert!(other.cost_bytes() > bare, "{case}");
        }
    }
}
