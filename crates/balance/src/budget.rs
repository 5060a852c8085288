//! Retry budgets: retries as a share of the requests under way (Envoy circuit_breaker.proto, `RetryBudget`).
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// How many retries may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of active and waiting requests, in millionths.
    pub share: u32,
    /// Allowed whatever the share says.
    pub min_concurrency: u32,
    /// Requests count for so long after they began, though they are over; zero for those under way alone.
    pub interval: Duration,
}

/// A budget that may be exchanged while requests ask for it: both numbers in one word, so that they fit together.
#[derive(Debug, Default)]
pub(crate) struct Cell {
    word: AtomicU64,
    begun: Begun,
}

/// Set in the word of a budget, so that one of zero is none the less a budget.
const PRESENT: u64 = 1 << 63;

impl Cell {
    pub(crate) fn set(&self, budget: Option<RetryBudget>) {
        let word = budget.map_or(0, |b| PRESENT | u64::from(b.share & 0x7fff_ffff) << 32 | u64::from(b.min_concurrency));
        self.word.store(word, Relaxed);
        self.begun.look_back(budget.map_or(Duration::ZERO, |b| b.interval));
    }

    /// A request begins; `now` is in milliseconds and only looked at where that counts.
    pub(crate) fn note(&self, now: impl FnOnce() -> u64) {
        let bucket = self.begun.bucket.load(Relaxed);
        if bucket > 0 {
            self.begun.count(now() / u64::from(bucket));
        }
    }

    /// How many retries may run while `active` requests do; `None` without a budget.
    pub(crate) fn limit(&self, active: u32, now: impl FnOnce() -> u64) -> Option<u32> {
        let word = self.word.load(Relaxed);
        if word & PRESENT == 0 {
            return None;
        }
        let bucket = self.begun.bucket.load(Relaxed);
        let counted = if bucket > 0 { active.max(self.begun.sum(now() / u64::from(bucket))) } else { active };
        let share = word >> 32 & 0x7fff_ffff;
        let allowed = u64::from(counted) * share / 1_000_000;
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
        Some(allowed.max(word as u32))
    }
}

/// Buckets of an interval: what is older than it is forgotten a bucket at a time.
const BUCKETS: usize = 16;

/// How many requests began within an interval, over all workers.
#[derive(Debug, Default)]
struct Begun {
    /// Milliseconds of one bucket; zero where nothing is counted.
    bucket: AtomicU32,
    /// Each with the number of its time above its count.
    counts: [AtomicU64; BUCKETS],
}

impl Begun {
    fn look_back(&self, interval: Duration) {
        let bucket = interval.as_millis().div_ceil(BUCKETS as u128);
        self.bucket.store(u32::try_from(bucket).unwrap_or(u32::MAX), Relaxed);
    }

    fn count(&self, time: u64) {
        let Some(count) = self.counts.get(time as usize % BUCKETS) else { return };
        let time = u64::from(time as u32) << 32;
        let next = |word: u64| if word & !0xffff_ffff == time { word.saturating_add(1) } else { time | 1 };
        let _ = count.fetch_update(Relaxed, Relaxed, |word| Some(next(word)));
    }

    fn sum(&self, time: u64) -> u32 {
        let words = self.counts.iter().map(|count| count.load(Relaxed));
        let recent = words.filter(|word| ((time as u32).wrapping_sub((word >> 32) as u32) as usize) < BUCKETS);
        recent.fold(0, |sum: u32, word| sum.saturating_add(word as u32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_count_as_long_as_the_interval_says_though_they_are_over() {
        let cell = Cell::default();
        cell.set(Some(RetryBudget { share: 500_000, min_concurrency: 0, interval: Duration::from_millis(160) }));
        (0..10).for_each(|_| cell.note(|| 1_000));
        let limit = |active, now| cell.limit(active, || now).unwrap();
        assert_eq!([limit(1, 1_000), limit(1, 1_150), limit(1, 1_160), limit(2, 1_160)], [5, 5, 0, 1]);
        assert_eq!(limit(20, 1_000), 10, "those under way count in any case");
        cell.note(|| 1_160);
        cell.note(|| 1_160);
        assert_eq!([limit(0, 1_160), limit(0, 1_319), limit(0, 1_320)], [1, 1, 0]);
        cell.set(Some(RetryBudget { share: 500_000, min_concurrency: 0, interval: Duration::ZERO }));
        assert_eq!(cell.limit(0, || panic!("no time is needed")), Some(0));
        cell.note(|| panic!("no time is needed"));
        cell.set(None);
        assert_eq!(cell.limit(0, || panic!("no time is needed")), None);
    }

    #[test]
    fn an_interval_of_any_length_is_a_whole_number_of_buckets() {
        for (interval, still, over) in [(1, 0, 16), (100, 99, 112), (3_600_000, 3_599_999, 3_600_000)] {
            let cell = Cell::default();
            cell.set(Some(RetryBudget { share: 1_000_000, min_concurrency: 0, interval: Duration::from_millis(interval) }));
            cell.note(|| 0);
            assert_eq!((cell.limit(0, || still), cell.limit(0, || over)), (Some(1), Some(0)), "{interval}");
        }
    }
}
