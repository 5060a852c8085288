//! What exchanges tell of their hosts: to outlier detection, to active health checks, and to policies that go by latency or load.
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use lateen_balance::by_load::ByLoad;
use lateen_balance::outlier::{self, Detection, Detector, Ejection, Outcome};
use lateen_balance::{Host, LbPolicy};
use lateen_telemetry::envoy_names::{health_check as check_names, outlier as outlier_names};

use super::ClusterState;
use crate::http::headers::{DEGRADED, IMMEDIATE_HEALTH_CHECK_FAIL};
use crate::upstream::load_report;
use crate::worker::Worker;

impl ClusterState {
    /// Tells outlier detection how a connection attempt went, where nothing more will be known.
    pub(crate) fn report_connect(&self, worker: &Worker, host: &Arc<Host>, connected: bool) {
        let outcome = if connected { Outcome::LocalSuccessFinal } else { Outcome::LocalFailure };
        self.report(worker, host, outcome);
    }

    /// Tells outlier detection how an exchange went.
    pub(crate) fn report(&self, worker: &Worker, host: &Arc<Host>, outcome: Outcome) {
        let Some(settings) = &self.cluster.config.outlier else { return };
        if let Some(detection) = outlier::report(settings, &self.cluster.hosts, host, outcome, worker.millis(), worker.roll()) {
            self.count_detection(&detection);
        }
    }

    /// Tells outlier detection that there is a connection for an exchange, where that is told apart from its answer.
    pub(crate) fn report_reached(&self, worker: &Worker, host: &Arc<Host>) {
        if self.cluster.config.outlier.as_ref().is_some_and(|s| s.split_external_local_origin_errors) {
            self.report(worker, host, Outcome::LocalSuccess);
        }
    }

    /// Takes note of how long an answer took, or what it says of its host's load, where the policy goes by that and nothing of the
    /// request's answers has told it yet.
    pub(crate) fn report_answer(&self, worker: &Worker, host: &Host, took: Duration, headers: &HeaderMap, told: &mut bool) {
        match &self.cluster.config.balance.policy {
            LbPolicy::PeakEwma(settings) => host.latency.observe(settings, took.as_secs_f64() * 1_000.0, worker.nanos()),
            LbPolicy::ByLoad(settings) => observe_load(settings, worker, host, headers, told),
            _ => {}
        }
    }

    /// The same of what trailers say of their host's load.
    pub(crate) fn report_trailers(&self, worker: &Worker, host: &Host, trailers: &HeaderMap, told: &mut bool) {
        if let LbPolicy::ByLoad(settings) = &self.cluster.config.balance.policy {
            observe_load(settings, worker, host, trailers, told);
        }
    }

    /// Whether responses may say how their host is: see [`Self::listen`].
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// Takes note of what a response says of its host: that it is degraded, or fails its health checks.
    pub(crate) fn listen(&self, worker: &Worker, host: &Arc<Host>, headers: &HeaderMap) {
        if let Some(settings) = self.cluster.config.outlier.as_ref().filter(|s| s.detect_degraded_hosts)
            && headers.contains_key(&DEGRADED)
            && outlier::degraded(settings, &self.cluster.hosts, host, worker.millis())
        {
            tracing::info!("{} of {} says that it is degraded", host.address, self.cluster.config.name);
        }
        let is_checked = || !host.checked_at.as_ref().is_some_and(|c| c.disabled);
        if let Some(checks) = &self.checks
            && headers.contains_key(&IMMEDIATE_HEALTH_CHECK_FAIL)
            && is_checked()
        {
            checks.inc(check_names::FAILURE);
            checks.inc(check_names::PASSIVE_FAILURE);
            if host.fail_at_once() {
                self.cluster.hosts.health_changed();
            }
        }
    }

    /// Counts what outlier detection found.
    fn count_detection(&self, detection: &Detection) {
        use outlier_names as n;
        let Some(stats) = &self.outlier else { return };
        let enforced = detection.result == Ejection::Ejected;
        let (detected, by_kind) = match detection.detector {
            Detector::Consecutive5xx => (n::EJECTIONS_DETECTED_CONSECUTIVE_5XX, n::EJECTIONS_ENFORCED_CONSECUTIVE_5XX),
            Detector::ConsecutiveGatewayFailure => {
                (n::EJECTIONS_DETECTED_CONSECUTIVE_GATEWAY_FAILURE, n::EJECTIONS_ENFORCED_CONSECUTIVE_GATEWAY_FAILURE)
            }
            Detector::ConsecutiveLocalOriginFailure => {
                (n::EJECTIONS_DETECTED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE, n::EJECTIONS_ENFORCED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE)
            }
            // Found by the main thread's tick, and counted there.
            Detector::SuccessRate
            | Detector::FailurePercentage
            | Detector::LocalOriginSuccessRate
            | Detector::LocalOriginFailurePercentage => return,
        };
        stats.inc(detected);
        if enforced {
            stats.inc(by_kind);
            stats.inc(n::EJECTIONS_ENFORCED_TOTAL);
            tracing::info!("outlier detection took {} out of {}", detection.host.address, self.cluster.config.name);
        } else if detection.result == Ejection::Overflow {
            stats.inc(n::EJECTIONS_OVERFLOW);
        }
    }
}

/// A request has one report, as in Envoy: the first that makes sense, whichever try it is of.
fn observe_load(settings: &ByLoad, worker: &Worker, host: &Host, headers: &HeaderMap, told: &mut bool) {
    if *told {
        return;
    }
    if let Some(report) = load_report::find(headers) {
        *told = true;
        settings.observe(host, &report, worker.millis());
    }
}
