//! How a process ends: what to do at which moment, without a clock or a socket of its own.
//!
//! A drain goes through three stages. First callers are asked to leave (`connection: close`, GOAWAY) while new
//! connections are still taken, since those who send them have not heard yet. Then the listeners close, and what was
//! under way is finished. Each stage ends early when nothing is open, and late at its limit, whatever is open.
use std::time::{Duration, Instant};

/// How long a drain takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainPlan {
    /// The first stage takes at most this (Istio `terminationDrainDuration`).
    pub grace: Duration,
    /// It takes at least this (Istio `MINIMUM_DRAIN_DURATION`).
    pub minimum: Duration,
    /// The first stage ends when nothing is open (Istio `EXIT_ON_ZERO_ACTIVE_CONNECTIONS`); otherwise at its limit.
    pub exit_when_idle: bool,
}

/// Requests that began just before the listeners closed get this long.
const TAIL: Duration = Duration::from_secs(1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asking { since: Instant },
    Closed { until: Instant },
    Over,
}

/// What the shell is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing until something ends, or for a moment.
    Wait,
    CloseListeners,
    Stop,
}

/// The end of a process.
#[derive(Debug)]
pub(crate) struct Draining {
    plan: DrainPlan,
    stage: Stage,
}

impl Draining {
    pub(crate) fn new(plan: DrainPlan, now: Instant) -> Self {
        Self { plan, stage: Stage::Asking { since: now } }
    }

    pub(crate) fn step(&mut self, open: u64, now: Instant) -> Step {
        match self.stage {
            Stage::Asking { since } => {
                let passed = now.saturating_duration_since(since);
                let idle = open == 0 && self.plan.exit_when_idle && passed >= self.plan.minimum;
                if !idle && passed < self.plan.grace {
                    return Step::Wait;
                }
                self.stage = Stage::Closed { until: now + TAIL };
                Step::CloseListeners
            }
            Stage::Closed { until } if open > 0 && now < until => Step::Wait,
            Stage::Closed { .. } | Stage::Over => {
                self.stage = Stage::Over;
                Step::Stop
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAN: DrainPlan = DrainPlan { grace: Duration::from_secs(5), minimum: Duration::from_secs(2), exit_when_idle: true };

    #[test]
    fn listeners_stay_open_until_nothing_is_open_and_the_minimum_has_passed() {
        let start = Instant::now();
        let at = |s: u64| start + Duration::from_secs(s);
        let mut drain = Draining::new(PLAN, start);
        assert_eq!(drain.step(0, at(1)), Step::Wait);
        assert_eq!(drain.step(3, at(3)), Step::Wait);
        assert_eq!(drain.step(0, at(4)), Step::CloseListeners);
        assert_eq!(drain.step(0, at(4)), Step::Stop);
    }

    #[test]
    fn busy_callers_do_not_hold_the_end_up() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut drain = Draining::new(PLAN, start);
        assert_eq!(drain.step(3, at(4999)), Step::Wait);
        assert_eq!(drain.step(3, at(5000)), Step::CloseListeners);
        assert_eq!(drain.step(3, at(5999)), Step::Wait);
        assert_eq!(drain.step(3, at(6000)), Step::Stop);
        assert_eq!(drain.step(3, at(6001)), Step::Stop);
    }

    #[test]
    fn without_leave_to_end_early_the_whole_time_is_taken() {
        let start = Instant::now();
        let mut drain = Draining::new(DrainPlan { exit_when_idle: false, ..PLAN }, start);
        assert_eq!(drain.step(0, start + Duration::from_millis(4999)), Step::Wait);
        assert_eq!(drain.step(0, start + Duration::from_secs(5)), Step::CloseListeners);
    }
}
