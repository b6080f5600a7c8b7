//! Hands the entries of a shard over to be saved: a bounded number at a turn, so that no connection waits; all that remains when the
//! shard has ended. Nothing is written here: entries are immutable and shared.

use super::core::Shard;
use crate::cache::partition::Stored;
use crate::control::link::{Export, Exported, LAST_EXPORT};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// Places of the partition looked at in one turn: some tens of microseconds.
const PLACES_PER_TURN: usize = 256;
/// The pause between turns, in which connections are served.
const TURN_PAUSE: Duration = Duration::from_millis(1);

/// Goes through the partition and hands over what it found under this id.
pub async fn run(shard: Rc<Shard>, id: u64) {
    let mut entries = Vec::new();
    let mut found = Vec::with_capacity(PLACES_PER_TURN);
    let mut from = Some(0);
    while let Some(at) = from {
        from = shard.state.borrow().export(at, PLACES_PER_TURN, &mut found);
        entries.extend(found.drain(..).map(|found| exported(&found)));
        monoio::time::sleep(TURN_PAUSE).await;
    }
    send(&shard, Export { id, shard: shard.id, entries, kept: Vec::new() });
}

/// Hands over everything at once: the shard serves nobody any more, and its entries are about to go with it.
pub fn last(shard: &Shard) {
    let mut found = Vec::new();
    shard.state.borrow().export(0, usize::MAX, &mut found);
    let entries = found.iter().map(exported).collect();
    let kept = found.iter().map(|(stored, ..)| Arc::clone(stored)).collect();
    send(shard, Export { id: LAST_EXPORT, shard: shard.id, entries, kept });
}

fn exported((stored, hits, worth): &(Stored, u8, f32)) -> Exported {
    Exported { object: Arc::downgrade(stored), hits: *hits, worth: *worth }
}

fn send(shard: &Shard, export: Export) {
    // Full only when nobody has taken earlier ones; whoever waits for this one runs into its deadline and says so.
    if let Some(exports) = &shard.common.exports {
        let _ = exports.try_send(export);
    }
}
