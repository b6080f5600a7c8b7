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
    /// The known field of this name, whatever its case. Only names of the same length are compared.
    #[must_use]
    pub fn of(name: &[u8]) -> Self {
        let candidates: &[(&[u8], Self)] = match name.len() {
            2 => &[(b"te", Self::Te)],
            3 => &[(b"age", Self::Age), (b"via", Self::Via)],
            4 => &[(b"date", Self::Date), (b"etag", Self::Etag), (b"host", Self::Host), (b"vary", Self::Vary)],
            5 => &[(b"proxy", Self::Proxy), (b"range", Self::Range)],
            6 => &[
                (b"accept", Self::Accept),
                (b"cookie", Self::Cookie),
                (b"expect", Self::Expect),
                (b"origin", Self::Origin),
                (b"pragma", Self::Pragma),
                (b"server", Self::Server),
            ],
            7 => &[
                (b"expires", Self::Expires),
                (b"trailer", Self::Trailer),
                (b"upgrade", Self::Upgrade),
                (b"warning", Self::Warning),
            ],
            8 => &[
                (b"cdn-loop", Self::CdnLoop),
                (b"if-match", Self::IfMatch),
                (b"if-range", Self::IfRange),
                (b"location", Self::Location),
            ],
            9 => &[
                (b"cache-tag", Self::CacheTag),
                (b"forwarded", Self::Forwarded),
                (b"x-api-key", Self::XApiKey),
                (b"x-real-ip", Self::XRealIp),
            ],
            10 => {
                &[(b"connection", Self::Connection), (b"keep-alive", Self::KeepAlive), (b"set-cookie", Self::SetCookie)]
            }
            11 => &[(b"remote-user", Self::RemoteUser), (b"traceparent", Self::Traceparent)],
            12 => &[
                (b"cache-status", Self::CacheStatus),
                (b"content-type", Self::ContentType),
                (b"max-forwards", Self::MaxForwards),
                (b"x-request-id", Self::XRequestId),
            ],
            13 => &[
                (b"authorization", Self::Authorization),
                (b"cache-control", Self::CacheControl),
                (b"content-range", Self::ContentRange),
                (b"if-none-match", Self::IfNoneMatch),
                (b"last-modified", Self::LastModified),
                (b"surrogate-key", Self::SurrogateKey),
                (b"x-rewrite-url", Self::XRewriteUrl),
            ],
            14 => &[
                (b"content-length", Self::ContentLength),
                (b"http2-settings", Self::Http2Settings),
                (b"x-original-url", Self::XOriginalUrl),
            ],
            15 => &[
                (b"accept-encoding", Self::AcceptEncoding),
                (b"accept-language", Self::AcceptLanguage),
                (b"x-forwarded-for", Self::XForwardedFor),
            ],
            16 => &[
                (b"content-encoding", Self::ContentEncoding),
                (b"content-location", Self::ContentLocation),
                (b"proxy-connection", Self::ProxyConnection),
                (b"x-forwarded-host", Self::XForwardedHost),
            ],
            17 => &[
                (b"cdn-cache-control", Self::CdnCacheControl),
                (b"if-modified-since", Self::IfModifiedSince),
                (b"transfer-encoding", Self::TransferEncoding),
                (b"x-forwarded-proto", Self::XForwardedProto),
            ],
            18 => &[(b"proxy-authenticate", Self::ProxyAuthenticate)],
            19 => {
                &[(b"if-unmodified-since", Self::IfUnmodifiedSince), (b"proxy-authorization", Self::ProxyAuthorization)]
            }
            22 => &[(b"x-http-method-override", Self::XHttpMethodOverride)],
            24 => &[(b"pilotlight-cache-control", Self::PilotlightCacheControl)],
            25 => &[(b"proxy-authentication-info", Self::ProxyAuthenticationInfo)],
            _ => &[],
        };
        candidates.iter().find(|(known, _)| name.eq_ignore_ascii_case(known)).map_or(Self::Other, |&(_, id)| id)
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
