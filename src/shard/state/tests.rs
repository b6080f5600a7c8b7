//! Two shards, and the mail between them carried by hand.

use super::*;
use crate::cache::freshness::Validity;
use crate::cache::object::Parts;
use bytes::Bytes;

const LIFETIME_SECS: u32 = 60;
const TOKEN: Token = Token { slot: 0, generation: 0 };

fn at(mono_ms: u64) -> Now {
    Now { mono_ms, unix_ms: 1_600_000_000_000 + mono_ms }
}

fn shard(me: usize) -> State {
    let route = RoutePolicy { upstream: 0, refresh_ahead: 0.0, lease_ms: 30_000, limit: None };
    State::new(me, 2, [route].into(), 1 << 20, HashMap::new(), Warm::new(Vec::new(), vec![1], 0), 7)
}

fn query() -> Arc<Query> {
    let (buf, head) = Query::reparse((*b"GET /hot HTTP/1.1\r\nHost: a\r\n\r\n").into()).expect("it is well-formed");
    let hasher = ahash::RandomState::with_seeds(1, 2, 3, 4);
    Arc::new(Query::new(&hasher, buf, head, 0, false, None, true))
}

fn object(query: &Query, received_mono_ms: u64) -> Arc<Object> {
    Arc::new(Object::new(Parts {
        key: &query.key,
        hash: query.hash,
        status: 200,
        head: b"HTTP/1.1 200 OK\r\n",
        body: Bytes::from_static(b"hot"),
        validity: Validity { received_mono_ms, lifetime_secs: LIFETIME_SECS, ..Validity::default() },
        vary: None,
        request: &query.buf,
        tags: &[],
        route: 0,
        fetch_ms: 1000,
        generation: received_mono_ms,
    }))
}

/// The one thing that is to be done.
fn action(state: &mut State) -> Action {
    assert_eq!(state.actions.len(), 1, "{:?}", state.actions);
    state.actions.remove(0)
}

/// Carries the one message that there is to the other shard.
fn carry(from: &mut State, to: &mut State, now: Now) {
    match action(from) {
        Action::Send { message, .. } => to.handle(message, now),
        other => panic!("a message, not {other:?}"),
    }
}

/// What a client of this shard is served without a word to the owner, if it is fresh.
fn served_here(state: &mut State, query: &Query, now: Now) -> bool {
    let found = state.find(query.hash, &query.key, query.view());
    assert!(state.actions.is_empty(), "{:?}", state.actions);
    found.is_some_and(|found| {
        matches!(freshness::judge(&found.validity, &query.directives, now.mono_ms), Standing::Fresh { .. })
    })
}

#[test]
fn the_owner_of_a_hot_key_is_asked_once_per_lifetime() {
    let query = query();
    let owner = owner_of(query.hash, 2);
    let (mut owner, mut asked) = (shard(owner), shard(1 - owner));
    for lifetime in 0..3 {
        let begins = at(1_000 + lifetime * 1_000 * u64::from(LIFETIME_SECS));
        assert!(!served_here(&mut asked, &query, begins), "what is stored has had its time");
        asked.ask(Arc::clone(&query), TOKEN, begins);
        carry(&mut asked, &mut owner, begins);
        let Action::Send { message: Message::Answer { reply: Reply::Fetch { lease, .. }, .. }, .. } =
            action(&mut owner)
        else {
            panic!("a lease is the answer");
        };
        // The fetch ends here, and the first who asks hereafter brings a replica along.
        asked.done(query.hash, lease, FetchOutcome::Stored(object(&query, begins.mono_ms)), begins);
        carry(&mut asked, &mut owner, begins);
        if let Some(Action::Send { message, .. }) = owner.actions.pop() {
            // The one before it is outdated.
            asked.handle(message, begins);
        }
        asked.ask(Arc::clone(&query), TOKEN, begins);
        carry(&mut asked, &mut owner, begins);
        carry(&mut owner, &mut asked, begins);
        assert!(matches!(action(&mut asked), Action::Reply { reply: Reply::Serve { .. }, .. }));
        let last_ms = begins.mono_ms + 1_000 * u64::from(LIFETIME_SECS) - 1;
        for mono_ms in (begins.mono_ms..=last_ms).step_by(500) {
            assert!(served_here(&mut asked, &query, at(mono_ms)), "after {} ms", mono_ms - begins.mono_ms);
        }
        assert!(owner.actions.is_empty(), "nobody has told the owner anything");
    }
}
