//! Where a message ends (RFC 9112 §6): the one place that reads Content-Length and Transfer-Encoding.

/// The length of a message's body (RFC 9112 §6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyLength {
    /// There is none, by method, status or `Content-Length: 0`.
    Empty,
    /// Exactly so many bytes.
    Known(u64),
    /// `Transfer-Encoding: chunked`.
    Chunked,
    /// A response that ends where the connection does.
    UntilClose,
}
