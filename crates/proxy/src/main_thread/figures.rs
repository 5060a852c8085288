//! Statistics of the process itself: `server.`, `cluster_manager.`, `listener_manager.`, `control_plane.`.
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lateen_identity::PeerIdentity;
use lateen_snapshot::compile::{Kind, SecretValue};
use lateen_telemetry::envoy_names::server;
use lateen_telemetry::{Block, BlockName};
use nix::unistd::{SysconfVar, sysconf};

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
    let resident = Pages::now().resident_bytes();
    block.set(server::MEMORY_ALLOCATED, resident);
    block.set(server::MEMORY_HEAP_SIZE, resident);
    block.set(server::MEMORY_PHYSICAL_SIZE, resident);
    block.set(server::DAYS_UNTIL_FIRST_CERT_EXPIRING, days_left(main));
}

/// The memory of the process as the kernel counts it: `/proc/self/statm`, in pages.
pub(crate) struct Pages {
    statm: String,
    size: u64,
}

impl Pages {
    pub(crate) fn now() -> Self {
        let size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().and_then(|size| u64::try_from(size).ok());
        Self { statm: std::fs::read_to_string("/proc/self/statm").unwrap_or_default(), size: size.unwrap_or(4096) }
    }

    pub(crate) fn virtual_bytes(&self) -> u64 {
        self.bytes(0)
    }

    pub(crate) fn resident_bytes(&self) -> u64 {
        self.bytes(1)
    }

    /// Data and stack.
    pub(crate) fn data_bytes(&self) -> u64 {
        self.bytes(5)
    }

    fn bytes(&self, index: usize) -> u64 {
        self.statm.split_whitespace().nth(index).and_then(|n| n.parse::<u64>().ok()).unwrap_or(0).saturating_mul(self.size)
    }
}

/// Envoy shows the largest 32-bit number when there is no certificate.
fn days_left(main: &Main) -> u64 {
    let compiler = main.compiler();
    let leaves = compiler.secrets().filter_map(|(_, known)| match &known.value {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_counted_in_pages_of_the_kernels_size() {
        let pages = Pages { statm: "100 20 3 4 0 50 0\n".to_owned(), size: 65_536 };
        assert_eq!([pages.virtual_bytes(), pages.resident_bytes(), pages.data_bytes()], [6_553_600, 1_310_720, 3_276_800]);
        assert_eq!(Pages { statm: String::new(), size: 4096 }.resident_bytes(), 0);
        // The kernel says the same in kibibytes elsewhere.
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let kib: u64 =
            status.lines().find_map(|l| l.strip_prefix("VmRSS:")).and_then(|l| l.split_whitespace().next()).unwrap().parse().unwrap();
        let resident = Pages::now().resident_bytes() / 1024;
        assert!(resident > kib / 2 && resident < kib * 2, "{resident} KiB, where the kernel says {kib}");
    }
}
