//! How long to wait before connecting again.
use std::time::Duration;

use rand::Rng;

/// Exponential back-off with jitter. Jitter matters when a control plane restarts: without it all
/// proxies of a mesh would come back in the same instant.
#[derive(Clone, Debug)]
pub struct Backoff {
    base: Duration,
    max: Duration,
    failures: u32,
}

impl Default for Backoff {
    /// 0.5 s to 30 s, as Envoy's gRPC streams.
    fn default() -> Self {
        Self::new(Duration::from_millis(500), Duration::from_secs(30))
    }
}

impl Backoff {
    /// Waits grow from `base` to at most `max`, doubling with each failure in a row.
    pub fn new(base: Duration, max: Duration) -> Self {
        Self { base, max: max.max(base), failures: 0 }
    }

    /// The next wait: between half of the current step and the whole of it.
    pub fn next(&mut self, dice: &mut impl Rng) -> Duration {
        let step = self.base.saturating_mul(1 << self.failures.min(16)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        step.mul_f64(dice.random_range(0.5..=1.0))
    }

    /// Starts over; call it when the peer has proved to work, not merely to accept connections.
    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn waits_double_up_to_the_limit_and_start_over_after_success() {
        let mut dice = rand::rngs::SmallRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        for step in [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000] {
            let wait = backoff.next(&mut dice).as_millis();
            assert!((step / 2..=step).contains(&wait), "{wait} outside of {step}");
        }
        backoff.reset();
        assert!(backoff.next(&mut dice) <= Duration::from_millis(500));
    }

    #[test]
    fn a_thousand_failures_do_not_overflow() {
        let mut dice = rand::rngs::SmallRng::seed_from_u64(7);
        let mut backoff = Backoff::default();
        assert!((0..1000).map(|_| backoff.next(&mut dice)).all(|w| w <= Duration::from_secs(30)));
    }
}
