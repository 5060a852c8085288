//! The fault filter.
use std::time::Duration;

use lateen_proto::envoy::extensions::filters::common::fault::v3::{self as common_fault, fault_delay, fault_rate_limit};
use lateen_proto::envoy::extensions::filters::http::fault::v3::{self as fault, fault_abort};

use super::common::{duration, fraction};
use super::invalid::{Invalid, Result, Within, harmless};
use super::matcher::headers;
use crate::http::{AbortKind, DelayKind, Fault, FaultAbort, FaultDelay, FaultRateLimit, RateKind};
use crate::matcher::Fraction;

pub(crate) fn filter(value: fault::HttpFault) -> Result<Fault> {
    let fault::HttpFault {
        delay: delay_config,
        abort: abort_config,
        upstream_cluster,
        headers: header_matchers,
        downstream_nodes,
        max_active_faults,
        response_rate_limit,
        delay_percent_runtime,
        abort_percent_runtime,
        delay_duration_runtime,
        abort_http_status_runtime,
        max_active_faults_runtime,
        response_rate_limit_percent_runtime,
        abort_grpc_status_runtime,
        disable_downstream_cluster_stats,
        filter_metadata,
    } = value;
    harmless!(delay_percent_runtime, abort_percent_runtime, delay_duration_runtime, abort_http_status_runtime, max_active_faults_runtime);
    harmless!(response_rate_limit_percent_runtime, abort_grpc_status_runtime, disable_downstream_cluster_stats, filter_metadata);
    Ok(Fault {
        delay: delay_config.map(delay).transpose().within("delay")?.flatten(),
        abort: abort_config.map(abort).transpose().within("abort")?,
        rate_limit: response_rate_limit.map(rate_limit).transpose().within("response_rate_limit")?,
        upstream_cluster: (!upstream_cluster.is_empty()).then(|| upstream_cluster.into()),
        downstream_nodes: downstream_nodes.into_iter().map(Into::into).collect(),
        headers: headers(header_matchers, "headers")?,
        max_active_faults,
    })
}

fn delay(value: common_fault::FaultDelay) -> Result<Option<FaultDelay>> {
    let common_fault::FaultDelay { percentage, fault_delay_secifier } = value;
    let kind = match fault_delay_secifier {
        Some(fault_delay::FaultDelaySecifier::FixedDelay(d)) => match duration(&d).within("fixed_delay")? {
            Duration::ZERO => return Ok(None),
            span => DelayKind::Fixed(span),
        },
        Some(fault_delay::FaultDelaySecifier::HeaderDelay(_)) => DelayKind::Header,
        None => return Err(Invalid::new("has no fixed_delay or header_delay")),
    };
    Ok(Some(FaultDelay { kind, fraction: share(percentage)? }))
}

fn abort(value: fault::FaultAbort) -> Result<FaultAbort> {
    let fault::FaultAbort { percentage, response_body, error_type } = value;
    let kind = match error_type {
        Some(fault_abort::ErrorType::HttpStatus(s)) => match u16::try_from(s) {
            Ok(status @ 200..600) => AbortKind::Http(status),
            _ => return Err(Invalid::field("http_status", format!("{s} is not between 200 and 599"))),
        },
        Some(fault_abort::ErrorType::GrpcStatus(s)) => AbortKind::Grpc(s),
        Some(fault_abort::ErrorType::HeaderAbort(_)) => AbortKind::Header,
        None => return Err(Invalid::new("has no http_status, grpc_status or header_abort")),
    };
    let body = (!response_body.is_empty()).then(|| response_body.into());
    Ok(FaultAbort { kind, fraction: share(percentage)?, body })
}

fn rate_limit(value: common_fault::FaultRateLimit) -> Result<FaultRateLimit> {
    let common_fault::FaultRateLimit { percentage, limit_type } = value;
    let kind = match limit_type {
        Some(fault_rate_limit::LimitType::FixedLimit(limit)) => {
            let fault_rate_limit::FixedLimit { limit_kbps } = limit;
            if limit_kbps == 0 {
                return Err(Invalid::field("fixed_limit.limit_kbps", "must be at least 1"));
            }
            RateKind::Fixed(limit_kbps)
        }
        Some(fault_rate_limit::LimitType::HeaderLimit(_)) => RateKind::Header,
        None => return Err(Invalid::new("has no fixed_limit or header_limit")),
    };
    Ok(FaultRateLimit { kind, fraction: share(percentage)? })
}

/// Envoy takes a missing percentage as zero.
fn share(value: Option<lateen_proto::envoy::r#type::v3::FractionalPercent>) -> Result<Fraction> {
    value.map_or(Ok(Fraction::NONE), |v| fraction(v).within("percentage"))
}
