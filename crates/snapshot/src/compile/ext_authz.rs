//! The external authorization filter: whom it asks, what of a request the authorizer gets, and what its answer may change.
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::ext_authz::v3::{self as proto, ext_authz, ext_authz_per_route};
use lateen_proto::envoy::r#type::matcher::v3 as matcher;
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{runtime_flag, runtime_fraction};
use super::context::Context;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::matcher::strings;
use super::{header, metadata, service};
use crate::ext_authz::{AllowedHeaders, Authorizer, AuthorizerPath, BodyRules, ExtAuthz, ExtAuthzPerRoute, HttpAuthorizer};
use crate::matcher::{Fraction, StringMatcher};

/// Envoy's default for gRPC authorizers.
const TIMEOUT: Duration = Duration::from_millis(200);
/// Bodies are held whole: no limit above this is taken at its word.
const MOST_BODY: usize = 64 << 20;

pub(crate) fn filter(value: proto::ExtAuthz, context: &mut Context<'_>) -> Result<ExtAuthz> {
    let proto::ExtAuthz {
        services,
        transport_api_version,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body,
        clear_route_cache,
        status_on_error,
        validate_mutations,
        metadata_context_namespaces,
        typed_metadata_context_namespaces,
        route_metadata_context_namespaces,
        route_typed_metadata_context_namespaces,
        filter_enabled,
        filter_enabled_metadata,
        deny_at_disable,
        include_peer_certificate,
        stat_prefix,
        bootstrap_metadata_labels_key,
        allowed_headers,
        disallowed_headers,
        include_tls_session,
        charge_cluster_response_stats,
        encode_raw_headers,
        decoder_header_mutation_rules,
        enable_dynamic_metadata_ingestion,
        filter_metadata,
        emit_filter_state_stats,
        max_denied_response_body_bytes,
        enforce_response_header_limits,
        shadow_mode,
        emit_client_span,
    } = value;
    // No filter writes typed metadata, and questions have no spans of their own.
    harmless!(typed_metadata_context_namespaces, emit_client_span);
    refuse!(route_metadata_context_namespaces, route_typed_metadata_context_namespaces, bootstrap_metadata_labels_key);
    refuse!(decoder_header_mutation_rules, filter_metadata, emit_filter_state_stats, enforce_response_header_limits, shadow_mode);
    let grpc = matches!(services, Some(ext_authz::Services::GrpcService(_)));
    if grpc && core::ApiVersion::try_from(transport_api_version) != Ok(core::ApiVersion::V3) {
        return Err(Invalid::field("transport_api_version", "must be V3"));
    }
    let allowed = list(allowed_headers, "allowed_headers")?;
    let disallowed = list(disallowed_headers, "disallowed_headers")?.unwrap_or_default();
    let (service, allowed) = authorizer(services, allowed, context)?;
    Ok(ExtAuthz {
        service,
        failure_mode_allow,
        failure_mode_allow_header_add,
        with_request_body: with_request_body.map(body).transpose().within("with_request_body")?,
        clear_route_cache,
        status_on_error: status(status_on_error).within("status_on_error")?,
        validate_mutations,
        metadata_namespaces: metadata_context_namespaces.into_iter().map(Into::into).collect(),
        enabled: filter_enabled.map_or(Ok(Fraction::ALL), runtime_fraction).within("filter_enabled")?,
        enabled_metadata: filter_enabled_metadata.map(metadata::matcher).transpose().within("filter_enabled_metadata")?,
        deny_at_disable: runtime_flag(deny_at_disable, false),
        include_peer_certificate,
        include_tls_session,
        stat_prefix: stat_prefix.into(),
        headers: AllowedHeaders { allowed, disallowed },
        charge_cluster: charge_cluster_response_stats.unwrap_or(true),
        raw_headers: encode_raw_headers,
        ingest_metadata: enable_dynamic_metadata_ingestion.unwrap_or(true),
        max_denied_body: match max_denied_response_body_bytes {
            0 => usize::MAX,
            bytes => bytes as usize,
        },
    })
}

fn authorizer(
    value: Option<ext_authz::Services>,
    allowed: Option<Vec<StringMatcher>>,
    context: &mut Context<'_>,
) -> Result<(Authorizer, Option<Vec<StringMatcher>>)> {
    match value {
        Some(ext_authz::Services::GrpcService(grpc)) => {
            Ok((Authorizer::Grpc(service::grpc(grpc, Some(TIMEOUT), context).within("grpc_service")?), allowed))
        }
        Some(ext_authz::Services::HttpService(http)) => {
            let (authorizer, own) = http_authorizer(http, context).within("http_service")?;
            if own.is_some() && allowed.is_some() {
                return Err(Invalid::field("allowed_headers", "stands beside that of http_service.authorization_request; keep one"));
            }
            // Envoy sends these to HTTP authorizers in any case, and nothing else unasked.
            let mut allowed = own.or(allowed).unwrap_or_default();
            allowed.extend([":authority", ":method", ":path", "authorization"].map(exact));
            Ok((Authorizer::Http(Box::new(authorizer)), Some(allowed)))
        }
        None => Err(Invalid::new("has no grpc_service or http_service")),
    }
}

fn exact(text: &str) -> StringMatcher {
    StringMatcher::Exact { text: text.into(), ignore_case: true }
}

fn http_authorizer(value: proto::HttpService, context: &mut Context<'_>) -> Result<(HttpAuthorizer, Option<Vec<StringMatcher>>)> {
    let proto::HttpService { server_uri, path_prefix, path_override, authorization_request, authorization_response, retry_policy } = value;
    refuse!(retry_policy);
    let path = match (path_prefix.is_empty(), path_override.is_empty()) {
        (false, false) => return Err(Invalid::field("path_override", "stands beside path_prefix; keep one")),
        (true, false) => AuthorizerPath::Fixed(path_override.into()),
        (_, true) => AuthorizerPath::Prefix(path_prefix.into()),
    };
    let slash = match &path {
        AuthorizerPath::Prefix(text) => text.is_empty() || text.starts_with('/'),
        AuthorizerPath::Fixed(text) => text.starts_with('/'),
    };
    if !slash {
        return Err(Invalid::field("path_prefix", "must begin with a slash"));
    }
    let proto::AuthorizationRequest { allowed_headers, headers_to_add } = authorization_request.unwrap_or_default();
    let overwrite = core::header_value_option::HeaderAppendAction::OverwriteIfExistsOrAdd as i32;
    let option = |header| core::HeaderValueOption { header: Some(header), append_action: overwrite, ..Default::default() };
    let add = headers_to_add.into_iter().map(option).collect();
    let proto::AuthorizationResponse {
        allowed_upstream_headers,
        allowed_upstream_headers_to_append,
        allowed_client_headers,
        allowed_client_headers_on_success,
        dynamic_metadata_from_headers,
    } = authorization_response.unwrap_or_default();
    let own = |value, field| list(value, field).within("authorization_response").map(Option::unwrap_or_default);
    let mut client = own(allowed_client_headers, "allowed_client_headers")?;
    if !client.is_empty() {
        client.extend(["www-authenticate", "location", "proxy-authenticate"].map(exact));
    }
    let authorizer = HttpAuthorizer {
        uri: service::http_uri(server_uri, context).within("server_uri")?,
        path,
        add: header::additions(add, "headers_to_add").within("authorization_request")?,
        upstream: own(allowed_upstream_headers, "allowed_upstream_headers")?,
        upstream_append: own(allowed_upstream_headers_to_append, "allowed_upstream_headers_to_append")?,
        client,
        client_on_success: own(allowed_client_headers_on_success, "allowed_client_headers_on_success")?,
        metadata: own(dynamic_metadata_from_headers, "dynamic_metadata_from_headers")?,
    };
    Ok((authorizer, list(allowed_headers, "allowed_headers").within("authorization_request")?))
}

fn list(value: Option<matcher::ListStringMatcher>, field: &str) -> Result<Option<Vec<StringMatcher>>> {
    value.map(|matcher::ListStringMatcher { patterns }| strings(patterns, "patterns").within(field)).transpose()
}

fn body(value: proto::BufferSettings) -> Result<BodyRules> {
    let proto::BufferSettings { max_request_bytes, allow_partial_message, pack_as_bytes } = value;
    if max_request_bytes == 0 {
        return Err(Invalid::field("max_request_bytes", "must be more than zero"));
    }
    Ok(BodyRules { max_bytes: (max_request_bytes as usize).min(MOST_BODY), allow_partial: allow_partial_message, pack_as_bytes })
}

fn status(value: Option<types::HttpStatus>) -> Result<u16> {
    match value.map(|types::HttpStatus { code }| code) {
        None => Ok(403),
        Some(code) => match u16::try_from(code) {
            Ok(code @ 100..600) => Ok(code),
            _ => Err(Invalid::field("code", format!("{code} is not a status"))),
        },
    }
}

/// What a route, a virtual host or a weighted cluster says.
pub(crate) fn per_route(value: proto::ExtAuthzPerRoute) -> Result<ExtAuthzPerRoute> {
    match value.r#override {
        Some(ext_authz_per_route::Override::Disabled(disabled)) => Ok(ExtAuthzPerRoute { disabled, ..Default::default() }),
        Some(ext_authz_per_route::Override::CheckSettings(settings)) => check_settings(settings).within("check_settings"),
        None => Err(Invalid::new("needs disabled or check_settings")),
    }
}

fn check_settings(value: proto::CheckSettings) -> Result<ExtAuthzPerRoute> {
    let proto::CheckSettings { context_extensions, disable_request_body_buffering, with_request_body, service_override, emit_client_span } =
        value;
    harmless!(emit_client_span);
    refuse!(service_override);
    if disable_request_body_buffering && with_request_body.is_some() {
        return Err(Invalid::field("with_request_body", "stands beside disable_request_body_buffering; keep one"));
    }
    let mut context: Vec<_> = context_extensions.into_iter().collect();
    context.sort();
    Ok(ExtAuthzPerRoute {
        disabled: false,
        context,
        skip_body: disable_request_body_buffering,
        with_request_body: with_request_body.map(body).transpose().within("with_request_body")?,
    })
}
