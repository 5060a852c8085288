//! The periodic part of outlier detection.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_balance::outlier::{self, Detection, Detector, Ejection};
use lateen_snapshot::Cluster;
use lateen_telemetry::BlockName;
use lateen_telemetry::envoy_names::outlier as names;

use super::Main;

/// The finest interval that is kept.
const STEP: Duration = Duration::from_millis(100);

/// Workers that still have the configuration before may eject for so long after detection was taken away.
const LAPSE: Duration = Duration::from_secs(10);

/// Ticks each cluster with outlier detection at its own interval, and lets hosts back in where detection was taken away.
pub(super) async fn run(main: Arc<Main>) {
    let mut snapshots = main.snapshots();
    snapshots.mark_changed();
    let mut due: HashMap<Arc<str>, Instant> = HashMap::new();
    let mut watched = Vec::new();
    loop {
        if watched.is_empty() {
            if snapshots.changed().await.is_err() {
                return;
            }
        } else {
            tokio::time::sleep(STEP).await;
        }
        let now = Instant::now();
        if snapshots.has_changed().unwrap_or(true) || watched.is_empty() {
            let snapshot = snapshots.borrow_and_update().clone();
            due.retain(|name, _| snapshot.cluster_named(name).is_some());
            let concerned = |c: &&Arc<Cluster>| c.config.outlier.is_some() || due.contains_key(&c.config.name);
            watched = snapshot.clusters.iter().flatten().filter(concerned).cloned().collect();
        }
        watched.retain(|cluster| tick(&main, cluster, &mut due, now));
    }
}

/// Looks after one cluster; `false` when it needs that no longer.
fn tick(main: &Main, cluster: &Cluster, due: &mut HashMap<Arc<str>, Instant>, now: Instant) -> bool {
    let Some(settings) = &cluster.config.outlier else {
        let Some(at) = due.get(&cluster.config.name) else { return false };
        outlier::end(&cluster.hosts);
        // The last tick was due before `at`; after the lapse nobody ejects any more.
        let over = now >= *at + LAPSE;
        if over {
            due.remove(&cluster.config.name);
        }
        return !over;
    };
    let at = due.entry(cluster.config.name.clone()).or_insert(now + settings.interval);
    if now < *at {
        return true;
    }
    *at = now + settings.interval;
    let millis = main.millis();
    let before = cluster.hosts.health_epoch();
    let report = outlier::tick(settings, &cluster.hosts, millis, rand::random::<u32>);
    count(main, &cluster.config.stat_name, &report.detections);
    if cluster.hosts.health_epoch() != before {
        tracing::info!(cluster = &*cluster.config.name, "outlier detection changed the health of hosts");
    }
    true
}

/// Counts what was found by comparing hosts; workers count what they find in single responses.
fn count(main: &Main, cluster: &str, detections: &[Detection]) {
    if detections.is_empty() {
        return;
    }
    let block = main.registry.block(names::DEFS, BlockName::cluster(cluster));
    for detection in detections {
        let (detected, enforced) = match detection.detector {
            Detector::SuccessRate => (names::EJECTIONS_DETECTED_SUCCESS_RATE, names::EJECTIONS_ENFORCED_SUCCESS_RATE),
            Detector::FailurePercentage => (names::EJECTIONS_DETECTED_FAILURE_PERCENTAGE, names::EJECTIONS_ENFORCED_FAILURE_PERCENTAGE),
            Detector::LocalOriginSuccessRate => {
                (names::EJECTIONS_DETECTED_LOCAL_ORIGIN_SUCCESS_RATE, names::EJECTIONS_ENFORCED_LOCAL_ORIGIN_SUCCESS_RATE)
            }
            Detector::LocalOriginFailurePercentage => {
                (names::EJECTIONS_DETECTED_LOCAL_ORIGIN_FAILURE_PERCENTAGE, names::EJECTIONS_ENFORCED_LOCAL_ORIGIN_FAILURE_PERCENTAGE)
            }
            Detector::Consecutive5xx | Detector::ConsecutiveGatewayFailure | Detector::ConsecutiveLocalOriginFailure => continue,
        };
        block.add_shared(detected, 1);
        match detection.result {
            Ejection::Ejected => {
                block.add_shared(enforced, 1);
                block.add_shared(names::EJECTIONS_ENFORCED_TOTAL, 1);
            }
            Ejection::Overflow => block.add_shared(names::EJECTIONS_OVERFLOW, 1),
            Ejection::NotEnforced => {}
        }
    }
}
