//! The caller's side of HTTP/1: requests in, responses out, one after the other on a connection.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::{HeaderMap, StatusCode};

use super::encode::{self, Framing};
use super::parse::{self, HeadLimits, HeadScan, InvalidHead};
use super::spelling;
use super::{Decoder, body::InvalidBody};
use crate::http::message::{Frame, Length, Request, Response, Version};
use crate::http::stream::StreamError;
use crate::io::Wire;

/// The server end of one HTTP/1 connection.
pub(crate) struct H1Server {
    pub(crate) wire: Wire,
    limits: HeadLimits,
    https: bool,
    scan: HeadScan,
    decoder: Decoder,
    framing: Framing,
    /// Whether the connection may serve another request, as far as is known.
    keep_alive: bool,
    version: Version,
    is_head: bool,
    owes_continue: bool,
    /// Raw bytes flow since a switch of protocols.
    raw: bool,
    head_sent: bool,
    write_closed: bool,
}

/// Why no request came.
#[derive(Debug)]
pub(crate) enum NoRequest {
    /// Closed between requests.
    Closed,
    Io,
    Invalid(InvalidHead),
}

impl H1Server {
    pub(crate) fn new(wire: Wire, limits: HeadLimits, https: bool) -> Self {
        Self {
            wire,
            limits,
            https,
            scan: HeadScan::default(),
            decoder: Decoder::Done,
            framing: Framing::None,
            keep_alive: true,
            version: Version::Http11,
            is_head: false,
            owes_continue: false,
            raw: false,
            head_sent: false,
            write_closed: false,
        }
    }

    /// Whether part of a request's head has arrived.
    pub(crate) fn in_head(&self) -> bool {
        !self.wire.input.is_empty()
    }

    pub(crate) fn poll_request(&mut self, cx: &mut Context<'_>) -> Poll<Result<Request, NoRequest>> {
        loop {
            if !self.wire.input.is_empty() {
                match parse::request(&mut self.wire.input, &mut self.scan, self.limits, self.https) {
                    Ok(Some((request, framing))) => {
                        self.decoder = framing.decoder;
                        self.keep_alive = framing.keep_alive;
                        self.version = request.version;
                        self.is_head = request.method == http::Method::HEAD;
                        self.owes_continue = request.expects_continue && !self.decoder.is_done();
                        self.head_sent = false;
                        self.framing = Framing::None;
                        return Poll::Ready(Ok(request));
                    }
                    Ok(None) => {}
                    Err(e) => return Poll::Ready(Err(NoRequest::Invalid(e))),
                }
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if self.wire.input.is_empty() => return Poll::Ready(Err(NoRequest::Closed)),
                Ok(0) => return Poll::Ready(Err(self.judge_rest())),
                Err(_) => return Poll::Ready(Err(NoRequest::Io)),
                Ok(_) => {}
            }
        }
    }

    /// What ended before its head did. Nonsense is nonsense however it was cut, though the parser was not asked about each piece.
    fn judge_rest(&mut self) -> NoRequest {
        self.scan.reset();
        let read = parse::request(&mut self.wire.input, &mut self.scan, self.limits, self.https);
        read.err().map_or(NoRequest::Io, NoRequest::Invalid)
    }

    /// The next piece of the request's body; `None` at its end.
    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        loop {
            match self.decoder.decode(&mut self.wire.input) {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) if self.decoder.is_done() => return Poll::Ready(None),
                Ok(None) => {}
                Err(InvalidBody) => {
                    self.keep_alive = false;
                    return Poll::Ready(Some(Err(StreamError::Protocol)));
                }
            }
            if self.owes_continue && !self.head_sent {
                self.owes_continue = false;
                self.wire.push_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                if let Poll::Ready(Err(_)) = self.wire.poll_flush(cx) {
                    return Poll::Ready(Some(Err(StreamError::Closed)));
                }
            }
            match ready!(self.wire.poll_fill(cx)) {
                Ok(0) if matches!(self.decoder, Decoder::UntilClose) => {
                    self.decoder = Decoder::Done;
                    return Poll::Ready(None);
                }
                Ok(0) | Err(_) => return Poll::Ready(Some(Err(StreamError::Closed))),
                Ok(_) => {}
            }
        }
    }

    pub(crate) fn request_done(&self) -> bool {
        self.decoder.is_done()
    }

    /// Ready when the caller has gone away.
    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.wire.poll_closed(cx)
    }

    pub(crate) fn send_informational(&mut self, status: StatusCode, headers: &HeaderMap) {
        if self.version == Version::Http11 && !self.head_sent {
            encode::response(self.wire.head(), status, headers, Framing::None, false, b"");
        }
    }

    /// Queues the head. `end` says that no body follows.
    pub(crate) fn send_head(&mut self, response: &Response, end: bool) {
        self.head_sent = true;
        let status = response.status;
        if let Some(protocol) = &response.upgrade {
            self.start_raw();
            let connection: &[u8] = if status == StatusCode::SWITCHING_PROTOCOLS { b"upgrade" } else { b"" };
            let mut headers = response.headers.clone();
            if status == StatusCode::SWITCHING_PROTOCOLS
                && let Ok(value) = http::HeaderValue::from_str(protocol)
            {
                headers.insert(http::header::UPGRADE, value);
            }
            let start = self.wire.head().len();
            encode::response(self.wire.head(), status, &headers, Framing::None, false, connection);
            self.spell(start, response);
            return;
        }
        let http10 = self.version == Version::Http10;
        self.framing = if status == StatusCode::NO_CONTENT || status.is_informational() {
            Framing::None
        } else if self.is_head || status == StatusCode::NOT_MODIFIED {
            match response.length {
                Length::Known(n) => Framing::LengthOnly(n),
                _ if self.is_head && status != StatusCode::NOT_MODIFIED && !http10 => Framing::ChunkedOnly,
                _ => Framing::None,
            }
        } else {
            match response.length {
                Length::Known(n) => Framing::Length(n),
                Length::None | Length::Empty => Framing::Length(0),
                Length::Unknown if end => Framing::Length(0),
                Length::Unknown if http10 => Framing::UntilClose,
                Length::Unknown => Framing::Chunked,
            }
        };
        if self.framing == Framing::UntilClose {
            self.keep_alive = false;
        }
        let connection: &[u8] = match (self.keep_alive, http10) {
            (false, _) => b"close",
            (true, true) => b"keep-alive",
            (true, false) => b"",
        };
        let start = self.wire.head().len();
        encode::response(self.wire.head(), status, &response.headers, self.framing, http10, connection);
        self.spell(start, response);
    }

    /// Writes the names of the head that begins at `start` as they are wanted.
    fn spell(&mut self, start: usize, response: &Response) {
        spelling::write(self.wire.head(), start, response.spelling.as_deref(), self.limits.names);
    }

    fn start_raw(&mut self) {
        self.raw = true;
        self.keep_alive = false;
        self.decoder = Decoder::UntilClose;
        self.framing = Framing::UntilClose;
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        match &mut self.framing {
            Framing::Chunked => {
                let (line, n) = encode::chunk_head(data.len());
                self.wire.push_slice(&line[..n]);
                self.wire.push(data);
                self.wire.push_slice(b"\r\n");
            }
            Framing::Length(left) => {
                let n = (data.len() as u64).min(*left);
                *left -= n;
                self.wire.push(data.slice(..n as usize));
            }
            Framing::UntilClose => self.wire.push(data),
            Framing::None | Framing::LengthOnly(_) | Framing::ChunkedOnly => {}
        }
    }

    /// Ends the body; trailers go out where chunks allow them.
    pub(crate) fn send_end(&mut self, trailers: Option<&HeaderMap>) {
        match self.framing {
            Framing::Chunked => self.wire.push(encode::trailers(trailers)),
            // The announced length was not reached: only closing tells the caller.
            Framing::Length(left) if left > 0 => self.keep_alive = false,
            Framing::UntilClose => self.write_closed = true,
            _ => {}
        }
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.wire.poll_room(cx).map_err(|_| StreamError::Closed)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        if ready!(self.wire.poll_flush(cx)).is_err() {
            return Poll::Ready(Err(StreamError::Closed));
        }
        if self.write_closed && self.raw {
            let _ = ready!(self.wire.poll_shutdown(cx));
            self.write_closed = false;
        }
        Poll::Ready(Ok(()))
    }

    /// No further request on this connection: `connection: close` if the head is not out yet. True when one could
    /// have followed until now.
    pub(crate) fn close_after(&mut self) -> bool {
        std::mem::take(&mut self.keep_alive)
    }

    /// After a response: whether another request may follow. What is left of the request's body is thrown
    /// away if it has arrived already; otherwise the connection ends, lest it be taken for a request.
    pub(crate) fn next(&mut self) -> bool {
        while !self.decoder.is_done() {
            match self.decoder.decode(&mut self.wire.input) {
                Ok(Some(_)) => {}
                _ => return false,
            }
        }
        self.wire.rest();
        self.keep_alive && !self.wire.eof
    }
}
