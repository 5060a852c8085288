//! Filters and connection managers that every listener is put together from, in Istio's order.
use lateen_proto::envoy::extensions::filters::http as http_filters;
use lateen_proto::envoy::extensions::filters::listener as listener_filters;
use lateen_proto::envoy::tcp::metadataexchange::config::MetadataExchange;
use lateen_proto::io::istio::http::peer_metadata;
use lateen_proto::istio::envoy::config::filter::http::alpn::v2alpha1 as alpn;
use lateen_proto::stats::PluginConfig;

use super::access_log;
use crate::view::{Capabilities, ProxyView};
use crate::wire::{self, Any, any, core_v3, hcm_v3, listener_v3, route_v3, tcp_v3};
use crate::world::mesh::{Mesh, PathNormalization};
use crate::world::protocol::Protocol;

/// On which side of which proxy a listener stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    SidecarInbound,
    SidecarOutbound,
    Gateway,
}

/// Where a connection manager has its routes from.
pub(crate) enum Routes {
    Rds(String),
    Inline(Box<route_v3::RouteConfiguration>),
}

/// What distinguishes one connection manager from another.
pub(crate) struct HttpOptions {
    pub(crate) class: Class,
    pub(crate) stat_prefix: String,
    pub(crate) routes: Routes,
    pub(crate) protocol: Protocol,
    /// Proxies in front of a gateway whose `x-forwarded-for` entries are trusted.
    pub(crate) trusted_hops: u32,
}

const ROUTER: &str = "envoy.filters.http.router";
const HCM: &str = "envoy.filters.network.http_connection_manager";
const TCP_PROXY: &str = "envoy.filters.network.tcp_proxy";
const METADATA_EXCHANGE: &str = "istio.metadata_exchange";
const STATS: &str = "istio.stats";
const PEER_EXCHANGE: &str = "istio-peer-exchange";

pub(crate) const FAULT: &str = "envoy.filters.http.fault";
pub(crate) const CORS: &str = "envoy.filters.http.cors";

fn http_filter(name: &str, config: Any) -> hcm_v3::HttpFilter {
    hcm_v3::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm_v3::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub(crate) fn network_filter(name: &str, config: Any) -> listener_v3::Filter {
    listener_v3::Filter { name: name.to_owned(), config_type: Some(listener_v3::filter::ConfigType::TypedConfig(config)) }
}

fn listener_filter(name: &str, config: Any) -> listener_v3::ListenerFilter {
    listener_v3::ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_v3::listener_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// Finds where a redirected connection was going.
pub(crate) fn original_dst() -> listener_v3::ListenerFilter {
    listener_filter("envoy.filters.listener.original_dst", any(&listener_filters::original_dst::v3::OriginalDst::default()))
}

/// Keeps the caller's address under TPROXY; 1337 is the mark that capture rules let pass.
pub(crate) fn original_src() -> listener_v3::ListenerFilter {
    let config = listener_filters::original_src::v3::OriginalSrc { mark: 1337, ..Default::default() };
    listener_filter("envoy.filters.listener.original_src", any(&config))
}

/// Reads SNI and ALPN of a client hello.
pub(crate) fn tls_inspector() -> listener_v3::ListenerFilter {
    let config = listener_filters::tls_inspector::v3::TlsInspector { initial_read_buffer_size: Some(512), ..Default::default() };
    listener_filter("envoy.filters.listener.tls_inspector", any(&config))
}

/// Tells HTTP from anything else by the first bytes.
pub(crate) fn http_inspector() -> listener_v3::ListenerFilter {
    listener_filter("envoy.filters.listener.http_inspector", any(&listener_filters::http_inspector::v3::HttpInspector::default()))
}

/// The HTTP filters of a connection manager, the router last.
fn http_filter_chain(class: Class, protocol: Protocol, can: Capabilities) -> Vec<hcm_v3::HttpFilter> {
    let mut filters = Vec::with_capacity(8);
    if can.metadata_exchange {
        filters.push(http_filter(METADATA_EXCHANGE, peer_metadata_config(class)));
    }
    if protocol == Protocol::GrpcWeb {
        filters.push(http_filter("envoy.filters.http.grpc_web", any(&http_filters::grpc_web::v3::GrpcWeb::default())));
    }
    filters.push(http_filter("envoy.filters.http.grpc_stats", grpc_stats()));
    if can.alpn && class != Class::SidecarInbound {
        filters.push(http_filter("istio.alpn", alpn_overrides()));
    }
    // Routes carry settings for these two, so they must be there even where no route uses them.
    filters.push(http_filter(FAULT, any(&http_filters::fault::v3::HttpFault::default())));
    filters.push(http_filter(CORS, any(&http_filters::cors::v3::Cors::default())));
    if can.stats {
        filters.push(http_filter(STATS, any(&stats(class))));
    }
    filters.push(http_filter(ROUTER, any(&http_filters::router::v3::Router::default())));
    filters
}

fn grpc_stats() -> Any {
    use http_filters::grpc_stats::v3::{FilterConfig, filter_config::PerMethodStatSpecifier};
    any(&FilterConfig {
        emit_filter_state: true,
        per_method_stat_specifier: Some(PerMethodStatSpecifier::StatsForAllMethods(false)),
        ..Default::default()
    })
}

/// What the client side offers instead of the cluster's ALPN, by the protocol it speaks upstream.
fn alpn_overrides() -> Any {
    use alpn::filter_config::{AlpnOverride, Protocol};
    let offer = |protocol: Protocol, names: [&str; 3]| AlpnOverride {
        upstream_protocol: protocol as i32,
        alpn_override: names.map(str::to_owned).to_vec(),
    };
    any(&alpn::FilterConfig {
        alpn_override: vec![
            offer(Protocol::Http10, ["istio-http/1.0", "istio", "http/1.0"]),
            offer(Protocol::Http11, ["istio-http/1.1", "istio", "http/1.1"]),
            offer(Protocol::Http2, ["istio-h2", "istio", "h2"]),
        ],
    })
}

fn peer_metadata_config(class: Class) -> Any {
    use peer_metadata::config::{
        DiscoveryMethod, IstioHeaders, PropagationMethod, WorkloadDiscovery, discovery_method, propagation_method,
    };
    let discovery = vec![
        DiscoveryMethod { method_specifier: Some(discovery_method::MethodSpecifier::IstioHeaders(IstioHeaders::default())) },
        DiscoveryMethod { method_specifier: Some(discovery_method::MethodSpecifier::WorkloadDiscovery(WorkloadDiscovery {})) },
    ];
    let propagation =
        vec![PropagationMethod { method_specifier: Some(propagation_method::MethodSpecifier::IstioHeaders(IstioHeaders::default())) }];
    any(&match class {
        Class::SidecarInbound => {
            peer_metadata::Config { downstream_discovery: discovery, downstream_propagation: propagation, ..Default::default() }
        }
        _ => peer_metadata::Config { upstream_discovery: discovery, upstream_propagation: propagation, ..Default::default() },
    })
}

/// Inbound and at gateways the `Host` header is the caller's word and no name for a metric.
fn stats(class: Class) -> PluginConfig {
    PluginConfig { disable_host_header_fallback: class != Class::SidecarOutbound, ..Default::default() }
}

/// The metadata exchange of raw TCP connections between mesh peers.
pub(crate) fn tcp_metadata_exchange() -> Any {
    any(&MetadataExchange { protocol: PEER_EXCHANGE.to_owned(), enable_discovery: true, ..Default::default() })
}

/// The network filters that precede the last one of a chain.
pub(crate) fn leading_network_filters(class: Class, can: Capabilities, with_stats: bool) -> Vec<listener_v3::Filter> {
    let mut filters = Vec::with_capacity(2);
    if can.metadata_exchange && class == Class::SidecarInbound {
        filters.push(network_filter(METADATA_EXCHANGE, tcp_metadata_exchange()));
    }
    if can.stats && with_stats {
        filters.push(network_filter(STATS, any(&stats(class))));
    }
    filters
}

/// The TCP proxy, after statistics and metadata exchange where the client has them.
pub(crate) fn tcp_chain(mesh: &Mesh, view: &ProxyView, class: Class, mut proxy: tcp_v3::TcpProxy) -> Vec<listener_v3::Filter> {
    if proxy.idle_timeout.is_none() {
        proxy.idle_timeout = view.idle_timeout.map(wire::duration);
    }
    proxy.access_log = access_log::always(mesh);
    let mut filters = leading_network_filters(class, view.capabilities, true);
    filters.push(network_filter(TCP_PROXY, any(&proxy)));
    filters
}

/// A TCP proxy to one cluster.
pub(crate) fn tcp_proxy_to(cluster: &str) -> tcp_v3::TcpProxy {
    tcp_v3::TcpProxy {
        stat_prefix: cluster.to_owned(),
        cluster_specifier: Some(tcp_v3::tcp_proxy::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

/// A chain's filters when it ends in the cluster that refuses everything.
pub(crate) fn black_hole_chain(view: &ProxyView, class: Class) -> Vec<listener_v3::Filter> {
    let mut filters = leading_network_filters(class, view.capabilities, true);
    filters.push(network_filter(TCP_PROXY, any(&tcp_proxy_to(crate::names::BLACK_HOLE))));
    filters
}

/// A chain's filters when it speaks HTTP.
pub(crate) fn http_chain(mesh: &Mesh, view: &ProxyView, options: HttpOptions) -> Vec<listener_v3::Filter> {
    let mut filters = leading_network_filters(options.class, view.capabilities, false);
    filters.push(network_filter(HCM, any(&connection_manager(mesh, view, options))));
    filters
}

fn connection_manager(mesh: &Mesh, view: &ProxyView, options: HttpOptions) -> hcm_v3::HttpConnectionManager {
    use hcm_v3::http_connection_manager as hcm;
    let (normalize_path, merge_slashes, escaped) = path_settings(mesh.path_normalization);
    let class = options.class;
    let mut manager = hcm_v3::HttpConnectionManager {
        stat_prefix: options.stat_prefix,
        http_filters: http_filter_chain(class, options.protocol, view.capabilities),
        // Envoy's own name on the outbound side, Istio's on the others: dashboards and clients look for it.
        server_name: if class == Class::SidecarOutbound { String::new() } else { "istio-envoy".to_owned() },
        normalize_path: Some(normalize_path),
        merge_slashes,
        path_with_escaped_slashes_action: escaped as i32,
        use_remote_address: Some(class == Class::Gateway),
        upgrade_configs: vec![hcm::UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        stream_idle_timeout: Some(wire::zero()),
        access_log: access_log::always(mesh),
        proxy_100_continue: true,
        route_specifier: Some(route_specifier(options.routes)),
        ..Default::default()
    };
    if let Some(timeout) = view.idle_timeout {
        manager.common_http_protocol_options =
            Some(core_v3::HttpProtocolOptions { idle_timeout: Some(wire::duration(timeout)), ..Default::default() });
    }
    if view.http10 || class == Class::Gateway {
        manager.http_protocol_options = Some(core_v3::Http1ProtocolOptions { accept_http_10: view.http10, ..Default::default() });
    }
    match class {
        Class::SidecarInbound => {
            manager.forward_client_cert_details = hcm::ForwardClientCertDetails::AppendForward as i32;
            manager.set_current_client_cert_details = Some(client_cert_details(false));
            if options.protocol.is_http2() {
                manager.http2_protocol_options = Some(core_v3::Http2ProtocolOptions::default());
            }
        }
        Class::SidecarOutbound => {}
        Class::Gateway => {
            manager.forward_client_cert_details = hcm::ForwardClientCertDetails::SanitizeSet as i32;
            manager.set_current_client_cert_details = Some(client_cert_details(true));
            manager.xff_num_trusted_hops = options.trusted_hops;
        }
    }
    manager
}

fn client_cert_details(cert: bool) -> hcm_v3::http_connection_manager::SetCurrentClientCertDetails {
    hcm_v3::http_connection_manager::SetCurrentClientCertDetails { subject: Some(true), cert, dns: true, uri: true, ..Default::default() }
}

fn path_settings(mode: PathNormalization) -> (bool, bool, hcm_v3::http_connection_manager::PathWithEscapedSlashesAction) {
    use hcm_v3::http_connection_manager::PathWithEscapedSlashesAction as Escaped;
    match mode {
        PathNormalization::None => (false, false, Escaped::KeepUnchanged),
        PathNormalization::Base => (true, false, Escaped::KeepUnchanged),
        PathNormalization::MergeSlashes => (true, true, Escaped::KeepUnchanged),
        PathNormalization::DecodeAndMergeSlashes => (true, true, Escaped::UnescapeAndForward),
    }
}

fn route_specifier(routes: Routes) -> hcm_v3::http_connection_manager::RouteSpecifier {
    use hcm_v3::http_connection_manager::RouteSpecifier;
    match routes {
        Routes::Rds(name) => RouteSpecifier::Rds(hcm_v3::Rds { config_source: Some(wire::ads()), route_config_name: name }),
        Routes::Inline(config) => RouteSpecifier::RouteConfig(*config),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(class: Class, can: Capabilities) -> Vec<String> {
        http_filter_chain(class, Protocol::Http, can).into_iter().map(|filter| filter.name).collect()
    }

    #[test]
    fn filters_stand_in_istios_order() {
        let all = Capabilities { alpn: true, stats: true, metadata_exchange: true };
        assert_eq!(
            names(Class::SidecarOutbound, all),
            [METADATA_EXCHANGE, "envoy.filters.http.grpc_stats", "istio.alpn", FAULT, CORS, STATS, ROUTER]
        );
        assert_eq!(names(Class::SidecarInbound, all), [METADATA_EXCHANGE, "envoy.filters.http.grpc_stats", FAULT, CORS, STATS, ROUTER]);
    }

    #[test]
    fn a_stock_envoy_gets_only_its_own_filters() {
        assert_eq!(names(Class::SidecarOutbound, Capabilities::default()), ["envoy.filters.http.grpc_stats", FAULT, CORS, ROUTER]);
    }
}
