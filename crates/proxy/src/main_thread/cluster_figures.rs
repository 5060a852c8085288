//! Statistics of each cluster that the main thread keeps: membership, open circuit breakers, ejections, checked hosts.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::breaker::Gate;
use lateen_balance::host::{FAILED_ACTIVE_HC, FAILED_OUTLIER, PENDING_ACTIVE_HC};
use lateen_balance::{Breakers, Host, HostSet, Subsets};
use lateen_snapshot::Cluster;
use lateen_telemetry::envoy_names::{cluster_state as names, health_check, outlier, remaining, remaining_high, subsets};
use lateen_telemetry::stats::Gauge;
use lateen_telemetry::{Block, BlockName, Registry};

use super::Main;

/// Gauges are as old as this at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the figures up to date: at every change of the configuration, and for health and load once a second.
pub(super) async fn run(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    let mut known: HashMap<Arc<str>, Figures> = HashMap::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        known.retain(|name, _| snapshot.cluster_named(name).is_some());
        for cluster in snapshot.clusters.iter().flatten() {
            let figures = known.entry(cluster.config.name.clone()).or_insert_with(|| Figures::new(&main.registry, cluster));
            figures.write(&main.registry, cluster);
        }
        drop(snapshot);
        if let Ok(Err(_)) = tokio::time::timeout(INTERVAL, snapshots.changed()).await {
            return;
        }
    }
}

/// The blocks of one cluster. Those for what may be configured are made when it is.
struct Figures {
    state: Block,
    outlier: Option<Block>,
    checks: Option<Block>,
    remaining: [Option<Block>; 2],
    subsets: Option<(Block, Arc<HostSet>)>,
    members: Arc<HostSet>,
}

impl Figures {
    fn new(registry: &Registry, cluster: &Cluster) -> Self {
        let state = registry.block(names::DEFS, BlockName::cluster(&cluster.config.stat_name));
        Self { state, outlier: None, checks: None, remaining: [None, None], subsets: None, members: Arc::default() }
    }

    fn write(&mut self, registry: &Registry, cluster: &Cluster) {
        self.membership(cluster);
        self.breakers(registry, cluster);
        self.subsets(registry, cluster);
        let name = || BlockName::cluster(&cluster.config.stat_name);
        let count = |test: fn(&Host) -> bool| cluster.hosts.hosts().filter(|h| test(h)).count() as u64;
        if cluster.config.outlier.is_some() {
            let block = self.outlier.get_or_insert_with(|| registry.block(outlier::DEFS, name()));
            block.set(outlier::EJECTIONS_ACTIVE, count(|h| h.flags() & FAILED_OUTLIER != 0));
        }
        if cluster.config.health_check.is_some() {
            let block = self.checks.get_or_insert_with(|| registry.block(health_check::DEFS, name()));
            block.set(health_check::HEALTHY, count(|h| h.flags() & FAILED_ACTIVE_HC == 0));
            block.set(health_check::DEGRADED, count(Host::is_degraded));
        }
    }

    fn membership(&mut self, cluster: &Cluster) {
        let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
        for host in cluster.hosts.hosts() {
            total += 1;
            match (host.is_healthy(), host.is_degraded()) {
                (true, false) => healthy += 1,
                (true, true) => degraded += 1,
                _ => {}
            }
            excluded += u64::from(host.flags() & PENDING_ACTIVE_HC != 0);
        }
        self.state.set(names::MEMBERSHIP_TOTAL, total);
        self.state.set(names::MEMBERSHIP_HEALTHY, healthy);
        self.state.set(names::MEMBERSHIP_DEGRADED, degraded);
        self.state.set(names::MEMBERSHIP_EXCLUDED, excluded);
        if !Arc::ptr_eq(&self.members, &cluster.hosts) {
            if changed(&self.members, &cluster.hosts) {
                self.state.add_shared(names::MEMBERSHIP_CHANGE, 1);
            }
            self.members = Arc::clone(&cluster.hosts);
        }
    }

    /// Once for each set of members.
    fn subsets(&mut self, registry: &Registry, cluster: &Cluster) {
        use subsets as s;
        let Some(now) = &cluster.hosts.subsets else { return };
        let block = || registry.block(s::DEFS, BlockName::cluster(&cluster.config.stat_name));
        let (block, known) = self.subsets.get_or_insert_with(|| (block(), Arc::default()));
        if Arc::ptr_eq(known, &cluster.hosts) {
            return;
        }
        let nothing = Subsets::default();
        let before = known.subsets.as_deref().unwrap_or(&nothing);
        block.add_shared(s::CREATED, now.beyond(before));
        block.add_shared(s::REMOVED, before.beyond(now));
        block.set(s::ACTIVE, now.len() as u64);
        block.set(s::SINGLE_HOST_DUPLICATE, now.duplicates());
        *known = Arc::clone(&cluster.hosts);
    }

    fn breakers(&mut self, registry: &Registry, cluster: &Cluster) {
        let [normal, high] = &cluster.live.breakers;
        use names as n;
        let gauges = [n::CIRCUIT_CX_OPEN, n::CIRCUIT_RQ_PENDING_OPEN, n::CIRCUIT_RQ_OPEN, n::CIRCUIT_RQ_RETRY_OPEN];
        set_each(&self.state, gauges, normal, |gate| u64::from(!gate.is_open()));
        let gauges = [n::CIRCUIT_HIGH_CX_OPEN, n::CIRCUIT_HIGH_RQ_PENDING_OPEN, n::CIRCUIT_HIGH_RQ_OPEN, n::CIRCUIT_HIGH_RQ_RETRY_OPEN];
        set_each(&self.state, gauges, high, |gate| u64::from(!gate.is_open()));
        let left = |gate: &Gate| u64::from(gate.limit().saturating_sub(gate.used()));
        let name = || BlockName::cluster(&cluster.config.stat_name);
        let [track, track_high] = cluster.config.track_remaining;
        let [block, block_high] = &mut self.remaining;
        if track {
            use remaining as r;
            let block = block.get_or_insert_with(|| registry.block(r::DEFS, name()));
            set_each(block, [r::REMAINING_CX, r::REMAINING_PENDING, r::REMAINING_RQ, r::REMAINING_RETRIES], normal, left);
        }
        if track_high {
            use remaining_high as r;
            let block = block_high.get_or_insert_with(|| registry.block(r::DEFS, name()));
            set_each(block, [r::REMAINING_CX, r::REMAINING_PENDING, r::REMAINING_RQ, r::REMAINING_RETRIES], high, left);
        }
    }
}

/// Sets the gauges of connections, pending requests, requests and retries, in this order.
fn set_each(block: &Block, gauges: [Gauge; 4], breakers: &Breakers, value: impl Fn(&Gate) -> u64) {
    let gates = [&breakers.connections, &breakers.pending, &breakers.requests, &breakers.retries];
    for (gauge, gate) in gauges.into_iter().zip(gates) {
        block.set(gauge, value(gate));
    }
}

/// Whether a host came or went.
fn changed(before: &HostSet, after: &HostSet) -> bool {
    let (old, new) = (before.by_address(), after.by_address());
    old.len() != new.len() || old.keys().any(|address| !new.contains_key(address))
}
