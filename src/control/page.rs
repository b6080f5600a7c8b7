//! The live page: four files that are part of the program. The policy lets the browser load nothing else and run nothing that stands
//! in the page's text; scripts may not turn text into markup.

use bytes::Bytes;
use hyper::header::{HeaderName, HeaderValue};

const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'";

/// A file by its path: Content-Type and content.
pub(super) fn file(path: &str) -> Option<(&'static str, Bytes)> {
    let (kind, content) = match path {
        "/" => ("text/html; charset=utf-8", include_str!("page/index.html")),
        "/page.css" => ("text/css; charset=utf-8", include_str!("page/page.css")),
        "/page.js" => ("text/javascript; charset=utf-8", include_str!("page/page.js")),
        "/icon.svg" => ("image/svg+xml", include_str!("page/icon.svg")),
        _ => return None,
    };
    Some((kind, Bytes::from_static(content.as_bytes())))
}

/// What goes with each of them.
pub(super) fn headers() -> [(HeaderName, HeaderValue); 4] {
    [
        ("content-security-policy", POLICY),
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
        ("cross-origin-resource-policy", "same-origin"),
    ]
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
}
