//! Active health checks of a cluster.
use lateen_proto::envoy::config::core::v3::{self as core, health_check};

use super::common::{duration, port};
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::cluster::{HealthCheck, HealthCheckKind};

pub(crate) fn active_check(value: core::HealthCheck, cluster: &str) -> Result<HealthCheck> {
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
    harmless!(initial_jitter, interval_jitter, interval_jitter_percent, reuse_connection, no_traffic_interval, no_traffic_healthy_interval);
    harmless!(unhealthy_interval, unhealthy_edge_interval, healthy_edge_interval, event_log_path, event_logger, event_service);
    harmless!(always_log_health_check_failures, always_log_health_check_success);
    refuse!(alt_port, tls_options, transport_socket_match_criteria);
    let positive = |value: Option<lateen_proto::Duration>, field: &str| match value.map(|d| duration(&d)).transpose().within(field)? {
        Some(d) if !d.is_zero() => Ok(d),
        _ => Err(Invalid::field(field, "must be given and above zero")),
    };
    Ok(HealthCheck {
        timeout: positive(timeout, "timeout")?,
        interval: positive(interval, "interval")?,
        healthy_threshold: healthy_threshold.unwrap_or(1).max(1),
        unhealthy_threshold: unhealthy_threshold.unwrap_or(1).max(1),
        kind: checker(health_checker, cluster)?,
    })
}

fn checker(value: Option<health_check::HealthChecker>, cluster: &str) -> Result<HealthCheckKind> {
    use health_check::HealthChecker;
    match value {
        Some(HealthChecker::HttpHealthCheck(h)) => http_check(h, cluster).within("http_health_check"),
        Some(HealthChecker::TcpHealthCheck(health_check::TcpHealthCheck { send, receive, proxy_protocol_config })) => {
            let checked = || -> Result<HealthCheckKind> {
                refuse!(send, receive, proxy_protocol_config);
                Ok(HealthCheckKind::Tcp)
            };
            checked().within("tcp_health_check")
        }
        Some(HealthChecker::GrpcHealthCheck(health_check::GrpcHealthCheck { service_name, authority, initial_metadata })) => {
            let checked = || -> Result<HealthCheckKind> {
                refuse!(initial_metadata);
                let authority = if authority.is_empty() { cluster.into() } else { authority.into() };
                Ok(HealthCheckKind::Grpc { service: service_name.into(), authority })
            };
            checked().within("grpc_health_check")
        }
        Some(HealthChecker::CustomHealthCheck(_)) => Err(Invalid::unsupported("custom_health_check")),
        None => Err(Invalid::new("has no checker; give http_health_check, tcp_health_check or grpc_health_check")),
    }
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
    harmless!(response_buffer_size, retriable_statuses);
    refuse!(send, receive, request_headers_to_add, request_headers_to_remove, service_name_matcher);
    if !matches!(core::RequestMethod::try_from(method), Ok(core::RequestMethod::MethodUnspecified | core::RequestMethod::Get)) {
        return Err(Invalid::field("method", "only GET is supported"));
    }
    refuse!(codec_client_type);
    if !path.starts_with('/') {
        return Err(Invalid::field("path", format!("`{path}` must begin with a slash")));
    }
    let mut expected = Vec::new();
    for (index, range) in expected_statuses.into_iter().enumerate() {
        let bound =
            |n: i64| u32::try_from(n).map_err(|_| Invalid::new("is not a status")).and_then(port).within_item("expected_statuses", index);
        expected.push(bound(range.start)?..bound(range.end)?);
    }
    if expected.is_empty() {
        expected.push(200..201);
    }
    let host = if host.is_empty() { cluster.into() } else { host.into() };
    Ok(HealthCheckKind::Http { host, path: path.into(), expected })
}
