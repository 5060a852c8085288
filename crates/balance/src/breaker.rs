//! Circuit breakers: how much of a cluster may be in use at once, over all workers.
//!
//! Limits are global numbers, so they are relaxed atomics; an unlimited resource (Istio's default,
//! 2^32-1) is not counted at all, so that the common case touches no shared line.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

use crate::budget::{self, RetryBudget};

/// The thresholds of one priority (Envoy circuit_breaker.proto). `u32::MAX` means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
    /// Takes the place of `max_retries`.
    pub retry_budget: Option<RetryBudget>,
}

impl Default for Limits {
    /// Envoy's defaults: 1024 of each, 3 retries.
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3, retry_budget: None }
    }
}

impl Limits {
    /// Istio's default: nothing is limited.
    pub const UNLIMITED: Self = Self {
        max_connections: u32::MAX,
        max_pending_requests: u32::MAX,
        max_requests: u32::MAX,
        max_retries: u32::MAX,
        retry_budget: None,
    };

    /// A share of requests needs their number, so with a budget even unlimited gates count.
    fn countable(mut self) -> Self {
        if self.retry_budget.is_some() {
            self.max_requests = self.max_requests.min(u32::MAX - 1);
            self.max_pending_requests = self.max_pending_requests.min(u32::MAX - 1);
        }
        self
    }
}

/// One counted resource with its limit.
#[derive(Debug)]
pub struct Gate {
    limit: AtomicU32,
    used: AtomicU32,
    was_used: AtomicBool,
}

impl Gate {
    pub fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit: AtomicU32::new(limit), used: AtomicU32::new(0), was_used: AtomicBool::new(false) })
    }

    /// Takes one, or `None` when the limit is reached.
    ///
    /// Workers race by at most one each between the check and the count, as in Envoy.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let limit = self.limit.load(Relaxed);
        if limit == u32::MAX {
            self.note_use();
            return Some(Permit(None));
        }
        self.take_below(limit)
    }

    fn take_below(self: &Arc<Self>, limit: u32) -> Option<Permit> {
        if self.used.fetch_add(1, Relaxed) >= limit {
            self.used.fetch_sub(1, Relaxed);
            return None;
        }
        self.note_use();
        Some(Permit(Some(Arc::clone(self))))
    }

    /// Written once, so that workers go on sharing the line.
    fn note_use(&self) {
        if !self.was_used.load(Relaxed) {
            self.was_used.store(true, Relaxed);
        }
    }

    /// Whether one more could be taken now.
    pub fn is_open(&self) -> bool {
        self.used.load(Relaxed) < self.limit.load(Relaxed)
    }

    /// Whether one was ever taken.
    pub fn was_used(&self) -> bool {
        self.was_used.load(Relaxed)
    }

    pub fn used(&self) -> u32 {
        self.used.load(Relaxed)
    }

    pub fn limit(&self) -> u32 {
        self.limit.load(Relaxed)
    }
}

/// One unit of a limited resource; dropping it gives the unit back.
#[derive(Debug)]
#[must_use = "dropping the permit gives the unit back at once"]
pub struct Permit(Option<Arc<Gate>>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(gate) = &self.0 {
            gate.used.fetch_sub(1, Relaxed);
        }
    }
}

/// The four gates of one priority of a cluster. They outlive configuration updates.
#[derive(Debug)]
pub struct Breakers {
    pub connections: Arc<Gate>,
    pub pending: Arc<Gate>,
    pub requests: Arc<Gate>,
    pub retries: Arc<Gate>,
    budget: budget::Cell,
}

impl Breakers {
    pub fn new(limits: Limits) -> Self {
        let limits = limits.countable();
        let budget = budget::Cell::default();
        budget.set(limits.retry_budget);
        Self {
            budget,
            connections: Gate::new(limits.max_connections),
            pending: Gate::new(limits.max_pending_requests),
            requests: Gate::new(limits.max_requests),
            retries: Gate::new(limits.max_retries),
        }
    }

    /// A request takes its place; `now` is in milliseconds of a clock that all workers share, looked at where a budget wants it.
    pub fn take_request(&self, now: impl FnOnce() -> u64) -> Option<Permit> {
        let permit = self.requests.take()?;
        self.budget.note(now);
        Some(permit)
    }

    /// Takes one retry: by the budget if there is one, else by the limit.
    pub fn take_retry(&self, now: impl FnOnce() -> u64) -> Option<Permit> {
        match self.budget.limit(self.requests.used().saturating_add(self.pending.used()), now) {
            Some(limit) => self.retries.take_below(limit),
            None => self.retries.take(),
        }
    }

    /// Applies new limits; what is in use stays counted. A gate that was unlimited starts from zero.
    pub fn set_limits(&self, limits: Limits) {
        let limits = limits.countable();
        self.budget.set(limits.retry_budget);
        self.connections.limit.store(limits.max_connections, Relaxed);
        self.pending.limit.store(limits.max_pending_requests, Relaxed);
        self.requests.limit.store(limits.max_requests, Relaxed);
        self.retries.limit.store(limits.max_retries, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_full_gate_refuses_until_a_permit_is_dropped() {
        let breakers = Breakers::new(Limits { max_requests: 2, ..Limits::UNLIMITED });
        let first = breakers.requests.take().unwrap();
        let _second = breakers.requests.take().unwrap();
        assert!(breakers.requests.take().is_none());
        assert_eq!(breakers.requests.used(), 2);
        drop(first);
        assert!(breakers.requests.take().is_some());
    }

    #[test]
    fn a_budget_is_a_share_of_the_requests_under_way() {
        let budget = Some(RetryBudget { share: 200_000, min_concurrency: 1, interval: Duration::ZERO });
        let breakers = Breakers::new(Limits { retry_budget: budget, max_retries: 0, ..Limits::UNLIMITED });
        let _first = breakers.take_retry(|| 0).unwrap();
        assert!(breakers.take_retry(|| 0).is_none(), "the least is one");
        let requests: Vec<_> = (0..15).map(|_| breakers.requests.take()).collect();
        let held: Vec<_> = std::iter::from_fn(|| breakers.take_retry(|| 0)).collect();
        assert_eq!((requests.len(), held.len()), (15, 2), "a fifth of fifteen is three");
        breakers.set_limits(Limits { max_retries: 5, ..Limits::UNLIMITED });
        assert!(breakers.take_retry(|| 0).is_some(), "the limit is back in force");
        breakers.set_limits(Limits {
            retry_budget: Some(RetryBudget { share: 0, min_concurrency: 0, interval: Duration::ZERO }),
            ..Limits::UNLIMITED
        });
        assert!(breakers.take_retry(|| 0).is_none());
    }

    #[test]
    fn a_gate_knows_whether_one_was_ever_taken() {
        let breakers = Breakers::new(Limits { max_requests: 1, max_pending_requests: 0, ..Limits::UNLIMITED });
        let used = || [&breakers.connections, &breakers.pending, &breakers.requests, &breakers.retries].map(|gate| gate.was_used());
        assert_eq!(used(), [false; 4]);
        assert!(breakers.pending.take().is_none());
        drop((breakers.connections.take(), breakers.requests.take()));
        assert_eq!(used(), [true, false, true, false]);
        drop(breakers.take_retry(|| 0));
        assert_eq!(used(), [true, false, true, true]);
    }

    #[test]
    fn an_unlimited_gate_counts_nothing() {
        let breakers = Breakers::new(Limits::UNLIMITED);
        let permits: Vec<_> = (0..5).map(|_| breakers.connections.take()).collect();
        assert_eq!((permits.len(), breakers.connections.used()), (5, 0));
    }

    #[test]
    fn permits_taken_while_unlimited_do_not_underflow_a_later_limit() {
        let breakers = Breakers::new(Limits::UNLIMITED);
        let permit = breakers.requests.take();
        breakers.set_limits(Limits { max_requests: 1, ..Limits::UNLIMITED });
        drop(permit);
        assert_eq!(breakers.requests.used(), 0);
        let _held = breakers.requests.take().unwrap();
        assert!(breakers.requests.take().is_none());
    }
}
