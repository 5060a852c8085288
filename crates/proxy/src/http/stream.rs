//! One exchange seen from each end, whatever the HTTP version: the boundary behind which codecs live.
//!
//! Everything is polled, so that one task can move both directions of an exchange without locks, channels
//! or further tasks.
use std::io;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::h1::{H1Client, H1Server};
use super::h2::{H2Client, H2ServerStream};
use super::message::{Frame, Request, Response};
use super::tcp::TcpClient;

/// How a peer ended an exchange before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StreamError {
    /// The connection ended.
    Closed,
    /// The stream was reset.
    Reset,
    /// The stream was refused before anything was done with it: always safe to repeat.
    Refused,
    /// The peer broke the protocol.
    Protocol,
}

impl StreamError {
    pub(crate) fn from_io(_: &io::Error) -> Self {
        Self::Closed
    }
}

/// The caller's end.
pub(crate) enum Downstream {
    H1(Box<H1Server>),
    H2(H2ServerStream),
}

macro_rules! both {
    ($self:ident, $end:ident => $call:expr) => {
        match $self {
            Self::H1($end) => $call,
            Self::H2($end) => $call,
        }
    };
}

impl Downstream {
    /// The next piece of the request's body; `None` at its end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        both!(self, end => end.poll_frame(cx))
    }

    /// Ready when the caller went away or reset the stream.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        both!(self, end => end.poll_gone(cx))
    }

    pub(crate) fn request_done(&self) -> bool {
        both!(self, end => end.request_done())
    }

    /// Whether the caller gave up the exchange alone, and not its connection.
    pub(crate) fn was_reset(&self) -> bool {
        matches!(self, Self::H2(h2) if h2.was_reset())
    }

    pub(crate) fn send_informational(&mut self, status: StatusCode, headers: &HeaderMap) {
        both!(self, end => end.send_informational(status, headers));
    }

    /// Queues the response's head; `end` says that nothing follows.
    pub(crate) fn send_head(&mut self, response: &mut Response, end: bool) {
        match self {
            Self::H1(h1) => h1.send_head(response, end),
            Self::H2(h2) => h2.send_head(response, end),
        }
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        both!(self, end => end.send_data(data));
    }

    pub(crate) fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        match self {
            Self::H1(h1) => h1.send_end(trailers.as_deref()),
            Self::H2(h2) => h2.send_end(trailers),
        }
    }

    /// Ready when more may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        both!(self, end => end.poll_room(cx))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        both!(self, end => end.poll_flush(cx))
    }

    /// Ends the exchange so that the caller notices: closes the connection, or resets the stream.
    pub(crate) fn abort(&mut self) {
        match self {
            Self::H1(h1) => {
                h1.close_after();
            }
            Self::H2(h2) => h2.reset(lateen_http2::Reason::INTERNAL_ERROR),
        }
    }

    /// Ends a tunnel whose other end broke (RFC 9113 8.5).
    pub(crate) fn abort_tunnel(&mut self) {
        if let Self::H2(h2) = self {
            h2.reset(lateen_http2::Reason::CONNECT_ERROR);
        }
        self.close_after();
    }

    /// The connection ends after the response, where it serves one at a time; true when it was to stay until now.
    pub(crate) fn close_after(&mut self) -> bool {
        match self {
            Self::H1(h1) => h1.close_after(),
            Self::H2(_) => false,
        }
    }
}

/// The upstream's end.
pub(crate) enum Upstream {
    H1(Box<H1Client>),
    H2(H2Client),
    /// A tunnel ends here.
    Tcp(Box<TcpClient>),
}

macro_rules! each {
    ($self:ident, $end:ident => $call:expr) => {
        match $self {
            Self::H1($end) => $call,
            Self::H2($end) => $call,
            Self::Tcp($end) => $call,
        }
    };
}

impl Upstream {
    /// Queues the request's head.
    pub(crate) fn send_request(&mut self, request: &Request) -> Result<(), StreamError> {
        match self {
            Self::H1(h1) => {
                h1.send_request(request);
                Ok(())
            }
            Self::H2(h2) => h2.send_request(request),
            Self::Tcp(tcp) => {
                tcp.send_request(request);
                Ok(())
            }
        }
    }

    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, StreamError>> {
        match self {
            Self::H1(h1) => h1.poll_response(cx),
            Self::H2(h2) => h2.poll_response(cx),
            Self::Tcp(tcp) => tcp.poll_response(),
        }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        each!(self, end => end.poll_frame(cx))
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        each!(self, end => end.send_data(data));
    }

    pub(crate) fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        match self {
            Self::H1(h1) => h1.send_end(trailers.as_deref()),
            Self::H2(h2) => h2.send_end(trailers),
            Self::Tcp(tcp) => tcp.send_end(),
        }
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        each!(self, end => end.poll_room(cx))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        each!(self, end => end.poll_flush(cx))
    }

    /// Bytes flow as they are in both directions from here on.
    pub(crate) fn start_raw(&mut self) {
        if let Self::H1(h1) = self {
            h1.start_raw();
        }
    }

    /// Whether nothing of the request has left this process: repeating it is safe whatever it is.
    pub(crate) fn untouched(&self) -> bool {
        match self {
            Self::H1(h1) => !h1.wrote_any(),
            Self::H2(_) | Self::Tcp(_) => false,
        }
    }

    pub(crate) fn answered(&self) -> bool {
        match self {
            Self::H1(h1) => h1.answered(),
            Self::H2(_) | Self::Tcp(_) => false,
        }
    }
}
