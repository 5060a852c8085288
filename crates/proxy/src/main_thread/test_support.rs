//! A main thread without workers, for tests.
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_snapshot::Snapshot;
use lateen_telemetry::Registry;
use lateen_telemetry::stats::TagStyle;

use super::{Main, Parts, Publisher};

struct Nobody;

impl Publisher for Nobody {
    fn publish(&self, _snapshot: Arc<Snapshot>) {}
}

/// With this bootstrap.
pub(crate) fn main(yaml: &str) -> Arc<Main> {
    let bootstrap = lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap();
    let overload = crate::worker::Overload::new(bootstrap.overload.limits.clone());
    let parts = Parts {
        bootstrap,
        registry: Registry::new(1, TagStyle::Envoy).0,
        publisher: Box::new(Nobody),
        epoch: Instant::now(),
        workers: 1,
        upstream_mark: None,
        overload,
        logs: Arc::default(),
        drain_time: Duration::ZERO,
        drain_gradually: false,
        lineage: crate::restart::Lineage::first(0),
        can_restart: false,
        held: false,
    };
    Main::new(parts).unwrap()
}
