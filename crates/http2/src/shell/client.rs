//! The client's shell: a driver to spawn, and a sender to clone.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};

use super::driver::{Pump, Turn};
use super::pulse::Pulse;
use super::session::{Session, Slot};
use super::stream::Stream;
use crate::connection::{Config, Connection, Refused};
use crate::event::RequestRef;
use crate::frame::Reason;

/// Starts a client connection on `io`: spawn the driver, send through the sender.
pub fn connect<Io: AsyncRead + AsyncWrite + Unpin>(io: Io, config: Config) -> (Sender, Driver<Io>) {
    let session = Session::new(Connection::client(config));
    (Sender(session.clone()), Driver(Pump::new(io, session, BytesMut::new())))
}

/// Moves the connection's bytes; ends when the connection does.
pub struct Driver<Io>(Pump<Io>);

impl<Io: AsyncRead + AsyncWrite + Unpin> Future for Driver<Io> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.0.turn(cx) {
            Turn::Waiting => Poll::Pending,
            Turn::Over => Poll::Ready(()),
        }
    }
}

/// Opens streams on a connection.
#[derive(Clone)]
pub struct Sender(Session);

impl<Io> Drop for Driver<Io> {
    /// Nobody would move the streams' bytes any more.
    fn drop(&mut self) {
        self.0.session.0.borrow_mut().close();
    }
}

impl Sender {
    /// Opens a stream with a request; `end` when no body follows.
    ///
    /// # Errors
    /// When the peer takes no more streams, now ([`Refused::Full`]) or ever.
    pub fn send(&self, head: RequestRef<'_>, end: bool) -> Result<Stream, Refused> {
        let mut inner = self.0.0.borrow_mut();
        if inner.closed {
            return Err(Refused::Closing);
        }
        let id = inner.connection.send_request(head, end)?;
        inner.slots.insert(id, Slot::default());
        inner.wake_driver();
        Ok(Stream::new(self.0.clone(), id, end))
    }

    /// Whether a stream could be opened now.
    ///
    /// # Errors
    /// As [`Self::send`].
    pub fn can_open(&self) -> Result<(), Refused> {
        let inner = self.0.0.borrow();
        if inner.closed { Err(Refused::Closing) } else { inner.connection.can_open() }
    }

    /// How many streams the peer takes at once.
    pub fn peer_limit(&self) -> u32 {
        self.0.0.borrow().connection.peer_limit()
    }

    /// Streams open now.
    pub fn open_streams(&self) -> usize {
        self.0.0.borrow().connection.open_streams()
    }

    /// Streams that want to send and may not, since too much of others waits to be written.
    pub fn waiting_for_room(&self) -> usize {
        self.0.0.borrow().stalled.len()
    }

    pub fn is_closed(&self) -> bool {
        self.0.0.borrow().closed
    }

    /// Ready when a stream could be opened, or never can be.
    pub fn poll_ready(&self, cx: &mut Context<'_>) -> Poll<Result<(), Refused>> {
        match self.can_open() {
            Err(Refused::Full) => {
                self.0.0.borrow_mut().wait(cx.waker());
                Poll::Pending
            }
            outcome => Poll::Ready(outcome),
        }
    }

    /// Whether the peer takes extended CONNECT, which only its SETTINGS tell (RFC 8441, section 3).
    pub fn poll_extended_connect(&self, cx: &mut Context<'_>) -> Poll<bool> {
        let mut inner = self.0.0.borrow_mut();
        if inner.closed {
            return Poll::Ready(false);
        }
        if inner.connection.is_ready() {
            return Poll::Ready(inner.connection.peer_takes_extended_connect());
        }
        inner.wait(cx.waker());
        Poll::Pending
    }

    /// Lets open streams finish and then closes the connection.
    pub fn close(&self) {
        let mut inner = self.0.0.borrow_mut();
        inner.connection.go_away(Reason::NO_ERROR);
        inner.wake_driver();
    }

    /// To tell whether the peer lives.
    pub fn pulse(&self) -> Pulse {
        Pulse(self.0.clone())
    }
}
