//! One virtual host: its routes, and the settings that most hosts of a table have in common.
use std::sync::Arc;

use lateen_proto::envoy::config::route::v3::{self as proto, virtual_host};

use super::context::Context;
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::route::{Inherited, shared_route};
use super::{filter, header, retry};
use crate::http::HeaderChanges;
use crate::route::{BufferLimit, HostSettings, RequireTls, VirtualHost};

pub(crate) fn one_virtual_host(mut value: proto::VirtualHost, inherited: &Inherited, context: &mut Context<'_>) -> Result<VirtualHost> {
    let name = std::mem::take(&mut value.name).into();
    let routes = std::mem::take(&mut value.routes);
    value.domains.clear();
    let mirrors = std::mem::take(&mut value.request_mirror_policies);
    let nested;
    let inherited = if mirrors.is_empty() {
        inherited
    } else {
        nested = Inherited { mirrors, direct_body_limit: inherited.direct_body_limit };
        &nested
    };
    let settings = shared_settings(value, context)?;
    let routes = each(routes, "routes", |r| shared_route(r, inherited, context))?;
    Ok(VirtualHost { name, routes: routes.into_boxed_slice(), settings })
}

/// The settings of a virtual host, or the same ones as those of another in the table.
fn shared_settings(rest: proto::VirtualHost, context: &mut Context<'_>) -> Result<Arc<HostSettings>> {
    if !rest.typed_per_filter_config.is_empty() {
        return host_settings(rest, context).map(Arc::new);
    }
    match context.shared.hosts.get(&rest) {
        Ok(known) => Ok(known),
        Err(key) => {
            let settings = host_settings(rest, context)?;
            Ok(context.shared.hosts.keep(key, settings))
        }
    }
}

fn host_settings(rest: proto::VirtualHost, context: &mut Context<'_>) -> Result<HostSettings> {
    let proto::VirtualHost {
        name: _taken,
        domains: _added,
        routes: _compiled,
        request_mirror_policies: _inherited,
        matcher,
        require_tls,
        virtual_clusters,
        rate_limits,
        request_headers_to_add,
        request_headers_to_remove,
        response_headers_to_add,
        response_headers_to_remove,
        cors,
        typed_per_filter_config,
        include_request_attempt_count,
        include_attempt_count_in_response,
        retry_policy,
        retry_policy_typed_config,
        hedge_policy,
        include_is_timeout_retry_header,
        per_request_buffer_limit_bytes,
        request_body_buffer_limit,
        metadata,
        route_specifiers,
    } = rest;
    // Virtual clusters only name statistics.
    harmless!(virtual_clusters, metadata);
    refuse!(matcher, retry_policy_typed_config, route_specifiers);
    let request = header::mutations(request_headers_to_add, request_headers_to_remove, "request")?;
    let response = header::mutations(response_headers_to_add, response_headers_to_remove, "response")?;
    Ok(HostSettings {
        headers: HeaderChanges { request, response },
        per_route: filter::per_route(typed_per_filter_config)?,
        cors: cors.map(|c| filter::route_cors(c).map(Arc::new)).transpose().within("cors")?,
        require_tls: match virtual_host::TlsRequirementType::try_from(require_tls) {
            Ok(virtual_host::TlsRequirementType::None) => RequireTls::None,
            Ok(virtual_host::TlsRequirementType::ExternalOnly) => RequireTls::ExternalOnly,
            Ok(virtual_host::TlsRequirementType::All) => RequireTls::All,
            Err(_) => return Err(Invalid::field("require_tls", format!("{require_tls} is not known"))),
        },
        retry: retry_policy.map(|p| context.retry(p)).transpose().within("retry_policy")?,
        include_request_attempt_count,
        include_attempt_count_in_response,
        include_is_timeout_retry: include_is_timeout_retry_header,
        hedge_on_per_try_timeout: hedge_policy.map(retry::hedge).transpose().within("hedge_policy")?.unwrap_or(false),
        buffer_limit: buffer_limit(per_request_buffer_limit_bytes, request_body_buffer_limit)?,
        rate_limits: super::ratelimit::limits(rate_limits, "rate_limits")?,
    })
}

pub(super) fn buffer_limit(older: Option<u32>, own: Option<u64>) -> Result<BufferLimit> {
    match (older, own) {
        (None, None) => Ok(BufferLimit::Inherited),
        (None, Some(bytes)) => Ok(BufferLimit::Own(bytes)),
        (Some(bytes), None) => Ok(BufferLimit::Below(bytes.into())),
        (Some(_), Some(_)) => {
            Err(Invalid::field("request_body_buffer_limit", "cannot stand beside per_request_buffer_limit_bytes; keep one"))
        }
    }
}
