//! HTTP filters, listener-wide and per route.
use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderValue;
use lateen_proto::envoy::config::route::v3::{self as route, cors_policy};
use lateen_proto::envoy::extensions::filters::http as proto;
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3::{self as hcm, http_filter};
use lateen_proto::istio::envoy::config::filter::http::alpn::v2alpha1 as istio_alpn;
use lateen_proto::{Any, any};

use super::common::{open, runtime_fraction};
use super::context::{Context, Place};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::strings;
use super::{
    admission, bandwidth, buffer, compressor, dns_cache, ext_authz, ext_proc, extension, fault, global_ratelimit, grpc_stats,
    header_mutation, istio, jwt_authn, local_ratelimit, metadata, on_demand, opaque, rbac, small_filters, stateful_session,
};
use crate::http::{AlpnOverrides, Cors, FilterOverrides, HttpFilter, PerRoute, RbacPerRoute, Router};

/// What is supported, for the error about everything else.
const SUPPORTED: &str = "router, fault, cors, grpc_stats, rbac, local_ratelimit, header_to_metadata, jwt_authn, ext_authz, ratelimit, ext_proc, bandwidth_limit, admission_control, stateful_session, on_demand, dynamic_forward_proxy, buffer, compressor, decompressor, grpc_web, header_mutation, csrf, set_metadata, health_check, grpc_http1_reverse_bridge, istio.alpn, istio.stats, istio.metadata_exchange and envoy.filters.http.peer_metadata";

/// The filters of a connection manager, with what belongs to each.
pub(crate) struct Chain {
    pub(crate) filters: Vec<HttpFilter>,
    pub(crate) names: Vec<Arc<str>>,
    /// Only routes switch it on; empty when none is.
    pub(crate) off: Vec<bool>,
}

/// Filters of a chain: which of them an exchange meets is kept as so many bits.
const MOST_FILTERS: usize = 64;

/// The filters of a connection manager. The last must be the router.
pub(crate) fn chain(values: Vec<hcm::HttpFilter>, field: &str, context: &mut Context<'_>) -> Result<Chain> {
    let mut filters = Vec::with_capacity(values.len());
    let mut names: Vec<Arc<str>> = Vec::with_capacity(values.len());
    let mut off = Vec::with_capacity(values.len());
    let last = values.len().wrapping_sub(1);
    for (index, value) in values.into_iter().enumerate() {
        let name: Arc<str> = value.name.as_str().into();
        let disabled = value.disabled;
        let Some(filter) = filter(value, context).within_item(field, index)? else { continue };
        if matches!(filter, HttpFilter::Router(_)) != (index == last) {
            let reason = format!("{name}: the router must be the last filter, and the last filter must be the router");
            return Err(Invalid::new(reason)).within_item(field, index);
        }
        if disabled && index == last {
            return Err(Invalid::field("disabled", "is not for the router")).within_item(field, index);
        }
        names.push(name);
        filters.push(filter);
        off.push(disabled);
    }
    if filters.is_empty() {
        return Err(Invalid::field(field, "is empty; end it with envoy.filters.http.router"));
    }
    if filters.len() > MOST_FILTERS {
        return Err(Invalid::field(field, format!("has more than {MOST_FILTERS} filters")));
    }
    if !off.contains(&true) {
        off.clear();
    }
    Ok(Chain { filters, names, off })
}

/// `None` for a filter that is optional and unknown.
fn filter(value: hcm::HttpFilter, context: &mut Context<'_>) -> Result<Option<HttpFilter>> {
    let hcm::HttpFilter { name, is_optional, disabled: _taken, config_type } = value;
    let config = match config_type {
        Some(http_filter::ConfigType::TypedConfig(config)) if !config.type_url.is_empty() => opaque::typed(config)?,
        Some(http_filter::ConfigType::ConfigDiscovery(source)) => {
            let place = extension::place(&name, source, Place::Http, context, discovered).within("config_discovery")?;
            return Ok(Some(HttpFilter::Discovered(Arc::new(place))));
        }
        _ => return Err(Invalid::field("typed_config", format!("is missing for {name}"))),
    };
    match typed(&config, context)? {
        None if !is_optional => Err(unsupported(&name, &config)),
        filter => Ok(filter),
    }
}

/// What is discovered: anything but the router.
pub(crate) fn discovered(name: &str, config: &Any, context: &mut Context<'_>) -> Result<HttpFilter> {
    match typed(config, context)?.ok_or_else(|| unsupported(name, config))? {
        HttpFilter::Router(_) => Err(Invalid::new("the router is not discovered; give it in the listener")),
        filter => Ok(filter),
    }
}

/// `None` for a filter that there is not.
fn typed(config: &Any, context: &mut Context<'_>) -> Result<Option<HttpFilter>> {
    Ok(Some(if any::is::<proto::router::v3::Router>(config) {
        router(open(config)?)?
    } else if any::is::<proto::fault::v3::HttpFault>(config) {
        HttpFilter::Fault(Arc::new(fault::filter(open(config)?)?))
    } else if any::is::<proto::cors::v3::Cors>(config) {
        let proto::cors::v3::Cors {} = open(config)?;
        HttpFilter::Cors
    } else if any::is::<proto::grpc_stats::v3::FilterConfig>(config) {
        grpc_stats::filter(open(config)?)?
    } else if any::is::<proto::rbac::v3::Rbac>(config) {
        HttpFilter::Rbac(Arc::new(http_rbac(open(config)?)?))
    } else if any::is::<proto::local_ratelimit::v3::LocalRateLimit>(config) {
        HttpFilter::LocalRateLimit(Arc::new(local_ratelimit::filter(open(config)?, false)?))
    } else if any::is::<proto::header_to_metadata::v3::Config>(config) {
        HttpFilter::HeaderToMetadata(Arc::new(metadata::filter(open(config)?)?))
    } else if any::is::<proto::jwt_authn::v3::JwtAuthentication>(config) {
        HttpFilter::JwtAuthn(Arc::new(jwt_authn::filter(open(config)?, context)?))
    } else if any::is::<proto::ext_authz::v3::ExtAuthz>(config) {
        HttpFilter::ExtAuthz(Arc::new(ext_authz::filter(open(config)?, context)?))
    } else if any::is::<proto::ratelimit::v3::RateLimit>(config) {
        HttpFilter::RateLimit(Arc::new(global_ratelimit::filter(open(config)?, context)?))
    } else if any::is::<proto::ext_proc::v3::ExternalProcessor>(config) {
        HttpFilter::ExtProc(Arc::new(ext_proc::filter(open(config)?, context)?))
    } else if any::is::<proto::bandwidth_limit::v3::BandwidthLimit>(config) {
        HttpFilter::BandwidthLimit(Arc::new(bandwidth::filter(open(config)?, false)?))
    } else if any::is::<proto::admission_control::v3::AdmissionControl>(config) {
        HttpFilter::AdmissionControl(Arc::new(admission::filter(open(config)?)?))
    } else if any::is::<proto::stateful_session::v3::StatefulSession>(config) {
        HttpFilter::StatefulSession(Arc::new(stateful_session::filter(open(config)?)?))
    } else if any::is::<proto::on_demand::v3::OnDemand>(config) {
        HttpFilter::OnDemand(Arc::new(on_demand::filter(open(config)?)?))
    } else if any::is::<proto::buffer::v3::Buffer>(config) {
        HttpFilter::Buffer(Arc::new(buffer::filter(open(config)?)?))
    } else if any::is::<proto::header_mutation::v3::HeaderMutation>(config) {
        HttpFilter::HeaderMutation(Arc::new(header_mutation::filter(open(config)?)?))
    } else if any::is::<proto::csrf::v3::CsrfPolicy>(config) {
        HttpFilter::Csrf(Arc::new(small_filters::csrf_policy(open(config)?)?))
    } else if any::is::<proto::set_metadata::v3::Config>(config) {
        HttpFilter::SetMetadata(Arc::new(small_filters::fixed_metadata(open(config)?)?))
    } else if any::is::<proto::health_check::v3::HealthCheck>(config) {
        HttpFilter::HealthCheck(Arc::new(small_filters::health_check_filter(open(config)?)?))
    } else if any::is::<proto::grpc_http1_reverse_bridge::v3::FilterConfig>(config) {
        HttpFilter::GrpcReverseBridge(Arc::new(small_filters::reverse_bridge(open(config)?)?))
    } else if any::is::<proto::grpc_web::v3::GrpcWeb>(config) {
        let proto::grpc_web::v3::GrpcWeb {} = open(config)?;
        HttpFilter::GrpcWeb
    } else if any::is::<proto::compressor::v3::Compressor>(config) {
        HttpFilter::Compressor(Arc::new(compressor::filter(open(config)?)?))
    } else if any::is::<proto::decompressor::v3::Decompressor>(config) {
        HttpFilter::Decompressor(Arc::new(compressor::decompressor(open(config)?)?))
    } else if any::is::<proto::dynamic_forward_proxy::v3::FilterConfig>(config) {
        HttpFilter::DynamicForwardProxy(dns_cache::http_filter(open(config)?, context)?)
    } else if any::is::<istio_alpn::FilterConfig>(config) {
        alpn(open(config)?)?
    } else {
        return istio::http_filter(config, context.source);
    }))
}

fn unsupported(name: &str, config: &Any) -> Invalid {
    Invalid::new(format!("{name} ({}) is not supported; supported are {SUPPORTED}", istio::type_name(config)))
}

fn router(value: proto::router::v3::Router) -> Result<HttpFilter> {
    let proto::router::v3::Router {
        dynamic_stats,
        start_child_span,
        upstream_log,
        upstream_log_options,
        suppress_envoy_headers,
        strict_check_headers,
        respect_expected_rq_timeout,
        suppress_grpc_request_failure_code_stats,
        upstream_http_filters,
        reject_connect_request_early_data,
    } = value;
    harmless!(dynamic_stats, upstream_log_options, suppress_grpc_request_failure_code_stats, reject_connect_request_early_data);
    refuse!(upstream_log, strict_check_headers, upstream_http_filters);
    Ok(HttpFilter::Router(Arc::new(Router { suppress_envoy_headers, start_child_span, respect_expected_rq_timeout })))
}

pub(crate) fn http_rbac(value: proto::rbac::v3::Rbac) -> Result<crate::matcher::Rbac> {
    let proto::rbac::v3::Rbac {
        rules,
        rules_stat_prefix,
        matcher,
        shadow_rules,
        shadow_matcher,
        shadow_rules_stat_prefix,
        track_per_rule_stats,
    } = value;
    rbac::filter(rbac::Parts {
        judged: rbac::Judged::Requests,
        rules,
        matcher,
        shadow_rules,
        shadow_matcher,
        stat_prefix: rules_stat_prefix,
        shadow_stat_prefix: shadow_rules_stat_prefix,
        tracks_policies: track_per_rule_stats,
    })
}

fn alpn(value: istio_alpn::FilterConfig) -> Result<HttpFilter> {
    use istio_alpn::filter_config::Protocol;
    let mut overrides = AlpnOverrides::default();
    for (index, entry) in value.alpn_override.into_iter().enumerate() {
        let istio_alpn::filter_config::AlpnOverride { upstream_protocol, alpn_override } = entry;
        let list = Arc::new(alpn_override.into_iter().map(String::into_bytes).collect());
        match Protocol::try_from(upstream_protocol) {
            Ok(Protocol::Http10) => overrides.http10 = list,
            Ok(Protocol::Http11) => overrides.http11 = list,
            Ok(Protocol::Http2) => overrides.http2 = list,
            Err(_) => return Err(Invalid::field("upstream_protocol", "is not known")).within_item("alpn_override", index),
        }
    }
    Ok(HttpFilter::IstioAlpn(Arc::new(overrides)))
}

/// `typed_per_filter_config` of a route, virtual host or weighted cluster.
pub(crate) fn per_route(values: HashMap<String, Any>) -> Result<FilterOverrides> {
    let mut result = FilterOverrides::default();
    // In the order of names, so that the same configuration always gives the same error.
    let mut values: Vec<_> = values.into_iter().collect();
    values.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, config) in values {
        per_filter(&mut result, &name, config).within(&format!("typed_per_filter_config[\"{name}\"]"))?;
    }
    Ok(result)
}

fn per_filter(overrides: &mut FilterOverrides, name: &str, config: Any) -> Result<()> {
    if !any::is::<route::FilterConfig>(&config) {
        let config = opaque::typed(config)?;
        let made = per_route_of(&config)?.ok_or_else(|| unsupported_per_route(name, &config))?;
        overrides.configs.push((name.into(), made));
        return Ok(());
    }
    let route::FilterConfig { config, is_optional, disabled } = open(&config)?;
    overrides.disabled.push((name.into(), disabled));
    if disabled {
        return Ok(());
    }
    let config = config.ok_or_else(|| Invalid::field("config", "is missing; an empty one switches the filter on"))?;
    if config.type_url.is_empty() {
        return Ok(());
    }
    let config = opaque::typed(config).within("config")?;
    match per_route_of(&config).within("config")? {
        Some(made) => overrides.configs.push((name.into(), made)),
        None if is_optional => {}
        None => return Err(unsupported_per_route(name, &config)).within("config"),
    }
    Ok(())
}

/// `None` for what no filter takes of a route.
fn per_route_of(config: &Any) -> Result<Option<PerRoute>> {
    let mut result = PerRoute::default();
    if any::is::<proto::fault::v3::HttpFault>(config) {
        result.fault = Some(Arc::new(fault::filter(open(config)?)?));
    } else if any::is::<proto::cors::v3::CorsPolicy>(config) {
        result.cors = Some(Arc::new(cors(open(config)?)?));
    } else if any::is::<proto::rbac::v3::RbacPerRoute>(config) {
        let proto::rbac::v3::RbacPerRoute { rbac } = open(config)?;
        result.rbac = Some(Arc::new(match rbac {
            None => RbacPerRoute::Disabled,
            Some(rbac) => RbacPerRoute::Override(Arc::new(http_rbac(rbac).within("rbac")?)),
        }));
    } else if any::is::<proto::local_ratelimit::v3::LocalRateLimit>(config) {
        result.local_rate_limit = Some(Arc::new(local_ratelimit::filter(open(config)?, true)?));
    } else if any::is::<proto::header_to_metadata::v3::Config>(config) {
        result.header_to_metadata = Some(Arc::new(metadata::filter(open(config)?)?));
    } else if any::is::<proto::jwt_authn::v3::PerRouteConfig>(config) {
        result.jwt_authn = Some(Arc::new(jwt_authn::per_route(open(config)?)?));
    } else if any::is::<proto::stateful_session::v3::StatefulSessionPerRoute>(config) {
        result.stateful_session = Some(Arc::new(stateful_session::per_route(open(config)?)?));
    } else if any::is::<proto::on_demand::v3::PerRouteConfig>(config) {
        result.on_demand = Some(Arc::new(on_demand::per_route(open(config)?)?));
    } else if any::is::<proto::buffer::v3::BufferPerRoute>(config) {
        result.buffer = Some(Arc::new(buffer::per_route(open(config)?)?));
    } else if any::is::<proto::header_mutation::v3::HeaderMutationPerRoute>(config) {
        result.header_mutation = Some(Arc::new(header_mutation::per_route(open(config)?)?));
    } else if any::is::<proto::grpc_http1_reverse_bridge::v3::FilterConfigPerRoute>(config) {
        let proto::grpc_http1_reverse_bridge::v3::FilterConfigPerRoute { disabled } = open(config)?;
        result.grpc_reverse_bridge_disabled = Some(Arc::new(disabled));
    } else if any::is::<proto::csrf::v3::CsrfPolicy>(config) {
        result.csrf = Some(Arc::new(small_filters::csrf_policy(open(config)?)?));
    } else if any::is::<proto::compressor::v3::CompressorPerRoute>(config) {
        result.compressor = Some(Arc::new(compressor::per_route(open(config)?)?));
    } else if any::is::<proto::ext_authz::v3::ExtAuthzPerRoute>(config) {
        result.ext_authz = Some(Arc::new(ext_authz::per_route(open(config)?)?));
    } else if any::is::<proto::ratelimit::v3::RateLimitPerRoute>(config) {
        result.rate_limit = Some(Arc::new(global_ratelimit::per_route(open(config)?)?));
    } else if any::is::<proto::ext_proc::v3::ExtProcPerRoute>(config) {
        result.ext_proc = Some(Arc::new(ext_proc::per_route(open(config)?)?));
    } else if any::is::<proto::bandwidth_limit::v3::BandwidthLimit>(config) {
        result.bandwidth_limit = Some(Arc::new(bandwidth::filter(open(config)?, true)?));
    } else if any::is::<proto::dynamic_forward_proxy::v3::PerRouteConfig>(config) {
        result.dynamic_forward_proxy = dns_cache::per_route(open(config)?)?.map(Arc::new);
    } else {
        return Ok(None);
    }
    Ok(Some(result))
}

fn unsupported_per_route(name: &str, config: &Any) -> Invalid {
    Invalid::new(format!(
        "{name} ({}) is not supported per route; fault, cors, rbac, local_ratelimit, header_to_metadata, jwt_authn, ext_authz, ratelimit, ext_proc, bandwidth_limit, stateful_session, on_demand, dynamic_forward_proxy, buffer, compressor, header_mutation, csrf and grpc_http1_reverse_bridge are",
        istio::type_name(config)
    ))
}

fn cors(value: proto::cors::v3::CorsPolicy) -> Result<Cors> {
    let proto::cors::v3::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    } = value;
    harmless!(shadow_enabled);
    Ok(Cors {
        allow_origins: strings(allow_origin_string_match, "allow_origin_string_match")?,
        allow_methods: header_value(allow_methods, "allow_methods")?,
        allow_headers: header_value(allow_headers, "allow_headers")?,
        expose_headers: header_value(expose_headers, "expose_headers")?,
        max_age: header_value(max_age, "max_age")?,
        allow_credentials,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled: filter_enabled.map(runtime_fraction).transpose().within("filter_enabled")?,
    })
}

/// The older form of the policy, in the route itself.
pub(crate) fn route_cors(value: route::CorsPolicy) -> Result<Cors> {
    let route::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
        enabled_specifier,
    } = value;
    let filter_enabled = enabled_specifier.map(|cors_policy::EnabledSpecifier::FilterEnabled(f)| f);
    cors(proto::cors::v3::CorsPolicy {
        allow_origin_string_match,
        allow_methods,
        allow_headers,
        expose_headers,
        max_age,
        allow_credentials,
        filter_enabled,
        shadow_enabled,
        allow_private_network_access,
        forward_not_matching_preflights,
    })
}

fn header_value(text: String, field: &str) -> Result<Option<HeaderValue>> {
    if text.is_empty() {
        return Ok(None);
    }
    HeaderValue::try_from(text).map(Some).map_err(|_| Invalid::field(field, "holds a character that a header value must not have"))
}
