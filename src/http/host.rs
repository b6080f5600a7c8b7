//! Host and authority (RFC 9110 §7.2): checked and put in one form, once, for key, routing and forwarding alike.

use std::net::Ipv6Addr;

use super::fault::Fault;
use super::framing;

/// Longest host name, as in the DNS.
const HOST_BYTES_MAX: usize = 255;

/// Writes a host as it is compared, keyed and forwarded: lower case, no `:80`, no trailing dot (RFC 9110 §4.2.3).
pub(super) fn normalise_host(value: &[u8], out: &mut Vec<u8>) -> Result<(), Fault> {
    out.clear();
    let port = if value.starts_with(b"[") { write_ipv6(value, out) } else { write_name(value, out) };
    match port.ok_or(Fault::BadHost)? {
        None | Some(b"" | b"80") => Ok(()),
        Some(port) if is_port(port) => {
            out.push(b':');
            out.extend_from_slice(port);
            Ok(())
        }
        Some(_) => Err(Fault::BadHost),
    }
}

/// The port after an address in brackets; the outer `None` is a bad address.
fn write_ipv6<'a>(value: &'a [u8], out: &mut Vec<u8>) -> Option<Option<&'a [u8]>> {
    use std::io::Write;
    let close = memchr::memchr(b']', value)?;
    let address: Ipv6Addr = std::str::from_utf8(&value[1..close]).ok()?.parse().ok()?;
    write!(out, "[{address}]").ok()?;
    match &value[close + 1..] {
        [] => Some(None),
        [b':', port @ ..] => Some(Some(port)),
        _ => None,
    }
}

/// The port after a name; the outer `None` is a bad name. Narrower than RFC 3986 §3.2.2: what no DNS name has is refused.
fn write_name<'a>(value: &'a [u8], out: &mut Vec<u8>) -> Option<Option<&'a [u8]>> {
    let colon = memchr::memchr(b':', value);
    let name = &value[..colon.unwrap_or(value.len())];
    let name = name.strip_suffix(b".").unwrap_or(name);
    // An empty label shows as a dot at the start, at the end or after another.
    let (mut last, mut good) = (b'.', true);
    out.extend(name.iter().map(|byte| {
        let lower = LOWER[*byte as usize];
        good &= lower != 0 && !(lower == b'.' && last == b'.');
        last = lower;
        lower
    }));
    if !good || last == b'.' || name.len() > HOST_BYTES_MAX {
        return None;
    }
    Some(colon.map(|colon| &value[colon + 1..]))
}

/// Letters in lower case, digits, `-`, `_`, and the dots between labels; 0 for everything else.
static LOWER: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0_u8;
    while byte < 128 {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            table[byte as usize] = byte.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

fn is_port(port: &[u8]) -> bool {
    // No leading zero: `:080` and `:80` must not be two keys.
    framing::content_length(port).is_some_and(|n| (1..=65535).contains(&n))
}
