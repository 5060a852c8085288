//! The handle on one stream, either side.
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::session::{Body, Failure, SEND_HIGH, Session};
use crate::StreamId;
use crate::frame::Reason;

/// A response's head.
#[derive(Debug)]
pub struct ResponseHead {
    pub status: StatusCode,
    /// `content-length`, which is not among the headers.
    pub length: Option<u64>,
    pub headers: HeaderMap,
    /// Nothing follows.
    pub end: bool,
    /// Decoded size: names, values and 32 for each field.
    pub size: usize,
}

/// A piece of a body.
#[derive(Debug)]
pub enum Piece {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
}

/// One stream of a connection. Dropping it before both sides are done resets the stream.
pub struct Stream {
    session: Session,
    id: StreamId,
    /// Data that the windows did not let through yet.
    waiting: Bytes,
    /// The end that follows `waiting`: with trailers or without.
    end: Option<Option<Box<HeaderMap>>>,
    sent_all: bool,
}

impl Stream {
    pub(super) fn new(session: Session, id: StreamId, sent_all: bool) -> Self {
        Self { session, id, waiting: Bytes::new(), end: None, sent_all }
    }

    /// The final response's head (client).
    ///
    /// # Errors
    /// When the stream ends before one came.
    pub fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<ResponseHead, Failure>> {
        let mut inner = self.session.0.borrow_mut();
        let Some(slot) = inner.slots.get_mut(&self.id) else { return Poll::Ready(Err(Failure::Closed)) };
        if let Some(response) = slot.response.take() {
            return Poll::Ready(Ok(response));
        }
        if let Some(failure) = slot.failure {
            return Poll::Ready(Err(failure));
        }
        slot.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// The next 1xx response, if one came (client).
    pub fn take_informational(&mut self) -> Option<ResponseHead> {
        self.session.0.borrow_mut().slots.get_mut(&self.id)?.informational.pop_front()
    }

    /// The next piece of the peer's body; `None` at its end. Taking data opens the window again.
    pub fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Piece, Failure>>> {
        let inner = &mut *self.session.0.borrow_mut();
        let Some(slot) = inner.slots.get_mut(&self.id) else { return Poll::Ready(None) };
        if let Some(piece) = slot.body.pop() {
            if let Piece::Data(data) = &piece {
                let before = inner.connection.output().len();
                inner.connection.release(self.id, data.len());
                if inner.connection.output().len() != before {
                    inner.wake_driver();
                }
            }
            return Poll::Ready(Some(Ok(piece)));
        }
        if slot.ended {
            return Poll::Ready(None);
        }
        if let Some(failure) = slot.failure {
            return Poll::Ready(Some(Err(failure)));
        }
        slot.read_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Whether all of the peer's body has been taken, or there is none.
    pub fn received_all(&self) -> bool {
        self.session.0.borrow().slots.get(&self.id).is_none_or(|s| s.ended && s.body.is_empty())
    }

    /// Whether our side of the stream is closed.
    pub fn sent_all(&self) -> bool {
        self.sent_all
    }

    /// Ready when the peer reset the stream or the connection ended.
    pub fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<Failure> {
        let mut inner = self.session.0.borrow_mut();
        let Some(slot) = inner.slots.get_mut(&self.id) else { return Poll::Ready(Failure::Closed) };
        if let Some(failure) = slot.failure {
            return Poll::Ready(failure);
        }
        if slot.gone_waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            slot.gone_waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// Whether the peer reset the stream.
    pub fn was_reset(&self) -> bool {
        let inner = self.session.0.borrow();
        inner.slots.get(&self.id).is_some_and(|s| matches!(s.failure, Some(Failure::Reset(_) | Failure::Refused)))
    }

    /// Sends a response's head (server), informational ones included; `end` when nothing follows.
    pub fn send_response(&mut self, status: StatusCode, headers: &HeaderMap, end: bool) {
        let mut inner = self.session.0.borrow_mut();
        inner.connection.send_response(self.id, status, headers, end);
        self.sent_all |= end;
        inner.wake_driver();
    }

    /// Sends data, or keeps what does not fit the windows until [`Self::poll_room`] has sent it.
    /// Wait for room before sending more: nothing bounds what is queued otherwise.
    pub fn send_data(&mut self, data: Bytes) {
        if self.sent_all || data.is_empty() {
            return;
        }
        if self.waiting.is_empty() {
            self.waiting = data;
        } else {
            let mut joined = Vec::with_capacity(self.waiting.len() + data.len());
            joined.extend_from_slice(&self.waiting);
            joined.extend_from_slice(&data);
            self.waiting = joined.into();
        }
        self.send_what_fits();
    }

    /// Closes our side, with trailers or without, once all data are sent.
    pub fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        if !self.sent_all && self.end.is_none() {
            self.end = Some(trailers);
            self.send_what_fits();
        }
    }

    /// Ready when nothing waits and more may be sent.
    ///
    /// # Errors
    /// When the stream is gone.
    pub fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        self.send_what_fits();
        let mut inner = self.session.0.borrow_mut();
        let stuffed = inner.connection.output().len() >= SEND_HIGH;
        let closed = inner.closed;
        let Some(slot) = inner.slots.get_mut(&self.id) else { return Poll::Ready(Err(Failure::Closed)) };
        if let Some(failure) = slot.failure.filter(|_| !self.sent_all || closed) {
            return Poll::Ready(Err(failure));
        }
        if self.waiting.is_empty() && !stuffed {
            return Poll::Ready(Ok(()));
        }
        slot.write_waker = Some(cx.waker().clone());
        if stuffed && !std::mem::replace(&mut slot.stalled, true) {
            inner.stalled.push(self.id);
        }
        Poll::Pending
    }

    /// Ends the stream at once, in both directions.
    pub fn reset(&mut self, reason: Reason) {
        let mut inner = self.session.0.borrow_mut();
        inner.connection.reset(self.id, reason);
        inner.connection.discard(self.id);
        self.sent_all = true;
        if let Some(slot) = inner.slots.get_mut(&self.id) {
            slot.ended = true;
            slot.body = Body::default();
        }
        inner.wake_driver();
    }

    fn send_what_fits(&mut self) {
        if self.sent_all || (self.waiting.is_empty() && self.end.is_none()) {
            return;
        }
        let mut inner = self.session.0.borrow_mut();
        let last = matches!(self.end, Some(None));
        if !inner.connection.send_data(self.id, &mut self.waiting, last) {
            inner.wake_driver();
            return;
        }
        if let Some(trailers) = self.end.take() {
            if let Some(trailers) = trailers {
                inner.connection.send_trailers(self.id, &trailers);
            }
            self.sent_all = true;
        }
        inner.wake_driver();
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut inner = self.session.0.borrow_mut();
        let slot = inner.slots.remove(&self.id);
        let unfinished = !self.sent_all || slot.is_some_and(|s| !s.ended && s.failure.is_none());
        if unfinished {
            // A server that has answered in full only wants the rest of the request to stop.
            let reason = if self.sent_all && inner.connection.role == crate::Role::Server { Reason::NO_ERROR } else { Reason::CANCEL };
            inner.connection.reset(self.id, reason);
        }
        let said = inner.connection.output().len();
        inner.connection.discard(self.id);
        if unfinished || inner.connection.output().len() != said || inner.connection.is_finished() {
            inner.wake_driver();
        }
        inner.wake_waiting();
    }
}
