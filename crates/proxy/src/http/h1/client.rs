//! The upstream side of HTTP/1: one request at a time on a pooled connection.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::encode::{self, Framing};
use super::parse::{self, AnswerTo, HeadLimits, HeadScan};
use super::spelling;
use super::{Decoder, body::InvalidBody};
use crate::http::message::{Frame, Request, Response};
use crate::http::stream::StreamError;
use crate::io::Wire;

/// The client end of one HTTP/1 connection.
pub(crate) struct H1Client {
    pub(crate) wire: Wire,
    limits: HeadLimits,
    scan: HeadScan,
    decoder: Decoder,
    framing: Framing,
    keep_alive: bool,
    asked: AnswerTo,
    request_done: bool,
    /// Bytes of the current response have arrived.
    answered: bool,
    raw: bool,
    /// `wire.sent` when the current request began.
    sent_before: u64,
    close_write: bool,
}

impl H1Client {
    pub(crate) fn new(wire: Wire, limits: HeadLimits) -> Self {
        Self {
            wire,
            limits,
            scan: HeadScan::default(),
            decoder: Decoder::Done,
            framing: Framing::None,
            keep_alive: true,
            asked: AnswerTo::Other,
            request_done: true,
            answered: false,
            raw: false,
            sent_before: 0,
            close_write: false,
        }
    }

    /// Whether an idle connection is still good: no byte and no end has come unasked.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        self.wire.input.is_empty() && !self.wire.eof && self.wire.poll_fill(&mut cx).is_pending()
    }

    pub(crate) fn send_request(&mut self, request: &Request) {
        self.asked = match request.method {
            http::Method::HEAD => AnswerTo::Head,
            http::Method::CONNECT => AnswerTo::Connect,
            _ => AnswerTo::Other,
        };
        self.request_done = !request.has_body() && request.upgrade.is_none();
        self.answered = false;
        self.sent_before = self.wire.sent;
        let out = self.wire.head();
        let start = out.len();
        self.framing = encode::request(out, request);
        spelling::write(out, start, request.spelling.as_deref(), self.limits.names);
    }

    /// As after a request that was sent elsewhere.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn expect_response(&mut self, to_head: bool) {
        self.asked = if to_head { AnswerTo::Head } else { AnswerTo::Other };
    }

    /// Whether any byte of the current request left, as far as the kernel was asked.
    pub(crate) fn wrote_any(&self) -> bool {
        self.wire.sent > self.sent_before
    }

    pub(crate) fn answered(&self) -> bool {
        self.answered
    }

    /// The response's head; informational ones come first, each on its own.
    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, StreamError>> {
        loop {
            if !self.wire.input.is_empty() {
                self.answered = true;
                match parse::response(&mut self.wire.input, &mut self.scan, self.asked, self.limits) {
                    Ok(Some((response, framing))) => {
                        if response.status.is_informational() && response.upgrade.is_none() {
                            return Poll::Ready(Ok(response));
                        }
                        self.decoder = framing.decoder;
                        self.keep_alive = framing.keep_alive;
                        return Poll::Ready(Ok(response));
                    }
                    Ok(None) => {}
                    Err(_) => return Poll::Ready(Err(StreamError::Protocol)),
                }
            }
            match ready!(self.wire.poll_fill(cx)) {
                // Part of a head is no head.
                Ok(0) if !self.wire.input.is_empty() => return Poll::Ready(Err(StreamError::Protocol)),
                Ok(0) => return Poll::Ready(Err(StreamError::Closed)),
                Ok(_) => {}
                Err(e) => return Poll::Ready(Err(StreamError::from_io(&e))),
            }
        }
    }

    /// Bytes flow raw in both directions from here on.
    pub(crate) fn start_raw(&mut self) {
        self.raw = true;
        self.keep_alive = false;
        self.request_done = false;
        self.decoder = Decoder::UntilClose;
        self.framing = Framing::UntilClose;
    }

    /// The next piece of the response's body; `None` at its end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            match self.decoder.decode(&mut self.wire.input) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(InvalidBody) => return Poll::Ready(Some(Err(StreamError::Protocol))),
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if matches!(self.decoder, Decoder::UntilClose) => {
                    self.decoder = Decoder::Done;
                    return Poll::Ready(None);
                }
                // A tunnel has no framing that could break.
                Err(_) if self.raw => return Poll::Ready(Some(Err(StreamError::Closed))),
                // An end within the body breaks the framing, whatever the connection's reasons were.
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(StreamError::Protocol))),
                Ok(_) => {}
            }
        }
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        match self.framing {
            Framing::Chunked => {
                let (line, n) = encode::chunk_head(data.len());
                self.wire.push_slice(&line[..n]);
                self.wire.push(data);
                self.wire.push_slice(b"\r\n");
            }
            Framing::Length(_) | Framing::UntilClose => self.wire.push(data),
            // No head announced it: the peer would take it for the next request.
            Framing::None | Framing::LengthOnly(_) | Framing::ChunkedOnly => self.keep_alive = false,
        }
    }

    pub(crate) fn send_end(&mut self, trailers: Option<&HeaderMap>) {
        self.request_done = true;
        if self.framing == Framing::Chunked {
            self.wire.push(encode::trailers(trailers));
        }
        self.close_write = self.raw;
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.wire.poll_room(cx).map_err(|e| StreamError::from_io(&e))
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.wire.poll_flush_or_shut(cx, &mut self.close_write).map_err(|e| StreamError::from_io(&e))
    }

    /// Whether all of the request is on its way and all of the response was taken.
    pub(crate) fn is_done(&self) -> bool {
        self.request_done && self.decoder.is_done()
    }

    /// Whether the exchange is over and the connection may carry another.
    pub(crate) fn reusable(&mut self) -> bool {
        let reusable = self.keep_alive && self.is_done() && self.wire.unsent() == 0 && self.wire.input.is_empty() && !self.wire.eof;
        if reusable {
            self.wire.rest();
        }
        reusable
    }
}
