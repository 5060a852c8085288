//! Active health checks: one loop for each member of a cluster that is checked; workers only see the verdicts.
use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::health::{Checked, Checker};
use lateen_balance::host::{
    DEGRADED_ACTIVE_HC, EXCLUDED_VIA_IMMEDIATE_HC_FAIL, FAILED_ACTIVE_HC, FAILED_OUTLIER, PENDING_ACTIVE_HC, PENDING_REMOVAL,
};
use lateen_balance::{Address, Host, outlier};
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::ClusterConfig;
use lateen_telemetry::envoy_names::{cluster as cluster_names, health_check as names};
use lateen_telemetry::{Block, BlockName};
use tokio::task::{AbortHandle, JoinSet};

use super::Main;
use super::health_events::{Events, Outcome};
use super::probe::{Answer, FailureType, probe};

type Key = (Arc<str>, Address);

/// A loop that checks one host as one version of its cluster says.
struct Running {
    config: Arc<ClusterConfig>,
    host: Arc<Host>,
    task: AbortHandle,
}

/// Keeps a loop running for each host that is to be checked.
pub(super) async fn run(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    let mut running: HashMap<Key, Running> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let wanted = wanted(snapshot.clusters.iter().flatten());
        running.retain(|key, loop_| {
            let keep = wanted.get(key).is_some_and(|(c, h)| Arc::ptr_eq(h, &loop_.host) && Arc::ptr_eq(&c.config, &loop_.config));
            if !keep {
                loop_.task.abort();
            }
            keep
        });
        for (key, (cluster, host)) in wanted {
            running.entry(key).or_insert_with(|| {
                let (config, checked, main) = (cluster.config.clone(), host.clone(), main.clone());
                let supervisor = main.supervisor.clone();
                let checks = move || check(main.clone(), cluster.clone(), host.clone());
                Running { config, host: checked, task: tasks.spawn(supervisor.run("health checks of a host", checks)) }
            });
        }
        while tasks.try_join_next().is_some() {}
        if snapshots.changed().await.is_err() {
            return;
        }
    }
}

fn wanted<'a>(clusters: impl Iterator<Item = &'a Arc<Cluster>>) -> HashMap<Key, (Arc<Cluster>, Arc<Host>)> {
    let mut wanted = HashMap::new();
    for cluster in clusters.filter(|c| c.config.health_check.is_some()) {
        let enabled = |h: &&Arc<Host>| !h.checked_at.as_ref().is_some_and(|c| c.disabled);
        for host in cluster.hosts.hosts().filter(enabled) {
            wanted.insert((cluster.config.name.clone(), host.address.clone()), (cluster.clone(), host.clone()));
        }
    }
    wanted
}

async fn check(main: Arc<Main>, cluster: Arc<Cluster>, host: Arc<Host>) {
    let Some(check) = &cluster.config.health_check else { return };
    let name = || BlockName::cluster(&cluster.config.stat_name);
    let block = main.registry.block(names::DEFS, name());
    // Whoever was connected to counts, whether or not it still is a member.
    let connections = main.registry.block(cluster_names::DEFS, name());
    let mut checker = Checker::new(host.flags() & FAILED_ACTIVE_HC != 0);
    let mut events = Events::of(check, &cluster.config, &host, &main.logs);
    let mut noticed = host.flags() & EXCLUDED_VIA_IMMEDIATE_HC_FAIL != 0;
    let first = check.pace.first(rand::random());
    wait(&host, first, &mut noticed, || fail_at_once(&main, &cluster, &host, &mut checker, &mut events)).await;
    loop {
        block.add_shared(names::ATTEMPT, 1);
        let answer = tokio::time::timeout(check.timeout, probe(&main, &cluster, &host, check)).await.unwrap_or(Answer::LATE);
        count(&block, answer);
        // What a response said in the meantime came first.
        wait(&host, Duration::ZERO, &mut noticed, || fail_at_once(&main, &cluster, &host, &mut checker, &mut events)).await;
        let used = connections.counter(cluster_names::UPSTREAM_CX_TOTAL) > 0;
        let step = checker.take(&check.pace, answer.result, used, [rand::random(), rand::random()]);
        let was_degraded = host.flags() & DEGRADED_ACTIVE_HC != 0;
        if !step.failed && noticed {
            host.set_flag(EXCLUDED_VIA_IMMEDIATE_HC_FAIL, false);
        } else if step.failed && answer.excluded {
            host.set_flag(EXCLUDED_VIA_IMMEDIATE_HC_FAIL, true);
        }
        // What is set from here on is new.
        noticed = step.failed && (noticed || answer.excluded);
        settle(&main, &cluster, &host, step.failed, answer);
        events.tell(answer, Outcome { changed: step.changed, first: step.first, was_degraded });
        wait(&host, step.wait, &mut noticed, || fail_at_once(&main, &cluster, &host, &mut checker, &mut events)).await;
    }
}

/// Waits so long; when a response of the host says meanwhile that it fails its checks, that is told once.
async fn wait(host: &Host, time: Duration, noticed: &mut bool, mut failed: impl FnMut()) {
    let sleep = tokio::time::sleep(time);
    tokio::pin!(sleep);
    loop {
        tokio::select! {
            biased;
            () = poll_fn(|cx| host.poll_failed_at_once(cx)), if !*noticed => {
                *noticed = true;
                failed();
            }
            () = &mut sleep => return,
        }
    }
}

/// A response said that the host fails its checks. The worker that took it told its set; a check that was passed in the same
/// moment may have let the host in again.
fn fail_at_once(main: &Main, cluster: &Cluster, host: &Host, checker: &mut Checker, events: &mut Events) {
    let (changed, first) = checker.fail_at_once();
    let answer = Answer { failure: FailureType::Passive, ..Answer::NONE };
    events.tell(answer, Outcome { changed, first, was_degraded: false });
    tracing::info!(cluster = &*cluster.config.name, host = %host.address, healthy = false, "a response failed the health check at once");
    let before = host.flags();
    host.set_flag(FAILED_ACTIVE_HC, true);
    if before & PENDING_REMOVAL != 0 {
        return main.change(|compiler, now| compiler.drop_failed(&cluster.config.name, now));
    }
    if let Some((_, current)) = main.snapshot().cluster_named(&cluster.config.name) {
        current.hosts.health_changed();
    }
}

fn count(block: &Block, answer: Answer) {
    let counters: &[_] = match (answer.result, answer.failure) {
        (Checked::Healthy, _) => &[names::SUCCESS],
        (_, FailureType::Network | FailureType::NetworkTimeout) => &[names::FAILURE, names::NETWORK_FAILURE],
        (_, FailureType::Active | FailureType::Passive) => &[names::FAILURE],
    };
    counters.iter().for_each(|counter| block.add_shared(*counter, 1));
}

/// The members may have been republished since: the flags are the host's, the notice goes to the set in force.
fn settle(main: &Main, cluster: &Cluster, host: &Host, failed: bool, answer: Answer) {
    let before = host.flags();
    host.set_flag(FAILED_ACTIVE_HC, failed);
    if answer.result == Checked::Healthy {
        // A failure says nothing of that.
        host.set_flag(DEGRADED_ACTIVE_HC, answer.degraded);
    }
    host.set_flag(PENDING_ACTIVE_HC, false);
    let well = answer.result == Checked::Healthy && !failed;
    if well && before & FAILED_OUTLIER != 0 && cluster.config.outlier.as_ref().is_some_and(|o| o.uneject_on_check) {
        outlier::release(host, main.millis());
    }
    if host.flags() == before {
        return;
    }
    if before & FAILED_ACTIVE_HC != 0 && !failed {
        host.became_healthy(main.millis());
    }
    tracing::info!(cluster = &*cluster.config.name, host = %host.address, healthy = !failed, "active health check");
    if failed && before & PENDING_REMOVAL != 0 {
        // Nothing else has kept it.
        return main.change(|compiler, now| compiler.drop_failed(&cluster.config.name, now));
    }
    if let Some((_, current)) = main.snapshot().cluster_named(&cluster.config.name) {
        current.hosts.health_changed();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use lateen_proto::any::pack;
    use lateen_proto::envoy::config::core::v3::{Address as AddressProto, SocketAddress, address, socket_address};
    use lateen_proto::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints, lb_endpoint};
    use lateen_snapshot::compile::Update;
    use lateen_xds::types;
    use tokio::net::TcpListener;

    use super::*;
    use crate::main_thread::{Options, start};

    /// A discovered cluster that is checked every 20 ms, and so often while nobody is connected; with these fields more.
    fn cluster(no_traffic: &str, more: &str) -> Options {
        let yaml = format!(
            "node: {{id: t, cluster: t}}\nstatic_resources:\n  clusters:\n  - name: c\n    type: EDS\n    eds_cluster_config: \
             {{eds_config: {{ads: {{}}}}}}\n    health_checks: [{{timeout: 1s, interval: 0.02s, no_traffic_interval: {no_traffic}, \
             healthy_threshold: 1, unhealthy_threshold: 1, tcp_health_check: {{}}}}]\n{more}"
        );
        Options::new(lateen_snapshot::bootstrap::parse(&yaml, "test.yaml").unwrap())
    }

    fn endpoints(ports: &[u16]) -> Update {
        let endpoint = |port: &u16| {
            let port = Some(socket_address::PortSpecifier::PortValue(u32::from(*port)));
            let socket = SocketAddress { address: "127.0.0.1".to_owned(), port_specifier: port, ..Default::default() };
            let address = Some(AddressProto { address: Some(address::Address::SocketAddress(socket)) });
            let endpoint = Endpoint { address, ..Default::default() };
            LbEndpoint { host_identifier: Some(lb_endpoint::HostIdentifier::Endpoint(endpoint)), ..Default::default() }
        };
        let locality = LocalityLbEndpoints { lb_endpoints: ports.iter().map(endpoint).collect(), ..Default::default() };
        let body = pack(&ClusterLoadAssignment { cluster_name: "c".to_owned(), endpoints: vec![locality], ..Default::default() });
        Update { name: "c".to_owned(), version: "1".to_owned(), body }
    }

    /// A port that takes connections as long as the set lives.
    async fn listening() -> (u16, JoinSet<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { while listener.accept().await.is_ok() {} });
        (port, tasks)
    }

    fn ports(main: &Main) -> Vec<(u16, bool)> {
        let snapshot = main.snapshot();
        let Some((_, cluster)) = snapshot.cluster_named("c") else { return Vec::new() };
        let port = |h: &Arc<Host>| if let Address::Socket(at) = &h.address { at.port() } else { 0 };
        cluster.hosts.hosts().map(|h| (port(h), h.is_healthy())).collect()
    }

    async fn until(main: &Main, expected: &[(u16, bool)]) {
        for _ in 0..500 {
            if ports(main) == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("{:?} is not {expected:?}", ports(main));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_removed_host_serves_until_it_fails_its_checks() {
        let process = start(cluster("0.02s", "")).await.unwrap();
        let main = &process.main;
        let (first, _stays) = listening().await;
        let (second, leaves) = listening().await;
        let apply = |ports: &[u16]| {
            let update = endpoints(ports);
            assert_eq!(main.change(|compiler, now| compiler.apply(types::ENDPOINT, vec![update], &[], now)), Vec::new());
        };
        apply(&[first, second]);
        until(main, &[(first, true), (second, true)]).await;
        apply(&[first]);
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ports(main), [(first, true), (second, true)]);
        drop(leaves);
        until(main, &[(first, true)]).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_cluster_with_traffic_is_checked_often_also_when_all_its_hosts_are_new() {
        let process = start(cluster("60s", "")).await.unwrap();
        let main = &process.main;
        let (port, leaves) = listening().await;
        let traffic = main.registry.block(cluster_names::DEFS, BlockName::cluster("c"));
        traffic.add_shared(cluster_names::UPSTREAM_CX_TOTAL, 1);
        assert_eq!(main.change(|compiler, now| compiler.apply(types::ENDPOINT, vec![endpoints(&[port])], &[], now)), Vec::new());
        until(main, &[(port, true)]).await;
        drop(leaves);
        until(main, &[(port, false)]).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn a_result_changes_what_it_tells_of() {
        let process = start(cluster("60s", "    outlier_detection: {}\n")).await.unwrap();
        let main = &process.main;
        assert_eq!(main.change(|compiler, now| compiler.apply(types::ENDPOINT, vec![endpoints(&[1])], &[], now)), Vec::new());
        let cluster = main.snapshot().cluster_named("c").unwrap().1.clone();
        let host = Host::new(Address::Pipe("x".into()));
        let after = |flags: u32, failed: bool, answer: Answer| {
            host.set_flag(u32::MAX, false);
            host.set_flag(flags, true);
            settle(main, &cluster, &host, failed, answer);
            host.flags()
        };
        let passed = Answer { result: Checked::Healthy, failure: FailureType::Active, ..Answer::NONE };
        let degraded = Answer { degraded: true, ..passed };
        assert_eq!(after(0, false, degraded), DEGRADED_ACTIVE_HC);
        assert_eq!(after(DEGRADED_ACTIVE_HC, false, Answer::NONE), DEGRADED_ACTIVE_HC, "a failure below the threshold");
        assert_eq!(after(DEGRADED_ACTIVE_HC, true, Answer::NONE), DEGRADED_ACTIVE_HC | FAILED_ACTIVE_HC);
        assert_eq!(after(DEGRADED_ACTIVE_HC, false, passed), 0);
        assert_eq!(after(FAILED_OUTLIER | FAILED_ACTIVE_HC, false, passed), 0, "the check that lets it in ends its ejection too");
        assert_eq!(after(FAILED_OUTLIER | FAILED_ACTIVE_HC, true, passed), FAILED_OUTLIER | FAILED_ACTIVE_HC);
    }
}
