//! The local rate limit filter: its buckets, and what a refusal looks like.
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::common::ratelimit::v3::{self as common, rate_limit_descriptor};
use lateen_proto::envoy::extensions::filters::http::local_ratelimit::v3 as proto;
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{duration, runtime_flag, runtime_fraction};
use super::invalid::{Invalid, Result, Within, each, refuse};
use super::{header, ratelimit};
use crate::listener::ConnectionRateLimit;
use crate::matcher::Fraction;
use crate::ratelimit::{Buckets, ByValue, Described, Entry, Limiter, LocalRateLimit, TokenBucket, VirtualHostLimits};

/// Envoy refuses buckets that fill more often.
const LEAST_INTERVAL_MS: u128 = 50;

/// Values that have a bucket of their own where a descriptor has none; Envoy's default.
const DYNAMIC: u32 = 20;
/// More would be a mistake: each takes some hundred bytes.
const MOST_DYNAMIC: u32 = 1_000_000;

/// A filter, listener-wide or for a route; only listener-wide may the bucket be missing.
pub(crate) fn filter(value: proto::LocalRateLimit, per_route: bool) -> Result<LocalRateLimit> {
    let proto::LocalRateLimit {
        stat_prefix,
        status,
        token_bucket,
        filter_enabled,
        filter_enforced,
        request_headers_to_add_when_not_enforced,
        response_headers_to_add,
        descriptors,
        stage,
        local_rate_limit_per_downstream_connection,
        local_cluster_rate_limit,
        enable_x_ratelimit_headers,
        vh_rate_limits,
        always_consume_default_token_bucket,
        rate_limited_as_resource_exhausted,
        rate_limits,
        max_dynamic_descriptors,
        enable_retry_after_header,
    } = value;
    refuse!(local_cluster_rate_limit);
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty"));
    }
    if per_route && token_bucket.is_none() {
        return Err(Invalid::field("token_bucket", "is missing; a route's limit needs one"));
    }
    let most = max_dynamic_descriptors.unwrap_or(DYNAMIC);
    if most == 0 || most > MOST_DYNAMIC {
        return Err(Invalid::field("max_dynamic_descriptors", format!("{most} is not between 1 and {MOST_DYNAMIC}")));
    }
    let mut limits = each(descriptors, "descriptors", |d| described(d, most as usize))?;
    for (index, limit) in limits.iter().enumerate() {
        if limits.iter().take(index).any(|other| other.entries == limit.entries) {
            return Err(Invalid::new("is there twice")).within_item("descriptors", index);
        }
    }
    limits.sort_by_key(|limit| std::cmp::Reverse(limit.cost()));
    let share = |value: Option<_>, field| value.map_or(Ok(Fraction::NONE), |v| runtime_fraction(v).within(field));
    Ok(LocalRateLimit {
        stat_prefix: stat_prefix.into(),
        status: refusal(status)?,
        enabled: share(filter_enabled, "filter_enabled")?,
        enforced: share(filter_enforced, "filter_enforced")?,
        limiter: Limiter {
            default: token_bucket.map(|b| bucket(&b).map(Into::into)).transpose().within("token_bucket")?,
            described: limits,
            always_default: always_consume_default_token_bucket.unwrap_or(true),
        },
        per_connection: local_rate_limit_per_downstream_connection,
        quota_headers: enable_x_ratelimit_headers == common::XRateLimitHeadersRfcVersion::DraftVersion03 as i32,
        retry_after: enable_retry_after_header,
        request_headers: header::additions(request_headers_to_add_when_not_enforced, "request_headers_to_add_when_not_enforced")?,
        response_headers: header::additions(response_headers_to_add, "response_headers_to_add")?,
        resource_exhausted: rate_limited_as_resource_exhausted,
        virtual_host: virtual_host(vh_rate_limits)?,
        stage: ratelimit::stage(stage)?,
        limits: ratelimit::of_filter(rate_limits, "rate_limits")?,
    })
}

/// The limit of a listener's or a chain's connections; `None` for one that is switched off.
pub(crate) fn connections(
    stat_prefix: String,
    token_bucket: Option<types::TokenBucket>,
    enabled: Option<core::RuntimeFeatureFlag>,
) -> Result<Option<ConnectionRateLimit>> {
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty"));
    }
    let bucket = token_bucket.as_ref().ok_or_else(|| Invalid::new("is missing")).and_then(bucket).within("token_bucket")?;
    Ok(runtime_flag(enabled, true).then(|| ConnectionRateLimit { stat_prefix: stat_prefix.into(), bucket }))
}

/// Anything that is no error is answered as 429.
fn refusal(value: Option<types::HttpStatus>) -> Result<u16> {
    let code = value.map_or(0, |types::HttpStatus { code }| code);
    match u16::try_from(code) {
        Ok(code @ 400..600) => Ok(code),
        Ok(0..400) => Ok(429),
        _ => Err(Invalid::field("status.code", format!("{code} is not a status"))),
    }
}

pub(crate) fn virtual_host(value: i32) -> Result<VirtualHostLimits> {
    match common::VhRateLimitsOptions::try_from(value) {
        Ok(common::VhRateLimitsOptions::Override) => Ok(VirtualHostLimits::Override),
        Ok(common::VhRateLimitsOptions::Include) => Ok(VirtualHostLimits::Include),
        Ok(common::VhRateLimitsOptions::Ignore) => Ok(VirtualHostLimits::Ignore),
        Err(_) => Err(Invalid::field("vh_rate_limits", format!("{value} is not known"))),
    }
}

fn described(value: common::LocalRateLimitDescriptor, most: usize) -> Result<Described> {
    let common::LocalRateLimitDescriptor { entries, token_bucket, shadow_mode } = value;
    if entries.is_empty() {
        return Err(Invalid::field("entries", "is empty"));
    }
    let entries = each(entries, "entries", entry)?;
    let bucket = token_bucket.as_ref().ok_or_else(|| Invalid::new("is missing")).and_then(bucket).within("token_bucket")?;
    let open = entries.iter().any(|e| e.value.is_empty());
    let buckets = if open { Buckets::ByValue(ByValue::new(bucket, most)) } else { Buckets::One(bucket.into()) };
    Ok(Described { entries, buckets, shadow: shadow_mode })
}

/// Without a value it stands for any.
fn entry(value: rate_limit_descriptor::Entry) -> Result<Entry<'static>> {
    let rate_limit_descriptor::Entry { key, value } = value;
    if key.is_empty() {
        return Err(Invalid::field("key", "is empty"));
    }
    Ok(Entry { key: key.into(), value: value.into() })
}

fn bucket(value: &types::TokenBucket) -> Result<TokenBucket> {
    let types::TokenBucket { max_tokens, tokens_per_fill, fill_interval } = value;
    let fill = tokens_per_fill.unwrap_or(1);
    if fill == 0 {
        return Err(Invalid::field("tokens_per_fill", "is zero"));
    }
    let interval = fill_interval.as_ref().ok_or_else(|| Invalid::new("is missing")).and_then(duration).within("fill_interval")?;
    if interval.as_millis() < LEAST_INTERVAL_MS {
        return Err(Invalid::field("fill_interval", "is shorter than 50ms"));
    }
    Ok(TokenBucket::new(*max_tokens, fill, u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX)))
}
