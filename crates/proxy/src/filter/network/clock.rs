//! What ends a connection of the TCP proxy whatever its bytes do: silence, age, a drain.
use std::future::poll_fn;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lateen_snapshot::listener::TcpProxy;
use lateen_snapshot::log_filter::LogType;
use lateen_telemetry::envoy_names::tcp as names;
use tokio::time::Instant;

use super::tcp::{Session, TcpState};
use crate::io::Timer;
use crate::listener::Conn;
use crate::worker::Registration;

/// How long silence may last where the configuration sets no limit.
const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// What is due whatever the bytes do: the end of a silent, old or draining connection, and log lines on the way.
pub(super) struct Clock {
    timer: Timer,
    idle: Option<Duration>,
    idle_at: Option<Instant>,
    ends_at: Option<Instant>,
    log_at: Option<Instant>,
    /// Wakes the connection when its chain has had its time to leave.
    told: Option<Registration>,
}

/// What came due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    Idle,
    Old,
    /// Its chain has had its time to leave.
    Drained,
    Log,
}

impl Clock {
    pub(super) fn new(session: &Session<'_>) -> Self {
        let config = &session.state.config;
        let jitter = config.max_duration_jitter;
        let lasts = config.max_downstream_connection_duration.map(|limit| {
            let share = f64::from(jitter.numerator) / f64::from(jitter.denominator.max(1));
            let part = f64::from(session.worker.roll()) / f64::from(u32::MAX);
            limit.saturating_add(limit.mul_f64((share * part).clamp(0.0, 1.0)))
        });
        let idle = session.idle_timeout();
        Self {
            timer: Timer::default(),
            idle,
            // Till there is a host silence has a limit in any case.
            idle_at: Instant::now().checked_add(idle.unwrap_or(LONGEST_SILENCE)),
            ends_at: lasts.and_then(|limit| session.conn.start.checked_add(limit)),
            log_at: None,
            told: None,
        }
    }

    /// The connection is open on both sides.
    pub(super) fn begin(&mut self, config: &TcpProxy) {
        self.idle_at = None;
        self.touch();
        self.log_at = config.log_times.every.and_then(|every| Instant::now().checked_add(every));
    }

    /// Bytes moved.
    pub(super) fn touch(&mut self) {
        if let Some(idle) = self.idle {
            self.idle_at = Instant::now().checked_add(idle);
        }
    }

    /// Silence has a limit from here on, whatever the configuration says.
    pub(super) fn limit(&mut self) {
        if self.idle.is_none() {
            self.idle = Some(LONGEST_SILENCE);
            self.touch();
        }
    }

    /// Whether anything goes by what moves.
    pub(super) fn minds(&self) -> bool {
        self.idle.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>, conn: &Conn) -> Poll<Due> {
        let drain = &conn.chain.drain;
        self.told.get_or_insert_with(|| drain.register(cx));
        if drain.is_closed() {
            return Poll::Ready(Due::Drained);
        }
        self.timer.set([self.idle_at, self.ends_at, self.log_at].into_iter().flatten().min());
        self.timer.poll(cx).map(|()| {
            let now = Instant::now();
            let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
            match (due(self.ends_at), due(self.idle_at)) {
                (true, _) => Due::Old,
                (_, true) => Due::Idle,
                _ => Due::Log,
            }
        })
    }

    /// Ready when the connection is to end; writes the log lines that are due before.
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>, session: &Session<'_>) -> Poll<Due> {
        loop {
            let due = ready!(self.poll(cx, session.conn));
            if due != Due::Log {
                count(session.state, due);
                return Poll::Ready(due);
            }
            session.state.log(session.conn, &session.outcome, LogType::TcpPeriodic);
            self.log_at = session.state.config.log_times.every.and_then(|every| Instant::now().checked_add(every));
        }
    }

    /// Comes back when a connection is to end that is not open on both sides yet.
    pub(super) async fn over(&mut self, state: &TcpState, conn: &Conn) -> Due {
        let due = poll_fn(|cx| self.poll(cx, conn)).await;
        count(state, due);
        due
    }

    /// What is waited for before the connection is open on both sides.
    ///
    /// # Errors
    /// When the connection is to end first.
    pub(super) async fn wait<T>(&mut self, state: &TcpState, conn: &Conn, what: impl Future<Output = T>) -> Result<T, Due> {
        tokio::select! {
            biased;
            done = what => Ok(done),
            due = self.over(state, conn) => Err(due),
        }
    }
}

fn count(state: &TcpState, due: Due) {
    match due {
        Due::Idle => state.stats.inc(names::IDLE_TIMEOUT),
        Due::Old => state.stats.inc(names::MAX_DOWNSTREAM_CONNECTION_DURATION),
        Due::Drained | Due::Log => {}
    }
}
