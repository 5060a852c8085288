//! The control plane's own numbers, under the names that Istio's dashboards read.
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use lateen_xds::types::{self, short_name};

/// Upper bounds of `pilot_proxy_convergence_time`, in seconds.
const CONVERGENCE: [f64; 8] = [0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
/// Upper bounds of `pilot_debounce_time` and `pilot_world_build_time`, in seconds.
const SHORT: [f64; 8] = [0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0];
/// Types beyond the known ones are counted together: clients choose the names.
const OTHER: &str = "other";

/// A histogram with fixed bounds.
#[derive(Debug)]
struct Histogram {
    bounds: [f64; 8],
    buckets: [AtomicU64; 9],
    sum_micros: AtomicU64,
}

impl Histogram {
    fn new(bounds: [f64; 8]) -> Self {
        Self { bounds, buckets: Default::default(), sum_micros: AtomicU64::new(0) }
    }

    fn record(&self, value: Duration) {
        let seconds = value.as_secs_f64();
        let at = self.bounds.iter().position(|b| seconds <= *b).unwrap_or(self.bounds.len());
        if let Some(bucket) = self.buckets.get(at) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        self.sum_micros.fetch_add(u64::try_from(value.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut total = 0;
        for (at, bucket) in self.buckets.iter().enumerate() {
            total += bucket.load(Ordering::Relaxed);
            let bound = self.bounds.get(at).map_or("+Inf".to_owned(), ToString::to_string);
            let _ = writeln!(out, "{name}_bucket{{le=\"{bound}\"}} {total}");
        }
        let sum = Duration::from_micros(self.sum_micros.load(Ordering::Relaxed)).as_secs_f64();
        let _ = writeln!(out, "{name}_sum {sum}\n{name}_count {total}");
    }
}

/// Counters by resource type.
#[derive(Debug, Default)]
struct ByType(Mutex<BTreeMap<&'static str, u64>>);

impl ByType {
    fn add(&self, type_url: &str) {
        let label = types::PUSH_ORDER.iter().find(|t| **t == type_url).map_or(OTHER, |t| short_name(t));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(label).or_default() += 1;
    }

    fn get(&self) -> BTreeMap<&'static str, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn total(&self) -> u64 {
        self.get().values().sum()
    }
}

/// All of them.
#[derive(Debug)]
pub struct Metrics {
    sent: ByType,
    acked: ByType,
    rejected: ByType,
    stale: ByType,
    refused: AtomicU64,
    worlds: AtomicU64,
    convergence: Histogram,
    debounce: Histogram,
    build: Histogram,
}

/// What is measured only when somebody asks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gauges {
    pub(crate) connections: usize,
    pub(crate) services: usize,
    pub(crate) virtual_services: usize,
    pub(crate) endpoints_missing: usize,
    /// By severity.
    pub(crate) diagnostics: BTreeMap<String, usize>,
    /// Seconds until the CA certificate expires; `None` without a CA.
    pub(crate) root_expiry_seconds: Option<f64>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            sent: ByType::default(),
            acked: ByType::default(),
            rejected: ByType::default(),
            stale: ByType::default(),
            refused: AtomicU64::new(0),
            worlds: AtomicU64::new(0),
            convergence: Histogram::new(CONVERGENCE),
            debounce: Histogram::new(SHORT),
            build: Histogram::new(SHORT),
        }
    }
}

impl Metrics {
    pub(crate) fn sent(&self, type_url: &str) {
        self.sent.add(type_url);
    }

    pub(crate) fn acked(&self, type_url: &str) {
        self.acked.add(type_url);
    }

    pub(crate) fn rejected(&self, type_url: &str) {
        self.rejected.add(type_url);
    }

    pub(crate) fn stale(&self, type_url: &str) {
        self.stale.add(type_url);
    }

    /// A stream was turned away for lack of identity or a malformed node.
    pub(crate) fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn converged(&self, after: Duration) {
        self.convergence.record(after);
    }

    /// A world was built, so long after the first change in it, taking so long.
    pub(crate) fn built(&self, debounced: Duration, took: Duration) {
        self.worlds.fetch_add(1, Ordering::Relaxed);
        self.debounce.record(debounced);
        self.build.record(took);
    }

    /// NACKs so far.
    pub fn total_rejects(&self) -> u64 {
        self.rejected.total()
    }

    /// Responses sent so far, by short type name.
    pub fn pushes(&self) -> BTreeMap<&'static str, u64> {
        self.sent.get()
    }

    /// Worlds built so far.
    pub fn worlds(&self) -> u64 {
        self.worlds.load(Ordering::Relaxed)
    }

    /// Prometheus text format 0.0.4.
    pub(crate) fn text(&self, version: &str, gauges: &Gauges) -> String {
        let mut out = String::with_capacity(8192);
        gauge(&mut out, "istio_build", "Build of the control plane.", &format!("{{component=\"pilot\",tag=\"{version}\"}}"), 1.0);
        let label = format!("{{version=\"{version}\"}}");
        gauge(&mut out, "pilot_xds", "Streams connected to this control plane.", &label, to_f64(gauges.connections));
        by_type(&mut out, "pilot_xds_pushes", "Responses sent.", &self.sent.get());
        by_type(&mut out, "pilot_xds_acks_total", "Responses accepted by proxies.", &self.acked.get());
        by_type(&mut out, "pilot_xds_expired_nonce", "Requests with a nonce that was not waited for.", &self.stale.get());
        by_type(&mut out, "pilot_total_xds_rejects", "Responses refused by proxies.", &self.rejected.get());
        counter(&mut out, "pilot_total_xds_internal_errors", "Streams refused.", self.refused.load(Ordering::Relaxed));
        counter(&mut out, "pilot_k8s_cfg_events", "Worlds built from changed configuration.", self.worlds());
        self.convergence.write(&mut out, "pilot_proxy_convergence_time", "Seconds from a change to its last response.");
        self.debounce.write(&mut out, "pilot_debounce_time", "Seconds for which changes were collected.");
        self.build.write(&mut out, "pilot_world_build_time", "Seconds to resolve and index the configuration.");
        gauge(&mut out, "pilot_services", "Services known.", "", to_f64(gauges.services));
        gauge(&mut out, "pilot_virt_services", "VirtualServices known.", "", to_f64(gauges.virtual_services));
        gauge(&mut out, "endpoint_no_pod", "Services without any endpoint.", "", to_f64(gauges.endpoints_missing));
        let _ = writeln!(out, "# HELP lateen_diagnostics Messages about the configuration.\n# TYPE lateen_diagnostics gauge");
        for (severity, count) in &gauges.diagnostics {
            let _ = writeln!(out, "lateen_diagnostics{{severity=\"{severity}\"}} {count}");
        }
        if let Some(seconds) = gauges.root_expiry_seconds {
            gauge(&mut out, "citadel_server_root_cert_expiry_seconds", "Seconds until the CA certificate expires.", "", seconds);
        }
        out
    }
}

#[allow(clippy::cast_precision_loss)] // Counts of things in memory are far below 2^52.
fn to_f64(count: usize) -> f64 {
    count as f64
}

fn gauge(out: &mut String, name: &str, help: &str, labels: &str, value: f64) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name}{labels} {value}");
}

fn counter(out: &mut String, name: &str, help: &str, value: u64) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter\n{name} {value}");
}

fn by_type(out: &mut String, name: &str, help: &str, values: &BTreeMap<&'static str, u64>) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} counter");
    for (label, value) in values {
        let _ = writeln!(out, "{name}{{type=\"{label}\"}} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_istios_names_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.sent(types::LISTENER);
        metrics.sent(types::LISTENER);
        metrics.sent("type.googleapis.com/made.up.by.a.Client");
        metrics.rejected(types::ROUTE);
        metrics.converged(Duration::from_millis(50));
        metrics.converged(Duration::from_secs(2));
        let text = metrics.text("1.0", &Gauges { connections: 3, ..Gauges::default() });
        for line in [
            "pilot_xds{version=\"1.0\"} 3",
            "pilot_xds_pushes{type=\"lds\"} 2",
            "pilot_xds_pushes{type=\"other\"} 1",
            "pilot_total_xds_rejects{type=\"rds\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"0.1\"} 1",
            "pilot_proxy_convergence_time_bucket{le=\"3\"} 2",
            "pilot_proxy_convergence_time_bucket{le=\"+Inf\"} 2",
            "pilot_proxy_convergence_time_sum 2.05",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} missing in\n{text}");
        }
    }
}
