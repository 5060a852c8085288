//! The upstream side of an HTTP/2 stream.
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::client::{ResponseFuture, SendRequest};
use h2::{RecvStream, SendStream};
use http::HeaderMap;
use http::header;
use http::uri::{Authority, PathAndQuery, Scheme, Uri};

use super::Outgoing;
use crate::http::message::{Frame, Length, Request, Response};
use crate::http::stream::StreamError;
use crate::io::Text;

/// The client end of one HTTP/2 stream.
pub(crate) struct H2Client {
    sender: SendRequest<Bytes>,
    response: Option<ResponseFuture>,
    stream: Option<SendStream<Bytes>>,
    body: Option<RecvStream>,
    data_done: bool,
    outgoing: Outgoing,
    connect: bool,
}

impl H2Client {
    pub(crate) fn new(sender: SendRequest<Bytes>) -> Self {
        Self { sender, response: None, stream: None, body: None, data_done: false, outgoing: Outgoing::default(), connect: false }
    }

    pub(crate) fn send_request(&mut self, request: &Request) -> Result<(), StreamError> {
        let head = head_of(request).ok_or(StreamError::Protocol)?;
        self.connect = request.upgrade.is_some();
        let end = !request.has_body() && !self.connect;
        self.outgoing.ended = end;
        let (response, stream) = self.sender.send_request(head, end).map_err(|e| match StreamError::from_h2(&e) {
            // Nothing left this process: the connection was going away already.
            StreamError::Closed => StreamError::Refused,
            other => other,
        })?;
        self.response = Some(response);
        self.stream = Some(stream);
        Ok(())
    }

    pub(crate) fn poll_response(&mut self, cx: &mut Context<'_>) -> Poll<Result<Response, StreamError>> {
        let Some(response) = &mut self.response else { return Poll::Pending };
        let head = ready!(Pin::new(response).poll(cx)).map_err(|e| StreamError::from_h2(&e))?;
        self.response = None;
        let (parts, body) = head.into_parts();
        let mut headers = parts.headers;
        let length = match headers.remove(header::CONTENT_LENGTH).map(|v| v.to_str().ok().and_then(|v| v.parse().ok())) {
            Some(Some(n)) => Length::Known(n),
            Some(None) => return Poll::Ready(Err(StreamError::Protocol)),
            None if body.is_end_stream() => Length::None,
            None => Length::Unknown,
        };
        self.data_done = body.is_end_stream();
        self.body = Some(body);
        let upgrade = (self.connect && parts.status.is_success()).then(|| Text::fixed("websocket"));
        let head_bytes = headers.iter().map(|(n, v)| n.as_str().len() + v.len()).sum::<usize>() as u64;
        Poll::Ready(Ok(Response { status: parts.status, headers, length, upgrade, head_bytes }))
    }

    pub(crate) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame, StreamError>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if !self.data_done {
            match ready!(body.poll_data(cx)) {
                Some(Ok(data)) => {
                    let _ = body.flow_control().release_capacity(data.len());
                    return Poll::Ready(Some(Ok(Frame::Data(data))));
                }
                Some(Err(e)) => return Poll::Ready(Some(Err(StreamError::from_h2(&e)))),
                None => self.data_done = true,
            }
        }
        let trailers = ready!(body.poll_trailers(cx));
        self.body = None;
        match trailers {
            Ok(trailers) => Poll::Ready(trailers.map(|t| Ok(Frame::Trailers(Box::new(t))))),
            Err(e) => Poll::Ready(Some(Err(StreamError::from_h2(&e)))),
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

    pub(crate) fn start_raw(&mut self) {}
}

impl Drop for H2Client {
    /// An exchange given up midway must not go on at the peer.
    fn drop(&mut self) {
        if let Some(stream) = &mut self.stream
            && (self.response.is_some() || self.body.as_ref().is_some_and(|b| !b.is_end_stream()) || !self.outgoing.ended)
        {
            stream.send_reset(h2::Reason::CANCEL);
        }
    }
}

fn head_of(request: &Request) -> Option<http::Request<()>> {
    let mut head = http::Request::new(());
    let mut uri = http::uri::Parts::default();
    let plain_connect = request.method == http::Method::CONNECT && request.path.is_empty();
    uri.authority = Some(Authority::from_maybe_shared(request.authority.clone().into_bytes()).ok()?);
    if !plain_connect {
        uri.scheme = Some(if request.scheme == "https" { Scheme::HTTPS } else { Scheme::HTTP });
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(request.path.clone().into_bytes()).ok()?);
    }
    *head.uri_mut() = Uri::from_parts(uri).ok()?;
    *head.method_mut() = request.method.clone();
    *head.version_mut() = http::Version::HTTP_2;
    let mut headers = HeaderMap::clone(&request.headers);
    if let Length::Known(n) = request.length {
        headers.insert(header::CONTENT_LENGTH, n.into());
    }
    if request.accepts_trailers {
        headers.insert(header::TE, http::HeaderValue::from_static("trailers"));
    }
    if let Some(upgrade) = &request.upgrade
        && upgrade.as_str() != "connect"
    {
        *head.method_mut() = http::Method::CONNECT;
        head.extensions_mut().insert(h2::ext::Protocol::from(upgrade.as_str()));
    }
    *head.headers_mut() = headers;
    Some(head)
}
