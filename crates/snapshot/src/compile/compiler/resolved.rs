//! DNS clusters: what their names resolved to, and the hosts that come of it.
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use lateen_balance::{Address, Host, HostSet};

use super::Compiler;
use crate::cluster::{ClusterConfig, Discovery, DnsTargets};
use crate::compile::cluster::Compiled;
use crate::compile::endpoint::{Member, Members};

/// What names of a DNS cluster resolved to.
pub(super) type Resolved = HashMap<(Arc<str>, u16), Vec<IpAddr>>;

impl Compiler {
    /// The addresses that a name of a DNS cluster resolved to; none where the name has none. Of a cluster that has gone in the
    /// meantime nothing is kept.
    pub fn set_resolved(&mut self, cluster: &str, name: &str, port: u16, mut addresses: Vec<IpAddr>, now: Instant) {
        if !self.clusters.contains_key(cluster) {
            return;
        }
        let single = self.newest_cluster(cluster).is_some_and(|config| matches!(config.discovery, Discovery::LogicalDns(_)));
        let before = self.resolved.get(cluster).and_then(|r| r.get(&(name.into(), port)));
        if single {
            // The single host stays where it is as long as its name has that address: answers come in any order.
            match before.and_then(|b| b.first()).map(|first| addresses.iter().position(|a| a == first)) {
                Some(Some(at)) => addresses.swap(0, at),
                Some(None) if addresses.is_empty() => return,
                _ => {}
            }
            addresses.get_mut(1..).unwrap_or_default().sort();
        } else {
            addresses.sort();
        }
        if before != Some(&addresses) {
            self.resolved.entry(cluster.into()).or_default().insert((name.into(), port), addresses);
            self.refresh_members(cluster);
        }
        self.settle(now);
    }

    /// A name could not be looked up: its last addresses stay; the cluster waits no longer for the first.
    pub fn set_unresolved(&mut self, cluster: &str, name: &str, port: u16, now: Instant) {
        if !self.clusters.contains_key(cluster) {
            return;
        }
        let resolved = self.resolved.entry(cluster.into()).or_default();
        if let Entry::Vacant(first) = resolved.entry((name.into(), port)) {
            first.insert(Vec::new());
            self.settle(now);
        }
    }

    /// Whether there is an answer, even an empty one, for a name of a DNS cluster: none any more once the cluster was removed,
    /// whether or not it has come back since.
    pub fn has_answer(&self, cluster: &str, name: &Arc<str>, port: u16) -> bool {
        self.resolved.get(cluster).is_some_and(|resolved| resolved.contains_key(&(name.clone(), port)))
    }

    fn newest_cluster(&self, name: &str) -> Option<&ClusterConfig> {
        self.clusters.get(name)?.versions.newest().map(|v| &*v.value.compiled.config)
    }
}

/// Whether there is an answer, even an empty one, for every name of the cluster.
pub(super) fn is_resolved(config: &ClusterConfig, all: &HashMap<Arc<str>, Resolved>) -> bool {
    let (Discovery::StrictDns(dns) | Discovery::LogicalDns(dns)) = &config.discovery else { return true };
    let resolved = all.get(&config.name);
    dns.targets.iter().all(|t| t.name.parse::<IpAddr>().is_ok() || resolved.is_some_and(|r| r.contains_key(&(t.name.clone(), t.port))))
}

/// The hosts of a DNS cluster: one for each address, or one with all addresses of its name.
pub(super) fn resolved_members(
    compiled: &Compiled,
    dns: &DnsTargets,
    resolved: Option<&Resolved>,
    single: bool,
    kept: Option<&HostSet>,
    living: &HashMap<&Address, &Arc<Host>>,
) -> HostSet {
    let mut result = Members::new(compiled.config.balance.subsets.is_some());
    for target in &dns.targets {
        let literal = target.name.parse::<IpAddr>().ok();
        let looked_up = resolved.and_then(|r| r.get(&(target.name.clone(), target.port)));
        let ips = literal.iter().chain(looked_up.into_iter().flatten());
        let addresses: Vec<SocketAddr> = ips.map(|ip| SocketAddr::new(*ip, target.port)).collect();
        let all = if single && addresses.len() > 1 { compiled.config.address_order.sort(&addresses) } else { Vec::new() };
        for address in addresses.into_iter().take(if single { 1 } else { usize::MAX }) {
            let member = Member {
                address: Address::Socket(address),
                addresses: all.clone(),
                hostname: target.hostname.clone(),
                weight: target.weight,
                locality: target.locality.clone(),
                transport: target.transport,
                workload: target.workload.clone(),
                labels: target.labels.clone(),
                hash_key: target.hash_key.clone(),
                flags: target.flags,
                checked_at: target.checked_at.clone(),
                unchecked: compiled.config.unchecked(),
                moves: single,
            };
            result.add(target.priority, &target.locality, target.locality_weight, member, living);
        }
    }
    kept.into_iter().for_each(|before| result.keep_healthy(before));
    result.build(dns.policy, compiled.config.balance.subsets.as_deref())
}
