//! How often a host is looked for, and how long to wait before it is again.
use std::time::Duration;

use lateen_snapshot::listener::TcpProxy;

use crate::worker::Worker;

/// The attempts that a connection has left.
pub(super) struct Attempts {
    left: u32,
    /// The longest the next wait may be, and the longest any may be.
    wait: Option<(Duration, Duration)>,
    first: bool,
}

impl Attempts {
    pub(super) fn new(config: &TcpProxy) -> Self {
        Self { left: config.max_connect_attempts, wait: config.backoff, first: true }
    }

    /// Whether there is another attempt; comes back when it is time for it.
    pub(super) async fn next(&mut self, worker: &Worker) -> bool {
        if self.left == 0 {
            return false;
        }
        self.left -= 1;
        if !std::mem::take(&mut self.first)
            && let Some(span) = self.take_wait(worker.roll64())
        {
            tokio::time::sleep(span).await;
        }
        true
    }

    /// A random part of a span that doubles each time (Envoy `JitteredExponentialBackOffStrategy`).
    fn take_wait(&mut self, roll: u64) -> Option<Duration> {
        let (next, most) = self.wait.as_mut()?;
        let span = (*next).min(*most);
        *next = span.saturating_mul(2);
        let micros = u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
        Some(Duration::from_micros(roll % micros))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest() {
        let millis = Duration::from_millis;
        let mut attempts = Attempts { left: 9, wait: Some((millis(10), millis(35))), first: false };
        // The largest part of each span.
        let longest: Vec<Duration> = [9_999, 19_999, 34_999, 34_999].into_iter().filter_map(|roll| attempts.take_wait(roll)).collect();
        assert_eq!(longest, [9_999, 19_999, 34_999, 34_999].map(Duration::from_micros));
        assert_eq!(Attempts { left: 9, wait: None, first: false }.take_wait(7), None);
    }
}
