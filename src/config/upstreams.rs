//! What an upstream's tables say about servers that fail, checked: ejection, health checks, the circuit breaker.

use std::num::NonZeroU32;
use std::time::Duration;

use super::error::{ConfigError, Source};
use super::file::{self, Switch};
use super::routes::normal_host;
use super::{Breaker, Concurrency, Ejection, HealthCheck};

/// On unless it is turned off.
pub fn ejection(written: Option<&Switch<file::Ejection>>) -> Option<Ejection> {
    let default = Ejection::default();
    let file = match written {
        Some(Switch::Off) => return None,
        None => return Some(default),
        Some(Switch::On(file)) => file,
    };
    let time = file.time.map_or(default.time, |time| time.0);
    Some(Ejection {
        failures: file.failures.map_or(default.failures, NonZeroU32::get),
        share: file.share.map_or(default.share, |share| share.0),
        min_requests: file.min_requests.map_or(default.min_requests, NonZeroU32::get),
        interval: file.interval.map_or(default.interval, |time| time.0),
        time,
        max_time: file.max_time.map_or(default.max_time, |time| time.0).max(time),
        max_ejected: file.max_ejected.map_or(default.max_ejected, |share| share.0),
    })
}

/// Off unless it is there.
pub fn breaker(written: Option<&Switch<file::Breaker>>) -> Option<Breaker> {
    let Some(Switch::On(file)) = written else { return None };
    let default = Breaker::default();
    Some(Breaker {
        share: file.share.map_or(default.share, |share| share.0),
        window: file.window.map_or(default.window, |time| time.0),
        min_requests: file.min_requests.map_or(default.min_requests, NonZeroU32::get),
        open: file.open.map_or(default.open, |time| time.0),
        probes: file.probes.map_or(default.probes, NonZeroU32::get),
    })
}

/// Few workers are common; more are soon found out.
const INITIAL_DEFAULT: u32 = 4;
const MAX_DEFAULT: u32 = 200;

pub fn max_concurrency(source: Source<'_>, file: &file::Upstream) -> Result<Option<Concurrency>, ConfigError> {
    let Some(written) = &file.max_concurrency else { return Ok(None) };
    let auto = match written.as_ref() {
        file::Concurrency::Fixed(max) => return Ok(Some(Concurrency::Fixed(max.get()))),
        file::Concurrency::Auto(auto) => auto,
    };
    let given = |number: Option<NonZeroU32>| number.map(NonZeroU32::get);
    let min = given(auto.min).unwrap_or(1);
    let max = given(auto.max).unwrap_or(MAX_DEFAULT.max(min));
    let initial = given(auto.initial).unwrap_or(INITIAL_DEFAULT.clamp(min, max.max(min)));
    if min <= initial && initial <= max {
        return Ok(Some(Concurrency::Auto { min, max, initial }));
    }
    let message = format!("min {min}, initial {initial}, max {max}: expected each to be at most the next");
    Err(source.at(written.span(), message))
}

/// Something must be left for requests that nothing is known of.
pub fn reserve(source: Source<'_>, file: &file::Upstream) -> Result<Option<u32>, ConfigError> {
    let Some(written) = &file.reserve else { return Ok(None) };
    let reserve = *written.as_ref();
    match file.max_concurrency.as_ref().map(|written| written.as_ref()) {
        None => Err(source.at(written.span(), "reserve is a part of max_concurrency, which is not there")),
        Some(file::Concurrency::Fixed(max)) if reserve >= max.get() => {
            let message = format!("reserve is {reserve}: expected less than the max_concurrency of {max}");
            Err(source.at(written.span(), message))
        }
        Some(_) => Ok(Some(reserve)),
    }
}

pub fn health_check(
    source: Source<'_>,
    written: Option<&file::HealthCheck>,
) -> Result<Option<HealthCheck>, ConfigError> {
    let Some(file) = written else { return Ok(None) };
    let path = file.path.as_ref();
    if !path.starts_with('/') || !path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        let message = format!("bad path {path:?}: expected a path, with or without a query, such as \"/healthz\"");
        return Err(source.at(file.path.span(), message));
    }
    let host = match &file.host {
        Some(host) => Some(normal_host(host.as_ref()).map_err(|message| source.at(host.span(), message))?),
        None => None,
    };
    Ok(Some(HealthCheck {
        path: path.clone(),
        host,
        interval: file.interval.map_or(Duration::from_secs(5), |time| time.0),
        timeout: file.timeout.map_or(Duration::from_secs(2), |time| time.0),
        healthy: file.healthy.map_or(2, NonZeroU32::get),
        unhealthy: file.unhealthy.map_or(3, NonZeroU32::get),
    }))
}
