//! `pilotlight status --watch`: the essentials of the live page in a terminal, once a second; plain lines when it is none.
//!
//! It listens to `/events` like the page. When the gateway goes away it says so and tries again; only a first attempt that fails ends it.

use std::fmt::Write as _;
use std::io::{self, BufRead, IsTerminal, Write};
use std::thread::sleep;
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::ask::{self, AskError};

/// Between two attempts to reach a gateway that has gone.
const RETRY: Duration = Duration::from_secs(1);
/// Most rows of a kind in a terminal.
const ROWS_MAX: usize = 12;

/// Runs until standard output is closed, or the gateway cannot be reached at the first attempt.
///
/// # Errors
/// The first attempt failed.
pub fn watch(admin: &str) -> Result<(), AskError> {
    let screen = Screen::new();
    let mut events = ask::events(admin)?;
    loop {
        let Ok(why) = follow(&mut events, &screen) else { return Ok(()) };
        if screen.lost(&why).is_err() {
            return Ok(());
        }
        events = loop {
            sleep(RETRY);
            if let Ok(events) = ask::events(admin) {
                break events;
            }
        };
    }
}

/// Shows every event until there are no more: why. The error is one of standard output.
fn follow(events: &mut impl BufRead, screen: &Screen) -> io::Result<String> {
    let mut line = String::new();
    loop {
        line.clear();
        match events.read_line(&mut line) {
            Ok(0) => return Ok("it closed the connection".to_owned()),
            Ok(_) => {}
            Err(error) => return Ok(ask::explain(&error)),
        }
        let data = line.strip_prefix("data: ").and_then(|json| serde_json::from_str::<Value>(json).ok());
        if let Some(now) = data {
            screen.show(&now)?;
        }
    }
}

struct Screen {
    terminal: bool,
    colours: bool,
}

impl Screen {
    fn new() -> Self {
        let terminal = io::stdout().is_terminal();
        Self { terminal, colours: terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()) }
    }

    fn show(&self, now: &Value) -> io::Result<()> {
        let text = if self.terminal { self.page(now) } else { format!("{}\n", line(now)) };
        self.print(&text)
    }

    fn lost(&self, why: &str) -> io::Result<()> {
        let text = self.paint(Colour::Bad, &format!("{} gateway gone ({why}), trying again", clock()));
        self.print(&format!("{text}\n"))
    }

    fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    /// The whole terminal anew: home, each line with what was behind it erased, and what was below erased.
    fn page(&self, now: &Value) -> String {
        let (status, live) = (&now["status"], &now["live"]);
        let mut out = String::new();
        let mut put = |line: String| {
            let _ = write!(out, "{line}\x1b[K\r\n");
        };
        let state = state(status);
        let level = if state == "ready" { Colour::Good } else { Colour::Warn };
        put(format!(
            "pilotlight {}  {}  up {}  {}",
            status["version"].as_str().unwrap_or_default(),
            self.paint(level, &state),
            duration(number(&status["uptime_secs"])),
            clock()
        ));
        put(summary(&now["second"]));
        put(String::new());
        for finding in findings(status) {
            put(self.paint(Colour::Warn, &format!("! {finding}")));
        }
        self.heading(&mut put, "route                                 req/s    hits       p50       p99     p99.9");
        for (name, route) in rows(&status["routes"], &live["routes"]) {
            put(format!(
                "{:<34} {:>8} {:>7} {:>9} {:>9} {:>9}",
                cut(name, 34),
                rate(&route["rate"]),
                percent(&route["hit_ratio"]),
                millis(&route["p50_ms"]),
                millis(&route["p99_ms"]),
                millis(&route["p999_ms"])
            ));
        }
        put(String::new());
        self.heading(&mut put, "upstream                              slots   queue     req/s    failed       p99");
        for (at, upstream) in list(&status["upstreams"]).enumerate().take(ROWS_MAX) {
            let lately = &live["upstreams"][at];
            let queue = number(&upstream["queue"]);
            let text = format!(
                "{:<34} {:>8} {:>7} {:>9} {:>9} {:>9}",
                cut(upstream["name"].as_str().unwrap_or_default(), 34),
                slots(upstream),
                queue,
                rate(&lately["rate"]),
                rate(&lately["failed_rate"]),
                millis(&lately["p99_ms"])
            );
            put(if queue > 0.0 { self.paint(Colour::Warn, &text) } else { text });
        }
        put(String::new());
        self.heading(&mut put, "shard                                  busy     lag   clients  fetching   waiting");
        for (at, shard) in list(&status["shards"]).enumerate().take(ROWS_MAX) {
            let lately = &live["shards"][at];
            let stalled = shard["stalled"] == true || shard["ended"] == true;
            let text = format!(
                "{:<34} {:>8} {:>7} {:>9} {:>9} {:>9}",
                format!("{at}{}", if stalled { " stands still" } else { "" }),
                whole_percent(&lately["busy"]),
                millis(&lately["lag_p99_ms"]),
                shard["connections"].to_string(),
                shard["inflight"].to_string(),
                shard["waiters"].to_string()
            );
            put(if stalled { self.paint(Colour::Bad, &text) } else { text });
        }
        self.more(&mut put, status, live);
        format!("\x1b[H{out}\x1b[J")
    }

    fn more(&self, put: &mut impl FnMut(String), status: &Value, live: &Value) {
        if list(&status["warm"]).next().is_some() {
            put(String::new());
            self.heading(put, "warm list                            filled              oldest     next refresh");
        }
        for warm in list(&status["warm"]).take(ROWS_MAX) {
            put(format!(
                "{:<34} {:>8} {:>19} {:>16}",
                cut(warm["list"].as_str().unwrap_or_default(), 34),
                format!("{}/{}", warm["filled"], warm["total"]),
                warm["oldest_age_secs"].as_f64().map_or_else(|| "-".to_owned(), duration),
                warm["next_refresh_secs"].as_f64().map_or_else(|| "-".to_owned(), duration)
            ));
        }
        if list(&live["hot"]).next().is_some() {
            put(String::new());
            self.heading(put, "  hits/s  hottest keys");
        }
        for hot in list(&live["hot"]).take(5) {
            put(format!("{:>8}  {}", rate(&hot["rate"]), cut(hot["key"].as_str().unwrap_or_default(), 70)));
        }
    }

    fn heading(&self, put: &mut impl FnMut(String), text: &str) {
        put(self.paint(Colour::Faint, text));
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.colours { format!("\x1b[{}m{text}\x1b[0m", colour as u8) } else { text.to_owned() }
    }
}

/// As terminals number them.
#[derive(Clone, Copy)]
enum Colour {
    Faint = 2,
    Bad = 31,
    Good = 32,
    Warn = 33,
}

/// Everything that matters in one line.
fn line(now: &Value) -> String {
    let status = &now["status"];
    let mut line = format!("{} {} {}", clock(), state(status), summary(&now["second"]));
    for upstream in list(&status["upstreams"]).take(ROWS_MAX) {
        let name = upstream["name"].as_str().unwrap_or_default();
        let _ = write!(line, " | {name} {} slots {} queued", slots(upstream), number(&upstream["queue"]));
    }
    for finding in findings(status) {
        let _ = write!(line, " | ! {finding}");
    }
    line
}

fn state(status: &Value) -> String {
    if status["draining"] == true {
        return "draining".to_owned();
    }
    if status["ready"] == true {
        return "ready".to_owned();
    }
    let reasons: Vec<_> = list(&status["reasons"]).filter_map(Value::as_str).collect();
    format!("not ready: {}", reasons.join("; "))
}

/// Requests, hit ratio and latency of the last second.
fn summary(second: &Value) -> String {
    let rates = |names: &[&str]| names.iter().map(|name| number(&second["outcomes"][name])).sum::<f64>();
    let all: f64 = second["outcomes"].as_object().into_iter().flatten().map(|(_, rate)| number(rate)).sum();
    let ratio = (all > 0.0).then(|| rates(&["hit", "stale"]) / all);
    format!(
        "{} req/s, hits {}, errors {}/s, p50 {}, p99 {}, upstreams {}/s",
        rate(&Value::from(all)),
        percent(&Value::from(ratio)),
        rate(&Value::from(rates(&["error", "rejected"]))),
        millis(&second["p50_ms"]),
        millis(&second["p99_ms"]),
        rate(&second["upstream_rate"])
    )
}

/// What the watchdog found: kind, subject, detail.
fn findings(status: &Value) -> impl Iterator<Item = String> + '_ {
    list(&status["findings"]).take(ROWS_MAX).map(|finding| {
        let word = |name: &str| printable(finding[name].as_str().unwrap_or_default());
        format!("{} {}: {}", word("kind").replace('_', " "), word("subject"), word("detail"))
    })
}

/// The busiest routes: name, and what happened lately.
fn rows<'a>(names: &'a Value, lately: &'a Value) -> Vec<(&'a str, &'a Value)> {
    let names = list(names).map(|route| route["name"].as_str().unwrap_or_default());
    let mut rows: Vec<_> = names.zip(list(lately)).collect();
    rows.sort_by(|a, b| number(&b.1["rate"]).total_cmp(&number(&a.1["rate"])));
    rows.truncate(ROWS_MAX);
    rows
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or(0.0)
}

fn slots(upstream: &Value) -> String {
    match upstream["max_concurrency"].as_u64() {
        Some(most) => format!("{}/{most}", number(&upstream["inflight"])),
        None => number(&upstream["inflight"]).to_string(),
    }
}

fn rate(value: &Value) -> String {
    let rate = number(value);
    if rate >= 100.0 || rate.fract() == 0.0 { format!("{rate:.0}") } else { format!("{rate:.1}") }
}

fn percent(value: &Value) -> String {
    // Cut, not rounded: 100 % means all.
    value.as_f64().map_or_else(|| "-".to_owned(), |share| format!("{:.1}%", (share * 1000.0).floor() / 10.0))
}

fn whole_percent(value: &Value) -> String {
    value.as_f64().map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0))
}

fn millis(value: &Value) -> String {
    match value.as_f64() {
        None => "-".to_owned(),
        Some(ms) if ms < 10.0 => format!("{ms:.2}ms"),
        Some(ms) if ms < 1000.0 => format!("{ms:.0}ms"),
        Some(ms) => format!("{:.2}s", ms / 1000.0),
    }
}

fn duration(secs: f64) -> String {
    humantime::format_duration(Duration::from_secs(secs.max(0.0) as u64)).to_string()
}

fn clock() -> String {
    let now = humantime::format_rfc3339_seconds(SystemTime::now()).to_string();
    now.get(11..19).unwrap_or_default().to_owned() + "Z"
}

/// At most so many characters, none of which could command the terminal: keys are other people's text.
fn cut(text: &str, length: usize) -> String {
    let text = printable(text);
    if text.chars().count() <= length {
        return text;
    }
    text.chars().take(length - 1).chain(['…']).collect()
}

fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn now() -> Value {
        json!({
            "second": {"outcomes": {"hit": 90.0, "stale": 9.0, "error": 1.0}, "p50_ms": 0.25, "p99_ms": 1500.0, "upstream_rate": 1.5},
            "status": {
                "version": "0.1.0", "ready": true, "draining": false, "reasons": [], "uptime_secs": 61,
                "upstreams": [{"name": "django", "max_concurrency": 4, "inflight": 4.0, "queue": 7.0}],
                "routes": [{"name": "/"}], "shards": [{"stalled": true, "connections": 3, "inflight": 4, "waiters": 0}],
                "warm": [{"list": "farms", "filled": 8, "total": 8, "oldest_age_secs": 5.5, "next_refresh_secs": 90.0}],
                "findings": [{"kind": "sync_trap", "subject": "django", "detail": "all slots busy"}],
            },
            "live": {
                "routes": [{"rate": 100.0, "hit_ratio": 0.99999, "p50_ms": 0.25, "p99_ms": 1500.0, "p999_ms": null}],
                "upstreams": [{"rate": 1.5, "failed_rate": 0.0, "p99_ms": 20.0}],
                "shards": [{"busy": 0.123, "lag_p99_ms": 3.0}],
                "hot": [{"key": "h/\u{1b}[2J", "rate": 80.0}],
            },
        })
    }

    #[test]
    fn the_line() {
        let text = line(&now());
        let expected = "ready 100 req/s, hits 99.0%, errors 1/s, p50 0.25ms, p99 1.50s, upstreams 1.5/s | django 4/4 slots 7 queued \
             | ! sync trap django: all slots busy";
        assert_eq!(text.split_once(' ').unwrap().1, expected);
    }

    #[test]
    fn the_page_has_all_of_it_and_obeys_no_key() {
        let screen = Screen { terminal: true, colours: false };
        let text = screen.page(&now());
        for part in ["up 1m 1s", "4/4", "99.9%", "0 stands still", "12%", "8/8", "1m 30s", "sync trap", "h/\u{fffd}[2J"]
        {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        let left = text.replace("\x1b[K", "").replace("\x1b[H", "").replace("\x1b[J", "");
        assert!(!left.contains('\x1b'), "no colours, and nothing of the key's");
        assert!(Screen { terminal: true, colours: true }.page(&now()).contains("\x1b[33m"));
        assert!(text.lines().all(|line| line.chars().count() < 95), "it fits");
    }

    #[test]
    fn an_empty_status_is_no_panic() {
        assert!(line(&json!({})).contains("not ready"));
        assert!(Screen { terminal: true, colours: true }.page(&Value::Null).contains("pilotlight"));
    }
}
