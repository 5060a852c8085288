//! Services that the proxy asks itself: gRPC services and HTTP addresses behind a cluster.
use std::time::Duration;

use http::{HeaderName, HeaderValue};
use lateen_proto::envoy::config::core::v3::{self as core, grpc_service};

use super::common::{duration, limit};
use super::context::Context;
use super::header;
use super::invalid::{Invalid, Result, Within, refuse};
use super::matcher::header_name;
use crate::header::HeaderTemplate;
use crate::service::{GrpcService, HttpUri};

/// What gRPC libraries take at most unless told; Envoy takes anything.
const MAX_MESSAGE: usize = 4 << 20;

/// A service that answers within its timeout, `default` where none is given; zero is no limit.
pub(crate) fn grpc(value: core::GrpcService, default: Option<Duration>, context: &mut Context<'_>) -> Result<GrpcService> {
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } = value;
    refuse!(retry_policy);
    let timeout = limit(timeout.as_ref(), default, "timeout")?;
    let headers = initial_metadata.into_iter().enumerate().map(|(i, h)| fixed_header(h).within_item("initial_metadata", i));
    let headers = headers.collect::<Result<_>>()?;
    let grpc_service::EnvoyGrpc { cluster_name, authority, retry_policy, max_receive_message_length, skip_envoy_headers } =
        envoy_grpc(target_specifier)?;
    if retry_policy.is_some() {
        return Err(Invalid::field("envoy_grpc.retry_policy", "is not supported; remove it"));
    }
    Ok(GrpcService {
        authority: if authority.is_empty() { cluster_name.as_str().into() } else { authority.into() },
        cluster: context.cluster(&cluster_name),
        timeout,
        headers,
        max_message: max_receive_message_length.filter(|n| *n > 0).map_or(MAX_MESSAGE, |n| n as usize),
        envoy_headers: !skip_envoy_headers,
    })
}

fn envoy_grpc(value: Option<grpc_service::TargetSpecifier>) -> Result<grpc_service::EnvoyGrpc> {
    match value {
        Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)) if target.cluster_name.is_empty() => {
            Err(Invalid::field("envoy_grpc.cluster_name", "is empty"))
        }
        Some(grpc_service::TargetSpecifier::EnvoyGrpc(target)) => Ok(target),
        Some(grpc_service::TargetSpecifier::GoogleGrpc(_)) => {
            Err(Invalid::field("google_grpc", "is not supported; use envoy_grpc with a cluster"))
        }
        None => Err(Invalid::new("names no target; use envoy_grpc")),
    }
}

/// An address whose cluster is asked within its timeout; zero is no limit.
pub(crate) fn http_uri(value: Option<core::HttpUri>, context: &mut Context<'_>) -> Result<HttpUri> {
    let core::HttpUri { uri, timeout, http_upstream_type } = value.ok_or_else(|| Invalid::new("is missing"))?;
    let cluster = match http_upstream_type {
        Some(core::http_uri::HttpUpstreamType::Cluster(name)) if !name.is_empty() => name,
        _ => return Err(Invalid::field("cluster", "is empty")),
    };
    let wrong = || Invalid::field("uri", format!("`{uri}` is not an http or https address"));
    let parsed: http::Uri = uri.parse().map_err(|_| wrong())?;
    let authority = parsed.authority().ok_or_else(wrong)?.as_str().into();
    let path = parsed.path_and_query().map_or("/", |p| p.as_str()).into();
    let timeout = timeout.ok_or_else(|| Invalid::new("is missing")).and_then(|d| duration(&d)).within("timeout")?;
    Ok(HttpUri { cluster: context.cluster(&cluster), authority, path, timeout: (!timeout.is_zero()).then_some(timeout) })
}

/// A header whose value is the same in every request.
pub(crate) fn fixed_header(value: core::HeaderValue) -> Result<(HeaderName, HeaderValue)> {
    let core::HeaderValue { key, value, raw_value } = value;
    let value = if raw_value.is_empty() {
        match header::template(&value).within("value")? {
            HeaderTemplate::Fixed(value) => value,
            HeaderTemplate::Format(_) => return Err(Invalid::field("value", "`%` commands are not supported here")),
        }
    } else {
        HeaderValue::from_bytes(&raw_value)
            .map_err(|_| Invalid::field("raw_value", "holds a character that a header value must not have"))?
    };
    Ok((header_name(&key).within("key")?, value))
}
