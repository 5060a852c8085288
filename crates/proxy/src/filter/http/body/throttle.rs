//! Bodies that may flow only so fast.
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::{Piece, Source, Stage};
use crate::http::Info;
use crate::http::message::Frame;
use crate::io::Timer;

/// How often a part of the rate is given out (Envoy: 63 times a second).
const SLICE: Duration = Duration::from_millis(16);
/// What is not used is kept for as long.
const MOST: Duration = Duration::from_secs(1);

/// A body that is let through at a rate.
pub(crate) struct Throttled {
    /// Bytes a second.
    rate: u64,
    /// Bytes that may go at once.
    budget: u64,
    counted: Instant,
    pending: Bytes,
    timer: Timer,
}

impl Throttled {
    /// `rate` in bytes a second. The first slice goes at once.
    pub(crate) fn new(rate: u64) -> Self {
        let mut throttled = Self { rate, budget: 0, counted: Instant::now(), pending: Bytes::new(), timer: Timer::default() };
        throttled.budget = throttled.worth(SLICE).max(1);
        throttled
    }

    fn worth(&self, span: Duration) -> u64 {
        u64::try_from(u128::from(self.rate) * span.as_micros() / 1_000_000).unwrap_or(u64::MAX)
    }

    fn fill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.counted).min(MOST);
        let more = self.worth(passed);
        // Less than a byte's time is not lost.
        if more > 0 {
            self.counted = now;
            self.budget = self.budget.saturating_add(more).min(self.worth(MOST).max(1));
        }
    }
}

impl Stage for Throttled {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        loop {
            if self.pending.is_empty() {
                match ready!(source.poll_piece(cx, info)) {
                    Some(Ok(Frame::Data(data))) => self.pending = data,
                    other => return Poll::Ready(other),
                }
            }
            let now = Instant::now();
            self.fill(now);
            if self.budget > 0 {
                let part = self.pending.len().min(usize::try_from(self.budget).unwrap_or(usize::MAX));
                self.budget -= part as u64;
                return Poll::Ready(Some(Ok(Frame::Data(self.pending.split_to(part)))));
            }
            self.timer.set(Some(now + SLICE));
            ready!(self.timer.poll(cx));
        }
    }
}
