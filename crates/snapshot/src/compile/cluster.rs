//! Clusters: discovery, protocol, limits, outlier detection, transport sockets, health checks.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::{Limits, Locality, OutlierSettings};
use lateen_proto::envoy::config::cluster::v3::{self as proto, cluster};
use lateen_proto::envoy::config::core::v3::{self as core, health_check};
use lateen_proto::envoy::config::endpoint::v3 as endpoints;
use lateen_proto::envoy::extensions::clusters::dns::v3 as dns;
use lateen_proto::envoy::extensions::transport_sockets as sockets;
use lateen_proto::envoy::extensions::upstreams::http::v3::{self as http, http_protocol_options as http_options};
use lateen_proto::{Any, any};

use super::balance::{self, Fields};
use super::common::{duration, duration_or, limit, open, port, socket, socket_options, struct_json};
use super::context::Context;
use super::endpoint::{Assignment, EndpointAddress, assignment};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{hcm, source, tls};
use crate::cluster::{
    ClusterConfig, Discovery, DnsFamily, DnsTarget, DnsTargets, HealthCheck, HealthCheckKind, IstioService, ProxyProtocolVersion,
    TcpKeepalive, Transport, UpstreamHttp,
};

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const TCP_OPTIONS: &str = "envoy.extensions.upstreams.tcp.v3.TcpProtocolOptions";

/// A cluster ready to be put to use.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) config: Arc<ClusterConfig>,
    /// The members given with the cluster itself.
    pub(crate) members: Assignment,
    /// Metadata that an endpoint must have for the transport socket of the same index.
    pub(crate) matches: Arc<Vec<prost_types::Struct>>,
}

impl Compiled {
    /// The transport socket for an endpoint with this metadata: the first that matches, else the default, which is last.
    pub(crate) fn transport(&self, metadata: Option<&prost_types::Struct>) -> u32 {
        let matches =
            |wanted: &prost_types::Struct| wanted.fields.iter().all(|(key, value)| metadata.and_then(|m| m.fields.get(key)) == Some(value));
        let index = self.matches.iter().position(matches).unwrap_or(self.matches.len());
        u32::try_from(index).unwrap_or(u32::MAX)
    }
}

pub(crate) fn cluster(value: proto::Cluster, context: &mut Context<'_>) -> Result<Compiled> {
    let proto::Cluster {
        transport_socket_matches,
        transport_socket_matcher,
        name,
        alt_stat_name,
        stats_matcher,
        eds_cluster_config,
        connect_timeout,
        per_connection_buffer_limit_bytes,
        per_connection_buffer_high_watermark_timeout,
        lb_policy,
        load_assignment,
        health_checks,
        max_requests_per_connection,
        circuit_breakers,
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        typed_extension_protocol_options,
        dns_refresh_rate,
        dns_jitter,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_lookup_family,
        dns_resolvers,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        wait_for_warm_on_init,
        outlier_detection,
        cleanup_interval,
        upstream_bind_config,
        lb_subset_config,
        common_lb_config,
        transport_socket,
        metadata,
        protocol_selection,
        upstream_connection_options,
        close_connections_on_host_health_failure,
        ignore_health_on_host_removal,
        filters,
        load_balancing_policy,
        lrs_server,
        lrs_report_endpoint_metrics,
        track_timeout_budgets,
        upstream_config,
        track_cluster_stats,
        preconnect_policy,
        connection_pool_per_downstream_connection,
        queuing_policies,
        cluster_discovery_type,
        lb_config,
    } = value;
    // Statistics, jitter and buffers: nothing a caller can see. A removed host goes at once in any case.
    harmless!(stats_matcher, per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout, dns_jitter);
    harmless!(dns_failure_refresh_rate, wait_for_warm_on_init, cleanup_interval, ignore_health_on_host_removal);
    harmless!(track_timeout_budgets, track_cluster_stats, lrs_report_endpoint_metrics);
    refuse!(transport_socket_matcher, dns_resolvers, use_tcp_for_dns_lookups, lb_subset_config, lrs_server);
    refuse!(upstream_config, preconnect_policy, connection_pool_per_downstream_connection, queuing_policies);
    resolver(dns_resolution_config, typed_dns_resolver_config)?;
    upstream_filters(filters)?;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty; every cluster needs a name"));
    }
    let old = OldHttp {
        upstream_http_protocol_options,
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        protocol_selection,
    };
    let http = http_settings(typed_extension_protocol_options, old, max_requests_per_connection)?;
    let (transports, matches) = transports(transport_socket_matches, transport_socket, &http, context)?;
    let dns = Dns { rate: dns_refresh_rate, respect_ttl: respect_dns_ttl, family: dns_lookup_family };
    let (kind, dns) = kind(cluster_discovery_type, dns)?;
    let is_original_dst = kind == cluster::DiscoveryType::OriginalDst;
    let original_dst = match &lb_config {
        Some(cluster::LbConfig::OriginalDstLbConfig(c)) => original_dst(c).within("original_dst_lb_config")?,
        _ => false,
    };
    let balance = balance::balance(Fields { lb_policy, lb_config, common_lb_config, load_balancing_policy, is_original_dst })?;
    let mut settings = balance.settings;
    let members = load_assignment.map_or_else(|| Ok(Assignment::default()), assignment).within("load_assignment")?;
    if let Some(percent) = members.overprovisioning_percent {
        settings.overprovisioning_percent = percent;
    }
    let shell = |transport| u32::try_from(transport).unwrap_or(u32::MAX);
    let discovery = discovery(kind, &name, eds_cluster_config, &members, &dns, original_dst, shell(matches.len()), &matches)?;
    let connection = upstream_connection_options.map(connection_options).transpose().within("upstream_connection_options")?.flatten();
    let (bind_sources, socket_options) = bind(upstream_bind_config).within("upstream_bind_config")?;
    let checks = health_checks
        .into_iter()
        .enumerate()
        .map(|(i, h)| active_check(h, &name).within_item("health_checks", i))
        .collect::<Result<_>>()?;
    let config = ClusterConfig {
        stat_name: if alt_stat_name.is_empty() { name.as_str().into() } else { alt_stat_name.into() },
        discovery,
        balance: settings,
        connect_timeout: duration_or(connect_timeout.as_ref(), Duration::from_secs(5), "connect_timeout")?,
        http: http.version,
        idle_timeout: http.idle_timeout,
        max_connection_duration: http.max_connection_duration,
        max_requests_per_connection: http.max_requests_per_connection,
        limits: limits(circuit_breakers).within("circuit_breakers")?,
        outlier: outlier_detection.map(outlier).transpose().within("outlier_detection")?,
        transports,
        tcp_keepalive: connection,
        bind_sources,
        socket_options,
        health_checks: checks,
        close_connections_on_host_health_failure,
        drain_on_host_removal: balance.close_on_membership_change,
        istio_service: istio_service(metadata.as_ref()),
        name: name.into(),
    };
    Ok(Compiled { config: Arc::new(config), members, matches: Arc::new(matches) })
}

/// Names are looked up by the system's resolver, which is what the default resolver extensions do as well.
fn resolver(dns_resolution_config: Option<core::DnsResolutionConfig>, typed: Option<core::TypedExtensionConfig>) -> Result<()> {
    refuse!(dns_resolution_config);
    let Some(core::TypedExtensionConfig { name, typed_config }) = typed else { return Ok(()) };
    let has_settings = typed_config.as_ref().is_some_and(|c| any::name_of(&c.type_url).contains("cares") && !c.value.is_empty());
    if has_settings {
        return Err(Invalid::field(
            "typed_dns_resolver_config",
            format!("{name}: settings of the resolver are not supported; leave it out"),
        ));
    }
    Ok(())
}

/// Istio's TCP metadata exchange is negotiated per connection; as an upstream filter it has no settings that matter.
fn upstream_filters(filters: Vec<proto::Filter>) -> Result<()> {
    for (index, proto::Filter { name, typed_config, config_discovery }) in filters.into_iter().enumerate() {
        let known = typed_config.as_ref().is_some_and(|c| super::istio::type_name(c) == super::istio::METADATA_EXCHANGE);
        if !known || config_discovery.is_some() {
            return Err(Invalid::new(format!("{name} is not supported"))).within_item("filters", index);
        }
    }
    Ok(())
}

struct Dns {
    rate: Option<lateen_proto::Duration>,
    respect_ttl: bool,
    family: i32,
}

fn kind(value: Option<cluster::ClusterDiscoveryType>, dns: Dns) -> Result<(cluster::DiscoveryType, Dns)> {
    match value {
        None => Ok((cluster::DiscoveryType::Static, dns)),
        Some(cluster::ClusterDiscoveryType::Type(number)) => match cluster::DiscoveryType::try_from(number) {
            Ok(kind) => Ok((kind, dns)),
            Err(_) => Err(Invalid::field("type", format!("{number} is not known"))),
        },
        Some(cluster::ClusterDiscoveryType::ClusterType(cluster::CustomClusterType { name, typed_config })) => match typed_config {
            Some(config) if any::is::<dns::DnsCluster>(&config) => {
                dns_cluster(open(&config).within("cluster_type")?).within("cluster_type")
            }
            _ => Err(Invalid::field("cluster_type", format!("{name} is not supported"))),
        },
    }
}

fn dns_cluster(value: dns::DnsCluster) -> Result<(cluster::DiscoveryType, Dns)> {
    use lateen_proto::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as New;
    let dns::DnsCluster {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        respect_dns_ttl,
        dns_jitter,
        typed_dns_resolver_config,
        dns_lookup_family,
        all_addresses_in_single_endpoint,
        dns_min_refresh_rate,
    } = value;
    harmless!(dns_failure_refresh_rate, dns_jitter, dns_min_refresh_rate);
    resolver(None, typed_dns_resolver_config)?;
    let family = match New::try_from(dns_lookup_family) {
        Ok(New::Unspecified | New::Auto) => cluster::DnsLookupFamily::Auto,
        Ok(New::V4Only) => cluster::DnsLookupFamily::V4Only,
        Ok(New::V6Only) => cluster::DnsLookupFamily::V6Only,
        Ok(New::V4Preferred) => cluster::DnsLookupFamily::V4Preferred,
        Ok(New::All) => cluster::DnsLookupFamily::All,
        Err(_) => return Err(Invalid::field("dns_lookup_family", "is not known")),
    };
    let kind = if all_addresses_in_single_endpoint { cluster::DiscoveryType::LogicalDns } else { cluster::DiscoveryType::StrictDns };
    Ok((kind, Dns { rate: dns_refresh_rate, respect_ttl: respect_dns_ttl, family: family as i32 }))
}

fn original_dst(value: &cluster::OriginalDstLbConfig) -> Result<bool> {
    let cluster::OriginalDstLbConfig { use_http_header, http_header_name, upstream_port_override, metadata_key } = value;
    refuse!(http_header_name, upstream_port_override, metadata_key);
    Ok(*use_http_header)
}

#[allow(clippy::too_many_arguments)]
fn discovery(
    kind: cluster::DiscoveryType,
    name: &str,
    eds: Option<cluster::EdsClusterConfig>,
    members: &Assignment,
    dns: &Dns,
    use_header: bool,
    default_transport: u32,
    matches: &[prost_types::Struct],
) -> Result<Discovery> {
    use cluster::DiscoveryType;
    let named = members.localities.iter().flat_map(|l| &l.endpoints).find_map(|e| match &e.at {
        EndpointAddress::Name(name, _) => Some(name),
        EndpointAddress::Fixed(_) => None,
    });
    match kind {
        DiscoveryType::Static => match named {
            Some(host) => Err(Invalid::field("load_assignment", format!("`{host}` is not an IP address; use type STRICT_DNS for names"))),
            None => Ok(Discovery::Static),
        },
        DiscoveryType::Eds => {
            let cluster::EdsClusterConfig { eds_config, service_name } =
                eds.ok_or_else(|| Invalid::field("eds_cluster_config", "is missing"))?;
            source::ads_only(eds_config).within("eds_cluster_config.eds_config")?;
            Ok(Discovery::Eds(if service_name.is_empty() { name.into() } else { service_name.into() }))
        }
        DiscoveryType::OriginalDst => Ok(Discovery::OriginalDst { use_header }),
        DiscoveryType::StrictDns => Ok(Discovery::StrictDns(targets(members, dns, default_transport, matches)?)),
        DiscoveryType::LogicalDns => {
            let targets = targets(members, dns, default_transport, matches)?;
            if targets.targets.len() == 1 {
                Ok(Discovery::LogicalDns(targets))
            } else {
                Err(Invalid::field("load_assignment", "a LOGICAL_DNS cluster has exactly one endpoint"))
            }
        }
    }
}

fn targets(members: &Assignment, dns: &Dns, default_transport: u32, matches: &[prost_types::Struct]) -> Result<DnsTargets> {
    let rate = duration_or(dns.rate.as_ref(), Duration::from_secs(5), "dns_refresh_rate")?;
    if rate < Duration::from_millis(1) {
        return Err(Invalid::field("dns_refresh_rate", "must be above zero"));
    }
    let family = match cluster::DnsLookupFamily::try_from(dns.family) {
        Ok(cluster::DnsLookupFamily::Auto) => DnsFamily::Auto,
        Ok(cluster::DnsLookupFamily::V4Only) => DnsFamily::V4Only,
        Ok(cluster::DnsLookupFamily::V6Only) => DnsFamily::V6Only,
        Ok(cluster::DnsLookupFamily::V4Preferred) => DnsFamily::V4Preferred,
        Ok(cluster::DnsLookupFamily::All) => DnsFamily::All,
        Err(_) => return Err(Invalid::field("dns_lookup_family", format!("{} is not known", dns.family))),
    };
    let mut targets = Vec::new();
    for locality in &members.localities {
        for endpoint in &locality.endpoints {
            let (name, port) = match &endpoint.at {
                EndpointAddress::Name(name, port) => (name.clone(), *port),
                EndpointAddress::Fixed(lateen_balance::Address::Socket(address)) => (address.ip().to_string().into(), address.port()),
                EndpointAddress::Fixed(lateen_balance::Address::Pipe(_)) => {
                    return Err(Invalid::field("load_assignment", "a DNS cluster cannot have a pipe as endpoint"));
                }
            };
            let matched = matches.iter().position(|wanted| {
                wanted.fields.iter().all(|(k, v)| endpoint.transport_match.as_ref().and_then(|m| m.fields.get(k)) == Some(v))
            });
            targets.push(DnsTarget {
                name,
                port,
                weight: endpoint.weight,
                priority: locality.priority,
                locality: Locality::clone(&locality.locality),
                transport: matched.and_then(|m| u32::try_from(m).ok()).unwrap_or(default_transport),
            });
        }
    }
    Ok(DnsTargets { targets, refresh: rate, respect_ttl: dns.respect_ttl, family })
}

/// The HTTP settings of older messages, which the typed options replace.
struct OldHttp {
    upstream_http_protocol_options: Option<core::UpstreamHttpProtocolOptions>,
    common_http_protocol_options: Option<core::HttpProtocolOptions>,
    http_protocol_options: Option<core::Http1ProtocolOptions>,
    http2_protocol_options: Option<core::Http2ProtocolOptions>,
    protocol_selection: i32,
}

/// What a cluster says about HTTP.
struct Http {
    version: UpstreamHttp,
    idle_timeout: Option<Duration>,
    max_connection_duration: Option<Duration>,
    max_requests_per_connection: Option<u32>,
    auto_sni: bool,
    auto_san: bool,
}

fn http_settings(options: HashMap<String, Any>, old: OldHttp, max_requests: Option<u32>) -> Result<Http> {
    let mut typed = None;
    for (key, config) in options {
        match any::name_of(&config.type_url) {
            HTTP_OPTIONS => typed = Some(open::<http::HttpProtocolOptions>(&config)?),
            TCP_OPTIONS => {}
            other => {
                return Err(Invalid::field(&format!("typed_extension_protocol_options[\"{key}\"]"), format!("{other} is not supported")));
            }
        }
    }
    match typed {
        Some(options) => typed_http(options, max_requests).within(&format!("typed_extension_protocol_options[\"{HTTP_OPTIONS}\"]")),
        None => old_http(old, max_requests),
    }
}

fn typed_http(value: http::HttpProtocolOptions, max_requests: Option<u32>) -> Result<Http> {
    use http_options::{UpstreamProtocolOptions, explicit_http_config::ProtocolConfig};
    let http::HttpProtocolOptions {
        common_http_protocol_options,
        upstream_http_protocol_options,
        http_filters,
        header_validation_config,
        outlier_detection,
        request_mirror_policies,
        hash_policy,
        retry_policy,
        upstream_protocol_options,
    } = value;
    harmless!(header_validation_config);
    refuse!(http_filters, outlier_detection, request_mirror_policies, hash_policy, retry_policy);
    let h1 = |options: Option<core::Http1ProtocolOptions>| hcm::http1(options.unwrap_or_default()).within("http_protocol_options");
    let h2 = |options: Option<core::Http2ProtocolOptions>| hcm::http2(options.unwrap_or_default()).within("http2_protocol_options");
    let version = match upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(http_options::ExplicitHttpConfig { protocol_config })) => match protocol_config {
            None => UpstreamHttp::Http1,
            Some(ProtocolConfig::HttpProtocolOptions(o)) => h1(Some(o)).map(|_| UpstreamHttp::Http1).within("explicit_http_config")?,
            Some(ProtocolConfig::Http2ProtocolOptions(o)) => h2(Some(o)).map(UpstreamHttp::Http2).within("explicit_http_config")?,
            Some(ProtocolConfig::Http3ProtocolOptions(_)) => return Err(Invalid::unsupported("http3_protocol_options")),
        },
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(http_options::UseDownstreamHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
        })) => {
            harmless!(http3_protocol_options);
            h1(http_protocol_options)
                .and_then(|_| h2(http2_protocol_options))
                .map(UpstreamHttp::Downstream)
                .within("use_downstream_protocol_config")?
        }
        Some(UpstreamProtocolOptions::AutoConfig(http_options::AutoHttpConfig {
            http_protocol_options,
            http2_protocol_options,
            http3_protocol_options,
            alternate_protocols_cache_options,
        })) => {
            refuse!(http3_protocol_options, alternate_protocols_cache_options);
            h1(http_protocol_options).and_then(|_| h2(http2_protocol_options)).map(UpstreamHttp::Auto).within("auto_config")?
        }
        None => return Err(Invalid::new("names no protocol; give explicit_http_config, use_downstream_protocol_config or auto_config")),
    };
    common_http(version, common_http_protocol_options, upstream_http_protocol_options, max_requests)
}

fn old_http(old: OldHttp, max_requests: Option<u32>) -> Result<Http> {
    let h2 = old.http2_protocol_options.map(hcm::http2).transpose().within("http2_protocol_options")?;
    if let Some(options) = old.http_protocol_options {
        hcm::http1(options).within("http_protocol_options")?;
    }
    let downstream = old.protocol_selection == cluster::ClusterProtocolSelection::UseDownstreamProtocol as i32;
    let version = match (h2, downstream) {
        (options, true) => UpstreamHttp::Downstream(options.map_or_else(|| hcm::http2(core::Http2ProtocolOptions::default()), Ok)?),
        (Some(options), false) => UpstreamHttp::Http2(options),
        (None, false) => UpstreamHttp::Http1,
    };
    common_http(version, old.common_http_protocol_options, old.upstream_http_protocol_options, max_requests)
}

fn common_http(
    version: UpstreamHttp,
    common: Option<core::HttpProtocolOptions>,
    upstream: Option<core::UpstreamHttpProtocolOptions>,
    max_requests: Option<u32>,
) -> Result<Http> {
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = common.unwrap_or_default();
    harmless!(max_connection_duration_jitter, max_headers_count, max_response_headers_kb, headers_with_underscores_action);
    let core::UpstreamHttpProtocolOptions { auto_sni, auto_san_validation, override_auto_sni_header } = upstream.unwrap_or_default();
    let checked = || -> Result<()> {
        refuse!(max_stream_duration);
        Ok(())
    };
    checked().within("common_http_protocol_options")?;
    refuse!(override_auto_sni_header);
    Ok(Http {
        version,
        idle_timeout: limit(idle_timeout.as_ref(), Some(Duration::from_secs(3600)), "common_http_protocol_options.idle_timeout")?,
        max_connection_duration: limit(max_connection_duration.as_ref(), None, "common_http_protocol_options.max_connection_duration")?,
        max_requests_per_connection: max_requests_per_connection.or(max_requests).filter(|n| *n > 0),
        auto_sni,
        auto_san: auto_san_validation,
    })
}

type Transports = (Vec<Transport>, Vec<prost_types::Struct>);

fn transports(
    matches: Vec<cluster::TransportSocketMatch>,
    default: Option<core::TransportSocket>,
    http: &Http,
    context: &mut Context<'_>,
) -> Result<Transports> {
    let mut transports = Vec::with_capacity(matches.len() + 1);
    let mut wanted = Vec::with_capacity(matches.len());
    for (index, value) in matches.into_iter().enumerate() {
        let cluster::TransportSocketMatch { name, r#match, transport_socket } = value;
        let socket = transport(name.into(), transport_socket, http, context)
            .within("transport_socket")
            .within_item("transport_socket_matches", index)?;
        transports.push(socket);
        wanted.push(r#match.unwrap_or_default());
    }
    transports.push(transport("".into(), default, http, context).within("transport_socket")?);
    Ok((transports, wanted))
}

fn transport(name: Arc<str>, value: Option<core::TransportSocket>, http: &Http, context: &mut Context<'_>) -> Result<Transport> {
    let plain = |name| Ok(Transport { name, tls: None, proxy_protocol: None });
    let Some((socket_name, config)) = tls::socket_config(value)? else { return plain(name) };
    if any::is::<sockets::raw_buffer::v3::RawBuffer>(&config) {
        plain(name)
    } else if any::is::<sockets::tls::v3::UpstreamTlsContext>(&config) {
        let tls = tls::client(open(&config)?, http.auto_sni, http.auto_san, context)?;
        Ok(Transport { name, tls: Some(tls), proxy_protocol: None })
    } else if any::is::<sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport>(&config) {
        proxy_protocol(name, open(&config)?, http, context)
    } else {
        Err(Invalid::new(format!(
            "{socket_name} ({}) is not supported; tls, raw_buffer and upstream_proxy_protocol are",
            any::name_of(&config.type_url)
        )))
    }
}

fn proxy_protocol(
    name: Arc<str>,
    value: sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport,
    http: &Http,
    context: &mut Context<'_>,
) -> Result<Transport> {
    use core::proxy_protocol_config::Version;
    let sockets::proxy_protocol::v3::ProxyProtocolUpstreamTransport {
        config,
        transport_socket,
        allow_unspecified_address,
        tlv_as_pool_key,
    } = value;
    harmless!(allow_unspecified_address, tlv_as_pool_key);
    let core::ProxyProtocolConfig { version, pass_through_tlvs, added_tlvs } = config.unwrap_or_default();
    refuse!(pass_through_tlvs, added_tlvs);
    let version = match Version::try_from(version) {
        Ok(Version::V1) => ProxyProtocolVersion::V1,
        Ok(Version::V2) => ProxyProtocolVersion::V2,
        Err(_) => return Err(Invalid::field("config.version", "is not known")),
    };
    let inner = transport(name, transport_socket, http, context).within("transport_socket")?;
    if inner.proxy_protocol.is_some() {
        return Err(Invalid::field("transport_socket", "must not be another PROXY protocol socket"));
    }
    Ok(Transport { proxy_protocol: Some(version), ..inner })
}

fn limits(value: Option<proto::CircuitBreakers>) -> Result<[Limits; 2]> {
    let proto::CircuitBreakers { thresholds, per_host_thresholds } = value.unwrap_or_default();
    refuse!(per_host_thresholds);
    let mut result = [Limits::default(); 2];
    let mut seen = [false; 2];
    for (index, value) in thresholds.into_iter().enumerate() {
        let proto::circuit_breakers::Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = value;
        harmless!(track_remaining, max_connection_pools);
        let checked = || -> Result<usize> {
            refuse!(retry_budget);
            usize::try_from(priority).ok().filter(|p| *p < 2).ok_or_else(|| Invalid::field("priority", format!("{priority} is not known")))
        };
        let priority = checked().within_item("thresholds", index)?;
        // Of two entries for one priority Envoy takes the first.
        if let (Some(limits), Some(seen @ false)) = (result.get_mut(priority), seen.get_mut(priority)) {
            *seen = true;
            let default = Limits::default();
            *limits = Limits {
                max_connections: max_connections.unwrap_or(default.max_connections),
                max_pending_requests: max_pending_requests.unwrap_or(default.max_pending_requests),
                max_requests: max_requests.unwrap_or(default.max_requests),
                max_retries: max_retries.unwrap_or(default.max_retries),
            };
        }
    }
    Ok(result)
}

fn outlier(value: proto::OutlierDetection) -> Result<OutlierSettings> {
    let proto::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    harmless!(enforcing_local_origin_success_rate, successful_active_health_check_uneject_host);
    refuse!(monitors, detect_degraded_hosts, enforcing_failure_percentage_local_origin);
    let default = OutlierSettings::default();
    let base = duration_or(base_ejection_time.as_ref(), default.base_ejection_time, "base_ejection_time")?;
    let interval = duration_or(interval.as_ref(), default.interval, "interval")?;
    if interval.is_zero() {
        return Err(Invalid::field("interval", "must be above zero"));
    }
    Ok(OutlierSettings {
        consecutive_5xx: consecutive_5xx.unwrap_or(default.consecutive_5xx),
        consecutive_gateway_failure: consecutive_gateway_failure.unwrap_or(default.consecutive_gateway_failure),
        consecutive_local_origin_failure: consecutive_local_origin_failure.unwrap_or(default.consecutive_local_origin_failure),
        split_external_local_origin_errors,
        enforcing_consecutive_5xx: enforcing_consecutive_5xx.unwrap_or(default.enforcing_consecutive_5xx),
        enforcing_consecutive_gateway_failure: enforcing_consecutive_gateway_failure
            .unwrap_or(default.enforcing_consecutive_gateway_failure),
        enforcing_consecutive_local_origin_failure: enforcing_consecutive_local_origin_failure
            .unwrap_or(default.enforcing_consecutive_local_origin_failure),
        enforcing_success_rate: enforcing_success_rate.unwrap_or(default.enforcing_success_rate),
        success_rate_minimum_hosts: success_rate_minimum_hosts.unwrap_or(default.success_rate_minimum_hosts),
        success_rate_request_volume: success_rate_request_volume.unwrap_or(default.success_rate_request_volume),
        success_rate_stdev_factor: success_rate_stdev_factor.unwrap_or(default.success_rate_stdev_factor),
        enforcing_failure_percentage: enforcing_failure_percentage.unwrap_or(default.enforcing_failure_percentage),
        failure_percentage_threshold: failure_percentage_threshold.unwrap_or(default.failure_percentage_threshold),
        failure_percentage_minimum_hosts: failure_percentage_minimum_hosts.unwrap_or(default.failure_percentage_minimum_hosts),
        failure_percentage_request_volume: failure_percentage_request_volume.unwrap_or(default.failure_percentage_request_volume),
        interval,
        base_ejection_time: base,
        // Envoy: the larger of the default and the base.
        max_ejection_time: duration_or(max_ejection_time.as_ref(), default.max_ejection_time.max(base), "max_ejection_time")?,
        max_ejection_time_jitter: duration_or(max_ejection_time_jitter.as_ref(), Duration::ZERO, "max_ejection_time_jitter")?,
        max_ejection_percent: max_ejection_percent.unwrap_or(default.max_ejection_percent),
        always_eject_one_host: always_eject_one_host.unwrap_or(default.always_eject_one_host),
    })
}

fn connection_options(value: proto::UpstreamConnectionOptions) -> Result<Option<TcpKeepalive>> {
    let proto::UpstreamConnectionOptions { tcp_keepalive, set_local_interface_name_on_upstream_connections, happy_eyeballs_config } = value;
    harmless!(set_local_interface_name_on_upstream_connections, happy_eyeballs_config);
    Ok(tcp_keepalive.map(|core::TcpKeepalive { keepalive_probes, keepalive_time, keepalive_interval }| {
        let seconds = |n: Option<u32>| n.map(|s| Duration::from_secs(s.into()));
        TcpKeepalive { probes: keepalive_probes, time: seconds(keepalive_time), interval: seconds(keepalive_interval) }
    }))
}

type Bind = (Vec<std::net::SocketAddr>, Vec<(i32, i32, i32)>);

fn bind(value: Option<core::BindConfig>) -> Result<Bind> {
    let Some(core::BindConfig {
        source_address,
        freebind,
        socket_options: options,
        extra_source_addresses,
        additional_source_addresses,
        local_address_selector,
        validate_network_namespaces,
    }) = value
    else {
        return Ok((Vec::new(), Vec::new()));
    };
    // Binding to 127.0.0.6 and the like needs no freebind.
    harmless!(freebind, local_address_selector);
    refuse!(validate_network_namespaces);
    // Whoever connects without one of these, to the other address family say, may be captured as somebody
    // else's traffic: none is left out.
    let mut sources = Vec::new();
    if let Some(address) = source_address {
        sources.push(socket(Some(address)).within("source_address")?);
    }
    for (index, extra) in extra_source_addresses.into_iter().enumerate() {
        sources.push(extra_source(extra).within_item("extra_source_addresses", index)?);
    }
    for (index, address) in additional_source_addresses.into_iter().enumerate() {
        sources.push(socket(Some(address)).within_item("additional_source_addresses", index)?);
    }
    Ok((sources, socket_options(options, "socket_options")?))
}

fn extra_source(extra: core::ExtraSourceAddress) -> Result<std::net::SocketAddr> {
    let core::ExtraSourceAddress { address, socket_options } = extra;
    refuse!(socket_options);
    socket(address).within("address")
}

fn istio_service(metadata: Option<&core::Metadata>) -> Option<IstioService> {
    let istio = struct_json(metadata?.filter_metadata.get("istio")?);
    let service = istio.get("services")?.get(0)?;
    let text = |key: &str| service.get(key).and_then(serde_json::Value::as_str).unwrap_or_default().into();
    Some(IstioService { host: text("host"), name: text("name"), namespace: text("namespace") })
}

fn active_check(value: core::HealthCheck, cluster: &str) -> Result<HealthCheck> {
    let core::HealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = value;
    harmless!(initial_jitter, interval_jitter, interval_jitter_percent, reuse_connection, no_traffic_interval, no_traffic_healthy_interval);
    harmless!(unhealthy_interval, unhealthy_edge_interval, healthy_edge_interval, event_log_path, event_logger, event_service);
    harmless!(always_log_health_check_failures, always_log_health_check_success);
    refuse!(alt_port, tls_options, transport_socket_match_criteria);
    let positive = |value: Option<lateen_proto::Duration>, field: &str| match value.map(|d| duration(&d)).transpose().within(field)? {
        Some(d) if !d.is_zero() => Ok(d),
        _ => Err(Invalid::field(field, "must be given and above zero")),
    };
    Ok(HealthCheck {
        timeout: positive(timeout, "timeout")?,
        interval: positive(interval, "interval")?,
        healthy_threshold: healthy_threshold.unwrap_or(1).max(1),
        unhealthy_threshold: unhealthy_threshold.unwrap_or(1).max(1),
        kind: checker(health_checker, cluster)?,
    })
}

fn checker(value: Option<health_check::HealthChecker>, cluster: &str) -> Result<HealthCheckKind> {
    use health_check::HealthChecker;
    match value {
        Some(HealthChecker::HttpHealthCheck(h)) => http_check(h, cluster).within("http_health_check"),
        Some(HealthChecker::TcpHealthCheck(health_check::TcpHealthCheck { send, receive, proxy_protocol_config })) => {
            let checked = || -> Result<HealthCheckKind> {
                refuse!(send, receive, proxy_protocol_config);
                Ok(HealthCheckKind::Tcp)
            };
            checked().within("tcp_health_check")
        }
        Some(HealthChecker::GrpcHealthCheck(health_check::GrpcHealthCheck { service_name, authority, initial_metadata })) => {
            let checked = || -> Result<HealthCheckKind> {
                refuse!(initial_metadata);
                let authority = if authority.is_empty() { cluster.into() } else { authority.into() };
                Ok(HealthCheckKind::Grpc { service: service_name.into(), authority })
            };
            checked().within("grpc_health_check")
        }
        Some(HealthChecker::CustomHealthCheck(_)) => Err(Invalid::unsupported("custom_health_check")),
        None => Err(Invalid::new("has no checker; give http_health_check, tcp_health_check or grpc_health_check")),
    }
}

fn http_check(value: health_check::HttpHealthCheck, cluster: &str) -> Result<HealthCheckKind> {
    let health_check::HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = value;
    harmless!(response_buffer_size, retriable_statuses);
    refuse!(send, receive, request_headers_to_add, request_headers_to_remove, service_name_matcher);
    if !matches!(core::RequestMethod::try_from(method), Ok(core::RequestMethod::MethodUnspecified | core::RequestMethod::Get)) {
        return Err(Invalid::field("method", "only GET is supported"));
    }
    refuse!(codec_client_type);
    if !path.starts_with('/') {
        return Err(Invalid::field("path", format!("`{path}` must begin with a slash")));
    }
    let mut expected = Vec::new();
    for (index, range) in expected_statuses.into_iter().enumerate() {
        let bound =
            |n: i64| u32::try_from(n).map_err(|_| Invalid::new("is not a status")).and_then(port).within_item("expected_statuses", index);
        expected.push(bound(range.start)?..bound(range.end)?);
    }
    if expected.is_empty() {
        expected.push(200..201);
    }
    let host = if host.is_empty() { cluster.into() } else { host.into() };
    Ok(HealthCheckKind::Http { host, path: path.into(), expected })
}

/// The empty assignment of a discovered cluster before its endpoints arrive.
pub(crate) fn load_assignment(value: endpoints::ClusterLoadAssignment) -> Result<Assignment> {
    let assignment = assignment(value)?;
    let named = assignment.localities.iter().flat_map(|l| &l.endpoints).any(|e| matches!(e.at, EndpointAddress::Name(..)));
    if named {
        return Err(Invalid::field("endpoints", "discovered endpoints must have IP addresses"));
    }
    Ok(assignment)
}
