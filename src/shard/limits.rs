//! Rate limits that hold for all shards together, without a lock.
//!
//! The hash of a client names its **owner**, which keeps its bucket. On the owner a request takes a token out of it. Another shard asks
//! the owner, and its request waits for the answer: one trip through a ring and back. With the token for that request come a few **in advance**,
//! so that a client that is busy there does not ask each time.
//!
//! ```text
//!   request ──claim──▶ tokens in advance? ──▶ goes on
//!                      denied until then? ──▶ 429                    (no message, however large the flood)
//!                      else LimitAsk ──▶ owner's bucket ──LimitGrant──▶ goes on, or 429
//! ```
//! How exact it is. A token is given out once, so from a full bucket on no more requests go on than the bucket holds and receives.
//! Tokens in advance are what it can fall short by, and go beyond it within some span of time: a shard has at most a
//! [`ADVANCE_PARTS`]th part of the burst over the number of shards, and at most what the client used there in the last [`BUSY_MS`]. So all
//! shards together have at most 5 % of the burst. What is not used for [`IDLE_MS`] goes back.
//!
//! **An owner that does not answer** ([`ANSWER_MS`]) is stuck, and a gateway that refuses everybody for that would be worse than one that
//! limits too little: requests go on, counted, and for [`SILENT_MS`] nobody waits for that owner.
//!
//! Bounded: [`limits::CLIENTS_MAX`] buckets and as many notes on others' clients. A full bucket says no more than none and is dropped;
//! when the table is full, the bucket that is next to be full goes, so that addresses that come once push out each other, and not those
//! that are limited.

use super::clients::Clients;
use super::query::owner_of;
use crate::base::limits;
use crate::route::client::Client;
use crate::route::limit::{Bucket, Rate};

/// Tokens in advance are at most such a part of the burst: a twentieth, 5 %.
pub const ADVANCE_PARTS: u32 = 20;
/// What a client used in such a time is what it may need next.
const BUSY_MS: u64 = 100;
/// Tokens in advance that are not touched for so long go back.
const IDLE_MS: u64 = 1_000;
/// How long a request waits for the owner. A healthy one takes some microseconds; on a machine that is overloaded it may be a few
/// time slices of the scheduler's.
pub const ANSWER_MS: u64 = 500;
/// How long an owner that did not answer is left alone.
const SILENT_MS: u64 = 1_000;

/// The owner's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Grant {
    /// At least one, which is for the request that asked.
    Tokens(u32),
    /// The next token comes then.
    None { wait_ms: u64 },
}

/// Whether a request may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Admitted,
    Limited { wait_ms: u64 },
}

/// The same, where it can be told here and now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    Decided(Verdict),
    /// The owner does not answer; the request goes on.
    Unanswered,
    /// Ask this shard for so many tokens.
    Ask {
        owner: usize,
        wanted: u32,
    },
}

/// Where a token lies that was there when it was looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    Own(usize),
    Held(usize),
}

/// What a shard notes of a client whose bucket another one has.
#[derive(Debug, Clone, Copy, Default)]
struct Note {
    /// In advance.
    tokens: u32,
    /// Some were asked for then, and have not come; 0: none.
    asked_mono_ms: u64,
    denied_until_mono_ms: u64,
    /// Requests that went on since `since_mono_ms`, and in the span before.
    used: u32,
    used_before: u32,
    since_mono_ms: u64,
    touched_mono_ms: u64,
}

impl Note {
    fn admit(&mut self, now_mono_ms: u64) {
        let passed_ms = now_mono_ms.saturating_sub(self.since_mono_ms);
        if passed_ms >= BUSY_MS {
            self.used_before = if passed_ms < 2 * BUSY_MS { self.used } else { 0 };
            (self.used, self.since_mono_ms) = (0, now_mono_ms);
        }
        self.used = self.used.saturating_add(1);
        self.touched_mono_ms = now_mono_ms;
    }

    /// Tokens to ask for beyond the one that is needed. Not while others are under way, or these would add up.
    fn advance(&mut self, most: u32, now_mono_ms: u64) -> u32 {
        let passed_ms = now_mono_ms.saturating_sub(self.since_mono_ms);
        let busy = if passed_ms < 2 * BUSY_MS { self.used.max(self.used_before) } else { 0 };
        let wanted = busy.min(most);
        if wanted == 0 || (self.asked_mono_ms > 0 && now_mono_ms < self.asked_mono_ms + ANSWER_MS) {
            return 0;
        }
        self.asked_mono_ms = now_mono_ms.max(1);
        wanted
    }

    /// What would be lost with it, the most important first.
    fn worth(&self, now_mono_ms: u64) -> u64 {
        let kind = if self.tokens > 0 { 2 } else { u64::from(self.denied_until_mono_ms > now_mono_ms) };
        (kind << 56) + self.touched_mono_ms.min((1 << 56) - 1)
    }
}

#[derive(Debug)]
pub struct Limits {
    me: usize,
    shards: usize,
    /// By route; `None`: it has no limit. A bucket is only ever used with the rate it was made for.
    rates: Box<[Option<Rate>]>,
    own: Clients<Bucket>,
    held: Clients<Note>,
    /// By owner.
    silent_until_mono_ms: Box<[u64]>,
}

impl Limits {
    #[must_use]
    pub fn new(me: usize, shards: usize, rates: Box<[Option<Rate>]>) -> Self {
        let (own, held) = (Clients::new(limits::CLIENTS_MAX), Clients::new(limits::CLIENTS_MAX));
        Self { me, shards, rates, own, held, silent_until_mono_ms: vec![0; shards].into() }
    }

    /// A token that is here, to be taken with `spend` before anything else happens. Allocates nothing.
    pub fn peek(&mut self, client: Client, now_mono_ms: u64) -> Option<Spot> {
        let rate = self.rate(client)?;
        if owner_of(client.hash, self.shards) == self.me {
            let at = self.own.find(client)?;
            self.own.at(at).has_token(rate, now_mono_ms).then_some(Spot::Own(at))
        } else {
            let at = self.held.find(client)?;
            (self.held.at(at).tokens > 0).then_some(Spot::Held(at))
        }
    }

    /// Takes the token that `peek` has found.
    pub fn spend(&mut self, client: Client, spot: Spot, now_mono_ms: u64) {
        match spot {
            Spot::Own(at) => {
                let Some(rate) = self.rate(client) else { return };
                let taken = self.own.at(at).take(rate, 1, now_mono_ms);
                debug_assert_eq!(taken, 1, "it was there");
            }
            Spot::Held(at) => {
                let note = self.held.at(at);
                debug_assert!(note.tokens > 0, "it was there");
                note.tokens = note.tokens.saturating_sub(1);
                note.admit(now_mono_ms);
            }
        }
    }

    /// A request of a client comes in on this shard.
    pub fn claim(&mut self, client: Client, now_mono_ms: u64) -> Claim {
        let Some(rate) = self.rate(client) else { return Claim::Decided(Verdict::Admitted) };
        let owner = owner_of(client.hash, self.shards);
        if owner == self.me {
            return Claim::Decided(match self.grant(client, 1, now_mono_ms) {
                Grant::Tokens(_) => Verdict::Admitted,
                Grant::None { wait_ms } => Verdict::Limited { wait_ms },
            });
        }
        let at = self.note_of(client, now_mono_ms);
        let most = rate.burst / ADVANCE_PARTS / u32::try_from(self.shards).unwrap_or(u32::MAX);
        let note = self.held.at(at);
        note.touched_mono_ms = now_mono_ms;
        if note.tokens > 0 {
            note.tokens -= 1;
            note.admit(now_mono_ms);
            return Claim::Decided(Verdict::Admitted);
        }
        if note.denied_until_mono_ms > now_mono_ms {
            return Claim::Decided(Verdict::Limited { wait_ms: note.denied_until_mono_ms - now_mono_ms });
        }
        if self.silent_until_mono_ms[owner] > now_mono_ms {
            return Claim::Unanswered;
        }
        Claim::Ask { owner, wanted: 1 + note.advance(most, now_mono_ms) }
    }

    /// At the owner: takes up to so many tokens.
    pub fn grant(&mut self, client: Client, wanted: u32, now_mono_ms: u64) -> Grant {
        // The shard that asks may have a new configuration already.
        let Some(rate) = self.rate(client) else { return Grant::Tokens(wanted) };
        let rates = &self.rates;
        let at = self.own.find(client).unwrap_or_else(|| {
            let worth = |other, bucket: &mut Bucket| full_in_ms(rates, other, bucket, now_mono_ms);
            self.own.insert(client, Bucket::full(rate, now_mono_ms), worth)
        });
        let bucket = self.own.at(at);
        match bucket.take(rate, wanted, now_mono_ms) {
            0 => Grant::None { wait_ms: bucket.wait_ms(rate, now_mono_ms) },
            tokens => Grant::Tokens(tokens),
        }
    }

    /// The owner has answered, whether or not the request still waits.
    pub fn granted(&mut self, client: Client, grant: Grant, now_mono_ms: u64) -> Verdict {
        self.silent_until_mono_ms[owner_of(client.hash, self.shards)] = 0;
        let at = self.note_of(client, now_mono_ms);
        let note = self.held.at(at);
        match grant {
            Grant::Tokens(tokens) => {
                if tokens > 1 {
                    note.tokens = note.tokens.saturating_add(tokens - 1);
                    note.asked_mono_ms = 0;
                }
                note.admit(now_mono_ms);
                Verdict::Admitted
            }
            Grant::None { wait_ms } => {
                note.asked_mono_ms = 0;
                note.denied_until_mono_ms = now_mono_ms.saturating_add(wait_ms);
                Verdict::Limited { wait_ms }
            }
        }
    }

    /// At the owner: tokens that another shard did not use. A bucket that is not there is full.
    pub fn give_back(&mut self, client: Client, tokens: u32, now_mono_ms: u64) {
        if let (Some(at), Some(rate)) = (self.own.find(client), self.rate(client)) {
            self.own.at(at).give_back(rate, tokens, now_mono_ms);
        }
    }

    /// The owner of this client's bucket did not answer in time.
    pub fn unanswered(&mut self, client: Client, now_mono_ms: u64) {
        self.silent_until_mono_ms[owner_of(client.hash, self.shards)] = now_mono_ms + SILENT_MS;
    }

    /// Forgets what says nothing any more, a part of the tables each time; `back` sends tokens to their owner. To be called every few
    /// tens of milliseconds.
    pub fn tick(&mut self, now_mono_ms: u64, mut back: impl FnMut(usize, Client, u32)) {
        let rates = &self.rates;
        self.own.sweep(|client, bucket| full_in_ms(rates, client, bucket, now_mono_ms) > 0);
        let shards = self.shards;
        self.held.sweep(|client, note| {
            if now_mono_ms < note.touched_mono_ms + IDLE_MS || note.denied_until_mono_ms > now_mono_ms {
                return true;
            }
            if note.tokens > 0 {
                back(owner_of(client.hash, shards), client, note.tokens);
            }
            false
        });
    }

    /// These hold from now on. The clients of routes whose limit stays as it is are kept; the others begin anew.
    pub fn reconfigure(&mut self, rates: Box<[Option<Rate>]>) {
        let before = std::mem::replace(&mut self.rates, rates);
        let rate = |rates: &[Option<Rate>], route: u16| rates.get(usize::from(route)).copied().flatten();
        let is_kept = |client: Client| rate(&before, client.route) == rate(&self.rates, client.route);
        self.own.retain(is_kept);
        self.held.retain(is_kept);
    }

    /// Buckets that are kept here: each client's is on one shard.
    #[must_use]
    pub fn tracked(&self) -> usize {
        self.own.len()
    }

    fn rate(&self, client: Client) -> Option<Rate> {
        self.rates.get(usize::from(client.route)).copied().flatten()
    }

    fn note_of(&mut self, client: Client, now_mono_ms: u64) -> usize {
        self.held.find(client).unwrap_or_else(|| {
            let note = Note { touched_mono_ms: now_mono_ms, ..Note::default() };
            self.held.insert(client, note, |_, other| other.worth(now_mono_ms))
        })
    }
}

/// Of a bucket of a route that has no limit any more: 0.
fn full_in_ms(rates: &[Option<Rate>], client: Client, bucket: &mut Bucket, now_mono_ms: u64) -> u64 {
    let rate = rates.get(usize::from(client.route)).copied().flatten();
    rate.map_or(0, |rate| bucket.full_in_ms(rate, now_mono_ms))
}

#[cfg(test)]
mod tests;
