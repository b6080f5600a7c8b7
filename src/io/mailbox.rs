//! How shards and the control thread talk: a bounded single-producer ring for each direction of each pair, and one doorbell a shard.
//!
//! A doorbell is rung only for a shard that sleeps. The handshake is a store, a full fence and a load on both sides, so that
//! either the sender sees the sleeper or the sleeper sees the message.
//! What does not fit into a ring waits on the sender's side, in order; it is bounded by what the sender's connections
//! and its stores have to tell.

use super::listener::Family;
use crate::control::link::Command;
use crate::shard::message::Message;
use rtrb::{Consumer, Producer, RingBuffer};
use std::collections::VecDeque;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex};

const RING_MESSAGES: usize = 1024;
const RING_COMMANDS: usize = 64;

#[derive(Debug)]
pub struct Doorbell {
    sleeping: AtomicBool,
    wire: UnixStream,
}

impl Doorbell {
    /// Wakes the shard if it sleeps.
    pub fn ring(&self) {
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::AcqRel) {
            // A full pipe means that it has been rung already.
            let _ = (&self.wire).write(&[1]);
        }
    }

    /// The shard is about to sleep: it must look at its rings once more afterwards.
    pub fn going_to_sleep(&self) {
        self.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    pub fn awake(&self) {
        self.sleeping.store(false, Ordering::Relaxed);
    }
}

/// What goes from one shard to another.
#[derive(Debug)]
pub enum Parcel {
    Message(Message),
    /// A client that was accepted where there are more clients already.
    Connection(OwnedFd, Family),
}

/// What a shard receives from.
#[derive(Debug)]
pub struct Inbox {
    peers: Vec<Consumer<Parcel>>,
    control: Consumer<Command>,
    pub bell: Arc<Doorbell>,
    /// The other end of the doorbell's wire.
    pub wire: Option<UnixStream>,
}

/// Something that arrived.
#[derive(Debug)]
pub enum Mail {
    Parcel(Parcel),
    Command(Command),
}

impl Inbox {
    /// The next thing that arrived; commands first, since a person waits for them.
    pub fn take(&mut self) -> Option<Mail> {
        if let Ok(command) = self.control.pop() {
            return Some(Mail::Command(command));
        }
        self.peers.iter_mut().find_map(|ring| ring.pop().ok()).map(Mail::Parcel)
    }
}

#[derive(Debug)]
struct Lane {
    ring: Producer<Parcel>,
    overflow: VecDeque<Parcel>,
    bell: Arc<Doorbell>,
}

impl Lane {
    fn flush(&mut self) -> bool {
        let mut sent = false;
        while let Some(parcel) = self.overflow.pop_front() {
            match self.ring.push(parcel) {
                Ok(()) => sent = true,
                Err(rtrb::PushError::Full(parcel)) => {
                    self.overflow.push_front(parcel);
                    break;
                }
            }
        }
        sent
    }
}

/// What a shard sends through: a lane to each shard, none to itself.
#[derive(Debug)]
pub struct Outbox {
    lanes: Vec<Option<Lane>>,
}

impl Outbox {
    pub fn send(&mut self, to: usize, parcel: Parcel) {
        let lane = self.lanes[to].as_mut().expect("a shard does not write to itself");
        lane.overflow.push_back(parcel);
        lane.flush();
        lane.bell.ring();
    }

    /// Tries again what did not fit. To be called regularly.
    pub fn flush(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            if !lane.overflow.is_empty() {
                lane.flush();
                lane.bell.ring();
            }
        }
    }

    /// How much waits for room.
    #[must_use]
    pub fn overflow(&self) -> usize {
        self.lanes.iter().flatten().map(|lane| lane.overflow.len()).sum()
    }
}

/// The control thread's end: it may lock, being the only one here that does.
#[derive(Debug)]
pub struct ControlLane {
    ring: Mutex<Producer<Command>>, // taken by the control thread alone
    bell: Arc<Doorbell>,
}

impl ControlLane {
    /// False when the ring is full: the shard has not taken its mail for a long time.
    pub fn send(&self, command: Command) -> bool {
        let sent = self.ring.lock().is_ok_and(|mut ring| ring.push(command).is_ok());
        self.bell.ring();
        sent
    }
}

/// Both ends of one shard.
pub type Mailbox = (Inbox, Outbox);

/// Everything for `shards` shards and the control thread.
///
/// # Errors
/// When the system has no sockets left for the doorbells.
pub fn build(shards: usize) -> io::Result<(Vec<Mailbox>, Vec<ControlLane>)> {
    let mut inboxes = Vec::new();
    let mut control = Vec::new();
    for _ in 0..shards {
        let (near, far) = UnixStream::pair()?;
        near.set_nonblocking(true)?;
        far.set_nonblocking(true)?;
        let bell = Arc::new(Doorbell { sleeping: AtomicBool::new(false), wire: near });
        let (ring, commands) = RingBuffer::new(RING_COMMANDS);
        control.push(ControlLane { ring: Mutex::new(ring), bell: Arc::clone(&bell) });
        inboxes.push(Inbox { peers: Vec::new(), control: commands, bell, wire: Some(far) });
    }
    let bells: Vec<_> = inboxes.iter().map(|inbox| Arc::clone(&inbox.bell)).collect();
    let mut outboxes = Vec::new();
    for from in 0..shards {
        let lanes = (0..shards).map(|to| (from != to).then(|| lane(&mut inboxes[to], &bells[to]))).collect();
        outboxes.push(Outbox { lanes });
    }
    Ok((inboxes.into_iter().zip(outboxes).collect(), control))
}

fn lane(inbox: &mut Inbox, bell: &Arc<Doorbell>) -> Lane {
    let (ring, consumer) = RingBuffer::new(RING_MESSAGES);
    inbox.peers.push(consumer);
    Lane { ring, overflow: VecDeque::new(), bell: Arc::clone(bell) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn only_a_shard_that_sleeps_is_rung_and_only_once() {
        let (mut mailboxes, control) = build(2).expect("socket pairs");
        let (mut inbox, _) = mailboxes.pop().expect("the second shard's");
        let (_, mut outbox) = mailboxes.pop().expect("the first shard's");
        let mut wire = inbox.wire.take().expect("nobody has taken it");
        let mut rung = || wire.read(&mut [0; 16]).unwrap_or(0);
        let mut send = || outbox.send(1, Parcel::Message(Message::InvalidateUrl { url: [].into() }));

        send();
        assert_eq!(rung(), 0, "it looks at its rings anyway");
        inbox.bell.going_to_sleep();
        send();
        assert!(control[1].send(Command::Drain));
        send();
        assert_eq!(rung(), 1, "one is enough to wake it");
        inbox.bell.awake();
        send();
        assert_eq!(rung(), 0, "it is awake");
        assert_eq!(std::iter::from_fn(|| inbox.take()).count(), 5, "all has arrived");
    }
}
