//! Outlier detection of a cluster.
use std::time::Duration;

use lateen_balance::OutlierSettings;
use lateen_proto::envoy::config::cluster::v3 as proto;

use super::common::duration_or;
use super::invalid::{Invalid, Result, refuse};

pub(crate) fn outlier(value: proto::OutlierDetection) -> Result<OutlierSettings> {
    let proto::OutlierDetection {
        consecutive_5xx,
        interval,
        base_ejection_time,
        max_ejection_percent,
        enforcing_consecutive_5xx,
        enforcing_success_rate,
        success_rate_minimum_hosts,
        success_rate_request_volume,
        success_rate_stdev_factor,
        consecutive_gateway_failure,
        enforcing_consecutive_gateway_failure,
        split_external_local_origin_errors,
        consecutive_local_origin_failure,
        enforcing_consecutive_local_origin_failure,
        enforcing_local_origin_success_rate,
        failure_percentage_threshold,
        enforcing_failure_percentage,
        enforcing_failure_percentage_local_origin,
        failure_percentage_minimum_hosts,
        failure_percentage_request_volume,
        max_ejection_time,
        max_ejection_time_jitter,
        successful_active_health_check_uneject_host,
        monitors,
        always_eject_one_host,
        detect_degraded_hosts,
    } = value;
    refuse!(monitors);
    let default = OutlierSettings::default();
    let base = duration_or(base_ejection_time.as_ref(), default.base_ejection_time, "base_ejection_time")?;
    let interval = duration_or(interval.as_ref(), default.interval, "interval")?;
    if interval.is_zero() {
        return Err(Invalid::field("interval", "must be above zero"));
    }
    // Left out it is the larger of the default and the base.
    let max_ejection_time = duration_or(max_ejection_time.as_ref(), default.max_ejection_time.max(base), "max_ejection_time")?;
    if max_ejection_time < base {
        return Err(Invalid::field("max_ejection_time", "must not be below base_ejection_time"));
    }
    Ok(OutlierSettings {
        consecutive_5xx: consecutive_5xx.unwrap_or(default.consecutive_5xx),
        consecutive_gateway_failure: consecutive_gateway_failure.unwrap_or(default.consecutive_gateway_failure),
        consecutive_local_origin_failure: consecutive_local_origin_failure.unwrap_or(default.consecutive_local_origin_failure),
        split_external_local_origin_errors,
        enforcing_consecutive_5xx: enforcing_consecutive_5xx.unwrap_or(default.enforcing_consecutive_5xx),
        enforcing_consecutive_gateway_failure: enforcing_consecutive_gateway_failure
            .unwrap_or(default.enforcing_consecutive_gateway_failure),
        enforcing_consecutive_local_origin_failure: enforcing_consecutive_local_origin_failure
            .unwrap_or(default.enforcing_consecutive_local_origin_failure),
        enforcing_success_rate: enforcing_success_rate.unwrap_or(default.enforcing_success_rate),
        enforcing_local_origin_success_rate: enforcing_local_origin_success_rate.unwrap_or(default.enforcing_local_origin_success_rate),
        success_rate_minimum_hosts: success_rate_minimum_hosts.unwrap_or(default.success_rate_minimum_hosts),
        success_rate_request_volume: success_rate_request_volume.unwrap_or(default.success_rate_request_volume),
        success_rate_stdev_factor: success_rate_stdev_factor.unwrap_or(default.success_rate_stdev_factor),
        enforcing_failure_percentage: enforcing_failure_percentage.unwrap_or(default.enforcing_failure_percentage),
        enforcing_failure_percentage_local_origin: enforcing_failure_percentage_local_origin
            .unwrap_or(default.enforcing_failure_percentage_local_origin),
        failure_percentage_threshold: failure_percentage_threshold.unwrap_or(default.failure_percentage_threshold),
        failure_percentage_minimum_hosts: failure_percentage_minimum_hosts.unwrap_or(default.failure_percentage_minimum_hosts),
        failure_percentage_request_volume: failure_percentage_request_volume.unwrap_or(default.failure_percentage_request_volume),
        interval,
        base_ejection_time: base,
        max_ejection_time,
        max_ejection_time_jitter: duration_or(max_ejection_time_jitter.as_ref(), Duration::ZERO, "max_ejection_time_jitter")?,
        max_ejection_percent: max_ejection_percent.unwrap_or(default.max_ejection_percent),
        uneject_on_check: successful_active_health_check_uneject_host.unwrap_or(true),
        detect_degraded_hosts: detect_degraded_hosts.unwrap_or(default.detect_degraded_hosts),
        always_eject_one_host: always_eject_one_host.unwrap_or(default.always_eject_one_host),
    })
}
