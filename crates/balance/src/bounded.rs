//! Consistent hashing with bounded loads: a host that has too much gives way to another, always the same one for the
//! same hash (Envoy `hash_balance_factor`; <https://arxiv.org/abs/1608.01350>, <https://arxiv.org/abs/1908.08762>).
use std::sync::Arc;

use crate::host::Host;

/// The hosts of a table with their shares, and how much more than its share one may have.
#[derive(Debug)]
pub(crate) struct Bounded {
    hosts: Vec<(Arc<Host>, f64)>,
    /// In percent.
    factor: u32,
}

impl Bounded {
    pub(crate) fn new(hosts: Vec<(Arc<Host>, f64)>, factor: u32) -> Self {
        Self { hosts, factor }
    }

    /// `first` unless it is overloaded; then the first in a shuffled order that is not, or the least overloaded.
    /// `active` counts the requests of the whole cluster.
    pub(crate) fn choose(&self, first: Arc<Host>, hash: u64, active: u32) -> Arc<Host> {
        let share = self.hosts.iter().find(|(h, _)| Arc::ptr_eq(h, &first)).map_or(0.0, |(_, share)| *share);
        let mut least = self.overload(&first, share, active);
        if least <= 1.0 {
            return first;
        }
        let mut best = &first;
        let mut order: Vec<usize> = (0..self.hosts.len()).collect();
        let mut random = MersenneTwister::new(hash);
        for at in 0..order.len() {
            let other = at + random.below(order.len() - at);
            order.swap(at, other);
            let Some((host, share)) = order.get(at).and_then(|i| self.hosts.get(*i)) else { continue };
            if Arc::ptr_eq(host, &first) {
                continue;
            }
            let overload = self.overload(host, *share, active);
            if overload <= 1.0 {
                return Arc::clone(host);
            }
            if overload < least {
                (best, least) = (host, overload);
            }
        }
        Arc::clone(best)
    }

    /// The host's requests over what it may have; above 1 is too much.
    fn overload(&self, host: &Host, share: f64, active: u32) -> f64 {
        let slots = ((u64::from(active) + 1) * u64::from(self.factor)).div_ceil(100);
        let own = (slots as f64 * share).ceil().max(1.0);
        f64::from(host.active_requests()) / own
    }
}

/// MT19937, whose sequence for a seed is the same everywhere: proxies of one mesh agree on the order, Envoy among them.
struct MersenneTwister {
    state: [u32; 624],
    at: usize,
}

impl MersenneTwister {
    #[allow(clippy::cast_possible_truncation)]
    fn new(seed: u64) -> Self {
        let mut state = [0u32; 624];
        let mut last = seed as u32;
        for (index, word) in (0u32..).zip(&mut state) {
            if index > 0 {
                last = 1_812_433_253u32.wrapping_mul(last ^ (last >> 30)).wrapping_add(index);
            }
            *word = last;
        }
        Self { state, at: 624 }
    }

    fn next(&mut self) -> u32 {
        if self.at >= 624 {
            for i in 0..624 {
                let mixed = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                let twist = if mixed & 1 == 0 { 0 } else { 0x9908_b0df };
                self.state[i] = self.state[(i + 397) % 624] ^ (mixed >> 1) ^ twist;
            }
            self.at = 0;
        }
        let mut word = self.state[self.at];
        self.at += 1;
        word ^= word >> 11;
        word ^= (word << 7) & 0x9d2c_5680;
        word ^= (word << 15) & 0xefc6_0000;
        word ^ (word >> 18)
    }

    /// A number below `bound`, which is above zero, as Envoy takes it from the sequence.
    fn below(&mut self, bound: usize) -> usize {
        let slice = (1u64 << 32) / (bound.max(1) as u64);
        loop {
            let number = (u64::from(self.next()) / slice.max(1)) as usize;
            if number < bound.max(1) {
                return number;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Address;

    fn hosts(n: u16) -> Vec<(Arc<Host>, f64)> {
        (0..n).map(|i| (Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into()))), 1.0 / f64::from(n))).collect()
    }

    #[test]
    fn the_sequence_is_that_of_the_standard() {
        let mut random = MersenneTwister::new(5489);
        assert_eq!(random.next(), 3_499_211_612);
        let last = (1..10_000).map(|_| random.next()).last();
        assert_eq!(last, Some(4_123_659_995), "the ten thousandth, as the C++ standard requires");
    }

    #[test]
    fn a_full_host_gives_way_always_to_the_same_other() {
        let hosts = hosts(5);
        let bounded = Bounded::new(hosts.clone(), 100);
        let first = Arc::clone(&hosts[0].0);
        assert!(Arc::ptr_eq(&bounded.choose(Arc::clone(&first), 7, 0), &first));
        // Ten requests in all: a host may have ceil(11 / 5) = 3.
        let held: Vec<_> = (0..4).map(|_| first.begin_request()).collect();
        let other = bounded.choose(Arc::clone(&first), 7, 10);
        assert!(!Arc::ptr_eq(&other, &first));
        assert!((0..5).all(|_| Arc::ptr_eq(&bounded.choose(Arc::clone(&first), 7, 10), &other)));
        drop(held);
        assert!(Arc::ptr_eq(&bounded.choose(Arc::clone(&first), 7, 6), &first));
    }

    #[test]
    fn when_all_are_full_the_least_overloaded_is_taken() {
        let hosts = hosts(3);
        let bounded = Bounded::new(hosts.clone(), 100);
        let held: Vec<_> = [5, 3, 4].iter().zip(&hosts).flat_map(|(n, (host, _))| (0..*n).map(|_| host.begin_request())).collect();
        assert!(Arc::ptr_eq(&bounded.choose(Arc::clone(&hosts[0].0), 7, 2), &hosts[1].0));
        drop(held);
    }
}
