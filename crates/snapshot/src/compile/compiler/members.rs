//! The hosts of clusters: as assigned, as resolved, and as they live on from one version to the next.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use lateen_balance::{Address, Breakers, Host, HostSet, LbPolicy, LocalCluster};

use lateen_proto::any;

use super::resolved::{Resolved, resolved_members};
use super::{Compiler, Entry, Zone};
use crate::cluster::{AssignmentPolicy, Cluster, ClusterConfig, ClusterLive, Discovery};
use crate::compile::cluster::{Compiled, Given};
use crate::compile::endpoint::{Assignment, EndpointAddress, Member, Members};

impl Compiler {
    /// The local cluster has other members: every cluster that goes by zones sees them, with its own as they are.
    fn tell_local_cluster(&mut self) {
        self.dirty = true;
        for entry in self.clusters.values_mut() {
            let Some(cluster) = entry.versions.active.as_mut().and_then(|v| v.value.cluster.as_mut()) else { continue };
            let local = local_cluster(self.zone.as_ref(), &cluster.config);
            if local.is_some() {
                let Cluster { config, hosts, local: _, live } = &**cluster;
                *cluster = Arc::new(Cluster { config: config.clone(), hosts: hosts.clone(), local, live: live.clone() });
            }
        }
    }

    /// [`Self::refresh_members`] of the clusters that find theirs under this name.
    pub(super) fn refresh_users(&mut self, service: &str) {
        for name in self.users.get(service).cloned().unwrap_or_default() {
            self.refresh_members(&name);
        }
    }

    /// A host that only stayed because it passed its checks fails them.
    pub fn drop_failed(&mut self, cluster: &str, now: Instant) {
        self.refresh_members(cluster);
        self.settle(now);
    }

    /// Makes the published form of a cluster again, with the members of the moment.
    pub(super) fn refresh_members(&mut self, name: &str) {
        let Self { clusters, endpoints, resolved, live, zone, .. } = self;
        let Some(version) = clusters.get_mut(name).and_then(|e| e.versions.active.as_mut()).map(|v| &mut v.value) else { return };
        let given = version.compiled.members.take();
        let compiled = &version.compiled;
        let config = compiled.config.clone();
        let before = version.cluster.as_ref().map(|c| c.hosts.clone());
        // What a host is by another version's word counts no longer.
        let same = version.cluster.as_ref().is_some_and(|c| Arc::ptr_eq(&c.config, &config));
        let kept = before.as_deref().filter(|_| same && config.keeps_healthy_hosts);
        let hosts = match (&config.discovery, given, &before) {
            // They were made when this version was put to use, and nothing else can change them.
            (Discovery::Static, None, Some(made)) => Arc::clone(made),
            (_, given, before) => {
                let mut made = members(compiled, given.as_ref(), endpoints, resolved.get(name), &Before { all: before.as_deref(), kept });
                before.iter().for_each(|before| made.succeed(before));
                Arc::new(made)
            }
        };
        let live = live.entry(config.name.clone()).or_insert_with(|| Arc::new(ClusterLive { breakers: config.limits.map(Breakers::new) }));
        for (breakers, limits) in live.breakers.iter().zip(config.limits) {
            breakers.set_limits(limits);
        }
        let mut moved = false;
        if let Some(zone) = zone.as_mut().filter(|z| *z.cluster == *name) {
            zone.local = Some(Arc::new(LocalCluster { hosts: Arc::clone(&hosts), locality: zone.locality.clone() }));
            moved = true;
        }
        let local = local_cluster(zone.as_ref(), &config);
        version.cluster = Some(Arc::new(Cluster { config, hosts, local, live: live.clone() }));
        self.renewed.push(self.names.cluster(name));
        if moved {
            self.tell_local_cluster();
        }
    }
}

/// What a cluster has to know of the local cluster: hash policies and original destinations know no zones.
fn local_cluster(zone: Option<&Zone>, config: &ClusterConfig) -> Option<Arc<LocalCluster>> {
    let policy = &config.balance.policy;
    zone.and_then(|z| z.local.clone()).filter(|_| !policy.goes_by_hash() && *policy != LbPolicy::OriginalDestination)
}

/// The hosts of a cluster before its members changed.
struct Before<'a> {
    all: Option<&'a HostSet>,
    /// Those that may stay although discovery has them no longer.
    kept: Option<&'a HostSet>,
}

fn members(
    compiled: &Compiled,
    given: Option<&Given>,
    endpoints: &HashMap<Arc<str>, Entry<Arc<Assignment>>>,
    resolved: Option<&Resolved>,
    before: &Before<'_>,
) -> HostSet {
    let living = before.all.map(HostSet::by_address).unwrap_or_default();
    match &compiled.config.discovery {
        Discovery::Static => given.map(|given| assigned(compiled, &given.assignment, &given.transports, None, &living)).unwrap_or_default(),
        Discovery::Eds(service) => match endpoints.get(service).and_then(|e| e.versions.active.as_ref()) {
            Some(version) => {
                let transports = compiled.choice.of_endpoints(&version.value, || any::open_apart(&version.record.body).ok());
                assigned(compiled, &version.value, &transports, before.kept, &living)
            }
            None => Members::default().build(AssignmentPolicy::default(), compiled.config.balance.subsets.as_deref()),
        },
        Discovery::StrictDns(dns) => resolved_members(compiled, dns, resolved, false, before.kept, &living),
        Discovery::LogicalDns(dns) => resolved_members(compiled, dns, resolved, true, None, &living),
        Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::DynamicForwardProxy(_) => HostSet::default(),
    }
}

fn assigned(
    compiled: &Compiled,
    assignment: &Assignment,
    transports: &[u32],
    kept: Option<&HostSet>,
    living: &HashMap<&Address, &Arc<Host>>,
) -> HostSet {
    let mut transports = transports.iter().copied();
    let mut result = Members::new(compiled.config.balance.subsets.is_some());
    for locality in &assignment.localities {
        for (endpoint, transport) in locality.endpoints.iter().zip(&mut transports) {
            let EndpointAddress::Fixed(address) = &endpoint.at else { continue };
            let member = Member {
                address: address.clone(),
                addresses: compiled.config.address_order.sort(&endpoint.addresses),
                hostname: endpoint.hostname.clone(),
                weight: endpoint.weight,
                locality: locality.locality.clone(),
                transport,
                workload: endpoint.workload.clone(),
                labels: endpoint.labels.clone(),
                hash_key: endpoint.hash_key.clone(),
                flags: endpoint.flags,
                checked_at: endpoint.checked_at.clone(),
                unchecked: compiled.config.unchecked(),
                moves: false,
            };
            result.add(locality.priority, &locality.locality, locality.weight, member, living);
        }
    }
    kept.into_iter().for_each(|before| result.keep_healthy(before));
    result.build(assignment.policy, compiled.config.balance.subsets.as_deref())
}
