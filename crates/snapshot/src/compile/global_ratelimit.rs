//! The filter that asks a rate limit service.
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::config::ratelimit::v3::RateLimitServiceConfig;
use lateen_proto::envoy::extensions::filters::http::ratelimit::v3::{self as proto, rate_limit, rate_limit_per_route as per};
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{limit, runtime_fraction};
use super::context::Context;
use super::invalid::{Invalid, Result, Within};
use super::{header, ratelimit};
use crate::global_ratelimit::{GlobalRateLimit, LimitedRequests, RateLimitPerRoute};
use crate::matcher::Fraction;
use crate::ratelimit::VirtualHostLimits;

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);
/// Envoy's default of `metadata_namespace`.
const NAMESPACE: &str = "envoy.filters.http.ratelimit";
/// More are refused, as by Envoy.
const MOST_HEADERS: usize = 10;

pub(crate) fn filter(value: proto::RateLimit, context: &mut Context<'_>) -> Result<GlobalRateLimit> {
    let proto::RateLimit {
        domain,
        stage,
        request_type,
        timeout,
        failure_mode_deny,
        rate_limited_as_resource_exhausted,
        rate_limit_service,
        enable_x_ratelimit_headers,
        disable_x_envoy_ratelimited_header,
        rate_limited_status,
        response_headers_to_add,
        status_on_error,
        stat_prefix,
        filter_enabled,
        filter_enforced,
        failure_mode_deny_percent,
        rate_limits,
        metadata_namespace,
        enable_retry_after_header,
    } = value;
    if domain.is_empty() {
        return Err(Invalid::field("domain", "is empty"));
    }
    if response_headers_to_add.len() > MOST_HEADERS {
        return Err(Invalid::field("response_headers_to_add", format!("has more than {MOST_HEADERS} items")));
    }
    let share = |value: Option<_>, default, field| value.map_or(Ok(default), |v| runtime_fraction(v).within(field));
    let deny = if failure_mode_deny { Fraction::ALL } else { Fraction::NONE };
    let mut service = service(rate_limit_service, context).within("rate_limit_service")?;
    service.timeout = limit(timeout.as_ref(), Some(TIMEOUT), "timeout")?;
    Ok(GlobalRateLimit {
        domain: domain.into(),
        stage: ratelimit::stage(stage)?,
        requests: match request_type.as_str() {
            "" | "both" => LimitedRequests::Both,
            "internal" => LimitedRequests::Internal,
            "external" => LimitedRequests::External,
            other => return Err(Invalid::field("request_type", format!("`{other}` is not internal, external or both"))),
        },
        service,
        failure_mode_deny: share(failure_mode_deny_percent, deny, "failure_mode_deny_percent")?,
        resource_exhausted: rate_limited_as_resource_exhausted,
        quota_headers: enable_x_ratelimit_headers == rate_limit::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        marks: !disable_x_envoy_ratelimited_header,
        retry_after: enable_retry_after_header,
        status: error(rate_limited_status, 429, "rate_limited_status")?,
        status_on_error: error(status_on_error, 500, "status_on_error")?,
        response_headers: header::additions(response_headers_to_add, "response_headers_to_add")?,
        stat_prefix: if stat_prefix.is_empty() { "ratelimit".into() } else { format!("ratelimit.{stat_prefix}").into() },
        enabled: share(filter_enabled, Fraction::ALL, "filter_enabled")?,
        enforced: share(filter_enforced, Fraction::ALL, "filter_enforced")?,
        limits: ratelimit::of_filter(rate_limits, "rate_limits")?,
        metadata_namespace: if metadata_namespace.is_empty() { NAMESPACE.into() } else { metadata_namespace.into() },
    })
}

pub(crate) fn service(value: Option<RateLimitServiceConfig>, context: &mut Context<'_>) -> Result<crate::service::GrpcService> {
    let RateLimitServiceConfig { grpc_service, transport_api_version } = value.ok_or_else(|| Invalid::new("is missing"))?;
    if core::ApiVersion::try_from(transport_api_version) != Ok(core::ApiVersion::V3) {
        return Err(Invalid::field("transport_api_version", "must be V3"));
    }
    let service = grpc_service.ok_or_else(|| Invalid::new("is missing"));
    service.and_then(|s| super::service::grpc(s, None, context)).within("grpc_service")
}

/// Anything that is no error is answered as `default`.
fn error(value: Option<types::HttpStatus>, default: u16, field: &str) -> Result<u16> {
    let code = value.map_or(0, |types::HttpStatus { code }| code);
    match u16::try_from(code) {
        Ok(code @ 400..600) => Ok(code),
        Ok(0..400) => Ok(default),
        _ => Err(Invalid::field(field, format!("{code} is not a status"))),
    }
}

/// What a route, a virtual host or a weighted cluster says.
pub(crate) fn per_route(value: proto::RateLimitPerRoute) -> Result<RateLimitPerRoute> {
    let proto::RateLimitPerRoute { vh_rate_limits, override_option, rate_limits, domain } = value;
    let older = match per::VhRateLimitsOptions::try_from(vh_rate_limits) {
        Ok(per::VhRateLimitsOptions::Override) => VirtualHostLimits::Override,
        Ok(per::VhRateLimitsOptions::Include) => VirtualHostLimits::Include,
        Ok(per::VhRateLimitsOptions::Ignore) => VirtualHostLimits::Ignore,
        Err(_) => return Err(Invalid::field("vh_rate_limits", format!("{vh_rate_limits} is not known"))),
    };
    let virtual_host = match per::OverrideOptions::try_from(override_option) {
        Ok(per::OverrideOptions::Default) => older,
        Ok(per::OverrideOptions::OverridePolicy) => VirtualHostLimits::Override,
        Ok(per::OverrideOptions::IncludePolicy) => VirtualHostLimits::Include,
        Ok(per::OverrideOptions::IgnorePolicy) => VirtualHostLimits::Ignore,
        Err(_) => return Err(Invalid::field("override_option", format!("{override_option} is not known"))),
    };
    Ok(RateLimitPerRoute {
        virtual_host,
        limits: ratelimit::of_filter(rate_limits, "rate_limits")?,
        domain: (!domain.is_empty()).then(|| domain.into()),
    })
}
