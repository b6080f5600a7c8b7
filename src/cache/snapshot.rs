//! The file that the cache is saved in: how entries become bytes and bytes entries again. No I/O: whoever reads gives a window of bytes and
//! is told what to do with it.
//!
//! ```text
//!   file:    header | record | record | …
//!   header:  magic 8 | version 4 | seed 4 | lineage 8 | purge_seq 8 | saved_unix_ms 8 | CRC of all that 4
//!   record:  magic 4 | length of the payload 4 | CRC of the payload 4 | CRC of the 12 bytes before 4 | payload
//! ```
//!
//! Numbers are little-endian, so a file is good on every machine; hashes are not in it, since their seed is each process's own. The purge
//! journal is made of the same parts with another magic: it tells which purges the saved entries have not seen.
//!
//! Must hold: damage costs the records it hits and no others. Where the CRC of a record's first part is right its length is believed;
//! else the reader looks for the next magic. All CRCs (CRC-32/ISO-HDLC, crate crc32fast) start from the header's random seed, so that bytes
//! in a body, which clients and origins choose, cannot pass for a record. An entry never gets fresher by being saved.

use std::collections::HashSet;

use super::freshness::{self, Validity};
use super::key;
use super::object::{self, Object, Parts};
use super::vary::VarySpec;
use crate::base::time::Now;

/// Grows with every change of what stands here; a file of another version is not read.
const VERSION: u32 = 1;
const RECORD_MAGIC: [u8; 4] = *b"\xF1pl\xE7";
const RECORD_HEAD_BYTES: usize = 16;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Entries,
    Purges,
}

impl Kind {
    fn magic(self) -> [u8; 8] {
        match self {
            Self::Entries => *b"\x89PLcache",
            Self::Purges => *b"\x89PLpurge",
        }
    }
}

/// The beginning of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// Random, for the CRCs.
    pub seed: u32,
    /// Random; entries and the journal of their purges have the same.
    pub lineage: u64,
    /// The last purge that the entries have seen.
    pub purge_seq: u64,
    /// The wall clock when the entries were taken.
    pub saved_unix_ms: u64,
}

/// Why a file is not read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("it is not such a file, or its beginning is damaged")]
    Foreign,
    #[error("it has format version {0}, and this program reads version {VERSION}")]
    Version(u32),
}

impl Header {
    pub const BYTES: usize = 44;

    pub fn write(&self, kind: Kind, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&kind.magic());
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&self.seed.to_le_bytes());
        for number in [self.lineage, self.purge_seq, self.saved_unix_ms] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let crc = crc(0, &out[start..]);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert_eq!(out.len() - start, Self::BYTES);
    }

    /// # Errors
    /// When the bytes are not the header of such a file.
    pub fn read(kind: Kind, bytes: &[u8]) -> Result<Self, HeaderError> {
        let mut reader = Reader(bytes);
        let magic = reader.take(8).ok_or(HeaderError::Foreign)?;
        let version = reader.u32().filter(|_| magic == kind.magic()).ok_or(HeaderError::Foreign)?;
        // The rest of another version may be anything, so its number is believed unseen.
        if version != VERSION {
            return Err(HeaderError::Version(version));
        }
        let mut parts = || {
            let header = Self {
                seed: reader.u32()?,
                lineage: reader.u64()?,
                purge_seq: reader.u64()?,
                saved_unix_ms: reader.u64()?,
            };
            (reader.u32()? == crc(0, &bytes[..Self::BYTES - 4])).then_some(header)
        };
        parts().ok_or(HeaderError::Foreign)
    }
}

/// What the next bytes of a file are.
#[derive(Debug, PartialEq, Eq)]
pub enum Step<'a> {
    /// A whole record, and how many bytes it took.
    Record { payload: &'a [u8], used: usize },
    /// So many bytes must be seen at once to go on.
    More(usize),
    /// So many bytes are of no use.
    Damaged(usize),
    /// The file ends within a record.
    Cut,
    /// There is nothing left.
    End,
}

/// Reads the first record of `window`; `is_last`: the file ends with it.
#[must_use]
pub fn step(window: &[u8], seed: u32, is_last: bool) -> Step<'_> {
    if window.len() < RECORD_HEAD_BYTES {
        return match (window.is_empty(), is_last) {
            (true, true) => Step::End,
            (false, true) => Step::Cut,
            (_, false) => Step::More(RECORD_HEAD_BYTES),
        };
    }
    let mut head = Reader(window);
    let parts = (head.take(4), head.u32(), head.u32(), head.u32());
    let (Some(magic), Some(len), Some(payload_crc), Some(head_crc)) = parts else { return Step::Cut };
    if magic != RECORD_MAGIC || head_crc != crc(seed, &window[..RECORD_HEAD_BYTES - 4]) {
        return Step::Damaged(to_next_record(window, is_last));
    }
    let used = RECORD_HEAD_BYTES.saturating_add(len as usize);
    match window.get(RECORD_HEAD_BYTES..used) {
        Some(payload) if crc(seed, payload) == payload_crc => Step::Record { payload, used },
        Some(_) => Step::Damaged(used),
        None if is_last => Step::Cut,
        None => Step::More(used),
    }
}

/// How many bytes to leave out until a record may begin; at least one.
fn to_next_record(window: &[u8], is_last: bool) -> usize {
    match memchr::memmem::find(&window[1..], &RECORD_MAGIC) {
        Some(at) => at + 1,
        None if is_last => window.len(),
        // A magic may begin in the last bytes.
        None => window.len() - (RECORD_MAGIC.len() - 1),
    }
}

/// Appends a record; false, and nothing, when the payload has 4 GiB or more.
fn record(out: &mut Vec<u8>, seed: u32, payload: impl FnOnce(&mut Vec<u8>)) -> bool {
    let start = out.len();
    out.extend_from_slice(&[0; RECORD_HEAD_BYTES]);
    payload(out);
    let (head, payload) = out[start..].split_at_mut(RECORD_HEAD_BYTES);
    let Ok(len) = u32::try_from(payload.len()) else {
        out.truncate(start);
        return false;
    };
    head[..4].copy_from_slice(&RECORD_MAGIC);
    head[4..8].copy_from_slice(&len.to_le_bytes());
    head[8..12].copy_from_slice(&crc(seed, payload).to_le_bytes());
    let head_crc = crc(seed, &head[..12]);
    head[12..].copy_from_slice(&head_crc.to_le_bytes());
    true
}

fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// A saved response; the bytes lie in the payload.
#[derive(Debug)]
pub struct Entry<'a> {
    pub key: &'a [u8],
    pub tags: Vec<Box<[u8]>>,
    /// How often it was asked for lately.
    pub hits: u8,
    status: u16,
    head: &'a [u8],
    body: &'a [u8],
    request: &'a [u8],
    vary: Option<VarySpec>,
    received_unix_ms: u64,
    /// As it was; `received_mono_ms` means nothing in another process.
    validity: Validity,
    fetch_ms: u32,
}

const MUST_REVALIDATE: u8 = 1;
const NO_CACHE: u8 = 2;
const VARIES: u8 = 4;

/// Appends a stored response as a record; false, and nothing, when it has 4 GiB or more.
pub fn write_entry(out: &mut Vec<u8>, seed: u32, object: &Object, hits: u8, now: Now) -> bool {
    let validity = &object.validity;
    // Counted on the clock that does not jump; what the wall clock did since the response came does not matter.
    let resident_ms = now.mono_ms.saturating_sub(validity.received_mono_ms);
    record(out, seed, |out| {
        let flag = |set: bool, bit: u8| if set { bit } else { 0 };
        out.push(
            flag(validity.must_revalidate, MUST_REVALIDATE)
                | flag(validity.no_cache, NO_CACHE)
                | flag(object.vary.is_some(), VARIES),
        );
        out.push(hits);
        out.extend_from_slice(&object.status.to_le_bytes());
        out.extend_from_slice(&now.unix_ms.saturating_sub(resident_ms).to_le_bytes());
        let times = [validity.initial_age_secs, validity.lifetime_secs, validity.swr_secs, validity.sie_secs];
        for number in times.into_iter().chain([object.fetch_ms]) {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put(out, object.key());
        put(out, object.head());
        put(out, object.request());
        put_len(out, object.tags().count());
        object.tags().for_each(|tag| put(out, tag));
        if let Some(vary) = &object.vary {
            vary.write(out);
        }
        out.extend_from_slice(object.body());
    })
}

/// Reads the payload of a record that `write_entry` wrote.
#[must_use]
pub fn read_entry(payload: &[u8]) -> Option<Entry<'_>> {
    let mut reader = Reader(payload);
    let (flags, hits) = (reader.u8()?, reader.u8()?);
    let status = reader.u16()?;
    let received_unix_ms = reader.u64()?;
    let validity = Validity {
        received_mono_ms: 0,
        initial_age_secs: reader.u32()?,
        lifetime_secs: reader.u32()?,
        swr_secs: reader.u32()?,
        sie_secs: reader.u32()?,
        must_revalidate: flags & MUST_REVALIDATE != 0,
        no_cache: flags & NO_CACHE != 0,
    };
    let fetch_ms = reader.u32()?;
    let (key, head, request) = (reader.bytes()?, reader.bytes()?, reader.bytes()?);
    let tags = (0..reader.u32()?).map(|_| reader.bytes().map(Into::into)).collect::<Option<_>>()?;
    let vary = if flags & VARIES != 0 { Some(VarySpec::read(&mut reader)?) } else { None };
    Some(Entry { key, tags, hits, status, head, body: reader.0, request, vary, received_unix_ms, validity, fetch_ms })
}

impl Entry<'_> {
    #[must_use]
    pub fn body_bytes(&self) -> usize {
        self.body.len()
    }

    /// The host and the target of the key.
    #[must_use]
    pub fn host_and_target(&self) -> (&[u8], &[u8]) {
        key::host_and_target(self.key)
    }

    /// The object as it is now; `None` when it could neither be served any more nor validated.
    #[must_use]
    pub fn into_object(self, header: &Header, now: Now, hash: u64, route: u16, generation: u64) -> Option<Object> {
        let validity = aged(self.validity, self.received_unix_ms, header.saved_unix_ms, now);
        let object = Object::new(Parts {
            key: self.key,
            hash,
            status: self.status,
            head: self.head,
            body: object::copy_to_store(self.body),
            validity,
            vary: self.vary,
            request: self.request,
            tags: &self.tags,
            route,
            fetch_ms: self.fetch_ms,
            generation,
        });
        let over_secs = validity.swr_secs.max(validity.sie_secs).max(freshness::DISCONNECTED_SECS_MAX);
        let is_servable =
            freshness::age_secs(&validity, now.mono_ms) < validity.lifetime_secs.saturating_add(over_secs);
        (is_servable || object.etag().is_some() || object.last_modified().is_some()).then_some(object)
    }
}

/// Puts the moment of receipt on this process's monotonic clock, by the wall clock.
fn aged(validity: Validity, received_unix_ms: u64, saved_unix_ms: u64, now: Now) -> Validity {
    // The wall clock went backwards: nobody knows how long it has been. Older than every limit, it is only good for validation.
    if now.unix_ms < saved_unix_ms {
        return Validity { received_mono_ms: now.mono_ms, initial_age_secs: u32::MAX, ..validity };
    }
    let resident_ms = now.unix_ms.saturating_sub(received_unix_ms);
    // What was received before this clock began is older on arrival instead. 0 would mean "never" to those who show it.
    let received_mono_ms = now.mono_ms.saturating_sub(resident_ms).max(1);
    let before_ms = resident_ms.saturating_sub(now.mono_ms.saturating_sub(received_mono_ms));
    let before_secs = u32::try_from(before_ms.div_ceil(1000)).unwrap_or(u32::MAX);
    let initial_age_secs = validity.initial_age_secs.saturating_add(before_secs);
    Validity { received_mono_ms, initial_age_secs, ..validity }
}

/// What keeping an entry saves for each byte it takes, by what is known of it: popularity times the cost of a miss.
#[must_use]
pub fn worth(object: &Object, hits: u8) -> f32 {
    let saved = (f32::from(hits) + 1.0) * (object.fetch_ms as f32 + 1.0);
    saved / object.cost_bytes().max(1) as f32
}

/// Which entries a purge means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Purge {
    /// Host and target, all variants and credentials.
    Url(Vec<u8>),
    /// Host and the beginning of the target, or the beginning of a path on every host.
    Prefix(Vec<u8>),
    Tag(Vec<u8>),
}

/// Appends a purge as a record.
pub fn write_purge(out: &mut Vec<u8>, seed: u32, purge_seq: u64, purge: &Purge) {
    let (kind, text) = match purge {
        Purge::Url(text) => (0, text),
        Purge::Prefix(text) => (1, text),
        Purge::Tag(text) => (2, text),
    };
    record(out, seed, |out| {
        out.extend_from_slice(&purge_seq.to_le_bytes());
        out.push(kind);
        out.extend_from_slice(text);
    });
}

/// Reads the payload of a record that `write_purge` wrote.
#[must_use]
pub fn read_purge(payload: &[u8]) -> Option<(u64, Purge)> {
    let mut reader = Reader(payload);
    let (purge_seq, kind) = (reader.u64()?, reader.u8()?);
    let text = reader.0.to_vec();
    let purge = match kind {
        0 => Purge::Url(text),
        1 => Purge::Prefix(text),
        2 => Purge::Tag(text),
        _ => return None,
    };
    Some((purge_seq, purge))
}

/// Many purges, to ask about many entries.
#[derive(Debug, Default)]
pub struct Purges {
    urls: HashSet<Vec<u8>>,
    prefixes: HashSet<Vec<u8>>,
    tags: HashSet<Vec<u8>>,
}

impl Purges {
    pub fn add(&mut self, purge: Purge) {
        match purge {
            Purge::Url(url) => self.urls.insert(url),
            Purge::Prefix(prefix) => self.prefixes.insert(prefix),
            Purge::Tag(tag) => self.tags.insert(tag),
        };
    }

    /// Whether one of them means this entry.
    #[must_use]
    pub fn cover(&self, entry: &Entry<'_>) -> bool {
        let url = key::url_part(entry.key);
        self.urls.contains(url)
            || entry.tags.iter().any(|tag| self.tags.contains(&**tag))
            || self.prefixes.iter().any(|prefix| key::begins_with(url, prefix))
    }
}

/// Appends bytes after their length.
pub(super) fn put(out: &mut Vec<u8>, bytes: &[u8]) {
    put_len(out, bytes.len());
    out.extend_from_slice(bytes);
}

/// What does not fit makes the whole record too long, which is noticed there.
pub(super) fn put_len(out: &mut Vec<u8>, len: usize) {
    out.extend_from_slice(&(len as u32).to_le_bytes());
}

/// Takes numbers and bytes from the front; `None` when there are not enough.
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let (front, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(front)
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.try_into().ok()
    }

    pub(super) fn u8(&mut self) -> Option<u8> {
        self.array().map(u8::from_le_bytes)
    }

    fn u16(&mut self) -> Option<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(super) fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// What `put` wrote.
    pub(super) fn bytes(&mut self) -> Option<&'a [u8]> {
        let len = self.u32()?;
        self.take(len as usize)
    }
}

#[cfg(test)]
mod tests;
