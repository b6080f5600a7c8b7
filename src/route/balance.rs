//! Which server of an upstream takes the next request, as one shard sees them.
//!
//! The rule: of two servers drawn at random the one with fewer requests in flight (Mitzenmacher, "The Power of Two Choices in
//! Randomized Load Balancing", 2001). Two draws keep the longest queue near log log n, and need neither order nor agreement between
//! shards: each counts its own requests.
//! A server that is new, or back again, takes part in a draw with a probability that grows from nothing to one over `slow_start`, so its
//! share grows in a line whatever the load. Servers that are down or ejected take no part; when all are, all do (panic mode): a wrong
//! judgement must not make an outage.
//! Invariants: a member's id is never used again; `inflight` is what `started` and `ended` say.

use super::health::{Health, Sign};
use crate::base::random::Random;
use crate::config::{Addr, Ejection, Endpoint};

/// Names a member for as long as the process runs.
pub type MemberId = u32;

#[derive(Debug)]
pub struct Member {
    pub id: MemberId,
    pub endpoint: Endpoint,
    pub inflight: u32,
    health: Health,
    /// When it began to take part; `None`: it has its full share.
    ramp_from_mono_ms: Option<u64>,
}

/// The servers of one upstream on one shard.
#[derive(Debug)]
pub struct Fleet {
    members: Vec<Member>,
    next_id: MemberId,
    slow_start_ms: u64,
    ejection: Option<Ejection>,
}

/// Who takes the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pick {
    pub id: MemberId,
    /// Every server looks dead.
    pub panic: bool,
}

impl Fleet {
    /// The members that are there from the start have their full share at once.
    #[must_use]
    pub fn new(endpoints: Vec<Endpoint>, slow_start_ms: u64, ejection: Option<Ejection>, now_mono_ms: u64) -> Self {
        let mut fleet = Self { members: Vec::new(), next_id: 0, slow_start_ms, ejection };
        fleet.update(endpoints, now_mono_ms);
        for member in &mut fleet.members {
            member.ramp_from_mono_ms = None;
        }
        fleet
    }

    /// What the servers are now. Who stays keeps what is known of it; who is new, or up again, starts slowly.
    pub fn update(&mut self, endpoints: Vec<Endpoint>, now_mono_ms: u64) {
        let mut old = std::mem::take(&mut self.members);
        for endpoint in endpoints {
            let known =
                old.iter().position(|m| m.endpoint.server == endpoint.server && m.endpoint.addr == endpoint.addr);
            let member = match known {
                Some(at) => {
                    let mut member = old.swap_remove(at);
                    if endpoint.up && !member.endpoint.up {
                        member.ramp_from_mono_ms = Some(now_mono_ms);
                        member.health = Health::new(now_mono_ms);
                    }
                    member.endpoint = endpoint;
                    member
                }
                None => self.member(endpoint, now_mono_ms),
            };
            self.members.push(member);
        }
    }

    /// Another configuration of the same upstream. Who is reached at the same address is the same server, wherever it stands in the
    /// list now.
    pub fn reconfigure(
        &mut self,
        endpoints: Vec<Endpoint>,
        slow_start_ms: u64,
        ejection: Option<Ejection>,
        now_mono_ms: u64,
    ) {
        (self.slow_start_ms, self.ejection) = (slow_start_ms, ejection);
        for member in &mut self.members {
            if let Some(now) = endpoints.iter().find(|endpoint| endpoint.addr == member.endpoint.addr) {
                member.endpoint.server = now.server;
            }
        }
        self.update(endpoints, now_mono_ms);
    }

    fn member(&mut self, endpoint: Endpoint, now_mono_ms: u64) -> Member {
        self.next_id += 1;
        let health = Health::new(now_mono_ms);
        Member { id: self.next_id, endpoint, inflight: 0, health, ramp_from_mono_ms: Some(now_mono_ms) }
    }

    /// A server for a request that these were tried for already; `None` when there is no other. `seed` is any random number.
    #[must_use]
    pub fn pick(&self, tried: &[MemberId], seed: u64, now_mono_ms: u64) -> Option<Pick> {
        if let [only] = &self.members[..] {
            let panic = !only.is_usable(now_mono_ms);
            return (!tried.contains(&only.id)).then_some(Pick { id: only.id, panic });
        }
        let mut random = Random::new(seed);
        let panic = !self.members.iter().any(|m| m.is_usable(now_mono_ms));
        let untried = || self.members.iter().filter(|m| !tried.contains(&m.id));
        let usable: Vec<&Member> = untried().filter(|m| m.is_usable(now_mono_ms)).collect();
        // A last try at one that looks dead is better than none at all.
        let candidates = if usable.is_empty() { untried().collect() } else { usable };
        let taking_part = |m: &&Member| random.share() < m.ramp(self.slow_start_ms, now_mono_ms);
        let drawn: Vec<&Member> = candidates.iter().copied().filter(taking_part).collect();
        let drawn = if drawn.is_empty() { candidates } else { drawn };
        let chosen = least_of_two(&drawn, &mut random)?;
        Some(Pick { id: chosen.id, panic })
    }

    /// A request to this member begins.
    pub fn started(&mut self, id: MemberId) {
        if let Some(member) = self.find(id) {
            member.inflight += 1;
        }
    }

    /// It is over, in whatever way. A member that has gone meanwhile is no longer counted.
    pub fn ended(&mut self, id: MemberId) {
        if let Some(member) = self.find(id) {
            debug_assert!(member.inflight > 0, "a request ends once");
            member.inflight = member.inflight.saturating_sub(1);
        }
    }

    /// What a request has shown of a member. True when that ejects it.
    pub fn observe(&mut self, id: MemberId, sign: Sign, now_mono_ms: u64) -> bool {
        let Some(policy) = self.ejection else { return false };
        let Some(member) = self.find(id) else { return false };
        let due = member.health.observe(sign, &policy, now_mono_ms);
        due && self.eject(id, &policy, now_mono_ms)
    }

    fn eject(&mut self, id: MemberId, policy: &Ejection, now_mono_ms: u64) -> bool {
        let ejected = self.members.iter().filter(|m| m.health.is_ejected(now_mono_ms)).count();
        if ejected >= ejected_max(self.members.len(), policy.max_ejected) {
            return false;
        }
        self.find(id).is_some_and(|member| member.health.eject(policy, now_mono_ms))
    }

    /// Lets those back whose time is over, and looks at the shares of the interval. To be called a few times a second. Returns how
    /// many were ejected now.
    pub fn tick(&mut self, now_mono_ms: u64) -> u32 {
        let Some(policy) = self.ejection else { return 0 };
        let mut due = Vec::new();
        for member in &mut self.members {
            if member.health.readmit(&policy, now_mono_ms) {
                member.ramp_from_mono_ms = Some(now_mono_ms);
            }
            if member.health.interval_over(&policy, now_mono_ms) {
                due.push(member.id);
            }
        }
        due.into_iter().map(|id| u32::from(self.eject(id, &policy, now_mono_ms))).sum()
    }

    fn find(&mut self, id: MemberId) -> Option<&mut Member> {
        self.members.iter_mut().find(|member| member.id == id)
    }

    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// Where a member is reached; `None` when it has gone.
    #[must_use]
    pub fn addr(&self, id: MemberId) -> Option<&Addr> {
        self.members.iter().find(|member| member.id == id).map(|member| &member.endpoint.addr)
    }
}

impl Member {
    fn is_usable(&self, now_mono_ms: u64) -> bool {
        self.endpoint.up && !self.is_ejected(now_mono_ms)
    }

    #[must_use]
    pub fn is_ejected(&self, now_mono_ms: u64) -> bool {
        self.health.is_ejected(now_mono_ms)
    }

    /// Its part of a full share, 0 to 1.
    fn ramp(&self, slow_start_ms: u64, now_mono_ms: u64) -> f64 {
        match self.ramp_from_mono_ms {
            Some(from) if now_mono_ms < from.saturating_add(slow_start_ms) => {
                now_mono_ms.saturating_sub(from) as f64 / slow_start_ms as f64
            }
            _ => 1.0,
        }
    }
}

/// A single server is never ejected, and of several always at least one may be.
fn ejected_max(members: usize, share: f64) -> usize {
    match members {
        0 | 1 => 0,
        _ => ((members as f64 * share) as usize).max(1),
    }
}

fn least_of_two<'a>(drawn: &[&'a Member], random: &mut Random) -> Option<&'a Member> {
    match drawn {
        [] => None,
        [only] => Some(only),
        _ => {
            let first = random.below(drawn.len());
            // Another one than the first, each with the same probability.
            let second = (first + 1 + random.below(drawn.len() - 1)) % drawn.len();
            let (first, second) = (drawn[first], drawn[second]);
            Some(if second.inflight < first.inflight { second } else { first })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn endpoint(server: u16) -> Endpoint {
        let addr = std::net::SocketAddr::from(([127, 0, 0, 1], 1000 + server));
        Endpoint { server, addr: Addr::Tcp(addr), up: true }
    }

    fn fleet(servers: u16, ejection: Option<Ejection>) -> Fleet {
        Fleet::new((0..servers).map(endpoint).collect(), 10_000, ejection, 0)
    }

    #[test]
    fn a_server_that_stays_is_the_same_one_wherever_it_stands() {
        let mut fleet = fleet(2, None);
        let second = ids(&fleet)[1];
        fleet.started(second);
        let moved = Endpoint { server: 0, ..endpoint(1) };
        fleet.reconfigure(vec![moved, Endpoint { server: 1, ..endpoint(7) }], 0, None, 5);
        let first = &fleet.members()[0];
        assert_eq!((first.id, first.endpoint.server, first.inflight), (second, 0, 1));
        assert!(fleet.members()[1].id > second, "the other one is new");
    }

    fn ids(fleet: &Fleet) -> Vec<MemberId> {
        fleet.members().iter().map(|m| m.id).collect()
    }

    /// How often each server is picked in `picks` requests that end at once.
    fn shares(fleet: &Fleet, picks: u64, now_mono_ms: u64) -> BTreeMap<MemberId, f64> {
        let mut counts = BTreeMap::new();
        for seed in 0..picks {
            *counts.entry(fleet.pick(&[], seed, now_mono_ms).unwrap().id).or_insert(0.0) += 1.0 / picks as f64;
        }
        counts
    }

    #[test]
    fn of_two_the_less_loaded_is_taken() {
        let mut fleet = fleet(2, None);
        let [a, b] = ids(&fleet)[..] else { panic!() };
        fleet.started(a);
        assert!((0..100).all(|seed| fleet.pick(&[], seed, 0).unwrap().id == b));
        fleet.ended(a);
        let even = shares(&fleet, 10_000, 0);
        assert!((0.47..0.53).contains(&even[&a]), "{even:?}");
    }

    #[test]
    fn a_retry_goes_elsewhere_and_ends_when_all_were_tried() {
        let fleet = fleet(3, None);
        let all = ids(&fleet);
        assert!((0..100).all(|seed| !all[..2].contains(&fleet.pick(&all[..2], seed, 0).unwrap().id)));
        assert_eq!(fleet.pick(&all, 1, 0), None);
        assert_eq!(Fleet::new(vec![], 0, None, 0).pick(&[], 1, 0), None);
    }

    #[test]
    fn a_new_server_gets_its_share_in_a_line() {
        let mut fleet = fleet(3, None);
        fleet.update((0..4).map(endpoint).collect(), 100_000);
        let new = *ids(&fleet).last().unwrap();
        for (after_ms, low, high) in [(0, 0.0, 0.001), (2_500, 0.045, 0.08), (5_000, 0.10, 0.15), (10_000, 0.23, 0.27)]
        {
            let share = shares(&fleet, 20_000, 100_000 + after_ms).get(&new).copied().unwrap_or(0.0);
            assert!((low..=high).contains(&share), "after {after_ms} ms: {share}");
        }
    }

    #[test]
    fn a_new_server_is_not_flooded_for_being_idle() {
        let mut fleet = fleet(2, None);
        for id in ids(&fleet) {
            (0..50).for_each(|_| fleet.started(id));
        }
        fleet.update((0..3).map(endpoint).collect(), 0);
        let new = *ids(&fleet).last().unwrap();
        let share = shares(&fleet, 20_000, 1_000)[&new];
        assert!(share < 0.11, "at a tenth of its ramp it takes part in a tenth of the draws: {share}");
    }

    #[test]
    fn who_is_down_takes_no_part_unless_all_are() {
        let mut fleet = fleet(2, None);
        let [a, b] = ids(&fleet)[..] else { panic!() };
        let down = |server| Endpoint { up: false, ..endpoint(server) };
        fleet.update(vec![down(0), endpoint(1)], 1);
        assert!((0..100).all(|seed| fleet.pick(&[], seed, 1) == Some(Pick { id: b, panic: false })));
        // Better than nothing, when the other one has failed.
        assert_eq!(fleet.pick(&[b], 1, 1).unwrap().id, a);
        fleet.update(vec![down(0), down(1)], 2);
        let panic = shares(&fleet, 1_000, 2);
        assert!(panic.len() == 2 && fleet.pick(&[], 1, 2).unwrap().panic, "{panic:?}");
    }

    #[test]
    fn an_update_keeps_who_stays() {
        let mut fleet = fleet(2, None);
        let before = ids(&fleet);
        fleet.started(before[1]);
        fleet.update(vec![endpoint(1), endpoint(2)], 5);
        let after = ids(&fleet);
        assert_eq!((after[0], fleet.members()[0].inflight), (before[1], 1));
        assert!(!before.contains(&after[1]));
        assert_eq!(fleet.addr(before[0]), None);
        // Who has gone may still be finished with.
        fleet.ended(before[0]);
        fleet.ended(before[1]);
        assert_eq!(fleet.members()[0].inflight, 0);
    }

    #[test]
    fn at_most_the_share_is_ejected() {
        for (servers, share, most) in [(1, 1.0, 0), (2, 0.0, 1), (2, 0.5, 1), (5, 0.5, 2), (4, 1.0, 4)] {
            let mut fleet = fleet(servers, Some(Ejection { max_ejected: share, ..Ejection::default() }));
            for id in ids(&fleet) {
                for _ in 0..10 {
                    fleet.observe(id, Sign::Failure, 1);
                }
            }
            let ejected = fleet.members().iter().filter(|m| m.is_ejected(1)).count();
            assert_eq!(ejected, most, "{servers} servers, {share}");
        }
    }

    /// A simulated upstream: each server does one request after the other, arrivals are random. Returns the longest queue seen and
    /// the share of requests that met a server which always fails.
    fn simulate(seed: u64, servers: u16, two: bool, bad: Option<u16>) -> (u32, f64) {
        let mut random = Random::new(seed);
        let mut fleet = fleet(servers, Some(Ejection::default()));
        let mut longest = 0;
        let (mut met, mut total) = (0.0, 0.0);
        for now in 0..60_000_u64 {
            fleet.tick(now);
            // 90 % load, in steps of a millisecond; a busy server finishes with probability 1/2.
            for _ in 0..servers {
                if random.share() < 0.45 {
                    let id = if two {
                        fleet.pick(&[], random.number(), now).unwrap().id
                    } else {
                        1 + random.below(servers.into()) as u32
                    };
                    total += 1.0;
                    if bad.is_some_and(|bad| u32::from(bad) + 1 == id) {
                        met += 1.0;
                        fleet.observe(id, Sign::Failure, now);
                    } else {
                        fleet.started(id);
                        fleet.observe(id, Sign::Success, now);
                    }
                }
            }
            for id in ids(&fleet) {
                let busy = fleet.members().iter().find(|m| m.id == id).unwrap().inflight;
                longest = longest.max(busy);
                if busy > 0 && random.share() < 0.5 {
                    fleet.ended(id);
                }
            }
        }
        (longest, met / total)
    }

    #[test]
    fn simulated_queues_stay_short() {
        for seed in 0..4 {
            let (two, _) = simulate(seed, 8, true, None);
            let (one, _) = simulate(seed, 8, false, None);
            assert!(two <= 14 && two * 2 < one, "seed {seed}: two choices {two}, one {one}");
        }
    }

    #[test]
    fn simulated_failures_are_confined() {
        for seed in 0..4 {
            let (_, met) = simulate(seed, 8, true, Some(3));
            assert!(met < 0.001, "seed {seed}: {met} of the requests met the bad server");
        }
    }
}
