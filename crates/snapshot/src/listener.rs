//! Listeners: where connections come in, how their chain is chosen, what the chain does.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::ClusterId;
use crate::dns::cache::DnsCache;
use crate::http::HttpConnectionManager;
use crate::proxy_protocol::{MoreTlvs, ProxyProtocolFilter};
use crate::socket::SocketOption;
use crate::tls::ServerTls;

/// Envoy `traffic_direction`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Direction {
    #[default]
    Unspecified,
    Inbound,
    Outbound,
}

/// A listener (Envoy listener.proto).
#[derive(Debug)]
pub struct Listener {
    pub name: Arc<str>,
    /// The address, then the additional addresses.
    pub addresses: Vec<SocketAddr>,
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
    pub inspectors: Inspectors,
    /// In the order of the resource; see [`ChainIndex`](crate::chain::ChainIndex) for the matching rules.
    pub chains: Vec<Arc<FilterChain>>,
    pub default_chain: Option<Arc<FilterChain>>,
    /// Finds the chain of a connection; made from `chains` by [`ChainIndex::build`](crate::chain::ChainIndex::build).
    pub index: crate::chain::ChainIndex,
    /// Socket options to set on the listening socket: (level, name, value).
    pub socket_options: Vec<SocketOption>,
    pub tcp_backlog: u32,
    /// Soft limit on bytes buffered per connection (Envoy default 1 MiB).
    pub per_connection_buffer_limit: u32,
    /// Logs of connections that matched no chain.
    pub access_logs: Vec<Arc<crate::http::AccessLog>>,
    pub stat_prefix: Arc<str>,
}

/// What is looked at before a chain is chosen (Envoy listener filters).
#[derive(Debug, Default)]
pub struct Inspectors {
    pub original_dst: bool,
    pub tls: Option<PortGate>,
    pub http: Option<PortGate>,
    pub proxy_protocol: Option<Arc<ProxyProtocolFilter>>,
    /// Connections to hosts come from the caller's address.
    pub original_src: Option<OriginalSrc>,
    /// How long inspection may wait for bytes; `None` waits for ever. Envoy's default is 15 s.
    pub timeout: Option<Duration>,
    /// On timeout go on with what is known (server-first protocols) instead of closing.
    pub continue_on_timeout: bool,
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

/// Ports on which a listener filter is switched off (Envoy `filter_disabled` by destination port).
#[derive(Clone, Debug, Default)]
pub struct PortGate {
    pub disabled_ports: Vec<std::ops::Range<u16>>,
    pub always_disabled: bool,
}

impl PortGate {
    pub fn applies_to(&self, port: u16) -> bool {
        !self.always_disabled && !self.disabled_ports.iter().any(|r| r.contains(&port))
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
#[derive(Debug)]
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
#[derive(Debug)]
pub enum NetworkFilter {
    /// Istio's TCP metadata exchange: ALPN `istio-peer-exchange`.
    MetadataExchange,
    /// Takes the cluster from the SNI.
    SniCluster,
    /// Has the name resolved that is in the SNI; connections go to this port.
    SniDynamicForwardProxy(Arc<DnsCache>, u16),
    Rbac(Arc<crate::matcher::Rbac>),
    ConnectionLimit {
        max: u64,
    },
    /// Istio's TCP statistics.
    IstioStats(Arc<crate::http::IstioStats>),
}

/// What consumes the connection.
#[derive(Debug)]
pub enum Terminal {
    Http(Arc<HttpConnectionManager>),
    Tcp(Arc<TcpProxy>),
    /// Writes these bytes and closes.
    DirectResponse(Bytes),
    Echo,
}

/// Envoy `TcpProxy`.
#[derive(Debug)]
pub struct TcpProxy {
    pub stat_prefix: Arc<str>,
    /// Cluster and cumulative weight; one entry for a plain cluster.
    pub clusters: Vec<(ClusterId, u32)>,
    /// Envoy's default is 1 h; `None` is unlimited.
    pub idle_timeout: Option<Duration>,
    pub max_downstream_connection_duration: Option<Duration>,
    /// Default 1.
    pub max_connect_attempts: u32,
    /// Consistent load balancing goes by the caller's address.
    pub hash_source_ip: bool,
    /// What a PROXY protocol header upstream tells beside what the caller told.
    pub more_tlvs: Option<MoreTlvs>,
    pub access_logs: Vec<Arc<crate::http::AccessLog>>,
}
