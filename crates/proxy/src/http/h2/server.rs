//! The caller's side of an HTTP/2 stream.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header;
use http::{HeaderMap, StatusCode};

use super::Outgoing;
use crate::http::message::{Frame, Hints, Length, Request, Response, Version};
use crate::http::stream::StreamError;
use crate::io::Text;

/// The server end of one HTTP/2 stream.
pub(crate) struct H2ServerStream {
    body: RecvStream,
    /// The body's data has ended; trailers may follow.
    data_done: bool,
    request_done: bool,
    respond: SendResponse<Bytes>,
    stream: Option<SendStream<Bytes>>,
    outgoing: Outgoing,
    is_head: bool,
}

impl H2ServerStream {
    pub(crate) fn new(body: RecvStream, respond: SendResponse<Bytes>, is_head: bool) -> Self {
        let done = body.is_end_stream();
        Self { body, data_done: done, request_done: done, respond, stream: None, outgoing: Outgoing::default(), is_head }
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        if self.request_done {
            return Poll::Ready(None);
        }
        if !self.data_done {
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(data)) => {
                    // What was taken is bounded by the room upstream, so the window may open at once.
                    let _ = self.body.flow_control().release_capacity(data.len());
                    self.request_done = self.body.is_end_stream();
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(StreamError::from_h2(&e)))),
                None => self.data_done = true,
            }
        }
        match ready!(self.body.poll_trailers(cx)) {
            Ok(trailers) => {
                self.request_done = true;
                Poll::Ready(trailers.map(|t| Ok(Frame::Trailers(Box::new(t)))))
            }
            Err(e) => Poll::Ready(Some(Err(StreamError::from_h2(&e)))),
        }
    }

    pub(crate) fn request_done(&self) -> bool {
        self.request_done
    }

    pub(crate) fn poll_gone(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.stream {
            Some(stream) => stream.poll_reset(cx).map(|_| ()),
            None => self.respond.poll_reset(cx).map(|_| ()),
        }
    }

    pub(crate) fn send_informational(&mut self, _: StatusCode, _: &HeaderMap) {}

    pub(crate) fn send_head(&mut self, response: Response, end: bool) {
        let end = end || self.is_head;
        let Response { status, mut headers, length, .. } = response;
        // A switch of protocols is an extended CONNECT here, which answers 200.
        let status = if status == StatusCode::SWITCHING_PROTOCOLS { StatusCode::OK } else { status };
        if let Length::Known(n) = length
            && !headers.contains_key(header::CONTENT_LENGTH)
        {
            headers.insert(header::CONTENT_LENGTH, n.into());
        }
        let mut head = http::Response::new(());
        *head.status_mut() = status;
        *head.headers_mut() = headers;
        self.outgoing.ended = end;
        if let Ok(stream) = self.respond.send_response(head, end) {
            self.stream = Some(stream);
        }
    }

    pub(crate) fn send_data(&mut self, data: Bytes) {
        if let Some(stream) = &mut self.stream
            && !self.outgoing.ended
        {
            self.outgoing.push(stream, data);
        }
    }

    pub(crate) fn send_end(&mut self, trailers: Option<Box<HeaderMap>>) {
        if let Some(stream) = &mut self.stream
            && !self.outgoing.ended
        {
            self.outgoing.finish(stream, trailers);
        }
    }

    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        match &mut self.stream {
            Some(stream) => self.outgoing.poll(stream, cx),
            None => Poll::Ready(Ok(())),
        }
    }

    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        self.poll_room(cx)
    }

    pub(crate) fn reset(&mut self, reason: Reason) {
        match &mut self.stream {
            Some(stream) => stream.send_reset(reason),
            None => self.respond.send_reset(reason),
        }
    }

    /// The response is complete: a caller still sending is told to stop, without error.
    pub(crate) fn finish(&mut self) {
        if !self.request_done
            && let Some(stream) = &mut self.stream
            && self.outgoing.ended
        {
            stream.send_reset(Reason::NO_ERROR);
        }
    }
}

/// Our request from theirs; an error is a status to answer with.
pub(crate) fn request_of(parts: http::request::Parts, end: bool, https: bool) -> Result<Request, StatusCode> {
    let mut headers = parts.headers;
    let connect = parts.method == http::Method::CONNECT;
    let protocol = parts.extensions.get::<h2::ext::Protocol>().map(|p| Text::from(p.as_str().to_ascii_lowercase()));
    let host = headers.remove(header::HOST);
    let authority = match (parts.uri.authority(), host) {
        // Two names for one request: whoever routes by the other one is deceived.
        (Some(a), Some(h)) if !h.as_bytes().eq_ignore_ascii_case(a.as_str().as_bytes()) => return Err(StatusCode::BAD_REQUEST),
        (Some(a), _) => Text::from(a.as_str()),
        (None, Some(h)) => Text::new(Bytes::copy_from_slice(h.as_bytes())).ok_or(StatusCode::BAD_REQUEST)?,
        (None, None) => return Err(StatusCode::BAD_REQUEST),
    };
    if authority.contains('@') || authority.is_empty() {
        return Err(StatusCode::BAD_REQUEST);
    }
    // Fields of one HTTP/1 hop make an HTTP/2 message malformed (RFC 9113 8.2.2).
    const HOP: [header::HeaderName; 3] = [header::CONNECTION, header::TRANSFER_ENCODING, header::UPGRADE];
    if HOP.iter().any(|name| headers.contains_key(name)) {
        return Err(StatusCode::BAD_REQUEST);
    }
    let accepts_trailers = headers.remove(header::TE).is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"trailers"));
    let content_length = match headers.remove(header::CONTENT_LENGTH) {
        Some(v) => Some(v.to_str().ok().and_then(|v| v.parse::<u64>().ok()).ok_or(StatusCode::BAD_REQUEST)?),
        None => None,
    };
    let path = if connect && protocol.is_none() {
        Text::EMPTY
    } else {
        let path = parts.uri.path_and_query().map_or("/", http::uri::PathAndQuery::as_str);
        Text::from(path)
    };
    let mut hints = Hints::default();
    let mut head_bytes = (path.len() + authority.len() + 20) as u64;
    for (name, value) in &headers {
        hints.note(name.as_str().as_bytes());
        head_bytes += (name.as_str().len() + value.len()) as u64;
    }
    join_cookies(&mut headers);
    let upgrade = if connect { Some(protocol.unwrap_or(Text::fixed("connect"))) } else { None };
    let length = match (end, content_length) {
        (true, _) => Length::None,
        (false, Some(n)) => Length::Known(n),
        (false, None) => Length::Unknown,
    };
    let expects_continue = headers.remove(header::EXPECT).is_some();
    let https = parts.uri.scheme_str().map_or(https, |s| s.eq_ignore_ascii_case("https"));
    Ok(Request {
        method: parts.method,
        authority,
        scheme: if https { "https" } else { "http" },
        path,
        headers,
        version: Version::Http2,
        length,
        upgrade,
        expects_continue,
        accepts_trailers,
        hints,
        head_bytes,
    })
}

/// HTTP/2 lets a cookie be split over several fields; everyone else expects one (RFC 9113 8.2.3).
fn join_cookies(headers: &mut HeaderMap) {
    let mut all = headers.get_all(header::COOKIE).iter();
    let (Some(_), Some(_)) = (all.next(), all.next()) else { return };
    let joined: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(http::HeaderValue::as_bytes).collect();
    if let Ok(value) = http::HeaderValue::from_bytes(&joined.join(&b"; "[..])) {
        headers.insert(header::COOKIE, value);
    }
}
