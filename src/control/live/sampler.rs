//! From counters that only grow to what happened lately: rates of the last second, percentiles of the last ten. Pure: it is given
//! the counters once a second, and the time with them.

use std::collections::VecDeque;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::base::outcome::Outcome;
use crate::control::histogram::Snapshot;

/// Percentiles are of so many seconds: one alone is jumpy.
const WINDOW: usize = 10;
/// Share of the requests, for each percentile shown.
const QUANTILES: [(&str, f64); 4] = [("p50_ms", 0.5), ("p90_ms", 0.9), ("p99_ms", 0.99), ("p999_ms", 0.999)];

/// All counters at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Totals {
    pub(super) mono_ms: u64,
    pub(super) routes: Vec<Route>,
    pub(super) upstreams: Vec<Upstream>,
    /// Loop lag by shard.
    pub(super) lag: Vec<Snapshot>,
    pub(super) evictions: u64,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Route {
    /// By `Outcome as usize`.
    pub(super) outcomes: [u64; Outcome::ALL.len()],
    pub(super) took: Snapshot,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Upstream {
    pub(super) requests: u64,
    /// Of these, the ones without a usable answer.
    pub(super) failed: u64,
    pub(super) took: Snapshot,
}

/// What is kept of each second: small, because two minutes of it are.
#[derive(Debug, Serialize)]
pub(super) struct Second {
    pub(super) unix_secs: u64,
    /// Requests a second by outcome, those that occurred.
    outcomes: Map<String, Value>,
    p50_ms: Option<f64>,
    p99_ms: Option<f64>,
    upstream_rate: f64,
    upstream_failed_rate: f64,
    /// Routes with traffic: index, then pairs of band and count.
    heat: Vec<(usize, Vec<(usize, u64)>)>,
}

/// The counters of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Sampler {
    /// Oldest first, at most `WINDOW + 1`.
    totals: VecDeque<Totals>,
}

impl Sampler {
    /// Takes the counters of now; `None` the first time, when there is nothing to compare with.
    pub(super) fn sample(&mut self, totals: Totals, unix_secs: u64) -> Option<Second> {
        if self.totals.len() > WINDOW {
            self.totals.pop_front();
        }
        self.totals.push_back(totals);
        self.second(unix_secs)
    }

    fn second(&self, unix_secs: u64) -> Option<Second> {
        let (last, now, secs) = self.last_second()?;
        let all = now.routes.iter().zip(&self.totals.front()?.routes);
        let took = all.fold(Snapshot::default(), |mut sum, (now, then)| {
            sum.add(&now.took.since(&then.took));
            sum
        });
        let upstreams = || now.upstreams.iter().zip(&last.upstreams);
        let routes = now.routes.iter().zip(&last.routes).enumerate();
        Some(Second {
            unix_secs,
            outcomes: outcomes(last, now, secs),
            p50_ms: quantile_ms(&took, 0.5),
            p99_ms: quantile_ms(&took, 0.99),
            upstream_rate: upstreams().map(|(now, last)| rate(now.requests, last.requests, secs)).sum(),
            upstream_failed_rate: upstreams().map(|(now, last)| rate(now.failed, last.failed, secs)).sum(),
            heat: routes.filter_map(|(at, (now, last))| Some((at, heat(&now.took.since(&last.took))?))).collect(),
        })
    }

    /// The second before last, the last one, and how long really lay between.
    fn last_second(&self) -> Option<(&Totals, &Totals, f64)> {
        let (now, last) = (self.totals.back()?, self.totals.iter().nth_back(1)?);
        let secs = now.mono_ms.saturating_sub(last.mono_ms) as f64 / 1000.0;
        (secs > 0.0).then_some((last, now, secs))
    }

    /// Each route of the configuration, in its order.
    pub(super) fn routes(&self) -> Vec<Value> {
        self.each(
            |totals| &totals.routes,
            |then, last, now, secs| {
                let new = |outcome: Outcome| now.outcomes[outcome as usize] - last.outcomes[outcome as usize];
                let all: u64 = Outcome::ALL.into_iter().map(new).sum();
                let hits = new(Outcome::Hit) + new(Outcome::Stale);
                let mut route = percentiles(&now.took.since(&then.took));
                route.insert("rate".into(), json!(all as f64 / secs));
                route.insert("hit_ratio".into(), json!((all > 0).then(|| hits as f64 / all as f64)));
                route.insert("error_rate".into(), json!(new(Outcome::Error) as f64 / secs));
                route.insert("requests".into(), json!(now.outcomes.iter().sum::<u64>()));
                Value::Object(route)
            },
        )
    }

    /// Each upstream of the configuration, in its order.
    pub(super) fn upstreams(&self) -> Vec<Value> {
        self.each(
            |totals| &totals.upstreams,
            |then, last, now, secs| {
                let mut upstream = percentiles(&now.took.since(&then.took));
                upstream.insert("rate".into(), json!(rate(now.requests, last.requests, secs)));
                upstream.insert("failed_rate".into(), json!(rate(now.failed, last.failed, secs)));
                upstream.insert("requests".into(), json!(now.requests));
                Value::Object(upstream)
            },
        )
    }

    /// The 99th percentile of each shard's loop lag.
    pub(super) fn lag_ms(&self) -> Vec<Option<f64>> {
        self.each(|totals| &totals.lag, |then, _, now, _| quantile_ms(&now.since(then), 0.99))
    }

    pub(super) fn eviction_rate(&self) -> f64 {
        self.last_second().map_or(0.0, |(last, now, secs)| rate(now.evictions, last.evictions, secs))
    }

    /// For each item: as it was at the start of the window, a second ago, and now.
    fn each<T, R>(&self, of: impl Fn(&Totals) -> &Vec<T>, view: impl Fn(&T, &T, &T, f64) -> R) -> Vec<R> {
        let (Some((last, now, secs)), Some(then)) = (self.last_second(), self.totals.front()) else {
            return Vec::new();
        };
        of(then).iter().zip(of(last)).zip(of(now)).map(|((then, last), now)| view(then, last, now, secs)).collect()
    }
}

fn rate(now: u64, last: u64, secs: f64) -> f64 {
    now.saturating_sub(last) as f64 / secs
}

fn outcomes(last: &Totals, now: &Totals, secs: f64) -> Map<String, Value> {
    let sum = |totals: &Totals, outcome: Outcome| totals.routes.iter().map(|r| r.outcomes[outcome as usize]).sum();
    let rates = Outcome::ALL.into_iter().map(|outcome| (outcome, rate(sum(now, outcome), sum(last, outcome), secs)));
    rates.filter(|(_, rate)| *rate > 0.0).map(|(outcome, rate)| (outcome.as_str().to_owned(), json!(rate))).collect()
}

fn heat(took: &Snapshot) -> Option<Vec<(usize, u64)>> {
    let bands: Vec<_> = took.bands().into_iter().enumerate().filter(|(_, count)| *count > 0).collect();
    (!bands.is_empty()).then_some(bands)
}

fn percentiles(took: &Snapshot) -> Map<String, Value> {
    QUANTILES.into_iter().map(|(name, q)| (name.to_owned(), json!(quantile_ms(took, q)))).collect()
}

fn quantile_ms(took: &Snapshot, q: f64) -> Option<f64> {
    took.quantile(q).map(|time| time.as_secs_f64() * 1000.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::histogram::HistogramCells;

    /// Hits of one route, each of `ms`, all at `mono_ms`.
    fn totals(mono_ms: u64, cells: &HistogramCells, hits: u64, ms: u64) -> Totals {
        cells.record_ns(ms * 1_000_000, hits);
        let mut route = Route::default();
        cells.add_to(&mut route.took);
        route.outcomes[Outcome::Hit as usize] = route.took.count();
        let upstream = Upstream { requests: mono_ms / 100, failed: mono_ms / 1000, took: Snapshot::default() };
        Totals { mono_ms, routes: vec![route], upstreams: vec![upstream], lag: Vec::new(), evictions: mono_ms }
    }

    #[test]
    fn rates_are_by_the_time_that_really_passed() {
        let (mut sampler, cells) = (Sampler::default(), HistogramCells::default());
        assert!(sampler.sample(totals(1000, &cells, 1000, 1), 1).is_none());
        let second = sampler.sample(totals(3000, &cells, 500, 1), 3).unwrap();
        assert_eq!(second.outcomes, *json!({"hit": 250.0}).as_object().unwrap(), "and what was before does not count");
        assert_eq!((second.upstream_rate, second.upstream_failed_rate), (10.0, 1.0));
        let [(0, heat)] = &second.heat[..] else { panic!("{:?}", second.heat) };
        assert_eq!(heat[..], [(6, 500)], "1 ms is at most 2^20 ns");
        assert_eq!(sampler.eviction_rate(), 1000.0);
        assert_eq!(sampler.routes()[0]["rate"], json!(250.0));
        assert_eq!(sampler.routes()[0]["hit_ratio"], json!(1.0));
    }

    #[test]
    fn percentiles_are_of_ten_seconds() {
        let (mut sampler, cells) = (Sampler::default(), HistogramCells::default());
        sampler.sample(totals(1000, &cells, 0, 1), 1);
        sampler.sample(totals(2000, &cells, 100, 1000), 2);
        let p99 = |sampler: &Sampler| sampler.routes()[0]["p99_ms"].as_f64();
        assert!(p99(&sampler).unwrap() > 800.0);
        for at in 3..12 {
            sampler.sample(totals(at * 1000, &cells, 0, 1), at);
            assert!(p99(&sampler).unwrap() > 800.0, "{at}");
        }
        let second = sampler.sample(totals(12_000, &cells, 0, 1), 12).unwrap();
        assert_eq!((p99(&sampler), second.p99_ms), (None, None), "the slow second has left the window");
        assert!(second.heat.is_empty() && second.outcomes.is_empty());
        assert_eq!(sampler.routes()[0]["hit_ratio"], Value::Null, "nothing is no ratio");
    }
}
