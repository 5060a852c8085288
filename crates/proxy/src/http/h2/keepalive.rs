//! Whether the peer of an HTTP/2 connection lives: PINGs by time, and before a stream after silence.
use std::task::{Context, Poll};

use lateen_http2::shell::Pulse;
use lateen_snapshot::http::Keepalive as Config;
use tokio::time::Instant;

use crate::io::{Timer, longer};
use crate::worker::Worker;

/// The PINGs of one connection.
pub(crate) struct Keepalive {
    config: Config,
    pulse: Pulse,
    timer: Timer,
    pongs: u64,
    heard: u64,
    heard_at: Instant,
    ping_at: Option<Instant>,
    /// A PING was sent: the peer is dead then unless it says something.
    dead_at: Option<Instant>,
}

impl Keepalive {
    pub(crate) fn new(worker: &Worker, config: Config, pulse: Pulse) -> Self {
        let now = Instant::now();
        let mut keepalive =
            Self { config, pulse, timer: Timer::default(), pongs: 0, heard: 0, heard_at: now, ping_at: None, dead_at: None };
        keepalive.answered(worker, now);
        keepalive
    }

    /// The next PING is an interval away.
    fn answered(&mut self, worker: &Worker, now: Instant) {
        self.dead_at = None;
        let jittered = |interval| longer(interval, self.config.interval_jitter_percent, worker.roll64());
        self.ping_at = self.config.interval.and_then(|interval| now.checked_add(jittered(interval)));
    }

    /// Asks, unless an answer is still awaited.
    fn ask(&mut self, now: Instant) {
        if self.dead_at.is_none() {
            self.pulse.ping();
            self.dead_at = now.checked_add(self.config.timeout);
        }
    }

    /// A stream is about to be opened; after long silence the peer is asked first.
    pub(crate) fn before_stream(&mut self) {
        let now = Instant::now();
        if self.config.connection_idle_interval.is_some_and(|limit| now.duration_since(self.heard_at) > limit) {
            self.ask(now);
        }
    }

    /// Ready when the peer is taken for dead. To be called after each turn of the connection.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, worker: &Worker) -> Poll<()> {
        let now = Instant::now();
        let heard = self.pulse.heard();
        if heard != self.heard {
            (self.heard, self.heard_at) = (heard, now);
            // Whatever comes is a sign of life: the answer may stand behind much else.
            self.dead_at = self.dead_at.and_then(|_| now.checked_add(self.config.timeout));
        }
        let pongs = self.pulse.pongs();
        if pongs != self.pongs {
            self.pongs = pongs;
            self.answered(worker, now);
        }
        if self.dead_at.is_some_and(|at| at <= now) {
            return Poll::Ready(());
        }
        if self.ping_at.is_some_and(|at| at <= now) {
            self.ping_at = None;
            self.ask(now);
        }
        self.timer.set(self.ping_at.into_iter().chain(self.dead_at).min());
        if self.timer.poll(cx).is_ready() {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }
}
