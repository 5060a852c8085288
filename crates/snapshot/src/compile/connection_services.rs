//! The network filters that ask another server about a connection.
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::common::ratelimit::v3::{RateLimitDescriptor, rate_limit_descriptor};
use lateen_proto::envoy::extensions::filters::network::{ext_authz::v3 as ext_authz, ratelimit::v3 as ratelimit};
use lateen_telemetry::access_log::TextFormat;

use super::common::limit;
use super::context::Context;
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::{global_ratelimit, service};
use crate::connection_services::{ConnectionAuthorization, ConnectionQuota, QuotaDescriptor};

/// Envoy's defaults.
const AUTHORIZER_TIMEOUT: Duration = Duration::from_millis(200);
const QUOTA_TIMEOUT: Duration = Duration::from_millis(20);

pub(crate) fn authorization(value: ext_authz::ExtAuthz, context: &mut Context<'_>) -> Result<ConnectionAuthorization> {
    let ext_authz::ExtAuthz {
        stat_prefix,
        grpc_service,
        failure_mode_allow,
        include_peer_certificate,
        transport_api_version,
        filter_enabled_metadata,
        bootstrap_metadata_labels_key,
        include_tls_session,
        send_tls_alert_on_denial,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        shadow_mode,
    } = value;
    // No filter of a connection writes typed metadata.
    harmless!(typed_metadata_context_namespaces);
    refuse!(filter_enabled_metadata, bootstrap_metadata_labels_key, send_tls_alert_on_denial, metadata_context_namespaces, shadow_mode);
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty"));
    }
    if core::ApiVersion::try_from(transport_api_version) != Ok(core::ApiVersion::V3) {
        return Err(Invalid::field("transport_api_version", "must be V3"));
    }
    let service = grpc_service.ok_or_else(|| Invalid::new("is missing"));
    Ok(ConnectionAuthorization {
        stat_prefix: stat_prefix.into(),
        service: service.and_then(|s| service::grpc(s, Some(AUTHORIZER_TIMEOUT), context)).within("grpc_service")?,
        failure_mode_allow,
        include_peer_certificate,
        include_tls_session,
    })
}

pub(crate) fn quota(value: ratelimit::RateLimit, context: &mut Context<'_>) -> Result<ConnectionQuota> {
    let ratelimit::RateLimit { stat_prefix, domain, descriptors, timeout, failure_mode_deny, rate_limit_service } = value;
    for (field, text) in [("stat_prefix", &stat_prefix), ("domain", &domain)] {
        if text.is_empty() {
            return Err(Invalid::field(field, "is empty"));
        }
    }
    if descriptors.is_empty() {
        return Err(Invalid::field("descriptors", "is empty"));
    }
    let mut service = global_ratelimit::service(rate_limit_service, context).within("rate_limit_service")?;
    service.timeout = limit(timeout.as_ref(), Some(QUOTA_TIMEOUT), "timeout")?;
    Ok(ConnectionQuota {
        stat_prefix: stat_prefix.into(),
        domain: domain.into(),
        descriptors: each(descriptors, "descriptors", descriptor)?,
        service,
        failure_mode_deny,
    })
}

fn descriptor(value: RateLimitDescriptor) -> Result<QuotaDescriptor> {
    let RateLimitDescriptor { entries, limit, hits_addend, is_negative_hits } = value;
    refuse!(limit, hits_addend, is_negative_hits);
    if entries.is_empty() {
        return Err(Invalid::field("entries", "is empty"));
    }
    each(entries, "entries", |rate_limit_descriptor::Entry { key, value }| {
        if key.is_empty() {
            return Err(Invalid::field("key", "is empty"));
        }
        TextFormat::compile(&value).map_err(|e| Invalid::field("value", e.to_string()))?;
        Ok((key.into(), value.into()))
    })
}
