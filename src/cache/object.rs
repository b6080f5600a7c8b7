//! A stored response: everything that serving and refreshing it needs, computed once.
//! Must hold: it never changes. A refreshed response is a new object that shares the old body.

use bytes::Bytes;

use super::freshness::Validity;
use super::vary::VarySpec;
use crate::http::fields::FieldId;
use crate::http::head::FieldsView;

/// Surrogate keys kept of one response; the rest is ignored, so that a response cannot fill the memory with them.
const TAGS_MAX: usize = 64;

/// A stored response, shared by shards behind an `Arc`.
#[derive(Debug)]
pub struct Object {
    /// As `key::write` makes it.
    pub key: Box<[u8]>,
    /// Of `key`, as `key::hash` makes it.
    pub hash: u64,
    pub status: u16,
    /// As `http::encode::stored_head` writes it: status line and field lines, no final empty line.
    pub head: Box<[u8]>,
    pub body: Bytes,
    pub validity: Validity,
    /// `None`: it suits every request for the key.
    pub vary: Option<VarySpec>,
    pub etag: Option<Box<[u8]>>,
    pub last_modified: Option<Box<[u8]>>,
    /// The request head as sent upstream, to send again when refreshing.
    pub request: Box<[u8]>,
    /// Surrogate keys (`Cache-Tag`, `Surrogate-Key`).
    pub tags: Vec<Box<[u8]>>,
    pub route: u16,
    /// How long the fetch took.
    pub fetch_ms: u32,
    /// A number that no other object of this process has.
    pub generation: u64,
}

impl Object {
    /// The memory it takes, without the index.
    #[must_use]
    pub fn cost_bytes(&self) -> usize {
        let tags: usize = self.tags.iter().map(|t| t.len() + size_of::<Box<[u8]>>()).sum();
        let validators = self.etag.as_ref().map_or(0, |e| e.len()) + self.last_modified.as_ref().map_or(0, |l| l.len());
        let vary = self.vary.as_ref().map_or(0, VarySpec::cost_bytes);
        size_of::<Self>()
            + self.key.len()
            + self.head.len()
            + self.body.len()
            + self.request.len()
            + tags
            + validators
            + vary
    }

    /// Whether a tag is among its surrogate keys.
    #[must_use]
    pub fn has_tag(&self, tag: &[u8]) -> bool {
        self.tags.iter().any(|t| &**t == tag)
    }
}

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

    #[test]
    fn every_part_costs() {
        let bare = object("h/", "", 200, "", "").cost_bytes();
        assert!(bare >= size_of::<Object>());
        for (case, other) in [
            ("key", object("h/longer", "", 200, "", "")),
            ("fields", object("h/", "", 200, "A: b\r\n", "")),
            ("body", object("h/", "", 200, "", "body")),
            ("request", object("h/", "A: b\r\n", 200, "", "")),
        ] {
            assert!(other.cost_bytes() > bare, "{case}");
        }
    }
}
