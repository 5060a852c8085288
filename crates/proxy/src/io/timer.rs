//! One timer for all the deadlines of a connection or stream, armed as rarely as possible.
//!
//! Almost no deadline is ever reached, so moving a deadline outwards (the next request on the same
//! connection, the next byte on the same stream) touches nothing: the sleeping timer goes off at the old
//! time, sees that the deadline moved, and sleeps again.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep_until};

/// A lazily armed timer.
#[derive(Default)]
pub(crate) struct Timer {
    sleep: Option<Pin<Box<Sleep>>>,
    deadline: Option<Instant>,
}

impl Timer {
    /// Sets when [`Self::poll`] becomes ready; `None` is never.
    pub(crate) fn set(&mut self, deadline: Option<Instant>) {
        self.deadline = deadline;
    }

    pub(crate) fn after(&mut self, delay: Option<Duration>) {
        self.deadline = delay.and_then(|delay| Instant::now().checked_add(delay));
    }

    /// Ready when the deadline has passed.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = self.deadline else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        while sleep.as_mut().poll(cx).is_ready() {
            if sleep.deadline() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
        Poll::Pending
    }
}

/// The span, longer by a part of the jitter.
pub(crate) fn longer(span: Duration, jitter_percent: f64, roll: u64) -> Duration {
    let part = jitter_percent / 100.0 * (roll as f64 / u64::MAX as f64);
    span.saturating_add(Duration::try_from_secs_f64(span.as_secs_f64() * part).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_deadline_may_move_both_ways_and_be_taken_away() {
        let start = Instant::now();
        let mut timer = Timer::default();
        timer.after(Some(Duration::from_secs(10)));
        assert!(futures_util::poll!(std::future::poll_fn(|cx| timer.poll(cx))).is_pending());
        timer.after(Some(Duration::from_secs(20)));
        std::future::poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 20);
        timer.after(Some(Duration::from_secs(100)));
        assert!(futures_util::poll!(std::future::poll_fn(|cx| timer.poll(cx))).is_pending());
        timer.after(Some(Duration::from_secs(1)));
        std::future::poll_fn(|cx| timer.poll(cx)).await;
        assert_eq!(start.elapsed().as_secs(), 21);
        timer.set(None);
        assert!(futures_util::poll!(std::future::poll_fn(|cx| timer.poll(cx))).is_pending());
    }
}
