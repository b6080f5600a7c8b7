//! The recorder from the outside: what threads add up to, and text that a strict reader accepts.

use super::*;
use crate::base::exemplar::Exemplar;
use crate::base::outcome::{FetchKind, Outcome};
use crate::control::openmetrics::Format;
use crate::control::strict;
use crate::telemetry::{EvictReason, FetchResult, Telemetry};
use metrics::{counter, describe_counter, describe_histogram, gauge, histogram, with_local_recorder};
use std::time::Duration;

fn rendered(recorder: &Recorder) -> String {
    let mut page = Page::new(Format::Text, String::new(), None);
    recorder.render(&mut page);
    page.end()
}

#[test]
fn cells_of_threads_add_up() {
    let recorder = Recorder::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                with_local_recorder(&recorder, || {
                    let (hits, level, time) = (counter!("hits_total"), gauge!("level"), histogram!("time_seconds"));
                    for _ in 0..10_000 {
                        hits.increment(1);
                        level.increment(2.0);
                        level.decrement(1.0);
                        time.record(0.003);
                    }
                });
            });
        }
    });
    assert_eq!(recorder.value("hits_total", &[]), Some(40_000.0));
    assert_eq!(recorder.value("level", &[]), Some(40_000.0));
    let snapshot = recorder.histogram("time_seconds", &[]);
    assert_eq!((snapshot.count(), snapshot.sum_ns), (40_000, 40_000 * 3_000_000));
    strict::parse(&rendered(&recorder)).unwrap();
}

#[test]
fn the_same_thread_gets_the_same_cell() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        counter!("a_total", "x" => "1").increment(2);
        counter!("a_total", "x" => "1").increment(3);
        counter!("a_total", "x" => "2").absolute(7);
        counter!("a_total", "x" => "2").absolute(6);
    });
    assert_eq!(recorder.value("a_total", &[("x", "1")]), Some(5.0));
    assert_eq!(recorder.value("a_total", &[]), Some(12.0));
    assert_eq!(recorder.value("a_total", &[("x", "3")]), None);
}

#[test]
fn text_is_escaped_and_complete() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        describe_counter!("odd.name_total", "a \\ and\na line");
        describe_histogram!("never_seconds", "declared, never recorded");
        counter!("odd.name_total", "1 label" => "q\"b\\n\nl").increment(1);
        gauge!("wide").set(f64::INFINITY);
        histogram!("time_seconds", "route" => "/a").record(0.25);
    });
    let text = rendered(&recorder);
    assert!(text.contains("# HELP odd_name_total a \\\\ and\\na line\n"), "{text}");
    assert!(text.contains("odd_name_total{_1_label=\"q\\\"b\\\\n\\nl\"} 1\n"), "{text}");
    assert!(text.contains("# TYPE never_seconds histogram\n"), "{text}");
    assert!(text.contains("wide +Inf\n"), "{text}");
    assert!(text.contains("time_seconds_bucket{route=\"/a\",le=\"0.1\"} 0\n"), "{text}");
    assert!(text.contains("time_seconds_bucket{route=\"/a\",le=\"0.25\"} 1\n"), "{text}");
    strict::parse(&text).unwrap();
}

#[test]
fn what_is_written_again_is_what_was_recorded_by_then() {
    let recorder = Recorder::new();
    let traced = |value_ns| {
        let traces = move |_: &str, _: &Labels| match value_ns {
            0 => Vec::new(),
            value_ns => vec![Exemplar { trace_id: 7, value_ns, unix_ms: 1 }],
        };
        let mut page = Page::new(Format::OpenMetrics, String::new(), Some(&traces));
        recorder.render(&mut page);
        page.end()
    };
    let record =
        |secs: f64| with_local_recorder(&recorder, || histogram!("time_seconds", "route" => "/a").record(secs));
    for (count, secs) in [(1, 0.25), (2, 0.0), (3, 0.0), (4, 1.5)] {
        record(secs);
        let line = format!("time_seconds_count{{route=\"/a\"}} {count}\n");
        // Written, written and kept, copied; then the same in the other format.
        let texts = [(); 3].map(|()| rendered(&recorder));
        assert!(texts[0].contains(&line) && !texts[0].contains("# EOF"), "{}", texts[0]);
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
        let texts = [(); 3].map(|()| traced(0));
        assert!(texts[0].contains(&line) && texts[0].ends_with("# EOF\n"), "{}", texts[0]);
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
    }
    assert!(!traced(0).contains("trace_id"));
    record(0.1);
    assert!(traced(100_000_000).contains("trace_id"), "an exemplar of a series that did not change since");
    assert!(traced(100_000_000).contains("trace_id"));
    assert!(!traced(0).contains("trace_id"), "and none is left behind");
}

#[test]
fn a_name_has_one_kind() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        counter!("x_total").increment(1);
        gauge!("x_total").set(9.0);
    });
    assert_eq!(recorder.value("x_total", &[]), Some(1.0));
}

#[test]
fn values_that_are_no_durations_do_no_harm() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        let time = histogram!("time_seconds");
        [f64::NAN, -1.0, 0.0, f64::INFINITY].into_iter().for_each(|secs| time.record(secs));
        time.record_many(0.5, 3);
    });
    assert_eq!(recorder.histogram("time_seconds", &[]).count(), 7);
    strict::parse(&rendered(&recorder)).unwrap();
}

#[test]
fn updates_arrive_under_the_names_of_the_contract() {
    let recorder = Recorder::new();
    metrics::with_local_recorder(&recorder, || {
        let telemetry = Telemetry::register(3, &["/", "/api/"], &["django"]).with_reject_reasons(&["head_too_large"]);
        telemetry.request_done(1, Outcome::Hit, Duration::from_millis(1));
        telemetry.fetch_done(0, FetchKind::Warm, FetchResult::Timeout, Duration::from_secs(2));
        telemetry.upstream_load(0, 4, 2);
        telemetry.cache_size(1000, 2000, 10);
        telemetry.evicted(EvictReason::Purged, 5);
        telemetry.connections(1, 2);
        telemetry.rejected("head_too_large");
        telemetry.rejected("head_too_large");
        telemetry.rejected("unheard of");
    });
    for (name, labels, expected) in [
        ("pilotlight_requests_total", &[("route", "/api/"), ("outcome", "hit")][..], 1.0),
        ("pilotlight_upstream_requests_total", &[("upstream", "django"), ("kind", "warm"), ("result", "timeout")], 1.0),
        ("pilotlight_upstream_inflight", &[("upstream", "django")], 4.0),
        ("pilotlight_upstream_queue", &[("upstream", "django")], 2.0),
        ("pilotlight_cache_bytes", &[], 1000.0),
        ("pilotlight_cache_budget_bytes", &[], 2000.0),
        ("pilotlight_cache_entries", &[], 10.0),
        ("pilotlight_cache_evictions_total", &[("reason", "purged")], 5.0),
        ("pilotlight_connections", &[("shard", "3"), ("state", "idle")], 2.0),
        ("pilotlight_rejected_total", &[("reason", "head_too_large")], 2.0),
        ("pilotlight_rejected_total", &[("reason", "other")], 1.0),
    ] {
        assert_eq!(recorder.value(name, labels), Some(expected), "{name}{labels:?}");
    }
    assert_eq!(recorder.histogram("pilotlight_request_duration_seconds", &[("route", "/api/")]).count(), 1);
}

#[test]
fn openmetrics_differs_where_it_must() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        describe_counter!("hits_total", "say \"hits\"");
        counter!("hits_total").increment(2);
        histogram!("time_seconds", "route" => "/a").record(0.25);
        histogram!("time_seconds", "route" => "/b").record(0.25);
    });
    let of = |trace_id, value_ns, unix_ms| Exemplar { trace_id, value_ns, unix_ms };
    let traces = |family: &str, labels: &Labels| {
        assert_eq!(family, "time_seconds");
        let seen = vec![of(1, 250_000_000, 1_000), of(2, 200_000_000, 2_000), of(3, 90_000_000_000, 0)];
        if labels[0].1 == "/a" { seen } else { Vec::new() }
    };
    let page = |format| {
        let mut page = Page::new(format, String::new(), Some(&traces));
        recorder.render(&mut page);
        page.end()
    };
    let text = page(Format::OpenMetrics);
    for line in [
        "# HELP hits say \\\"hits\\\"",
        "# TYPE hits counter",
        "hits_total 2",
        "time_seconds_bucket{route=\"/a\",le=\"1e-05\"} 0",
        "time_seconds_bucket{route=\"/a\",le=\"0.1\"} 0",
        "time_seconds_bucket{route=\"/a\",le=\"0.25\"} 1 # {trace_id=\"00000000000000000000000000000002\"} 0.2 2",
        "time_seconds_bucket{route=\"/a\",le=\"1.0\"} 1",
        "time_seconds_bucket{route=\"/a\",le=\"+Inf\"} 1 # {trace_id=\"00000000000000000000000000000003\"} 90 0",
        "time_seconds_bucket{route=\"/b\",le=\"0.25\"} 1",
    ] {
        assert!(text.lines().any(|seen| seen == line), "{line}\n{text}");
    }
    assert!(text.ends_with("\n# EOF\n"));
    let plain = page(Format::Text);
    assert!(plain.contains("# HELP hits_total say \"hits\"\n") && !plain.contains("trace_id"), "{plain}");
    strict::parse(&plain).unwrap();
}

#[test]
fn each_family_shows_the_bounds_of_its_scale() {
    let recorder = Recorder::new();
    with_local_recorder(&recorder, || {
        histogram!("pilotlight_staleness_served_seconds").record(7_200.0);
        histogram!("pilotlight_upstream_phase_seconds").record(0.004);
        histogram!("pilotlight_request_duration_seconds").record(0.000_02);
    });
    let samples = strict::parse(&rendered(&recorder)).unwrap();
    let bounds = |name: &str| {
        let name = format!("{name}_bucket{{le=\"");
        let of = samples
            .iter()
            .filter_map(|(series, value)| Some((series.strip_prefix(&name)?.strip_suffix("\"}")?, *value)));
        of.collect::<Vec<_>>()
    };
    let ages = bounds("pilotlight_staleness_served_seconds");
    assert!(ages.contains(&("3600", 0.0)) && ages.contains(&("86400", 1.0)) && ages.len() == 10, "{ages:?}");
    let waits = bounds("pilotlight_upstream_phase_seconds");
    assert!(waits.contains(&("0.001", 0.0)) && waits.contains(&("0.005", 1.0)) && waits.len() == 15, "{waits:?}");
    let requests = bounds("pilotlight_request_duration_seconds");
    assert!(requests.contains(&("1e-05", 0.0)) && requests.contains(&("2.5e-05", 1.0)) && requests.len() == 22);
}
