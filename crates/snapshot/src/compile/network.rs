//! Network filters: those before the terminal one, and what ends a chain.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lateen_proto::envoy::config::listener::v3::{self as listener, filter};
use lateen_proto::envoy::extensions::filters::network as proto;
use lateen_proto::envoy::tcp::metadataexchange::config::MetadataExchange;
use lateen_proto::envoy::r#type::v3 as types;
use lateen_proto::{Any, any};
use proto::tcp_proxy::v3 as tcp;

use super::common::{data, limit, open};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{access_log, dns_cache, hcm, istio, proxy_protocol, rbac};
use crate::listener::{NetworkFilter, TcpProxy, Terminal};

const SUPPORTED: &str = "http_connection_manager, tcp_proxy, direct_response, rbac, sni_cluster, sni_dynamic_forward_proxy, connection_limit, istio.metadata_exchange and istio.stats";

/// The filters of a chain, and the last one, which consumes the connection.
pub(crate) fn filters(values: Vec<listener::Filter>, context: &mut Context<'_>) -> Result<(Vec<NetworkFilter>, Terminal)> {
    let mut filters = Vec::new();
    let last = values.len().wrapping_sub(1);
    let mut terminal = None;
    for (index, value) in values.into_iter().enumerate() {
        let name = value.name.clone();
        match filter(value, context).within_item("filters", index)? {
            Kind::Before(filter) if index != last => filters.push(filter),
            Kind::Terminal(end) if index == last => terminal = Some(end),
            Kind::Before(_) => {
                let reason = format!("{name}: the last filter must consume the connection; add http_connection_manager or tcp_proxy");
                return Err(Invalid::new(reason)).within_item("filters", index);
            }
            Kind::Terminal(_) => {
                return Err(Invalid::new(format!("{name}: must be the last filter of the chain"))).within_item("filters", index);
            }
        }
    }
    match terminal {
        Some(terminal) => Ok((filters, terminal)),
        // Envoy accepts a chain without filters and closes its connections at once.
        None => Ok((filters, Terminal::DirectResponse(Bytes::new()))),
    }
}

enum Kind {
    Before(NetworkFilter),
    Terminal(Terminal),
}

fn filter(value: listener::Filter, context: &mut Context<'_>) -> Result<Kind> {
    let listener::Filter { name, config_type } = value;
    let config = match config_type {
        Some(filter::ConfigType::TypedConfig(config)) => config,
        Some(filter::ConfigType::ConfigDiscovery(_)) => return Err(Invalid::unsupported("config_discovery")),
        None => return Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    };
    typed(&name, &config, context)
}

fn typed(name: &str, config: &Any, context: &mut Context<'_>) -> Result<Kind> {
    if any::is::<proto::http_connection_manager::v3::HttpConnectionManager>(config) {
        Ok(Kind::Terminal(Terminal::Http(Arc::new(hcm::manager(open(config)?, context)?))))
    } else if any::is::<tcp::TcpProxy>(config) {
        Ok(Kind::Terminal(Terminal::Tcp(Arc::new(tcp_proxy(open(config)?, context)?))))
    } else if any::is::<proto::direct_response::v3::Config>(config) {
        let proto::direct_response::v3::Config { response } = open(config)?;
        let bytes = response.map_or_else(|| Ok(Vec::new()), |r| data(r).map(|d| d.bytes)).within("response")?;
        Ok(Kind::Terminal(Terminal::DirectResponse(bytes.into())))
    } else if any::name_of(&config.type_url) == "envoy.extensions.filters.network.echo.v3.Echo" {
        Ok(Kind::Terminal(Terminal::Echo))
    } else if any::is::<proto::rbac::v3::Rbac>(config) {
        Ok(Kind::Before(NetworkFilter::Rbac(Arc::new(network_rbac(open(config)?)?))))
    } else if any::is::<proto::sni_cluster::v3::SniCluster>(config) {
        Ok(Kind::Before(NetworkFilter::SniCluster))
    } else if any::is::<proto::sni_dynamic_forward_proxy::v3::FilterConfig>(config) {
        let (cache, port) = dns_cache::sni_filter(open(config)?, context)?;
        Ok(Kind::Before(NetworkFilter::SniDynamicForwardProxy(cache, port)))
    } else if any::is::<proto::connection_limit::v3::ConnectionLimit>(config) {
        connection_limit(open(config)?).map(Kind::Before)
    } else {
        match istio::type_name(config).as_str() {
            istio::METADATA_EXCHANGE => {
                if any::is::<MetadataExchange>(config) {
                    let MetadataExchange { protocol, enable_discovery, additional_labels } = open(config)?;
                    harmless!(protocol, enable_discovery, additional_labels);
                }
                Ok(Kind::Before(NetworkFilter::MetadataExchange))
            }
            "stats.PluginConfig" => Ok(Kind::Before(NetworkFilter::IstioStats(Arc::new(istio::istio_stats(config, context.outbound)?)))),
            other => Err(Invalid::new(format!("{name} ({other}) is not supported; supported are {SUPPORTED}"))),
        }
    }
}

fn network_rbac(value: proto::rbac::v3::Rbac) -> Result<crate::matcher::Rbac> {
    let proto::rbac::v3::Rbac {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        stat_prefix,
        enforcement_type,
        delay_deny,
    } = value;
    // Who is let in is judged when the connection comes, before a byte of it is read.
    harmless!(enforcement_type, delay_deny);
    rbac::filter(rbac::Parts {
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        stat_prefix,
        shadow_stat_prefix: shadow_rules_stat_prefix,
        tracks_policies: false,
    })
}

fn connection_limit(value: proto::connection_limit::v3::ConnectionLimit) -> Result<NetworkFilter> {
    let proto::connection_limit::v3::ConnectionLimit { stat_prefix, max_connections, delay, runtime_enabled } = value;
    harmless!(stat_prefix);
    // A refused connection is closed at once, and the switch cannot be thrown while we run.
    refuse!(delay, runtime_enabled);
    let max = max_connections.ok_or_else(|| Invalid::field("max_connections", "is missing"))?;
    if max == 0 {
        return Err(Invalid::field("max_connections", "must be at least 1"));
    }
    Ok(NetworkFilter::ConnectionLimit { max })
}

fn tcp_proxy(value: tcp::TcpProxy, context: &mut Context<'_>) -> Result<TcpProxy> {
    let tcp::TcpProxy {
        stat_prefix,
        on_demand,
        metadata_match,
        idle_timeout,
        downstream_idle_timeout,
        upstream_idle_timeout,
        access_log,
        max_connect_attempts,
        backoff_options,
        hash_policy,
        tunneling_config,
        max_downstream_connection_duration,
        max_downstream_connection_duration_jitter_percentage,
        access_log_flush_interval,
        flush_access_log_on_connected,
        access_log_options,
        proxy_protocol_tlvs,
        proxy_protocol_tlv_merge_policy,
        upstream_connect_mode,
        max_early_data_bytes,
        check_drain_close,
        cluster_specifier,
    } = value;
    // The early data is for a connect mode, which is refused below.
    harmless!(max_early_data_bytes);
    refuse!(max_downstream_connection_duration_jitter_percentage, access_log_flush_interval, check_drain_close, backoff_options);
    log_options(access_log_options.unwrap_or_default()).within("access_log_options")?;
    refuse!(on_demand, metadata_match, downstream_idle_timeout, upstream_idle_timeout, tunneling_config, flush_access_log_on_connected);
    refuse!(upstream_connect_mode);
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty; give a name for statistics"));
    }
    let max_connect_attempts = max_connect_attempts.unwrap_or(1);
    if max_connect_attempts == 0 {
        return Err(Invalid::field("max_connect_attempts", "must be at least 1"));
    }
    let clusters = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) if !name.is_empty() => vec![(context.cluster(&name), 1)],
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(w)) => weighted(w, context).within("weighted_clusters")?,
        _ => return Err(Invalid::field("cluster", "is missing; give cluster or weighted_clusters")),
    };
    Ok(TcpProxy {
        stat_prefix: stat_prefix.into(),
        clusters,
        idle_timeout: limit(idle_timeout.as_ref(), Some(Duration::from_secs(3600)), "idle_timeout")?,
        max_downstream_connection_duration: limit(max_downstream_connection_duration.as_ref(), None, "max_downstream_connection_duration")?,
        max_connect_attempts,
        hash_source_ip: hash_source_ip(hash_policy).within("hash_policy")?,
        more_tlvs: proxy_protocol::more(proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy)?,
        access_logs: access_log::logs(access_log, "access_log")?,
    })
}

/// Logs are written when a connection ends, and only then.
fn log_options(value: tcp::tcp_proxy::TcpAccessLogOptions) -> Result<()> {
    let tcp::tcp_proxy::TcpAccessLogOptions { access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start } = value;
    refuse!(access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start);
    Ok(())
}

/// Envoy takes one policy at most.
fn hash_source_ip(policies: Vec<types::HashPolicy>) -> Result<bool> {
    match policies.as_slice() {
        [] => Ok(false),
        [types::HashPolicy { policy_specifier: Some(types::hash_policy::PolicySpecifier::SourceIp(_)) }] => Ok(true),
        [_] => Err(Invalid::new("only source_ip is supported")),
        _ => Err(Invalid::new("has more than one policy; give one")),
    }
}

fn weighted(value: tcp::tcp_proxy::WeightedCluster, context: &mut Context<'_>) -> Result<Vec<(crate::ClusterId, u32)>> {
    let mut total = 0u32;
    let mut clusters = Vec::with_capacity(value.clusters.len());
    for (index, entry) in value.clusters.into_iter().enumerate() {
        let tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = entry;
        let checked = || -> Result<u32> {
            refuse!(metadata_match);
            if name.is_empty() || weight == 0 {
                return Err(Invalid::new("needs a name and a weight above zero"));
            }
            total.checked_add(weight).ok_or_else(|| Invalid::field("weight", "the weights add up to too much"))
        };
        total = checked().within_item("clusters", index)?;
        clusters.push((context.cluster(&name), total));
    }
    if clusters.is_empty() {
        return Err(Invalid::field("clusters", "is empty"));
    }
    Ok(clusters)
}
