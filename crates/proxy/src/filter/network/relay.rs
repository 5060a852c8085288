//! An open connection of the TCP proxy: bytes both ways until they end, or time does.
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;

use super::clock::{Clock, Due};
use super::copy::{Direction, End};
use super::peer_exchange;
use super::tcp::Session;
use crate::io::{Io, linger};
use crate::upstream::Ending;

/// How long a caller may take to end after it was told that nobody listens any more.
pub(super) const LINGER: Duration = Duration::from_secs(1);

/// Whether a connection whose caller was just sent something is to end for a drain (Envoy `check_drain_close`).
pub(super) fn drains(session: &Session<'_>) -> bool {
    session.state.config.closes_when_draining && session.conn.ends(session.worker)
}

/// Whether the host ended the connection, or broke it. Of two that end their directions the last closes it.
fn ended_by_host(of_caller: Option<End>, of_host: Option<End>, host_first: bool) -> bool {
    match (of_caller, of_host) {
        (Some(End::Sink), _) | (_, Some(End::Source)) => true,
        (Some(End::Whole), Some(End::Whole)) => !host_first,
        _ => false,
    }
}

/// How a connection ended.
enum Ended {
    Whole,
    /// The host took nothing more, after it had said all.
    Cut,
    Gone,
    Over(Due),
}

/// Moves bytes between two connections; `first` was read from the caller before.
///
/// # Errors
/// When the connection's time was over.
pub(super) async fn run(
    session: &mut Session<'_>,
    down: &mut Io,
    up: &mut Io,
    first: BytesMut,
    clock: &mut Clock,
    ending: &Ending,
) -> Result<(), Due> {
    let (mut request, mut response) = (Direction::after(first), Direction::after(BytesMut::new()));
    if session.passed.peer_exchange && peer_exchange::is_agreed(down) {
        request.strip();
    }
    if peer_exchange::is_agreed(up) {
        response.strip();
    }
    clock.begin(&session.state.config);
    let (mut leaving, mut host_over) = (false, false);
    let ended = poll_fn(|cx| {
        let before = (request.moved, response.moved);
        let ends = (request.poll(cx, down, up), response.poll(cx, up, down));
        session.outcome.received = request.moved;
        session.outcome.sent = response.moved;
        session.count();
        let host_first = std::mem::replace(&mut host_over, ends.1.is_some());
        ending.by_peer(ended_by_host(ends.0, ends.1, host_first));
        match ends {
            (None, None) => {}
            (Some(End::Sink), Some(End::Whole)) => return Poll::Ready(Ended::Cut),
            (Some(_), Some(_)) => return Poll::Ready(Ended::Whole),
            // Who is gone wants nothing more.
            (Some(End::Source), None) | (None, Some(End::Source)) => return Poll::Ready(Ended::Gone),
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
            return Poll::Ready(Ended::Gone);
        }
        clock.poll_end(cx, session).map(Ended::Over)
    })
    .await;
    match ended {
        Ended::Whole | Ended::Gone => Ok(()),
        Ended::Cut => {
            Box::pin(linger(down, LINGER)).await;
            Ok(())
        }
        Ended::Over(due) => Err(due),
    }
}
