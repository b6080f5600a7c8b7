//! The one line that says what is wrong with the configuration, and where.
//! Messages name what was got and what is allowed; a message never has a line break.

use std::fmt;
use std::ops::Range;

/// Displays as `file:line:column: message`, or `file: message` where there is no place to point at (an unreadable file; for a
/// flag, the flag's name stands where the file's would).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ConfigError {
    pub file: String,
    /// Line and column, both from 1; the column counts characters.
    pub place: Option<(usize, usize)>,
    pub message: String,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.place {
            Some((line, column)) => write!(f, "{}:{line}:{column}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

impl ConfigError {
    /// An error without a place in a file: `file` is its name, or that of a flag.
    pub fn without_place(file: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { file: file.into(), place: None, message: one_line(&message.to_string()) }
    }
}

/// The text that spans point into, and what to call it in messages.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a> {
    pub name: &'a str,
    pub text: &'a str,
}

/// Where a value came from: a span of the file, or a flag (by name), or a default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    File(Range<usize>),
    Flag(&'static str),
    Default,
}

impl Source<'_> {
    /// An error at the start of `span`.
    pub fn at(&self, span: Range<usize>, message: impl fmt::Display) -> ConfigError {
        let place = Some(line_column(self.text, span.start));
        ConfigError { file: self.name.to_owned(), place, message: one_line(&message.to_string()) }
    }

    /// An error about a value of which we know where it came from.
    pub fn at_origin(&self, origin: &Origin, message: impl fmt::Display) -> ConfigError {
        match origin {
            Origin::File(span) => self.at(span.clone(), message),
            Origin::Flag(flag) => ConfigError::without_place(*flag, message),
            Origin::Default => ConfigError::without_place(self.name, message),
        }
    }

    /// An error of the TOML reader or of a value's own `Deserialize`.
    pub fn toml(&self, error: &toml::de::Error) -> ConfigError {
        let message = reword(error.message());
        match error.span() {
            Some(span) => self.at(span, message),
            None => ConfigError::without_place(self.name, message),
        }
    }
}

fn line_column(text: &str, offset: usize) -> (usize, usize) {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    let before = &text[..offset];
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = 1 + before.bytes().filter(|byte| *byte == b'\n').count();
    (line, 1 + before[line_start..].chars().count())
}

fn one_line(message: &str) -> String {
    message.split(['\n', '\r']).map(str::trim).filter(|part| !part.is_empty()).collect::<Vec<_>>().join("; ")
}

/// serde speaks of fields and lists them all; we speak of keys, and put the nearest one first.
fn reword(message: &str) -> String {
    if let Some(rest) = message.strip_prefix("missing field ") {
        return format!("missing key {rest}");
    }
    let Some(rest) = message.strip_prefix("unknown field ") else {
        return message.to_owned();
    };
    let mut names = rest.split('`').skip(1).step_by(2);
    let got = names.next().unwrap_or_default();
    unknown("key", got, &names.collect::<Vec<_>>())
}

/// "unknown `what` …": the nearest known name first, then all of them.
pub fn unknown(what: &str, got: &str, known: &[&str]) -> String {
    let nearest = known.iter().map(|name| (distance(got, name), *name)).min();
    let hint = match nearest {
        // Beyond a third of the word the guess would be noise.
        Some((edits, name)) if edits <= 1 + got.len() / 3 => format!("; did you mean `{name}`?"),
        _ => String::new(),
    };
    let list = known.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    let list = if list.is_empty() { "none".to_owned() } else { list };
    format!("unknown {what} `{got}`{hint} (known here: {list})")
}

/// Levenshtein's distance, on bytes: names are short and ASCII.
fn distance(left: &str, right: &str) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, l) in left.bytes().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, r) in right.bytes().enumerate() {
            let substitute = diagonal + usize::from(l != r);
            diagonal = row[j + 1];
            row[j + 1] = substitute.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "a = 1\nä = ö!\n";
        for (offset, expected) in [(0, (1, 1)), (4, (1, 5)), (6, (2, 1)), (8, (2, 2)), (13, (2, 6)), (999, (3, 1))] {
            assert_eq!(line_column(text, offset), expected, "offset {offset}");
        }
    }

    #[test]
    fn edits_are_counted() {
        for (left, right, edits) in
            [("", "abc", 3), ("listn", "listen", 1), ("ttl", "ttl", 0), ("kitten", "sitting", 3)]
        {
            assert_eq!(distance(left, right), edits, "{left} {right}");
        }
    }
}
