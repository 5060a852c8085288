//! Outlier detection: hosts that keep failing are taken out for a while (Envoy outlier_detection.proto).
//!
//! All state lives in the hosts, so it survives configuration and membership updates. Workers call
//! [`report`] after each response: it touches a few relaxed atomics of that host, and the member list
//! only when a threshold is reached. The main thread calls [`tick`] every `interval`.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::config::OutlierSettings;
use crate::host::{FAILED_OUTLIER, Host, HostSet};

/// Detection state of one host; shared by all workers.
#[derive(Debug, Default)]
pub struct HostOutlier {
    consecutive_5xx: AtomicU32,
    consecutive_gateway: AtomicU32,
    consecutive_local: AtomicU32,
    /// Milliseconds of the caller's clock; meaningful while the host is ejected.
    ejected_at: AtomicU64,
    /// Multiplies the ejection time: grows with each ejection, shrinks with each quiet interval.
    backoff: AtomicU32,
    ejections: AtomicU32,
    /// Requests and successes since the last tick.
    requests: AtomicU64,
    successes: AtomicU64,
    success_rate: AtomicU64,
    has_rate: AtomicBool,
}

impl HostOutlier {
    /// How often the host was ejected in its life.
    pub fn ejections(&self) -> u32 {
        self.ejections.load(Relaxed)
    }

    /// Success rate of the last interval in percent; `None` when too few requests came.
    pub fn success_rate(&self) -> Option<f64> {
        self.has_rate.load(Relaxed).then(|| f64::from_bits(self.success_rate.load(Relaxed)))
    }

    fn reset_consecutive(&self) {
        self.consecutive_5xx.store(0, Relaxed);
        self.consecutive_gateway.store(0, Relaxed);
        self.consecutive_local.store(0, Relaxed);
    }

    fn count(&self, success: bool) {
        self.requests.fetch_add(1, Relaxed);
        if success {
            self.successes.fetch_add(1, Relaxed);
        }
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
    /// The connection was made.
    LocalSuccess,
}

/// Which detector fired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detector {
    Consecutive5xx,
    ConsecutiveGatewayFailure,
    ConsecutiveLocalOriginFailure,
    SuccessRate,
    FailurePercentage,
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
    AlreadyEjected,
}

/// Takes note of how a request ended. `now` is milliseconds of a monotonic clock shared by all callers,
/// `roll` any uniformly distributed number.
///
/// Without `split_external_local_origin_errors` local failures count as gateway errors, as in Envoy.
pub fn report(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, outcome: Outcome, now: u64, roll: u32) -> Option<Detection> {
    let state = &host.outlier;
    let status = match outcome {
        Outcome::Response(status) => status,
        Outcome::LocalSuccess => {
            state.consecutive_local.store(0, Relaxed);
            return None;
        }
        Outcome::LocalFailure | Outcome::LocalTimeout if settings.split_external_local_origin_errors => {
            let reached = reaches(&state.consecutive_local, settings.consecutive_local_origin_failure);
            let detector = Detector::ConsecutiveLocalOriginFailure;
            return reached.then(|| detect(settings, hosts, host, detector, now, roll));
        }
        Outcome::LocalFailure => 503,
        Outcome::LocalTimeout => 504,
    };
    state.count(status < 500);
    if status < 500 {
        // Plain loads first: on a healthy host these stay shared cache lines.
        if state.consecutive_5xx.load(Relaxed) != 0 {
            state.consecutive_5xx.store(0, Relaxed);
        }
        if state.consecutive_gateway.load(Relaxed) != 0 {
            state.consecutive_gateway.store(0, Relaxed);
        }
        return None;
    }
    let mut detection = None;
    if matches!(status, 502..=504) {
        if reaches(&state.consecutive_gateway, settings.consecutive_gateway_failure) {
            detection = Some(detect(settings, hosts, host, Detector::ConsecutiveGatewayFailure, now, roll));
        }
    } else {
        state.consecutive_gateway.store(0, Relaxed);
    }
    if reaches(&state.consecutive_5xx, settings.consecutive_5xx) {
        let by_5xx = detect(settings, hosts, host, Detector::Consecutive5xx, now, roll);
        if detection.as_ref().is_none_or(|d| d.result != Ejection::Ejected) {
            detection = Some(by_5xx);
        }
    }
    detection
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

fn detect(settings: &OutlierSettings, hosts: &HostSet, host: &Arc<Host>, detector: Detector, now: u64, roll: u32) -> Detection {
    let enforcing = match detector {
        Detector::Consecutive5xx => settings.enforcing_consecutive_5xx,
        Detector::ConsecutiveGatewayFailure => settings.enforcing_consecutive_gateway_failure,
        Detector::ConsecutiveLocalOriginFailure => settings.enforcing_consecutive_local_origin_failure,
        Detector::SuccessRate => settings.enforcing_success_rate,
        Detector::FailurePercentage => settings.enforcing_failure_percentage,
    };
    let result = if host.flags() & FAILED_OUTLIER != 0 {
        Ejection::AlreadyEjected
    } else if roll % 100 >= enforcing {
        Ejection::NotEnforced
    } else if !room_for_one_more(settings, hosts) {
        Ejection::Overflow
    } else {
        eject(hosts, host, now);
        Ejection::Ejected
    };
    Detection { host: Arc::clone(host), detector, result }
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

fn eject(hosts: &HostSet, host: &Arc<Host>, now: u64) {
    let state = &host.outlier;
    state.ejected_at.store(now, Relaxed);
    state.backoff.fetch_add(1, Relaxed);
    state.ejections.fetch_add(1, Relaxed);
    state.reset_consecutive();
    host.set_flag(FAILED_OUTLIER, true);
    hosts.health_changed();
}

/// What a tick did.
#[derive(Debug, Default)]
pub struct TickReport {
    pub returned: Vec<Arc<Host>>,
    pub detections: Vec<Detection>,
}

/// The periodic part: lets hosts back in whose time is up, then compares success rates.
/// `roll` yields uniformly distributed numbers for the enforcing percentages and the jitter.
pub fn tick(settings: &OutlierSettings, hosts: &HostSet, now: u64, mut roll: impl FnMut() -> u32) -> TickReport {
    let mut report = TickReport::default();
    for host in hosts.hosts() {
        if host.flags() & FAILED_OUTLIER == 0 {
            let _ = host.outlier.backoff.fetch_update(Relaxed, Relaxed, |b| b.checked_sub(1));
        } else if now.saturating_sub(host.outlier.ejected_at.load(Relaxed)) >= ejection_millis(settings, host, roll()) {
            host.set_flag(FAILED_OUTLIER, false);
            host.outlier.reset_consecutive();
            hosts.health_changed();
            report.returned.push(Arc::clone(host));
        }
    }
    let samples = take_samples(hosts);
    report.detections.extend(by_success_rate(settings, hosts, &samples, now, &mut roll));
    report.detections.extend(by_failure_percentage(settings, hosts, &samples, now, &mut roll));
    report
}

/// Lets one host back in before its time, because it passed an active health check. The caller tells the set.
pub fn release(host: &Host) {
    host.set_flag(FAILED_OUTLIER, false);
    host.outlier.reset_consecutive();
}

/// Detection is configured no more: lets every ejected host back in, since no tick will. Returns whether there were any.
pub fn end(hosts: &HostSet) -> bool {
    let mut any = false;
    for host in hosts.hosts().filter(|host| host.flags() & FAILED_OUTLIER != 0) {
        host.set_flag(FAILED_OUTLIER, false);
        host.outlier.reset_consecutive();
        host.outlier.backoff.store(0, Relaxed);
        any = true;
    }
    if any {
        hosts.health_changed();
    }
    any
}

fn ejection_millis(settings: &OutlierSettings, host: &Host, roll: u32) -> u64 {
    let millis = |d: std::time::Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
    let base = millis(settings.base_ejection_time);
    let times = u64::from(host.outlier.backoff.load(Relaxed).max(1));
    let jitter = match millis(settings.max_ejection_time_jitter) {
        0 => 0,
        max => u64::from(roll) % (max + 1),
    };
    base.saturating_mul(times).min(millis(settings.max_ejection_time).max(base)).saturating_add(jitter)
}

/// A host's figures over one interval.
struct Sample {
    host: Arc<Host>,
    requests: u64,
    successes: u64,
}

impl Sample {
    fn rate(&self) -> f64 {
        100.0 * self.successes as f64 / self.requests.max(1) as f64
    }
}

fn take_samples(hosts: &HostSet) -> Vec<Sample> {
    let sample = |host: &Arc<Host>| Sample {
        host: Arc::clone(host),
        requests: host.outlier.requests.swap(0, Relaxed),
        successes: host.outlier.successes.swap(0, Relaxed),
    };
    hosts.hosts().map(sample).collect()
}

/// Hosts whose rate lies more than `stdev_factor` standard deviations below the mean.
fn by_success_rate(
    settings: &OutlierSettings,
    hosts: &HostSet,
    samples: &[Sample],
    now: u64,
    roll: &mut impl FnMut() -> u32,
) -> Vec<Detection> {
    let volume = u64::from(settings.success_rate_request_volume);
    for sample in samples {
        let enough = sample.requests >= volume.max(1);
        sample.host.outlier.has_rate.store(enough, Relaxed);
        sample.host.outlier.success_rate.store(sample.rate().to_bits(), Relaxed);
    }
    let valid: Vec<&Sample> = samples.iter().filter(|s| s.requests >= volume.max(1)).collect();
    if settings.enforcing_success_rate == 0 || valid.len() < (settings.success_rate_minimum_hosts as usize).max(1) {
        return Vec::new();
    }
    let count = valid.len() as f64;
    let mean = valid.iter().map(|s| s.rate()).sum::<f64>() / count;
    let variance = valid.iter().map(|s| (s.rate() - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - variance.sqrt() * f64::from(settings.success_rate_stdev_factor) / 1000.0;
    let low = valid.into_iter().filter(|s| s.rate() < threshold);
    low.map(|s| detect(settings, hosts, &s.host, Detector::SuccessRate, now, roll())).collect()
}

/// Hosts whose share of failures reaches the threshold.
fn by_failure_percentage(
    settings: &OutlierSettings,
    hosts: &HostSet,
    samples: &[Sample],
    now: u64,
    roll: &mut impl FnMut() -> u32,
) -> Vec<Detection> {
    let volume = u64::from(settings.failure_percentage_request_volume).max(1);
    let valid: Vec<&Sample> = samples.iter().filter(|s| s.requests >= volume).collect();
    if settings.enforcing_failure_percentage == 0 || valid.len() < settings.failure_percentage_minimum_hosts as usize {
        return Vec::new();
    }
    let failing = valid.into_iter().filter(|s| 100.0 - s.rate() >= f64::from(settings.failure_percentage_threshold));
    failing.map(|s| detect(settings, hosts, &s.host, Detector::FailurePercentage, now, roll())).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::host::Address;

    fn hosts(n: u16) -> HostSet {
        let host = |i| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into())));
        HostSet::flat((1..=n).map(host).collect())
    }

    fn settings() -> OutlierSettings {
        OutlierSettings { consecutive_5xx: 3, max_ejection_percent: 100, ..OutlierSettings::default() }
    }

    fn first(set: &HostSet) -> Arc<Host> {
        Arc::clone(set.hosts().next().unwrap())
    }

    #[test]
    fn three_failures_in_a_row_eject_and_a_success_between_starts_over() {
        let (set, s) = (hosts(2), settings());
        let host = first(&set);
        for status in [500, 500, 200, 500, 500] {
            assert!(report(&s, &set, &host, Outcome::Response(status), 0, 0).is_none());
        }
        let epoch = set.health_epoch();
        let detection = report(&s, &set, &host, Outcome::Response(500), 0, 0).unwrap();
        assert_eq!((detection.detector, detection.result), (Detector::Consecutive5xx, Ejection::Ejected));
        assert!(!host.is_healthy());
        assert_ne!(set.health_epoch(), epoch);
    }

    #[test]
    fn an_ejection_lasts_its_base_time_and_twice_that_the_second_time() {
        let (set, s) = (hosts(2), OutlierSettings { consecutive_5xx: 1, ..settings() });
        let host = first(&set);
        report(&s, &set, &host, Outcome::Response(503), 1_000, 0);
        assert!(tick(&s, &set, 30_999, || 0).returned.is_empty());
        assert_eq!(tick(&s, &set, 31_000, || 0).returned.len(), 1);
        report(&s, &set, &host, Outcome::Response(503), 32_000, 0);
        assert!(tick(&s, &set, 62_000, || 0).returned.is_empty());
        assert_eq!(tick(&s, &set, 92_000, || 0).returned.len(), 1);
    }

    #[test]
    fn a_released_host_needs_as_many_failures_as_before_to_go_again() {
        let (set, s) = (hosts(2), settings());
        let host = first(&set);
        (0..3).for_each(|_| drop(report(&s, &set, &host, Outcome::Response(500), 0, 0)));
        assert!(!host.is_healthy());
        release(&host);
        (0..2).for_each(|_| drop(report(&s, &set, &host, Outcome::Response(500), 0, 0)));
        assert!(host.is_healthy());
        report(&s, &set, &host, Outcome::Response(500), 0, 0);
        assert!(!host.is_healthy());
    }

    #[test]
    fn without_detection_nobody_stays_ejected() {
        let set = hosts(10);
        let host = first(&set);
        for _ in 0..5 {
            report(&settings(), &set, &host, Outcome::Response(500), 0, 0);
        }
        assert!(!host.is_healthy());
        let before = set.health_epoch();
        assert!(end(&set));
        assert!(host.is_healthy() && set.health_epoch() != before);
        assert!(!end(&set), "nobody is left to let in");
    }

    #[test]
    fn ejections_stop_at_the_maximum_percentage() {
        let (set, s) = (hosts(4), OutlierSettings { consecutive_5xx: 1, max_ejection_percent: 50, ..settings() });
        let results: Vec<Ejection> = set.hosts().map(|h| report(&s, &set, h, Outcome::Response(500), 0, 0).unwrap().result).collect();
        assert_eq!(results, [Ejection::Ejected, Ejection::Ejected, Ejection::Overflow, Ejection::Overflow]);
    }

    #[test]
    fn the_default_of_ten_percent_ejects_nobody_from_a_pair_unless_one_is_always_allowed() {
        let s = OutlierSettings { consecutive_5xx: 1, max_ejection_percent: 10, ..settings() };
        let set = hosts(2);
        assert_eq!(report(&s, &set, &first(&set), Outcome::Response(500), 0, 0).unwrap().result, Ejection::Overflow);
        let s = OutlierSettings { always_eject_one_host: true, ..s };
        assert_eq!(report(&s, &set, &first(&set), Outcome::Response(500), 0, 0).unwrap().result, Ejection::Ejected);
    }

    #[test]
    fn gateway_errors_are_502_to_504_only() {
        let s = OutlierSettings {
            consecutive_5xx: 0,
            consecutive_gateway_failure: 2,
            enforcing_consecutive_gateway_failure: 100,
            ..settings()
        };
        let set = hosts(2);
        let host = first(&set);
        for status in [502, 500, 503] {
            assert!(report(&s, &set, &host, Outcome::Response(status), 0, 0).is_none(), "500 breaks the row");
        }
        assert_eq!(report(&s, &set, &host, Outcome::LocalTimeout, 0, 0).unwrap().result, Ejection::Ejected);
    }

    #[test]
    fn split_local_errors_are_counted_apart() {
        let s = OutlierSettings {
            consecutive_5xx: 1,
            split_external_local_origin_errors: true,
            consecutive_local_origin_failure: 2,
            ..settings()
        };
        let set = hosts(2);
        let host = first(&set);
        assert!(report(&s, &set, &host, Outcome::LocalFailure, 0, 0).is_none());
        report(&s, &set, &host, Outcome::LocalSuccess, 0, 0);
        assert!(report(&s, &set, &host, Outcome::LocalFailure, 0, 0).is_none());
        let detection = report(&s, &set, &host, Outcome::LocalFailure, 0, 0).unwrap();
        assert_eq!(detection.detector, Detector::ConsecutiveLocalOriginFailure);
    }

    #[test]
    fn a_host_far_below_the_mean_success_rate_goes() {
        let s = OutlierSettings { consecutive_5xx: 0, success_rate_request_volume: 10, ..settings() };
        let set = hosts(6);
        for (i, host) in set.hosts().enumerate() {
            for n in 0..20 {
                let status = if i == 0 && n % 2 == 0 { 500 } else { 200 };
                report(&s, &set, host, Outcome::Response(status), 0, 0);
            }
        }
        let detections = tick(&s, &set, 10_000, || 0).detections;
        assert_eq!(detections.len(), 1);
        assert!(!first(&set).is_healthy());
        assert_eq!(first(&set).outlier.success_rate(), Some(50.0));
    }

    #[test]
    fn quiet_intervals_make_the_next_ejection_short_again() {
        let (set, s) = (hosts(2), OutlierSettings { consecutive_5xx: 1, ..settings() });
        let host = first(&set);
        report(&s, &set, &host, Outcome::Response(500), 0, 0);
        tick(&s, &set, 30_000, || 0);
        tick(&s, &set, 40_000, || 0);
        report(&s, &set, &host, Outcome::Response(500), 50_000, 0);
        assert_eq!(tick(&s, &set, 80_000, || 0).returned.len(), 1);
        assert_eq!(s.base_ejection_time, Duration::from_secs(30));
    }
}
