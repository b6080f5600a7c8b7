//! The configuration: an error with a line to read, or values that are printed and load again as the same ones.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pilotlight::config::Overrides;
use pilotlight::config::load::parse;
use pilotlight::config::print::effective;

fuzz_target!(|text: &str| {
    let flags = Overrides::default();
    let config = match parse("p.toml", text, &flags) {
        Ok(config) => config,
        Err(error) => {
            let line = error.to_string();
            assert!(line.starts_with("p.toml") && !line.contains('\n'), "{line}");
            assert!(error.place.is_none_or(|(line, column)| line > 0 && column > 0));
            return;
        }
    };
    let printed = effective(&config);
    let again = match parse("again.toml", &printed, &flags) {
        Ok(again) => again,
        Err(error) => panic!("{error}\n{printed}"),
    };
    assert_eq!(again, config, "{printed}");
    assert_eq!(effective(&again), printed);
});
