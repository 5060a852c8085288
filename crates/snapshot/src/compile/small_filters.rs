//! Filters with a few fields each: CSRF, fixed metadata, health checks, the gRPC bridge.
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::{
    csrf::v3 as csrf, grpc_http1_reverse_bridge::v3 as bridge, health_check::v3 as health_check, set_metadata::v3 as set_metadata,
};

use super::common::{limit, runtime_fraction};
use super::invalid::{Invalid, Result, Within, refuse};
use super::matcher::{header_name, headers, strings};
use crate::http::{Csrf, FixedMetadata, GrpcReverseBridge, HealthCheckFilter, SetMetadata};
use crate::matcher::Fraction;
use crate::metadata::from_proto;

pub(crate) fn csrf_policy(value: csrf::CsrfPolicy) -> Result<Csrf> {
    let csrf::CsrfPolicy { filter_enabled, shadow_enabled, additional_origins } = value;
    let fraction = |value: Option<core::RuntimeFractionalPercent>, field: &str| value.map(runtime_fraction).transpose().within(field);
    Ok(Csrf {
        enabled: fraction(filter_enabled, "filter_enabled")?.ok_or_else(|| Invalid::field("filter_enabled", "is missing"))?,
        shadow: fraction(shadow_enabled, "shadow_enabled")?.unwrap_or(Fraction::NONE),
        additional_origins: strings(additional_origins, "additional_origins")?,
    })
}

pub(crate) fn fixed_metadata(config: set_metadata::Config) -> Result<SetMetadata> {
    let set_metadata::Config { metadata_namespace, value, metadata } = config;
    let mut entries = Vec::with_capacity(metadata.len() + 1);
    // The older form, which always writes over what is there.
    if !metadata_namespace.is_empty() {
        let value = plain(value.unwrap_or_default());
        entries.push(FixedMetadata { namespace: metadata_namespace.into(), allow_overwrite: true, value });
    }
    for (index, entry) in metadata.into_iter().enumerate() {
        entries.extend(one(entry).within_item("metadata", index)?);
    }
    Ok(SetMetadata { entries })
}

fn plain(value: prost_types::Struct) -> std::sync::Arc<serde_json::Value> {
    std::sync::Arc::new(from_proto(&prost_types::Value { kind: Some(prost_types::value::Kind::StructValue(value)) }))
}

fn one(entry: set_metadata::Metadata) -> Result<Option<FixedMetadata>> {
    let set_metadata::Metadata { metadata_namespace, allow_overwrite, value, typed_value } = entry;
    refuse!(typed_value);
    if metadata_namespace.is_empty() {
        return Err(Invalid::field("metadata_namespace", "is missing"));
    }
    Ok(value.map(|value| FixedMetadata { namespace: metadata_namespace.into(), allow_overwrite, value: plain(value) }))
}

pub(crate) fn health_check_filter(value: health_check::HealthCheck) -> Result<HealthCheckFilter> {
    let health_check::HealthCheck { pass_through_mode, cache_time, cluster_min_healthy_percentages, headers: header_matchers } = value;
    let Some(pass_through) = pass_through_mode else { return Err(Invalid::field("pass_through_mode", "is missing")) };
    let cache = limit(cache_time.as_ref(), None, "cache_time")?;
    if cache.is_some() && !pass_through {
        return Err(Invalid::field("cache_time", "is for pass_through_mode alone"));
    }
    if pass_through && !cluster_min_healthy_percentages.is_empty() {
        return Err(Invalid::field("cluster_min_healthy_percentages", "is not for pass_through_mode"));
    }
    let mut min_healthy: Vec<(std::sync::Arc<str>, f64)> =
        cluster_min_healthy_percentages.into_iter().map(|(name, percent)| (name.into(), percent.value)).collect();
    min_healthy.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(HealthCheckFilter { pass_through, cache, min_healthy, headers: headers(header_matchers, "headers")? })
}

pub(crate) fn reverse_bridge(value: bridge::FilterConfig) -> Result<GrpcReverseBridge> {
    let bridge::FilterConfig { content_type, withhold_grpc_frames, response_size_header } = value;
    let content_type = http::HeaderValue::try_from(content_type).ok().filter(|v| !v.is_empty());
    let size_header = (!response_size_header.is_empty()).then(|| header_name(&response_size_header)).transpose();
    Ok(GrpcReverseBridge {
        content_type: content_type.ok_or_else(|| Invalid::field("content_type", "is missing, or no header value"))?,
        withhold_frames: withhold_grpc_frames,
        size_header: size_header.within("response_size_header")?.filter(|_| withhold_grpc_frames),
    })
}
