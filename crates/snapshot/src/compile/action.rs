//! What a matched route does: cluster, rewrites, timeouts, retries, mirrors, hashing.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, StatusCode};
use lateen_balance::Criteria;
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::route::v3::{self as proto, route_action, weighted_cluster};
use lateen_proto::envoy::extensions::path::rewrite::uri_template::v3::UriTemplateRewriteConfig;
use route_action::{ClusterSpecifier, HostRewriteSpecifier, hash_policy};
use weighted_cluster::RandomValueSpecifier;

use super::common::{duration, limit, open, runtime_fraction};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::route::{Inherited, clean};
use super::{filter, header, internal_redirect, matcher, proxy_protocol, retry, subset};
use crate::http::HeaderChanges;
use crate::matcher::Fraction;
use crate::path_template::PathTemplateRewrite;
use crate::route::{
    ClusterChoice, Connect, Forward, HashPolicy, HashSource, HostRewrite, Mirror, NamedCluster, PathMatch, PathRewrite, Roll, RouteMatch,
    WeightedCluster, WeightedClusters,
};

/// Envoy's default when a route sets no timeout.
const ROUTE_TIMEOUT: Duration = Duration::from_secs(15);

pub(crate) fn forward(
    value: proto::RouteAction,
    matches: &RouteMatch,
    inherited: &Inherited,
    context: &mut Context<'_>,
) -> Result<Forward> {
    let proto::RouteAction {
        cluster_not_found_response_code,
        metadata_match,
        prefix_rewrite,
        regex_rewrite,
        path_rewrite_policy,
        path_rewrite,
        append_x_forwarded_host,
        timeout,
        idle_timeout,
        flush_timeout,
        early_data_policy,
        retry_policy,
        retry_policy_typed_config,
        request_mirror_policies,
        priority,
        rate_limits,
        include_vh_rate_limits,
        hash_policy,
        cors,
        max_grpc_timeout,
        grpc_timeout_offset,
        upgrade_configs,
        internal_redirect_policy,
        internal_redirect_action,
        max_internal_redirects,
        hedge_policy,
        max_stream_duration,
        cluster_specifier,
        host_rewrite_specifier,
    } = value;
    // Requests are never sent in early data.
    harmless!(early_data_policy);
    refuse!(retry_policy_typed_config);
    // The newer limits stand instead of the older ones (Envoy `usingNewTimeouts`).
    let newer = max_stream_duration.is_some();
    let streams = max_stream_duration.unwrap_or_default();
    let route_action::MaxStreamDuration { max_stream_duration, grpc_timeout_header_max, grpc_timeout_header_offset } = streams;
    let mirrors = if request_mirror_policies.is_empty() { inherited.mirrors.clone() } else { request_mirror_policies };
    let mirrors = mirrors
        .into_iter()
        .enumerate()
        .map(|(i, m)| mirror(m, context).within_item("request_mirror_policies", i))
        .filter_map(Result::transpose)
        .collect::<Result<_>>()?;
    let metadata_match = subset::criteria(metadata_match);
    let (upgrades, connect) = upgrades(upgrade_configs)?;
    Ok(Forward {
        cluster: cluster(cluster_specifier, metadata_match.as_ref(), context)?,
        cluster_not_found_status: not_found(cluster_not_found_response_code)?,
        path_rewrite: self::path_rewrite(prefix_rewrite, regex_rewrite, path_rewrite, path_rewrite_policy, matches)?,
        host_rewrite: host_rewrite(host_rewrite_specifier)?,
        append_x_forwarded_host,
        timeout: limit(timeout.as_ref(), Some(ROUTE_TIMEOUT), "timeout")?.filter(|_| !newer),
        idle_timeout: idle_timeout.as_ref().map(duration).transpose().within("idle_timeout")?,
        flush_timeout: flush_timeout.as_ref().map(duration).transpose().within("flush_timeout")?,
        max_stream_duration: max_stream_duration.map(|d| duration(&d)).transpose().within("max_stream_duration.max_stream_duration")?,
        max_grpc_timeout: max_grpc_timeout.map(|d| duration(&d)).transpose().within("max_grpc_timeout")?.filter(|_| !newer),
        grpc_timeout_offset: grpc_timeout_offset.map(|d| duration(&d)).transpose().within("grpc_timeout_offset")?,
        stream_grpc_max: grpc_timeout_header_max.map(|d| duration(&d)).transpose().within("max_stream_duration.grpc_timeout_header_max")?,
        stream_grpc_offset: grpc_timeout_header_offset
            .map(|d| duration(&d))
            .transpose()
            .within("max_stream_duration.grpc_timeout_header_offset")?,
        retry: retry_policy.map(|p| context.retry(p)).transpose().within("retry_policy")?,
        mirrors,
        hash: hash_policies(hash_policy)?,
        cors: cors.map(|c| filter::route_cors(c).map(Arc::new)).transpose().within("cors")?,
        high_priority: match core::RoutingPriority::try_from(priority) {
            Ok(core::RoutingPriority::Default) => false,
            Ok(core::RoutingPriority::High) => true,
            Err(_) => return Err(Invalid::field("priority", format!("{priority} is not known"))),
        },
        upgrades,
        connect,
        rate_limits: super::ratelimit::limits(rate_limits, "rate_limits")?,
        include_virtual_host_limits: include_vh_rate_limits.unwrap_or(false),
        internal_redirect: internal_redirect::policy(internal_redirect_policy, internal_redirect_action, max_internal_redirects)?
            .map(Box::new),
        hedge_on_per_try_timeout: hedge_policy.map(retry::hedge).transpose().within("hedge_policy")?,
        metadata_match,
    })
}

fn not_found(code: i32) -> Result<StatusCode> {
    use route_action::ClusterNotFoundResponseCode as Code;
    match Code::try_from(code) {
        Ok(Code::ServiceUnavailable) => Ok(StatusCode::SERVICE_UNAVAILABLE),
        Ok(Code::NotFound) => Ok(StatusCode::NOT_FOUND),
        Ok(Code::InternalServerError) => Ok(StatusCode::INTERNAL_SERVER_ERROR),
        Err(_) => Err(Invalid::field("cluster_not_found_response_code", format!("{code} is not known"))),
    }
}

fn cluster(value: Option<ClusterSpecifier>, metadata: Option<&Arc<Criteria>>, context: &mut Context<'_>) -> Result<ClusterChoice> {
    match value {
        Some(ClusterSpecifier::Cluster(name)) if name.is_empty() => Err(Invalid::field("cluster", "is empty")),
        Some(ClusterSpecifier::Cluster(name)) => Ok(ClusterChoice::One(context.cluster(&name))),
        Some(ClusterSpecifier::ClusterHeader(name)) => Ok(ClusterChoice::Header(matcher::header_name(&name).within("cluster_header")?)),
        Some(ClusterSpecifier::WeightedClusters(w)) => {
            Ok(ClusterChoice::Weighted(weighted(w, metadata, context).within("weighted_clusters")?))
        }
        Some(ClusterSpecifier::ClusterSpecifierPlugin(_)) => Err(Invalid::unsupported("cluster_specifier_plugin")),
        Some(ClusterSpecifier::InlineClusterSpecifierPlugin(_)) => Err(Invalid::unsupported("inline_cluster_specifier_plugin")),
        None => Err(Invalid::new("names no cluster; give cluster, weighted_clusters or cluster_header")),
    }
}

fn weighted(value: proto::WeightedCluster, metadata: Option<&Arc<Criteria>>, context: &mut Context<'_>) -> Result<WeightedClusters> {
    let proto::WeightedCluster { clusters, total_weight, runtime_key_prefix, random_value_specifier } = value;
    // The total is the sum of the weights; Envoy ignores the older field too.
    harmless!(total_weight, runtime_key_prefix);
    let roll = match random_value_specifier {
        None | Some(RandomValueSpecifier::UseHashPolicy(false)) => Roll::Dice,
        Some(RandomValueSpecifier::HeaderName(name)) => Roll::Header(matcher::header_name(&name).within("header_name")?),
        Some(RandomValueSpecifier::UseHashPolicy(true)) => Roll::Hash,
    };
    let mut result = WeightedClusters { total: 0, roll, entries: Vec::with_capacity(clusters.len()) };
    for (index, entry) in clusters.into_iter().enumerate() {
        let weight = u64::from(entry.weight.unwrap_or(0));
        result.total += weight;
        let bound = result.total;
        let entry = weighted_entry(entry, bound, metadata, context).within_item("clusters", index)?;
        if weight > 0 {
            result.entries.push(entry);
        }
    }
    if result.total == 0 || result.total > u64::from(u32::MAX) {
        return Err(Invalid::field("clusters", format!("the weights add up to {}; the sum must be 1 to {}", result.total, u32::MAX)));
    }
    Ok(result)
}

fn weighted_entry(
    value: weighted_cluster::ClusterWeight,
    bound: u64,
    metadata: Option<&Arc<Criteria>>,
    context: &mut Context<'_>,
) -> Result<WeightedCluster> {
    let weighted_cluster::ClusterWeight {
        name,
        cluster_header,
        weight: _counted,
        metadata_match,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        typed_per_filter_config,
        host_rewrite_specifier,
    } = value;
    let cluster = named(name, cluster_header, "name", context)?;
    let host_rewrite = host_rewrite_specifier
        .map(|weighted_cluster::cluster_weight::HostRewriteSpecifier::HostRewriteLiteral(host)| host)
        .filter(|host| !host.is_empty())
        .map(|host| clean(host, "host_rewrite_literal"));
    Ok(WeightedCluster {
        cluster,
        bound,
        headers: HeaderChanges {
            request: header::mutations(request_headers_to_add, request_headers_to_remove, "request")?,
            response: header::mutations(response_headers_to_add, response_headers_to_remove, "response")?,
        },
        per_route: filter::per_route(typed_per_filter_config)?,
        host_rewrite: host_rewrite.transpose()?,
        metadata_match: subset::merged(metadata, subset::criteria(metadata_match)),
    })
}

/// A cluster by its name or by the header that has it.
fn named(name: String, header: String, field: &str, context: &mut Context<'_>) -> Result<NamedCluster> {
    match (name.is_empty(), header.is_empty()) {
        (false, true) => Ok(NamedCluster::Fixed(context.cluster(&name))),
        (true, false) => Ok(NamedCluster::Header(matcher::header_name(&header).within("cluster_header")?)),
        (true, true) => Err(Invalid::field(field, "is empty")),
        (false, false) => Err(Invalid::field("cluster_header", format!("cannot stand beside {field}; keep one"))),
    }
}

fn path_rewrite(
    prefix: String,
    regex: Option<lateen_proto::envoy::r#type::matcher::v3::RegexMatchAndSubstitute>,
    full: String,
    policy: Option<core::TypedExtensionConfig>,
    matches: &RouteMatch,
) -> Result<Option<PathRewrite>> {
    let given = [!prefix.is_empty(), regex.is_some(), !full.is_empty(), policy.is_some()];
    if given.into_iter().filter(|set| *set).count() > 1 {
        return Err(Invalid::new("has more than one of prefix_rewrite, regex_rewrite, path_rewrite and path_rewrite_policy; keep one"));
    }
    if let Some(policy) = policy {
        return template_rewrite(policy, matches).within("path_rewrite_policy").map(Some);
    }
    Ok(if let Some(r) = regex {
        let (pattern, substitution) = matcher::substitution(r).within("regex_rewrite")?;
        Some(PathRewrite::Regex { pattern, substitution })
    } else if !prefix.is_empty() {
        Some(PathRewrite::Prefix(clean(prefix, "prefix_rewrite")?))
    } else if full.contains('%') {
        // Envoy formats this text with access-log commands.
        return Err(Invalid::field("path_rewrite", "`%` commands are not supported"));
    } else if !full.is_empty() {
        Some(PathRewrite::Full(clean(full, "path_rewrite")?))
    } else {
        None
    })
}

fn template_rewrite(value: core::TypedExtensionConfig, matches: &RouteMatch) -> Result<PathRewrite> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config
        .filter(any::is::<UriTemplateRewriteConfig>)
        .ok_or_else(|| Invalid::new(format!("{name} is not supported; envoy.path.rewrite.uri_template.uri_template_rewriter is")))?;
    let UriTemplateRewriteConfig { path_template_rewrite } = open(&config)?;
    let PathMatch::Template(template) = &matches.path else {
        return Err(Invalid::new(format!("{name} needs a path_match_policy in the route's match")));
    };
    PathTemplateRewrite::compile(&path_template_rewrite, template)
        .map(PathRewrite::Template)
        .map_err(|why| Invalid::field("typed_config.path_template_rewrite", format!("`{path_template_rewrite}`: {why}")))
}

fn host_rewrite(value: Option<HostRewriteSpecifier>) -> Result<Option<HostRewrite>> {
    Ok(match value {
        None | Some(HostRewriteSpecifier::AutoHostRewrite(false)) => None,
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) if host.is_empty() => None,
        Some(HostRewriteSpecifier::AutoHostRewrite(true)) => Some(HostRewrite::Auto),
        Some(HostRewriteSpecifier::HostRewriteLiteral(host)) => {
            let value = HeaderValue::try_from(host).map_err(|_| Invalid::field("host_rewrite_literal", "is not a header value"))?;
            Some(HostRewrite::Literal(value))
        }
        Some(HostRewriteSpecifier::HostRewriteHeader(name)) => {
            Some(HostRewrite::Header(matcher::header_name(&name).within("host_rewrite_header")?))
        }
        Some(HostRewriteSpecifier::HostRewritePathRegex(regex)) => {
            let (pattern, substitution) = matcher::substitution(regex).within("host_rewrite_path_regex")?;
            Some(HostRewrite::PathRegex { pattern, substitution })
        }
        Some(HostRewriteSpecifier::HostRewrite(_)) => return Err(Invalid::unsupported("host_rewrite")),
    })
}

/// Each upgrade that a route names, and whether it is allowed.
type Allowed = Vec<(Arc<str>, bool)>;

/// Which upgrades the route lets through or not, and whether tunnels end here.
fn upgrades(values: Vec<route_action::UpgradeConfig>) -> Result<(Allowed, Option<Connect>)> {
    let (mut all, mut connect): (Allowed, _) = (Vec::with_capacity(values.len()), None);
    for (index, value) in values.into_iter().enumerate() {
        let (name, enabled, config) = upgrade(value).within_item("upgrade_configs", index)?;
        if all.iter().any(|(known, _)| *known == name) {
            return Err(Invalid::new(format!("{name} is named twice"))).within_item("upgrade_configs", index);
        }
        connect = connect.or(config);
        all.push((name, enabled));
    }
    Ok((all, connect))
}

fn upgrade(value: route_action::UpgradeConfig) -> Result<(Arc<str>, bool, Option<Connect>)> {
    let route_action::UpgradeConfig { upgrade_type, enabled, connect_config } = value;
    if upgrade_type.is_empty() {
        return Err(Invalid::field("upgrade_type", "is empty"));
    }
    if connect_config.is_some() && !upgrade_type.eq_ignore_ascii_case("connect") {
        return Err(Invalid::field("connect_config", format!("only CONNECT has one, not {upgrade_type}")));
    }
    let connect = connect_config.map(connect_of).transpose().within("connect_config")?;
    Ok((upgrade_type.to_ascii_lowercase().into(), enabled.unwrap_or(true), connect))
}

fn connect_of(value: route_action::upgrade_config::ConnectConfig) -> Result<Connect> {
    let route_action::upgrade_config::ConnectConfig { proxy_protocol_config, allow_post } = value;
    let proxy_protocol = proxy_protocol_config.map(proxy_protocol::addresses).transpose().within("proxy_protocol_config")?;
    Ok(Connect { proxy_protocol, allow_post })
}

/// `None` for a mirror that never happens.
fn mirror(value: route_action::RequestMirrorPolicy, context: &mut Context<'_>) -> Result<Option<Mirror>> {
    let route_action::RequestMirrorPolicy {
        cluster,
        cluster_header,
        runtime_fraction: fraction,
        trace_sampled,
        disable_shadow_host_suffix_append,
        request_headers_mutations,
        host_rewrite_literal,
    } = value;
    // Copies have no spans.
    harmless!(trace_sampled);
    let cluster = named(cluster, cluster_header, "cluster", context)?;
    let fraction = fraction.map(runtime_fraction).transpose().within("runtime_fraction")?.unwrap_or(Fraction::ALL);
    let host_rewrite = (!host_rewrite_literal.is_empty()).then(|| clean(host_rewrite_literal, "host_rewrite_literal")).transpose()?;
    let headers = header::mutation_list(request_headers_mutations, "request_headers_mutations")?;
    let mirror = Mirror { cluster, fraction, append_shadow: !disable_shadow_host_suffix_append, host_rewrite, headers };
    Ok((fraction.numerator > 0).then_some(mirror))
}

/// Also those of a cluster's own.
pub(super) fn hash_policies(values: Vec<route_action::HashPolicy>) -> Result<Vec<HashPolicy>> {
    each(values, "hash_policy", hash)
}

fn hash(value: route_action::HashPolicy) -> Result<HashPolicy> {
    use hash_policy::PolicySpecifier;
    let route_action::HashPolicy { terminal, policy_specifier } = value;
    let source =
        match policy_specifier {
            Some(PolicySpecifier::Header(hash_policy::Header { header_name, regex_rewrite })) => HashSource::Header {
                name: matcher::header_name(&header_name).within("header.header_name")?,
                rewrite: regex_rewrite.map(matcher::substitution).transpose().within("header.regex_rewrite")?,
            },
            Some(PolicySpecifier::Cookie(hash_policy::Cookie { name, ttl, path, attributes })) => {
                let attributes: String = attributes.iter().fold(String::new(), |text, hash_policy::CookieAttribute { name, value }| {
                    if value.is_empty() { text + "; " + name } else { text + "; " + name + "=" + value }
                });
                HashSource::Cookie {
                    name: clean(name, "cookie.name")?,
                    ttl: ttl.map(|d| duration(&d)).transpose().within("cookie.ttl")?,
                    path: clean(path, "cookie.path")?,
                    attributes: clean(attributes, "cookie.attributes")?,
                }
            }
            Some(PolicySpecifier::ConnectionProperties(p)) if p.source_ip => HashSource::SourceIp,
            Some(PolicySpecifier::QueryParameter(p)) => HashSource::QueryParameter(p.name.into()),
            Some(PolicySpecifier::ConnectionProperties(_)) => {
                return Err(Invalid::field("connection_properties.source_ip", "must be true"));
            }
            Some(PolicySpecifier::FilterState(_)) => return Err(Invalid::unsupported("filter_state")),
            None => return Err(Invalid::new("has no source to hash")),
        };
    Ok(HashPolicy { source, terminal })
}
