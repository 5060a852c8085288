//! The upstream side of an HTTP/2 stream.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header;
use http::{HeaderMap, Method};
use lateen_http2::RequestRef;
use lateen_http2::shell::{Sender, Stream};

use crate::http::message::{Frame, Length, Request, Response};
use crate::http::stream::StreamError;
use crate::io::Text;

/// The client end of one HTTP/2 stream. Dropped midway it resets the stream, so that the exchange
/// does not go on at the peer.
pub(crate) struct H2Client {
    sender: Sender,
    stream: Option<Stream>,
    connect: bool,
}

impl H2Client {
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, stream: None, connect: false }
    }

    /// Opens the stream. Fails only before anything has left this process, so the request may be repeated.
    pub(crate) fn send_request(&mut self, request: &Request) -> Result<(), StreamError> {
        self.connect = request.upgrade.is_some();
        let protocol = request.upgrade.as_ref().map(Text::as_str).filter(|p| *p != "connect");
        let mut digits = DecimalLength::default();
        let mut more = [("", &b""[..]); 2];
        let mut filled = 0;
        if let Length::Known(n) = request.length {
            more[filled] = ("content-length", digits.write(n));
            filled += 1;
        }
        if request.accepts_trailers {
            more[filled] = ("te", b"trailers");
            filled += 1;
        }
        let head = RequestRef {
            method: if self.connect { &Method::CONNECT } else { &request.method },
            scheme: request.scheme.as_bytes(),
            authority: request.authority.as_bytes(),
            path: request.path.as_bytes(),
            protocol: protocol.map(str::as_bytes),
            headers: &request.headers,
            more: &more[..filled],
        };
        let end = !request.has_body() && !self.connect;
        self.stream = Some(self.sender.send(head, end).map_err(|_| StreamError::Refused)?);
        Ok(())
    }

    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, StreamError>> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        let head = ready!(stream.poll_response(cx))?;
        let mut headers = head.headers;
        let length = match headers.remove(header::CONTENT_LENGTH).map(|v| v.to_str().ok().and_then(|v| v.parse().ok())) {
            Some(Some(n)) => Length::Known(n),
            Some(None) => return Poll::Ready(Err(StreamError::Protocol)),
            None if head.end => Length::None,
            None => Length::Unknown,
        };
        let upgrade = (self.connect && head.status.is_success()).then(|| Text::fixed("websocket"));
        Poll::Ready(Ok(Response { status: head.status, headers, length, upgrade }))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let Some(stream) = &mut self.stream else { return Poll::Ready(None) };
        stream.poll_piece(cx).map(|piece| piece.map(super::frame))
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        if let Some(stream) = &mut self.stream {
            stream.send_data(data);
        }
    }

    pub(crate) fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        if let Some(stream) = &mut self.stream {
            stream.send_end(trailers.map(|t| *t));
        }
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.stream {
            Some(stream) => stream.poll_room(cx).map_err(StreamError::from),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_room(cx)
    }

    pub(crate) fn start_raw(&mut self) {}
}

/// Room for the digits of a length, without an allocation.
#[derive(Default)]
struct DecimalLength([u8; 20]);

impl DecimalLength {
    fn write(&mut self, mut n: u64) -> &[u8] {
        let mut at = self.0.len();
        loop {
            at -= 1;
            self.0[at] = b'0' + (n % 10) as u8;
            n /= 10;
            if n == 0 {
                return &self.0[at..];
            }
        }
    }
}
