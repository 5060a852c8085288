//! What a cluster does beside exchanges: closing what is idle, and following an update.
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use lateen_balance::{Address, Host};
use lateen_snapshot::Cluster;
use tokio::time::Instant;

use super::{ClusterState, HostPools};
use crate::upstream::caller::Caller;
use crate::upstream::pool::tls_id;
use crate::upstream::watch::Watched;

impl ClusterState {
    /// The exchanges that have a connection or wait for one, and how many could have one, to all hosts.
    pub(in crate::upstream) fn used(&self) -> (usize, usize) {
        let by_address = self.pools.by_address.borrow();
        let mut sum = (0, 0);
        for pools in by_address.values() {
            for pool in pools.0.borrow().iter() {
                let (exchanges, room) = pool.used(&self.cluster.config);
                sum = (sum.0 + exchanges, usize::saturating_add(sum.1, room));
            }
        }
        sum
    }

    /// To be held while a connection to the host is open, where it ends when the host fails.
    pub(crate) fn watch(&self, host: &Arc<Host>) -> Option<Rc<Watched>> {
        self.cluster.config.close_on_host_failure.then(|| self.pools.watched.add(host))
    }

    /// Closes what is idle for too long or goes to a host that failed, forgets addresses that nobody uses.
    pub(crate) fn sweep(&self, now: Instant) {
        self.named.sweep();
        self.pools.watched.sweep();
        let config = &self.cluster.config;
        let is_configured = |tls| config.transports.iter().any(|t| tls_id(Some(t)) == tls);
        let (mut empty, mut members) = (Vec::new(), None);
        let all: Vec<(Address, Rc<HostPools>)> =
            self.pools.by_address.borrow().iter().map(|(address, pools)| (address.clone(), Rc::clone(pools))).collect();
        for (address, host_pools) in all {
            let pools = host_pools.0.borrow().clone();
            // Every pool is swept, also behind one that is in use.
            let mut unused = true;
            for pool in &pools {
                if pool.key.caller.as_ref().is_some_and(Caller::has_left) {
                    pool.retire();
                }
                let empty = pool.sweep(config, &self.stats, now);
                unused &= empty;
                // One that an exchange still holds stays.
                if empty && !pool.key.recurs(is_configured) && Rc::strong_count(pool) <= 2 {
                    host_pools.0.borrow_mut().retain(|other| !Rc::ptr_eq(other, pool));
                }
            }
            if unused && !members.get_or_insert_with(|| self.cluster.hosts.by_address()).contains_key(&address) {
                empty.push(address);
            }
        }
        if !empty.is_empty() {
            let mut by_address = self.pools.by_address.borrow_mut();
            let mut dynamic = self.pools.dynamic.borrow_mut();
            for address in empty {
                by_address.remove(&address);
                if let Address::Socket(address) = address {
                    dynamic.remove(&address);
                }
            }
        }
    }

    /// After an update: pools of hosts that left, and of transports that changed, take no more exchanges.
    pub(crate) fn replaced_by(&self, next: Option<&Arc<Cluster>>) {
        let all: Vec<(Address, Rc<HostPools>)> =
            self.pools.by_address.borrow().iter().map(|(address, pools)| (address.clone(), Rc::clone(pools))).collect();
        let members = next.map(|n| n.hosts.by_address());
        let all_go = members.as_ref().is_some_and(|members| {
            next.is_some_and(|n| n.config.close_on_host_set_change) && differ(&self.cluster.hosts.by_address(), members)
        });
        let transports: Vec<usize> = next.map(|n| n.config.transports.iter().map(|t| tls_id(Some(t))).collect()).unwrap_or_default();
        for (address, host_pools) in all {
            // Connections to hosts that come with requests outlive the change as long as they come.
            let dynamic = next.is_some() && self.is_dynamic();
            let stays = dynamic || members.as_ref().is_some_and(|m| m.contains_key(&address));
            for pool in host_pools.0.borrow().iter() {
                if !stays || all_go || (pool.key.tls != 0 && !transports.contains(&pool.key.tls)) {
                    pool.retire();
                }
            }
        }
    }
}

/// Whether a host came or went.
fn differ(before: &HashMap<&Address, &Arc<Host>>, after: &HashMap<&Address, &Arc<Host>>) -> bool {
    before.len() != after.len() || before.keys().any(|address| !after.contains_key(address))
}
