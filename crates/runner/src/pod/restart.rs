//! When a container that ended starts again: at once at first, then ever later. No clock and no process in here.
use std::time::{Duration, Instant};

/// The first wait after an early end; it doubles with each further one.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// A container that ran so long has proved itself: its next end counts as the first.
const STEADY: Duration = Duration::from_secs(60);

/// The pod's `restartPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Policy {
    #[default]
    Always,
    OnFailure,
    Never,
}

impl Policy {
    /// Reads the field; absent or unknown is `Always`, the only one that a Deployment may have.
    pub fn parse(text: Option<&str>) -> Self {
        match text {
            Some("OnFailure") => Self::OnFailure,
            Some("Never") => Self::Never,
            _ => Self::Always,
        }
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Code(i32),
    Signal(i32),
}

impl End {
    /// The exit code as a shell gives it: 128 + n for signal n.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

/// What to do about an end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    RestartIn(Duration),
    Stay,
}

/// The history that the next wait depends on.
#[derive(Clone, Debug, Default)]
pub struct Restarts {
    started: Option<Instant>,
    early_ends: u32,
}

impl Restarts {
    /// The process runs since `now`.
    pub fn started(&mut self, now: Instant) {
        self.started = Some(now);
    }

    /// The process ended.
    pub fn ended(&mut self, now: Instant, end: End, policy: Policy) -> Next {
        let ran = self.started.take().map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if policy == Policy::Never || policy == Policy::OnFailure && end == End::Code(0) {
            return Next::Stay;
        }
        self.early_ends = if ran >= STEADY { 0 } else { self.early_ends.saturating_add(1) };
        Next::RestartIn(match self.early_ends {
            0 | 1 => Duration::ZERO,
            n => FIRST.saturating_mul(1 << (n - 2).min(10)).min(LONGEST),
        })
    }

    /// Whether waits have grown: what kubectl calls CrashLoopBackOff.
    pub fn is_crash_loop(&self) -> bool {
        self.early_ends > 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_are_bounded_and_forgiven_after_a_steady_run() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        let waits: Vec<u64> = (0..9)
            .map(|_| {
                restarts.started(now);
                match restarts.ended(now, End::Code(1), Policy::Always) {
                    Next::RestartIn(wait) => wait.as_secs(),
                    Next::Stay => unreachable!("policy Always"),
                }
            })
            .collect();
        assert_eq!(waits, [0, 1, 2, 4, 8, 16, 32, 60, 60]);
        assert!(restarts.is_crash_loop());
        restarts.started(now);
        assert_eq!(restarts.ended(now + STEADY, End::Code(1), Policy::Always), Next::RestartIn(Duration::ZERO));
        assert!(!restarts.is_crash_loop());
    }

    #[test]
    fn policies_decide_whether_at_all() {
        let mut restarts = Restarts::default();
        let now = Instant::now();
        assert_eq!(restarts.ended(now, End::Code(0), Policy::OnFailure), Next::Stay);
        assert_eq!(restarts.ended(now, End::Signal(9), Policy::Never), Next::Stay);
        assert!(matches!(restarts.ended(now, End::Signal(9), Policy::OnFailure), Next::RestartIn(_)));
        assert_eq!(End::Signal(9).code(), 137);
    }
}
