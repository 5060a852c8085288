//! The dynamic forward proxy: its DNS cache, and the three that share it: cluster, HTTP filter and network filter.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::envoy::config::cluster::v3::cluster;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::clusters::dynamic_forward_proxy::v3 as dfp_cluster;
use lateen_proto::envoy::extensions::common::dynamic_forward_proxy::v3 as proto;
use lateen_proto::envoy::extensions::filters::http::dynamic_forward_proxy::v3 as http;
use lateen_proto::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3 as sni;
use lateen_proto::envoy::r#type::matcher::v3::AddressMatcher;
use lateen_proto::xds::core::v3::CidrRange;

use super::common::{cidr, duration_or, limit, port};
use super::context::Context;
use super::dns;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::dns::cache::{DnsCache, DnsCacheConfig};
use crate::http::HostFrom;
use crate::matcher::Cidr;

/// The cache of a cluster, and whether it may do without names in certificates being checked.
pub(crate) fn cluster(value: dfp_cluster::ClusterConfig, context: &mut Context<'_>) -> Result<(Arc<DnsCache>, bool)> {
    use dfp_cluster::cluster_config::ClusterImplementationSpecifier as Specifier;
    let dfp_cluster::ClusterConfig { allow_insecure_cluster_options, allow_coalesced_connections, cluster_implementation_specifier } =
        value;
    refuse!(allow_coalesced_connections);
    match cluster_implementation_specifier {
        Some(Specifier::DnsCacheConfig(config)) => Ok((cache(config, context).within("dns_cache_config")?, allow_insecure_cluster_options)),
        Some(Specifier::SubClustersConfig(_)) => Err(Invalid::unsupported("sub_clusters_config")),
        None => Err(Invalid::field("dns_cache_config", "is missing")),
    }
}

pub(crate) fn http_filter(value: http::FilterConfig, context: &mut Context<'_>) -> Result<Arc<DnsCache>> {
    use http::filter_config::ImplementationSpecifier as Specifier;
    let http::FilterConfig { save_upstream_address, allow_dynamic_host_from_filter_state, implementation_specifier } = value;
    refuse!(save_upstream_address, allow_dynamic_host_from_filter_state);
    match implementation_specifier {
        Some(Specifier::DnsCacheConfig(config)) => cache(config, context).within("dns_cache_config"),
        Some(Specifier::SubClusterConfig(_)) => Err(Invalid::unsupported("sub_cluster_config")),
        None => Err(Invalid::field("dns_cache_config", "is missing")),
    }
}

/// Where the host comes from instead of the request's authority.
pub(crate) fn per_route(value: http::PerRouteConfig) -> Result<Option<HostFrom>> {
    use http::per_route_config::HostRewriteSpecifier as Specifier;
    Ok(match value.host_rewrite_specifier {
        Some(Specifier::HostRewriteLiteral(host)) if !host.is_empty() => Some(HostFrom::Literal(host.into())),
        Some(Specifier::HostRewriteHeader(name)) if !name.is_empty() => {
            let name = name.parse().map_err(|_| Invalid::field("host_rewrite_header", format!("`{name}` is not a header name")))?;
            Some(HostFrom::Header(name))
        }
        _ => None,
    })
}

/// The cache of the filter for TLS connections, and the port to connect to.
pub(crate) fn sni_filter(value: sni::FilterConfig, context: &mut Context<'_>) -> Result<(Arc<DnsCache>, u16)> {
    let sni::FilterConfig { dns_cache_config, save_upstream_address, port_specifier } = value;
    refuse!(save_upstream_address);
    let config = dns_cache_config.ok_or_else(|| Invalid::field("dns_cache_config", "is missing"))?;
    let port = match port_specifier {
        Some(sni::filter_config::PortSpecifier::PortValue(value)) => port(value).within("port_value")?,
        None => 0,
    };
    if port == 0 {
        return Err(Invalid::field("port_value", "is missing; give the port to connect to"));
    }
    Ok((cache(config, context).within("dns_cache_config")?, port))
}

fn cache(value: proto::DnsCacheConfig, context: &mut Context<'_>) -> Result<Arc<DnsCache>> {
    let config = config(value)?;
    context.dns_caches.share(config).map_err(|reason| Invalid::field("name", reason))
}

fn config(value: proto::DnsCacheConfig) -> Result<DnsCacheConfig> {
    let proto::DnsCacheConfig {
        name,
        dns_lookup_family,
        dns_refresh_rate,
        dns_min_refresh_rate,
        host_ttl,
        max_hosts,
        disable_dns_refresh_on_failure,
        dns_failure_refresh_rate,
        dns_cache_circuit_breaker,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        preresolve_hostnames,
        dns_query_timeout,
        key_value_config,
        resolved_address_filter,
    } = value;
    refuse!(key_value_config);
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty"));
    }
    let failure = dns_failure_refresh_rate.map(|cluster::RefreshRate { base_interval, max_interval }| (base_interval, max_interval));
    let max_hosts = max_hosts.unwrap_or(1024);
    if max_hosts == 0 {
        return Err(Invalid::field("max_hosts", "must be at least 1"));
    }
    let proto::DnsCacheCircuitBreakers { max_pending_requests } = dns_cache_circuit_breaker.unwrap_or_default();
    Ok(DnsCacheConfig {
        name: name.into(),
        family: dns::family(dns_lookup_family)?,
        resolver: dns::resolver(typed_dns_resolver_config, dns_resolution_config, use_tcp_for_dns_lookups)?,
        refresh: dns::rate(dns_refresh_rate.as_ref(), Duration::from_secs(60), "dns_refresh_rate")?,
        min_refresh: duration_or(dns_min_refresh_rate.as_ref(), Duration::from_secs(5), "dns_min_refresh_rate")?
            .max(Duration::from_secs(1)),
        host_ttl: dns::rate(host_ttl.as_ref(), Duration::from_secs(300), "host_ttl")?,
        max_hosts: usize::try_from(max_hosts).unwrap_or(usize::MAX),
        forget_failures: disable_dns_refresh_on_failure,
        failure: failure.map(dns::backoff).transpose().within("dns_failure_refresh_rate")?,
        max_pending: max_pending_requests.unwrap_or(1024),
        query_timeout: limit(dns_query_timeout.as_ref(), Some(Duration::from_secs(5)), "dns_query_timeout")?,
        preresolve: preresolve(preresolve_hostnames)?,
        refused: resolved_address_filter.map(address_filter).transpose().within("resolved_address_filter")?,
    })
}

fn preresolve(values: Vec<core::SocketAddress>) -> Result<Vec<(Arc<str>, u16)>> {
    use core::socket_address::PortSpecifier;
    let one = |value: core::SocketAddress| {
        let core::SocketAddress { protocol, address, resolver_name, ipv4_compat, network_namespace_filepath, port_specifier } = value;
        harmless!(protocol, ipv4_compat);
        refuse!(resolver_name, network_namespace_filepath);
        match port_specifier {
            Some(PortSpecifier::PortValue(value)) => Ok((Arc::from(address), port(value).within("port_value")?)),
            _ => Err(Invalid::field("port_value", "is missing")),
        }
    };
    values.into_iter().enumerate().map(|(index, value)| one(value).within_item("preresolve_hostnames", index)).collect()
}

fn address_filter(value: AddressMatcher) -> Result<(Vec<Cidr>, bool)> {
    let AddressMatcher { ranges, invert_match } = value;
    let one = |(index, CidrRange { address_prefix, prefix_len }): (usize, CidrRange)| {
        cidr(core::CidrRange { address_prefix, prefix_len }).within_item("ranges", index)
    };
    Ok((ranges.into_iter().enumerate().map(one).collect::<Result<_>>()?, invert_match))
}
