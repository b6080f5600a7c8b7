//! The recorder from the outside: what threads add up to, and text that a strict reader accepts.

use super::*;
use crate::control::strict;
use metrics::{counter, describe_counter, describe_histogram, gauge, histogram, with_local_recorder};

fn rendered(recorder: &Recorder) -> String {
    let mut text = String::new();
    recorder.render(&mut text);
    text
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
