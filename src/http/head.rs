//! Parsed heads as positions in the buffer they were read into: parsing copies nothing and, once warm, allocates nothing.
//! Invariant: every `Span` lies inside the buffer that was parsed; whoever moves bytes to the front drops the head first.

use super::fields::FieldId;
use super::framing::BodyLength;

/// A half-open range of bytes in a head's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    pub start: u32,
    pub end: u32,
}

impl Span {
    #[must_use]
    pub fn of(self, buf: &[u8]) -> &[u8] {
        &buf[self.start as usize..self.end as usize]
    }
    #[must_use]
    pub fn len(self) -> usize {
        (self.end - self.start) as usize
    }
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.end == self.start
    }
}

/// One field line. `value` is trimmed of optional white space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Field {
    pub id: FieldId,
    pub name: Span,
    pub value: Span,
}

/// The fields of a head with the bytes they point into.
#[derive(Debug, Clone, Copy)]
pub struct FieldsView<'a> {
    pub buf: &'a [u8],
    pub fields: &'a [Field],
    /// Bits of the known fields that may be there; the others are not, which is what is asked most.
    pub present: u64,
}

/// Nobody has looked: all fields may be there.
pub const ANY_FIELD: u64 = u64::MAX;

impl<'a> FieldsView<'a> {
    /// All fields as (id, name, value), in order.
    pub fn iter(self) -> impl Iterator<Item = (FieldId, &'a [u8], &'a [u8])> {
        self.fields.iter().map(move |f| (f.id, f.name.of(self.buf), f.value.of(self.buf)))
    }
    /// Every value of a known field, in order.
    pub fn all(self, id: FieldId) -> impl Iterator<Item = &'a [u8]> {
        debug_assert_ne!(id, FieldId::Other);
        let fields = if self.may_have(id) { self.fields } else { &[] };
        fields.iter().filter(move |f| f.id == id).map(move |f| f.value.of(self.buf))
    }
    /// The first value of a known field.
    #[must_use]
    pub fn first(self, id: FieldId) -> Option<&'a [u8]> {
        self.all(id).next()
    }
    /// Whether a known field is present.
    #[must_use]
    pub fn has(self, id: FieldId) -> bool {
        self.may_have(id) && self.fields.iter().any(|f| f.id == id)
    }
    fn may_have(self, id: FieldId) -> bool {
        self.present & id.bit() != 0
    }
    /// Every value of a field by its name, whatever its case.
    pub fn all_named(self, name: &'a [u8]) -> impl Iterator<Item = &'a [u8]> {
        let id = FieldId::of(name);
        let fields = if self.may_have(id) { self.fields } else { &[] };
        let is_it =
            move |f: &&Field| f.id == id && (id != FieldId::Other || f.name.of(self.buf).eq_ignore_ascii_case(name));
        fields.iter().filter(is_it).map(move |f| f.value.of(self.buf))
    }
}

/// A request method (RFC 9110 §9). Unknown ones are forwarded, never cached, and invalidate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Delete,
    Options,
    Patch,
    Trace,
    Connect,
    Other,
}

impl Method {
    /// RFC 9110 §9.2.1.
    #[must_use]
    pub fn is_safe(self) -> bool {
        matches!(self, Self::Get | Self::Head | Self::Options | Self::Trace)
    }
    /// RFC 9110 §9.2.2.
    #[must_use]
    pub fn is_idempotent(self) -> bool {
        self.is_safe() || matches!(self, Self::Put | Self::Delete)
    }
}

/// A request head that passed every check of `parse`. Reused from request to request so that `fields` keeps its memory.
#[derive(Debug)]
pub struct RequestHead {
    pub method: Method,
    pub method_span: Span,
    /// Origin-form: the path and, after `?`, the query, exactly as received. For `OPTIONS *` it is `*`; an absolute-form target
    /// is cut to its origin-form part; empty when the absolute form had no path (`encode` then writes `/`).
    pub target: Span,
    /// Host, normalised for key, routing and forwarding alike: lower case, without `:80`, and without a trailing dot.
    /// Empty only in HTTP/1.0 without Host.
    pub host: Vec<u8>,
    /// 0 or 1: HTTP/1.0 or HTTP/1.1.
    pub minor: u8,
    /// Fields in order; names with `_` are already left out.
    pub fields: Vec<Field>,
    /// As `FieldsView::present`.
    pub present: u64,
    /// How long the body is: for requests never `UntilClose`.
    pub body: BodyLength,
    /// Whether the connection may serve another request after this one (RFC 9112 §9.3).
    pub keep_alive: bool,
    /// `Expect: 100-continue` in HTTP/1.1.
    pub expect_continue: bool,
    /// The protocol asked for with `Connection: upgrade` and `Upgrade`, when this request may be tunnelled
    /// (HTTP/1.1, GET, no body, not h2c).
    pub upgrade: Option<Span>,
    /// Bytes of the head, its empty line included.
    pub head_len: usize,
}

impl RequestHead {
    #[must_use]
    pub fn view<'a>(&'a self, buf: &'a [u8]) -> FieldsView<'a> {
        FieldsView { buf, fields: &self.fields, present: self.present }
    }
    #[must_use]
    pub fn new() -> Self {
        Self {
            method: Method::Get,
            method_span: Span::default(),
            target: Span::default(),
            host: Vec::new(),
            minor: 1,
            fields: Vec::new(),
            present: ANY_FIELD,
            body: BodyLength::Empty,
            keep_alive: false,
            expect_continue: false,
            upgrade: None,
            head_len: 0,
        }
    }
}

impl Default for RequestHead {
    fn default() -> Self {
        Self::new()
    }
}

/// A response head that passed every check of `parse`.
#[derive(Debug)]
pub struct ResponseHead {
    /// 100..=599.
    pub status: u16,
    pub reason: Span,
    pub minor: u8,
    pub fields: Vec<Field>,
    /// As `FieldsView::present`.
    pub present: u64,
    pub body: BodyLength,
    /// Whether the upstream keeps the connection open after this response.
    pub keep_alive: bool,
    pub head_len: usize,
}

impl ResponseHead {
    #[must_use]
    pub fn view<'a>(&'a self, buf: &'a [u8]) -> FieldsView<'a> {
        FieldsView { buf, fields: &self.fields, present: self.present }
    }
    #[must_use]
    pub fn new() -> Self {
        Self {
            status: 0,
            reason: Span::default(),
            minor: 1,
            fields: Vec::new(),
            present: ANY_FIELD,
            body: BodyLength::Empty,
            keep_alive: false,
            head_len: 0,
        }
    }
}

impl Default for ResponseHead {
    fn default() -> Self {
        Self::new()
    }
}
