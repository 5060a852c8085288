//! The HTTP connection manager.
use std::sync::Arc;
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::network::http_connection_manager::v3::{self as proto, http_connection_manager as inner};
use lateen_proto::{Any, wire};
use prost::Message;

use super::common::{cidr, duration, duration_or, headers_count, limit, percent};
use super::context::Context;
use super::http_version::{http1, http2};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::{access_log, file_names, filter, local_reply, original_ip, route, scoped_routes};
use crate::http::{
    Codec, CurrentClientCert, EscapedSlashes, ForwardClientCert, HttpConnectionManager, PathNormalization, RouteSource, ServerHeader,
    Underscores, Upgrade,
};
use crate::matcher::Cidr;

const FIVE_MINUTES: Duration = Duration::from_secs(300);
const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn manager(config: &Any, context: &mut Context<'_>) -> Result<HttpConnectionManager> {
    let mut hosts = Vec::new();
    // HttpConnectionManager.route_config, RouteConfiguration.virtual_hosts
    let rest = wire::take_out(&config.value, &[4, 2], &mut hosts);
    let value = proto::HttpConnectionManager::decode(rest.as_slice()).map_err(|e| Invalid::field("typed_config", e.to_string()))?;
    build(value, hosts, context)
}

fn build(value: proto::HttpConnectionManager, hosts: Vec<&[u8]>, context: &mut Context<'_>) -> Result<HttpConnectionManager> {
    let proto::HttpConnectionManager {
        codec_type,
        stat_prefix,
        http_filters,
        add_user_agent,
        tracing,
        common_http_protocol_options,
        http1_safe_max_connection_duration,
        http_protocol_options,
        http2_protocol_options,
        http3_protocol_options,
        server_name,
        server_header_transformation,
        scheme_header_transformation,
        max_request_headers_kb,
        stream_idle_timeout,
        stream_flush_timeout,
        request_timeout,
        request_headers_timeout,
        drain_timeout,
        drain_timeout_jitter,
        delayed_close_timeout,
        access_log,
        access_log_flush_interval,
        flush_access_log_on_new_request,
        access_log_options,
        use_remote_address,
        xff_num_trusted_hops,
        original_ip_detection_extensions,
        early_header_mutation_extensions,
        internal_address_config,
        skip_xff_append,
        via,
        generate_request_id,
        preserve_external_request_id,
        always_set_request_id_in_response,
        forward_client_cert_details,
        set_current_client_cert_details,
        forward_client_cert_matcher,
        proxy_100_continue,
        represent_ipv4_remote_address_as_ipv4_mapped_ipv6,
        upgrade_configs,
        normalize_path,
        merge_slashes,
        path_with_escaped_slashes_action,
        request_id_extension,
        local_reply_config,
        strip_matching_host_port,
        stream_error_on_invalid_http_message,
        path_normalization_options,
        strip_trailing_host_dot,
        proxy_status_config,
        typed_header_validation_config,
        append_x_forwarded_port,
        append_local_overload,
        add_proxy_protocol_connection_state,
        forward_proto_config,
        route_specifier,
        strip_port_mode,
    } = value;
    // An invalid message closes the connection in either case; 100-continue is always passed on;
    // jitter only spreads work in time.
    harmless!(drain_timeout_jitter, proxy_100_continue);
    harmless!(stream_error_on_invalid_http_message, add_proxy_protocol_connection_state, typed_header_validation_config);
    refuse!(access_log_flush_interval, represent_ipv4_remote_address_as_ipv4_mapped_ipv6);
    refuse!(add_user_agent, http3_protocol_options, scheme_header_transformation, flush_access_log_on_new_request);
    refuse!(early_header_mutation_extensions, forward_client_cert_matcher, path_normalization_options);
    refuse!(proxy_status_config, append_local_overload, forward_proto_config);
    refuse_log_options(access_log_options).within("access_log_options")?;
    let request_ids = super::tracing::request_ids(request_id_extension).within("request_id_extension")?;
    let common = common_http_protocol_options.unwrap_or_default();
    let core::HttpProtocolOptions {
        idle_timeout,
        max_connection_duration,
        max_connection_duration_jitter,
        max_headers_count,
        max_response_headers_kb,
        max_stream_duration,
        headers_with_underscores_action,
        max_requests_per_connection,
    } = common;
    let checked = || -> Result<()> {
        // Envoy takes it of clusters only.
        refuse!(max_response_headers_kb);
        Ok(())
    };
    checked().within("common_http_protocol_options")?;
    let max_headers_count = headers_count(max_headers_count).within("common_http_protocol_options")?;
    let jitter =
        max_connection_duration_jitter.map(percent).transpose().within("common_http_protocol_options.max_connection_duration_jitter")?;
    let original_ip = original_ip::detections(original_ip_detection_extensions)?;
    if !original_ip.is_empty() && (use_remote_address == Some(true) || xff_num_trusted_hops > 0) {
        let why = "cannot be used with use_remote_address or xff_num_trusted_hops; remove one";
        return Err(Invalid::field("original_ip_detection_extensions", why));
    }
    if stat_prefix.is_empty() {
        return Err(Invalid::field("stat_prefix", "is empty; give a name for statistics"));
    }
    let strip_any_host_port = matches!(strip_port_mode, Some(inner::StripPortMode::StripAnyHostPort(true)));
    let max_request_headers_kb = max_request_headers_kb.unwrap_or(60);
    if !(1..=8192).contains(&max_request_headers_kb) {
        return Err(Invalid::field("max_request_headers_kb", format!("{max_request_headers_kb} is not between 1 and 8192")));
    }
    let filter::Chain { filters, names: filter_names, off: filters_off } = filter::chain(http_filters, "http_filters", context)?;
    let suppress_envoy_headers = suppresses(&filters);
    let mut manager = HttpConnectionManager {
        stat_prefix: stat_prefix.into(),
        codec: codec(codec_type)?,
        http1: http1(http_protocol_options.unwrap_or_default()).within("http_protocol_options")?,
        http2: http2(http2_protocol_options.unwrap_or_default()).within("http2_protocol_options")?,
        routes: routes(route_specifier, hosts, context)?,
        filters,
        filter_names,
        filters_off,
        local_replies: local_reply_config.map(|c| local_reply::replies(c).map(Arc::new)).transpose().within("local_reply_config")?,
        access_logs: access_log::logs(access_log, "access_log")?,
        server_name: if server_name.is_empty() { "envoy".into() } else { route::clean(server_name, "server_name")?.into() },
        server_header: server_header(server_header_transformation)?,
        use_remote_address: use_remote_address.unwrap_or(false),
        xff_num_trusted_hops,
        original_ip,
        skip_xff_append,
        append_x_forwarded_port,
        internal_addresses: internal(internal_address_config).within("internal_address_config")?,
        generate_request_id: generate_request_id.unwrap_or(true),
        preserve_external_request_id,
        request_ids,
        always_set_request_id_in_response,
        forward_client_cert: forward_client_cert(forward_client_cert_details)?,
        set_current_client_cert: current_client_cert(set_current_client_cert_details).within("set_current_client_cert_details")?,
        path: PathNormalization {
            normalize: normalize_path.unwrap_or(false),
            escaped_slashes: escaped_slashes(path_with_escaped_slashes_action)?,
        },
        upgrades: Vec::new(),
        stream_idle_timeout: limit(stream_idle_timeout.as_ref(), Some(FIVE_MINUTES), "stream_idle_timeout")?,
        stream_flush_timeout: stream_flush_timeout.as_ref().map(duration).transpose().within("stream_flush_timeout")?,
        request_timeout: limit(request_timeout.as_ref(), None, "request_timeout")?,
        request_headers_timeout: limit(request_headers_timeout.as_ref(), None, "request_headers_timeout")?,
        idle_timeout: limit(idle_timeout.as_ref(), Some(HOUR), "common_http_protocol_options.idle_timeout")?,
        max_connection_duration: limit(max_connection_duration.as_ref(), None, "common_http_protocol_options.max_connection_duration")?,
        max_connection_duration_jitter_percent: jitter.unwrap_or(0.0),
        http1_safe_max_connection_duration,
        max_stream_duration: limit(max_stream_duration.as_ref(), None, "common_http_protocol_options.max_stream_duration")?,
        max_requests_per_connection: max_requests_per_connection.filter(|n| *n > 0),
        max_request_headers_kb,
        max_headers_count,
        // Envoy waits 5 s: streams on their way need a round trip.
        drain_timeout: duration_or(drain_timeout.as_ref(), Duration::from_secs(1), "drain_timeout")?,
        delayed_close_timeout: duration_or(delayed_close_timeout.as_ref(), Duration::from_secs(1), "delayed_close_timeout")?,
        via: (!via.is_empty()).then(|| route::clean(via, "via").map(Into::into)).transpose()?,
        merge_slashes,
        strip_matching_host_port,
        strip_any_host_port,
        strip_trailing_host_dot,
        tracing: tracing.map(|t| super::tracing::tracing(t, context).map(Arc::new)).transpose().within("tracing")?,
        suppress_envoy_headers,
        normalize_underscores: underscores(headers_with_underscores_action)?,
    };
    manager.upgrades = upgrades(upgrade_configs, &manager, context)?;
    Ok(manager)
}

fn routes(value: Option<inner::RouteSpecifier>, hosts: Vec<&[u8]>, context: &mut Context<'_>) -> Result<RouteSource> {
    match value {
        Some(inner::RouteSpecifier::RouteConfig(config)) => {
            let table = route::Sent { rest: config, hosts }.table(context).within("route_config")?;
            Ok(RouteSource::Inline(Arc::new(table)))
        }
        Some(inner::RouteSpecifier::Rds(proto::Rds { config_source, route_config_name })) => {
            if route_config_name.is_empty() {
                return Err(Invalid::field("rds.route_config_name", "is empty"));
            }
            file_names::check(&route_config_name).within("rds.route_config_name")?;
            let (key, timeout) = super::source::ads_or_file(config_source, &route_config_name).within("rds.config_source")?;
            Ok(RouteSource::Discovered(context.route_table(&key, timeout)))
        }
        Some(inner::RouteSpecifier::ScopedRoutes(value)) => {
            Ok(RouteSource::Scoped(Arc::new(scoped_routes::routes(value, context).within("scoped_routes")?)))
        }
        None => Err(Invalid::new("has no routes; give rds or route_config")),
    }
}

/// Pipes have no address here, so that nothing is internal for coming through one.
fn internal(value: Option<inner::InternalAddressConfig>) -> Result<Vec<Cidr>> {
    let inner::InternalAddressConfig { unix_sockets, cidr_ranges } = value.unwrap_or_default();
    refuse!(unix_sockets);
    cidr_ranges.into_iter().enumerate().map(|(i, block)| cidr(block).within_item("cidr_ranges", i)).collect()
}

fn codec(value: i32) -> Result<Codec> {
    match inner::CodecType::try_from(value) {
        Ok(inner::CodecType::Auto) => Ok(Codec::Auto),
        Ok(inner::CodecType::Http1) => Ok(Codec::Http1),
        Ok(inner::CodecType::Http2) => Ok(Codec::Http2),
        _ => Err(Invalid::field("codec_type", "is not supported; use AUTO, HTTP1 or HTTP2")),
    }
}

fn server_header(value: i32) -> Result<ServerHeader> {
    use inner::ServerHeaderTransformation as Transformation;
    match Transformation::try_from(value) {
        Ok(Transformation::Overwrite) => Ok(ServerHeader::Overwrite),
        Ok(Transformation::AppendIfAbsent) => Ok(ServerHeader::AppendIfAbsent),
        Ok(Transformation::PassThrough) => Ok(ServerHeader::PassThrough),
        Err(_) => Err(Invalid::field("server_header_transformation", format!("{value} is not known"))),
    }
}

fn forward_client_cert(value: i32) -> Result<ForwardClientCert> {
    use inner::ForwardClientCertDetails as Details;
    match Details::try_from(value) {
        Ok(Details::Sanitize) => Ok(ForwardClientCert::Sanitize),
        Ok(Details::ForwardOnly) => Ok(ForwardClientCert::ForwardOnly),
        Ok(Details::AppendForward) => Ok(ForwardClientCert::AppendForward),
        Ok(Details::SanitizeSet) => Ok(ForwardClientCert::SanitizeSet),
        Ok(Details::AlwaysForwardOnly) => Ok(ForwardClientCert::AlwaysForwardOnly),
        Err(_) => Err(Invalid::field("forward_client_cert_details", format!("{value} is not known"))),
    }
}

fn current_client_cert(value: Option<inner::SetCurrentClientCertDetails>) -> Result<CurrentClientCert> {
    let Some(inner::SetCurrentClientCertDetails { subject, cert, chain, dns, uri, issuer, format }) = value else {
        return Ok(CurrentClientCert::default());
    };
    refuse!(issuer, format);
    Ok(CurrentClientCert { subject: subject.unwrap_or(false), cert, chain, dns, uri })
}

fn escaped_slashes(value: i32) -> Result<EscapedSlashes> {
    use inner::PathWithEscapedSlashesAction as Action;
    match Action::try_from(value) {
        Ok(Action::ImplementationSpecificDefault | Action::KeepUnchanged) => Ok(EscapedSlashes::Keep),
        Ok(Action::RejectRequest) => Ok(EscapedSlashes::Reject),
        Ok(Action::UnescapeAndRedirect) => Ok(EscapedSlashes::UnescapeAndRedirect),
        Ok(Action::UnescapeAndForward) => Ok(EscapedSlashes::UnescapeAndForward),
        Err(_) => Err(Invalid::field("path_with_escaped_slashes_action", format!("{value} is not known"))),
    }
}

fn underscores(value: i32) -> Result<Underscores> {
    use core::http_protocol_options::HeadersWithUnderscoresAction as Action;
    match Action::try_from(value) {
        Ok(Action::Allow) => Ok(Underscores::Allow),
        Ok(Action::RejectRequest) => Ok(Underscores::RejectRequest),
        Ok(Action::DropHeader) => Ok(Underscores::DropHeader),
        Err(_) => Err(Invalid::field("common_http_protocol_options.headers_with_underscores_action", format!("{value} is not known"))),
    }
}

fn upgrades(values: Vec<inner::UpgradeConfig>, manager: &HttpConnectionManager, context: &mut Context<'_>) -> Result<Vec<Upgrade>> {
    let mut all: Vec<Upgrade> = Vec::with_capacity(values.len());
    for (index, value) in values.into_iter().enumerate() {
        let upgrade = upgrade(value, manager, context).within_item("upgrade_configs", index)?;
        if all.iter().any(|known| known.name == upgrade.name) {
            return Err(Invalid::new(format!("{} is named twice", upgrade.name))).within_item("upgrade_configs", index);
        }
        all.push(upgrade);
    }
    Ok(all)
}

fn upgrade(value: inner::UpgradeConfig, manager: &HttpConnectionManager, context: &mut Context<'_>) -> Result<Upgrade> {
    let inner::UpgradeConfig { upgrade_type, filters, enabled } = value;
    if upgrade_type.is_empty() {
        return Err(Invalid::field("upgrade_type", "is empty"));
    }
    let mut with_filters = |filters| {
        let filter::Chain { filters, names: filter_names, off: filters_off } = filter::chain(filters, "filters", context)?;
        if let Some(at) = filters.iter().position(|f| matches!(f, crate::http::HttpFilter::Discovered(_))) {
            return Err(Invalid::unsupported("config_discovery")).within_item("filters", at);
        }
        let suppress_envoy_headers = suppresses(&filters);
        Ok(Arc::new(HttpConnectionManager { filters, filter_names, filters_off, suppress_envoy_headers, ..manager.clone() }))
    };
    let manager = if filters.is_empty() { None } else { Some(with_filters(filters)?) };
    Ok(Upgrade { name: upgrade_type.to_ascii_lowercase().into(), enabled: enabled.unwrap_or(true), manager })
}

/// Whether the router among them keeps `x-envoy-` headers to itself.
fn suppresses(filters: &[crate::http::HttpFilter]) -> bool {
    filters.iter().any(|f| matches!(f, crate::http::HttpFilter::Router(r) if r.suppress_envoy_headers))
}

fn refuse_log_options(value: Option<inner::HcmAccessLogOptions>) -> Result<()> {
    let inner::HcmAccessLogOptions {
        access_log_flush_interval,
        flush_access_log_on_new_request,
        flush_log_on_tunnel_successfully_established,
    } = value.unwrap_or_default();
    refuse!(access_log_flush_interval, flush_access_log_on_new_request, flush_log_on_tunnel_successfully_established);
    Ok(())
}
