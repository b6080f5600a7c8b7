//! Brace expansion of warm paths: `{a..b}` counts (either way, zero padded when written so), `{x,y}` lists.
//! Several per path multiply, the last one turning fastest. There is no nesting and no escape: a literal brace in a path is `%7B`.

/// Why a pattern cannot be expanded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExpandError {
    #[error("`{{` without `}}` in {0:?}")]
    Unclosed(String),
    #[error("`}}` without `{{` in {0:?}")]
    Unopened(String),
    #[error("nested braces in {0:?}; only one level is understood")]
    Nested(String),
    #[error("`{{{0}}}` is neither a range such as {{1..8}} nor a list such as {{a,b}}")]
    Neither(String),
    #[error("{0:?} expands to more than the {1} paths that are allowed")]
    TooMany(String, usize),
}

/// Expands `pattern` into at most `most` strings, in order.
pub fn expand(pattern: &str, most: usize) -> Result<Vec<String>, ExpandError> {
    let pieces = pieces(pattern, most)?;
    let count = pieces.iter().try_fold(1_usize, |count, piece| count.checked_mul(piece.len()));
    if count.is_none_or(|count| count > most) {
        return Err(ExpandError::TooMany(pattern.to_owned(), most));
    }
    let mut expanded = vec![String::new()];
    for piece in &pieces {
        expanded = expanded.iter().flat_map(|start| piece.iter().map(move |end| format!("{start}{end}"))).collect();
    }
    Ok(expanded)
}

/// The alternatives of each piece of the pattern; literal text is a piece with one alternative.
fn pieces(pattern: &str, most: usize) -> Result<Vec<Vec<String>>, ExpandError> {
    let mut pieces = Vec::new();
    let mut rest = pattern;
    while let Some(open) = rest.find(['{', '}']) {
        if rest.as_bytes()[open] == b'}' {
            return Err(ExpandError::Unopened(pattern.to_owned()));
        }
        pieces.push(vec![rest[..open].to_owned()]);
        let inside = &rest[open + 1..];
        let close = inside.find(['{', '}']).ok_or_else(|| ExpandError::Unclosed(pattern.to_owned()))?;
        if inside.as_bytes()[close] == b'{' {
            return Err(ExpandError::Nested(pattern.to_owned()));
        }
        match alternatives(&inside[..close], most) {
            Some(alternatives) => pieces.push(alternatives),
            None => return Err(why_not(pattern, &inside[..close], most)),
        }
        rest = &inside[close + 1..];
    }
    pieces.push(vec![rest.to_owned()]);
    Ok(pieces)
}

/// Tells a range that is too long from text that is no range at all.
fn why_not(pattern: &str, inside: &str, most: usize) -> ExpandError {
    match range(inside) {
        Some(_) => ExpandError::TooMany(pattern.to_owned(), most),
        None => ExpandError::Neither(inside.to_owned()),
    }
}

/// What stands between two braces; `None` if it is neither range nor list, or a range of more than `most`.
fn alternatives(inside: &str, most: usize) -> Option<Vec<String>> {
    if inside.contains(',') {
        return Some(inside.split(',').map(str::to_owned).collect());
    }
    let (first, last, width) = range(inside)?;
    let span = usize::try_from(first.abs_diff(last)).ok()?;
    if span >= most {
        return None;
    }
    let number = |value: u64| format!("{value:0width$}");
    Some(if first <= last { (first..=last).map(number).collect() } else { (last..=first).rev().map(number).collect() })
}

/// First, last and padded width of `a..b`.
fn range(inside: &str) -> Option<(u64, u64, usize)> {
    let (first, last) = inside.split_once("..")?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return None;
    }
    let padded = [first, last].iter().any(|text| text.len() > 1 && text.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Some((first.parse().ok()?, last.parse().ok()?, width))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expansions() {
        let table: &[(&str, &[&str])] = &[
            ("/plain/", &["/plain/"]),
            ("/f/{1..3}/x", &["/f/1/x", "/f/2/x", "/f/3/x"]),
            ("/f/{3..1}", &["/f/3", "/f/2", "/f/1"]),
            ("/f/{5..5}", &["/f/5"]),
            ("/f/{08..11}", &["/f/08", "/f/09", "/f/10", "/f/11"]),
            ("/f/{1..003}", &["/f/001", "/f/002", "/f/003"]),
            ("/f/{0..1}", &["/f/0", "/f/1"]),
            ("/{a,b}", &["/a", "/b"]),
            ("/{a,}x", &["/ax", "/x"]),
            ("/{a,b}/{1..2}", &["/a/1", "/a/2", "/b/1", "/b/2"]),
            ("/ä/{x,y}", &["/ä/x", "/ä/y"]),
        ];
        for (pattern, expected) in table {
            assert_eq!(expand(pattern, 100).unwrap(), *expected, "{pattern}");
        }
    }

    #[test]
    fn refusals() {
        let text = |text: &str| text.to_owned();
        for (pattern, expected) in [
            ("/{1..2", ExpandError::Unclosed(text("/{1..2"))),
            ("/1..2}", ExpandError::Unopened(text("/1..2}"))),
            ("/{a,{b}}", ExpandError::Nested(text("/{a,{b}}"))),
            ("/{a}", ExpandError::Neither(text("a"))),
            ("/{}", ExpandError::Neither(text(""))),
            ("/{1..x}", ExpandError::Neither(text("1..x"))),
            ("/{-1..2}", ExpandError::Neither(text("-1..2"))),
            ("/{1..101}", ExpandError::TooMany(text("/{1..101}"), 100)),
            ("/{0..18446744073709551615}", ExpandError::TooMany(text("/{0..18446744073709551615}"), 100)),
            ("/{1..11}/{1..10}", ExpandError::TooMany(text("/{1..11}/{1..10}"), 100)),
        ] {
            assert_eq!(expand(pattern, 100), Err(expected), "{pattern}");
        }
    }
}
