//! A small gRPC service without generated code: `lateen.app.Echo`, one unary and one streaming method.
//!
//! `Call` answers once; `Stream` answers `count` times, `interval_ms` apart. A request may ask for a failing
//! status with `fail_with`; otherwise the service's own knobs decide.
use crate::http::Body;
use crate::state::State;
use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt, Limited, StreamBody};
use prost::Message;
use std::rc::Rc;
use std::time::Duration;

pub(crate) const UNARY: &str = "/lateen.app.Echo/Call";
pub(crate) const STREAM: &str = "/lateen.app.Echo/Stream";

const MAX_MESSAGE: usize = 4 << 20;
const OK: u32 = 0;
const INVALID_ARGUMENT: u32 = 3;
const UNIMPLEMENTED: u32 = 12;
const UNAVAILABLE: u32 = 14;

/// `lateen.app.EchoRequest`.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct EchoRequest {
    #[prost(string, tag = "1")]
    pub(crate) message: String,
    /// Replies of a stream; 0 counts as 1.
    #[prost(uint32, tag = "2")]
    pub(crate) count: u32,
    /// Milliseconds between replies of a stream.
    #[prost(uint32, tag = "3")]
    pub(crate) interval_ms: u32,
    /// End with this status after the replies.
    #[prost(uint32, tag = "4")]
    pub(crate) fail_with: u32,
}

/// `lateen.app.EchoReply`.
#[derive(Clone, PartialEq, Message, serde::Serialize)]
pub(crate) struct EchoReply {
    #[prost(string, tag = "1")]
    pub(crate) message: String,
    #[prost(string, tag = "2")]
    pub(crate) service: String,
    #[prost(string, tag = "3")]
    pub(crate) version: String,
    #[prost(string, tag = "4")]
    pub(crate) pod: String,
    #[prost(uint64, tag = "5")]
    pub(crate) count: u64,
    /// From 0 within a stream.
    #[prost(uint32, tag = "6")]
    pub(crate) sequence: u32,
}

/// A message with gRPC's five bytes in front.
pub(crate) fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(5 + length);
    out.put_u8(0);
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    out.put_slice(&message.encode_to_vec());
    out.freeze()
}

/// Why bytes are not one gRPC message.
#[derive(Debug)]
pub(crate) enum NotAMessage {
    Truncated,
    Compressed,
    Undecodable(prost::DecodeError),
}

impl std::fmt::Display for NotAMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Truncated => f.write_str("the message is cut off"),
            Self::Compressed => f.write_str("compressed messages are not accepted"),
            Self::Undecodable(error) => write!(f, "{error}"),
        }
    }
}

/// The first message of a body.
pub(crate) fn unframe<M: Message + Default>(mut body: &[u8]) -> Result<M, NotAMessage> {
    if body.len() < 5 {
        return Err(NotAMessage::Truncated);
    }
    if body.get_u8() != 0 {
        return Err(NotAMessage::Compressed);
    }
    let length = body.get_u32() as usize;
    M::decode(body.get(..length).ok_or(NotAMessage::Truncated)?).map_err(NotAMessage::Undecodable)
}

/// Whether a request is gRPC, whatever its path.
pub(crate) fn is_grpc<B>(request: &Request<B>) -> bool {
    request.headers().get("content-type").is_some_and(|value| value.as_bytes().starts_with(b"application/grpc"))
}

/// Answers a gRPC request that has been counted as `number`.
pub(crate) async fn serve<B>(state: Rc<State>, number: u64, request: Request<B>) -> Response<Body>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let streaming = match request.uri().path() {
        UNARY => false,
        STREAM => true,
        other => return ended(UNIMPLEMENTED, &format!("no method {other}; there are {UNARY} and {STREAM}")),
    };
    let body = match Limited::new(request.into_body(), MAX_MESSAGE).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) => return ended(INVALID_ARGUMENT, &error.to_string()),
    };
    let asked: EchoRequest = match unframe(&body) {
        Ok(asked) => asked,
        Err(error) => return ended(INVALID_ARGUMENT, &error.to_string()),
    };
    state.wait().await;
    if let Some(status) = state.failure() {
        return ended(UNAVAILABLE, &format!("failing as told ({})", status.as_u16()));
    }
    if !streaming && asked.fail_with != OK {
        return ended(asked.fail_with, "failing as asked");
    }
    let replies = if streaming { asked.count.max(1) } else { 1 };
    respond(state, number, asked, replies)
}

fn respond(state: Rc<State>, number: u64, asked: EchoRequest, replies: u32) -> Response<Body> {
    let frames = stream::unfold((0, state), move |(sequence, state)| {
        let asked = asked.clone();
        async move {
            if sequence > replies {
                return None;
            }
            if sequence == replies {
                return Some((Ok(Frame::trailers(trailers(asked.fail_with, ""))), (sequence + 1, state)));
            }
            if sequence > 0 && asked.interval_ms > 0 {
                tokio::time::sleep(Duration::from_millis(asked.interval_ms.into())).await;
            }
            let reply = EchoReply {
                message: asked.message,
                service: state.options.name.clone(),
                version: state.options.version.clone(),
                pod: state.pod.clone(),
                count: number,
                sequence,
            };
            Some((Ok(Frame::data(frame(&reply))), (sequence + 1, state)))
        }
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// A response of trailers only.
fn ended(status: u32, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.headers_mut() = trailers(status, message);
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

fn trailers(status: u32, message: &str) -> HeaderMap {
    let mut out = HeaderMap::new();
    out.insert("grpc-status", HeaderValue::from(status));
    if !message.is_empty() {
        // gRPC wants all but printable ASCII, and the percent sign, escaped.
        let escaped: String = message.bytes().map(escape).collect();
        out.insert("grpc-message", HeaderValue::from_str(&escaped).unwrap_or(HeaderValue::from_static("")));
    }
    out
}

fn escape(byte: u8) -> String {
    if (0x20..0x7f).contains(&byte) && byte != b'%' { char::from(byte).to_string() } else { format!("%{byte:02X}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_framing() {
        let request = EchoRequest { message: "héllo".into(), count: 3, interval_ms: 0, fail_with: 7 };
        assert_eq!(unframe::<EchoRequest>(&frame(&request)).unwrap(), request);
    }

    #[test]
    fn broken_frames_are_refused() {
        let whole = frame(&EchoRequest { message: "hello".into(), ..EchoRequest::default() });
        for cut in 0..whole.len() {
            assert!(unframe::<EchoRequest>(&whole[..cut]).is_err(), "{cut}");
        }
        let mut compressed = whole.to_vec();
        compressed[0] = 1;
        assert!(matches!(unframe::<EchoRequest>(&compressed), Err(NotAMessage::Compressed)));
        assert!(matches!(unframe::<EchoRequest>(&[0, 255, 255, 255, 255, 1]), Err(NotAMessage::Truncated)));
    }

    #[test]
    fn messages_of_errors_are_escaped() {
        assert_eq!(trailers(3, "50% ü").get("grpc-message").unwrap(), "50%25 %C3%BC");
    }
}
