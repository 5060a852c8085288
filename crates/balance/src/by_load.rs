//! Weights by what hosts report of their load (Envoy `client_side_weighted_round_robin`): who serves more requests with less
//! effort gets more.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use crate::host::Host;

/// Envoy `ClientSideWeightedRoundRobin`.
#[derive(Clone, Debug, PartialEq)]
pub struct ByLoad {
    /// For how long a host must have reported before its weight counts (Envoy's default is 10 s).
    pub blackout_millis: u64,
    /// For how long a report counts (Envoy's default is 3 minutes).
    pub expiration_millis: u64,
    /// How often weights are computed; above zero (Envoy's default is 1 s).
    pub update_millis: u64,
    /// What the share of errors is multiplied with, and added to the utilization.
    pub error_penalty: f64,
    /// What of a report is the utilization: the largest of these.
    pub metrics: Arc<[Box<str>]>,
}

/// What a host reports of itself (`xds.data.orca.v3.OrcaLoadReport`); what it leaves out is 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    pub application_utilization: f64,
    pub cpu_utilization: f64,
    pub mem_utilization: f64,
    /// Requests and errors in a second.
    pub rps: f64,
    pub eps: f64,
    /// By the name of its map and its own, such as `named_metrics.queue`.
    pub others: Vec<(String, f64)>,
}

impl LoadReport {
    fn metric(&self, name: &str) -> Option<f64> {
        match name {
            "application_utilization" => Some(self.application_utilization),
            "cpu_utilization" => Some(self.cpu_utilization),
            "mem_utilization" => Some(self.mem_utilization),
            _ => self.others.iter().find(|(other, _)| other == name).map(|(_, value)| *value),
        }
    }

    /// The largest of these metrics, or what is there instead, in Envoy's order.
    fn utilization(&self, metrics: &[Box<str>]) -> f64 {
        let named = metrics.iter().filter_map(|name| self.metric(name)).fold(0.0, f64::max);
        [named, self.application_utilization].into_iter().find(|value| *value > 0.0).unwrap_or(self.cpu_utilization)
    }
}

/// The weight of a host by its reports; shared by all workers.
#[derive(Debug, Default)]
pub struct ReportedWeight {
    weight: AtomicU32,
    /// Since when it reports, in milliseconds of the clock of choices, plus one; 0 when it does not.
    since: AtomicU64,
    /// When it did last.
    at: AtomicU64,
}

impl ReportedWeight {
    fn update(&self, weight: u32, now: u64) {
        self.weight.store(weight, Relaxed);
        self.at.store(now, Relaxed);
        // Only the first of a series starts the clock.
        let _ = self.since.compare_exchange(0, now.saturating_add(1), Relaxed, Relaxed);
    }

    /// `None` while it does not count.
    fn at(&self, settings: &ByLoad, now: u64) -> Option<u32> {
        let since = self.since.load(Relaxed).checked_sub(1)?;
        if now.saturating_sub(since) < settings.blackout_millis {
            return None;
        }
        if now.saturating_sub(self.at.load(Relaxed)) > settings.expiration_millis {
            // The next report starts a new series.
            self.since.store(0, Relaxed);
            return None;
        }
        Some(self.weight.load(Relaxed).max(1))
    }
}

impl ByLoad {
    /// Takes note of a report. `now` is milliseconds of the clock of choices.
    pub fn observe(&self, host: &Host, report: &LoadReport, now: u64) {
        if let Some(weight) = self.weight_by(report) {
            host.reported.update(weight, now);
        }
    }

    /// A report without requests, or without utilization, says nothing.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    fn weight_by(&self, report: &LoadReport) -> Option<u32> {
        if report.rps.is_nan() || report.rps <= 0.0 {
            return None;
        }
        let utilization = report.utilization(&self.metrics) + self.error_penalty * report.eps / report.rps;
        // The cast keeps within what there is room for.
        (utilization > 0.0).then(|| (report.rps / utilization) as u32)
    }

    /// The weights of the moment: those without one of their own get the median.
    pub(crate) fn weights(&self, hosts: &[Arc<Host>], now: u64) -> Vec<f64> {
        let own: Vec<Option<u32>> = hosts.iter().map(|host| host.reported.at(self, now)).collect();
        let mut known: Vec<u32> = own.iter().flatten().copied().collect();
        let median = median(&mut known).unwrap_or(1);
        own.into_iter().map(|weight| f64::from(weight.unwrap_or(median))).collect()
    }
}

/// The one in the middle; of an even number the mean of the two there.
fn median(values: &mut [u32]) -> Option<u32> {
    let middle = values.len() / 2;
    let even = values.len().is_multiple_of(2);
    let (below, upper, _) = values.get(middle).is_some().then(|| values.select_nth_unstable(middle))?;
    let lower = below.iter().max().filter(|_| even).unwrap_or(upper);
    Some(lower.midpoint(*upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::Address;

    fn settings() -> ByLoad {
        ByLoad {
            blackout_millis: 10_000,
            expiration_millis: 180_000,
            update_millis: 1_000,
            error_penalty: 1.0,
            metrics: Arc::new(["named_metrics.queue".into(), "mem_utilization".into()]),
        }
    }

    fn report(rps: f64, cpu: f64) -> LoadReport {
        LoadReport { rps, cpu_utilization: cpu, ..LoadReport::default() }
    }

    #[test]
    fn a_weight_is_requests_by_utilization_and_errors() {
        let settings = settings();
        assert_eq!(settings.weight_by(&report(1000.0, 0.5)), Some(2000));
        assert_eq!(settings.weight_by(&LoadReport { eps: 500.0, ..report(1000.0, 0.5) }), Some(1000));
        assert_eq!(settings.weight_by(&LoadReport { application_utilization: 0.25, ..report(1000.0, 0.5) }), Some(4000));
        let named = vec![("named_metrics.queue".to_owned(), 0.8), ("named_metrics.other".to_owned(), 1.0)];
        let all = LoadReport { application_utilization: 0.25, mem_utilization: 0.1, others: named, ..report(1000.0, 0.5) };
        assert_eq!(settings.weight_by(&all), Some(1250), "the largest of those that are named comes first");
        assert_eq!(settings.weight_by(&report(f64::MAX, 0.1)), Some(u32::MAX));
        for nothing in [report(0.0, 0.5), report(1000.0, 0.0), report(-1.0, 0.5), report(f64::NAN, 0.5), report(10.0, f64::NAN)] {
            assert_eq!(settings.weight_by(&nothing), None, "{nothing:?}");
        }
    }

    #[test]
    fn a_weight_counts_after_the_blackout_and_until_it_expires_and_others_get_the_median() {
        let settings = settings();
        let hosts: Vec<_> = (1..=4).map(|port| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], port).into())))).collect();
        let reports = |now: u64| {
            for (host, rps) in hosts.iter().zip([100.0, 300.0, 200.0]) {
                settings.observe(host, &report(rps, 1.0), now);
            }
        };
        assert_eq!(settings.weights(&hosts, 0), [1.0; 4]);
        reports(0);
        assert_eq!(settings.weights(&hosts, 9_999), [1.0; 4]);
        assert_eq!(settings.weights(&hosts, 10_000), [100.0, 300.0, 200.0, 200.0]);
        let odd = &hosts[..1];
        assert_eq!(settings.weights(odd, 10_000), [100.0]);
        let even = [hosts[0].clone(), hosts[1].clone(), hosts[3].clone()];
        assert_eq!(settings.weights(&even, 10_000), [100.0, 300.0, 200.0], "the mean of both");
        settings.observe(&hosts[0], &report(500.0, 1.0), 100_000);
        assert_eq!(settings.weights(&hosts, 180_001), [500.0; 4], "the others have expired");
        reports(181_000);
        assert_eq!(settings.weights(&hosts, 182_000)[1], 100.0, "after a pause the blackout begins anew");
        assert_eq!(settings.weights(&hosts, 191_000), [100.0, 300.0, 200.0, 200.0]);
    }
}
