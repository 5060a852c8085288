//! Bodies that may flow only so fast.
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use lateen_snapshot::bandwidth::ByteBucket;
use tokio::time::Instant;

use super::{Piece, Source, Stage};
use crate::http::Info;
use crate::http::message::Frame;
use crate::io::Timer;

/// How often a part of a fault's rate is given out (Envoy: 63 times a second).
pub(crate) const SLICE: Duration = Duration::from_millis(16);

/// What becomes of a body on its way through.
pub(crate) trait Meter {
    fn came(&mut self, _bytes: u64, _now: Instant) {}
    fn went(&mut self, _bytes: u64) {}
    /// There was nothing left for that long.
    fn waits(&mut self, _span: Duration) {}
    /// All has gone, and this comes instead of what ended the body.
    fn over(&mut self, end: Piece, _now: Instant) -> Piece {
        end
    }
}

/// Nobody looks.
impl Meter for () {}

/// A body that is let through at the rate of its bucket.
pub(crate) struct Throttled<M> {
    bucket: Arc<ByteBucket>,
    interval: Duration,
    pending: Bytes,
    waits: bool,
    timer: Timer,
    meter: M,
}

impl<M: Meter> Throttled<M> {
    /// Looks at an empty bucket every `interval`.
    pub(crate) fn new(bucket: Arc<ByteBucket>, interval: Duration, meter: M) -> Self {
        Self { bucket, interval, pending: Bytes::new(), waits: false, timer: Timer::default(), meter }
    }
}

impl<M: Meter> Stage for Throttled<M> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        loop {
            if self.waits {
                ready!(self.timer.poll(cx));
                self.waits = false;
            }
            if self.pending.is_empty() {
                match ready!(source.poll_piece(cx, info)) {
                    Some(Ok(Frame::Data(data))) => {
                        self.meter.came(data.len() as u64, Instant::now());
                        self.pending = data;
                    }
                    end => return Poll::Ready(self.meter.over(end, Instant::now())),
                }
            }
            let now = Instant::now();
            let taken = self.bucket.take(self.pending.len() as u64, now.into_std());
            if taken > 0 {
                self.meter.went(taken);
                return Poll::Ready(Some(Ok(Frame::Data(self.pending.split_to(taken as usize)))));
            }
            if self.pending.is_empty() {
                continue;
            }
            self.meter.waits(self.interval);
            self.waits = true;
            self.timer.set(Some(now + self.interval));
        }
    }
}
