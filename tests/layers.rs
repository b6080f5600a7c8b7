//! The direction of the layers, read off the source text: who may name whom, and what may be named only in one place.
//!
//! Checked are paths (`crate::…`, grouped or not, and `super::…` that climbs to the root of the crate) and a few words. Comments, string
//! literals and whatever stands behind `#[cfg(test)]` are ignored: tests may reach further than the code they test.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// A layer, and what it may name besides itself. `a::b` allows that one module of `a`.
///
/// `config` is plain values and knows nobody; that is why the pure layers may take `Route` and `RouteCache` from it.
const LAYERS: [(&str, &[&str]); 9] = [
    ("base", &[]),
    ("config", &[]),
    ("http", &["base"]),
    ("cache", &["base", "http", "config"]),
    ("route", &["base", "http", "config"]),
    ("shard", &["base", "http", "cache", "route"]),
    ("telemetry", &["base"]),
    ("control", &["base", "config", "cache::object", "cache::snapshot"]),
    ("io", &["base", "http", "cache", "route", "shard", "config", "telemetry", "control::link"]),
];
/// They put the others together, and nobody names them but themselves.
// `bench` is a program of its own beside the gateway: it has an event loop, and uses `io` and `http`.
const WIRING: [&str; 6] = ["bench", "boot", "cli", "demo", "lib", "main"];
/// Time is a parameter here.
const WITHOUT_CLOCK: [&str; 5] = ["base", "http", "cache", "route", "shard"];
const CLOCKS: [&str; 4] = ["Instant::now", "SystemTime::now", "clock_gettime", ".elapsed("];
const LOCKS: [&str; 2] = ["Mutex", "RwLock"];
/// The one lock outside of `control`, on the control thread's end of a ring.
const LOCK_FILE: &str = "src/io/mailbox.rs";
const LOCK_REASON: &str = "// taken by the control thread alone";

#[test]
fn the_source_keeps_to_its_layers() {
    let files = source_files();
    assert!(files.len() > 60, "only {} files found", files.len());
    let broken: Vec<String> = files.iter().flat_map(offences).collect();
    assert!(broken.is_empty(), "{} offences:\n{}", broken.len(), broken.join("\n"));
}

#[test]
fn every_layer_exists() {
    let files = source_files();
    let found: BTreeSet<&str> = files.iter().map(File::layer).collect();
    let known: BTreeSet<&str> = LAYERS.iter().map(|(name, _)| *name).chain(WIRING).collect();
    assert_eq!(found, known, "a new top-level module needs a place in the table");
}

#[test]
fn the_arrows_make_no_circle() {
    // Each layer names only layers that stand before it in the table.
    for (at, (name, below)) in LAYERS.iter().enumerate() {
        for other in *below {
            let top = other.split("::").next().unwrap_or(other);
            let stands = LAYERS.iter().position(|(layer, _)| *layer == top);
            assert!(stands.is_some_and(|stands| stands < at), "{name} names {other}");
        }
    }
}

/// The check must be able to fail: what must not be, and what looks like it and is allowed.
#[test]
fn offences_are_found() {
    for (path, text, expected) in [
        ("src/base/time.rs", "use crate::http::head::Head;", 1),
        ("src/http/head.rs", "use crate::base::limits;", 0),
        ("src/http/head.rs", "use crate::cache::key;", 1),
        ("src/cache/key.rs", "use crate::{base::limits, route::table::Table};", 1),
        ("src/cache/key.rs", "use crate::{\n    base::{limits, time},\n    shard,\n    route::table,\n};", 2),
        ("src/cache/key.rs", "use crate::config::RouteCache;", 0),
        ("src/route/table.rs", "fn f() { crate::cache::key::hash(); }", 1),
        ("src/shard/state.rs", "use crate::io::clock;\nuse crate::control::link;", 2),
        ("src/shard/state.rs", "use super::super::io::clock;", 1),
        ("src/shard/state.rs", "use super::lease::Leases;", 0),
        ("src/shard.rs", "use super::io::clock;", 1),
        ("src/telemetry.rs", "use crate::config::Config;", 1),
        ("src/control/link.rs", "use crate::io::mailbox::Inbox;", 1),
        ("src/control/link.rs", "use monoio::net::TcpStream;", 1),
        ("src/boot.rs", "use monoio::net::TcpStream;", 1),
        ("src/io/core.rs", "use crate::control::link::{self, Acks};", 0),
        ("src/io/core.rs", "use crate::control::{link::Acks, admin};", 1),
        ("src/io/core.rs", "use crate::control;", 1),
        ("src/io/core.rs", "use crate::boot::serve;", 1),
        ("src/io/core.rs", "use monoio::net::TcpStream;", 0),
        ("src/io/core.rs", "x: std::sync::Mutex<u8>,", 1),
        (LOCK_FILE, "use std::sync::{Arc, Mutex};\n    a: Mutex<u8>, // taken by the control thread alone", 0),
        (LOCK_FILE, "a: Mutex<u8>,", 1),
        (
            LOCK_FILE,
            "a: Mutex<u8>, // taken by the control thread alone\nb: Mutex<u8>, // taken by the control thread alone",
            1,
        ),
        ("src/control/recorder.rs", "a: Mutex<u8>,", 0),
        ("src/shard/state.rs", "a: RwLock<u8>,", 1),
        ("src/cache/date.rs", "let now = Instant::now();", 1),
        ("src/base/time.rs", "let now = std::time::SystemTime::now();", 1),
        ("src/shard/state.rs", "libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time)", 1),
        ("src/io/clock.rs", "libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time)", 0),
        ("src/cache/key.rs", "// crate::io is not for us, and monoio neither", 0),
        ("src/cache/key.rs", "let text = \"// crate::io\"; crate::io::clock::now();", 1),
        ("src/cache/key.rs", "#[cfg(test)]\nmod tests {\n    use crate::io::clock;\n}\nuse crate::io::core;", 1),
        ("src/cache/key.rs", "#[cfg(test)]\nuse crate::io::clock;\nuse crate::io::core;", 1),
    ] {
        let file = File { path: path.to_owned(), text: text.to_owned() };
        let found = offences(&file);
        assert_eq!(found.len(), expected, "{path}: {text}\nfound: {found:#?}");
    }
}

struct File {
    /// From the root of the project, such as `src/io/core.rs`.
    path: String,
    text: String,
}

impl File {
    /// The modules from the root of the crate to this file.
    fn modules(&self) -> Vec<&str> {
        self.path.trim_start_matches("src/").trim_end_matches(".rs").split('/').collect()
    }

    fn layer(&self) -> &str {
        self.modules()[0]
    }
}

/// Every file of `src/` that is not for tests alone.
fn source_files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut paths = Vec::new();
    collect(&root.join("src"), &mut paths);
    let mut for_tests = BTreeSet::new();
    let mut files = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("a source file is readable text");
        for name in test_files(&text) {
            // Beside the file when it is named by `#[path]`, else in the folder of the module's name.
            for folder in [path.with_extension(""), path.parent().expect("it lies in src").to_owned()] {
                for_tests.insert(folder.join(&name));
            }
        }
        files.push((path, text));
    }
    let named = |path: &Path| path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
    files.retain(|(path, _)| !for_tests.contains(path));
    files.into_iter().map(|(path, text)| File { path: named(&path), text }).collect()
}

fn collect(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of the source") {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() {
            collect(&path, into);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

/// All that is wrong with a file, one line each.
fn offences(file: &File) -> Vec<String> {
    let code = code_of(&without_tests(&file.text));
    let mut found: Vec<String> = Vec::new();
    let layer = file.layer();
    if let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == layer) {
        let paths = paths_from_root(&code, file.modules().len());
        let forbidden = paths.into_iter().filter(|path| !is_allowed(layer, allowed, path));
        found.extend(forbidden.map(|path| format!("{}: {layer} must not name {path}", file.path)));
    }
    if !["io", "bench"].contains(&layer) && has_word(&code, "monoio") {
        found.push(format!("{}: monoio is named outside of src/io", file.path));
    }
    if WITHOUT_CLOCK.contains(&layer) {
        let clocks = CLOCKS.iter().filter(|clock| code.contains(**clock));
        found.extend(clocks.map(|clock| format!("{}: {layer} reads a clock ({clock})", file.path)));
    }
    found.extend(lock_offences(file, &code));
    found
}

fn lock_offences(file: &File, code: &str) -> Option<String> {
    // `bench` runs no shard: its hiccup meter shares a histogram with whoever reports.
    if ["control", "bench"].contains(&file.layer()) || !LOCKS.iter().any(|lock| has_word(code, lock)) {
        return None;
    }
    if file.path != LOCK_FILE {
        return Some(format!("{}: a lock outside of src/control", file.path));
    }
    // One type that holds a lock, with its reason on the same line; the import and the constructor hold none.
    let held: Vec<&str> =
        file.text.lines().filter(|line| line.contains("Mutex<") || line.contains("RwLock<")).collect();
    let reasoned = held.len() == 1 && held[0].ends_with(LOCK_REASON);
    (!reasoned).then(|| format!("{}: expected one lock, with `{LOCK_REASON}`, found {held:?}", file.path))
}

fn is_allowed(layer: &str, allowed: &[&str], path: &str) -> bool {
    let within = |module: &str| path.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    // `crate::Thing` and macros live in the root, which is lib.rs and declares nothing but modules.
    within(layer) || allowed.iter().any(|module| within(module))
}

/// The names of the files that are modules for tests alone.
fn test_files(text: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut lines = text.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line != "#[cfg(test)]" {
            continue;
        }
        let mut named = None;
        for line in lines.by_ref() {
            if let Some(path) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
                named = Some(path.to_owned());
            } else if !line.starts_with("#[") {
                let module =
                    line.trim_start_matches("pub ").strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'));
                names.extend(module.map(|module| named.unwrap_or_else(|| format!("{module}.rs"))));
                break;
            }
        }
    }
    names
}

/// The text without the items behind `#[cfg(test)]`. Relies on rustfmt: an item ends with a `;` on its first line, or with a brace
/// as far to the left as it began.
fn without_tests(text: &str) -> String {
    let mut kept = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        if line.trim() != "#[cfg(test)]" {
            kept.push_str(line);
            kept.push('\n');
            continue;
        }
        let Some(first) = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")) else { break };
        if !first.trim_end().ends_with(';') {
            let indent = &first[..first.len() - first.trim_start().len()];
            let end = format!("{indent}}}");
            lines.by_ref().find(|line| line.trim_end_matches(';') == end);
        }
    }
    kept
}

/// The text without comments, and with string literals emptied.
fn code_of(text: &str) -> String {
    let mut code = String::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '/' if chars.peek() == Some(&'/') => {
                chars.by_ref().find(|c| *c == '\n');
                code.push('\n');
            }
            '"' => {
                code.push_str("\"\"");
                while let Some(inside) = chars.next() {
                    match inside {
                        '\\' => drop(chars.next()),
                        '"' => break,
                        _ => {}
                    }
                }
            }
            // A quotation mark as a character is not the beginning of a string.
            '\'' if chars.peek() == Some(&'"') => drop(chars.next()),
            '\'' if chars.peek() == Some(&'\\') => {
                chars.next();
                chars.next();
            }
            _ => code.push(c),
        }
    }
    code
}

fn has_word(code: &str, word: &str) -> bool {
    let is_part = |c: char| c.is_alphanumeric() || c == '_';
    code.match_indices(word).any(|(at, _)| {
        let before = code[..at].chars().next_back().is_some_and(is_part);
        let after = code[at + word.len()..].chars().next().is_some_and(is_part);
        !before && !after
    })
}

/// Every path that starts at the root of the crate, without `crate::`, groups taken apart. `depth` modules lead to the file,
/// and so many `super::` lead back.
fn paths_from_root(code: &str, depth: usize) -> BTreeSet<String> {
    let climb = "super::".repeat(depth);
    let mut found = BTreeSet::new();
    for start in ["crate::", climb.as_str()] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':') {
                expand(&mut code[at + start.len()..].chars().peekable(), "", &mut found);
            }
        }
    }
    found
}

/// Reads one path, or a group of them, and adds what it names behind `prefix`.
fn expand(chars: &mut std::iter::Peekable<std::str::Chars<'_>>, prefix: &str, found: &mut BTreeSet<String>) {
    skip_white_space(chars);
    if chars.next_if_eq(&'{').is_some() {
        loop {
            expand(chars, prefix, found);
            skip_white_space(chars);
            match chars.next() {
                Some(',') => skip_white_space(chars),
                _ => return,
            }
            if chars.next_if_eq(&'}').is_some() {
                return;
            }
        }
    }
    let mut name = String::new();
    while let Some(c) = chars.next_if(|c| c.is_alphanumeric() || *c == '_' || *c == '*') {
        name.push(c);
    }
    let path = match (prefix, name.as_str()) {
        ("", name) => name.to_owned(),
        (prefix, "self") => prefix.to_owned(),
        (prefix, name) => format!("{prefix}::{name}"),
    };
    let mut ahead = chars.clone();
    if ahead.next() == Some(':') && ahead.next() == Some(':') {
        *chars = ahead;
        return expand(chars, &path, found);
    }
    found.insert(path);
    // `name as other`
    while chars.next_if(|c| !matches!(c, ',' | '}' | ';' | '(' | ')' | '{')).is_some() {}
}

fn skip_white_space(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) {
    while chars.next_if(|c| c.is_whitespace()).is_some() {}
}
