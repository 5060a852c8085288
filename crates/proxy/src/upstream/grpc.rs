//! gRPC over a cluster's ordinary connections: a message for a message, or a stream of them.
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use lateen_snapshot::service::GrpcService;
use prost::Message;

use super::call::{self, Answer, Call, Limits, Lost};
use crate::http::headers::{GRPC_MESSAGE, GRPC_STATUS, GRPC_TIMEOUT, INTERNAL, number, text};
use crate::http::message::{Frame, Length, Request, Version};
use crate::http::reply;
use crate::io::Text;
use crate::worker::{Live, Worker};

/// What stands before each message: a flag and a length.
const HEAD: usize = 5;

/// gRPC's status codes that we find ourselves.
pub(crate) mod code {
    pub(crate) const UNKNOWN: u16 = 2;
    pub(crate) const DEADLINE_EXCEEDED: u16 = 4;
    pub(crate) const RESOURCE_EXHAUSTED: u16 = 8;
    pub(crate) const INTERNAL: u16 = 13;
    pub(crate) const UNAVAILABLE: u16 = 14;
}

/// Why a call brought no message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: u16,
    pub(crate) message: String,
}

impl Status {
    pub(crate) fn new(code: u16, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }
}

impl From<Lost> for Status {
    fn from(lost: Lost) -> Self {
        let code = match lost {
            Lost::Late => code::DEADLINE_EXCEEDED,
            Lost::TooLarge => code::RESOURCE_EXHAUSTED,
            _ => code::UNAVAILABLE,
        };
        Self::new(code, format!("{lost:?}"))
    }
}

/// The head of a call of `path`, `/package.Service/Method`.
pub(crate) fn request(service: &GrpcService, path: &'static str) -> Request {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    if let Some(value) = service.timeout.and_then(timeout_value) {
        headers.insert(GRPC_TIMEOUT, value);
    }
    if service.envoy_headers {
        headers.insert(INTERNAL, HeaderValue::from_static("true"));
        call::tell_patience(&mut headers, service.timeout);
    }
    for (name, value) in &service.headers {
        headers.append(name.clone(), value.clone());
    }
    Request {
        method: http::Method::POST,
        headers,
        version: Version::Http2,
        length: Length::Unknown,
        accepts_trailers: true,
        ..Request::get(Text::from(&*service.authority), Text::fixed(path))
    }
}

/// gRPC allows eight digits and a unit.
pub(crate) fn timeout_value(limit: Duration) -> Option<HeaderValue> {
    let text = match limit.as_millis() {
        millis if millis < 100_000_000 => format!("{millis}m"),
        millis => format!("{}S", (millis / 1000).min(99_999_999)),
    };
    HeaderValue::try_from(text).ok()
}

/// A message with its five bytes before it.
pub(crate) fn framed(message: &impl Message) -> Bytes {
    framed_bytes(&message.encode_to_vec())
}

/// As [`framed`], for a message that is encoded already.
pub(crate) fn framed_bytes(message: &[u8]) -> Bytes {
    let mut out = BytesMut::with_capacity(message.len() + HEAD);
    out.put_u8(0);
    out.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    out.extend_from_slice(message);
    out.freeze()
}

/// Asks with one message and waits for the one that answers.
pub(crate) async fn unary<B: Message + Default>(
    worker: &Rc<Worker>,
    live: &Live,
    service: &GrpcService,
    path: &'static str,
    message: &impl Message,
) -> Result<B, Status> {
    let limits = Limits { time: service.timeout, bytes: service.max_message.saturating_add(HEAD) };
    let answer = call::ask(worker, live, service.cluster, &request(service, path), framed(message), limits).await?;
    ended(answer.status.as_u16(), &answer.headers, answer.trailers.as_deref())?;
    only_message(answer)
}

fn only_message<B: Message + Default>(answer: Answer) -> Result<B, Status> {
    let mut body = answer.body;
    let wrong = || Status::new(code::INTERNAL, "the answer is not one plain message");
    if body.len() < HEAD || body.get_u8() != 0 || body.get_u32() as usize != body.len() {
        return Err(wrong());
    }
    B::decode(body).map_err(|e| Status::new(code::INTERNAL, e.to_string()))
}

/// The status at a call's end, from its trailers, or its head when that is all there is.
pub(crate) fn ended(status: u16, head: &HeaderMap, trailers: Option<&HeaderMap>) -> Result<(), Status> {
    if status != 200 {
        return Err(Status::new(reply::grpc_status_of(status), format!("the answer's status is {status}")));
    }
    let map = trailers.filter(|map| map.contains_key(GRPC_STATUS)).unwrap_or(head);
    match number(map, &GRPC_STATUS) {
        Some(0) => Ok(()),
        Some(code) => {
            let message = text(map, &GRPC_MESSAGE).unwrap_or_default();
            Err(Status::new(u16::try_from(code).unwrap_or(code::UNKNOWN), message))
        }
        None => Err(Status::new(code::UNKNOWN, "the answer has no status")),
    }
}

/// A trailers-only answer carries its real status in a header: as which HTTP status its host is judged.
pub(crate) fn as_http(head: &HeaderMap) -> Option<u16> {
    Some(match number(head, &GRPC_STATUS)? {
        0 => 200,
        1 => 499,
        3 | 9 | 11 => 400,
        4 => 504,
        5 => 404,
        6 | 10 => 409,
        7 => 403,
        8 => 429,
        12 => 501,
        14 => 503,
        16 => 401,
        _ => 500,
    })
}

/// A call with a stream of messages in both directions.
pub(crate) struct Streaming {
    call: Call,
    worker: Rc<Worker>,
    /// The answer's status and head, once they are there.
    head: Option<(u16, HeaderMap)>,
    buffer: BytesMut,
    most: usize,
}

impl Streaming {
    pub(crate) async fn open(worker: &Rc<Worker>, live: &Live, service: &GrpcService, path: &'static str) -> Result<Self, Status> {
        let call = Call::begin(worker, live, service.cluster, &request(service, path)).await?;
        Ok(Self { call, worker: Rc::clone(worker), head: None, buffer: BytesMut::new(), most: service.max_message })
    }

    /// Whether the head of the answer is here.
    pub(crate) fn is_answered(&self) -> bool {
        self.head.is_some()
    }

    /// Ready when another message may be sent.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.call.poll_room(cx).map(|_| ())
    }

    /// Sends a framed message.
    pub(crate) fn send(&mut self, message: Bytes) {
        self.call.queue(message);
    }

    /// What was queued goes out, while no message is wanted.
    pub(crate) fn flush(&mut self, cx: &mut Context<'_>) {
        self.call.flush(cx);
    }

    /// The next message; `None` at the end of a call that ended well.
    pub(crate) fn poll_message<M: Message + Default>(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<M>, Status>> {
        let (status, head) = match &mut self.head {
            Some(head) => head,
            None => {
                let response = ready!(self.call.poll_response(&self.worker, cx))?;
                self.head.insert((response.status.as_u16(), response.headers))
            }
        };
        if *status != 200 {
            return Poll::Ready(ended(*status, head, None).map(|()| None));
        }
        loop {
            if let Some(message) = next_message(&mut self.buffer, self.most)? {
                return Poll::Ready(M::decode(message).map(Some).map_err(|e| Status::new(code::INTERNAL, e.to_string())));
            }
            match ready!(self.call.poll_frame(cx)) {
                Some(Ok(Frame::Data(data))) => self.buffer.extend_from_slice(&data),
                Some(Ok(Frame::Trailers(trailers))) => return Poll::Ready(ended(*status, head, Some(&trailers)).map(|()| None)),
                None => return Poll::Ready(ended(*status, head, None).map(|()| None)),
                Some(Err(lost)) => return Poll::Ready(Err(lost.into())),
            }
        }
    }

    /// Sends what is left, and waits for the other side to end.
    pub(crate) async fn close(mut self, left: impl IntoIterator<Item = Bytes>) {
        for message in left {
            if self.call.send(message).await.is_err() {
                return;
            }
        }
        self.call.end();
        if self.head.is_none() && self.call.response(&self.worker).await.is_err() {
            return;
        }
        while let Some(Ok(Frame::Data(_))) = self.call.frame().await {}
        self.call.finish();
    }
}

/// Takes a whole message out of what has come.
fn next_message(buffer: &mut BytesMut, most: usize) -> Result<Option<Bytes>, Status> {
    let Some((head, _)) = buffer.split_first_chunk::<HEAD>() else { return Ok(None) };
    let [compressed, length @ ..] = *head;
    let length = u32::from_be_bytes(length) as usize;
    if compressed != 0 {
        return Err(Status::new(code::INTERNAL, "the message is compressed"));
    }
    if length > most {
        return Err(Status::new(code::RESOURCE_EXHAUSTED, "the message is too large"));
    }
    if buffer.len() < HEAD + length {
        return Ok(None);
    }
    buffer.advance(HEAD);
    Ok(Some(buffer.split_to(length).freeze()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(body: &[u8]) -> Answer {
        Answer { status: http::StatusCode::OK, headers: HeaderMap::new(), body: Bytes::copy_from_slice(body), trailers: None }
    }

    #[test]
    fn only_one_whole_plain_message_is_an_answer() {
        let text = "hello".to_owned();
        let sent = framed(&text);
        assert_eq!(only_message::<String>(answer(&sent)), Ok(text));
        let compressed = [&[1], &sent[1..]].concat();
        let twice = [&sent[..], &sent[..]].concat();
        for wrong in [&b""[..], &sent[..4], &sent[..sent.len() - 1], &compressed, &twice, b"\0\0\0\0\x01\xff"] {
            assert_eq!(only_message::<String>(answer(wrong)).map_err(|s| s.code), Err(code::INTERNAL), "{wrong:?}");
        }
    }

    #[test]
    fn a_calls_status_is_that_of_its_trailers() {
        let map = |status: &'static str| HeaderMap::from_iter([(GRPC_STATUS, HeaderValue::from_static(status))]);
        let of = |status, head: &HeaderMap, trailers: Option<&HeaderMap>| ended(status, head, trailers).map_err(|s| s.code);
        let none = HeaderMap::new();
        assert_eq!(of(200, &none, Some(&map("0"))), Ok(()));
        assert_eq!(of(200, &none, Some(&map("7"))), Err(7));
        assert_eq!(of(200, &map("5"), None), Err(5));
        assert_eq!(of(200, &none, None), Err(code::UNKNOWN));
        assert_eq!(of(503, &none, None), Err(code::UNAVAILABLE));
    }
}
