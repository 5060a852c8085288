//! A bucket for each value that comes, of so many values: who was not seen for longest gives its bucket up.
//!
//! All workers share the table without a lock. What a race between them can do is small: a value may for a moment have two
//! buckets, or share one with a value that has just given it up.
use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

use foldhash::quality::RandomState;

use super::TokenBucket;

/// Values that are looked through one by one; a larger table is divided by a hash.
const MOST_IN_SET: usize = 64;

/// The table; its memory is taken as values come.
#[derive(Debug)]
pub struct ByValue {
    kind: TokenBucket,
    most: usize,
    hasher: RandomState,
    sets: OnceLock<Box<[Set]>>,
}

type Set = OnceLock<Box<[Slot]>>;

#[derive(Debug)]
struct Slot {
    /// The hash of the value; 0 for none yet.
    value: AtomicU64,
    /// When it was last seen; 0 for never.
    seen: AtomicU64,
    bucket: Arc<TokenBucket>,
}

impl ByValue {
    /// Buckets like `kind` for `most` values, which is above zero.
    pub fn new(kind: TokenBucket, most: usize) -> Self {
        Self { kind, most: most.max(1), hasher: RandomState::default(), sets: OnceLock::new() }
    }

    /// Nanoseconds for one token.
    pub(super) fn cost(&self) -> u64 {
        self.kind.cost()
    }

    #[must_use]
    pub(super) fn fresh(&self) -> Self {
        Self::new(self.kind.fresh(), self.most)
    }

    /// The bucket of these values. `now` is nanoseconds of the clock of buckets.
    pub(super) fn bucket<'v>(&self, values: impl Iterator<Item = &'v str>, now: u64) -> Option<&Arc<TokenBucket>> {
        let hash = values.fold(0, |hash, value| self.hasher.hash_one((hash, value))).max(1);
        let sets = self.sets.get_or_init(|| (0..self.most.div_ceil(MOST_IN_SET)).map(|_| OnceLock::new()).collect());
        let set = sets.get(usize::try_from(hash >> 32).unwrap_or(0) % sets.len().max(1))?;
        let slots = set.get_or_init(|| (0..self.most / sets.len().max(1)).map(|_| Slot::new(&self.kind)).collect());
        let seen = now.max(1);
        if let Some(slot) = slots.iter().find(|slot| slot.value.load(Relaxed) == hash) {
            slot.seen.store(seen, Relaxed);
            return Some(&slot.bucket);
        }
        let slot = slots.iter().min_by_key(|slot| slot.seen.load(Relaxed))?;
        // Full before anybody finds it by the new value.
        slot.bucket.fill();
        slot.seen.store(seen, Relaxed);
        slot.value.store(hash, Relaxed);
        Some(&slot.bucket)
    }
}

impl Slot {
    fn new(kind: &TokenBucket) -> Self {
        Self { value: AtomicU64::new(0), seen: AtomicU64::new(0), bucket: Arc::new(kind.fresh()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000_000_000;

    fn table(most: usize) -> ByValue {
        ByValue::new(TokenBucket::new(1, 1, HOUR), most)
    }

    fn take(table: &ByValue, value: &str, now: u64) -> bool {
        table.bucket([value].into_iter(), now).is_some_and(|bucket| bucket.take(now))
    }

    #[test]
    fn each_value_has_its_own_bucket_until_it_was_not_seen_for_longest() {
        let table = table(2);
        assert!(take(&table, "a", 1) && !take(&table, "a", 2));
        assert!(take(&table, "b", 3) && !take(&table, "b", 4));
        assert!(!take(&table, "a", 5), "it is remembered");
        assert!(take(&table, "c", 6), "takes the place of b");
        assert!(!take(&table, "a", 7));
        assert!(take(&table, "b", 8), "b was forgotten");
        let split = |values: [&str; 2]| table.bucket(values.into_iter(), 9).map(Arc::as_ptr);
        assert_ne!(split(["x", "yz"]), split(["xy", "z"]));
    }

    #[test]
    fn a_large_table_keeps_no_more_than_told_and_nearly_as_many() {
        let table = table(1_000);
        for n in 0..10_000 {
            take(&table, &n.to_string(), n + 1);
        }
        let sets = table.sets.get().unwrap();
        let slots: Vec<&Slot> = sets.iter().filter_map(OnceLock::get).flatten().collect();
        assert!((900..=1_000).contains(&slots.len()), "{}", slots.len());
        assert!(slots.iter().all(|slot| slot.seen.load(Relaxed) > 7_000), "the latest are kept");
    }

    #[test]
    fn threads_share_the_table() {
        let table = table(8);
        let taken = AtomicU64::new(0);
        let names: Vec<String> = (0..4).map(|n| n.to_string()).collect();
        // One after the other before, so that no value gets two buckets.
        names.iter().for_each(|name| drop(table.bucket([name.as_str()].into_iter(), 1).cloned()));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for name in names.iter().cycle().take(400) {
                        taken.fetch_add(u64::from(take(&table, name, 2)), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 4);
    }
}
