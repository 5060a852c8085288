//! Clusters: what is upstream, how it is discovered, reached, balanced and protected.
use std::sync::Arc;
use std::time::Duration;

pub use lateen_balance::config::OutlierSettings;
use lateen_balance::host::{CheckedAt, FAILED_ACTIVE_HC, OVERPROVISIONING_PERCENT, PENDING_ACTIVE_HC};
use lateen_balance::subset::Labels;
use lateen_balance::{Breakers, HostSet, Limits, LocalCluster, Settings};

use crate::ClusterId;
use crate::dns::DnsSettings;
use crate::dns::cache::DnsCache;
use crate::health_check::HealthCheck;
use crate::http::Http2Options;
use crate::tls::ClientTls;

/// A cluster at one moment: its configuration, its members, and what outlives updates.
#[derive(Debug)]
pub struct Cluster {
    pub config: Arc<ClusterConfig>,
    pub hosts: Arc<HostSet>,
    /// The cluster that this process is a member of, where it matters for this one (zone-aware routing).
    pub local: Option<Arc<LocalCluster>>,
    /// Survives configuration and membership updates of the same name.
    pub live: Arc<ClusterLive>,
}

/// State shared by all workers and all versions of a cluster.
#[derive(Debug)]
pub struct ClusterLive {
    /// Default and high priority.
    pub breakers: [Breakers; 2],
}

/// Envoy `Cluster`.
#[derive(Debug)]
pub struct ClusterConfig {
    pub name: Arc<str>,
    /// Name in statistics; the cluster's name unless `alt_stat_name`.
    pub stat_name: Arc<str>,
    pub discovery: Discovery,
    pub balance: Settings,
    /// Envoy default 5 s.
    pub connect_timeout: Duration,
    pub http: UpstreamHttp,
    /// Idle pooled HTTP connections are closed after this; Envoy default 1 h.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// 1 means no keep-alive.
    pub max_requests_per_connection: Option<u32>,
    /// Default and high priority.
    pub limits: [Limits; 2],
    /// Of each priority, whether statistics show what is left below its limits.
    pub track_remaining: [bool; 2],
    /// Of each priority, how many connections each host may have; `u32::MAX` is unlimited.
    pub per_host_connections: [u32; 2],
    pub outlier: Option<OutlierSettings>,
    /// Transport sockets: `transport_socket_matches` in order, then the default; hosts point in by index.
    pub transports: Vec<Transport>,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Local addresses to connect from (`upstream_bind_config`), e.g. 127.0.0.6 for inbound traffic: the first
    /// of the destination's address family counts (Envoy's default local address selector).
    pub bind_sources: Vec<std::net::SocketAddr>,
    pub socket_options: Vec<(i32, i32, i32)>,
    pub health_check: Option<HealthCheck>,
    /// Hosts that were not checked yet do not count when the panic threshold is looked at.
    pub ignore_new_hosts_until_first_hc: bool,
    /// Close HTTP connections to hosts that left the membership when idle; open requests finish.
    pub drain_on_host_removal: bool,
    /// Istio's description of the destination, from cluster metadata: (host, name, namespace).
    pub istio_service: Option<IstioService>,
}

impl ClusterConfig {
    /// The port of hosts that are named without one, where requests name the hosts.
    pub fn default_port(&self) -> Option<u16> {
        let Discovery::DynamicForwardProxy(_) = self.discovery else { return None };
        Some(if self.transports.last().is_some_and(|t| t.tls.is_some()) { 443 } else { 80 })
    }

    /// The health flags of a host before its first check; `None` where nobody checks.
    pub fn unchecked(&self) -> Option<u32> {
        let pending = if self.ignore_new_hosts_until_first_hc { PENDING_ACTIVE_HC } else { 0 };
        self.health_check.is_some().then_some(FAILED_ACTIVE_HC | pending)
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IstioService {
    pub host: Arc<str>,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
}

#[derive(Debug, Clone)]
pub enum Discovery {
    Static,
    /// Endpoint discovery under this service name.
    Eds(Arc<str>),
    StrictDns(DnsTargets),
    LogicalDns(DnsTargets),
    OriginalDst {
        use_header: bool,
    },
    /// The members, which come one after the other.
    Aggregate(Arc<[ClusterId]>),
    /// The host that a request names.
    DynamicForwardProxy(Arc<DnsCache>),
}

/// How a load assignment's priorities share the traffic (Envoy `ClusterLoadAssignment.Policy`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AssignmentPolicy {
    pub overprovisioning_percent: u32,
    pub weighted_priority_health: bool,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { overprovisioning_percent: OVERPROVISIONING_PERCENT, weighted_priority_health: false }
    }
}

/// What a DNS cluster resolves.
#[derive(Debug, Clone)]
pub struct DnsTargets {
    pub targets: Vec<DnsTarget>,
    pub settings: Arc<DnsSettings>,
    pub policy: AssignmentPolicy,
}

#[derive(Debug, Clone)]
pub struct DnsTarget {
    pub name: Arc<str>,
    pub port: u16,
    /// What the endpoint is called; its `name` unless it says else.
    pub hostname: Arc<str>,
    pub weight: u32,
    pub priority: u32,
    pub locality: lateen_balance::Locality,
    pub locality_weight: u32,
    pub transport: u32,
    /// `envoy.lb` metadata.
    pub labels: Option<Arc<Labels>>,
    /// What hash policies place it by; empty for its address.
    pub hash_key: Arc<str>,
    pub workload: Option<Arc<str>>,
    /// Health flags that the configuration gives its addresses.
    pub flags: u32,
    pub checked_at: Option<Arc<CheckedAt>>,
}

/// Which HTTP version goes upstream (Envoy `HttpProtocolOptions`).
#[derive(Clone, Debug)]
pub enum UpstreamHttp {
    Http1,
    Http2(Http2Options),
    /// The version of the downstream request.
    Downstream(Http2Options),
    /// What ALPN settles.
    Auto(Http2Options),
}

/// How a host is reached.
#[derive(Debug, Clone)]
pub struct Transport {
    pub name: Arc<str>,
    /// `None` is plaintext.
    pub tls: Option<Arc<ClientTls>>,
    pub proxy_protocol: Option<ProxyProtocolVersion>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyProtocolVersion {
    V1,
    V2,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}
