//! What a shard knows of the clients of its limited routes: a table with a bound, from which the least valuable goes when it is full.
//!
//! What is least valuable is for the user to say. Not all are compared but [`limits::CLIENTS_COMPARED`], spread evenly over the table and
//! others each time: so a newcomer costs the same however many there are, and those that came together are not compared with each other alone.

use crate::base::limits;
use crate::route::client::Client;
use hashbrown::HashTable;
use slab::Slab;

#[derive(Debug)]
pub struct Clients<T> {
    entries: Slab<(Client, T)>,
    index: HashTable<u32>,
    /// Where comparing goes on, and where sweeping does.
    compared: usize,
    swept: usize,
    max: usize,
}

impl<T> Clients<T> {
    #[must_use]
    pub fn new(max: usize) -> Self {
        assert!(max > 0, "there is room for somebody");
        Self { entries: Slab::new(), index: HashTable::new(), compared: 0, swept: 0, max }
    }

    /// Where a client is, for the next call of `at`.
    #[must_use]
    pub fn find(&self, client: Client) -> Option<usize> {
        let entries = &self.entries;
        self.index.find(client.hash, |&at| entries[at as usize].0 == client).map(|&at| at as usize)
    }

    pub fn at(&mut self, at: usize) -> &mut T {
        &mut self.entries[at].1
    }

    /// Adds a client that is not there. When it is full, the one goes for whom `worth` says least.
    pub fn insert(&mut self, client: Client, value: T, mut worth: impl FnMut(Client, &mut T) -> u64) -> usize {
        debug_assert!(self.find(client).is_none(), "a client is added once");
        if self.entries.len() >= self.max {
            let from = self.compared;
            self.compared = (from + 1) % self.max;
            // Full, so that every place up to `max` is taken.
            let apart = self.max.div_ceil(limits::CLIENTS_COMPARED);
            let places = (0..self.max).step_by(apart).map(|at| (from + at) % self.max);
            let least = places.filter_map(|at| {
                let (client, value) = self.entries.get_mut(at)?;
                Some((worth(*client, value), at))
            });
            if let Some((_, at)) = least.min() {
                self.remove(at);
            }
        }
        let at = self.entries.insert((client, value));
        let entries = &self.entries;
        self.index.insert_unique(client.hash, at as u32, |&at| entries[at as usize].0.hash);
        debug_assert!(self.entries.len() <= self.max && self.index.len() == self.entries.len());
        at
    }

    /// Looks at some more of them and drops those that `keep` does not want.
    pub fn sweep(&mut self, mut keep: impl FnMut(Client, &mut T) -> bool) {
        let places = self.entries.capacity();
        for _ in 0..limits::CLIENTS_SWEPT.min(places) {
            let at = self.swept % places;
            self.swept = at + 1;
            if let Some((client, value)) = self.entries.get_mut(at)
                && !keep(*client, value)
            {
                self.remove(at);
            }
        }
    }

    /// Drops all that `keep` does not want.
    pub fn retain(&mut self, mut keep: impl FnMut(Client) -> bool) {
        let gone: Vec<usize> =
            self.entries.iter().filter(|(_, (client, _))| !keep(*client)).map(|(at, _)| at).collect();
        gone.into_iter().for_each(|at| self.remove(at));
    }

    fn remove(&mut self, at: usize) {
        let (client, _) = self.entries.remove(at);
        if let Ok(entry) = self.index.find_entry(client.hash, |&other| other as usize == at) {
            entry.remove();
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(number: u64) -> Client {
        Client { route: (number % 3) as u16, hash: number.wrapping_mul(0x9E37_79B9_7F4A_7C15) }
    }

    #[test]
    fn the_least_valuable_goes() {
        let mut clients = Clients::new(100);
        for number in 0..100 {
            clients.insert(client(number), number, |_, _| unreachable!("there is room"));
        }
        // Multiples of three are worth more than any other, of which there are some among those that are compared.
        let worth = |_, value: &mut u64| if value.is_multiple_of(3) { u64::MAX } else { *value };
        for number in 34..60 {
            clients.insert(client(3 * number), 3 * number, worth);
        }
        assert_eq!(clients.len(), 100);
        assert!((0..60).all(|number| clients.find(client(3 * number)).is_some()));
        let others = (0..100).filter(|number| number % 3 > 0 && clients.find(client(*number)).is_some());
        assert_eq!(others.count(), 66 - 26);
    }

    #[test]
    fn sweeping_comes_to_all_of_them() {
        let mut clients = Clients::new(50_000);
        for number in 0..20_000 {
            clients.insert(client(number), number, |_, _| 0);
        }
        for _ in 0..=20_000_usize.next_power_of_two() / limits::CLIENTS_SWEPT {
            clients.sweep(|_, value| *value % 2 == 1);
        }
        assert_eq!(clients.len(), 10_000);
        let at = clients.find(client(19_999)).unwrap();
        assert_eq!(*clients.at(at), 19_999);
        clients.retain(|client| client.route != 0);
        assert!(clients.find(client(3)).is_none() && clients.find(client(1)).is_some());
        Clients::<u8>::new(1).sweep(|_, _| false);
    }
}
