//! The `[routes.rate_limit]` of the file, checked: whole seconds, and somebody to count by.

use std::fmt;
use std::time::Duration;

use toml::Spanned;

use super::error::{ConfigError, Source};
use super::{LimitBy, RateLimit, file};

const PER_DEFAULT: Duration = Duration::from_secs(1);
/// Longest field name to count by; the registered ones have up to 40 bytes.
const FIELD_NAME_BYTES_MAX: usize = 128;

pub fn rate_limit(source: Source<'_>, file: &file::RateLimit) -> Result<RateLimit, ConfigError> {
    let per = match &file.per {
        Some(written) if written.as_ref().0.subsec_nanos() != 0 => {
            let message = "per must be whole seconds: clients are told of it in seconds";
            return Err(source.at(written.span(), message));
        }
        Some(written) => written.as_ref().0,
        None => PER_DEFAULT,
    };
    let by = match &file.by {
        Some(written) => by(written).map_err(|message| source.at(written.span(), message))?,
        None => LimitBy::Address,
    };
    let requests = file.requests.get();
    let burst = file.burst.as_ref().map_or(requests, |written| written.as_ref().get());
    // Buckets fill up by the millisecond: a smaller one could not give its rate.
    if let Some(written) = &file.burst
        && u128::from(burst) * per.as_millis() < u128::from(requests)
    {
        let message = format!(
            "the burst {burst} is too small for {requests} requests in so short a time: a millisecond brings more"
        );
        return Err(source.at(written.span(), message));
    }
    Ok(RateLimit { requests, per, burst, by })
}

fn by(written: &Spanned<String>) -> Result<LimitBy, String> {
    let text = written.as_ref().as_str();
    let name = match text {
        "address" => return Ok(LimitBy::Address),
        "credential" => return Ok(LimitBy::Credential),
        "route" => return Ok(LimitBy::Route),
        _ => text.strip_prefix("header:"),
    };
    let Some(name) = name else {
        return Err(format!(
            "bad by {text:?}: expected \"address\", \"credential\", \"route\" or a field such as \"header:X-Tenant\""
        ));
    };
    // Names with an underscore are not passed on, and so are not looked at either.
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-!#$%&'*+.^`|~".contains(&byte);
    if !(1..=FIELD_NAME_BYTES_MAX).contains(&name.len()) || !name.bytes().all(allowed) {
        return Err(format!("bad field name {name:?} in by: expected one such as \"X-Tenant\", without underscores"));
    }
    Ok(LimitBy::Header(name.to_ascii_lowercase()))
}

/// As it is written in the file.
impl fmt::Display for LimitBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address => f.write_str("address"),
            Self::Credential => f.write_str("credential"),
            Self::Header(name) => write!(f, "header:{name}"),
            Self::Route => f.write_str("route"),
        }
    }
}
