//! A caller's connection that nothing is asked of: how long it may be.
use std::task::{Context, Poll, ready};

use lateen_telemetry::envoy_names::http as names;
use tokio::time::Instant;

use super::Hcm;
use crate::io::Timer;
use crate::listener::Conn;
use crate::worker::{DRAIN_IDLE, Registration, Worker};

/// What ends a connection that waits for its caller.
pub(super) struct Patience {
    /// Free for whoever serves a request.
    pub(super) timer: Timer,
    /// Since when the caller is waited for.
    pub(super) since: Instant,
    /// `max_connection_duration` was reached, and counted.
    old: bool,
    drain: Option<(Registration, Registration)>,
}

impl Patience {
    pub(super) fn new() -> Self {
        Self { timer: Timer::default(), since: Instant::now(), old: false, drain: None }
    }

    /// Ready when the connection is to end; counts why. `used` says that the caller may wait for what it is told.
    pub(super) fn poll_over(&mut self, cx: &mut Context<'_>, worker: &Worker, hcm: &Hcm, conn: &Conn, used: bool) -> Poll<()> {
        if self.drain.is_none() {
            self.drain = Some((conn.chain.drain.register(cx), worker.drain.register(cx)));
        }
        loop {
            let idle = hcm.config.idle_timeout.and_then(|limit| self.since.checked_add(limit));
            // A request may be on its way of a caller that was not told yet, however long it had been silent.
            let drained = conn.draining_since(worker).map(|since| since.max(self.since) + DRAIN_IDLE);
            self.timer.set([idle, drained, self.leaves_at(hcm, conn)].into_iter().flatten().min());
            ready!(self.timer.poll(cx));
            let now = Instant::now();
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            if due(drained) {
                hcm.stats.inc(names::DOWNSTREAM_CX_DRAIN_CLOSE);
            } else if due(idle) {
                hcm.stats.inc(names::DOWNSTREAM_CX_IDLE_TIMEOUT);
            } else {
                let told = self.old;
                self.note_age(hcm, conn);
                if used && !told {
                    continue;
                }
            }
            return Poll::Ready(());
        }
    }

    /// When the connection's age has something happen: the first time nobody knows yet, and requests may be on their way.
    fn leaves_at(&self, hcm: &Hcm, conn: &Conn) -> Option<Instant> {
        let at = conn.old_at.get();
        if !self.old {
            return at;
        }
        at.filter(|_| !hcm.config.http1_safe_max_connection_duration)?.checked_add(hcm.config.drain_timeout)
    }

    /// Counts once that the connection is old.
    pub(super) fn note_age(&mut self, hcm: &Hcm, conn: &Conn) {
        if !self.old && conn.is_old() {
            self.old = true;
            hcm.stats.inc(names::DOWNSTREAM_CX_MAX_DURATION_REACHED);
        }
    }
}
