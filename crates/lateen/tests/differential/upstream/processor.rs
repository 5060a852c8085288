//! A server that external processing asks: it answers each message as the case says, and tells what it was told.
use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{Buf as _, Bytes, BytesMut};
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Response};
use lateen_proto::json::{Codec, Tree};
use serde_json::{Map, Value, json};

use super::Script;
use crate::case::Answer;
use crate::wire::fields;

static CODEC: LazyLock<Codec> = LazyLock::new(Codec::new);
const REQUEST: &str = "envoy.service.ext_proc.v3.ProcessingRequest";
const RESPONSE: &str = "envoy.service.ext_proc.v3.ProcessingResponse";
/// Before each message: a flag and a length.
const HEAD: usize = 5;
/// What stands before text in the place of bytes.
const TEXT: &str = "text:";

const PARTS: [&str; 6] = ["request_headers", "response_headers", "request_body", "response_body", "request_trailers", "response_trailers"];
const FULL_DUPLEX: &str = "FULL_DUPLEX_STREAMED";

/// What is answered to each message.
pub(super) enum Answers<'a> {
    /// The next of these; to those after the last nothing to change.
    InOrder(std::slice::Iter<'a, Value>),
    ByPart(&'a Map<String, Value>),
}

impl<'a> Answers<'a> {
    pub(super) fn of(answer: &'a Answer) -> Option<Self> {
        let by_part = answer.processor_by_part.as_ref().map(Self::ByPart);
        by_part.or_else(|| Some(Self::InOrder(answer.processor.as_ref()?.iter())))
    }

    fn next(&mut self, part: &str, request: &Value) -> Option<&'a Value> {
        match self {
            Self::InOrder(all) => all.next(),
            Self::ByPart(map) if request[part]["end_of_stream"] == true && part.ends_with("_body") => {
                map.get(&part.replace("_body", "_end"))
            }
            Self::ByPart(map) => map.get(part),
        }
    }
}

pub(super) async fn serve(
    respond: &mut SendResponse<Bytes>,
    mut body: RecvStream,
    mut answers: Answers<'_>,
    at: usize,
    script: &Script,
) -> Result<(), h2::Error> {
    let _reading = script.read();
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap_or_default();
    let mut send = respond.send_response(response, false)?;
    let (mut buffer, mut told, mut protocol) = (BytesMut::new(), Vec::new(), Value::Null);
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        buffer.extend_from_slice(&piece);
        while let Some(message) = next(&mut buffer) {
            let request = CODEC.write_bytes(REQUEST, &message).unwrap_or(Value::Null);
            if let Some(config) = request.get("protocol_config") {
                protocol = config.clone();
            }
            let part = PARTS.into_iter().find(|part| request.get(part).is_some()).unwrap_or(PARTS[0]);
            let plain = plain(part, &request, &protocol);
            let answer_to = answers.next(part, &request);
            tell(&mut told, part, readable(request));
            script.note(at, "told", told.clone().into());
            match answer_to.unwrap_or(&plain) {
                // Silence.
                Value::Null => {}
                Value::Number(status) => return end(send, status.as_u64().unwrap_or(2)),
                // Several answers to one message.
                Value::Array(all) => all.iter().try_for_each(|one| answer(&mut send, one))?,
                one => answer(&mut send, one)?,
            }
        }
    }
    end(send, 0)
}

/// Notes a message. Pieces of a body that follow each other are one: how it is cut depends on how fast everything is, and so
/// does whether the end is told with the last of them.
fn tell(told: &mut Vec<Value>, part: &str, message: Value) {
    let body = |of: &Value| of[part]["body"].as_str().unwrap_or_default().to_owned();
    let Some(last) = told.last_mut().filter(|last| part.ends_with("_body") && last.get(part).is_some()) else {
        return told.push(message);
    };
    let joined = body(last) + &body(&message);
    if !joined.is_empty() {
        last[part]["body"] = joined.into();
    }
    if message[part]["end_of_stream"] == true {
        last[part]["end_of_stream"] = true.into();
    }
}

fn end(mut send: SendStream<Bytes>, status: u64) -> Result<(), h2::Error> {
    send.send_trailers(HeaderMap::from_iter([(http::HeaderName::from_static("grpc-status"), HeaderValue::from(status))]))
}

fn next(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = u32::from_be_bytes(buffer.get(1..HEAD)?.try_into().ok()?) as usize;
    if buffer.len() < HEAD + length {
        return None;
    }
    buffer.advance(HEAD);
    Some(buffer.split_to(length))
}

fn answer(send: &mut SendStream<Bytes>, json: &Value) -> Result<(), h2::Error> {
    let text = with_bytes(json.clone()).to_string();
    let tree = Tree::parse(&text).expect("JSON that was written a moment ago");
    let message = CODEC.encode(RESPONSE, &tree).unwrap_or_else(|e| panic!("the case's {json} is no answer: {e}"));
    let framed = [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat();
    send.send_data(framed.into(), false)
}

/// Nothing to change.
fn plain(part: &str, request: &Value, protocol: &Value) -> Value {
    if part.ends_with("_body") && protocol[format!("{part}_mode")] == FULL_DUPLEX {
        return json!({ part: {"response": {"body_mutation": {"streamed_response": request[part]}}} });
    }
    json!({ part: {} })
}

/// Text in the place of bytes.
fn with_bytes(value: Value) -> Value {
    match value {
        Value::String(text) => text.strip_prefix(TEXT).map_or(Value::String(text.clone()), |text| STANDARD.encode(text).into()),
        Value::Array(all) => all.into_iter().map(with_bytes).collect(),
        Value::Object(map) => map.into_iter().map(|(key, value)| (key, with_bytes(value))).collect::<Map<_, _>>().into(),
        other => other,
    }
}

/// Bytes as text, and headers by name.
fn readable(value: Value) -> Value {
    let text = |value: &Value| {
        let bytes = value.as_str().and_then(|v| STANDARD.decode(v).ok()).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    match value {
        Value::Array(all) => all.into_iter().map(readable).collect(),
        Value::Object(map) => {
            let one = |(key, value): (String, Value)| match (key.as_str(), &value) {
                ("headers", Value::Array(all)) => {
                    let values = all.iter().map(|h| (h["key"].as_str().unwrap_or("?"), text(&h["raw_value"]))).collect::<Vec<_>>();
                    (key, fields(values.iter().map(|(name, value)| (*name, value.as_str()))))
                }
                ("body", Value::String(_)) => (key, text(&value).into()),
                _ => (key, readable(value)),
            };
            map.into_iter().map(one).collect::<Map<_, _>>().into()
        }
        other => other,
    }
}
