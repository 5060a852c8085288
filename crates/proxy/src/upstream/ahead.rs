//! Connections made ahead: of a host that is in use, and of those whose turn is next.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use lateen_balance::{Context, Host, LbPolicy};

use super::cluster::{ClusterState, Target, TargetWish};
use crate::worker::Worker;

/// So many connections are made at once, as in Envoy: the next exchange will want more where that was too few.
const MOST_AT_ONCE: usize = 3;

/// Hosts that the next choices take. They were chosen before, so that connections could be made.
#[derive(Default)]
pub(super) struct Foreseen(RefCell<VecDeque<Arc<Host>>>);

impl Foreseen {
    /// The host for an exchange that may have any.
    pub(super) fn take(&self, context: &Context<'_>) -> Option<Arc<Host>> {
        if context.criteria.is_some() || context.past != 0 || context.only.is_some() || !context.avoid.is_empty() {
            return None;
        }
        let mut hosts = self.0.borrow_mut();
        std::iter::from_fn(|| hosts.pop_front()).find(|host| host.is_healthy())
    }
}

impl ClusterState {
    /// Makes more connections to a host in use, so that there are as many times those that exchanges have as the cluster's
    /// ratio says (Envoy `ConnPoolImplBase::tryCreateNewConnections`). Called when an exchange has its connection.
    pub(crate) fn preconnect(self: &Rc<Self>, worker: &Rc<Worker>, target: &Target, high_priority: bool) {
        let config = &self.cluster.config;
        for _ in 0..MOST_AT_ONCE {
            let (exchanges, room) = target.pool.used(config);
            if exchanges as f64 * config.preconnect_ratio <= room as f64
                || !target.pool.connect_ahead(worker, self, &target.host, high_priority, &target.plan)
            {
                return;
            }
        }
    }

    /// Makes connections to the hosts whose turn is next, so that the cluster has as many times those that exchanges have as
    /// its ratio says (Envoy `ClusterManagerImpl::maybePreconnect`). Called when an exchange is about to begin.
    pub(crate) fn preconnect_next(self: &Rc<Self>, worker: &Rc<Worker>, high_priority: bool, wish: &TargetWish<'_>) {
        let config = &self.cluster.config;
        let wanted = |(exchanges, room): (usize, usize)| (exchanges + 1) as f64 * config.predictive_preconnect_ratio > room as f64;
        for _ in 0..MOST_AT_ONCE {
            if !wanted(self.used()) {
                return;
            }
            let Some(host) = self.foresee(worker) else { return };
            let next = self.target(host, wish);
            if !wanted(next.pool.used(config)) || !next.pool.connect_ahead(worker, self, &next.host, high_priority, &next.plan) {
                return;
            }
        }
    }

    /// The host whose turn is next, unless all have been foreseen. Other policies than these do not know it, as in Envoy.
    fn foresee(&self, worker: &Worker) -> Option<Arc<Host>> {
        let foresees = matches!(self.cluster.config.balance.policy, LbPolicy::RoundRobin | LbPolicy::Random) && !self.is_divided();
        if !foresees || self.foreseen.0.borrow().len() >= self.cluster.hosts.len() {
            return None;
        }
        let host = self.choose_now(worker, &Context::default())?;
        self.foreseen.0.borrow_mut().push_back(Arc::clone(&host));
        Some(host)
    }
}

#[cfg(test)]
mod tests {
    use lateen_balance::{Address, Level};

    use super::*;

    #[test]
    fn who_wants_a_certain_host_takes_none_that_was_foreseen() {
        let foreseen = Foreseen::default();
        foreseen.0.borrow_mut().push_back(Arc::new(Host::new(Address::Pipe("x".into()))));
        let level = Some(Level { priority: 1, degraded: false });
        for wants in [Context { only: level, ..Context::default() }, Context { past: 1, ..Context::default() }] {
            assert!(foreseen.take(&wants).is_none());
        }
        assert!(foreseen.take(&Context::default()).is_some());
    }
}
