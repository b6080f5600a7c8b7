//! A conversation as a list of operations, each a letter and its operand, divided by bytes of value 255 (which no head may hold):
//! what two clients send and when they leave, and how the origin answers what reaches it.

/// The route with an entry for each value of the credentials.
pub const PRIVATE: &str = "private";
/// The field that says which URL an answer of the origin was made for. Nobody but the origin may send it.
pub const BOUND_FIELD: &str = "x-for";

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// The client sends bytes.
    Send(Vec<u8>),
    /// The client waits for what it has asked for.
    Settle,
    /// The client sends no more.
    HalfClose,
    /// The client ends in order and comes back.
    Leave,
    /// The client resets its connection and comes back.
    Reset,
    /// From here on it is the other client.
    Switch,
    /// The origin's answer to one of the next requests.
    Answer(Answer),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub what: What,
    /// Bytes in one write; 0: all of them.
    pub piece_bytes: usize,
    /// Before the body of the request is here.
    pub early: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A response that says for which URL it was made.
    Bound(Kind),
    /// Bytes, and then the end.
    Raw(Vec<u8>, End),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Keep,
    Fin,
    Rst,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Cacheable,
    NoStore,
    Chunked,
    UntilClose,
    NotModified,
    NotFound,
    NoContent,
    EarlyHints,
    ShortLength,
    ShortChunks,
    ExtraBytes,
    ResetInBody,
    Nothing,
    Vary,
    Validate,
    ServerError,
}

impl Kind {
    const ALL: [Self; 16] = [
        Self::Cacheable,
        Self::NoStore,
        Self::Chunked,
        Self::UntilClose,
        Self::NotModified,
        Self::NotFound,
        Self::NoContent,
        Self::EarlyHints,
        Self::ShortLength,
        Self::ShortChunks,
        Self::ExtraBytes,
        Self::ResetInBody,
        Self::Nothing,
        Self::Vary,
        Self::Validate,
        Self::ServerError,
    ];

    /// Whether the origin does nothing that could cost a client its answer.
    #[must_use]
    pub fn is_calm(self) -> bool {
        use Kind::{ExtraBytes, Nothing, ResetInBody, ShortChunks, ShortLength, UntilClose};
        !matches!(self, ShortLength | ShortChunks | ExtraBytes | ResetInBody | Nothing | UntilClose)
    }

    /// The bytes of the answer to a request, and what becomes of the connection.
    #[must_use]
    pub fn answer(self, method: &[u8], url: &str) -> (Vec<u8>, End) {
        let body = bound_body(url);
        let len = body.len();
        let head = |status: &str, fields: &str| format!("HTTP/1.1 {status}\r\nX-For: {url}\r\n{fields}\r\n");
        let length = |fields: &str| head("200 OK", &format!("Content-Length: {len}\r\n{fields}"));
        let fresh = "Cache-Control: max-age=60\r\n";
        let chunks = |last: &str| {
            let (front, back) = body.split_at(len / 2);
            format!("{:x}\r\n{front}\r\n{:X};a=\"b\"\r\n{back}\r\n{last}", front.len(), back.len())
        };
        let coded = head("200 OK", &format!("Transfer-Encoding: chunked\r\n{fresh}"));
        let bodiless = method == b"HEAD";
        let with = |head: String, body: &str| if bodiless { head } else { head + body };
        let (text, end) = match self {
            Self::Cacheable => (with(length(fresh), &body), End::Keep),
            Self::NoStore => (with(length("Cache-Control: no-store\r\n"), &body), End::Keep),
            Self::Chunked => (with(coded, &chunks("0\r\nX-Trailer: 1\r\n\r\n")), End::Keep),
            Self::UntilClose => (with(head("200 OK", fresh), &body), End::Fin),
            Self::NotModified => (head("304 Not Modified", &format!("ETag: \"{url}\"\r\n{fresh}")), End::Keep),
            Self::NotFound => (with(head("404 Not Found", &format!("Content-Length: {len}\r\n")), &body), End::Keep),
            Self::NoContent => (head("204 No Content", ""), End::Keep),
            Self::EarlyHints => {
                let hints = "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n".to_owned();
                (hints + &with(length(fresh), &body), End::Keep)
            }
            Self::ShortLength => (with(length(fresh), &body[..len / 2]), End::Fin),
            Self::ShortChunks => (with(coded, &chunks("")), End::Fin),
            Self::ExtraBytes => {
                (with(length(fresh), &body) + "HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n!", End::Keep)
            }
            Self::ResetInBody => (with(length(fresh), &body[..len / 2]), End::Rst),
            Self::Nothing => (String::new(), End::Fin),
            Self::Vary => (with(length(&format!("Vary: X-V\r\n{fresh}")), &body), End::Keep),
            Self::Validate => {
                let fields = format!("ETag: \"{url}\"\r\nCache-Control: max-age=0, stale-while-revalidate=9\r\n");
                (with(length(&fields), &body), End::Keep)
            }
            Self::ServerError => {
                (with(head("500 Internal Server Error", &format!("Content-Length: {len}\r\n")), &body), End::Keep)
            }
        };
        (text.into_bytes(), end)
    }
}

/// What the origin has at a URL (host and target); tells URLs apart by length as well.
#[must_use]
pub fn bound_body(url: &str) -> String {
    format!("[{url}]").repeat(1 + url.len() % 5)
}

/// The operations of an input; what is none is left out. `None` when it forges what only the origin may say.
#[must_use]
pub fn ops(data: &[u8]) -> Option<Vec<Op>> {
    let forged = data.windows(BOUND_FIELD.len()).any(|w| w.eq_ignore_ascii_case(BOUND_FIELD.as_bytes()));
    (!forged).then(|| data.split(|&b| b == 255).filter_map(op).take(64).collect())
}

fn op(data: &[u8]) -> Option<Op> {
    let (&letter, operand) = data.split_first()?;
    let path = || operand.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'/').then(|| text(operand));
    Some(match letter {
        b'C' => Op::Send(operand.to_vec()),
        b'G' => Op::Send(format!("GET /{} HTTP/1.1\r\nHost: h\r\n\r\n", path()?).into()),
        b'D' => Op::Send(format!("HEAD /{} HTTP/1.1\r\nHost: h\r\n\r\n", path()?).into()),
        b'P' => {
            let (path, len) = (path()?, operand.len());
            Op::Send(format!("POST /{path} HTTP/1.1\r\nHost: h\r\nContent-Length: {len}\r\n\r\n{path}").into())
        }
        b'K' => {
            let fields = "Host: h\r\nTransfer-Encoding: chunked";
            Op::Send(format!("POST /{0} HTTP/1.1\r\n{fields}\r\n\r\n4\r\nbody\r\n0\r\n\r\n", path()?).into())
        }
        b'S' => Op::Settle,
        b'H' => Op::HalfClose,
        b'X' => Op::Leave,
        b'R' => Op::Reset,
        b'N' => Op::Switch,
        b'O' => {
            let kind = Kind::ALL[usize::from(*operand.first()? & 15)];
            let piece_bytes = usize::from(operand.get(1).copied().unwrap_or(0));
            Op::Answer(Answer { what: What::Bound(kind), piece_bytes, early: operand[0] & 128 != 0 })
        }
        b'o' | b'r' => {
            let end = if letter == b'o' { End::Fin } else { End::Rst };
            Op::Answer(Answer { what: What::Raw(operand.to_vec(), end), piece_bytes: 0, early: false })
        }
        _ => return None,
    })
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
