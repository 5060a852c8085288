//! Peak EWMA: of two random hosts the one with the smaller product of latency and load (Envoy `peak_ewma`).
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use rand::Rng;
use rand::rngs::SmallRng;

use crate::host::Host;

/// Envoy `PeakEwma`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PeakEwma {
    /// How long a measurement matters; above zero (Envoy's default is 10 s).
    pub decay_nanos: u64,
    /// The latency of a host before its first answer, in milliseconds (Envoy's default is 10).
    pub default_rtt_millis: f64,
    /// The cost of a host that has requests and never answered one (Envoy's default is 1 000 000).
    pub penalty: f64,
}

/// The moving average of a host's latency; shared by all workers.
#[derive(Debug, Default)]
pub struct Latency {
    /// Milliseconds, as bits; 0 before the first.
    average: AtomicU64,
    /// When it was last updated, in nanoseconds of the callers' clock.
    at: AtomicU64,
}

impl Latency {
    /// Takes note of one answer. Workers may overwrite each other's samples: one of many is lost then.
    pub fn observe(&self, settings: &PeakEwma, millis: f64, now_nanos: u64) {
        // Nothing takes no time at all, and zero means that nothing was measured.
        let millis = millis.max(0.001);
        let before = f64::from_bits(self.average.load(Relaxed));
        let passed = now_nanos.saturating_sub(self.at.swap(now_nanos, Relaxed));
        let average = if before == 0.0 || passed == 0 {
            millis
        } else {
            let share = 1.0 - (-(passed as f64) / settings.decay_nanos.max(1) as f64).exp();
            share * millis + (1.0 - share) * before
        };
        self.average.store(average.to_bits(), Relaxed);
    }

    /// Milliseconds; 0 before the first.
    pub fn millis(&self) -> f64 {
        f64::from_bits(self.average.load(Relaxed))
    }
}

impl PeakEwma {
    fn cost(&self, host: &Host) -> f64 {
        let (latency, active) = (host.latency.millis(), f64::from(host.active_requests()));
        if latency > 0.0 {
            latency * (active + 1.0)
        } else if active > 0.0 {
            self.penalty + active
        } else {
            self.default_rtt_millis
        }
    }

    pub(crate) fn choose(&self, hosts: &[Arc<Host>], rng: &mut SmallRng) -> Option<Arc<Host>> {
        if hosts.len() < 2 {
            return hosts.first().cloned();
        }
        let first = rng.random_range(0..hosts.len());
        let second = (first + rng.random_range(1..hosts.len())) % hosts.len();
        let (first, second) = (hosts.get(first)?, hosts.get(second)?);
        let (one, other) = (self.cost(first), self.cost(second));
        let takes_first = if one == other { rng.random() } else { one < other };
        Some(Arc::clone(if takes_first { first } else { second }))
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;
    use crate::host::Address;

    const SECOND: u64 = 1_000_000_000;
    const SETTINGS: PeakEwma = PeakEwma { decay_nanos: 10 * SECOND, default_rtt_millis: 10.0, penalty: 1e6 };

    fn hosts(n: u16) -> Vec<Arc<Host>> {
        (0..n).map(|i| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], i).into())))).collect()
    }

    fn share(hosts: &[Arc<Host>], of: usize) -> usize {
        let mut rng = SmallRng::seed_from_u64(5);
        (0..1_000).filter(|_| Arc::ptr_eq(&SETTINGS.choose(hosts, &mut rng).unwrap(), &hosts[of])).count()
    }

    #[test]
    fn the_average_follows_with_the_decay_time() {
        let latency = Latency::default();
        latency.observe(&SETTINGS, 100.0, SECOND);
        assert_eq!(latency.millis(), 100.0);
        latency.observe(&SETTINGS, 0.001, 11 * SECOND);
        assert!((latency.millis() - 36.788).abs() < 0.01, "one decay time leaves 1/e: {}", latency.millis());
        latency.observe(&SETTINGS, 50.0, 11 * SECOND);
        assert_eq!(latency.millis(), 50.0, "at the same moment the last one counts");
    }

    #[test]
    fn the_quicker_and_the_less_busy_of_two_is_taken() {
        let hosts = hosts(2);
        hosts[0].latency.observe(&SETTINGS, 30.0, 1);
        hosts[1].latency.observe(&SETTINGS, 10.0, 1);
        assert_eq!(share(&hosts, 1), 1_000);
        let held: Vec<_> = (0..5).map(|_| hosts[1].begin_request()).collect();
        assert_eq!(share(&hosts, 0), 1_000, "ten times six is more than thirty");
        drop(held);
    }

    #[test]
    fn a_host_without_measurements_is_average_until_it_has_a_request_that_does_not_end() {
        let hosts = hosts(2);
        hosts[0].latency.observe(&SETTINGS, 11.0, 1);
        assert_eq!(share(&hosts, 1), 1_000);
        let held = hosts[1].begin_request();
        assert_eq!(share(&hosts, 0), 1_000);
        drop(held);
        let alike = self::hosts(3);
        assert!((250..420).contains(&share(&alike, 2)), "equal costs are shared");
    }
}
