//! How busy processors are (Envoy `source/extensions/resource_monitors/cpu_utilization`).
use std::io;
use std::time::Instant;

use super::cgroup::Cpu;

/// The weight of a new measurement in the mean.
const NEW: f64 = 0.05;

/// Two running totals, in whatever unit they share.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Times {
    pub(super) worked: f64,
    pub(super) passed: f64,
}

/// A moving mean of how busy processors are, from nothing on.
#[derive(Debug, Default)]
pub(super) struct Utilization {
    before: Option<Times>,
    /// When the first measurement of a control group was.
    since: Option<Instant>,
    mean: f64,
}

impl Utilization {
    /// The mean with what there was since the last call: 0 to 1.
    pub(super) fn next(&mut self, now: Times) -> f64 {
        if let Some(before) = self.before.replace(now) {
            let (worked, passed) = (now.worked - before.worked, now.passed - before.passed);
            if passed > 0.0 {
                self.mean += NEW * ((worked / passed).clamp(0.0, 1.0) - self.mean);
            }
        }
        self.mean
    }

    /// As [`Self::next`] for a control group, whose processors count by the clock.
    pub(super) fn next_timed(&mut self, cpu: Cpu, now: Instant) -> f64 {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_secs_f64() * cpu.cores;
        self.next(Times { worked: cpu.used.as_secs_f64(), passed })
    }
}

/// All processors of the machine, since it was started.
pub(super) fn of_host() -> io::Result<Times> {
    let text = std::fs::read_to_string("/proc/stat")?;
    host_times(&text).ok_or_else(|| io::Error::other("/proc/stat does not begin with the times of all processors"))
}

/// User, nice and system are work; the fourth is idleness. As in Envoy the rest, time waited or stolen, is neither.
fn host_times(stat: &str) -> Option<Times> {
    let line = stat.lines().next()?.strip_prefix("cpu ")?;
    let mut times = line.split_whitespace().map(|field| field.parse::<f64>().ok());
    let worked: f64 = times.by_ref().take(3).sum::<Option<f64>>()?;
    Some(Times { worked, passed: worked + times.next()?? })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_times_of_a_machine_are_read_off_the_first_line() {
        let text = "cpu  10 20 30 40 50 0 60 70 0 0\ncpu0 1 2 3 4\n";
        assert_eq!(host_times(text), Some(Times { worked: 60.0, passed: 100.0 }));
        for broken in ["", "cpu  1 2 3\n", "cpu0 1 2 3 4\n", "cpu  a 2 3 4\n"] {
            assert_eq!(host_times(broken), None, "{broken}");
        }
        assert!(of_host().unwrap().passed > 0.0);
    }

    #[test]
    fn a_busy_machine_is_told_slowly() {
        let mut utilization = Utilization::default();
        let at = |n: i32| Times { worked: f64::from(n) * 50.0, passed: f64::from(n) * 100.0 };
        assert_eq!(utilization.next(at(0)), 0.0, "there is nothing to compare with");
        assert!((utilization.next(at(1)) - 0.025).abs() < 1e-9);
        assert!((utilization.next(at(1)) - 0.025).abs() < 1e-9, "no time has passed");
        let last = (2..200).map(|n| utilization.next(at(n))).last().unwrap();
        assert!((0.49..=0.5).contains(&last), "{last}");
    }

    #[test]
    fn a_control_group_is_busy_by_the_processors_it_may_have() {
        let mut utilization = Utilization::default();
        let start = Instant::now();
        let used = |seconds| Cpu { used: Duration::from_secs(seconds), cores: 2.0 };
        utilization.next_timed(used(100), start);
        let pressure = utilization.next_timed(used(101), start + Duration::from_secs(1));
        assert!((pressure - 0.025).abs() < 1e-9, "one of two processors: {pressure}");
    }
}
