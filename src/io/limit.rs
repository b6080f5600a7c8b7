//! Rate limits at the door: whom a request counts for, the question to the owner of its bucket, and the answer 429 (RFC 6585 §4) with
//! what draft-ietf-httpapi-ratelimit-headers says of limits.

use super::clock;
use super::core::Shard;
use super::downstream::{Client, Request};
use super::journal::Sender;
use super::reply::Leftover;
use crate::base::outcome::Outcome;
use crate::config::RateLimit;
use crate::http::encode;
use crate::http::head::{FieldsView, Method};
use crate::route::client;
use crate::shard::limits::{ANSWER_MS, Claim, Spot, Verdict};
use crate::shard::message::Reply;
use std::io;
use std::rc::Rc;

/// The `error` of the answer.
pub const RATE_LIMITED: &str = "rate_limited";
const DETAIL: &str =
    "more requests than the rate limit of this route allows; Retry-After says when there may be one again";

/// A token that is here, and whose it is.
pub type Token = (client::Client, Spot);

impl Shard {
    /// Whom a request counts for. Allocates nothing.
    fn client_of(&self, limit: &RateLimit, route: u16, view: FieldsView<'_>, from: Sender) -> client::Client {
        let common = &*self.common;
        let trusted_proxies = &common.config.server.trusted_proxies;
        let origin = client::Origin { peer: from.peer, trusted: from.trusted, trusted_proxies };
        client::Client::of(&common.hasher, route, &limit.by, view, origin)
    }

    /// A token for a hit, if one is on this shard. It is to be taken before anything else happens.
    pub fn peek_token(
        &self,
        limit: &RateLimit,
        route: u16,
        view: FieldsView<'_>,
        from: Sender,
        now_mono_ms: u64,
    ) -> Option<Token> {
        let client = self.client_of(limit, route, view, from);
        let spot = self.state.borrow_mut().peek_token(client, now_mono_ms)?;
        Some((client, spot))
    }

    pub fn spend_token(&self, (client, spot): Token, now_mono_ms: u64) {
        self.state.borrow_mut().spend_token(client, spot, now_mono_ms);
    }
}

impl Client {
    /// `None`: the request goes on. Else how long until there is a token for its client.
    pub async fn over_limit(&self, limit: &RateLimit, route: u16, view: FieldsView<'_>) -> Option<u64> {
        let shard = &self.shard;
        let client = shard.client_of(limit, route, view, self.sender());
        let now = shard.now();
        let claim = shard.state.borrow_mut().limit(client, now);
        let reply = match claim {
            Claim::Decided(verdict) => Some(Reply::Limit(verdict)),
            Claim::Unanswered => None,
            Claim::Ask { owner, wanted } => {
                let ask = shard
                    .ask(Leftover::Limit, ANSWER_MS, |state, token| state.limit_ask(client, owner, wanted, token))
                    .await;
                if ask.is_none() {
                    let now = shard.now();
                    shard.state.borrow_mut().limit_unanswered(client, now);
                }
                ask
            }
        };
        match reply {
            Some(Reply::Limit(Verdict::Limited { wait_ms })) => Some(wait_ms),
            Some(_) => None,
            None => {
                shard.telemetry.limit_unanswered();
                None
            }
        }
    }

    /// Answers a request for whose client there is no token; false when the connection is to be closed.
    pub async fn refuse_limited(&mut self, request: &mut Request, limit: &RateLimit, wait_ms: u64) -> io::Result<bool> {
        let shard = Rc::clone(&self.shard);
        shard.telemetry.rate_limited(request.route.into());
        self.note_error(RATE_LIMITED);
        self.done(request, Outcome::Rejected);
        // RFC 9112 §9.3: the next request begins where this one's body ends, so it must have been read.
        request.keep = request.keep && request.body.is_done() && !shard.draining.get();
        let name = quoted(&shard.common.config.routes[request.route as usize].name);
        // RFC 9110 §10.2.3: whole seconds; rounded down they would be too early.
        let wait_secs = wait_ms.div_ceil(1000).max(1);
        let extra = [
            ("Retry-After", &*wait_secs.to_string()),
            ("RateLimit", &*format!("{name};r=0;t={wait_secs}")),
            ("RateLimit-Policy", &*format!("{name};q={};w={}", limit.requests, limit.per.as_secs())),
        ];
        let mut out = shard.take_buffer();
        let (close, omit_body) = (!request.keep, request.method == Method::Head);
        shard.with_date(shard.now_at(clock::mono_ns()), |date| {
            encode::error_page(&mut out, 429, RATE_LIMITED, DETAIL, date, close, omit_body, &extra);
        });
        self.write_out(out).await?;
        if !request.keep {
            self.linger().await;
        }
        Ok(request.keep)
    }
}

/// A String of structured fields (RFC 9651 §4.1.6), which has ASCII alone: a question mark stands for anything else.
fn quoted(name: &str) -> String {
    let mut out = String::from('"');
    for c in name.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            ' '..='~' => out.push(c),
            _ => out.push('?'),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 9651 §3.3.3.
    #[test]
    fn names_are_strings_of_structured_fields() {
        for (name, expected) in [
            ("/api/", "\"/api/\""),
            ("the \"heavy\" \\ one", "\"the \\\"heavy\\\" \\\\ one\""),
            ("schön", "\"sch?n\""),
            ("", "\"\""),
        ] {
            assert_eq!(quoted(name), expected);
        }
    }
}
