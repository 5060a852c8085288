//! The admission control filter.
use std::ops::RangeInclusive;
use std::time::Duration;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::admission_control::v3::{
    self as proto,
    admission_control::{EvaluationCriteria, SuccessCriteria, success_criteria},
};
use lateen_proto::envoy::r#type::v3 as types;

use super::common::{duration_or, percent, runtime_flag};
use super::invalid::{Invalid, Result, Within, each, harmless};
use crate::admission::AdmissionControl;

/// Envoy's default of `sampling_window`.
const WINDOW: Duration = Duration::from_secs(30);
/// Each second is counted by itself.
const LONGEST_WINDOW: Duration = Duration::from_secs(3600);
/// Statuses that fewer requests would not change (Envoy's default).
const GRPC_SUCCESS: [u32; 11] = [0, 1, 2, 3, 5, 6, 7, 9, 11, 12, 16];
/// In percent.
const THRESHOLD: f64 = 95.0;
const MOST_REJECTED: f64 = 80.0;

pub(crate) fn filter(value: proto::AdmissionControl) -> Result<AdmissionControl> {
    let proto::AdmissionControl {
        enabled,
        evaluation_criteria,
        sampling_window,
        aggression,
        sr_threshold,
        rps_threshold,
        max_rejection_probability,
    } = value;
    let Some(EvaluationCriteria::SuccessCriteria(criteria)) = evaluation_criteria else {
        return Err(Invalid::field("success_criteria", "is missing"));
    };
    let (http_success, grpc_success) = success(criteria).within("success_criteria")?;
    let window = duration_or(sampling_window.as_ref(), WINDOW, "sampling_window")?;
    let window = Duration::from_secs(window.as_secs() + u64::from(window.subsec_millis() >= 500));
    if window.is_zero() || window > LONGEST_WINDOW {
        return Err(Invalid::field("sampling_window", "is not between 1s and 1h"));
    }
    let threshold = runtime_percent(sr_threshold, THRESHOLD).within("sr_threshold")?;
    if threshold <= 0.0 {
        return Err(Invalid::field("sr_threshold", "is zero"));
    }
    Ok(AdmissionControl {
        enabled: runtime_flag(enabled, true),
        http_success,
        grpc_success,
        window,
        aggression: double(aggression, 1.0).within("aggression")?.max(1.0),
        threshold,
        rps_threshold: rps_threshold.map_or(0, |core::RuntimeUInt32 { default_value, runtime_key }| {
            harmless!(runtime_key);
            default_value
        }),
        most_rejected: runtime_percent(max_rejection_probability, MOST_REJECTED).within("max_rejection_probability")?,
    })
}

fn success(value: SuccessCriteria) -> Result<(Vec<RangeInclusive<u16>>, Vec<u32>)> {
    let SuccessCriteria { http_criteria, grpc_criteria } = value;
    let http = match http_criteria {
        None => vec![100..=499],
        Some(success_criteria::HttpCriteria { http_success_status }) if http_success_status.is_empty() => {
            return Err(Invalid::field("http_criteria.http_success_status", "is empty"));
        }
        Some(criteria) => each(criteria.http_success_status, "http_criteria.http_success_status", range)?,
    };
    let grpc = match grpc_criteria {
        None => GRPC_SUCCESS.to_vec(),
        Some(success_criteria::GrpcCriteria { grpc_success_status }) if grpc_success_status.is_empty() => {
            return Err(Invalid::field("grpc_criteria.grpc_success_status", "is empty"));
        }
        Some(criteria) => each(criteria.grpc_success_status, "grpc_criteria.grpc_success_status", |code| match code {
            0..=16 => Ok(code),
            _ => Err(Invalid::new(format!("{code} is no status of gRPC"))),
        })?,
    };
    Ok((http, grpc))
}

/// The end is not part of a range.
fn range(value: types::Int32Range) -> Result<RangeInclusive<u16>> {
    let types::Int32Range { start, end } = value;
    match (u16::try_from(start), u16::try_from(end)) {
        (Ok(start @ 100..600), Ok(end @ 100..=600)) if start < end => Ok(start..=end - 1),
        _ => Err(Invalid::new(format!("[{start}, {end}) is no range of statuses"))),
    }
}

/// A share of one; there are no runtime keys: the default counts.
fn runtime_percent(value: Option<core::RuntimePercent>, default: f64) -> Result<f64> {
    let Some(core::RuntimePercent { default_value, runtime_key }) = value else { return Ok(default / 100.0) };
    harmless!(runtime_key);
    Ok(default_value.map_or(Ok(default), percent).within("default_value")? / 100.0)
}

fn double(value: Option<core::RuntimeDouble>, default: f64) -> Result<f64> {
    let Some(core::RuntimeDouble { default_value, runtime_key }) = value else { return Ok(default) };
    harmless!(runtime_key);
    if default_value.is_finite() { Ok(default_value) } else { Err(Invalid::field("default_value", "is not a number")) }
}
