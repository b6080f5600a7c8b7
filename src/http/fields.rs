//! Field names the gateway knows, found once while parsing so that nothing later compares strings.

/// A known field name; `Other` for everything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FieldId {
    Accept,
    AcceptEncoding,
    AcceptLanguage,
    Age,
    Authorization,
    CacheControl,
    CacheStatus,
    CacheTag,
    CdnCacheControl,
    PilotlightCacheControl,
    CdnLoop,
    Connection,
    ContentEncoding,
    ContentLength,
    ContentLocation,
    ContentRange,
    ContentType,
    Cookie,
    Date,
    Etag,
    Expect,
    Expires,
    Forwarded,
    Host,
    Http2Settings,
    IfMatch,
    IfModifiedSince,
    IfNoneMatch,
    IfRange,
    IfUnmodifiedSince,
    KeepAlive,
    LastModified,
    Location,
    MaxForwards,
    Origin,
    Pragma,
    Proxy,
    ProxyAuthenticate,
    ProxyAuthenticationInfo,
    ProxyAuthorization,
    ProxyConnection,
    Range,
    RemoteUser,
    Server,
    SetCookie,
    SurrogateKey,
    Te,
    Traceparent,
    Trailer,
    TransferEncoding,
    Upgrade,
    Vary,
    Via,
    Warning,
    XApiKey,
    XForwardedFor,
    XForwardedHost,
    XForwardedProto,
    XHttpMethodOverride,
    XOriginalUrl,
    XRealIp,
    XRequestId,
    XRewriteUrl,
    Other,
}

impl FieldId {
    /// The known field of this name, whatever its case. `name` is a token, or at least made of bytes of field values: of these, only
    /// letters change with the bit that tells their case.
    #[must_use]
    #[inline]
    pub fn of(name: &[u8]) -> Self {
        let [first, .., last] = *name else { return Self::Other };
        let (known, id) = SLOTS[slot(name.len(), first, last, MULTIPLIER)];
        if same_but_for_case(name, known) { id } else { Self::Other }
    }

    /// This field's place in a set.
    #[must_use]
    pub const fn bit(self) -> u64 {
        1 << self as u8
    }
}

const _: () = assert!(FieldId::Other as u8 == 63, "a set of fields is a u64");

const KNOWN: [(&[u8], FieldId); FieldId::Other as usize] = [
    (b"te", FieldId::Te),
    (b"age", FieldId::Age),
    (b"via", FieldId::Via),
    (b"date", FieldId::Date),
    (b"etag", FieldId::Etag),
    (b"host", FieldId::Host),
    (b"vary", FieldId::Vary),
    (b"proxy", FieldId::Proxy),
    (b"range", FieldId::Range),
    (b"accept", FieldId::Accept),
    (b"cookie", FieldId::Cookie),
    (b"expect", FieldId::Expect),
    (b"origin", FieldId::Origin),
    (b"pragma", FieldId::Pragma),
    (b"server", FieldId::Server),
    (b"expires", FieldId::Expires),
    (b"trailer", FieldId::Trailer),
    (b"upgrade", FieldId::Upgrade),
    (b"warning", FieldId::Warning),
    (b"cdn-loop", FieldId::CdnLoop),
    (b"if-match", FieldId::IfMatch),
    (b"if-range", FieldId::IfRange),
    (b"location", FieldId::Location),
    (b"cache-tag", FieldId::CacheTag),
    (b"forwarded", FieldId::Forwarded),
    (b"x-api-key", FieldId::XApiKey),
    (b"x-real-ip", FieldId::XRealIp),
    (b"connection", FieldId::Connection),
    (b"keep-alive", FieldId::KeepAlive),
    (b"set-cookie", FieldId::SetCookie),
    (b"remote-user", FieldId::RemoteUser),
    (b"traceparent", FieldId::Traceparent),
    (b"cache-status", FieldId::CacheStatus),
    (b"content-type", FieldId::ContentType),
    (b"max-forwards", FieldId::MaxForwards),
    (b"x-request-id", FieldId::XRequestId),
    (b"authorization", FieldId::Authorization),
    (b"cache-control", FieldId::CacheControl),
    (b"content-range", FieldId::ContentRange),
    (b"if-none-match", FieldId::IfNoneMatch),
    (b"last-modified", FieldId::LastModified),
    (b"surrogate-key", FieldId::SurrogateKey),
    (b"x-rewrite-url", FieldId::XRewriteUrl),
    (b"content-length", FieldId::ContentLength),
    (b"http2-settings", FieldId::Http2Settings),
    (b"x-original-url", FieldId::XOriginalUrl),
    (b"accept-encoding", FieldId::AcceptEncoding),
    (b"accept-language", FieldId::AcceptLanguage),
    (b"x-forwarded-for", FieldId::XForwardedFor),
    (b"content-encoding", FieldId::ContentEncoding),
    (b"content-location", FieldId::ContentLocation),
    (b"proxy-connection", FieldId::ProxyConnection),
    (b"x-forwarded-host", FieldId::XForwardedHost),
    (b"cdn-cache-control", FieldId::CdnCacheControl),
    (b"if-modified-since", FieldId::IfModifiedSince),
    (b"transfer-encoding", FieldId::TransferEncoding),
    (b"x-forwarded-proto", FieldId::XForwardedProto),
    (b"proxy-authenticate", FieldId::ProxyAuthenticate),
    (b"if-unmodified-since", FieldId::IfUnmodifiedSince),
    (b"proxy-authorization", FieldId::ProxyAuthorization),
    (b"x-http-method-override", FieldId::XHttpMethodOverride),
    (b"pilotlight-cache-control", FieldId::PilotlightCacheControl),
    (b"proxy-authentication-info", FieldId::ProxyAuthenticationInfo),
];

/// Where a name can stand: a perfect hash over its length and its ends, which tell all known names apart, so that one comparison
/// decides. The multiplier is found by trying, when this is compiled.
static SLOTS: [(&[u8], FieldId); SLOTS_LEN] = slots(MULTIPLIER);
const SLOTS_LEN: usize = 512;
const MULTIPLIER: u32 = multiplier();

const fn slot(len: usize, first: u8, last: u8, multiplier: u32) -> usize {
    // Names differ from all known ones where the truncated part of their length is not 0, and the comparison will tell.
    let mixed = (len as u32 & 0xff) | (((first | 0x20) as u32) << 8) | (((last | 0x20) as u32) << 16);
    (mixed.wrapping_mul(multiplier) >> 23) as usize
}

const fn slots(multiplier: u32) -> [(&'static [u8], FieldId); SLOTS_LEN] {
    let mut slots: [(&[u8], FieldId); SLOTS_LEN] = [(b"", FieldId::Other); SLOTS_LEN];
    let mut at = 0;
    while at < KNOWN.len() {
        let name = KNOWN[at].0;
        slots[slot(name.len(), name[0], name[name.len() - 1], multiplier)] = KNOWN[at];
        at += 1;
    }
    slots
}

const fn multiplier() -> u32 {
    let mut multiplier = 0x9E37_79B1_u32;
    loop {
        let (mut taken, mut at) = ([false; SLOTS_LEN], 0);
        while at < KNOWN.len() {
            let name = KNOWN[at].0;
            let slot = slot(name.len(), name[0], name[name.len() - 1], multiplier);
            if taken[slot] {
                break;
            }
            taken[slot] = true;
            at += 1;
        }
        if at == KNOWN.len() {
            return multiplier;
        }
        multiplier = multiplier.wrapping_mul(0x0019_660D).wrapping_add(0x3C6E_F35E) | 1;
    }
}

/// Eight bytes at a time; the last eight may overlap those before.
#[inline]
fn same_but_for_case(name: &[u8], known: &[u8]) -> bool {
    const CASE: u64 = 0x2020_2020_2020_2020;
    if name.len() != known.len() {
        return false;
    }
    let differ = |a: &[u8; 8], b: &[u8; 8]| (u64::from_le_bytes(*a) | CASE) ^ u64::from_le_bytes(*b);
    match (name.last_chunk(), known.last_chunk()) {
        (Some(name_end), Some(known_end)) => {
            let chunks = name.as_chunks().0.iter().zip(known.as_chunks().0);
            chunks.fold(differ(name_end, known_end), |all, (a, b)| all | differ(a, b)) == 0
        }
        _ => name.iter().zip(known).fold(0, |all, (a, b)| all | ((a | 0x20) ^ b)) == 0,
    }
}

/// Whether a field speaks to the next hop only, and so is neither forwarded nor stored, Connection or no Connection.
#[must_use]
pub fn is_hop_by_hop(id: FieldId) -> bool {
    // RFC 9110 §7.6.1: the fixed list. Proxy and HTTP2-Settings are ours: httpoxy and h2c smuggling.
    matches!(
        id,
        FieldId::Connection
            | FieldId::Http2Settings
            | FieldId::KeepAlive
            | FieldId::Proxy
            | FieldId::ProxyAuthenticate
            | FieldId::ProxyAuthenticationInfo
            | FieldId::ProxyAuthorization
            | FieldId::ProxyConnection
            | FieldId::Te
            | FieldId::Trailer
            | FieldId::TransferEncoding
            | FieldId::Upgrade
    )
}

/// Whether a field keeps its place although Connection names it: fields that say who may see, store or trust a message. A peer
/// that could have them removed could turn a private response into a shared one (RFC 9110 §7.6.1 forbids to name them).
#[must_use]
pub fn survives_connection(id: FieldId, name: &[u8]) -> bool {
    matches!(
        id,
        FieldId::Age
            | FieldId::Authorization
            | FieldId::CacheControl
            | FieldId::CdnCacheControl
            | FieldId::CdnLoop
            | FieldId::Cookie
            | FieldId::Date
            | FieldId::Expires
            | FieldId::Forwarded
            | FieldId::PilotlightCacheControl
            | FieldId::Pragma
            | FieldId::SetCookie
            | FieldId::Vary
            | FieldId::Via
            | FieldId::XApiKey
    ) || is_forwarded_by(name)
}

/// `X-Forwarded-` and whatever follows: what a proxy in front says about its own client.
#[must_use]
pub fn is_forwarded_by(name: &[u8]) -> bool {
    name.get(..12).is_some_and(|start| start.eq_ignore_ascii_case(b"x-forwarded-"))
}

/// The elements of a comma-separated list, trimmed, empty ones left out (RFC 9110 §5.6.1).
pub fn elements(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&b| b == b',').map(trim_ows).filter(|e| !e.is_empty())
}

/// A value without the optional white space (SP and HTAB only) around it.
#[must_use]
pub fn trim_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A byte of a token (RFC 9110 §5.6.2).
#[must_use]
pub fn is_tchar(b: u8) -> bool {
    TCHAR[b as usize]
}

/// A byte of a field value: HTAB, SP, visible ASCII or obs-text (RFC 9110 §5.5). No CTL, no DEL.
#[must_use]
pub fn is_field_byte(b: u8) -> bool {
    b == b'\t' || (b >= b' ' && b != 0x7f)
}

static TCHAR: [bool; 256] = {
    let mut table = [false; 256];
    let mut b = 0;
    while b < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "b < 256")]
        let c = b as u8;
        table[b] = c.is_ascii_alphanumeric()
            || matches!(
                c,
                b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.' | b'^' | b'_' | b'`' | b'|' | b'~'
            );
        b += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_names_are_found_whatever_their_case() {
        const ROWS: &[(&str, FieldId)] = &[
            ("accept", FieldId::Accept),
            ("accept-encoding", FieldId::AcceptEncoding),
            ("accept-language", FieldId::AcceptLanguage),
            ("age", FieldId::Age),
            ("authorization", FieldId::Authorization),
            ("cache-control", FieldId::CacheControl),
            ("cache-status", FieldId::CacheStatus),
            ("cache-tag", FieldId::CacheTag),
            ("cdn-cache-control", FieldId::CdnCacheControl),
            ("pilotlight-cache-control", FieldId::PilotlightCacheControl),
            ("cdn-loop", FieldId::CdnLoop),
            ("connection", FieldId::Connection),
            ("content-encoding", FieldId::ContentEncoding),
            ("content-length", FieldId::ContentLength),
            ("content-location", FieldId::ContentLocation),
            ("content-range", FieldId::ContentRange),
            ("content-type", FieldId::ContentType),
            ("cookie", FieldId::Cookie),
            ("date", FieldId::Date),
            ("etag", FieldId::Etag),
            ("expect", FieldId::Expect),
            ("expires", FieldId::Expires),
            ("forwarded", FieldId::Forwarded),
            ("host", FieldId::Host),
            ("http2-settings", FieldId::Http2Settings),
            ("if-match", FieldId::IfMatch),
            ("if-modified-since", FieldId::IfModifiedSince),
            ("if-none-match", FieldId::IfNoneMatch),
            ("if-range", FieldId::IfRange),
            ("if-unmodified-since", FieldId::IfUnmodifiedSince),
            ("keep-alive", FieldId::KeepAlive),
            ("last-modified", FieldId::LastModified),
            ("location", FieldId::Location),
            ("max-forwards", FieldId::MaxForwards),
            ("origin", FieldId::Origin),
            ("pragma", FieldId::Pragma),
            ("proxy", FieldId::Proxy),
            ("proxy-authenticate", FieldId::ProxyAuthenticate),
            ("proxy-authentication-info", FieldId::ProxyAuthenticationInfo),
            ("proxy-authorization", FieldId::ProxyAuthorization),
            ("proxy-connection", FieldId::ProxyConnection),
            ("range", FieldId::Range),
            ("remote-user", FieldId::RemoteUser),
            ("server", FieldId::Server),
            ("set-cookie", FieldId::SetCookie),
            ("surrogate-key", FieldId::SurrogateKey),
            ("te", FieldId::Te),
            ("traceparent", FieldId::Traceparent),
            ("trailer", FieldId::Trailer),
            ("transfer-encoding", FieldId::TransferEncoding),
            ("upgrade", FieldId::Upgrade),
            ("vary", FieldId::Vary),
            ("via", FieldId::Via),
            ("warning", FieldId::Warning),
            ("x-api-key", FieldId::XApiKey),
            ("x-forwarded-for", FieldId::XForwardedFor),
            ("x-forwarded-host", FieldId::XForwardedHost),
            ("x-forwarded-proto", FieldId::XForwardedProto),
            ("x-http-method-override", FieldId::XHttpMethodOverride),
            ("x-original-url", FieldId::XOriginalUrl),
            ("x-real-ip", FieldId::XRealIp),
            ("x-request-id", FieldId::XRequestId),
            ("x-rewrite-url", FieldId::XRewriteUrl),
        ];
        assert_eq!(ROWS.len(), FieldId::Other as usize, "one row for each known field");
        for &(name, id) in ROWS {
            assert_eq!(FieldId::of(name.as_bytes()), id, "{name}");
            assert_eq!(FieldId::of(name.to_ascii_uppercase().as_bytes()), id, "{name} in upper case");
            assert_eq!(FieldId::of(&name.as_bytes()[1..]), FieldId::Other, "{name} less a byte");
            let altered = format!("{}~", &name[..name.len() - 1]);
            assert_eq!(FieldId::of(altered.as_bytes()), FieldId::Other, "{altered}");
        }
        assert_eq!(FieldId::of(b""), FieldId::Other);
    }

    // RFC 9110 §7.6.1; wire.md rows 26, 33, 34.
    #[test]
    fn hop_by_hop_fields() {
        for name in [
            "Connection",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authenticate",
            "Proxy-Authorization",
            "Proxy-Authentication-Info",
            "TE",
            "Trailer",
            "Transfer-Encoding",
            "Upgrade",
            "HTTP2-Settings",
            "Proxy",
        ] {
            assert!(is_hop_by_hop(FieldId::of(name.as_bytes())), "{name}");
        }
        for name in ["Host", "Content-Length", "Via", "Cookie", "Authorization", "Date", "X-Anything", "Expect"] {
            assert!(!is_hop_by_hop(FieldId::of(name.as_bytes())), "{name}");
        }
    }

    // wire.md row 32.
    #[test]
    fn connection_cannot_remove_what_protects() {
        for (name, survives) in [
            ("Authorization", true),
            ("Cookie", true),
            ("X-Forwarded-For", true),
            ("x-forwarded-port", true),
            ("Cache-Control", true),
            ("Forwarded", true),
            ("Via", true),
            ("Set-Cookie", true),
            ("X-Forwarded", false),
            ("X-Hop", false),
            ("Accept", false),
        ] {
            assert_eq!(survives_connection(FieldId::of(name.as_bytes()), name.as_bytes()), survives, "{name}");
        }
    }

    // RFC 9110 §5.6.1, §5.6.3; wire.md row 2: only SP and HTAB are white space.
    #[test]
    fn lists_and_white_space() {
        let of = |v: &'static [u8]| elements(v).collect::<Vec<_>>();
        assert_eq!(of(b"a, b ,\tc"), [&b"a"[..], b"b", b"c"]);
        assert_eq!(of(b",, a,"), [&b"a"[..]]);
        assert!(of(b" , ").is_empty());
        assert_eq!(trim_ows(b" \tx y\t "), b"x y");
        assert_eq!(trim_ows(b"\x0bx\xa0"), b"\x0bx\xa0");
        assert_eq!(trim_ows(b"  "), b"");
    }

    // RFC 9110 §5.6.2, §5.5.
    #[test]
    fn byte_classes() {
        assert_eq!((0..=255).filter(|&b| is_tchar(b)).count(), 77);
        assert!(b"()<>@,;:\\\"/[]?={} \t\x7f\x80\0".iter().all(|&b| !is_tchar(b)));
        assert_eq!((0..=255).filter(|&b| is_field_byte(b)).count(), 256 - 32 - 1 + 1);
    }
}
