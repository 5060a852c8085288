//! An open connection of the TCP proxy: bytes both ways until they end, or time does.
use std::future::poll_fn;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use lateen_telemetry::envoy_names::tcp as names;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::copy::{Direction, End};
use super::peer_exchange;
use super::tcp::Session;
use crate::io::{Io, Timer};
use crate::worker::Registration;

/// How long silence may last where the configuration sets no limit.
pub(super) const LONGEST_SILENCE: Duration = Duration::from_secs(3600);

/// How long a caller may take to end after it was told that nobody listens any more.
const LINGER: Duration = Duration::from_secs(1);

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
        let now = Instant::now();
        let mut clock = Self {
            timer: Timer::default(),
            idle: session.idle_timeout(),
            idle_at: None,
            ends_at: lasts.and_then(|limit| session.conn.start.checked_add(limit)),
            log_at: config.log_times.every.and_then(|every| now.checked_add(every)),
            told: None,
        };
        clock.touch();
        clock
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

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Due> {
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
    pub(super) fn poll_end(&mut self, cx: &mut Context<'_>, session: &Session<'_>) -> Poll<()> {
        let drain = &session.conn.chain.drain;
        self.told.get_or_insert_with(|| drain.register(cx));
        if drain.is_closed() {
            return Poll::Ready(());
        }
        loop {
            let due = std::task::ready!(self.poll(cx));
            let stats = &session.state.stats;
            match due {
                Due::Idle => stats.inc(names::IDLE_TIMEOUT),
                Due::Old => stats.inc(names::MAX_DOWNSTREAM_CONNECTION_DURATION),
                Due::Log => {
                    session.state.log(session.conn, &session.outcome);
                    self.log_at = session.state.config.log_times.every.and_then(|every| Instant::now().checked_add(every));
                    continue;
                }
            }
            return Poll::Ready(());
        }
    }
}

/// Whether a connection whose caller was just sent something is to end for a drain (Envoy `check_drain_close`).
pub(super) fn drains(session: &Session<'_>) -> bool {
    session.state.config.closes_when_draining && session.conn.ends(session.worker)
}

/// Moves bytes between two connections; `first` was read from the caller before.
pub(super) async fn run(session: &mut Session<'_>, down: &mut Io, up: &mut Io, first: BytesMut) {
    let (mut request, mut response) = (Direction::after(first), Direction::after(BytesMut::new()));
    let exchanges = |io: &Io| io.tls().and_then(|tls| tls.alpn_protocol()) == Some(peer_exchange::ALPN);
    if session.passed.peer_exchange && exchanges(down) {
        request.strip();
    }
    if exchanges(up) {
        response.strip();
    }
    let mut clock = Clock::new(session);
    let mut leaving = false;
    let cut = poll_fn(|cx| {
        let before = (request.moved, response.moved);
        let ends = (request.poll(cx, down, up), response.poll(cx, up, down));
        session.outcome.received = request.moved;
        session.outcome.sent = response.moved;
        match ends {
            (None, None) => {}
            (Some(request), Some(response)) => return Poll::Ready(request == End::Sink && response == End::Whole),
            // Who is gone wants nothing more.
            (Some(End::Source), None) | (None, Some(End::Source)) => return Poll::Ready(false),
            // What has arrived before is still delivered the other way.
            (Some(End::Sink), None) | (None, Some(End::Sink)) => clock.limit(),
            (Some(End::Whole), None) | (None, Some(End::Whole)) => {}
        }
        if (request.moved, response.moved) != before {
            if clock.minds() {
                clock.touch();
            }
            // Not between a question and its answer.
            leaving = leaving || (response.moved != before.1 && drains(session));
        }
        let failed = session.watched.as_ref().is_some_and(|watched| watched.poll_failed(cx).is_ready());
        if failed || (leaving && response.is_empty()) {
            return Poll::Ready(false);
        }
        clock.poll_end(cx, session).map(|()| false)
    })
    .await;
    if cut {
        Box::pin(linger(down)).await;
    }
}

/// Takes for a moment what a caller still sends that has been told the end: it would otherwise turn the close into a reset, which may
/// overtake what it was sent.
pub(super) async fn linger(down: &mut Io) {
    let mut rest = lateen_core::recycle::buffers::take();
    let until_the_end = async {
        loop {
            rest.clear();
            if !matches!(down.read_buf(&mut rest).await, Ok(1..)) {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(LINGER, until_the_end).await;
}
