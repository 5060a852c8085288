//! The upstream side of a tunnel that ends here: a plain connection whose bytes are the tunnel's.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::StatusCode;

use super::message::{Frame, Length, Request, Response};
use super::stream::StreamError;
use crate::io::{Text, Wire};

/// A TCP connection that carries what comes behind a CONNECT, or in a POST.
pub(crate) struct TcpClient {
    wire: Wire,
    /// Protocols are switched, rather than a body sent.
    switches: bool,
    close_write: bool,
}

impl TcpClient {
    pub(crate) fn new(wire: Wire) -> Self {
        Self { wire, switches: false, close_write: false }
    }

    /// Nothing of the head goes on.
    pub(crate) fn send_request(&mut self, request: &Request) {
        self.switches = request.upgrade.is_some();
    }

    /// The connection is there, and that is the answer.
    pub(crate) fn poll_response(&mut self) -> Poll<Result<Response, StreamError>> {
        let upgrade = self.switches.then_some(Text::EMPTY);
        Poll::Ready(Ok(Response { length: Length::Unknown, upgrade, ..Response::new(StatusCode::OK) }))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            if !self.wire.input.is_empty() {
                return Poll::Ready(Some(Ok(Frame::Data(self.wire.input.split().freeze()))));
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) => return Poll::Ready(None),
                Ok(_) => {}
                Err(e) => return Poll::Ready(Some(Err(StreamError::from_io(&e)))),
            }
        }
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        if !data.is_empty() {
            self.wire.push(data);
        }
    }

    pub(crate) fn send_end(&mut self) {
        if self.wire.eof {
            // It was the first to end, and who ends last closes the connection.
            self.wire.ended(false);
        }
        self.close_write = true;
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.wire.poll_room(cx).map_err(|e| StreamError::from_io(&e))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.wire.poll_flush_or_shut(cx, &mut self.close_write).map_err(|e| StreamError::from_io(&e))
    }
}
