//! The waiting room of one shard: tasks that have asked a `State` something and wait for its one `Reply`.
//!
//! A task that gives up leaves its place behind until the reply comes, so that a lease or a slot that arrives too late is
//! handed back and not lost.

use crate::shard::message::{Reply, Token};
use slab::Slab;
use std::cell::RefCell;
use std::future::poll_fn;
use std::task::{Poll, Waker};

/// What to do with a reply that nobody waits for any more.
#[derive(Debug, Clone, Copy)]
pub enum Leftover {
    /// A lease in it is given up.
    Lease,
    /// A slot in it goes back.
    Slot { upstream: u16 },
    /// Nothing: its shard has noted already what the owner of a bucket said.
    Limit,
}

#[derive(Debug)]
struct Place {
    generation: u32,
    reply: Option<Reply>,
    waker: Option<Waker>,
    abandoned: bool,
    leftover: Leftover,
}

#[derive(Debug, Default)]
pub struct Replies {
    places: RefCell<Slab<Place>>,
    generation: std::cell::Cell<u32>,
}

impl Replies {
    pub fn open(&self, leftover: Leftover) -> Token {
        let generation = self.generation.get().wrapping_add(1);
        self.generation.set(generation);
        let place = Place { generation, reply: None, waker: None, abandoned: false, leftover };
        let slot = self.places.borrow_mut().insert(place) as u32;
        Token { slot, generation }
    }

    /// Delivers a reply. If its task has left, says what is to be done with it.
    pub fn deliver(&self, token: Token, reply: Reply) -> Option<(Reply, Leftover)> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(token.slot as usize).filter(|place| place.generation == token.generation)?;
        if place.abandoned {
            let leftover = place.leftover;
            places.remove(token.slot as usize);
            return Some((reply, leftover));
        }
        debug_assert!(place.reply.is_none(), "one reply a token");
        place.reply = Some(reply);
        if let Some(waker) = place.waker.take() {
            waker.wake();
        }
        None
    }

    /// The reply if it is there already, which closes the place.
    pub fn take(&self, token: Token) -> Option<Reply> {
        let mut places = self.places.borrow_mut();
        let reply = places[token.slot as usize].reply.take()?;
        places.remove(token.slot as usize);
        Some(reply)
    }

    /// Waits for the reply and closes the place.
    pub async fn wait(&self, token: Token) -> Reply {
        poll_fn(|cx| {
            if let Some(reply) = self.take(token) {
                return Poll::Ready(reply);
            }
            self.places.borrow_mut()[token.slot as usize].waker = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// Stops waiting. A reply that is there already is returned to be dealt with.
    pub fn abandon(&self, token: Token) -> Option<(Reply, Leftover)> {
        let mut places = self.places.borrow_mut();
        let place = places.get_mut(token.slot as usize).filter(|place| place.generation == token.generation)?;
        let leftover = place.leftover;
        match place.reply.take() {
            Some(reply) => {
                places.remove(token.slot as usize);
                Some((reply, leftover))
            }
            None => {
                place.abandoned = true;
                None
            }
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.places.borrow().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_taken_once_it_is_there_and_its_place_closed() {
        let replies = Replies::default();
        let token = replies.open(Leftover::Lease);
        assert!(replies.take(token).is_none(), "nobody has answered yet");
        assert_eq!(replies.len(), 1, "it may still be waited for");
        assert!(replies.deliver(token, Reply::Alone).is_none());
        assert!(matches!(replies.take(token), Some(Reply::Alone)));
        assert!(replies.is_empty());
        assert!(replies.deliver(token, Reply::Alone).is_none(), "what comes to a closed place is dropped");
    }
}
