//! The `[log]` and `[tracing]` tables, checked: where lines and spans go, and which.

use std::path::PathBuf;
use std::time::Duration;

use toml::Spanned;

use super::error::{ConfigError, Source};
use super::file;
use super::{Collector, Log, LogTarget, Tracing};

const SAMPLE_DEFAULT: f64 = 0.01;
const SLOW_DEFAULT: Duration = Duration::from_millis(500);
/// Where OTLP over HTTP is taken in, by its specification.
const PORT_DEFAULT: u16 = 4318;
const PATH_DEFAULT: &str = "/v1/traces";

impl Default for Log {
    /// Nothing is logged.
    fn default() -> Self {
        Self { access: None, sample: SAMPLE_DEFAULT, slow: SLOW_DEFAULT }
    }
}

pub fn log(source: Source<'_>, file: &file::Log) -> Result<Log, ConfigError> {
    let access = match &file.access {
        None => None,
        Some(text) => target(text.as_ref()).map_err(|message| source.at(text.span(), message))?,
    };
    Ok(Log {
        access,
        sample: file.sample.map_or(SAMPLE_DEFAULT, |share| share.0),
        slow: file.slow.map_or(SLOW_DEFAULT, |time| time.0),
    })
}

fn target(text: &str) -> Result<Option<LogTarget>, String> {
    match text {
        "off" => Ok(None),
        "stdout" => Ok(Some(LogTarget::Stdout)),
        "stderr" => Ok(Some(LogTarget::Stderr)),
        // A working directory is nothing to rely on in a service.
        path if path.starts_with('/') && !path.contains('\0') => Ok(Some(LogTarget::File(PathBuf::from(path)))),
        _ => Err(format!("bad access {text:?}: expected \"off\", \"stdout\", \"stderr\" or a path that starts with /")),
    }
}

/// `None` without the table.
pub fn tracing(source: Source<'_>, file: Option<&file::Tracing>) -> Result<Option<Tracing>, ConfigError> {
    let Some(file) = file else { return Ok(None) };
    let endpoint = match &file.endpoint {
        None => None,
        Some(text) => Some(collector(text.as_ref()).ok_or_else(|| source.at(text.span(), bad_endpoint(text)))?),
    };
    let service = file.service.clone().unwrap_or_else(|| "pilotlight".to_owned());
    Ok(Some(Tracing { endpoint, sample: file.sample.map_or(SAMPLE_DEFAULT, |share| share.0), service }))
}

fn bad_endpoint(text: &Spanned<String>) -> String {
    let got = text.as_ref();
    format!(
        "bad endpoint {got:?}: expected http://HOST[:PORT][/PATH] of an OTLP collector, such as \"http://127.0.0.1:4318\""
    )
}

fn collector(text: &str) -> Option<Collector> {
    let rest = text.strip_prefix("http://")?;
    let (authority, path) = rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash));
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address without a port.
        Some((_, last)) if last.ends_with(']') => (authority, PORT_DEFAULT),
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (authority, PORT_DEFAULT),
    };
    let in_brackets = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let well_formed = match in_brackets {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => !host.is_empty() && host.bytes().all(allowed),
    };
    let path = if matches!(path, "" | "/") { PATH_DEFAULT } else { path };
    let plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let host = in_brackets.unwrap_or(host).to_owned();
    (well_formed && plain).then(|| Collector { host, port, path: path.to_owned() })
}
