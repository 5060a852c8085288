//! Circuit breakers: how much of a cluster may be in use at once, over all workers.
//!
//! Limits are global numbers, so they are relaxed atomics; an unlimited resource (Istio's default,
//! 2^32-1) is not counted at all, so that the common case touches no shared line.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The thresholds of one priority (Envoy circuit_breaker.proto). `u32::MAX` means unlimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub max_connections: u32,
    pub max_pending_requests: u32,
    pub max_requests: u32,
    pub max_retries: u32,
}

impl Default for Limits {
    /// Envoy's defaults: 1024 of each, 3 retries.
    fn default() -> Self {
        Self { max_connections: 1024, max_pending_requests: 1024, max_requests: 1024, max_retries: 3 }
    }
}

impl Limits {
    /// Istio's default: nothing is limited.
    pub const UNLIMITED: Self =
        Self { max_connections: u32::MAX, max_pending_requests: u32::MAX, max_requests: u32::MAX, max_retries: u32::MAX };
}

/// One counted resource with its limit.
#[derive(Debug)]
pub struct Gate {
    limit: AtomicU32,
    used: AtomicU32,
}

impl Gate {
    fn new(limit: u32) -> Arc<Self> {
        Arc::new(Self { limit: AtomicU32::new(limit), used: AtomicU32::new(0) })
    }

    /// Takes one, or `None` when the limit is reached.
    ///
    /// Workers race by at most one each between the check and the count, as in Envoy.
    pub fn take(self: &Arc<Self>) -> Option<Permit> {
        let limit = self.limit.load(Relaxed);
        if limit == u32::MAX {
            return Some(Permit(None));
        }
        if self.used.fetch_add(1, Relaxed) >= limit {
            self.used.fetch_sub(1, Relaxed);
            return None;
        }
        Some(Permit(Some(Arc::clone(self))))
    }

    /// Whether one more could be taken now.
    pub fn is_open(&self) -> bool {
        self.used.load(Relaxed) < self.limit.load(Relaxed)
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
}

impl Breakers {
    pub fn new(limits: Limits) -> Self {
        Self {
            connections: Gate::new(limits.max_connections),
            pending: Gate::new(limits.max_pending_requests),
            requests: Gate::new(limits.max_requests),
            retries: Gate::new(limits.max_retries),
        }
    }

    /// Applies new limits; what is in use stays counted. A gate that was unlimited starts from zero.
    pub fn set_limits(&self, limits: Limits) {
        self.connections.limit.store(limits.max_connections, Relaxed);
        self.pending.limit.store(limits.max_pending_requests, Relaxed);
        self.requests.limit.store(limits.max_requests, Relaxed);
        self.retries.limit.store(limits.max_retries, Relaxed);
    }
}

#[cfg(test)]
mod tests {
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
