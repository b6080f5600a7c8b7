//! A strict reader of the text format for tests: what it accepts, Prometheus accepts.

use std::collections::{BTreeMap, BTreeSet};

/// Every sample in order: its name with labels as written, and its value.
pub(crate) type Samples = Vec<(String, f64)>;

pub(crate) fn parse(text: &str) -> Result<Samples, String> {
    assert!(text.is_empty() || text.ends_with('\n'), "the last line must end");
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let (mut helped, mut seen, mut samples) = (BTreeSet::new(), BTreeSet::new(), Samples::new());
    let mut current = String::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let name = rest.split_once(' ').ok_or("HELP without a text")?.0.to_owned();
            if !helped.insert(name) {
                return Err(format!("second HELP: {line}"));
            }
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').ok_or("TYPE without a kind")?;
            if !helped.contains(name) || kinds.insert(name.to_owned(), kind.to_owned()).is_some() {
                return Err(format!("TYPE without HELP, or a second one: {line}"));
            }
            current = name.to_owned();
        } else {
            let (series, value) = sample(line)?;
            if family(&series, &kinds) != Some(&current) {
                return Err(format!("outside its family {current}: {line}"));
            }
            if !seen.insert(series.clone()) {
                return Err(format!("twice: {line}"));
            }
            samples.push((series, value));
        }
    }
    histograms(&samples)?;
    Ok(samples)
}

fn sample(line: &str) -> Result<(String, f64), String> {
    let (series, value) = line.rsplit_once(' ').ok_or_else(|| format!("no value: {line}"))?;
    let value = match value {
        "+Inf" => f64::INFINITY,
        "-Inf" => f64::NEG_INFINITY,
        other => other.parse().map_err(|_| format!("not a number: {line}"))?,
    };
    labels(series).map_err(|why| format!("{why}: {line}"))?;
    Ok((series.to_owned(), value))
}

fn labels(series: &str) -> Result<(), &'static str> {
    let Some((_, rest)) = series.split_once('{') else { return Ok(()) };
    let mut rest = rest.strip_suffix('}').ok_or("labels not closed")?;
    loop {
        let (name, after) = rest.split_once("=\"").ok_or("label without a value")?;
        if name.is_empty() || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err("label name");
        }
        rest = after.get(value_len(after)? + 1..).ok_or("value not closed")?;
        if rest.is_empty() {
            return Ok(());
        }
        rest = rest.strip_prefix(',').ok_or("no comma between labels")?;
    }
}

/// Bytes of a label value up to its closing quote.
fn value_len(text: &str) -> Result<usize, &'static str> {
    let mut bytes = text.bytes().enumerate();
    while let Some((at, byte)) = bytes.next() {
        match byte {
            b'"' => return Ok(at),
            b'\\' if !matches!(bytes.next(), Some((_, b'\\' | b'"' | b'n'))) => return Err("escape"),
            _ => {}
        }
    }
    Err("value without an end")
}

fn family<'a>(series: &str, kinds: &'a BTreeMap<String, String>) -> Option<&'a String> {
    let name = series.split('{').next()?;
    if let Some((family, kind)) = kinds.get_key_value(name) {
        return (kind != "histogram").then_some(family);
    }
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix))?;
    kinds.get_key_value(base).filter(|(_, kind)| *kind == "histogram").map(|(family, _)| family)
}

/// Buckets never fall, and the last one is the count.
fn histograms(samples: &Samples) -> Result<(), String> {
    let mut last = 0.0;
    for (series, value) in samples {
        if series.contains("_bucket{") {
            if *value < last {
                return Err(format!("buckets fall at {series}"));
            }
            last = *value;
        } else if series.contains("_count") && last != *value {
            return Err(format!("{series} is {value}, its last bucket {last}"));
        } else if !series.contains("_sum") {
            last = 0.0;
        }
        if series.contains("_count") {
            last = 0.0;
        }
    }
    Ok(())
}
