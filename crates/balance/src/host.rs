//! A member of a cluster: shared by all workers, immutable but for health flags and load counters.
use std::fmt;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

pub use crate::host_set::{HostSet, LocalityHosts, OVERPROVISIONING_PERCENT, Priority};

use crate::by_load::ReportedWeight;
use crate::outlier::HostOutlier;
use crate::peak_ewma::Latency;

/// Where a host is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    /// A unix domain socket, by path.
    Pipe(Arc<str>),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Socket(address) => address.fmt(f),
            Self::Pipe(path) => f.write_str(path),
        }
    }
}

/// Region, zone and sub-zone; empty parts are unknown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub sub_zone: Arc<str>,
}

/// Health flag: failed active health checks.
pub const FAILED_ACTIVE_HC: u32 = 1;
/// Health flag: ejected by outlier detection.
pub const FAILED_OUTLIER: u32 = 1 << 1;
/// Health flag: the discovery service says UNHEALTHY, DRAINING or TIMEOUT.
pub const FAILED_EDS: u32 = 1 << 2;
/// Health flag: the discovery service says DEGRADED.
pub const DEGRADED_EDS: u32 = 1 << 3;

/// Health flag: the last active health check was answered with `x-envoy-degraded`.
pub const DEGRADED_ACTIVE_HC: u32 = 1 << 4;

/// Health flag: not checked yet, and left out of the panic threshold until then (`ignore_new_hosts_until_first_hc`).
pub const PENDING_ACTIVE_HC: u32 = 1 << 5;

/// Health flag: a response said `x-envoy-immediate-health-check-fail`; left out of the panic threshold until a check is passed.
pub const EXCLUDED_VIA_IMMEDIATE_HC_FAIL: u32 = 1 << 8;

/// Health flag: discovery has taken the host away, and it stays as long as it passes its active health checks.
pub const PENDING_REMOVAL: u32 = 1 << 7;

/// Health flag, beside [`FAILED_EDS`]: the discovery service says DRAINING.
pub const DRAINING_EDS: u32 = 1 << 16;
/// Health flag, beside [`FAILED_EDS`]: the discovery service says TIMEOUT.
pub const TIMEOUT_EDS: u32 = 1 << 17;
/// Health flag: a response said `x-envoy-degraded`, and outlier detection looks for that.
pub const DEGRADED_OUTLIER: u32 = 1 << 6;

/// Where and how an endpoint is checked, when not like a request (Envoy `Endpoint.HealthCheckConfig`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckedAt {
    /// Another address than the endpoint's own.
    pub address: Option<Address>,
    /// The host of HTTP and gRPC checks instead of the check's own; empty when not given.
    pub hostname: Arc<str>,
    /// The endpoint is not checked, and counts as healthy.
    pub disabled: bool,
}

/// One endpoint of one cluster. Identity across updates is the [`Address`]; counters live on.
#[derive(Debug)]
pub struct Host {
    pub address: Address,
    /// Every address of a host that has several, in the order in which to try them; empty for one with only `address`.
    pub addresses: Vec<SocketAddr>,
    /// The name the endpoint was given, or resolved from; empty when none.
    pub hostname: Arc<str>,
    /// What the hash policies place the host by instead of its address (`hash_key` of its `envoy.lb` metadata); empty
    /// when not given.
    pub hash_key: Arc<str>,
    pub locality: Locality,
    /// Which of the cluster's transport sockets reaches this host (settled when configuration changes).
    pub transport: u32,
    /// Canonical label of the workload behind the endpoint, Istio's `workload;namespace;name;revision;cluster`.
    pub workload: Option<Arc<str>>,
    /// `None` when it is checked where it serves.
    pub checked_at: Option<Arc<CheckedAt>>,
    /// Share among the hosts of its locality; at least 1. Unlike what else is fixed about a host it may change in place:
    /// load, health and ejections go on.
    weight: AtomicU32,
    state: Arc<HostState>,
}

/// What happens to a host while it serves. It goes on where the host is described anew: both descriptions share it.
#[derive(Debug, Default)]
pub struct HostState {
    flags: AtomicU32,
    /// How often health checks or outlier detection took it out.
    failures: AtomicU32,
    /// Whoever checks it, to be told at once of what a response said.
    checker: Mutex<Option<Waker>>,
    /// Since when it is healthy, in milliseconds of the clock of choices, plus one; 0 when nobody has looked yet.
    healthy_since: AtomicU64,
    /// Requests in flight over all workers: what least-request compares.
    active: AtomicU32,
    pub counters: HostCounters,
    pub outlier: HostOutlier,
    /// Only kept where the policy goes by it.
    pub latency: Latency,
    /// Only kept where the policy goes by it.
    pub reported: ReportedWeight,
}

/// Per-host figures of Envoy's `/clusters` page, summed over workers.
#[derive(Debug, Default)]
pub struct HostCounters {
    pub cx_active: AtomicU64,
    pub cx_connect_fail: AtomicU64,
    pub cx_total: AtomicU64,
    pub rq_error: AtomicU64,
    pub rq_success: AtomicU64,
    pub rq_timeout: AtomicU64,
    pub rq_total: AtomicU64,
}

impl Deref for Host {
    type Target = HostState;

    fn deref(&self) -> &HostState {
        &self.state
    }
}

impl Host {
    pub fn new(address: Address) -> Self {
        Self {
            address,
            addresses: Vec::new(),
            hostname: Arc::default(),
            hash_key: Arc::default(),
            locality: Locality::default(),
            transport: 0,
            workload: None,
            checked_at: None,
            weight: AtomicU32::new(1),
            state: Arc::default(),
        }
    }

    /// The same host described anew: its health, ejections, load and figures go on.
    pub fn in_place_of(before: &Self, address: Address) -> Self {
        Self { state: Arc::clone(&before.state), ..Self::new(address) }
    }

    /// Whether the host takes traffic: no failure flag is set (degraded hosts are healthy, but come last).
    pub fn is_healthy(&self) -> bool {
        self.flags.load(Relaxed) & (FAILED_ACTIVE_HC | FAILED_OUTLIER | FAILED_EDS) == 0
    }

    pub fn is_degraded(&self) -> bool {
        self.flags.load(Relaxed) & (DEGRADED_EDS | DEGRADED_ACTIVE_HC | DEGRADED_OUTLIER) != 0
    }

    /// Left out of account where it matters how many of the hosts serve: it waits for its first check
    /// (`ignore_new_hosts_until_first_hc`), said itself that it fails, or is drained (Envoy `excludeBasedOnHealthFlag`).
    pub fn is_excluded(&self) -> bool {
        self.flags.load(Relaxed) & (PENDING_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL | DRAINING_EDS) != 0
    }

    pub fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Sets or clears a health flag; whoever calls this also calls [`HostSet::health_changed`].
    pub fn set_flag(&self, flag: u32, on: bool) {
        if on {
            let before = self.flags.fetch_or(flag, Relaxed);
            if flag & !before & (FAILED_ACTIVE_HC | FAILED_OUTLIER) != 0 {
                self.failures.fetch_add(1, Relaxed);
            }
        } else {
            self.flags.fetch_and(!flag, Relaxed);
        }
    }

    /// A response of the host said that it fails its health checks: it is out until it passes them. Says whether that is news;
    /// then whoever calls this also calls [`HostSet::health_changed`].
    pub fn fail_at_once(&self) -> bool {
        let before = self.flags();
        if before & EXCLUDED_VIA_IMMEDIATE_HC_FAIL != 0 {
            return false;
        }
        self.set_flag(FAILED_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL, true);
        let checker = self.checker.lock().unwrap_or_else(PoisonError::into_inner).take();
        checker.into_iter().for_each(Waker::wake);
        true
    }

    /// Ready once [`Self::fail_at_once`] took the host out.
    pub fn poll_failed_at_once(&self, cx: &mut Context<'_>) -> Poll<()> {
        // First the waker and then the look: what comes in between wakes it.
        *self.checker.lock().unwrap_or_else(PoisonError::into_inner) = Some(cx.waker().clone());
        if self.flags() & EXCLUDED_VIA_IMMEDIATE_HC_FAIL == 0 { Poll::Pending } else { Poll::Ready(()) }
    }

    /// A number that grows when health checks or outlier detection take the host out: connections from before are to end.
    pub fn failures(&self) -> u32 {
        self.failures.load(Relaxed)
    }

    pub fn weight(&self) -> u32 {
        self.weight.load(Relaxed)
    }

    pub fn set_weight(&self, weight: u32) {
        self.weight.store(weight.max(1), Relaxed);
    }

    /// The host passed a health check that it had failed before: its slow start begins.
    pub fn became_healthy(&self, now: u64) {
        self.healthy_since.store(now.saturating_add(1), Relaxed);
    }

    /// For how long it has been healthy; the first who asks after a healthy host starts the clock.
    pub(crate) fn healthy_for(&self, now: u64) -> u64 {
        let moment = now.saturating_add(1);
        match self.healthy_since.load(Relaxed) {
            0 => {
                // Whoever comes second finds the first one's moment, which is the same within a few milliseconds.
                let _ = self.healthy_since.compare_exchange(0, moment, Relaxed, Relaxed);
                0
            }
            since => moment.saturating_sub(since),
        }
    }

    pub fn active_requests(&self) -> u32 {
        self.active.load(Relaxed)
    }

    /// Counts a request in; the guard counts it out when dropped.
    pub fn begin_request(self: &Arc<Self>) -> ActiveRequest {
        self.active.fetch_add(1, Relaxed);
        ActiveRequest(Arc::clone(self))
    }
}

/// A request in flight on a host: dropping it gives the slot back.
#[derive(Debug)]
pub struct ActiveRequest(Arc<Host>);

impl ActiveRequest {
    pub fn host(&self) -> &Arc<Host> {
        &self.0
    }
}

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.active.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_each_time_that_a_host_is_taken_out() {
        let host = Host::new(Address::Pipe("x".into()));
        for (flag, on, failures) in [
            (FAILED_EDS | DEGRADED_EDS | DEGRADED_ACTIVE_HC, true, 0),
            (FAILED_ACTIVE_HC, true, 1),
            (FAILED_ACTIVE_HC, true, 1),
            (FAILED_OUTLIER, true, 2),
            (FAILED_ACTIVE_HC, false, 2),
            (FAILED_ACTIVE_HC, true, 3),
        ] {
            host.set_flag(flag, on);
            assert_eq!(host.failures(), failures);
        }
    }
}
