//! The file as it is written: one struct for each table, every key optional that has a default, unknown keys refused.
//! A value is `Spanned` where a check that needs more than the value itself (`load`) may have to point at it.

use std::collections::BTreeMap;
use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};

use serde::Deserialize;
use serde::de::value::MapAccessDeserializer;
use serde::de::{self, Deserializer, MapAccess, Visitor};
use toml::Spanned;

use super::units::{Grace, Lifetime, Period, Size, Timeout, Window, parse_duration};
use super::{Authorization, BusyPoll};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct File {
    pub server: Server,
    pub admin: Admin,
    pub cache: Cache,
    pub upstreams: BTreeMap<String, Upstream>,
    pub routes: Vec<Route>,
    pub warm: Vec<Warm>,
    pub log: Log,
    pub tracing: Option<Tracing>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Server {
    pub listen: Option<Spanned<Vec<Spanned<String>>>>,
    pub shards: Option<Spanned<Shards>>,
    pub busy_poll: Option<BusyPoll>,
    pub idle_timeout: Option<Timeout>,
    pub header_timeout: Option<Timeout>,
    pub body_timeout: Option<Timeout>,
    pub drain_timeout: Option<Grace>,
    pub upgrade_timeout: Option<Timeout>,
    pub half_close_timeout: Option<Grace>,
    pub max_connections: Option<NonZeroUsize>,
    pub max_request_body: Option<Size>,
    pub trusted_proxies: Option<Vec<Spanned<String>>>,
    pub name: Option<Spanned<String>>,
    pub server_timing: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Admin {
    pub listen: Option<Spanned<String>>,
    #[serde(default)]
    pub hosts: Vec<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    pub memory: Option<Spanned<Size>>,
    pub max_object: Option<Spanned<Size>>,
    pub snapshot: Option<Spanned<String>>,
    pub snapshot_interval: Option<Grace>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    pub servers: Spanned<Vec<Spanned<String>>>,
    pub max_concurrency: Option<Spanned<Concurrency>>,
    pub background_share: Option<Share>,
    pub reserve: Option<Spanned<u32>>,
    pub connect_timeout: Option<Timeout>,
    pub first_byte_timeout: Option<Timeout>,
    pub read_timeout: Option<Timeout>,
    pub total_timeout: Option<Timeout>,
    pub idle_timeout: Option<Grace>,
    pub slow_start: Option<Grace>,
    pub resolve_interval: Option<Period>,
    pub retries: Option<u32>,
    pub retry_budget: Option<Share>,
    pub ejection: Option<Switch<Ejection>>,
    pub health_check: Option<HealthCheck>,
    pub breaker: Option<Switch<Breaker>>,
    pub queue_timeout: Option<Grace>,
    pub max_queue: Option<u32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Ejection {
    pub failures: Option<NonZeroU32>,
    pub share: Option<Share>,
    pub min_requests: Option<NonZeroU32>,
    pub interval: Option<Period>,
    pub time: Option<Timeout>,
    pub max_time: Option<Timeout>,
    pub max_ejected: Option<Share>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthCheck {
    pub path: Spanned<String>,
    pub host: Option<Spanned<String>>,
    pub interval: Option<Period>,
    pub timeout: Option<Timeout>,
    pub healthy: Option<NonZeroU32>,
    pub unhealthy: Option<NonZeroU32>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    pub share: Option<Share>,
    pub window: Option<Period>,
    pub min_requests: Option<NonZeroU32>,
    pub open: Option<Period>,
    pub probes: Option<NonZeroU32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub name: Option<Spanned<String>>,
    pub host: Option<Spanned<String>>,
    pub path: Spanned<String>,
    pub upstream: Spanned<String>,
    pub max_concurrency: Option<NonZeroU32>,
    pub cache: Option<CacheSwitch>,
    pub shield: Option<Spanned<Shield>>,
    pub server_timing: Option<bool>,
    pub rate_limit: Option<RateLimit>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Shield {
    pub interval: Option<Timeout>,
    pub host: Option<Spanned<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub requests: NonZeroU32,
    pub per: Option<Spanned<Window>>,
    pub burst: Option<Spanned<NonZeroU32>>,
    pub by: Option<Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteCache {
    pub ttl: Option<Lifetime>,
    #[serde(rename = "override")]
    pub override_: Option<Spanned<bool>>,
    pub store_set_cookie: Option<bool>,
    pub stale_while_revalidate: Option<Lifetime>,
    pub stale_if_error: Option<Lifetime>,
    pub refresh_ahead: Option<Share>,
    pub authorization: Option<AuthorizationWord>,
    pub negative_ttl: BTreeMap<Spanned<String>, Lifetime>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Warm {
    pub name: Option<Spanned<String>>,
    pub host: Spanned<String>,
    pub scheme: Option<Spanned<String>>,
    pub paths: Spanned<Vec<Spanned<String>>>,
    #[serde(default)]
    pub headers: BTreeMap<Spanned<String>, Spanned<String>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    pub access: Option<Spanned<String>>,
    pub sample: Option<Share>,
    pub slow: Option<Grace>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tracing {
    pub endpoint: Option<Spanned<String>>,
    pub sample: Option<Share>,
    pub service: Option<String>,
}

/// `"auto"`, a number of shards, or a string with a CPU list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Shards {
    Auto,
    Count(u64),
    Cpus(String),
}

impl<'de> Deserialize<'de> for Shards {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShardsVisitor;
        impl Visitor<'_> for ShardsVisitor {
            type Value = Shards;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("\"auto\", a number of shards, or a CPU list such as \"2-5,8\"")
            }
            fn visit_i64<E: de::Error>(self, count: i64) -> Result<Shards, E> {
                let count =
                    u64::try_from(count).map_err(|_| E::custom(format!("{count} shards: the number is negative")))?;
                Ok(Shards::Count(count))
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<Shards, E> {
                Ok(if text == "auto" { Shards::Auto } else { Shards::Cpus(text.to_owned()) })
            }
        }
        deserializer.deserialize_any(ShardsVisitor)
    }
}

/// A part of a whole, 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Share(pub f64);

impl<'de> Deserialize<'de> for Share {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ShareVisitor;
        impl Visitor<'_> for ShareVisitor {
            type Value = f64;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 0 to 1, such as 0.5")
            }
            fn visit_f64<E: de::Error>(self, share: f64) -> Result<f64, E> {
                if !(0.0..=1.0).contains(&share) {
                    return Err(E::custom(format!("the share {share} is out of bounds: 0 to 1 is allowed")));
                }
                Ok(share)
            }
            fn visit_i64<E: de::Error>(self, share: i64) -> Result<f64, E> {
                // Exact for the two integers that are within the bounds.
                self.visit_f64(share as f64)
            }
        }
        deserializer.deserialize_any(ShareVisitor).map(Self)
    }
}

impl<'de> Deserialize<'de> for BusyPoll {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "off" => return Ok(Self::Off),
            "always" => return Ok(Self::Always),
            _ => {}
        }
        let expected = "expected \"off\", \"always\" or a duration from 1us to 1s";
        let time =
            parse_duration(&text).map_err(|_| de::Error::custom(format!("bad busy_poll {text:?}: {expected}")))?;
        if time.as_micros() < 1 || time.as_secs_f64() > 1.0 {
            return Err(de::Error::custom(format!("the duration {text} is out of bounds: {expected}")));
        }
        Ok(Self::For(time))
    }
}

/// How `authorization` is written.
#[derive(Debug, Clone, Copy)]
pub struct AuthorizationWord(pub Authorization);

impl<'de> Deserialize<'de> for AuthorizationWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        match text.as_str() {
            "rfc9111" => Ok(Self(Authorization::Rfc9111)),
            "per-credential" => Ok(Self(Authorization::PerCredential)),
            _ => Err(de::Error::custom(format!(
                "bad authorization {text:?}: expected \"rfc9111\" or \"per-credential\""
            ))),
        }
    }
}

/// `cache = false`, `cache = true` (the defaults), or a table.
#[derive(Debug)]
pub enum CacheSwitch {
    Off,
    On(RouteCache),
}

impl<'de> Deserialize<'de> for CacheSwitch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchVisitor;
        impl<'de> Visitor<'de> for SwitchVisitor {
            type Value = CacheSwitch;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("false, true, or a [routes.cache] table")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<CacheSwitch, E> {
                Ok(if on { CacheSwitch::On(RouteCache::default()) } else { CacheSwitch::Off })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<CacheSwitch, A::Error> {
                RouteCache::deserialize(MapAccessDeserializer::new(map)).map(CacheSwitch::On)
            }
        }
        deserializer.deserialize_any(SwitchVisitor)
    }
}

/// A number, `"auto"` (the defaults), or a table.
#[derive(Debug)]
pub enum Concurrency {
    Fixed(NonZeroU32),
    Auto(AutoConcurrency),
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AutoConcurrency {
    pub min: Option<NonZeroU32>,
    pub max: Option<NonZeroU32>,
    pub initial: Option<NonZeroU32>,
}

impl<'de> Deserialize<'de> for Concurrency {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct ConcurrencyVisitor;
        impl<'de> Visitor<'de> for ConcurrencyVisitor {
            type Value = Concurrency;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number from 1 on, \"auto\", or a table with min, max and initial")
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Concurrency, E> {
                let number = u32::try_from(number).ok().and_then(NonZeroU32::new);
                number.map(Concurrency::Fixed).ok_or_else(|| E::custom("expected a number from 1 on"))
            }
            fn visit_str<E: de::Error>(self, word: &str) -> Result<Concurrency, E> {
                match word {
                    "auto" => Ok(Concurrency::Auto(AutoConcurrency::default())),
                    _ => Err(E::custom(format!("bad max_concurrency {word:?}: expected a number or \"auto\""))),
                }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Concurrency, A::Error> {
                AutoConcurrency::deserialize(MapAccessDeserializer::new(map)).map(Concurrency::Auto)
            }
        }
        deserializer.deserialize_any(ConcurrencyVisitor)
    }
}

/// `false`, `true` (the defaults), or a table.
#[derive(Debug)]
pub enum Switch<T> {
    Off,
    On(T),
}

impl<'de, T: Deserialize<'de> + Default> Deserialize<'de> for Switch<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct SwitchVisitor<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de> + Default> Visitor<'de> for SwitchVisitor<T> {
            type Value = Switch<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("false, true, or a table")
            }
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<Switch<T>, E> {
                Ok(if on { Switch::On(T::default()) } else { Switch::Off })
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Switch<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Switch::On)
            }
        }
        deserializer.deserialize_any(SwitchVisitor(std::marker::PhantomData))
    }
}
