//! Retry budgets: retries as a share of the requests under way (Envoy circuit_breaker.proto, `RetryBudget`).
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How many retries may run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Of active and waiting requests, in millionths.
    pub share: u32,
    /// Allowed whatever the share says.
    pub min_concurrency: u32,
}

/// A budget that may be exchanged while requests ask for it: both numbers in one word, so that they fit together.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

/// Set in the word of a budget, so that one of zero is none the less a budget.
const PRESENT: u64 = 1 << 63;

impl Cell {
    pub(crate) fn set(&self, budget: Option<RetryBudget>) {
        let word = budget.map_or(0, |b| PRESENT | u64::from(b.share & 0x7fff_ffff) << 32 | u64::from(b.min_concurrency));
        self.0.store(word, Relaxed);
    }

    /// How many retries may run while `active` requests do; `None` without a budget.
    pub(crate) fn limit(&self, active: u32) -> Option<u32> {
        let word = self.0.load(Relaxed);
        if word & PRESENT == 0 {
            return None;
        }
        let share = word >> 32 & 0x7fff_ffff;
        let allowed = u64::from(active) * share / 1_000_000;
        let allowed = u32::try_from(allowed).unwrap_or(u32::MAX);
        Some(allowed.max(word as u32))
    }
}
