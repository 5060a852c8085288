//! Token buckets that all workers share.
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// A token bucket without a timer or lock: its level follows from one number, the moment at which it was empty.
///
/// Times are nanoseconds on any clock that all its users share. Inside they are shifted by the time that a whole
/// bucket takes, so that zero means full, whatever the clock says.
#[derive(Debug)]
pub struct TokenBucket {
    most: u32,
    /// Nanoseconds for one token.
    cost: u64,
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// Holds at most `most` tokens and gets `fill` of them, evenly, every `interval` (nanoseconds).
    pub fn new(most: u32, fill: u32, interval: u64) -> Self {
        Self { most, cost: (interval / u64::from(fill.max(1))).max(1), empty_at: AtomicU64::new(0) }
    }

    /// A full one of the same kind.
    pub(crate) fn fresh(&self) -> Self {
        Self { most: self.most, cost: self.cost, empty_at: AtomicU64::new(0) }
    }

    pub(super) fn fill(&self) {
        self.empty_at.store(0, Relaxed);
    }

    /// Nanoseconds for one token.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// The size of the bucket.
    pub fn most(&self) -> u32 {
        self.most
    }

    fn span(&self) -> u64 {
        self.cost.saturating_mul(u64::from(self.most)).min(u64::MAX / 2)
    }

    fn level(&self, empty_at: u64, now: u64) -> u64 {
        now.saturating_add(self.span()).saturating_sub(empty_at).min(self.span())
    }

    /// Takes a token if there is one.
    pub fn take(&self, now: u64) -> bool {
        self.take_some(1, now)
    }

    /// Takes so many tokens if they are there, and they are some.
    pub(super) fn take_some(&self, count: u64, now: u64) -> bool {
        let cost = self.cost.saturating_mul(count);
        count > 0 && self.change(now, |level| level.checked_sub(cost))
    }

    /// Puts so many tokens back, as far as there is room for them.
    pub(super) fn give(&self, count: u64, now: u64) {
        let worth = self.cost.saturating_mul(count);
        self.change(now, |level| Some(level.saturating_add(worth).min(self.span())));
    }

    fn change(&self, now: u64, left: impl Fn(u64) -> Option<u64>) -> bool {
        let next = |seen| Some(now.saturating_add(self.span()).saturating_sub(left(self.level(seen, now))?));
        self.empty_at.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Whole tokens left.
    pub fn remaining(&self, now: u64) -> u64 {
        self.level(self.empty_at.load(Relaxed), now) / self.cost
    }

    /// Seconds until there is a token, rounded up; 0 when there is one.
    pub fn reset(&self, now: u64) -> u64 {
        self.cost.saturating_sub(self.level(self.empty_at.load(Relaxed), now)).div_ceil(1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn a_bucket_starts_full_fills_evenly_and_never_over() {
        let bucket = TokenBucket::new(2, 4, 10 * SECOND);
        let now = 7 * SECOND;
        assert_eq!((bucket.remaining(now), bucket.take(now), bucket.take(now), bucket.take(now)), (2, true, true, false));
        assert_eq!((bucket.remaining(now), bucket.reset(now)), (0, 3));
        assert!(!bucket.take(now + 2 * SECOND), "half a token is none");
        assert!(bucket.take(now + 5 * SECOND / 2));
        assert_eq!(bucket.remaining(now + 1000 * SECOND), 2);
        assert_eq!(bucket.reset(now + 1000 * SECOND), 0);
    }

    #[test]
    fn threads_share_a_bucket_to_the_last_token() {
        let bucket = TokenBucket::new(1000, 1, 3600 * SECOND);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        taken.fetch_add(u64::from(bucket.take(1)), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 1000);
    }
}
