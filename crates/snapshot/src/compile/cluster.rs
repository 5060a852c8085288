//! Clusters: discovery, protocol, limits, outlier detection, transport sockets, health checks.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::any;
use lateen_proto::envoy::config::cluster::v3::{self as proto, cluster};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::endpoint::v3 as endpoints;
use lateen_proto::envoy::extensions::upstreams::http::generic::v3::GenericConnectionPoolProto;

use super::balance::{self, Fields};
use super::circuit_breakers::thresholds;
use super::common::duration_or;
use super::context::Context;
use super::discovery::{Kind, discovery, kind, original_dst};
use super::dns;
use super::endpoint::{Assignment, EndpointAddress, assignment};
use super::health_check::active_check;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::istio_cluster::istio_cluster;
use super::outlier::outlier;
use super::transport::transports;
use super::transport_choice::TransportChoice;
use super::upstream_connection::{bind, connection_options};
use super::upstream_http::{OldHttp, http_settings};
use crate::cluster::{ClusterConfig, Discovery};

/// A cluster ready to be put to use.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) config: Arc<ClusterConfig>,
    /// The members given with the cluster itself, until they are hosts.
    pub(crate) members: Option<Given>,
    /// How its endpoints choose their transport sockets.
    pub(crate) choice: TransportChoice,
}

/// Members with the transport socket of each, in their order.
#[derive(Debug)]
pub(crate) struct Given {
    pub(crate) assignment: Assignment,
    pub(crate) transports: Vec<u32>,
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
    // Statistics and buffers: nothing a caller can see.
    harmless!(stats_matcher, per_connection_buffer_limit_bytes, per_connection_buffer_high_watermark_timeout);
    harmless!(wait_for_warm_on_init, cleanup_interval);
    harmless!(track_timeout_budgets, track_cluster_stats, lrs_report_endpoint_metrics);
    refuse!(dns_resolvers, lrs_server);
    refuse!(queuing_policies);
    let (preconnect_ratio, predictive_preconnect_ratio) = preconnect(preconnect_policy.unwrap_or_default()).within("preconnect_policy")?;
    upstream_config.map_or(Ok(()), connection_pools).within("upstream_config")?;
    upstream_filters(filters)?;
    if name.is_empty() {
        return Err(Invalid::field("name", "is empty; every cluster needs a name"));
    }
    let fields = dns::Fields {
        dns_refresh_rate,
        dns_failure_refresh_rate,
        dns_jitter,
        respect_dns_ttl,
        dns_lookup_family,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
    };
    let kind = kind(cluster_discovery_type, fields, context)?;
    let old = OldHttp {
        upstream_http_protocol_options: upstream_http_protocol_options.or_else(|| follows_request(&kind)),
        common_http_protocol_options,
        http_protocol_options,
        http2_protocol_options,
        protocol_selection,
    };
    let http = http_settings(typed_extension_protocol_options, old, max_requests_per_connection)?;
    if matches!(kind, Kind::DynamicForwardProxy(_, false)) && !(http.auto_sni && http.auto_san) {
        let reason =
            "needs auto_sni and auto_san_validation in upstream_http_protocol_options, unless it has allow_insecure_cluster_options";
        return Err(Invalid::field("cluster_type", reason));
    }
    let (transports, matches) = transports(transport_socket_matches, transport_socket, &http, context)?;
    let by_tree = transport_socket_matcher.is_some();
    let choice = TransportChoice::new(matches, transport_socket_matcher, &transports)?;
    let kind = match (kind, &lb_config) {
        (Kind::OriginalDst(_), Some(cluster::LbConfig::OriginalDstLbConfig(c))) => {
            Kind::OriginalDst(original_dst(c.clone()).within("original_dst_lb_config")?)
        }
        (kind, _) => kind,
    };
    let (is_original_dst, provided) = (matches!(kind, Kind::OriginalDst(_)), kind.balances());
    let fields = Fields { lb_policy, lb_config, common_lb_config, lb_subset_config, load_balancing_policy, is_original_dst, provided };
    let balance = balance::balance(fields)?;
    let sent = load_assignment.as_ref().filter(|_| by_tree).cloned();
    let assignment = load_assignment.map_or_else(|| Ok(Assignment::default()), assignment).within("load_assignment")?;
    let given = Given { transports: choice.of_endpoints(&assignment, || sent), assignment };
    let discovery = discovery(kind, &name, eds_cluster_config, &given, context)?;
    let connection = upstream_connection_options.map(connection_options).transpose().within("upstream_connection_options")?;
    let (tcp_keepalive, address_order) = connection.unwrap_or_default();
    let bind = bind(upstream_bind_config).within("upstream_bind_config")?;
    // Envoy takes one at most as well.
    if health_checks.len() > 1 {
        return Err(Invalid::field("health_checks[1]", "a cluster can have only one health check"));
    }
    if !health_checks.is_empty() && matches!(discovery, Discovery::OriginalDst(_) | Discovery::DynamicForwardProxy(_)) {
        return Err(Invalid::field("health_checks", "has no meaning here: the hosts come with requests"));
    }
    let check = health_checks.into_iter().next().map(|h| active_check(h, &name, &choice)).transpose().within_item("health_checks", 0)?;
    let connect_timeout = duration_or(connect_timeout.as_ref(), Duration::from_secs(5), "connect_timeout")?;
    if connect_timeout.is_zero() {
        return Err(Invalid::field("connect_timeout", "must be more than zero; leave it out for 5 s"));
    }
    let thresholds = thresholds(circuit_breakers).within("circuit_breakers")?;
    let config = ClusterConfig {
        stat_name: if alt_stat_name.is_empty() { name.as_str().into() } else { alt_stat_name.into() },
        discovery,
        balance: balance.settings,
        hash: balance.hash,
        connect_timeout,
        http: http.version,
        idle_timeout: http.idle_timeout,
        max_connection_duration: http.max_connection_duration,
        max_connection_duration_jitter_percent: http.max_connection_duration_jitter_percent,
        http1_names: http.names,
        response_heads: http.response_heads,
        preconnect_ratio,
        predictive_preconnect_ratio,
        pool_per_downstream: connection_pool_per_downstream_connection,
        max_requests_per_connection: http.max_requests_per_connection,
        limits: thresholds.limits,
        track_remaining: thresholds.tracked,
        per_host_connections: thresholds.per_host,
        outlier: outlier_detection.map(outlier).transpose().within("outlier_detection")?,
        transports,
        tcp_keepalive,
        address_order,
        bind,
        keeps_healthy_hosts: check.is_some() && !ignore_health_on_host_removal,
        health_check: check,
        ignore_new_hosts_until_first_hc: balance.ignore_new_hosts_until_first_hc,
        close_on_host_set_change: balance.close_on_membership_change,
        close_on_host_failure: close_connections_on_host_health_failure,
        istio: istio_cluster(&name, metadata.as_ref()),
        name: name.into(),
    };
    let members = matches!(config.discovery, Discovery::Static).then_some(given);
    Ok(Compiled { config: Arc::new(config), members, choice })
}

/// How many times the connections in use there are to be, of each host and of all.
fn preconnect(value: cluster::PreconnectPolicy) -> Result<(f64, f64)> {
    let cluster::PreconnectPolicy { per_upstream_preconnect_ratio, predictive_preconnect_ratio, preconnect_enabled_metadata } = value;
    refuse!(preconnect_enabled_metadata);
    let ratio = |value: Option<f64>, field: &str| match value.unwrap_or(1.0) {
        ratio if (1.0..=3.0).contains(&ratio) => Ok(ratio),
        ratio => Err(Invalid::field(field, format!("{ratio} is not between 1 and 3"))),
    };
    let per_upstream = ratio(per_upstream_preconnect_ratio, "per_upstream_preconnect_ratio")?;
    Ok((per_upstream, ratio(predictive_preconnect_ratio, "predictive_preconnect_ratio")?))
}

/// The generic pools are those that are used anyway.
fn connection_pools(value: core::TypedExtensionConfig) -> Result<()> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    match typed_config {
        Some(config) if any::is::<GenericConnectionPoolProto>(&config) => Ok(()),
        _ => Err(Invalid::new(format!("{name} is not supported; leave it out for the generic pools"))),
    }
}

/// Where requests name the hosts, server names and certificates follow them, unless options say else.
fn follows_request(kind: &Kind) -> Option<core::UpstreamHttpProtocolOptions> {
    let options = core::UpstreamHttpProtocolOptions { auto_sni: true, auto_san_validation: true, ..Default::default() };
    matches!(kind, Kind::DynamicForwardProxy(..)).then_some(options)
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

/// The empty assignment of a discovered cluster before its endpoints arrive.
pub(crate) fn load_assignment(value: endpoints::ClusterLoadAssignment) -> Result<Assignment> {
    let assignment = assignment(value)?;
    let named = assignment.localities.iter().flat_map(|l| &l.endpoints).any(|e| matches!(e.at, EndpointAddress::Name(..)));
    if named {
        return Err(Invalid::field("endpoints", "discovered endpoints must have IP addresses"));
    }
    Ok(assignment)
}
