//! Statistics of each cluster that the main thread knows: membership, open circuit breakers, ejections, checked hosts.
//!
//! They are looked up when somebody asks: a mesh of thousands of clusters costs nothing while nobody does.
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use lateen_balance::breaker::Gate;
use lateen_balance::host::{FAILED_ACTIVE_HC, FAILED_OUTLIER};
use lateen_balance::{Breakers, Host, HostSet, Subsets};
use lateen_snapshot::{Cluster, Snapshot};
use lateen_telemetry::envoy_names::{cluster_state as names, health_check, outlier, remaining, remaining_high, subsets};
use lateen_telemetry::stats::{BlockSource, Gauge, MetricDef};
use lateen_telemetry::{Block, BlockName, Registry};

use super::Main;

/// Follows the configuration, and answers for its clusters.
pub(super) async fn run(main: Arc<Main>) {
    let figures = Arc::new(Figures { main: Arc::downgrade(&main), known: Mutex::default() });
    main.registry.add_blocks(figures.clone());
    let mut snapshots = main.snapshots();
    let mut before = Arc::<Snapshot>::default();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        figures.follow(&main.registry, &before, &snapshot);
        before = snapshot;
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

struct Figures {
    main: Weak<Main>,
    known: Mutex<HashMap<Arc<str>, Known>>,
}

/// What has to be remembered of a cluster, and the blocks that others count in as well.
#[derive(Default)]
struct Known {
    membership_changes: u64,
    outlier: Option<Block>,
    checks: Option<Block>,
    subsets: Option<(Block, Arc<HostSet>)>,
}

impl Figures {
    fn known(&self) -> MutexGuard<'_, HashMap<Arc<str>, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of clusters that changed.
    fn follow(&self, registry: &Registry, before: &Snapshot, after: &Snapshot) {
        let mut known = self.known();
        for (index, slot) in after.clusters.iter().enumerate() {
            // A name keeps its place.
            let old = before.clusters.get(index).and_then(Option::as_ref);
            let Some(cluster) = slot else {
                if let Some(mut gone) = old.and_then(|old| known.remove(&old.config.name)) {
                    gone.end_outlier();
                    gone.end_checks();
                    gone.end_subsets();
                }
                continue;
            };
            if old.is_some_and(|old| Arc::ptr_eq(old, cluster)) {
                continue;
            }
            let entry = known.entry(cluster.config.name.clone()).or_default();
            if changed(old.map(|old| &*old.hosts), &cluster.hosts) {
                entry.membership_changes += 1;
            }
            let name = || BlockName::cluster(&cluster.config.stat_name);
            if cluster.config.outlier.is_some() {
                entry.outlier.get_or_insert_with(|| registry.block(outlier::DEFS, name()));
            } else {
                entry.end_outlier();
            }
            if cluster.config.health_check.is_some() {
                entry.checks.get_or_insert_with(|| registry.block(health_check::DEFS, name()));
            } else {
                entry.end_checks();
            }
            entry.count_subsets(registry, cluster);
        }
    }
}

/// Others may hold a block longer than it is true: a worker with an open request, a cluster of the same name in statistics.
impl Known {
    fn end_outlier(&mut self) {
        if let Some(block) = self.outlier.take() {
            count_ejected(&block, 0);
        }
    }

    fn end_checks(&mut self) {
        if let Some(block) = self.checks.take() {
            block.set(health_check::HEALTHY, 0);
            block.set(health_check::DEGRADED, 0);
        }
    }

    fn end_subsets(&mut self) {
        if let Some((block, known)) = self.subsets.take() {
            block.add_shared(subsets::REMOVED, known.subsets.as_ref().map_or(0, |before| before.beyond(&Subsets::default())));
            block.set(subsets::ACTIVE, 0);
            block.set(subsets::SINGLE_HOST_DUPLICATE, 0);
        }
    }

    /// Once for each set of members.
    fn count_subsets(&mut self, registry: &Registry, cluster: &Cluster) {
        use subsets as s;
        let Some(now) = &cluster.hosts.subsets else { return self.end_subsets() };
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
}

impl BlockSource for Figures {
    fn blocks(&self) -> Vec<Block> {
        let Some(main) = self.main.upgrade() else { return Vec::new() };
        let snapshot = main.snapshot();
        let known = self.known();
        let mut made = Made::default();
        for cluster in snapshot.clusters.iter().flatten() {
            let Some(known) = known.get(&cluster.config.name) else { continue };
            let state = made.block(names::DEFS, cluster);
            membership(state, &cluster.hosts);
            state.add_shared(names::MEMBERSHIP_CHANGE, known.membership_changes);
            breakers(cluster, &mut made);
            let count = |test: fn(&Host) -> bool| cluster.hosts.hosts().filter(|h| test(h)).count() as u64;
            if let Some(block) = known.outlier.as_ref().filter(|_| cluster.config.outlier.is_some()) {
                count_ejected(block, count(|h| h.flags() & FAILED_OUTLIER != 0));
            }
            if let Some(block) = known.checks.as_ref().filter(|_| cluster.config.health_check.is_some()) {
                block.set(health_check::HEALTHY, count(|h| h.flags() & FAILED_ACTIVE_HC == 0));
                block.set(health_check::DEGRADED, count(Host::is_degraded));
            }
        }
        made.0.into_values().collect()
    }
}

/// A gauge is used since the first ejection (Envoy `EjectionsActiveHelper`).
fn count_ejected(block: &Block, active: u64) {
    let were_some = || block.gauge(outlier::EJECTIONS_ACTIVE) > 0 || block.counter(outlier::EJECTIONS_ENFORCED_TOTAL) > 0;
    if active > 0 || were_some() {
        block.set(outlier::EJECTIONS_ACTIVE, active);
    }
}

/// Blocks by table and name: clusters with one `alt_stat_name` share theirs, as in Envoy, and those whose names are one in metrics.
#[derive(Default)]
struct Made(HashMap<(*const MetricDef, BlockName), Block>);

impl Made {
    fn block(&mut self, defs: &'static [MetricDef], cluster: &Cluster) -> &Block {
        let name = BlockName::cluster(&cluster.config.stat_name);
        self.0.entry((defs.as_ptr(), name.clone())).or_insert_with(|| Block::alone(defs, name))
    }
}

fn membership(state: &Block, hosts: &HostSet) {
    let (mut total, mut healthy, mut degraded, mut excluded) = (0, 0, 0, 0);
    for host in hosts.hosts() {
        total += 1;
        match (host.is_healthy(), host.is_degraded()) {
            (true, false) => healthy += 1,
            (true, true) => degraded += 1,
            _ => {}
        }
        excluded += u64::from(host.is_excluded());
    }
    state.set(names::MEMBERSHIP_TOTAL, total);
    state.set(names::MEMBERSHIP_HEALTHY, healthy);
    state.set(names::MEMBERSHIP_DEGRADED, degraded);
    state.set(names::MEMBERSHIP_EXCLUDED, excluded);
}

/// Which breakers are open, and what is left below their limits where that is tracked. Of what nobody ever took the first is not
/// told, as it is not in Envoy (`ManagedResourceImpl`).
fn breakers(cluster: &Cluster, made: &mut Made) {
    let [normal, high] = &cluster.live.breakers;
    use names as n;
    let state = made.block(n::DEFS, cluster);
    let gauges = [n::CIRCUIT_CX_OPEN, n::CIRCUIT_RQ_PENDING_OPEN, n::CIRCUIT_RQ_OPEN, n::CIRCUIT_RQ_RETRY_OPEN];
    let is_shut = |gate: &Gate| gate.was_used().then(|| u64::from(!gate.is_open()));
    set_each(state, gauges, normal, is_shut);
    let gauges = [n::CIRCUIT_HIGH_CX_OPEN, n::CIRCUIT_HIGH_RQ_PENDING_OPEN, n::CIRCUIT_HIGH_RQ_OPEN, n::CIRCUIT_HIGH_RQ_RETRY_OPEN];
    set_each(state, gauges, high, is_shut);
    let left = |gate: &Gate| Some(u64::from(gate.limit().saturating_sub(gate.used())));
    let [track, track_high] = cluster.config.track_remaining;
    if track {
        use remaining as r;
        let gauges = [r::REMAINING_CX, r::REMAINING_PENDING, r::REMAINING_RQ, r::REMAINING_RETRIES];
        set_each(made.block(r::DEFS, cluster), gauges, normal, left);
    }
    if track_high {
        use remaining_high as r;
        let gauges = [r::REMAINING_CX, r::REMAINING_PENDING, r::REMAINING_RQ, r::REMAINING_RETRIES];
        set_each(made.block(r::DEFS, cluster), gauges, high, left);
    }
}

/// Sets the gauges of connections, pending requests, requests and retries, in this order.
fn set_each(block: &Block, gauges: [Gauge; 4], breakers: &Breakers, value: impl Fn(&Gate) -> Option<u64>) {
    let gates = [&breakers.connections, &breakers.pending, &breakers.requests, &breakers.retries];
    for (gauge, gate) in gauges.into_iter().zip(gates) {
        if let Some(value) = value(gate) {
            block.set(gauge, value);
        }
    }
}

/// Whether a host came or went.
fn changed(before: Option<&HostSet>, after: &HostSet) -> bool {
    let Some(before) = before else { return !after.is_empty() };
    let (old, new) = (before.by_address(), after.by_address());
    old.len() != new.len() || old.keys().any(|address| !new.contains_key(address))
}

#[cfg(test)]
mod tests {
    use lateen_balance::host::PENDING_ACTIVE_HC;
    use lateen_snapshot::compile::Update;

    use super::*;
    use crate::main_thread::test_support;

    /// What discovery says of the cluster, with these fields more.
    fn publish(main: &Main, more: &str) -> Arc<Snapshot> {
        let yaml = format!(
            "node: {{id: t, cluster: t}}\nstatic_resources:\n  clusters:\n  - {{name: c, type: STATIC, load_assignment: {{cluster_name: c, \
             endpoints: [{{lb_endpoints: [{{metadata: {{filter_metadata: {{envoy.lb: {{v: one}}}}}}, endpoint: {{address: {{socket_address: \
             {{address: 127.0.0.1, port_value: 1}}}}}}}}]}}]}}{more}}}\n"
        );
        let body = lateen_snapshot::bootstrap::parse(&yaml, "test.yaml").unwrap().resources.remove(0);
        let (url, update) = (body.type_url.clone(), Update { name: "c".to_owned(), version: String::new(), body });
        assert_eq!(main.change(|compiler, now| compiler.apply(&url, vec![update], &[], now)), []);
        main.snapshot()
    }

    #[test]
    fn what_was_never_taken_and_never_ejected_is_not_used() {
        let main = test_support::main("node: {id: t, cluster: t}\n");
        let figures = Arc::new(Figures { main: Arc::downgrade(&main), known: Mutex::default() });
        main.registry.add_blocks(figures.clone());
        let snapshot =
            publish(&main, ", outlier_detection: {}, circuit_breakers: {thresholds: [{max_requests: 1, track_remaining: true}]}");
        figures.follow(&main.registry, &Snapshot::default(), &snapshot);
        let (_, cluster) = snapshot.cluster_named("c").unwrap();
        let used = |of: &str| {
            let mut used = main.registry.scrape(true, &|name| name.contains(of));
            used.sort_by(|a, b| a.name.cmp(&b.name));
            used.into_iter().map(|s| (s.name.trim_start_matches("cluster.c.").to_owned(), s.value)).collect::<Vec<_>>()
        };
        let gauge = |name: &str, value| (name.to_owned(), lateen_telemetry::stats::Value::Gauge { value, used: true });
        assert_eq!((used("_open"), used("ejections")), (Vec::new(), Vec::new()));
        assert_eq!(used("remaining").len(), 4, "what is left is told from the start");
        let request = cluster.live.breakers[0].requests.take();
        drop(cluster.live.breakers[1].connections.take());
        let opened = |rq| [gauge("circuit_breakers.default.rq_open", rq), gauge("circuit_breakers.high.cx_open", 0)];
        assert_eq!(used("_open"), opened(1));
        drop(request);
        assert_eq!(used("_open"), opened(0));
        let host = cluster.hosts.hosts().next().unwrap();
        host.set_flag(FAILED_OUTLIER, true);
        assert_eq!(used("ejections"), [gauge("outlier_detection.ejections_active", 1)]);
        host.set_flag(FAILED_OUTLIER, false);
        assert_eq!(used("ejections"), [gauge("outlier_detection.ejections_active", 0)]);
    }

    #[test]
    fn clusters_whose_names_differ_in_a_colon_have_one_figure() {
        let main = test_support::main("node: {id: t, cluster: t}\n");
        let (mut made, mut lines) = (Made::default(), Vec::new());
        for name in ["a:b", "a_b"] {
            let snapshot = publish(&main, &format!(", alt_stat_name: '{name}'"));
            lines.push(made.block(names::DEFS, snapshot.cluster_named("c").unwrap().1).name().dotted().to_owned());
        }
        assert_eq!((lines, made.0.len()), (vec!["cluster.a_b.".to_owned(); 2], 1));
    }

    #[test]
    fn gauges_of_what_is_taken_out_of_a_cluster_are_zero() {
        let main = test_support::main("node: {id: t, cluster: t}\n");
        let figures = Figures { main: Arc::downgrade(&main), known: Mutex::default() };
        let name = || BlockName::cluster("c");
        let (outlier_block, checks) = (main.registry.block(outlier::DEFS, name()), main.registry.block(health_check::DEFS, name()));
        let subset_block = main.registry.block(subsets::DEFS, name());
        let gauges = || {
            figures.blocks();
            let checked = [health_check::HEALTHY, health_check::DEGRADED].map(|g| checks.gauge(g));
            (outlier_block.gauge(outlier::EJECTIONS_ACTIVE), checked, subset_block.gauge(subsets::ACTIVE))
        };
        let full = ", outlier_detection: {}, lb_subset_config: {subset_selectors: [{keys: [v]}]}, \
                    health_checks: [{timeout: 1s, interval: 1s, healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {}}]";
        let mut before = Arc::<Snapshot>::default();
        for round in 1..3 {
            let after = publish(&main, full);
            let host = after.cluster_named("c").unwrap().1.hosts.hosts().next().unwrap().clone();
            host.set_flag(FAILED_ACTIVE_HC | PENDING_ACTIVE_HC, false);
            host.set_flag(FAILED_OUTLIER | lateen_balance::host::DEGRADED_ACTIVE_HC, true);
            figures.follow(&main.registry, &before, &after);
            assert_eq!(gauges(), (1, [1, 1], 1));
            before = publish(&main, "");
            figures.follow(&main.registry, &after, &before);
            assert_eq!(gauges(), (0, [0, 0], 0));
            assert_eq!((subset_block.counter(subsets::CREATED), subset_block.counter(subsets::REMOVED)), (round, round));
        }
        let after = publish(&main, full);
        figures.follow(&main.registry, &before, &after);
        assert_ne!(gauges(), (0, [0, 0], 0));
        let url = lateen_xds::types::CLUSTER;
        assert_eq!(main.change(|compiler, now| compiler.apply(url, Vec::new(), &["c".to_owned()], now)), []);
        figures.follow(&main.registry, &after, &main.snapshot());
        assert_eq!(gauges(), (0, [0, 0], 0), "nor of a cluster that is gone");
    }
}
