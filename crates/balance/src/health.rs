//! Active health checking without sockets: what one result does to a host, and when to ask again
//! (Envoy health_check.proto and its `HealthCheckerImplBase`).
use std::time::Duration;

/// Thresholds and intervals of one check.
#[derive(Clone, Debug, PartialEq)]
pub struct Pace {
    pub interval: Duration,
    /// While the cluster has never been connected to; Envoy default 60 s.
    pub no_traffic_interval: Duration,
    /// The same for a healthy host; default `no_traffic_interval`.
    pub no_traffic_healthy_interval: Duration,
    /// After a failure; default `interval`.
    pub unhealthy_interval: Duration,
    /// While failures are counted towards the threshold; default `unhealthy_interval`.
    pub unhealthy_edge_interval: Duration,
    /// While successes are counted towards the threshold; default `interval`.
    pub healthy_edge_interval: Duration,
    /// The first check of a host waits up to this long.
    pub initial_jitter: Duration,
    pub interval_jitter: Duration,
    pub interval_jitter_percent: u32,
    pub healthy_threshold: u32,
    pub unhealthy_threshold: u32,
}

impl Pace {
    /// Every interval the same, and thresholds of one.
    pub fn every(interval: Duration) -> Self {
        Self {
            interval,
            no_traffic_interval: interval,
            no_traffic_healthy_interval: interval,
            unhealthy_interval: interval,
            unhealthy_edge_interval: interval,
            healthy_edge_interval: interval,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            healthy_threshold: 1,
            unhealthy_threshold: 1,
        }
    }

    /// How long to wait before the first check; `roll` is any uniformly distributed number.
    pub fn first(&self, roll: u64) -> Duration {
        part_of(self.initial_jitter, roll)
    }
}

/// How one check ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checked {
    Healthy,
    /// The host answered that it is unwell: it goes out at once.
    Unwell,
    /// No answer, or one that counts as none: it takes `unhealthy_threshold` in a row.
    NoAnswer,
}

/// What is to be done after a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// Whether the host now counts as failed.
    pub failed: bool,
    /// Whether that is new.
    pub changed: bool,
    /// Whether this was the first result of all.
    pub first: bool,
    pub wait: Duration,
}

/// The state of one check of one host. A new host counts as failed until its first result.
#[derive(Debug)]
pub struct Checker {
    failed: bool,
    first: bool,
    good: u32,
    bad: u32,
}

impl Checker {
    /// `failed` is what the host's flag says when the checks begin.
    pub fn new(failed: bool) -> Self {
        Self { failed, first: true, good: 0, bad: 0 }
    }

    /// Takes a result. `used` tells whether the cluster has ever been connected to; `rolls` are uniformly distributed.
    pub fn take(&mut self, pace: &Pace, result: Checked, used: bool, rolls: [u64; 2]) -> Step {
        let (first, before) = (self.first, self.failed);
        let pending = if result == Checked::Healthy { self.succeed(pace) } else { self.fail(pace, result) };
        self.first = false;
        let healthy = result == Checked::Healthy;
        let base = match (used, healthy, pending) {
            (true, true, false) => pace.interval,
            (true, true, true) => pace.healthy_edge_interval,
            (true, false, false) => pace.unhealthy_interval,
            (true, false, true) => pace.unhealthy_edge_interval,
            (false, true, false) => pace.no_traffic_healthy_interval,
            (false, _, _) => pace.no_traffic_interval,
        };
        let [one, other] = rolls;
        let percent = base.saturating_mul(pace.interval_jitter_percent) / 100;
        let wait = base.saturating_add(part_of(percent, one)).saturating_add(part_of(pace.interval_jitter, other));
        Step { failed: self.failed, changed: self.failed != before, first, wait }
    }

    /// The host said beside its checks that it fails them; tells like a result what that changed.
    pub fn fail_at_once(&mut self) -> (bool, bool) {
        let (first, changed) = (self.first, !self.failed);
        (self.first, self.failed, self.good) = (false, true, 0);
        (changed, first)
    }

    /// Says whether a change is on its way but not there.
    fn succeed(&mut self, pace: &Pace) -> bool {
        self.bad = 0;
        if !self.failed {
            return false;
        }
        self.good = self.good.saturating_add(1);
        // The first result of all decides at once, so that a start is quick.
        self.failed = !(self.first || self.good >= pace.healthy_threshold);
        self.failed
    }

    fn fail(&mut self, pace: &Pace, result: Checked) -> bool {
        self.good = 0;
        if self.failed {
            return false;
        }
        self.bad = self.bad.saturating_add(1);
        self.failed = result == Checked::Unwell || self.bad >= pace.unhealthy_threshold;
        !self.failed
    }
}

/// Some part of `most`, in milliseconds.
fn part_of(most: Duration, roll: u64) -> Duration {
    let millis = u64::try_from(most.as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(roll.checked_rem(millis).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace() -> Pace {
        Pace {
            interval: Duration::from_secs(1),
            no_traffic_interval: Duration::from_secs(60),
            no_traffic_healthy_interval: Duration::from_secs(70),
            unhealthy_interval: Duration::from_secs(2),
            unhealthy_edge_interval: Duration::from_secs(3),
            healthy_edge_interval: Duration::from_secs(4),
            healthy_threshold: 3,
            unhealthy_threshold: 2,
            ..Pace::every(Duration::from_secs(1))
        }
    }

    /// Results with the seconds to wait after each and whether the host is failed then.
    fn run(used: bool, results: &[Checked]) -> Vec<(bool, u64)> {
        let mut checker = Checker::new(true);
        results.iter().map(|r| checker.take(&pace(), *r, used, [0, 0])).map(|s| (s.failed, s.wait.as_secs())).collect()
    }

    #[test]
    fn the_first_success_decides_and_later_ones_need_the_threshold_with_edge_intervals_between() {
        use Checked::{Healthy, NoAnswer};
        let results = [Healthy, NoAnswer, NoAnswer, NoAnswer, Healthy, Healthy, Healthy, Healthy];
        let steps = [(false, 1), (false, 3), (true, 2), (true, 2), (true, 4), (true, 4), (false, 1), (false, 1)];
        assert_eq!(run(true, &results), steps);
    }

    #[test]
    fn an_answer_that_says_unwell_needs_no_second() {
        assert_eq!(run(true, &[Checked::Healthy, Checked::Unwell]), [(false, 1), (true, 2)]);
    }

    #[test]
    fn a_failure_between_successes_starts_the_count_again() {
        use Checked::{Healthy, NoAnswer};
        let failed: Vec<bool> = run(true, &[NoAnswer, Healthy, Healthy, NoAnswer, Healthy, Healthy, Healthy]).iter().map(|s| s.0).collect();
        assert_eq!(failed, [true, true, true, true, true, true, false]);
    }

    #[test]
    fn a_host_that_says_so_itself_is_out_until_it_passes_as_many_checks_as_ever() {
        let mut checker = Checker::new(true);
        let mut failed = |result| checker.take(&pace(), result, true, [0, 0]).failed;
        assert!(!failed(Checked::Healthy));
        assert_eq!(checker.fail_at_once(), (true, false));
        assert_eq!(checker.fail_at_once(), (false, false));
        let mut failed = |result| checker.take(&pace(), result, true, [0, 0]).failed;
        assert_eq!([Checked::Healthy; 3].map(&mut failed), [true, true, false]);
    }

    #[test]
    fn a_cluster_without_traffic_is_asked_seldom() {
        assert_eq!(run(false, &[Checked::Healthy, Checked::NoAnswer, Checked::NoAnswer]), [(false, 70), (false, 60), (true, 60)]);
    }

    #[test]
    fn jitter_only_adds_and_stays_below_its_bounds() {
        let pace = Pace {
            interval_jitter: Duration::from_millis(500),
            interval_jitter_percent: 10,
            initial_jitter: Duration::from_secs(7),
            ..Pace::every(Duration::from_secs(1))
        };
        for roll in [0, 1, 99, 499, 6_999, 7_000, u64::MAX] {
            let wait = Checker::new(true).take(&pace, Checked::Healthy, true, [roll, roll]).wait;
            assert_eq!(wait.as_millis() as u64, 1_000 + roll % 100 + roll % 500);
            assert_eq!(pace.first(roll).as_millis() as u64, roll % 7_000);
        }
    }
}
