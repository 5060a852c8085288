//! Listeners: where connections come in, how their chain is chosen, what the chain does.
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;

use crate::cluster::TcpKeepalive;
use crate::dns::cache::DnsCache;
use crate::exact_balance::ExactBalance;
use crate::extension::{DiscoveredFilter, Extension};
use crate::header::{HeaderMutations, HeaderTemplate};
use crate::http::HttpConnectionManager;
use crate::matcher::Fraction;
use crate::matcher_tree::MatchTree;
use crate::proxy_protocol::{MoreTlvs, ProxyProtocolFilter};
use crate::ratelimit::TokenBucket;
use crate::socket::SocketOption;
use crate::tls::ServerTls;
use crate::{ClusterId, ExtensionId};

/// Envoy `traffic_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

impl Direction {
    /// Whether its end of a call reports as the source: all but a server's, as in Istio.
    pub fn is_source(self) -> bool {
        self != Self::Inbound
    }
}

/// A listener (Envoy listener.proto).
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    /// Shared by versions that differ in their chains alone; chains that are the same are shared by these too.
    pub lineage: Arc<()>,
    /// The address, then the additional addresses.
    pub addresses: Vec<SocketAddr>,
    /// Those of IPv6 that take connections over IPv4 too (Envoy `ipv4_compat`).
    pub dual_stack: Vec<SocketAddr>,
    /// False for listeners that only receive connections handed over by original destination.
    pub bind: bool,
    pub direction: Direction,
    /// Hand an accepted connection to the listener whose address is its original destination
    /// (exact address, else wildcard address of that port), if there is one (`use_original_dst`).
    pub use_original_dst: bool,
    /// A failed health check asks nobody to leave (Envoy `drain_type: MODIFY_ONLY`).
    pub drains_when_modified_only: bool,
    /// Its connections do not count against the process's limit.
    pub ignores_connection_limit: bool,
    /// The overload manager's actions do not concern it.
    pub ignores_overload: bool,
    pub transparent: bool,
    pub freebind: bool,
    pub inspectors: Arc<Inspectors>,
    /// In the order of the resource; see [`ChainIndex`](crate::chain::ChainIndex) for the matching rules.
    pub chains: Vec<Arc<FilterChain>>,
    pub default_chain: Option<Arc<FilterChain>>,
    /// Finds the chain of a connection; made from `chains` by [`ChainIndex::build`](crate::chain::ChainIndex::build).
    pub index: crate::chain::ChainIndex,
    /// Leads to a place in `chains`, and stands instead of their criteria (Envoy `filter_chain_matcher`).
    pub chain_matcher: Option<MatchTree<usize>>,
    /// Socket options to set on the listening socket: (level, name, value).
    pub socket_options: Vec<SocketOption>,
    /// Those of additional addresses that have their own.
    pub own_options: Vec<(SocketAddr, Vec<SocketOption>)>,
    /// Of accepted connections.
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// Shares connections out among the workers; where there is none the kernel does.
    pub balance: Option<Arc<ExactBalance>>,
    pub tcp_backlog: u32,
    /// Soft limit on bytes buffered per connection (Envoy default 1 MiB); 64 MiB where Envoy has none.
    pub per_connection_buffer_limit: u32,
    /// Logs of its connections, whether they matched a chain or not.
    pub access_logs: Vec<Arc<crate::http::AccessLog>>,
    pub stat_prefix: Arc<str>,
}

impl Listener {
    pub fn all_chains(&self) -> impl Iterator<Item = &Arc<FilterChain>> {
        self.chains.iter().chain(&self.default_chain)
    }

    /// Takes the place of the version before: connections that are open go on to count with their workers, as long as they came
    /// to the same address.
    pub(crate) fn follow(&mut self, before: &Self) {
        if self.addresses == before.addresses
            && let (Some(own), Some(counts)) = (&mut self.balance, &before.balance)
        {
            own.clone_from(counts);
        }
    }
}

/// What is looked at before a chain is chosen (Envoy listener filters).
#[derive(Clone, Debug, Default)]
pub struct Inspectors {
    pub original_dst: Option<PortGate>,
    pub tls: Option<PortGate>,
    pub http: Option<PortGate>,
    pub proxy_protocol: Option<(PortGate, Arc<ProxyProtocolFilter>)>,
    pub rate_limits: Vec<(PortGate, Arc<ConnectionRateLimit>)>,
    /// Those whose configuration is discovered.
    pub discovered: Vec<(PortGate, Arc<DiscoveredFilter<Inspection>>)>,
    /// Connections to hosts come from the caller's address.
    pub original_src: Option<(PortGate, OriginalSrc)>,
    /// How long inspection may wait for bytes; `None` waits for ever. Envoy's default is 15 s.
    pub timeout: Option<Duration>,
    /// On timeout go on with what is known (server-first protocols) instead of closing.
    pub continue_on_timeout: bool,
}

/// One listener filter.
#[derive(Clone, Debug)]
pub enum Inspection {
    Tls,
    Http,
    OriginalDst,
    ProxyProtocol(Arc<ProxyProtocolFilter>),
    OriginalSrc(OriginalSrc),
    RateLimit(Arc<ConnectionRateLimit>),
    /// Switched off.
    Nothing,
}

impl Inspectors {
    /// The same with filters in the places of those that are discovered. What is not there stays in the list.
    #[must_use]
    pub fn resolve<'a>(&self, found: impl Fn(ExtensionId) -> Option<&'a Extension>) -> Self {
        let mut all = self.clone();
        all.discovered.retain(|(_, place)| place.resolve(found(place.id), false).is_none());
        for (gate, place) in &self.discovered {
            if let Some(inspection) = place.resolve(found(place.id), false) {
                all.add(inspection, gate.clone());
            }
        }
        all
    }

    pub fn add(&mut self, inspection: Inspection, gate: PortGate) {
        match inspection {
            Inspection::Tls => self.tls = Some(gate),
            Inspection::Http => self.http = Some(gate),
            Inspection::OriginalDst => self.original_dst = Some(gate),
            Inspection::ProxyProtocol(filter) => self.proxy_protocol = Some((gate, filter)),
            // Before the PROXY protocol is read, the caller is whoever connected.
            Inspection::OriginalSrc(settings) => {
                self.original_src = Some((gate, OriginalSrc { direct: self.proxy_protocol.is_none(), ..settings }));
            }
            Inspection::RateLimit(limit) => self.rate_limits.push((gate, limit)),
            Inspection::Nothing => {}
        }
    }
}

/// Envoy `OriginalSrc`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OriginalSrc {
    /// Also from its port.
    pub bind_port: bool,
    /// `SO_MARK` of those connections, so that answers can be routed back to us.
    pub mark: Option<u32>,
    /// The address is that of whoever connected, not one that a PROXY protocol header tells.
    pub direct: bool,
}

/// Ports on which a listener filter is switched off (Envoy `filter_disabled`, whose rules all go by the destination's port).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PortGate {
    /// In order, apart from each other.
    pub disabled: Vec<std::ops::RangeInclusive<u16>>,
}

impl PortGate {
    pub fn applies_to(&self, port: u16) -> bool {
        !self.disabled.iter().any(|r| r.contains(&port))
    }
}

/// Connections that are let in, by a bucket that all workers share (Envoy's listener and network `LocalRateLimit`).
#[derive(Debug)]
pub struct ConnectionRateLimit {
    pub stat_prefix: Arc<str>,
    pub bucket: TokenBucket,
}

impl ConnectionRateLimit {
    /// The same limit of other connections.
    pub(crate) fn anew(&self) -> Self {
        Self { stat_prefix: Arc::clone(&self.stat_prefix), bucket: self.bucket.fresh() }
    }
}

/// What is known of a connection when its chain is chosen.
#[derive(Clone, Debug)]
pub struct ConnectionInfo {
    /// The (original) destination.
    pub destination: SocketAddr,
    pub source: SocketAddr,
    /// The peer as seen by the socket, before PROXY protocol.
    pub direct_source: SocketAddr,
    pub server_name: Option<Arc<str>>,
    /// ALPN protocols of a ClientHello, or what the HTTP inspector found (`http/1.0`, `http/1.1`, `h2c`).
    pub application_protocols: Vec<Arc<[u8]>>,
    /// `tls` or `raw_buffer`.
    pub transport_protocol: &'static str,
}

/// One filter chain.
#[derive(Clone, Debug)]
pub struct FilterChain {
    pub name: Arc<str>,
    pub criteria: ChainCriteria,
    /// `None` for plaintext.
    pub tls: Option<Arc<ServerTls>>,
    /// Time for the TLS handshake; `None` is unlimited (we cap it, see the listener shell).
    pub transport_connect_timeout: Option<Duration>,
    /// Filters before the terminal one, in order.
    pub filters: Vec<NetworkFilter>,
    pub terminal: Terminal,
}

impl FilterChain {
    /// What is discovered of its filters.
    pub fn discovered(&self) -> impl Iterator<Item = ExtensionId> {
        let before = self.filters.iter().filter_map(|f| if let NetworkFilter::Discovered(d) = f { Some(d.id) } else { None });
        before.chain(if let Terminal::Discovered(d) = &self.terminal { Some(d.id) } else { None })
    }

    /// The chain with filters in the places of those that are discovered, where there are any.
    pub fn resolve<'a>(&self, found: impl Fn(ExtensionId) -> Option<&'a Extension>, source: bool) -> Self {
        let mut chain = self.clone();
        for filter in &mut chain.filters {
            if let NetworkFilter::Discovered(place) = filter
                && let Some(now) = place.resolve(found(place.id), source)
            {
                *filter = now;
            }
        }
        if let Terminal::Discovered(place) = &chain.terminal
            && let Some(now) = place.resolve(found(place.id), source)
        {
            chain.terminal = now;
        }
        chain
    }
}

/// Envoy `FilterChainMatch`; empty lists match everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainCriteria {
    pub destination_port: Option<u16>,
    pub prefix_ranges: Vec<crate::matcher::Cidr>,
    pub server_names: Vec<Arc<str>>,
    /// `tls`, `raw_buffer`, or empty for any.
    pub transport_protocol: Arc<str>,
    pub application_protocols: Vec<Arc<[u8]>>,
    pub direct_source_prefix_ranges: Vec<crate::matcher::Cidr>,
    pub source_type: SourceType,
    pub source_prefix_ranges: Vec<crate::matcher::Cidr>,
    pub source_ports: Vec<u16>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourceType {
    #[default]
    Any,
    SameIpOrLoopback,
    External,
}

/// A network filter that runs before the terminal one.
#[derive(Clone, Debug)]
pub enum NetworkFilter {
    /// Istio's TCP metadata exchange: ALPN `istio-peer-exchange`.
    MetadataExchange,
    /// Takes the cluster from the SNI.
    SniCluster,
    /// Has the name resolved that is in the SNI; connections go to this port.
    SniDynamicForwardProxy(Arc<DnsCache>, u16),
    Rbac(Arc<crate::matcher::Rbac>),
    ConnectionLimit(Arc<ConnectionLimit>),
    LocalRateLimit(Arc<ConnectionRateLimit>),
    ExtAuthz(Arc<crate::connection_services::ConnectionAuthorization>),
    RateLimit(Arc<crate::connection_services::ConnectionQuota>),
    SetState(Arc<[StateValue]>),
    /// Istio's TCP statistics.
    IstioStats(Arc<crate::http::IstioStats>),
    /// Stands for what a connection is given instead, unless there is nothing.
    Discovered(Arc<DiscoveredFilter<NetworkFilter>>),
}

/// How many connections a chain may have at once, counted for all workers.
#[derive(Debug)]
pub struct ConnectionLimit {
    pub stat_prefix: Arc<str>,
    max: u64,
    open: AtomicU64,
}

impl ConnectionLimit {
    pub fn new(stat_prefix: Arc<str>, max: u64) -> Self {
        Self { stat_prefix, max, open: AtomicU64::new(0) }
    }

    /// The same limit of other connections.
    pub(crate) fn anew(&self) -> Self {
        Self::new(Arc::clone(&self.stat_prefix), self.max)
    }

    /// Counts a connection, till [`Self::release`]; false where there are as many as there may be.
    pub fn take(&self) -> bool {
        self.open.fetch_update(Relaxed, Relaxed, |open| (open < self.max).then_some(open + 1)).is_ok()
    }

    pub fn release(&self) {
        self.open.fetch_sub(1, Relaxed);
    }
}

/// What a connection is told before the TCP proxy has it (Envoy `set_filter_state`, its well-known keys).
#[derive(Debug)]
pub struct StateValue {
    pub key: StateKey,
    /// With `%COMMAND%`s.
    pub format: Arc<str>,
    /// An empty value changes nothing.
    pub skip_if_empty: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StateKey {
    /// The cluster, instead of the configured one.
    Cluster,
    /// The server name that is asked for upstream.
    ServerName,
    /// In milliseconds; 0 for none.
    IdleTimeout,
    /// `true`: bytes go upstream as they are.
    DisableTunneling,
}

/// What consumes the connection.
#[derive(Clone, Debug)]
pub enum Terminal {
    Http(Arc<HttpConnectionManager>),
    Tcp(Arc<TcpProxy>),
    /// Writes these bytes and closes.
    DirectResponse(Bytes),
    Echo,
    /// Stands for what a connection is given instead, unless there is nothing.
    Discovered(Arc<DiscoveredFilter<Terminal>>),
}

/// Envoy `TcpProxy`.
#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    /// One entry for a plain cluster.
    pub clusters: Vec<TcpCluster>,
    /// How long a connection waits for a cluster that is not there yet; `None` not at all.
    pub on_demand: Option<Duration>,
    /// Envoy's default is 1 h; `None` is unlimited.
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// How much longer a connection may last at random, as a share of that duration.
    pub max_duration_jitter: Fraction,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// Base and maximum of the waits between attempts; without it there are none.
    pub backoff: Option<(Duration, Duration)>,
    /// Consistent load balancing goes by the caller's address.
    pub hash_source_ip: bool,
    /// The host is dialled only when the caller has sent something.
    pub waits_for_data: bool,
    /// A drain of the listener closes connections once their callers have been sent something more.
    pub closes_when_draining: bool,
    pub tunnel: Option<TcpTunnel>,
    /// What a PROXY protocol header upstream tells beside what the caller told.
    pub more_tlvs: Option<MoreTlvs>,
    pub access_logs: Vec<Arc<crate::http::AccessLog>>,
    pub log_times: LogTimes,
}

/// When a connection is logged beside its end (Envoy `TcpAccessLogOptions`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogTimes {
    pub on_start: bool,
    pub on_connected: bool,
    pub every: Option<Duration>,
}

/// TCP inside a CONNECT or POST to an HTTP upstream (Envoy `TunnelingConfig`).
#[derive(Debug)]
pub struct TcpTunnel {
    /// The host and port that the tunnel is for; may hold `%COMMAND%`s.
    pub hostname: HeaderTemplate,
    /// A POST to this path instead of a CONNECT.
    pub post_path: Option<Box<str>>,
    pub headers: HeaderMutations,
    /// The answer's headers and trailers are kept for the log.
    pub keeps_headers: bool,
    pub keeps_trailers: bool,
}

/// Where a TCP proxy's connections go.
#[derive(Debug)]
pub struct TcpCluster {
    pub id: ClusterId,
    /// Cumulative weight.
    pub bound: u32,
    /// What the host's subset must be.
    pub metadata_match: Option<Arc<lateen_balance::Criteria>>,
}
