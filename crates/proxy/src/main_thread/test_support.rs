//! A main thread without workers, for tests.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use lateen_snapshot::Snapshot;
use lateen_telemetry::Registry;
use lateen_telemetry::stats::TagStyle;

use super::{Main, Parts, Publisher};

struct Nobody;

impl Publisher for Nobody {
    fn publish(&self, _snapshot: Arc<Snapshot>) {}
}

/// Panics when the first snapshot is published that this holds of, and with it the task that made it.
pub(crate) struct PanicsOnce {
    when: fn(&Snapshot) -> bool,
    has: AtomicBool,
}

impl PanicsOnce {
    pub(crate) fn when(when: fn(&Snapshot) -> bool) -> Self {
        Self { when, has: AtomicBool::new(false) }
    }
}

impl Publisher for PanicsOnce {
    fn publish(&self, snapshot: Arc<Snapshot>) {
        assert!(!(self.when)(&snapshot) || self.has.swap(true, Relaxed), "injected");
    }
}

/// With this bootstrap.
pub(crate) fn main(yaml: &str) -> Arc<Main> {
    main_with(yaml, Nobody)
}

/// With this receiver of snapshots.
pub(crate) fn main_with(yaml: &str, publisher: impl Publisher + 'static) -> Arc<Main> {
    let bootstrap = lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap();
    let overload = crate::worker::Overload::new(bootstrap.overload.limits.clone());
    let parts = Parts {
        bootstrap,
        registry: Registry::new(1, TagStyle::Envoy).0,
        publisher: Box::new(publisher),
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
