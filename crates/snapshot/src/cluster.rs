//! Clusters: what is upstream, how it is discovered, reached, balanced and protected.
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
pub use lateen_balance::config::OutlierSettings;
use lateen_balance::host::{CheckedAt, FAILED_ACTIVE_HC, OVERPROVISIONING_PERCENT, PENDING_ACTIVE_HC};
use lateen_balance::subset::Labels;
use lateen_balance::{Breakers, HostSet, Limits, LocalCluster, Settings};
use lateen_telemetry::istio::CatchAll;

use crate::ClusterId;
use crate::dns::DnsSettings;
use crate::dns::cache::DnsCache;
use crate::health_check::HealthCheck;
use crate::http::Http2Options;
use crate::proxy_protocol::ProxyProtocol;
use crate::route::HashPolicy;
use crate::socket::Bind;
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
    /// What requests are placed by, where that is not left to their routes.
    pub hash: Vec<HashPolicy>,
    /// Envoy default 5 s.
    pub connect_timeout: Duration,
    pub http: UpstreamHttp,
    /// Idle pooled HTTP connections are closed after this; Envoy default 1 h.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// By how many percent of it a connection may live longer, at random.
    pub max_connection_duration_jitter_percent: f64,
    /// How the names of requests' headers are written over HTTP/1.
    pub http1_names: crate::http::NameCase,
    pub response_heads: HeadLimits,
    /// Connections are made for so many times the streams there are (Envoy `per_upstream_preconnect_ratio`).
    pub preconnect_ratio: f64,
    /// The same over all hosts: connections are made to those whose turn is next (Envoy `predictive_preconnect_ratio`).
    pub predictive_preconnect_ratio: f64,
    /// Every connection of a caller has connections of its own.
    pub pool_per_downstream: bool,
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
    pub bind: Bind,
    /// The order in which the addresses of a host with several are tried.
    pub address_order: AddressOrder,
    pub health_check: Option<HealthCheck>,
    /// A host that discovery takes away stays as long as it passes its checks.
    pub keeps_healthy_hosts: bool,
    /// Hosts that were not checked yet do not count when the panic threshold is looked at.
    pub ignore_new_hosts_until_first_hc: bool,
    /// A host that comes or goes ends the connections to all; open requests finish.
    pub close_on_host_set_change: bool,
    /// A host that fails ends the connections of TCP proxies to it.
    pub close_on_host_failure: bool,
    pub istio: IstioCluster,
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

/// How large the head of a response may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeadLimits {
    /// Envoy `max_headers_count`, by default 100.
    pub headers: u32,
    /// Envoy `max_response_headers_kb`, by default 80 KiB over HTTP/1 and 60 KiB over HTTP/2.
    pub http1_bytes: u32,
    pub http2_bytes: u32,
}

/// What Istio says of a cluster in its metadata.
#[derive(Debug, Clone)]
pub struct IstioCluster {
    pub destination: IstioDestination,
    pub exchange: PeerExchange,
}

/// What its hosts serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IstioDestination {
    Unknown,
    Service(IstioService),
    /// Whatever no service takes.
    CatchAll(CatchAll),
}

impl IstioDestination {
    pub fn catch_all(&self) -> Option<CatchAll> {
        if let Self::CatchAll(one) = self { Some(*one) } else { None }
    }
}

/// Whether the other end may be told who we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerExchange {
    Always,
    /// It is not of the mesh: only where nothing says that such are left out.
    External,
    Never,
}

impl PeerExchange {
    pub fn allows(self, skip_external_clusters: bool) -> bool {
        match self {
            Self::Always => true,
            Self::External => !skip_external_clusters,
            Self::Never => false,
        }
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
    OriginalDst(Arc<OriginalDst>),
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
    /// Of a million requests, how many are turned away before anybody is asked.
    pub dropped_per_million: u32,
}

impl Default for AssignmentPolicy {
    fn default() -> Self {
        Self { overprovisioning_percent: OVERPROVISIONING_PERCENT, weighted_priority_health: false, dropped_per_million: 0 }
    }
}

/// Where connections of an original destination cluster go instead of where they were going.
#[derive(Debug, Default)]
pub struct OriginalDst {
    /// The address that this header of a request names.
    pub header: Option<HeaderName>,
    /// The address that this metadata of a request, or of its connection, names: namespace and path.
    pub metadata: Option<(Arc<str>, Vec<Box<str>>)>,
    /// The port, whatever the address is.
    pub port: Option<u16>,
}

/// Which addresses of a host are tried first (Envoy `HappyEyeballsConfig`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressOrder {
    /// The family to begin with; that of the first address where nothing is said.
    pub v4_first: Option<bool>,
    /// How many of that family come before one of the other.
    pub count: usize,
}

impl Default for AddressOrder {
    fn default() -> Self {
        Self { v4_first: None, count: 1 }
    }
}

impl AddressOrder {
    pub fn sort(&self, all: &[std::net::SocketAddr]) -> Vec<std::net::SocketAddr> {
        let v4_first = self.v4_first.or(all.first().map(std::net::SocketAddr::is_ipv4)).unwrap_or(true);
        let (first, other): (Vec<_>, Vec<_>) = all.iter().copied().partition(|a| a.is_ipv4() == v4_first);
        let (mut first, mut other) = (first.into_iter(), other.into_iter());
        let mut sorted = Vec::with_capacity(all.len());
        while sorted.len() < all.len() {
            sorted.extend(first.by_ref().take(self.count));
            sorted.extend(other.next());
        }
        sorted
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
    pub proxy_protocol: Option<Arc<ProxyProtocol>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpKeepalive {
    pub probes: Option<u32>,
    pub time: Option<Duration>,
    pub interval: Option<Duration>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_of_addresses_take_turns_as_told() {
        let all: Vec<std::net::SocketAddr> =
            ["[::1]:1", "[::2]:1", "10.0.0.1:1", "[::3]:1", "10.0.0.2:1"].iter().map(|a| a.parse().unwrap()).collect();
        let sorted = |v4_first, count| {
            let sorted = AddressOrder { v4_first, count }.sort(&all);
            sorted.iter().map(|a| a.ip().to_string()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(sorted(None, 1), "::1 10.0.0.1 ::2 10.0.0.2 ::3");
        assert_eq!(sorted(Some(true), 1), "10.0.0.1 ::1 10.0.0.2 ::2 ::3");
        assert_eq!(sorted(Some(false), 2), "::1 ::2 10.0.0.1 ::3 10.0.0.2");
        assert_eq!(sorted(Some(true), usize::MAX), "10.0.0.1 10.0.0.2 ::1 ::2 ::3");
    }
}
