//! Outlier detection: hosts that keep failing are taken out for a while (Envoy outlier_detection.proto).
//!
//! All state lives in the hosts, so it survives configuration and membership updates. Workers call
//! [`report`] after each response: it touches a few relaxed atomics of that host, and the member list
//! only when a threshold is reached. The main thread calls [`tick`] every `interval`.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::config::OutlierSettings;
use crate::host::{DEGRADED_OUTLIER, FAILED_OUTLIER, Host, HostSet};
use rates::Monitor;
use spell::Spell;

mod rates;
mod spell;

/// Detection state of one host; shared by all workers.
#[derive(Debug, Default)]
pub struct HostOutlier {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    ejected: Spell,
    degraded: Spell,
    ejections: AtomicU32,
    /// What the host itself answered; without split, local errors too.
    external: Monitor,
    /// Whether it could be reached, where that is told apart.
    local: Monitor,
}

impl HostOutlier {
    /// How often the host was ejected in its life.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Success rate of the last interval in percent; `None` when too few requests came.
    pub fn success_rate(&self) -> Option<f64> {
        self.external.rate()
    }

    /// The same of attempts to reach the host at all, where these are told apart.
    pub fn local_origin_success_rate(&self) -> Option<f64> {
        self.local.rate()
    }

    fn reset_consecutive(&self) {
        self.consecutive_5xx.store(0, Relaxed);
        self.consecutive_gateway.store(0, Relaxed);
        self.consecutive_local.store(0, Relaxed);
    }
}

/// How a request to a host ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A response with this status arrived (for gRPC, its status mapped to HTTP).
    Response(u16),
    /// The connection could not be made, or was reset.
    LocalFailure,
    /// No response in time.
    LocalTimeout,
    /// There is a connection; what comes of it is still open.
    LocalSuccess,
    /// There is a connection, and nothing more will be known (TCP).
    LocalSuccessFinal,
}

/// Which detector fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detector {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    ConsecutiveLocalOriginFailure,
    SuccessRate,
    FailurePercentage,
    LocalOriginSuccessRate,
    LocalOriginFailurePercentage,
}

/// What a detection led to.
#[derive(Clone, Debug)]
pub struct Detection {
    pub host: Arc<Host>,
    pub detector: Detector,
    pub result: Ejection,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ejection {
    Ejected,
    /// The `enforcing_*` percentage let it pass.
    NotEnforced,
    /// `max_ejection_percent` of the cluster is out already.
    Overflow,
}

/// Takes note of how a request ended. `now` is milliseconds of a monotonic clock shared by all callers,
/// `roll` any uniformly distributed number.
///
/// Without `split_external_local_origin_errors` local failures count as gateway errors, as in Envoy.
pub fn report(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, outcome: Outcome, now: u64, roll: u32) -> Option<Detection> {
    let split = settings.split_external_local_origin_errors;
    let status = match outcome {
        Outcome::Response(status) => status,
        Outcome::LocalSuccess if !split => return None,
        Outcome::LocalSuccessFinal if !split => 200,
        Outcome::LocalFailure if !split => 503,
        Outcome::LocalTimeout if !split => 504,
        Outcome::LocalSuccess | Outcome::LocalSuccessFinal => {
            host.outlier.local.count(true);
            reset(&host.outlier.consecutive_local);
            return None;
        }
        Outcome::LocalFailure | Outcome::LocalTimeout => {
            host.outlier.local.count(false);
            let reached = reaches(&host.outlier.consecutive_local, settings.consecutive_local_origin_failure);
            let detector = Detector::ConsecutiveLocalOriginFailure;
            return if reached { detect(settings, hosts, host, detector, now, roll) } else { None };
        }
    };
    responded(settings, hosts, host, status, now, roll)
}

fn responded(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, status: u16, now: u64, roll: u32) -> Option<Detection> {
    let state = &host.outlier;
    let success = !matches!(status, 500..=599);
    state.external.count(success);
    if success {
        reset(&state.consecutive_5xx);
        reset(&state.consecutive_gateway);
        return None;
    }
    let mut detection = None;
    if matches!(status, 502..=504) {
        if reaches(&state.consecutive_gateway, settings.consecutive_gateway_failure) {
            detection = detect(settings, hosts, host, Detector::ConsecutiveGatewayFailure, now, roll);
        }
    } else {
        state.consecutive_gateway.store(0, Relaxed);
    }
    if reaches(&state.consecutive_5xx, settings.consecutive_5xx) {
        let by_5xx = detect(settings, hosts, host, Detector::Consecutive5xx, now, roll);
        if detection.as_ref().is_none_or(|d| d.result != Ejection::Ejected) {
            detection = by_5xx.or(detection);
        }
    }
    detection
}

/// The host says of itself that it is degraded (`x-envoy-degraded`). Returns whether that is news.
pub fn degraded(settings: &OutlierSettings, hosts: &HostSet, host: &Host, now: u64) -> bool {
    if !settings.detect_degraded_hosts || host.flags() & DEGRADED_OUTLIER != 0 {
        return false;
    }
    host.outlier.degraded.begin(settings, now, 0);
    host.set_flag(DEGRADED_OUTLIER, true);
    hosts.health_changed();
    true
}

/// A plain load first: on a healthy host the counters stay shared cache lines.
fn reset(counter: &AtomicU32) {
    if counter.load(Relaxed) != 0 {
        counter.store(0, Relaxed);
    }
}

/// Counts one more failure; true exactly when the threshold is reached, which starts the count anew.
fn reaches(counter: &AtomicU32, threshold: u32) -> bool {
    if threshold == 0 {
        return false;
    }
    let reached = counter.fetch_add(1, Relaxed) + 1 >= threshold;
    if reached {
        counter.store(0, Relaxed);
    }
    reached
}

/// `None` when the host is out already.
fn detect(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, detector: Detector, now: u64, roll: u32) -> Option<Detection> {
    let enforcing = match detector {
        Detector::Consecutive5xx => settings.enforcing_consecutive_5xx,
        Detector::ConsecutiveGatewayFailure => settings.enforcing_consecutive_gateway_failure,
        Detector::ConsecutiveLocalOriginFailure => settings.enforcing_consecutive_local_origin_failure,
        Detector::SuccessRate => settings.enforcing_success_rate,
        Detector::FailurePercentage => settings.enforcing_failure_percentage,
        Detector::LocalOriginSuccessRate => settings.enforcing_local_origin_success_rate,
        Detector::LocalOriginFailurePercentage => settings.enforcing_failure_percentage_local_origin,
    };
    if host.flags() & FAILED_OUTLIER != 0 {
        return None;
    }
    let result = if !room_for_one_more(settings, hosts) {
        Ejection::Overflow
    } else if roll % 100 >= enforcing {
        Ejection::NotEnforced
    } else {
        eject(settings, hosts, host, now, roll);
        Ejection::Ejected
    };
    Some(Detection { host: Arc::clone(host), detector, result })
}

/// Envoy's arithmetic: one more ejection must stay within `max_ejection_percent` of the members.
fn room_for_one_more(settings: &OutlierSettings, hosts: &HostSet) -> bool {
    let (mut total, mut out) = (0u64, 0u64);
    for host in hosts.hosts() {
        total += 1;
        out += u64::from(host.flags() & FAILED_OUTLIER != 0);
    }
    (out == 0 && settings.always_eject_one_host) || (out + 1) * 100 <= total * u64::from(settings.max_ejection_percent.min(100))
}

fn eject(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, now: u64, roll: u32) {
    host.outlier.ejected.begin(settings, now, roll);
    host.outlier.ejections.fetch_add(1, Relaxed);
    host.outlier.reset_consecutive();
    host.set_flag(FAILED_OUTLIER, true);
    hosts.health_changed();
}

/// What a tick did.
#[derive(Debug, Default)]
pub struct TickReport {
    pub returned: Vec<Arc<Host>>,
    pub detections: Vec<Detection>,
}

/// The periodic part: lets hosts back in whose time is up, then compares the rates of the interval.
/// `roll` yields uniformly distributed numbers for the enforcing percentages and the jitter.
pub fn tick(settings: &OutlierSettings, hosts: &HostSet, now: u64, mut roll: impl FnMut() -> u32) -> TickReport {
    let mut report = TickReport::default();
    for host in hosts.hosts() {
        if host.flags() & FAILED_OUTLIER != 0 && host.outlier.ejected.is_over(settings, now) {
            release(host, now);
            hosts.health_changed();
            report.returned.push(Arc::clone(host));
        }
        if host.flags() & DEGRADED_OUTLIER != 0 && host.outlier.degraded.is_over(settings, now) {
            host.outlier.degraded.end(now);
            host.set_flag(DEGRADED_OUTLIER, false);
            hosts.health_changed();
        }
    }
    report.detections = rates::compare(settings, hosts, now, &mut roll);
    for host in hosts.hosts() {
        let flags = host.flags();
        if flags & FAILED_OUTLIER == 0 {
            host.outlier.ejected.quieten(settings, now);
        }
        if flags & DEGRADED_OUTLIER == 0 {
            host.outlier.degraded.quieten(settings, now);
        }
    }
    report
}

/// Lets one host back in, at its time or because it passed an active health check. The caller tells the set.
pub fn release(host: &Host, now: u64) {
    host.set_flag(FAILED_OUTLIER, false);
    host.outlier.reset_consecutive();
    host.outlier.ejected.end(now);
}

/// Detection is configured no more: lets every ejected host back in, since no tick will. Returns whether there were any.
pub fn end(hosts: &HostSet) -> bool {
    let mut any = false;
    for host in hosts.hosts().filter(|host| host.flags() & (FAILED_OUTLIER | DEGRADED_OUTLIER) != 0) {
        host.set_flag(FAILED_OUTLIER | DEGRADED_OUTLIER, false);
        host.outlier.reset_consecutive();
        host.outlier.ejected.forget();
        host.outlier.degraded.forget();
        any = true;
    }
    if any {
        hosts.health_changed();
    }
    any
}

#[cfg(test)]
mod tests;
