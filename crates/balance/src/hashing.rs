//! Consistent hashing: the ring and the Maglev table, as Envoy builds them (xxHash64 of the address).
use std::sync::Arc;

use xxhash_rust::xxh64::xxh64;

use crate::bounded::Bounded;
use crate::config::{HashFunction, Hashing, LbPolicy};
use crate::host::Host;
use crate::murmur::murmur2;
use crate::plan::WeightedHosts;

/// The table of a hash policy, with the bound on its hosts' load if there is one.
#[derive(Debug)]
pub(crate) struct Table {
    places: Places,
    bounded: Option<Box<Bounded>>,
}

#[derive(Debug)]
enum Places {
    Ring(Ring),
    Maglev(Maglev),
}

impl Table {
    /// `None` for a policy that does not hash.
    pub(crate) fn new(policy: &LbPolicy, localities: &[WeightedHosts], hashing: &Hashing) -> Option<Self> {
        let places = match policy {
            LbPolicy::RingHash { minimum_size, maximum_size, function } => {
                let hash: fn(&[u8]) -> u64 = match function {
                    HashFunction::XxHash => |bytes: &[u8]| xxh64(bytes, 0),
                    HashFunction::MurmurHash2 => murmur2,
                };
                Places::Ring(Ring::new(localities, *minimum_size, *maximum_size, |host, n| {
                    hash(format!("{}_{n}", key(host, hashing.use_hostname)).as_bytes())
                }))
            }
            LbPolicy::Maglev { table_size } => Places::Maglev(Maglev::new(localities, *table_size, hashing.use_hostname)),
            _ => return None,
        };
        let bounded = hashing.balance_factor.map(|factor| Box::new(Bounded::new(normalized(localities), factor)));
        Some(Self { places, bounded })
    }

    /// `attempt` counts further choices for the same request; `active` counts the requests of the whole cluster.
    pub(crate) fn choose(&self, hash: u64, attempt: u32, active: impl FnOnce() -> u32) -> Option<Arc<Host>> {
        let host = match &self.places {
            Places::Ring(ring) => ring.choose(hash, attempt),
            Places::Maglev(table) => table.choose(hash, attempt),
        }?;
        match &self.bounded {
            Some(bounded) => Some(bounded.choose(host, hash, active())),
            None => Some(host),
        }
    }
}

/// What a host's places are computed from (Envoy's `hashKey`).
fn key(host: &Host, use_hostname: bool) -> String {
    match (&*host.hash_key, use_hostname) {
        ("", true) => host.hostname.to_string(),
        ("", false) => host.address.to_string(),
        (key, _) => key.to_owned(),
    }
}

/// Points on a circle; a request goes to the first point at or after its hash.
#[derive(Debug)]
pub(crate) struct Ring(Vec<(u64, Arc<Host>)>);

impl Ring {
    /// Each host gets points in proportion to its weight, at least one; the smallest share decides the size. `place` says
    /// where a host's nth point is.
    pub(crate) fn new(localities: &[WeightedHosts], minimum: u64, maximum: u64, place: impl Fn(&Host, u64) -> u64) -> Self {
        let weights = normalized(localities);
        let smallest = weights.iter().map(|(_, w)| *w).fold(f64::INFINITY, f64::min);
        if !smallest.is_finite() || smallest <= 0.0 {
            return Self(Vec::new());
        }
        let maximum = maximum.clamp(1, 8 << 20) as f64;
        // Whole points for the least weighted host, scaled up to the minimum size.
        let scale = ((smallest * minimum as f64).ceil() / smallest).min(maximum);
        let mut points = Vec::new();
        let (mut current, mut target) = (0.0, 0.0);
        for (host, weight) in weights {
            target += scale * weight;
            let mut index = 0u64;
            while current < target {
                points.push((place(&host, index), Arc::clone(&host)));
                index += 1;
                current += 1.0;
            }
        }
        points.sort_by_key(|(hash, _)| *hash);
        Self(points)
    }

    /// `attempt` walks on from the first choice, for retries that avoid tried hosts.
    pub(crate) fn choose(&self, hash: u64, attempt: u32) -> Option<Arc<Host>> {
        if self.0.is_empty() {
            return None;
        }
        let start = self.0.partition_point(|(point, _)| *point < hash);
        self.0.get((start + attempt as usize) % self.0.len()).map(|(_, host)| Arc::clone(host))
    }
}

/// Maglev's lookup table: even shares, little disruption when members change.
#[derive(Debug)]
pub(crate) struct Maglev(Vec<Arc<Host>>);

impl Maglev {
    pub(crate) fn new(localities: &[WeightedHosts], size: u64, use_hostname: bool) -> Self {
        let size = size.clamp(1, 5_000_011);
        let weights = normalized(localities);
        let largest = weights.iter().map(|(_, w)| *w).fold(0.0, f64::max);
        if largest <= 0.0 {
            return Self(Vec::new());
        }
        let mut entries: Vec<Permutation> = weights.into_iter().map(|(h, w)| Permutation::new(h, w, size, use_hostname)).collect();
        let mut table: Vec<Option<u32>> = vec![None; usize::try_from(size).unwrap_or(1)];
        let (mut filled, mut round) = (0, 0.0);
        while filled < table.len() {
            round += 1.0;
            for (index, entry) in entries.iter_mut().enumerate() {
                // A lighter host sits rounds out until its share has caught up.
                if round * entry.weight < entry.target {
                    continue;
                }
                entry.target += largest;
                let slot = entry.next_free(&table, size);
                table[slot] = u32::try_from(index).ok();
                filled += 1;
                if filled == table.len() {
                    break;
                }
            }
        }
        Self(table.into_iter().flatten().map(|i| Arc::clone(&entries[i as usize].host)).collect())
    }

    pub(crate) fn choose(&self, hash: u64, attempt: u32) -> Option<Arc<Host>> {
        if self.0.is_empty() {
            return None;
        }
        // Another slot for each further attempt: stir the hash as Envoy does.
        let hash = if attempt > 0 { hash ^ (!0u64 - u64::from(attempt) + 1) } else { hash };
        self.0.get((hash % self.0.len() as u64) as usize).cloned()
    }
}

struct Permutation {
    host: Arc<Host>,
    offset: u64,
    skip: u64,
    weight: f64,
    target: f64,
    next: u64,
}

impl Permutation {
    fn new(host: Arc<Host>, weight: f64, size: u64, use_hostname: bool) -> Self {
        let key = key(&host, use_hostname);
        let offset = xxh64(key.as_bytes(), 0) % size;
        let skip = if size > 1 { xxh64(key.as_bytes(), 1) % (size - 1) + 1 } else { 1 };
        Self { host, offset, skip, weight, target: 0.0, next: 0 }
    }

    /// The next slot of this host's order that nobody has; the caller guarantees that one is free.
    fn next_free(&mut self, table: &[Option<u32>], size: u64) -> usize {
        loop {
            let slot = ((self.offset + self.skip * self.next) % size) as usize;
            self.next += 1;
            if table[slot].is_none() {
                return slot;
            }
            // `size` need not be prime in a configuration: then a host's order may not reach every slot.
            if self.next > size {
                return table.iter().position(Option::is_none).unwrap_or(slot);
            }
        }
    }
}

/// Every host with its share of the whole, locality weight included; shares add up to 1.
fn normalized(localities: &[WeightedHosts]) -> Vec<(Arc<Host>, f64)> {
    let total: f64 = localities.iter().map(|l| l.weight).sum();
    let mut shares = Vec::new();
    for locality in localities {
        let sum: f64 = locality.hosts.iter().map(|h| f64::from(h.weight())).sum();
        if sum > 0.0 && total > 0.0 {
            let share = |h: &Arc<Host>| (Arc::clone(h), locality.weight / total * f64::from(h.weight()) / sum);
            shares.extend(locality.hosts.iter().map(share));
        }
    }
    shares
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::host::Address;

    fn hosts(weights: &[u32]) -> Vec<WeightedHosts> {
        let host = |(i, w): (usize, &u32)| {
            let host = Host::new(Address::Socket(([10, 0, 0, 1], 1000 + i as u16).into()));
            host.set_weight(*w);
            Arc::new(host)
        };
        vec![WeightedHosts { weight: 1.0, hosts: weights.iter().enumerate().map(host).collect() }]
    }

    fn xx(host: &Host, n: u64) -> u64 {
        xxh64(format!("{}_{n}", key(host, false)).as_bytes(), 0)
    }

    fn shares(choose: impl Fn(u64) -> Option<Arc<Host>>) -> HashMap<String, f64> {
        let mut counts = HashMap::new();
        for n in 0..100_000u64 {
            *counts.entry(choose(xxh64(&n.to_le_bytes(), 7)).unwrap().address.to_string()).or_insert(0.0) += 0.00001;
        }
        counts
    }

    #[test]
    fn maglev_shares_follow_the_weights_closely() {
        let table = Maglev::new(&hosts(&[1, 1, 2]), 65_537, false);
        let shares = shares(|h| table.choose(h, 0));
        assert!((shares["10.0.0.1:1002"] - 0.5).abs() < 0.02, "{shares:?}");
        assert!((shares["10.0.0.1:1000"] - 0.25).abs() < 0.02, "{shares:?}");
    }

    #[test]
    fn ring_shares_follow_the_weights_roughly() {
        let ring = Ring::new(&hosts(&[1, 3]), 4096, 1 << 20, xx);
        let shares = shares(|h| ring.choose(h, 0));
        assert!((shares["10.0.0.1:1001"] - 0.75).abs() < 0.05, "{shares:?}");
    }

    /// Of 10,000 keys, how many changed host although theirs is still there.
    fn moved(before: impl Fn(u64) -> Option<Arc<Host>>, after: impl Fn(u64) -> Option<Arc<Host>>, gone: &Host) -> usize {
        let keys = (0..10_000u64).map(|n| xxh64(&n.to_le_bytes(), 3));
        let changed = |key: &u64| {
            let (was, is) = (before(*key).unwrap(), after(*key).unwrap());
            was.address != gone.address && was.address != is.address
        };
        keys.filter(changed).count()
    }

    #[test]
    fn losing_a_host_moves_little_else() {
        let (all, mut fewer) = (hosts(&[1; 10]), hosts(&[1; 10]));
        let gone = fewer[0].hosts.remove(3);
        let (before, after) = (Ring::new(&all, 1024, 1 << 20, xx), Ring::new(&fewer, 1024, 1 << 20, xx));
        assert!(moved(|k| before.choose(k, 0), |k| after.choose(k, 0), &gone) < 1_000);
        let (before, after) = (Maglev::new(&all, 65_537, false), Maglev::new(&fewer, 65_537, false));
        assert!(moved(|k| before.choose(k, 0), |k| after.choose(k, 0), &gone) < 1_000);
    }

    #[test]
    fn nothing_to_choose_from_is_no_panic() {
        assert!(Ring::new(&[], 1024, 4096, xx).choose(1, 0).is_none());
        assert!(Maglev::new(&hosts(&[]), 65_537, false).choose(1, 0).is_none());
        assert!(Maglev::new(&hosts(&[1, 1]), 10, false).choose(1, 0).is_some());
    }
}
