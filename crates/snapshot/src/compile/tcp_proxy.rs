//! The TCP proxy: clusters, limits, logs, and tunnels over HTTP.
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::Criteria;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::network::tcp_proxy::v3 as tcp;
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{duration, duration_or, limit, percent_fraction};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::route::clean;
use super::{access_log, header, proxy_protocol, source, subset};
use crate::listener::{LogTimes, TcpCluster, TcpProxy, TcpTunnel};
use crate::matcher::Fraction;

pub(crate) fn tcp_proxy(value: tcp::TcpProxy, context: &mut Context<'_>) -> Result<TcpProxy> {
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
    // Envoy has no use for the two older idle timeouts either.
    harmless!(downstream_idle_timeout, upstream_idle_timeout);
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty; give a name for statistics"));
    }
    let max_connect_attempts = max_connect_attempts.unwrap_or(1);
    if max_connect_attempts == 0 {
        return Err(Invalid::field("max_connect_attempts", "must be at least 1"));
    }
    let metadata_match = subset::criteria(metadata_match);
    let clusters = match cluster_specifier {
        Some(tcp::tcp_proxy::ClusterSpecifier::Cluster(name)) if !name.is_empty() => {
            vec![TcpCluster { id: context.cluster(&name), bound: 1, metadata_match }]
        }
        Some(tcp::tcp_proxy::ClusterSpecifier::WeightedClusters(w)) => {
            weighted(w, metadata_match.as_ref(), context).within("weighted_clusters")?
        }
        _ => return Err(Invalid::field("cluster", "is missing; give cluster or weighted_clusters")),
    };
    let older =
        tcp::tcp_proxy::TcpAccessLogOptions { access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start: false };
    let jitter = max_downstream_connection_duration_jitter_percentage.map(percent_fraction).transpose();
    Ok(TcpProxy {
        stat_prefix: stat_prefix.into(),
        clusters,
        on_demand: on_demand.map(waits_for_cluster).transpose().within("on_demand")?.flatten(),
        idle_timeout: limit(idle_timeout.as_ref(), Some(Duration::from_secs(3600)), "idle_timeout")?,
        max_downstream_connection_duration: limit(max_downstream_connection_duration.as_ref(), None, "max_downstream_connection_duration")?,
        max_duration_jitter: jitter.within("max_downstream_connection_duration_jitter_percentage")?.unwrap_or(Fraction::NONE),
        max_connect_attempts,
        backoff: backoff_options.map(backoff).transpose().within("backoff_options")?,
        hash_source_ip: hash_source_ip(hash_policy).within("hash_policy")?,
        waits_for_data: waits_for_data(upstream_connect_mode, max_early_data_bytes)?,
        closes_when_draining: check_drain_close.unwrap_or(false),
        more_tlvs: proxy_protocol::more(proxy_protocol_tlvs, proxy_protocol_tlv_merge_policy)?,
        tunnel: tunneling_config.map(tunnel).transpose().within("tunneling_config")?,
        access_logs: access_log::logs(access_log, "access_log")?,
        log_times: match access_log_options {
            Some(options) => log_times(options).within("access_log_options")?,
            None => log_times(older)?,
        },
    })
}

/// Without a source of clusters nothing is waited for, as in Envoy.
fn waits_for_cluster(value: tcp::tcp_proxy::OnDemand) -> Result<Option<Duration>> {
    let tcp::tcp_proxy::OnDemand { odcds_config, resources_locator, timeout } = value;
    refuse!(resources_locator);
    let timeout = duration_or(timeout.as_ref(), Duration::from_secs(60), "timeout")?;
    odcds_config.map(|source| source::ads_only(Some(source)).map(|_| timeout)).transpose().within("odcds_config")
}

/// Envoy's shortest interval is a millisecond.
fn log_times(value: tcp::tcp_proxy::TcpAccessLogOptions) -> Result<LogTimes> {
    let tcp::tcp_proxy::TcpAccessLogOptions { access_log_flush_interval, flush_access_log_on_connected, flush_access_log_on_start } = value;
    let every = access_log_flush_interval.map(|d| duration(&d)).transpose().within("access_log_flush_interval")?;
    if every.is_some_and(|every| every < Duration::from_millis(1)) {
        return Err(Invalid::field("access_log_flush_interval", "is shorter than 1ms"));
    }
    Ok(LogTimes { on_start: flush_access_log_on_start, on_connected: flush_access_log_on_connected, every })
}

/// As Envoy's: the maximum is ten times the base where nothing else is said.
fn backoff(value: core::BackoffStrategy) -> Result<(Duration, Duration)> {
    let core::BackoffStrategy { base_interval, max_interval } = value;
    let base = base_interval.map_or_else(|| Err(Invalid::new("is missing")), |d| duration(&d)).within("base_interval")?;
    let most = max_interval.map_or(Ok(base.saturating_mul(10)), |d| duration(&d)).within("max_interval")?;
    if base < Duration::from_millis(1) || most < base {
        return Err(Invalid::new("the base must be 1ms or more and the maximum not below it"));
    }
    Ok((base, most))
}

/// The TLS handshake is always over when a host is dialled, and how much is read ahead of it nobody sees.
fn waits_for_data(mode: i32, early_data: Option<u32>) -> Result<bool> {
    use tcp::UpstreamConnectMode as Mode;
    let mode = Mode::try_from(mode).map_err(|_| Invalid::field("upstream_connect_mode", format!("{mode} is not known")))?;
    if early_data.is_some_and(|most| most > 1 << 20) {
        return Err(Invalid::field("max_early_data_bytes", "is more than 1048576"));
    }
    if mode != Mode::Immediate && early_data.is_none() {
        return Err(Invalid::field("max_early_data_bytes", "is missing; this upstream_connect_mode needs it"));
    }
    Ok(mode == Mode::OnDownstreamData)
}

fn tunnel(value: tcp::tcp_proxy::TunnelingConfig) -> Result<TcpTunnel> {
    let tcp::tcp_proxy::TunnelingConfig {
        hostname,
        use_post,
        headers_to_add,
        propagate_response_headers,
        post_path,
        propagate_response_trailers,
        request_id_extension,
        request_id_header,
        request_id_metadata_key,
        formatters,
    } = value;
    // Names for what the extension would make.
    harmless!(request_id_header, request_id_metadata_key);
    refuse!(request_id_extension, formatters);
    if hostname.is_empty() {
        return Err(Invalid::field("hostname", "is empty"));
    }
    if !use_post && !post_path.is_empty() {
        return Err(Invalid::field("post_path", "is for use_post only"));
    }
    if use_post && !(post_path.is_empty() || post_path.starts_with('/')) {
        return Err(Invalid::field("post_path", "does not begin with a slash"));
    }
    let path = if post_path.is_empty() { "/".into() } else { clean(post_path, "post_path")? };
    Ok(TcpTunnel {
        hostname: header::template(&hostname).within("hostname")?,
        post_path: use_post.then_some(path),
        headers: header::additions(headers_to_add, "headers_to_add")?,
        keeps_headers: propagate_response_headers,
        keeps_trailers: propagate_response_trailers,
    })
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

fn weighted(
    value: tcp::tcp_proxy::WeightedCluster,
    metadata: Option<&Arc<Criteria>>,
    context: &mut Context<'_>,
) -> Result<Vec<TcpCluster>> {
    let mut total = 0u32;
    let mut clusters = Vec::with_capacity(value.clusters.len());
    for (index, entry) in value.clusters.into_iter().enumerate() {
        let tcp::tcp_proxy::weighted_cluster::ClusterWeight { name, weight, metadata_match } = entry;
        let checked = || -> Result<u32> {
            if name.is_empty() || weight == 0 {
                return Err(Invalid::new("needs a name and a weight above zero"));
            }
            total.checked_add(weight).ok_or_else(|| Invalid::field("weight", "the weights add up to too much"))
        };
        total = checked().within_item("clusters", index)?;
        let metadata_match = subset::merged(metadata, subset::criteria(metadata_match));
        clusters.push(TcpCluster { id: context.cluster(&name), bound: total, metadata_match });
    }
    if clusters.is_empty() {
        return Err(Invalid::field("clusters", "is empty"));
    }
    Ok(clusters)
}
