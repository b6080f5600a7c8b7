//! A small file, whole and broken in every way that one byte can break it.

use super::*;
use crate::cache::testing::{NOW, object, request};

const HEADER: Header = Header { seed: 0x5EED, lineage: 7, purge_seq: 3, saved_unix_ms: NOW.unix_ms };
const KEYS: [&str; 4] = ["h/a", "h/b?c=d", "i/c\0Bearer x\n\0", "h/d"];
const LONG: &str = "a body that is longer than the others, and than any head of a record";

fn objects() -> Vec<Object> {
    let fields = "ETag: \"e\"\r\nLast-Modified: l\r\nCache-Tag: one,two\r\nContent-Language: de\r\n";
    let vary = |names: &str| format!("{fields}Vary: {names}\r\n");
    vec![
        object(KEYS[0], "", 200, fields, "body"),
        object(KEYS[1], "Accept-Encoding: gzip\r\n", 404, &vary("Accept-Encoding, X-Absent"), ""),
        object(KEYS[2], "Accept-Language: de, en;q=0.5\r\n", 200, &vary("Accept-Language"), "x"),
        object(KEYS[3], "X-Own: some text\r\n", 200, &vary("X-Own"), LONG),
    ]
}

fn file() -> Vec<u8> {
    let mut out = Vec::new();
    HEADER.write(Kind::Entries, &mut out);
    for (at, object) in objects().iter().enumerate() {
        assert!(write_entry(&mut out, HEADER.seed, object, at as u8, NOW));
    }
    out
}

/// Everything that can be read, and whether anything could not. The window is as small as it may be.
fn read(file: &[u8]) -> Result<(Vec<Object>, bool), HeaderError> {
    let header = Header::read(Kind::Entries, file)?;
    let (mut found, mut is_whole) = (Vec::new(), true);
    let (mut at, mut end) = (Header::BYTES, Header::BYTES);
    loop {
        match step(&file[at..end], header.seed, end == file.len()) {
            Step::Record { payload, used } => {
                match read_entry(payload) {
                    Some(entry) => found.push(entry.into_object(&header, NOW, 0, 0, 0).unwrap()),
                    None => is_whole = false,
                }
                at += used;
            }
            Step::More(wanted) => {
                assert!(at + wanted > end, "what it has must not be asked for");
                end = (at + wanted).min(file.len());
            }
            Step::Damaged(bytes) => {
                assert!(bytes > 0 && at + bytes <= end);
                at += bytes;
                is_whole = false;
            }
            Step::Cut => return Ok((found, false)),
            Step::End => return Ok((found, is_whole)),
        }
    }
}

fn same(a: &Object, b: &Object) -> bool {
    format!("{a:?}") == format!("{b:?}")
}

#[test]
fn what_is_written_is_read() {
    // An object saved at once is received now.
    let expected: Vec<Object> = objects()
        .into_iter()
        .map(|mut object| {
            object.validity.received_mono_ms = NOW.mono_ms;
            object
        })
        .collect();
    let mut out = Vec::new();
    HEADER.write(Kind::Entries, &mut out);
    for object in &expected {
        assert!(write_entry(&mut out, HEADER.seed, object, 1, NOW));
    }
    let (found, is_whole) = read(&out).unwrap();
    assert!(is_whole);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert!(same(found, expected), "{found:?}\n{expected:?}");
    }
    let vary = found[1].vary.as_ref().unwrap();
    assert!(vary.matches(request("Accept-Encoding: gzip\r\n").view()));
    assert!(!vary.matches(request("Accept-Encoding: br\r\n").view()));
    assert!(!vary.matches(request("Accept-Encoding: gzip\r\nX-Absent: no\r\n").view()));
    assert!(found[2].vary.as_ref().unwrap().matches(request("Accept-Language: de\r\n").view()), "the one it is in");
}

#[test]
fn a_flipped_bit_costs_one_entry() {
    let (file, all) = (file(), objects().len());
    for at in 0..file.len() {
        for bit in [0, 3, 7] {
            let mut broken = file.clone();
            broken[at] ^= 1 << bit;
            match read(&broken) {
                Err(_) => assert!(at < Header::BYTES, "byte {at}"),
                Ok((found, is_whole)) => {
                    assert!(at >= Header::BYTES, "byte {at} of the header is not checked");
                    assert!(!is_whole, "byte {at}");
                    assert_eq!(found.len(), all - 1, "byte {at}");
                    let whole = read(&file).unwrap().0;
                    assert!(found.iter().all(|found| whole.iter().any(|whole| same(whole, found))), "byte {at}");
                }
            }
        }
    }
}

#[test]
fn a_cut_costs_what_is_behind_it() {
    let file = file();
    let whole = read(&file).unwrap().0;
    let mut ends = 0;
    for len in 0..file.len() {
        match read(&file[..len]) {
            Err(why) => assert!(len < Header::BYTES && why == HeaderError::Foreign, "{len}"),
            Ok((found, is_whole)) => {
                assert!(found.iter().zip(&whole).all(|(found, whole)| same(found, whole)), "{len}");
                ends += usize::from(is_whole);
            }
        }
    }
    assert_eq!(ends, whole.len(), "only between records a cut cannot be seen");
}

#[test]
fn bytes_taken_out_or_put_in_cost_one_entry() {
    let (file, all) = (file(), objects().len());
    for at in Header::BYTES..file.len() {
        let without = [&file[..at], &file[at + 1..]].concat();
        let with = [&file[..at], &b"\xF1pl"[..], &file[at..]].concat();
        for broken in [without, with] {
            let (found, is_whole) = read(&broken).unwrap();
            assert!(!is_whole && found.len() >= all - 2, "byte {at}: {} left", found.len());
        }
    }
}

/// Whoever chooses a body must not be able to have it read as an entry.
#[test]
fn a_record_in_a_body_is_none() {
    let mut forged = Vec::new();
    let payload = object("h/forged", "", 200, "", "");
    for seed in [0, 1, u32::MAX] {
        assert!(write_entry(&mut forged, seed, &payload, 0, NOW));
    }
    let bare = object("h/carrier", "", 200, "", "");
    let carrier = Object::new(Parts {
        key: bare.key(),
        hash: 0,
        status: 200,
        head: bare.head(),
        body: forged.into(),
        validity: bare.validity,
        vary: None,
        request: bare.request(),
        tags: &[],
        route: 0,
        fetch_ms: 0,
        generation: 0,
    });
    let mut file = Vec::new();
    HEADER.write(Kind::Entries, &mut file);
    assert!(write_entry(&mut file, HEADER.seed, &carrier, 0, NOW));
    file[Header::BYTES] ^= 1;
    assert_eq!(read(&file).unwrap().0.len(), 0);
}

#[test]
fn other_files_are_named() {
    let file = file();
    assert_eq!(Header::read(Kind::Purges, &file), Err(HeaderError::Foreign));
    let mut newer = file;
    newer[8] = 2;
    assert_eq!(Header::read(Kind::Entries, &newer), Err(HeaderError::Version(2)));
    assert_eq!(Header::read(Kind::Entries, b"<html>"), Err(HeaderError::Foreign));
}

#[test]
fn ages_go_on_by_the_wall_clock() {
    let validity = Validity { received_mono_ms: NOW.mono_ms - 20_000, initial_age_secs: 5, ..Validity::default() };
    let validity = Validity { lifetime_secs: 60, swr_secs: 1000, sie_secs: 1000, ..validity };
    let mut out = Vec::new();
    let mut stored = object("h/", "", 200, "ETag: e\r\n", "");
    stored.validity = validity;
    assert!(write_entry(&mut out, HEADER.seed, &stored, 0, NOW));
    let Step::Record { payload, .. } = step(&out, HEADER.seed, true) else { panic!("no record") };
    let later = |mono_ms, secs: i64| Now { mono_ms, unix_ms: NOW.unix_ms.saturating_add_signed(1000 * secs) };
    for (case, now, expected_secs) in [
        ("at once, on the same machine", later(NOW.mono_ms, 0), 25),
        ("after a while", later(NOW.mono_ms + 30_000, 30), 55),
        ("the machine was restarted: the other clock begins anew", later(5_000, 30), 55),
        ("a part of a second", Now { unix_ms: NOW.unix_ms + 30_001, ..later(10_000, 0) }, 55),
        ("a year", later(1, 366 * 86_400), 25 + 366 * 86_400),
        ("longer than anything", Now { mono_ms: 1, unix_ms: u64::MAX }, u32::MAX),
        ("the clock went backwards", later(NOW.mono_ms, -1), u32::MAX),
        ("the clock began anew", Now { mono_ms: 1, unix_ms: 0 }, u32::MAX),
    ] {
        let object = read_entry(payload).unwrap().into_object(&HEADER, now, 0, 0, 0).unwrap();
        let age_secs = freshness::age_secs(&object.validity, now.mono_ms);
        assert!(age_secs.abs_diff(expected_secs) <= 1 && age_secs >= expected_secs, "{case}: {age_secs}");
        assert!(object.validity.received_mono_ms > 0, "{case}");
        let is_fresh = matches!(
            freshness::judge(&object.validity, &Default::default(), now.mono_ms),
            freshness::Standing::Fresh { .. }
        );
        assert_eq!(is_fresh, expected_secs < 60, "{case}");
        if expected_secs == u32::MAX {
            assert!(!freshness::stale_if_error_ok(&object.validity, now.mono_ms), "{case}: within no window");
        }
    }
}

#[test]
fn what_nobody_can_use_is_left() {
    let now = Now { mono_ms: NOW.mono_ms, unix_ms: NOW.unix_ms + 86_400_000 };
    for (fields, is_kept) in [("", false), ("ETag: e\r\n", true), ("Last-Modified: l\r\n", true)] {
        let mut out = Vec::new();
        assert!(write_entry(&mut out, HEADER.seed, &object("h/", "", 200, fields, ""), 0, NOW));
        let Step::Record { payload, .. } = step(&out, HEADER.seed, true) else { panic!("no record") };
        assert_eq!(read_entry(payload).unwrap().into_object(&HEADER, now, 0, 0, 0).is_some(), is_kept, "{fields}");
    }
}

#[test]
fn purges_mean_what_they_meant() {
    let file = file();
    let Step::Record { payload, used } = step(&file[Header::BYTES..], HEADER.seed, true) else { panic!("no record") };
    let entry = read_entry(payload).unwrap();
    let Step::Record { payload, used: second } = step(&file[Header::BYTES + used..], HEADER.seed, true) else {
        panic!("no record")
    };
    let _ = read_entry(payload).unwrap();
    let rest = &file[Header::BYTES + used + second..];
    let Step::Record { payload, .. } = step(rest, HEADER.seed, true) else { panic!("no record") };
    let credentials = read_entry(payload).unwrap();
    let text = |text: &str| text.as_bytes().to_vec();
    for (purge, first, third) in [
        (Purge::Url(text("h/a")), true, false),
        (Purge::Url(text("i/c")), false, true),
        (Purge::Url(text("h/")), false, false),
        (Purge::Prefix(text("h/")), true, false),
        (Purge::Prefix(text("/c")), false, true),
        (Purge::Prefix(text("/")), true, true),
        (Purge::Tag(text("two")), true, true),
        (Purge::Tag(text("tw")), false, false),
    ] {
        let mut out = Vec::new();
        write_purge(&mut out, HEADER.seed, 9, &purge);
        let Step::Record { payload, .. } = step(&out, HEADER.seed, true) else { panic!("no record") };
        assert_eq!(read_purge(payload), Some((9, purge.clone())));
        let mut purges = Purges::default();
        purges.add(purge.clone());
        assert_eq!((purges.cover(&entry), purges.cover(&credentials)), (first, third), "{purge:?}");
    }
}
