//! What a load run found.
use super::histogram::Histogram;
use http::StatusCode;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

/// Distinct services and versions counted; a chain is a text from outside.
const MAX_VERSIONS: usize = 256;

/// Counts of a run, complete or still going.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Requests that were due.
    pub scheduled: u64,
    /// Requests that got a response, of whatever status.
    pub answered: u64,
    /// Requests that never left because the generator could not keep up.
    pub unsent: u64,
    /// Responses by status.
    pub statuses: BTreeMap<u16, u64>,
    /// Requests without a response, by cause.
    pub errors: BTreeMap<&'static str, u64>,
    /// Service to version to how many responses passed through it.
    pub versions: BTreeMap<String, BTreeMap<String, u64>>,
    /// Of all answered requests, from when they were due.
    pub latency: Histogram,
    /// How long the run took.
    pub seconds: f64,
}

/// Latency figures in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LatencyMillis {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl Report {
    pub(super) fn answered(&mut self, status: StatusCode, chain: &str, took: Duration) {
        self.answered += 1;
        *self.statuses.entry(status.as_u16()).or_default() += 1;
        self.latency.record(u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
        for (service, version) in chain.split(',').filter_map(|part| part.trim().split_once('/')) {
            if self.versions.len() >= MAX_VERSIONS && !self.versions.contains_key(service) {
                continue;
            }
            let versions = self.versions.entry(service.to_owned()).or_default();
            if versions.len() < MAX_VERSIONS || versions.contains_key(version) {
                *versions.entry(version.to_owned()).or_default() += 1;
            }
        }
    }

    pub(super) fn failed(&mut self, cause: &'static str) {
        *self.errors.entry(cause).or_default() += 1;
    }

    /// At the end: every request that is neither answered, failed nor unsent was abandoned on its way.
    pub(super) fn unfinished(&mut self) {
        let settled = self.answered + self.unsent + self.errors.values().sum::<u64>();
        let lost = self.scheduled.saturating_sub(settled);
        if lost > 0 {
            *self.errors.entry("unfinished").or_default() += lost;
        }
    }

    /// What has happened since `earlier`, an older reading of the same run; `seconds` becomes the time between.
    pub fn since(&self, earlier: &Self, seconds: f64) -> Self {
        Self {
            scheduled: self.scheduled - earlier.scheduled,
            answered: self.answered - earlier.answered,
            unsent: self.unsent - earlier.unsent,
            statuses: less(&self.statuses, &earlier.statuses),
            errors: less(&self.errors, &earlier.errors),
            versions: self
                .versions
                .iter()
                .map(|(service, now)| (service.clone(), earlier.versions.get(service).map_or_else(|| now.clone(), |then| less(now, then))))
                .collect(),
            latency: self.latency.since(&earlier.latency),
            seconds,
        }
    }

    /// Responses with a status below 500, over all requests that are settled; 1 when there are none.
    pub fn success_rate(&self) -> f64 {
        let settled = self.answered + self.errors.values().sum::<u64>();
        let good: u64 = self.statuses.range(..500).map(|(_, count)| count).sum();
        if settled == 0 { 1.0 } else { good as f64 / settled as f64 }
    }

    /// The share of a service's responses that came from a version.
    pub fn share(&self, service: &str, version: &str) -> f64 {
        let Some(versions) = self.versions.get(service) else { return 0.0 };
        let all: u64 = versions.values().sum();
        versions.get(version).map_or(0.0, |count| *count as f64 / all.max(1) as f64)
    }

    pub fn latency_millis(&self) -> LatencyMillis {
        let at = |percent| self.latency.percentile(percent) as f64 / 1e3;
        LatencyMillis {
            mean: self.latency.mean() / 1e3,
            p50: at(50.0),
            p90: at(90.0),
            p95: at(95.0),
            p99: at(99.0),
            p999: at(99.9),
            max: self.latency.max() as f64 / 1e3,
        }
    }

    /// The report as JSON.
    pub fn to_json(&self) -> Value {
        let latency = self.latency_millis();
        json!({
            "scheduled": self.scheduled,
            "answered": self.answered,
            "unsent": self.unsent,
            "seconds": self.seconds,
            "rps": self.rate(),
            "success_rate": self.success_rate(),
            "statuses": self.statuses,
            "errors": self.errors,
            "versions": self.versions,
            "latency_ms": {
                "mean": latency.mean, "p50": latency.p50, "p90": latency.p90, "p95": latency.p95,
                "p99": latency.p99, "p99.9": latency.p999, "max": latency.max,
            },
        })
    }

    fn rate(&self) -> f64 {
        if self.seconds > 0.0 { self.answered as f64 / self.seconds } else { 0.0 }
    }
}

/// Counts that grew, by how much.
fn less<K: Ord + Clone>(now: &BTreeMap<K, u64>, then: &BTreeMap<K, u64>) -> BTreeMap<K, u64> {
    let grown = now.iter().map(|(key, count)| (key.clone(), count - then.get(key).copied().unwrap_or_default()));
    grown.filter(|(_, count)| *count > 0).collect()
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let latency = self.latency_millis();
        writeln!(f, "requests   {} answered of {} in {:.1} s ({:.1}/s)", self.answered, self.scheduled, self.seconds, self.rate())?;
        writeln!(f, "success    {:.2}%", self.success_rate() * 100.0)?;
        writeln!(
            f,
            "latency    p50 {:.1} ms  p90 {:.1}  p95 {:.1}  p99 {:.1}  p99.9 {:.1}  max {:.1}",
            latency.p50, latency.p90, latency.p95, latency.p99, latency.p999, latency.max
        )?;
        for (status, count) in &self.statuses {
            writeln!(f, "status     {status}: {count}")?;
        }
        for (cause, count) in &self.errors {
            writeln!(f, "error      {cause}: {count}")?;
        }
        for (service, versions) in &self.versions {
            let all: u64 = versions.values().sum();
            let split: Vec<String> =
                versions.iter().map(|(version, count)| format!("{version} {count} ({:.1}%)", *count as f64 / all as f64 * 100.0)).collect();
            writeln!(f, "versions   {service}: {}", split.join(", "))?;
        }
        if self.unsent > 0 {
            writeln!(f, "unsent     {} (more connections, or a lower rate, would help)", self.unsent)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_counted_along_the_chain() {
        let mut report = Report::default();
        for at in 0..10 {
            let version = if at == 0 { "v2" } else { "v1" };
            report.answered(StatusCode::OK, &format!("customer/v1,recommendation/{version}"), Duration::from_millis(at));
        }
        report.answered(StatusCode::SERVICE_UNAVAILABLE, "", Duration::from_millis(1));
        report.failed("timeout");
        assert_eq!(report.share("recommendation", "v2"), 0.1);
        assert_eq!(report.share("customer", "v1"), 1.0);
        assert!((report.success_rate() - 10.0 / 12.0).abs() < 1e-9);
        let earlier = report.clone();
        report.answered(StatusCode::OK, "recommendation/v2", Duration::from_millis(3));
        let window = report.since(&earlier, 1.0);
        assert_eq!((window.answered, window.share("recommendation", "v2"), window.success_rate()), (1, 1.0, 1.0));
        assert!((2.9..=3.1).contains(&window.latency_millis().p50));
        let text = earlier.to_string();
        assert!(text.contains("recommendation: v1 9 (90.0%), v2 1 (10.0%)"), "{text}");
        assert_eq!(report.to_json()["statuses"]["503"], 1);
    }

    #[test]
    fn chains_from_outside_cannot_fill_memory() {
        let mut report = Report::default();
        for at in 0..10_000 {
            report.answered(StatusCode::OK, &format!("s{at}/v1,s0/v{at}"), Duration::ZERO);
        }
        assert!(report.versions.len() <= MAX_VERSIONS);
        assert!(report.versions["s0"].len() <= MAX_VERSIONS);
    }
}
