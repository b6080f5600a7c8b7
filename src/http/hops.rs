//! How far a request has come, and whether it may go on: loops (RFC 9110 §7.6.3, RFC 8586) and Max-Forwards (RFC 9110 §7.6.2).

use super::fields::{FieldId, elements, trim_ows};
use super::head::{FieldsView, Method};

/// Times that our own name may stand in Via or CDN-Loop before the request is taken for one that goes round. More gateways of
/// one name than this are not put one behind the other; a loop on this process is found on its first return, by its id.
pub const OWN_NAME_MAX: usize = 8;

/// Our member of CDN-Loop (RFC 8586 §2): `id` tells this process from another of the same name behind or before it.
#[must_use]
pub fn cdn_loop_member(name: &str, id: u64) -> String {
    format!("{name}; id={id:016x}")
}

/// Whether a request has been here before. `member` is our own of CDN-Loop, `name` our pseudonym in both fields.
#[must_use]
pub fn is_loop(view: FieldsView, name: &str, member: &str) -> bool {
    let same = |other: &[u8]| other.eq_ignore_ascii_case(name.as_bytes());
    let own_id = member.split_once("id=").map_or("", |(_, id)| id);
    let (mut via, mut cdn_loop) = (0, 0);
    for hop in view.all(FieldId::CdnLoop).flat_map(elements) {
        let mut parts = hop.split(|&b| b == b';').map(trim_ows);
        if parts.next().is_some_and(same) {
            cdn_loop += 1;
            if parts.any(|p| p.strip_prefix(b"id=").is_some_and(|id| !own_id.is_empty() && id == own_id.as_bytes())) {
                return true;
            }
        }
    }
    for hop in view.all(FieldId::Via).flat_map(elements) {
        let mut words = hop.split(|b| b" \t".contains(b)).filter(|word| !word.is_empty());
        // RFC 9110 §7.6.3: received-protocol, received-by, comment.
        via += usize::from(words.nth(1).is_some_and(same));
    }
    via.max(cdn_loop) >= OWN_NAME_MAX
}

/// RFC 9110 §7.6.2: an OPTIONS that may not be forwarded any more, which is for us to answer. TRACE is refused anyway, and
/// with other methods the field means nothing.
#[must_use]
pub fn ends_here(method: Method, view: FieldsView) -> bool {
    method == Method::Options && view.all(FieldId::MaxForwards).any(|hops| hops == b"0")
}

/// Whether a 101 switches to what was asked for (RFC 9110 §15.2.2).
#[must_use]
pub fn is_switch_to(asked: &[u8], response: FieldsView) -> bool {
    let mut said = response.all(FieldId::Upgrade);
    said.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(asked)) && said.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::super::head::{RequestHead, ResponseHead};
    use super::super::parse;
    use super::*;

    fn asked<T>(fields: &str, judge: impl FnOnce(FieldsView) -> T) -> T {
        let (text, mut head) = (format!("OPTIONS / HTTP/1.1\r\nHost: h\r\n{fields}\r\n"), RequestHead::new());
        assert_eq!(parse::request(text.as_bytes(), &mut head), Ok(parse::Parsed::Complete), "{text}");
        judge(head.view(text.as_bytes()))
    }
    fn answered<T>(fields: &str, judge: impl FnOnce(FieldsView) -> T) -> T {
        let (text, mut head) = (format!("HTTP/1.1 101 X\r\n{fields}\r\n"), ResponseHead::new());
        assert_eq!(parse::response(text.as_bytes(), Method::Get, &mut head), Ok(parse::Parsed::Complete), "{text}");
        judge(head.view(text.as_bytes()))
    }

    #[test]
    fn loops() {
        let member = cdn_loop_member("pl", 0x2a);
        assert_eq!(member, "pl; id=000000000000002a");
        let via = |n: usize| format!("Via: 1.1 caddy{}\r\n", ", 1.1 pl".repeat(n));
        let hops = |n: usize| "CDN-Loop: pl; id=00000000000000ff\r\n".repeat(n);
        for (case, fields, expected) in [
            ("nothing", String::new(), false),
            // RFC 8586 §2.
            ("this process", format!("CDN-Loop: {member}\r\n"), true),
            ("among others", "CDN-Loop: a, b;c=\"d\"\r\nCDN-Loop: e , PL;x;id=000000000000002a\r\n".into(), true),
            ("another process of this name", hops(1), false),
            ("a chain of them", hops(OWN_NAME_MAX - 1), false),
            ("too many of them", hops(OWN_NAME_MAX), true),
            ("our id under another name", "CDN-Loop: q; id=000000000000002a\r\n".into(), false),
            ("part of our id", "CDN-Loop: pl; id=2a\r\n".into(), false),
            // RFC 9110 §7.6.3.
            ("once in Via", via(1), false),
            ("a chain in Via", via(OWN_NAME_MAX - 1), false),
            ("too often in Via", via(OWN_NAME_MAX), true),
            ("with comments", "Via: 1.1 pl (x)\r\n".repeat(OWN_NAME_MAX), true),
            ("as a protocol", "Via: pl x\r\n".repeat(OWN_NAME_MAX), false),
            ("another name", "Via: 1.1 pl2\r\n".repeat(OWN_NAME_MAX), false),
            ("a chain in both", via(OWN_NAME_MAX - 1) + &hops(OWN_NAME_MAX - 1), false),
            ("nonsense", "Via: ,;, \r\nCDN-Loop: ;;=,\r\n".into(), false),
        ] {
            assert_eq!(asked(&fields, |view| is_loop(view, "pl", &member)), expected, "{case}");
        }
    }

    #[test]
    fn max_forwards() {
        for (method, fields, expected) in [
            (Method::Options, "Max-Forwards: 0\r\n", true),
            (Method::Options, "Max-Forwards: 3\r\nMax-Forwards: 0\r\n", true),
            (Method::Options, "Max-Forwards: 1\r\n", false),
            (Method::Options, "Max-Forwards: x\r\n", false),
            (Method::Options, "", false),
            (Method::Get, "Max-Forwards: 0\r\n", false),
        ] {
            assert_eq!(asked(fields, |view| ends_here(method, view)), expected, "{method:?} {fields}");
        }
    }

    #[test]
    fn switches() {
        for (fields, expected) in [
            ("Connection: upgrade\r\nUpgrade: WebSocket\r\n", true),
            ("Upgrade: websocket/13\r\n", false),
            ("Upgrade: h2c\r\n", false),
            ("Upgrade: websocket, h2c\r\n", false),
            ("Upgrade: websocket\r\nUpgrade: websocket\r\n", false),
            ("Upgrade: \r\n", false),
            ("", false),
        ] {
            assert_eq!(answered(fields, |view| is_switch_to(b"websocket", view)), expected, "{fields}");
        }
    }
}
