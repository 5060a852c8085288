//! The upstream side of an HTTP/2 stream.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header;
use http::{HeaderMap, Method, StatusCode};
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
    tunnel: Option<Box<Tunnel>>,
}

/// What a 200 makes of the stream.
enum Tunnel {
    Connect,
    /// The protocol as the caller named it.
    Upgrade(Text),
}

impl H2Client {
    pub(crate) fn new(sender: Sender) -> Self {
        Self { sender, stream: None, tunnel: None }
    }

    /// Opens the stream. Fails only before anything has left this process, so the request may be repeated.
    pub(crate) fn send_request(&mut self, request: &Request) -> Result<(), StreamError> {
        self.tunnel = request.upgrade.as_ref().map(|_| Box::new(tunnel_of(request)));
        let upgrade = self.tunnel.as_ref().map(|tunnel| (without_upgrade(request), matches!(**tunnel, Tunnel::Upgrade(_))));
        let protocol = request.upgrade.as_ref().filter(|_| matches!(upgrade, Some((_, true))));
        let mut digits = itoa::Buffer::new();
        let mut more = [("", &b""[..]); 2];
        let mut filled = 0;
        if let Some(n) = request.length.said() {
            more[filled] = ("content-length", digits.format(n).as_bytes());
            filled += 1;
        }
        if request.accepts_trailers {
            more[filled] = ("te", b"trailers");
            filled += 1;
        }
        let head = RequestRef {
            method: if upgrade.is_some() { &Method::CONNECT } else { &request.method },
            scheme: request.scheme.as_bytes(),
            authority: request.authority.as_bytes(),
            path: request.path.as_bytes(),
            protocol: protocol.map(|p| p.as_bytes()),
            headers: upgrade.as_ref().map_or(&request.headers, |(headers, _)| headers),
            more: &more[..filled],
        };
        let end = !request.has_body() && upgrade.is_none();
        self.stream = Some(self.sender.send(head, end).map_err(|_| StreamError::Refused)?);
        Ok(())
    }

    /// Whether the peer takes what this request asks for; it says so once.
    pub(crate) fn poll_takes(&self, request: &Request, cx: &mut Context<'_>) -> Poll<bool> {
        if request.upgrade.is_none() || request.is_connect() { Poll::Ready(true) } else { self.sender.poll_extended_connect(cx) }
    }

    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, StreamError>> {
        let Some(stream) = &mut self.stream else { return Poll::Pending };
        if let Some(head) = stream.take_informational() {
            return Poll::Ready(Ok(Response { headers: head.headers, ..Response::new(head.status) }));
        }
        let head = ready!(stream.poll_response(cx))?;
        let length = match head.length {
            Some(n) => Length::Known(n),
            None if head.end => Length::None,
            None => Length::Unknown,
        };
        let length = if self.tunnel.is_some() && head.status.is_success() { Length::Unknown } else { length };
        let (status, upgrade) = match self.tunnel.as_deref() {
            Some(Tunnel::Upgrade(name)) if head.status == StatusCode::OK => (StatusCode::SWITCHING_PROTOCOLS, Some(name.clone())),
            Some(Tunnel::Connect) if head.status.is_success() => (head.status, Some(Text::EMPTY)),
            _ => (head.status, None),
        };
        Poll::Ready(Ok(Response { status, headers: head.headers, length, upgrade, spelling: None }))
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
            stream.send_end(trailers);
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
}

fn tunnel_of(request: &Request) -> Tunnel {
    if request.is_connect() {
        return Tunnel::Connect;
    }
    let name = request.headers.get(header::UPGRADE).and_then(|v| v.to_str().ok()).map(Text::from);
    Tunnel::Upgrade(name.or_else(|| request.upgrade.clone()).unwrap_or_default())
}

/// The pseudo-header says it here.
fn without_upgrade(request: &Request) -> HeaderMap {
    let mut headers = request.headers.clone();
    headers.remove(header::UPGRADE);
    headers
}
