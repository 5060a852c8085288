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
use crate::wire::fields;

static CODEC: LazyLock<Codec> = LazyLock::new(Codec::new);
const REQUEST: &str = "envoy.service.ext_proc.v3.ProcessingRequest";
const RESPONSE: &str = "envoy.service.ext_proc.v3.ProcessingResponse";
/// Before each message: a flag and a length.
const HEAD: usize = 5;
/// What stands before text in the place of bytes.
const TEXT: &str = "text:";

/// Answers each message with the next of `answers`; those after the last with nothing to change.
pub(super) async fn serve(
    respond: &mut SendResponse<Bytes>,
    mut body: RecvStream,
    answers: &[Value],
    at: usize,
    script: &Script,
) -> Result<(), h2::Error> {
    let _reading = script.read();
    let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap_or_default();
    let mut send = respond.send_response(response, false)?;
    let (mut buffer, mut told, mut answers) = (BytesMut::new(), Vec::new(), answers.iter());
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        buffer.extend_from_slice(&piece);
        while let Some(message) = next(&mut buffer) {
            let request = CODEC.write_bytes(REQUEST, &message).unwrap_or(Value::Null);
            let plain = plain(&request);
            told.push(readable(request));
            script.note(at, "told", told.clone().into());
            match answers.next().unwrap_or(&plain) {
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

fn plain(request: &Value) -> Value {
    let of = |part: &str| request.get(part).is_some();
    let parts = ["request_headers", "response_headers", "request_body", "response_body", "request_trailers", "response_trailers"];
    let part = parts.into_iter().find(|part| of(part)).unwrap_or(parts[0]);
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
