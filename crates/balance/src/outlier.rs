//! Outlier detection: hosts that keep failing are taken out for a while.
use std::sync::atomic::AtomicU32;

/// Live counters of one host; shared by all workers.
#[derive(Debug, Default)]
pub struct HostOutlier {
    pub(crate) consecutive_5xx: AtomicU32,
}
