//! Latency by percentile as an SVG that stands alone: both axes logarithmic, percentiles by 1/(1-p), so that each step to the right
//! is ten times rarer.

use std::fmt::Write;

use super::report::{Point, Report, Spread, time};

const WIDTH: f64 = 1040.0;
const HEIGHT: f64 = 600.0;
const LEFT: f64 = 84.0;
const RIGHT: f64 = 1008.0;
const TOP: f64 = 176.0;
const BOTTOM: f64 = 536.0;
/// Told apart by lightness too (Okabe and Ito).
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6b4c9a"];
const HICCUP: &str = "#8a8f98";
const LEGEND_ROWS_MAX: usize = 8;

struct Line<'a> {
    name: &'a str,
    colour: &'static str,
    dashed: bool,
    spread: &'a Spread,
}

/// Where percentiles and times lie.
struct Scale {
    decades: f64,
    low: f64,
    high: f64,
}

impl Scale {
    fn of(lines: &[Line<'_>]) -> Self {
        let spreads = || lines.iter().map(|line| line.spread).filter(|spread| spread.count > 0);
        let count = spreads().map(|spread| spread.count).max().unwrap_or(10) as f64;
        let least = spreads().map(|spread| spread.spectrum[0].us.max(0.1)).fold(f64::INFINITY, f64::min);
        let most = spreads().map(|spread| spread.max_us).fold(0.0, f64::max);
        let (low, high) = if most > 0.0 { (below(least), above(most)) } else { (1.0, 1000.0) };
        Self { decades: count.log10().clamp(1.0, 7.0), low, high: high.max(low * 10.0) }
    }

    fn x(&self, odds: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (odds.log10() / self.decades).clamp(0.0, 1.0)
    }

    fn y(&self, us: f64) -> f64 {
        let share = (us.max(self.low) / self.low).ln() / (self.high / self.low).ln();
        BOTTOM - (BOTTOM - TOP) * share.clamp(0.0, 1.0)
    }
}

/// The next of 1, 2, 5, 10… that is not above.
fn below(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    [5.0, 2.0, 1.0].into_iter().map(|step| step * decade).find(|&step| step <= value * 1.0001).unwrap_or(decade)
}

fn above(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|step| step * decade).find(|&step| step >= value).unwrap_or(10.0 * decade)
}

#[must_use]
pub fn svg(report: &Report) -> String {
    let mut lines: Vec<Line<'_>> = report
        .targets
        .iter()
        .zip(COLOURS.iter().cycle())
        .map(|(target, colour)| Line { name: &target.url, colour, dashed: false, spread: &target.latency })
        .collect();
    lines.truncate(LEGEND_ROWS_MAX - 1);
    lines.push(Line { name: "the machine itself (hiccups)", colour: HICCUP, dashed: true, spread: &report.hiccups });
    // Each line of the legend beyond the third moves the drawing down.
    let shift = 20.0 * lines.len().saturating_sub(3) as f64;
    let scale = Scale::of(&lines);
    let mut out = String::new();
    let height = HEIGHT + shift;
    let _ = write!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" \
         font-family=\"system-ui, -apple-system, 'Segoe UI', Roboto, 'DejaVu Sans', sans-serif\" font-size=\"13\">\n\
         <title>Latency by percentile</title>\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n"
    );
    text(
        &mut out,
        32.0,
        38.0,
        "start",
        "font-size=\"20\" font-weight=\"600\" fill=\"#1a1d21\"",
        "Latency by percentile",
    );
    text(&mut out, 32.0, 60.0, "start", "fill=\"#5b626b\"", &report.settings.line());
    legend(&mut out, &lines);
    let _ = writeln!(out, "<g transform=\"translate(0 {shift})\">");
    grid(&mut out, &scale);
    for line in lines.iter().rev() {
        curve(&mut out, line, &scale);
    }
    out.push_str("</g>\n</svg>\n");
    out
}

fn legend(out: &mut String, lines: &[Line<'_>]) {
    const COLUMNS: [(&str, f64); 5] =
        [("p50", 624.0), ("p99", 720.0), ("p99.9", 816.0), ("p99.99", 912.0), ("max", 1008.0)];
    for (name, x) in COLUMNS {
        text(out, x, 90.0, "end", "fill=\"#5b626b\" font-size=\"12\"", name);
    }
    for (row, line) in lines.iter().enumerate() {
        let y = 112.0 + 20.0 * row as f64;
        let dash = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
        let _ = writeln!(
            out,
            "<line x1=\"32\" y1=\"{:.1}\" x2=\"60\" y2=\"{:.1}\" stroke=\"{}\" stroke-width=\"2.5\"{dash}/>",
            y - 4.5,
            y - 4.5,
            line.colour
        );
        text(out, 70.0, y, "start", "fill=\"#1a1d21\"", &shortened(line.name));
        let spread = line.spread;
        let values = [
            (spread.p50_us, 2),
            (spread.p99_us, 100),
            (spread.p999_us, 1_000),
            (spread.p9999_us, 10_000),
            (spread.max_us, 1),
        ];
        for ((us, needed), (_, x)) in values.into_iter().zip(COLUMNS) {
            let value = if spread.count < needed { "–".to_owned() } else { time(us).replace("us", "µs") };
            text(out, x, y, "end", "fill=\"#1a1d21\" style=\"font-variant-numeric: tabular-nums\"", &value);
        }
    }
}

fn shortened(name: &str) -> String {
    const CHARS_MAX: usize = 58;
    if name.chars().count() <= CHARS_MAX {
        return name.to_owned();
    }
    name.chars().take(CHARS_MAX - 1).chain(['…']).collect()
}

fn grid(out: &mut String, scale: &Scale) {
    let labelled = |us: f64| {
        let decade = 10f64.powf(us.log10().round());
        (us / decade - 1.0).abs() < 0.01 || scale.high / scale.low < 2_000.0
    };
    let mut us = scale.low;
    while us <= scale.high * 1.0001 {
        let y = scale.y(us);
        let colour = if labelled(us) { "#e3e6ea" } else { "#f2f4f6" };
        let _ = writeln!(out, "<line x1=\"{LEFT}\" y1=\"{y:.1}\" x2=\"{RIGHT}\" y2=\"{y:.1}\" stroke=\"{colour}\"/>");
        if labelled(us) {
            text(out, LEFT - 10.0, y + 4.5, "end", "fill=\"#5b626b\"", &tick(us));
        }
        us = above(us * 1.5);
    }
    let percentiles =
        [(1.0_f64, "0 %"), (2.0, "50 %"), (10.0, "90 %"), (100.0, "99 %"), (1e3, "99.9 %"), (1e4, "99.99 %")];
    let rarer = [(1e5, "99.999 %"), (1e6, "99.9999 %"), (1e7, "99.99999 %")];
    for (odds, label) in
        percentiles.into_iter().chain(rarer).filter(|(odds, _)| *odds <= 10f64.powf(scale.decades + 0.001))
    {
        let x = scale.x(odds);
        let _ = writeln!(out, "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{BOTTOM}\" stroke=\"#e3e6ea\"/>");
        text(out, x, BOTTOM + 20.0, "middle", "fill=\"#5b626b\"", label);
    }
    let _ = writeln!(out, "<line x1=\"{LEFT}\" y1=\"{BOTTOM}\" x2=\"{RIGHT}\" y2=\"{BOTTOM}\" stroke=\"#9aa1a9\"/>");
    text(out, f64::midpoint(LEFT, RIGHT), BOTTOM + 46.0, "middle", "fill=\"#3a4048\"", "percentile of requests");
    let middle = f64::midpoint(TOP, BOTTOM);
    let turned = format!("fill=\"#3a4048\" transform=\"rotate(-90 24 {middle})\"");
    text(out, 24.0, middle, "middle", &turned, "latency");
}

fn tick(us: f64) -> String {
    match us {
        _ if us < 999.0 => format!("{} µs", rounded(us)),
        _ if us < 999_000.0 => format!("{} ms", rounded(us / 1e3)),
        _ => format!("{} s", rounded(us / 1e6)),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

fn curve(out: &mut String, line: &Line<'_>, scale: &Scale) {
    let count = line.spread.count as f64;
    let odds = |point: &Point| if point.percentile >= 100.0 { count } else { 100.0 / (100.0 - point.percentile) };
    let points: Vec<String> = line
        .spread
        .spectrum
        .iter()
        .map(|point| format!("{:.1},{:.1}", scale.x(odds(point)), scale.y(point.us)))
        .collect();
    if points.is_empty() {
        return;
    }
    let dash = if line.dashed { " stroke-dasharray=\"5 4\"" } else { "" };
    let width = if line.dashed { 2.0 } else { 2.5 };
    let _ = writeln!(
        out,
        "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"{width}\" stroke-linejoin=\"round\" \
         stroke-linecap=\"round\"{dash}/>",
        points.join(" "),
        line.colour
    );
    if let Some((x, y)) = points.last().and_then(|point| point.split_once(',')) {
        let _ = writeln!(out, "<circle cx=\"{x}\" cy=\"{y}\" r=\"3.5\" fill=\"{}\"/>", line.colour);
    }
}

fn text(out: &mut String, x: f64, y: f64, anchor: &str, attributes: &str, content: &str) {
    let content = content.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    let _ = writeln!(out, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {attributes}>{content}</text>");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps() {
        for (value, under, over) in [(1.0, 1.0, 1.0), (3.0, 2.0, 5.0), (70.0, 50.0, 100.0), (0.4, 0.2, 0.5)] {
            assert!((below(value) / under - 1.0).abs() < 1e-9, "{value}");
            assert!((above(value) / over - 1.0).abs() < 1e-9, "{value}");
        }
    }
}
