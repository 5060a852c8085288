//! The server's shell: poll it for requests; polling it also moves the connection's bytes.
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::driver::{Pump, Turn};
use super::pulse::Pulse;
use super::session::Session;
use super::stream::Stream;
use crate::connection::{Config, Connection};
use crate::event::RequestHead;
use crate::frame::Reason;

/// A server connection on a byte stream.
pub struct Server<Io>(Pump<Io>);

/// A stream that a client opened.
pub struct Accepted {
    /// `None` when its headers were over the limit: answer 431.
    pub head: Option<Box<RequestHead>>,
    /// No body follows.
    pub end: bool,
    pub stream: Stream,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Server<Io> {
    /// `ahead` holds bytes that were read from `io` before, such as the preface.
    pub fn new(io: Io, config: Config, ahead: BytesMut) -> Self {
        Self(Pump::new(io, Session::new(Connection::server(config)), ahead))
    }

    /// The byte stream: its own end, once the connection is over, is for who holds it.
    pub fn io(&mut self) -> &mut Io {
        &mut self.0.io
    }

    /// Lets streams that are open yet know that the connection is over.
    pub fn close(&self) {
        self.0.session.0.borrow_mut().close();
    }

    /// See [`Connection::set_moment`].
    pub fn set_moment(&self, millis: u32) {
        self.0.session.0.borrow_mut().connection.set_moment(millis);
    }

    /// The next request; `None` when the connection is over. Also reads, and writes what handles sent.
    pub fn poll_accept(&mut self, cx: &mut Context<'_>) -> Poll<Option<Accepted>> {
        if let Some(accepted) = self.take() {
            return Poll::Ready(Some(accepted));
        }
        let turn = self.0.turn(cx);
        match (self.take(), turn) {
            (Some(accepted), _) => Poll::Ready(Some(accepted)),
            (None, Turn::Over) => Poll::Ready(None),
            (None, Turn::Waiting) => Poll::Pending,
        }
    }

    /// The task that polls this is about to poll streams: what they say wakes nobody, because [`Self::poll_written`] follows.
    pub fn expect_output(&self) {
        self.0.session.0.borrow_mut().driver_woken = true;
    }

    /// Writes what streams said; ready when the connection is over.
    pub fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.conclude(cx) {
            Turn::Waiting => Poll::Pending,
            Turn::Over => Poll::Ready(()),
        }
    }

    /// Tells the peer to open no more streams; open ones finish, then [`Self::poll_accept`] ends.
    pub fn go_away(&self, reason: Reason) {
        let mut inner = self.0.session.0.borrow_mut();
        inner.connection.go_away(reason);
        inner.wake_driver();
    }

    /// The first half of a graceful shutdown: see [`Connection::announce_shutdown`].
    pub fn announce_shutdown(&self) {
        let mut inner = self.0.session.0.borrow_mut();
        inner.connection.announce_shutdown();
        inner.wake_driver();
    }

    pub fn open_streams(&self) -> usize {
        self.0.session.0.borrow().connection.open_streams()
    }

    /// To tell whether the peer lives.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.0.session.clone())
    }

    /// Whether the client's preface and SETTINGS have come.
    pub fn is_ready(&self) -> bool {
        self.0.session.0.borrow().connection.is_ready()
    }

    /// Whether the client broke the protocol. What is left to write is the reason; a client that floods does not
    /// read it, so whoever polls must not wait for long.
    pub fn is_broken(&self) -> bool {
        self.0.session.0.borrow().connection.is_broken()
    }

    fn take(&mut self) -> Option<Accepted> {
        let (id, head, end) = self.0.session.0.borrow_mut().incoming.pop_front()?;
        Some(Accepted { head, end, stream: Stream::new(self.0.session.clone(), id, false) })
    }
}

impl<Io> Drop for Server<Io> {
    fn drop(&mut self) {
        self.0.session.0.borrow_mut().close();
    }
}
