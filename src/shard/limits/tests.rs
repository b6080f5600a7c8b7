//! Tables for one shard and its neighbour; and a simulation from a seed: many shards, connections that are spread unevenly, several
//! clients, mail that takes its time, a made-up clock.

use super::*;
use crate::base::random::Random;
use std::collections::BTreeMap;

const RATE: Rate = Rate { requests: 10, per_ms: 1000, burst: 200 };

fn limits(me: usize, shards: usize) -> Limits {
    Limits::new(me, shards, [Some(RATE), None].into())
}

/// A client of route 0 that belongs to that shard of two.
fn client_of(owner: usize, number: u64) -> Client {
    Client { route: 0, hash: ((owner as u64) << 63) + (number << 32) + number }
}

/// One shard asks the other, which answers at once.
fn ask(from: &mut Limits, owner: &mut Limits, client: Client, now: u64) -> Verdict {
    match from.claim(client, now) {
        Claim::Decided(verdict) => verdict,
        Claim::Ask { owner: to, wanted } => {
            assert_eq!(to, owner.me);
            let grant = owner.grant(client, wanted, now);
            from.granted(client, grant, now)
        }
        Claim::Unanswered => panic!("it did answer"),
    }
}

#[test]
fn two_shards_share_a_bucket() {
    let (mut here, mut there) = (limits(0, 2), limits(1, 2));
    let client = client_of(0, 1);
    let admitted = |verdict| verdict == Verdict::Admitted;
    assert_eq!((0..150).filter(|_| admitted(ask(&mut there, &mut here, client, 10))).count(), 150);
    let own = (0..100).filter(|_| here.claim(client, 10) == Claim::Decided(Verdict::Admitted)).count();
    let held = there.held.find(client).map(|at| there.held.at(at).tokens).unwrap();
    assert!(held <= RATE.burst / ADVANCE_PARTS / 2, "{held} in advance");
    assert_eq!(own, 50 - held as usize);
    // Tokens in advance are used up, and then nobody asks again before there is one.
    assert_eq!((0..100).filter(|_| admitted(ask(&mut there, &mut here, client, 10))).count(), held as usize);
    assert_eq!(there.claim(client, 109), Claim::Decided(Verdict::Limited { wait_ms: 1 }));
    assert_eq!(there.claim(client, 110), Claim::Ask { owner: 0, wanted: 1 + 5 });
    assert_eq!(here.claim(client_of(0, 2), 10), Claim::Decided(Verdict::Admitted), "another client");
    assert_eq!(here.claim(Client { route: 1, ..client }, 10), Claim::Decided(Verdict::Admitted), "no limit");
}

#[test]
fn a_hit_takes_what_is_there_and_nothing_else() {
    let (mut here, mut there) = (limits(0, 2), limits(1, 2));
    let client = client_of(0, 1);
    assert_eq!(here.peek(client, 0), None, "a newcomer needs memory");
    for _ in 0..3 {
        assert_eq!(ask(&mut there, &mut here, client, 0), Verdict::Admitted);
    }
    while let Some(spot) = there.peek(client, 0) {
        there.spend(client, spot, 0);
    }
    assert!(matches!(there.claim(client, 0), Claim::Ask { .. }));
    let left = std::iter::from_fn(|| here.peek(client, 0).map(|spot| here.spend(client, spot, 0))).count();
    assert!((190..=197).contains(&left), "{left}");
    assert_eq!(here.peek(client, 99), None);
    assert!(here.peek(client, 100).is_some());
}

#[test]
fn an_owner_that_is_stuck_holds_nobody_up() {
    let (mut here, mut there) = (limits(0, 2), limits(1, 2));
    let client = client_of(0, 1);
    assert!(matches!(there.claim(client, 0), Claim::Ask { .. }));
    there.unanswered(client, ANSWER_MS);
    assert_eq!(there.claim(client_of(0, 2), ANSWER_MS + 1), Claim::Unanswered, "nor another client");
    assert_eq!(there.claim(client_of(1, 3), ANSWER_MS + 1), Claim::Decided(Verdict::Admitted), "of its own");
    assert!(matches!(there.claim(client, ANSWER_MS + SILENT_MS), Claim::Ask { .. }));
    there.unanswered(client, ANSWER_MS + 2);
    let grant = here.grant(client, 1, ANSWER_MS + 3);
    there.granted(client, grant, ANSWER_MS + 3);
    assert!(matches!(there.claim(client, ANSWER_MS + 4), Claim::Ask { .. }), "it is back");
}

#[test]
fn a_changed_limit_begins_anew_and_another_goes_on() {
    let mut here = Limits::new(0, 1, [Some(RATE), Some(RATE), Some(RATE)].into());
    let client = |route| Client { route, hash: 5 };
    for route in 0..3 {
        assert_eq!(here.grant(client(route), 200, 0), Grant::Tokens(200));
    }
    here.reconfigure([Some(RATE), Some(Rate { burst: 300, ..RATE }), None, Some(RATE)].into());
    assert_eq!(here.grant(client(0), 300, 0), Grant::None { wait_ms: 100 });
    assert_eq!(here.grant(client(1), 300, 0), Grant::Tokens(300));
    assert_eq!(here.claim(client(2), 0), Claim::Decided(Verdict::Admitted));
    assert_eq!(here.tracked(), 2);
}

#[test]
fn a_flood_of_addresses_pushes_out_itself() {
    let mut here = limits(0, 1);
    let limited: Vec<Client> = (0..500).map(|number| Client { route: 0, hash: number << 20 }).collect();
    for client in &limited {
        assert_eq!(here.grant(*client, 200, 0), Grant::Tokens(200));
    }
    let mut random = Random::new(1);
    for _ in 0..3 * limits::CLIENTS_MAX {
        here.claim(Client { route: 0, hash: random.number() }, 1);
    }
    assert_eq!(here.tracked(), limits::CLIENTS_MAX);
    let forgotten = limited.iter().filter(|client| here.own.find(**client).is_none()).count();
    assert_eq!(forgotten, 0, "a limited client starts with a full bucket");
    // Full again, all of them say nothing.
    for _ in 0..=here.own.len().next_power_of_two() / limits::CLIENTS_SWEPT {
        here.tick(60_000, |_, _, _| panic!("nothing is held for others"));
    }
    assert_eq!(here.tracked(), 0);
}

/// What travels between shards.
enum Mail {
    Ask { client: Client, wanted: u32, from: usize },
    Grant { client: Client, grant: Grant },
    Return { client: Client, tokens: u32 },
}

/// Slower than any ring.
const DELAY_MS_MAX: u64 = 10;

struct Load {
    client: Client,
    rate: Rate,
    /// Requests for each one that the rate allows.
    pressure: f64,
    /// Of ten connections, the shard of each.
    connections: Vec<usize>,
    due: f64,
    refused: u64,
    /// How many had gone on, by millisecond.
    admitted: Vec<u64>,
}

struct World {
    random: Random,
    shards: Vec<Limits>,
    loads: Vec<Load>,
    mail: BTreeMap<(u64, u64), (usize, Mail)>,
    /// The last moment at which something arrives, for each pair: rings keep their order.
    arrives: Vec<u64>,
    sent: u64,
    asked: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random::new(seed);
        let count = 1 + random.below(8);
        let bursts = [40, 100, 250, 1000];
        let rates: Vec<Rate> = (0..4)
            .map(|_| {
                let (requests, burst) = (20 + random.below(400) as u32, bursts[random.below(4)]);
                Rate { requests, per_ms: 1000 * (1 + random.below(3) as u32), burst }
            })
            .collect();
        let shards = (0..count).map(|me| Limits::new(me, count, rates.iter().copied().map(Some).collect())).collect();
        let loads = (0..6)
            .map(|number| {
                let route = random.below(rates.len());
                // Most of its connections are on few shards, as the kernel deals them.
                let (favourite, share) = (random.below(count), random.share());
                let place = |random: &mut Random| if random.share() < share { favourite } else { random.below(count) };
                Load {
                    client: Client { route: route as u16, hash: random.number() },
                    rate: rates[route],
                    pressure: if number == 0 { 0.5 } else { 1.5 + 6.0 * random.share() },
                    connections: (0..10).map(|_| place(&mut random)).collect(),
                    due: 0.0,
                    refused: 0,
                    admitted: Vec::new(),
                }
            })
            .collect();
        let (mail, arrives) = (BTreeMap::new(), vec![0; count * count]);
        Self { random, shards, loads, mail, arrives, sent: 0, asked: 0 }
    }

    fn send(&mut self, from: usize, to: usize, mail: Mail, now: u64) {
        let pair = from * self.shards.len() + to;
        // Most of it at once, some of it late.
        let delay_ms = if self.random.share() < 0.8 { 0 } else { self.random.below(DELAY_MS_MAX as usize) as u64 };
        self.arrives[pair] = self.arrives[pair].max(now + delay_ms);
        self.sent += 1;
        self.mail.insert((self.arrives[pair], self.sent), (to, mail));
    }

    fn count(&mut self, client: Client, verdict: Verdict) {
        let load = self.loads.iter_mut().find(|load| load.client == client).unwrap();
        match verdict {
            Verdict::Admitted => *load.admitted.last_mut().unwrap() += 1,
            Verdict::Limited { .. } => load.refused += 1,
        }
    }

    fn request(&mut self, client: Client, shard: usize, now: u64) {
        if let Some(spot) = self.shards[shard].peek(client, now) {
            self.shards[shard].spend(client, spot, now);
            return self.count(client, Verdict::Admitted);
        }
        match self.shards[shard].claim(client, now) {
            Claim::Decided(verdict) => self.count(client, verdict),
            Claim::Ask { owner, wanted } => {
                self.asked += 1;
                self.send(shard, owner, Mail::Ask { client, wanted, from: shard }, now);
            }
            Claim::Unanswered => panic!("everybody answers"),
        }
    }

    fn deliver(&mut self, now: u64) {
        while let Some(entry) = self.mail.first_entry().filter(|entry| entry.key().0 <= now) {
            let (to, mail) = entry.remove();
            match mail {
                Mail::Ask { client, wanted, from } => {
                    let grant = self.shards[to].grant(client, wanted, now);
                    self.send(to, from, Mail::Grant { client, grant }, now);
                }
                Mail::Grant { client, grant } => {
                    let verdict = self.shards[to].granted(client, grant, now);
                    self.count(client, verdict);
                }
                Mail::Return { client, tokens } => self.shards[to].give_back(client, tokens, now),
            }
        }
    }

    fn step(&mut self, now: u64, loaded: bool) {
        for at in 0..self.loads.len() {
            let load = &mut self.loads[at];
            load.admitted.push(load.admitted.last().copied().unwrap_or(0));
            let per_ms = f64::from(load.rate.requests) / f64::from(load.rate.per_ms);
            load.due += if loaded { per_ms * load.pressure } else { 0.0 };
            while self.loads[at].due >= 1.0 {
                self.loads[at].due -= 1.0;
                let connection = self.random.below(10);
                let (client, shard) = (self.loads[at].client, self.loads[at].connections[connection]);
                self.request(client, shard, now);
            }
        }
        self.deliver(now);
        if now.is_multiple_of(50) {
            for shard in 0..self.shards.len() {
                let mut back = Vec::new();
                self.shards[shard].tick(now, |owner, client, tokens| back.push((owner, client, tokens)));
                for (owner, client, tokens) in back {
                    self.send(shard, owner, Mail::Return { client, tokens }, now);
                }
            }
        }
    }
}

/// What a limit lets through in such a time.
fn allowed(rate: Rate, ms: u64) -> f64 {
    ms as f64 * f64::from(rate.requests) / f64::from(rate.per_ms)
}

fn simulate(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    let loaded_ms = 8_000;
    for now in 0..loaded_ms {
        world.step(now, true);
    }
    for load in &world.loads {
        let (rate, burst) = (load.rate, f64::from(load.rate.burst));
        let at = |ms: u64| load.admitted[ms as usize] as f64;
        let say = format!("seed {seed}: {rate:?}, pressure {}, shards {:?}", load.pressure, load.connections);
        if load.pressure < 1.0 {
            assert_eq!(load.refused, 0, "below its limit: {say}");
            continue;
        }
        // Of all that was asked for, since the beginning: never more than the bucket gives, and at the end at most 5 % less.
        for ms in (0..loaded_ms).step_by(50) {
            assert!(at(ms) <= burst + allowed(rate, ms), "{} in {ms} ms: {say}", at(ms));
        }
        let (ms, offered) = (loaded_ms - 1, allowed(rate, loaded_ms) * load.pressure);
        let expected = (burst + allowed(rate, ms)).min(offered - 1.0);
        assert!(at(ms) >= 0.95 * expected, "{} of {expected}: {say}", at(ms));
        // In any span of time: at most the burst and 5 % of it, and what came meanwhile and while an answer was on its way.
        for from in (0..loaded_ms).step_by(250) {
            for to in (from..loaded_ms).step_by(250) {
                let most = 1.05 * burst + allowed(rate, to - from + 2 * DELAY_MS_MAX);
                assert!(at(to) - at(from) <= most, "{} from {from} to {to}: {say}", at(to) - at(from));
            }
        }
    }
    let admitted = world.loads.iter().map(|load| load.admitted.last().unwrap()).sum();
    // After a pause nothing is held back or remembered.
    let asked = world.asked;
    for now in (loaded_ms..loaded_ms + 200_000).step_by(50) {
        world.step(now, false);
    }
    for shard in &mut world.shards {
        assert!(shard.own.is_empty() && shard.held.is_empty(), "seed {seed}");
    }
    (asked, admitted)
}

#[test]
fn the_total_is_within_five_percent() {
    let mut worst = 0.0_f64;
    for seed in 0..16 {
        let (asked, admitted) = simulate(seed);
        worst = worst.max(asked as f64 / admitted as f64);
    }
    // However large the flood, each of the up to eight shards asks when the next token is due, and few do so in vain.
    assert!(worst < 4.0, "{worst} questions for each request that went on");
}
