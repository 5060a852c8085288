//! Active health checks of a cluster.
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::Method;
use lateen_balance::health::Pace;
use lateen_proto::any;
use lateen_proto::envoy::config::core::v3::{self as core, health_check};
use lateen_proto::envoy::extensions::health_check::event_sinks::file::v3::HealthCheckEventFileSink;
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{duration, duration_or, open, port};
use super::header::mutations;
use super::invalid::{Invalid, Result, Within, each, harmless, refuse};
use super::matcher::string;
use super::transport_choice::TransportChoice;
use crate::header::{AppendAction, HeaderTemplate};
use crate::health_check::{CheckHeader, EventLog, HealthCheck, HealthCheckKind, HttpCheck};

/// Envoy's default.
const NO_TRAFFIC: Duration = Duration::from_secs(60);
/// Bytes of an answer that are looked at; Envoy's default.
const RECEIVE_WITHIN: usize = 1024;

pub(crate) fn active_check(value: core::HealthCheck, cluster: &str, choice: &TransportChoice) -> Result<HealthCheck> {
    let core::HealthCheck {
        timeout,
        interval,
        initial_jitter,
        interval_jitter,
        interval_jitter_percent,
        unhealthy_threshold,
        healthy_threshold,
        alt_port,
        reuse_connection,
        no_traffic_interval,
        no_traffic_healthy_interval,
        unhealthy_interval,
        unhealthy_edge_interval,
        healthy_edge_interval,
        event_log_path,
        event_logger,
        event_service,
        always_log_health_check_failures,
        always_log_health_check_success,
        tls_options,
        transport_socket_match_criteria,
        health_checker,
    } = value;
    // Each check makes a connection of its own, which no caller can see.
    harmless!(reuse_connection);
    refuse!(event_service);
    let mut paths = each(event_logger, "event_logger", event_sink)?;
    // Envoy writes to the sinks first.
    paths.extend(Some(event_log_path).filter(|path| !path.is_empty()).map(Into::into));
    let events = EventLog { paths, always_failures: always_log_health_check_failures, always_successes: always_log_health_check_success };
    let base = positive(interval, "interval")?;
    let or = |value: Option<lateen_proto::Duration>, default, field| match value {
        None => Ok(default),
        Some(d) => positive(Some(d), field),
    };
    let no_traffic = or(no_traffic_interval, NO_TRAFFIC, "no_traffic_interval")?;
    let unhealthy = or(unhealthy_interval, base, "unhealthy_interval")?;
    let zero = Duration::ZERO;
    let pace = Pace {
        interval: base,
        no_traffic_interval: no_traffic,
        no_traffic_healthy_interval: or(no_traffic_healthy_interval, no_traffic, "no_traffic_healthy_interval")?,
        unhealthy_interval: unhealthy,
        unhealthy_edge_interval: or(unhealthy_edge_interval, unhealthy, "unhealthy_edge_interval")?,
        healthy_edge_interval: or(healthy_edge_interval, base, "healthy_edge_interval")?,
        initial_jitter: duration_or(initial_jitter.as_ref(), zero, "initial_jitter")?,
        interval_jitter: duration_or(interval_jitter.as_ref(), zero, "interval_jitter")?,
        interval_jitter_percent,
        healthy_threshold: healthy_threshold.unwrap_or(1).max(1),
        unhealthy_threshold: unhealthy_threshold.unwrap_or(1).max(1),
    };
    let alpn = tls_options.map(|health_check::TlsOptions { alpn_protocols }| alpn_protocols).filter(|list| !list.is_empty());
    Ok(HealthCheck {
        timeout: positive(timeout, "timeout")?,
        pace,
        alt_port: alt_port.map(port).transpose().within("alt_port")?,
        transport: transport_socket_match_criteria
            .map(|criteria| choice.of_criteria(&criteria))
            .transpose()
            .within("transport_socket_match_criteria")?,
        alpn: alpn.map(|list| list.into_iter().map(String::into_bytes).collect()),
        kind: checker(health_checker, cluster)?,
        events,
    })
}

fn event_sink(value: core::TypedExtensionConfig) -> Result<Arc<str>> {
    let core::TypedExtensionConfig { name, typed_config } = value;
    let config = typed_config.ok_or_else(|| Invalid::field("typed_config", format!("is missing for {name}")))?;
    if !any::is::<HealthCheckEventFileSink>(&config) {
        return Err(Invalid::new(format!("{name} ({}) is not supported; the file sink is", any::name_of(&config.type_url))));
    }
    let HealthCheckEventFileSink { event_log_path } = open(&config)?;
    if event_log_path.is_empty() {
        return Err(Invalid::field("typed_config.event_log_path", "is empty"));
    }
    Ok(event_log_path.into())
}

fn positive(value: Option<lateen_proto::Duration>, field: &str) -> Result<Duration> {
    match value.map(|d| duration(&d)).transpose().within(field)? {
        Some(d) if !d.is_zero() => Ok(d),
        _ => Err(Invalid::field(field, "must be given and above zero")),
    }
}

fn checker(value: Option<health_check::HealthChecker>, cluster: &str) -> Result<HealthCheckKind> {
    use health_check::HealthChecker;
    match value {
        Some(HealthChecker::HttpHealthCheck(h)) => http_check(h, cluster).within("http_health_check"),
        Some(HealthChecker::TcpHealthCheck(t)) => tcp_check(t).within("tcp_health_check"),
        Some(HealthChecker::GrpcHealthCheck(g)) => grpc_check(g, cluster).within("grpc_health_check"),
        Some(HealthChecker::CustomHealthCheck(_)) => Err(Invalid::unsupported("custom_health_check")),
        None => Err(Invalid::new("has no checker; give http_health_check, tcp_health_check or grpc_health_check")),
    }
}

fn tcp_check(value: health_check::TcpHealthCheck) -> Result<HealthCheckKind> {
    let health_check::TcpHealthCheck { send, receive, proxy_protocol_config } = value;
    let proxy = proxy_protocol_config.map(super::proxy_protocol::upstream).transpose().within("proxy_protocol_config")?;
    let send = send.map(payload).transpose().within("send")?.unwrap_or_default();
    let receive = each(receive, "receive", payload)?;
    Ok(HealthCheckKind::Tcp { proxy, send, receive })
}

/// Bytes: hexadecimal text, or binary as it is.
fn payload(value: health_check::Payload) -> Result<Vec<u8>> {
    use health_check::payload::Payload;
    let bytes = match value.payload {
        Some(Payload::Text(text)) => hex(&text).ok_or_else(|| Invalid::field("text", format!("`{text}` is not hexadecimal")))?,
        Some(Payload::Binary(bytes)) => bytes.to_vec(),
        None => Vec::new(),
    };
    if bytes.is_empty() { Err(Invalid::new("is empty; give text in hexadecimal, or binary")) } else { Ok(bytes) }
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u32>> = text.chars().map(|c| c.to_digit(16)).collect();
    let pair = |pair: &[u32]| match pair {
        [high, low] => u8::try_from(high * 16 + low).ok(),
        _ => None,
    };
    digits?.chunks(2).map(pair).collect()
}

fn grpc_check(value: health_check::GrpcHealthCheck, cluster: &str) -> Result<HealthCheckKind> {
    let health_check::GrpcHealthCheck { service_name, authority, initial_metadata } = value;
    let authority = if authority.is_empty() { cluster.into() } else { authority.into() };
    let (headers, _) = headers(initial_metadata, Vec::new())?;
    Ok(HealthCheckKind::Grpc { service: service_name.into(), authority, headers })
}

fn http_check(value: health_check::HttpHealthCheck, cluster: &str) -> Result<HealthCheckKind> {
    let health_check::HttpHealthCheck {
        host,
        path,
        send,
        receive,
        response_buffer_size,
        request_headers_to_add,
        request_headers_to_remove,
        expected_statuses,
        retriable_statuses,
        codec_client_type,
        service_name_matcher,
        method,
    } = value;
    if !path.starts_with('/') {
        return Err(Invalid::field("path", format!("`{path}` must begin with a slash")));
    }
    let http2 = match types::CodecClientType::try_from(codec_client_type) {
        Ok(types::CodecClientType::Http1) => false,
        Ok(types::CodecClientType::Http2) => true,
        _ => return Err(Invalid::field("codec_client_type", "only HTTP1 and HTTP2 are supported")),
    };
    let mut expected = statuses(expected_statuses, "expected_statuses")?;
    if expected.is_empty() {
        expected.push(200..201);
    }
    let (add, remove) = headers(request_headers_to_add, request_headers_to_remove)?;
    let method = self::method(method)?;
    if send.is_some() && !matches!(method, Method::POST | Method::PUT | Method::PATCH | Method::OPTIONS) {
        return Err(Invalid::field("send", format!("cannot go with {method}; use POST, PUT, PATCH or OPTIONS")));
    }
    let receive_within =
        response_buffer_size.map_or(RECEIVE_WITHIN, |n| if n == 0 { usize::MAX } else { usize::try_from(n).unwrap_or(usize::MAX) });
    Ok(HealthCheckKind::Http(HttpCheck {
        host: if host.is_empty() { cluster.into() } else { host.into() },
        path: path.into(),
        method,
        http2,
        expected,
        retriable: statuses(retriable_statuses, "retriable_statuses")?,
        add,
        remove,
        send: send.map(payload).transpose().within("send")?.unwrap_or_default().into(),
        receive: each(receive, "receive", payload)?,
        receive_within,
        service: service_name_matcher.map(string).transpose().within("service_name_matcher")?,
    }))
}

fn method(value: i32) -> Result<Method> {
    use core::RequestMethod as M;
    Ok(match M::try_from(value) {
        Ok(M::MethodUnspecified | M::Get) => Method::GET,
        Ok(M::Head) => Method::HEAD,
        Ok(M::Post) => Method::POST,
        Ok(M::Put) => Method::PUT,
        Ok(M::Delete) => Method::DELETE,
        Ok(M::Options) => Method::OPTIONS,
        Ok(M::Trace) => Method::TRACE,
        Ok(M::Patch) => Method::PATCH,
        // Envoy refuses it as well: a check is no tunnel.
        Ok(M::Connect) | Err(_) => return Err(Invalid::field("method", "cannot be used for a health check")),
    })
}

fn statuses(values: Vec<types::Int64Range>, field: &str) -> Result<Vec<Range<u16>>> {
    let bound = |n: i64| u16::try_from(n).ok().filter(|n| (100..=600).contains(n));
    let range = |(index, types::Int64Range { start, end }): (usize, types::Int64Range)| match (bound(start), bound(end)) {
        (Some(start), Some(end)) if start < end => Ok(start..end),
        _ => Err(Invalid::new(format!("{start} to {end} is not a range of statuses; use 100 to 600, the end excluded"))
            .inside(&format!("{field}[{index}]"))),
    };
    values.into_iter().enumerate().map(range).collect()
}

type Headers = (Vec<CheckHeader>, Vec<http::HeaderName>);

fn headers(add: Vec<core::HeaderValueOption>, remove: Vec<String>) -> Result<Headers> {
    let mutations = mutations(add, remove, "request")?;
    let mut fixed = Vec::with_capacity(mutations.add.len());
    for addition in mutations.add {
        let HeaderTemplate::Fixed(value) = addition.value else {
            return Err(Invalid::new(format!("header {}: commands are not supported in health checks; give a fixed value", addition.name)));
        };
        let append = matches!(addition.action, AppendAction::AppendIfExistsOrAdd);
        fixed.push(CheckHeader { name: addition.name, value, append });
    }
    Ok((fixed, mutations.remove))
}
