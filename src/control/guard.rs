//! Who may ask the admin address through a browser. Pure: headers in, an answer out.
//!
//! There is no password, so a page of another site, open in an operator's browser, must neither act nor read:
//! - *Cross-site requests.* A browser says where a POST comes from (Sec-Fetch-Site to trustworthy addresses, Origin always): it must be
//!   this page, and it must carry [`HEADER`], which no form can send and no other site's script without being allowed to.
//! - *DNS rebinding.* A site may point its own name at this address; then its pages are of the same origin. But they still say that
//!   name in Host, and what is served is only what was asked for by address, by a name without a dot (which is nobody's domain), or
//!   by a name of the configuration.
//!
//! Programs that are no browsers send neither Origin nor Sec-Fetch-Site, and need nothing.

use std::net::IpAddr;

use hyper::HeaderMap;
use hyper::header::{HOST, ORIGIN};

/// Requests of the page carry it; the value does not matter.
pub(super) const HEADER: &str = "x-pilotlight";

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    ForeignHost,
    CrossSite,
}

impl Refusal {
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::ForeignHost => "foreign_host",
            Self::CrossSite => "cross_site",
        }
    }

    pub(super) fn detail(self) -> &'static str {
        match self {
            Self::ForeignHost => "Host is neither an address nor a name of [admin] hosts in the configuration",
            Self::CrossSite => "this request was sent by another site's page",
        }
    }
}

/// Whether the name by which we were asked is ours.
pub(super) fn host(headers: &HeaderMap, names: &[String]) -> Result<(), Refusal> {
    // RFC 9112 §3.2: only HTTP/1.0 leaves it out, which no browser speaks.
    let Some(host) = headers.get(HOST) else { return Ok(()) };
    let host = host.to_str().map_err(|_| Refusal::ForeignHost)?.to_ascii_lowercase();
    let name = without_port(&host).trim_end_matches('.');
    let is_ours = |name: &str| {
        name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
            || !name.contains('.')
            || name.ends_with(".localhost")
            || names.iter().any(|own| own == name)
    };
    if is_ours(name) { Ok(()) } else { Err(Refusal::ForeignHost) }
}

/// Whether a request that changes something may be carried out.
pub(super) fn same_site(headers: &HeaderMap) -> Result<(), Refusal> {
    let site = headers.get("sec-fetch-site").map(|value| value.as_bytes());
    let origin = headers.get(ORIGIN).map(|value| value.to_str().unwrap_or("null"));
    let host = headers.get(HOST).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let of_this_site = matches!(site, None | Some(b"same-origin"));
    // The scheme is left out: a proxy in front of us may speak TLS.
    let of_this_host = origin.is_none_or(|origin| {
        origin.split_once("://").is_some_and(|(_, authority)| authority.eq_ignore_ascii_case(host))
    });
    let from_browser = site.is_some() || origin.is_some();
    if of_this_site && of_this_host && (!from_browser || headers.contains_key(HEADER)) {
        Ok(())
    } else {
        Err(Refusal::CrossSite)
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{HeaderName, HeaderValue};

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        fields.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_static(v))).collect()
    }

    #[test]
    fn hosts() {
        let names = ["gw.internal".to_owned()];
        for (value, ours) in [
            ("127.0.0.1:9180", true),
            ("127.0.0.1", true),
            ("[::1]:9180", true),
            ("[::1]", true),
            ("localhost:9180", true),
            ("a.localhost", true),
            ("pilotlight:9180", true),
            ("GW.internal.:9180", true),
            ("gw.internal", true),
            ("evil.example:9180", false),
            ("evil.example", false),
            ("127.0.0.1.evil.example", false),
            ("gw.internal.evil.example", false),
            ("evil.example:80:80", false),
            ("localhost.evil.example", false),
        ] {
            assert_eq!(host(&headers(&[("host", value)]), &names).is_ok(), ours, "{value}");
        }
        assert_eq!(host(&headers(&[]), &names), Ok(()));
    }

    #[test]
    fn sites() {
        let (own, page) = (("host", "127.0.0.1:9180"), ("x-pilotlight", "1"));
        let origin = ("origin", "http://127.0.0.1:9180");
        for (case, fields, allowed) in [
            ("no browser", vec![own], true),
            ("our page", vec![own, page, origin, ("sec-fetch-site", "same-origin")], true),
            ("our page, address not trustworthy", vec![own, page, origin], true),
            ("our page behind TLS", vec![own, page, ("origin", "https://127.0.0.1:9180")], true),
            ("another site", vec![own, ("sec-fetch-site", "cross-site")], false),
            ("another port of this host", vec![own, page, origin, ("sec-fetch-site", "same-site")], false),
            ("another site, old browser", vec![own, page, ("origin", "http://evil.example")], false),
            ("another port, old browser", vec![own, page, ("origin", "http://127.0.0.1:80")], false),
            ("a sandbox", vec![own, page, ("origin", "null")], false),
            ("no header of ours", vec![own, origin, ("sec-fetch-site", "same-origin")], false),
            ("typed by the user", vec![own, ("sec-fetch-site", "none")], false),
        ] {
            assert_eq!(same_site(&headers(&fields)).is_ok(), allowed, "{case}");
        }
    }
}
