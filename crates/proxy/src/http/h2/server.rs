//! The caller's side of an HTTP/2 stream.
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{HeaderMap, Method, StatusCode};
use lateen_http2::shell::Stream;
use lateen_http2::{Reason, RequestHead};

use crate::http::h1::{InvalidHead, valid_host};
use crate::http::message::{Frame, Hints, Length, Request, Response, Version};
use crate::http::stream::StreamError;
use crate::io::Text;

/// The server end of one HTTP/2 stream.
pub(crate) struct H2ServerStream {
    stream: Stream,
    is_head: bool,
    /// The caller waits for 100 before it sends the body.
    owes_continue: bool,
}

impl H2ServerStream {
    pub(crate) fn new(stream: Stream, request: &Request, is_head: bool) -> Self {
        Self { owes_continue: request.expects_continue && !stream.received_all(), stream, is_head }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if std::mem::take(&mut self.owes_continue) {
            self.stream.send_response(StatusCode::CONTINUE, &HeaderMap::new(), false);
        }
        self.stream.poll_piece(cx).map(|piece| piece.map(super::frame))
    }

    pub(crate) fn request_done(&self) -> bool {
        self.stream.received_all()
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.stream.poll_gone(cx).map(|_| ())
    }

    pub(crate) fn send_informational(&mut self, status: StatusCode, headers: &HeaderMap) {
        if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
            self.stream.send_response(status, headers, false);
        }
    }

    pub(crate) fn send_head(&mut self, response: &mut Response, end: bool) {
        self.owes_continue = false;
        let Response { status, headers, length, .. } = response;
        // A switch of protocols is an extended CONNECT here, which answers 200.
        let status = if *status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::OK } else { *status };
        if let Length::Known(n) = *length
            && let Ok(digits) = HeaderValue::from_str(itoa::Buffer::new().format(n))
        {
            headers.entry(header::CONTENT_LENGTH).or_insert(digits);
        }
        self.stream.send_response(status, headers, end || self.is_head);
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        self.stream.send_data(data);
    }

    pub(crate) fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        self.stream.send_end(trailers);
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.stream.poll_room(cx).map_err(StreamError::from)
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_room(cx)
    }

    pub(crate) fn was_reset(&self) -> bool {
        self.stream.was_reset()
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        self.stream.reset(reason);
    }
}

/// The protocol that means a plain CONNECT which has a path all the same (Envoy's name for it).
const BYTESTREAM: &[u8] = b"bytestream";

/// What [`Hints`] say of a header's name, in bits: the codec asks once for each name that it is taught.
pub(crate) fn mark(name: &[u8]) -> u8 {
    let mut hints = Hints::default();
    hints.note(name);
    let Hints { envoy, peer, forwarded_for, forwarded_proto, client_cert, request_id } = hints;
    [envoy, peer, forwarded_for, forwarded_proto, client_cert, request_id].iter().rev().fold(0, |bits, hint| bits << 1 | u8::from(*hint))
}

fn hints(marks: u8) -> Hints {
    let [envoy, peer, forwarded_for, forwarded_proto, client_cert, request_id] = [0, 1, 2, 3, 4, 5].map(|bit| marks >> bit & 1 != 0);
    Hints { envoy, peer, forwarded_for, forwarded_proto, client_cert, request_id }
}

/// Our request from theirs.
pub(crate) fn request_of(head: Box<RequestHead>, end: bool, https: bool) -> Result<Request, InvalidHead> {
    let RequestHead { mut method, scheme, authority, path, protocol, mut headers, length, te_trailers, expect, marks, size } = head.take();
    let text = |bytes: Bytes| Text::new(bytes).ok_or(InvalidHead::Characters);
    let authority = text(authority)?;
    if authority.is_empty() {
        return Err(InvalidHead::NoHost);
    }
    if !valid_host(&authority) {
        return Err(InvalidHead::Host);
    }
    let length = match (end, length) {
        (true, Some(0)) => Length::Empty,
        (true, _) => Length::None,
        (false, None) => Length::Unknown,
        (false, Some(n)) => Length::Known(n),
    };
    let upgrade = match protocol {
        // An upgrade in the clothes of HTTP/2; from here on it looks like one of HTTP/1 (RFC 8441).
        Some(protocol) if &*protocol != BYTESTREAM => {
            method = Method::GET;
            let name = HeaderValue::from_maybe_shared(protocol.clone()).map_err(|_| InvalidHead::Characters)?;
            headers.insert(header::UPGRADE, name);
            Some(Text::from(text(protocol)?.to_ascii_lowercase()))
        }
        _ if method == Method::CONNECT => Some(Text::fixed("connect")),
        _ => None,
    };
    // What follows waits for the answer, and is not the request's body.
    let length = if upgrade.is_some() { Length::None } else { length };
    let expects_continue = expect && headers.remove(header::EXPECT).is_some();
    let scheme_given = !scheme.is_empty();
    let https = if scheme.is_empty() { https } else { scheme.eq_ignore_ascii_case(b"https") };
    Ok(Request {
        method,
        authority,
        scheme: if https { "https" } else { "http" },
        scheme_given,
        path: text(path)?,
        headers,
        version: Version::Http2,
        length,
        upgrade,
        expects_continue,
        accepts_trailers: te_trailers,
        hints: hints(marks),
        head_bytes: size as u64,
        spelling: None,
    })
}
