//! The text of `/metrics`: the recorder's families, brought up to date with what the shards share, and the process's own.

use metrics::{describe_gauge, gauge, with_local_recorder};

use super::{State, process, status};

pub(super) fn text(state: &State) -> String {
    with_local_recorder(&state.recorder, || update(state));
    let mut out = String::with_capacity(64 * 1024);
    state.recorder.render(&mut out);
    process::render(&mut out, state.started_unix_secs);
    out
}

/// Sets the gauges that control owns. Each is registered when its value is known, so that no list looks fresh before it was filled.
fn update(state: &State) {
    describe();
    gauge!("pilotlight_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1);
    gauge!("pilotlight_ready").set(f64::from(u8::from(status::readiness(state).ready)));
    for warm in status::warm_lists(state) {
        gauge!("pilotlight_warm_entries", "list" => warm.list.clone()).set(warm.total as f64);
        gauge!("pilotlight_warm_filled", "list" => warm.list.clone()).set(warm.filled as f64);
        if let Some(age_secs) = warm.oldest_age_secs {
            gauge!("pilotlight_warm_age_seconds", "list" => warm.list).set(age_secs);
        }
    }
    gauge!("pilotlight_config_generation").set(state.generation.get() as f64);
    for (at, upstream) in state.config.upstreams.iter().enumerate() {
        if state.config.retired.upstreams.contains(&at) {
            continue;
        }
        for (number, server) in upstream.servers.iter().enumerate() {
            let up = state.servers().addresses(at, number).iter().any(|(_, up)| *up);
            let labels = [("upstream", upstream.name.clone()), ("server", server.to_string())];
            gauge!("pilotlight_upstream_server_up", &labels).set(f64::from(u8::from(up)));
        }
    }
    let now_ms = state.shards.now_mono_ms();
    for (shard, shared) in state.shared().iter().enumerate() {
        if let Some(age_ms) = status::heartbeat_age_ms(shared, now_ms) {
            gauge!("pilotlight_shard_heartbeat_age_seconds", "shard" => shard.to_string()).set(age_ms as f64 / 1000.0);
        }
    }
}

fn describe() {
    describe_gauge!("pilotlight_build_info", "Always 1; the version is the label.");
    super::reload::describe();
    describe_gauge!(
        "pilotlight_config_generation",
        "Which configuration is in force: 1 at the start, one more with each reload."
    );
    describe_gauge!("pilotlight_ready", "1 when /readyz says yes.");
    describe_gauge!("pilotlight_warm_entries", "Entries of the warm list.");
    describe_gauge!("pilotlight_warm_filled", "Entries of the warm list that were fetched at least once.");
    describe_gauge!("pilotlight_warm_age_seconds", "Age of the oldest entry of the warm list.");
    describe_gauge!(
        "pilotlight_upstream_server_up",
        "1 when an address of the server is up by its health checks, or without any."
    );
    describe_gauge!("pilotlight_shard_heartbeat_age_seconds", "Time since the shard's event loop last went round.");
}
