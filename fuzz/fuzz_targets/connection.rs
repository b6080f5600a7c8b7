//! Whole conversations through a real shard, by the operations of `script`: the origin gets only what clients sent, each unsafe request
//! once; every client gets answers to its own requests, in order; and whatever happened, a client that comes afterwards gets the
//! content of its own URL.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use pilotlight_fuzz::gateway::Gateway;
use pilotlight_fuzz::peers::{self, CANARY, Talk, World};
use pilotlight_fuzz::script::{Op, What, bound_body, ops};
use pilotlight_fuzz::wire::{Request, answers_of, requests_of};
use std::cell::RefCell;
use std::net::TcpListener;

/// How often a request that may be repeated can reach the origin: a dead connection, a 304 about another response, a refresh.
const REPEATS_MAX: usize = 4;

struct Bench {
    gateway: Gateway,
    listener: Option<TcpListener>,
    turn: u64,
}

thread_local! {
    static BENCH: RefCell<Option<Bench>> = const { RefCell::new(None) };
}

fuzz_target!(|data: &[u8]| -> Corpus {
    let Some(script) = ops(data).filter(|script| !script.is_empty()) else { return Corpus::Reject };
    BENCH.with_borrow_mut(|bench| {
        let bench = bench.get_or_insert_with(|| {
            let listener = peers::listen();
            let gateway = Gateway::start(listener.local_addr().expect("it is bound"));
            Bench { gateway, listener: Some(listener), turn: 0 }
        });
        bench.gateway.forget();
        let mut world = World::new(bench.gateway.addr, bench.listener.take().expect("put back each time"));
        world.play(&script);
        bench.turn += 1;
        canary(&mut world, bench.turn);
        judge(&world, is_calm(&script));
        bench.listener = Some(world.close());
    });
    Corpus::Keep
});

/// Nobody leaves early, and the origin answers every request as it should.
fn is_calm(script: &[Op]) -> bool {
    script.iter().all(|op| match op {
        Op::Reset | Op::HalfClose => false,
        Op::Answer(answer) => matches!(&answer.what, What::Bound(kind) if kind.is_calm()) && !answer.early,
        Op::Send(_) | Op::Settle | Op::Leave | Op::Switch => true,
    })
}

fn canary(world: &mut World, turn: u64) {
    let url = format!("{}{turn}", String::from_utf8_lossy(CANARY));
    let target = &url["canary".len()..];
    let got = world.canary(target);
    let replies = answers_of(&got, &[]);
    assert!(
        matches!(&replies[..], [reply] if reply.status == 200 && reply.body == Some(bound_body(&url).into_bytes())),
        "the canary for {url} got {}",
        got.escape_ascii()
    );
    let asked = world.requests.iter().filter(|request| request.url == url.as_bytes()).count();
    assert!((1..=2).contains(&asked), "the canary was fetched {asked} times");
    world.requests.retain(|request| request.url != url.as_bytes());
}

fn judge(world: &World, calm: bool) {
    let mut sent = Vec::new();
    for talk in &world.talks {
        let (requests, clean) = requests_of(&talk.sent);
        answered(talk, &requests, clean, calm);
        sent.extend(requests);
    }
    for request in &world.requests {
        assert!(sent.iter().any(|s| is_of(request, s)), "nobody sent {request:?}, but {sent:?}");
        let reached = world.requests.iter().filter(|r| is_same(r, request)).count();
        let wanted = sent.iter().filter(|s| is_of(request, s)).count();
        let repeatable = [&b"GET"[..], b"HEAD", b"PUT", b"DELETE", b"OPTIONS"].contains(&&request.method[..]);
        // RFC 9110 §9.2.2: what is not idempotent is never repeated by itself.
        let most = if repeatable { wanted * REPEATS_MAX } else { wanted };
        assert!(reached <= most, "{request:?} reached the origin {reached} times, and was sent {wanted} times");
    }
    if calm {
        for request in sent.iter().filter(|request| request.method == b"POST" && request.body.is_some()) {
            assert!(world.requests.contains(request), "the origin never got {request:?}");
        }
    }
}

/// Whether a request at the origin may be this one of a client: a HEAD may have become a GET.
fn is_of(at_origin: &Request, sent: &Request) -> bool {
    let method = at_origin.method == sent.method || (at_origin.method == b"GET" && sent.method == b"HEAD");
    let body = at_origin.body.is_none() || at_origin.body == sent.body;
    method && at_origin.url == sent.url && body
}

/// Two of the same, as far as they have come.
fn is_same(a: &Request, b: &Request) -> bool {
    a.method == b.method && a.url == b.url && (a.body.is_none() || b.body.is_none() || a.body == b.body)
}

fn answered(talk: &Talk, requests: &[Request], clean: bool, calm: bool) {
    let replies = answers_of(&talk.got, requests);
    // What was refused or cut short gets an error; nothing more follows.
    let most = requests.len() + usize::from(!clean);
    assert!(replies.len() <= most, "{} answers to {requests:?}: {}", replies.len(), talk.got.escape_ascii());
    for (reply, request) in replies.iter().zip(requests) {
        let Some(bound) = &reply.bound else { continue };
        assert_eq!(bound, &request.url, "the answer to another request: {}", talk.got.escape_ascii());
        let body = reply.body.as_deref().filter(|_| reply.status == 200 && request.method != b"HEAD");
        let expected = bound_body(&String::from_utf8_lossy(bound)).into_bytes();
        // A 200 to an unconditional range request is the whole; parts are 206.
        assert!(body.is_none_or(|body| body == expected), "the body of another URL: {}", talk.got.escape_ascii());
    }
    let closes = replies.iter().any(|reply| reply.close || reply.body.is_none());
    if calm && clean && !talk.left && !closes {
        assert_eq!(replies.len(), requests.len(), "{requests:?} got {}", talk.got.escape_ascii());
    }
}
