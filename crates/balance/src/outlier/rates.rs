//! Hosts compared with each other: success rates far below the others', and shares of failures above a limit.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use super::{Detection, Detector, detect};
use crate::config::OutlierSettings;
use crate::host::{FAILED_OUTLIER, Host, HostSet};

/// Counts of one host since the last tick, and the rate of the interval before.
#[derive(Debug, Default)]
pub(super) struct Monitor {
    requests: AtomicU64,
    successes: AtomicU64,
    rate: AtomicU64,
    has_rate: AtomicBool,
}

impl Monitor {
    pub(super) fn count(&self, success: bool) {
        self.requests.fetch_add(1, Relaxed);
        if success {
            self.successes.fetch_add(1, Relaxed);
        }
    }

    pub(super) fn rate(&self) -> Option<f64> {
        self.has_rate.load(Relaxed).then(|| f64::from_bits(self.rate.load(Relaxed)))
    }

    /// The interval's numbers, which start anew.
    fn take(&self) -> (u64, u64) {
        self.has_rate.store(false, Relaxed);
        (self.requests.swap(0, Relaxed), self.successes.swap(0, Relaxed))
    }

    fn keep(&self, rate: f64) {
        self.rate.store(rate.to_bits(), Relaxed);
        self.has_rate.store(true, Relaxed);
    }
}

/// What is compared, and which detectors it belongs to.
struct Kind {
    monitor: fn(&Host) -> &Monitor,
    success_rate: Detector,
    failure_percentage: Detector,
}

const EXTERNAL: Kind =
    Kind { monitor: |host| &host.outlier.external, success_rate: Detector::SuccessRate, failure_percentage: Detector::FailurePercentage };

const LOCAL: Kind = Kind {
    monitor: |host| &host.outlier.local,
    success_rate: Detector::LocalOriginSuccessRate,
    failure_percentage: Detector::LocalOriginFailurePercentage,
};

/// Compares the hosts by what came since the last time.
pub(super) fn compare(settings: &OutlierSettings, hosts: &HostSet, now: u64, roll: &mut impl FnMut() -> u32) -> Vec<Detection> {
    let mut detections = Vec::new();
    for kind in [EXTERNAL, LOCAL] {
        let samples = samples(settings, hosts, &kind);
        let mut out = |host: &Arc<Host>, detector| detections.extend(detect(settings, hosts, host, detector, now, roll()));
        for host in below_the_others(settings, &samples) {
            out(host, kind.success_rate);
        }
        for host in failing(settings, &samples) {
            out(host, kind.failure_percentage);
        }
    }
    detections
}

/// A host's figures over one interval.
struct Sample {
    host: Arc<Host>,
    requests: u64,
    rate: f64,
}

/// Of the hosts that are in and had a request.
fn samples(settings: &OutlierSettings, hosts: &HostSet, kind: &Kind) -> Vec<Sample> {
    let least = settings.success_rate_request_volume.min(settings.failure_percentage_request_volume);
    let members = hosts.len();
    // With fewer members than any comparison wants Envoy shows no rates either.
    let enough = members >= settings.success_rate_minimum_hosts as usize || members >= settings.failure_percentage_minimum_hosts as usize;
    let sample = |host: &Arc<Host>| {
        let monitor = (kind.monitor)(host);
        let (requests, successes) = monitor.take();
        if requests == 0 || !enough || host.flags() & FAILED_OUTLIER != 0 {
            return None;
        }
        let rate = successes as f64 * 100.0 / requests as f64;
        if requests >= u64::from(least) {
            monitor.keep(rate);
        }
        Some(Sample { host: Arc::clone(host), requests, rate })
    };
    hosts.hosts().filter_map(sample).collect()
}

/// Hosts whose rate lies more than `stdev_factor` standard deviations below the mean.
fn below_the_others<'a>(settings: &OutlierSettings, samples: &'a [Sample]) -> Vec<&'a Arc<Host>> {
    let valid = with_volume(samples, settings.success_rate_request_volume);
    if valid.is_empty() || valid.len() < settings.success_rate_minimum_hosts as usize {
        return Vec::new();
    }
    let count = valid.len() as f64;
    let mean = valid.iter().map(|s| s.rate).sum::<f64>() / count;
    let variance = valid.iter().map(|s| (s.rate - mean).powi(2)).sum::<f64>() / count;
    let threshold = mean - variance.sqrt() * f64::from(settings.success_rate_stdev_factor) / 1000.0;
    valid.into_iter().filter(|s| s.rate < threshold).map(|s| &s.host).collect()
}

/// Hosts whose share of failures reaches the threshold.
fn failing<'a>(settings: &OutlierSettings, samples: &'a [Sample]) -> Vec<&'a Arc<Host>> {
    let valid = with_volume(samples, settings.failure_percentage_request_volume);
    if valid.len() < settings.failure_percentage_minimum_hosts as usize {
        return Vec::new();
    }
    let threshold = f64::from(settings.failure_percentage_threshold);
    valid.into_iter().filter(|s| 100.0 - s.rate >= threshold).map(|s| &s.host).collect()
}

fn with_volume(samples: &[Sample], volume: u32) -> Vec<&Sample> {
    samples.iter().filter(|s| s.requests >= u64::from(volume)).collect()
}
