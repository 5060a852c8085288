//! The members of a cluster: shared by all workers, immutable but for health flags and load counters.
use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::outlier::HostOutlier;

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

/// Health flag, beside [`FAILED_EDS`]: the discovery service says DRAINING.
pub const DRAINING_EDS: u32 = 1 << 16;
/// Health flag, beside [`FAILED_EDS`]: the discovery service says TIMEOUT.
pub const TIMEOUT_EDS: u32 = 1 << 17;

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
    /// Share among the hosts of its locality; at least 1.
    pub weight: u32,
    pub locality: Locality,
    /// Which of the cluster's transport sockets reaches this host (settled when configuration changes).
    pub transport: u32,
    /// Canonical label of the workload behind the endpoint, Istio's `workload;namespace;name;revision;cluster`.
    pub workload: Option<Arc<str>>,
    /// `None` when it is checked where it serves.
    pub checked_at: Option<Arc<CheckedAt>>,
    flags: AtomicU32,
    /// Requests in flight over all workers: what least-request compares.
    active: AtomicU32,
    pub counters: HostCounters,
    pub outlier: HostOutlier,
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

impl Host {
    pub fn new(address: Address) -> Self {
        Self {
            address,
            addresses: Vec::new(),
            hostname: Arc::from(""),
            weight: 1,
            locality: Locality::default(),
            transport: 0,
            workload: None,
            checked_at: None,
            flags: AtomicU32::new(0),
            active: AtomicU32::new(0),
            counters: HostCounters::default(),
            outlier: HostOutlier::default(),
        }
    }

    /// Whether the host takes traffic: no failure flag is set (degraded hosts are healthy, but come last).
    pub fn is_healthy(&self) -> bool {
        self.flags.load(Relaxed) & (FAILED_ACTIVE_HC | FAILED_OUTLIER | FAILED_EDS) == 0
    }

    pub fn is_degraded(&self) -> bool {
        self.flags.load(Relaxed) & (DEGRADED_EDS | DEGRADED_ACTIVE_HC) != 0
    }

    pub fn flags(&self) -> u32 {
        self.flags.load(Relaxed)
    }

    /// Sets or clears a health flag; whoever calls this also calls [`HostSet::health_changed`].
    pub fn set_flag(&self, flag: u32, on: bool) {
        if on {
            self.flags.fetch_or(flag, Relaxed);
        } else {
            self.flags.fetch_and(!flag, Relaxed);
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

/// Hosts of one locality within a priority.
#[derive(Clone, Debug, Default)]
pub struct LocalityHosts {
    pub locality: Locality,
    /// Share of the priority's traffic when localities are weighted; 0 when unset.
    pub weight: u32,
    pub hosts: Vec<Arc<Host>>,
}

/// One priority level; 0 is preferred.
#[derive(Clone, Debug, Default)]
pub struct Priority {
    pub localities: Vec<LocalityHosts>,
}

/// The membership of a cluster at one moment.
#[derive(Debug, Default)]
pub struct HostSet {
    pub priorities: Vec<Priority>,
    /// Bumped when a health flag of a member changes; a balancer that sees another number recomputes.
    health_epoch: AtomicU64,
}

impl HostSet {
    pub fn new(priorities: Vec<Priority>) -> Self {
        Self { priorities, health_epoch: AtomicU64::new(0) }
    }

    /// A set of equal hosts in one priority and locality.
    pub fn flat(hosts: Vec<Arc<Host>>) -> Self {
        Self::new(vec![Priority { localities: vec![LocalityHosts { hosts, ..LocalityHosts::default() }] }])
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| &p.localities).flat_map(|l| &l.hosts)
    }

    pub fn is_empty(&self) -> bool {
        self.hosts().next().is_none()
    }

    pub fn len(&self) -> usize {
        self.hosts().count()
    }

    pub fn health_changed(&self) {
        self.health_epoch.fetch_add(1, Relaxed);
    }

    pub fn health_epoch(&self) -> u64 {
        self.health_epoch.load(Relaxed)
    }

    /// The hosts by address, for carrying live hosts over into the next set.
    pub fn by_address(&self) -> HashMap<&Address, &Arc<Host>> {
        self.hosts().map(|h| (&h.address, h)).collect()
    }
}
