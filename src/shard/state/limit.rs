//! The messages of rate limits, between this shard and the owners of buckets. What they decide is in `shard::limits`.

use super::State;
use crate::base::time::Now;
use crate::route::client::Client;
use crate::shard::limits::{Claim, Spot, Verdict};
use crate::shard::message::{Action, Asker, Message, Reply, Token};

impl State {
    /// A token for a request, to be taken with `spend` before anything else happens. The path of a hit: allocates nothing.
    pub fn peek_token(&mut self, client: Client, now_mono_ms: u64) -> Option<Spot> {
        self.limits.peek(client, now_mono_ms)
    }

    /// Takes the token that `peek_token` has found.
    pub fn spend_token(&mut self, client: Client, spot: Spot, now_mono_ms: u64) {
        self.limits.spend(client, spot, now_mono_ms);
    }

    /// Whether a request may go on, as far as this shard can tell.
    pub fn limit(&mut self, client: Client, now: Now) -> Claim {
        self.limits.claim(client, now.mono_ms)
    }

    /// What a claim told to ask; one `Reply::Limit` follows.
    pub fn limit_ask(&mut self, client: Client, owner: usize, wanted: u32, token: Token) {
        let asker = Asker { shard: self.me, token };
        self.send(owner, Message::LimitAsk { client, wanted, asker });
    }

    /// No reply came in time.
    pub fn limit_unanswered(&mut self, client: Client, now: Now) {
        self.limits.unanswered(client, now.mono_ms);
    }

    /// Clients whose buckets are kept here.
    #[must_use]
    pub fn limited_clients(&self) -> usize {
        self.limits.tracked()
    }

    pub(super) fn on_limit_message(&mut self, message: Message, now: Now) {
        match message {
            Message::LimitAsk { client, wanted, asker } => {
                let grant = self.limits.grant(client, wanted, now.mono_ms);
                self.send(asker.shard, Message::LimitGrant { client, grant, token: asker.token });
            }
            Message::LimitGrant { client, grant, token } => {
                let verdict: Verdict = self.limits.granted(client, grant, now.mono_ms);
                self.actions.push(Action::Reply { token, reply: Reply::Limit(verdict) });
            }
            Message::LimitReturn { client, tokens } => self.limits.give_back(client, tokens, now.mono_ms),
            _ => unreachable!("only messages of limits come here"),
        }
    }

    pub(super) fn tick_limits(&mut self, now: Now) {
        let actions = &mut self.actions;
        self.limits.tick(now.mono_ms, |to, client, tokens| {
            actions.push(Action::Send { to, message: Message::LimitReturn { client, tokens } });
        });
    }
}
