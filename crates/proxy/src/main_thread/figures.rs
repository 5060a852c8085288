//! Statistics of the process itself: `server.`, `cluster_manager.`, `listener_manager.`, `control_plane.`.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_identity::PeerIdentity;
use lateen_snapshot::compile::{Kind, SecretValue};
use lateen_telemetry::envoy_names::server;
use lateen_telemetry::{Block, BlockName};

use super::{Main, Phase};

/// Gauges are as old as this at most.
const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps the gauges up to date.
pub(super) async fn run(main: Arc<Main>) {
    let block = main.registry.block(server::DEFS, BlockName::plain("server"));
    loop {
        write(&main, &block);
        tokio::time::sleep(INTERVAL).await;
    }
}

fn write(main: &Main, block: &Block) {
    let phase = main.shown_phase();
    block.set(server::CONCURRENCY, main.workers as u64);
    block.set(server::LIVE, u64::from(phase == Phase::Live));
    block.set(
        server::STATE,
        match phase {
            Phase::Live => 0,
            Phase::Draining => 1,
            Phase::PreInitializing => 2,
            Phase::Initializing => 3,
        },
    );
    block.set(server::UPTIME, main.uptime().as_secs());
    block.set(server::PARENT_CONNECTIONS, main.parent_connections());
    block.set(server::TOTAL_CONNECTIONS, main.connections() + main.parent_connections());
    block.set(server::HOT_RESTART_EPOCH, main.lineage.epoch);
    block.set(server::HOT_RESTART_GENERATION, main.lineage.generation);
    let resident = resident_bytes();
    block.set(server::MEMORY_ALLOCATED, resident);
    block.set(server::MEMORY_HEAP_SIZE, resident);
    block.set(server::MEMORY_PHYSICAL_SIZE, resident);
    block.set(server::DAYS_UNTIL_FIRST_CERT_EXPIRING, days_left(main));
}

/// The second number of `/proc/self/statm`, in pages.
pub(super) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split_whitespace().nth(1).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0) * 4096
}

/// Envoy shows the largest 32-bit number when there is no certificate.
fn days_left(main: &Main) -> u64 {
    let compiler = main.compiler();
    let leaves = compiler.secrets().filter_map(|(_, value)| match value {
        SecretValue::Certificate(certificate) => certificate.key.cert.first(),
        SecretValue::Validation(_) => None,
    });
    let ends = leaves.filter_map(|leaf| PeerIdentity::from_der(leaf).ok()).map(|leaf| leaf.not_after);
    let left = ends.map(|end| end.duration_since(SystemTime::now()).unwrap_or_default().as_secs() / 86_400);
    left.min().unwrap_or(u64::from(u32::MAX))
}

/// Counts of resources in use and warming, for the log line at the start.
pub(super) fn summary(main: &Main) -> String {
    let compiler = main.compiler();
    let count = |kind| compiler.list(kind).iter().filter(|l| l.active.is_some()).count();
    format!("{} listeners, {} clusters, {} route tables", count(Kind::Listener), count(Kind::Cluster), count(Kind::Route))
}
