//! gRPC for browsers: bodies in base64 where they ask for it, trailers as the body's last frame (Envoy grpc_web filter;
//! the form is that of gRPC's PROTOCOL-WEB).
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use lateen_telemetry::{ResponseFlags, details};

use super::body::{Convert, Halt, Origin, Piece, Piecewise, Source, Stage, hold};
use super::has_body;
use crate::http::headers::{GRPC_ACCEPT_ENCODING, GRPC_MESSAGE, GRPC_STATUS};
use crate::http::message::{Frame, Length, Response, is_grpc};
use crate::http::reply::{self, Reply};
use crate::http::{End, Exchange, Info};

/// As much of an answer that is not gRPC becomes a message.
const MOST_MESSAGE: usize = 16 * 1024;
/// Marks a frame of trailers.
const TRAILERS: u8 = 0x80;

/// The request is one, and its caller wants the answer in base64.
struct Caller {
    text: bool,
}

fn is_text(value: Option<&HeaderValue>) -> bool {
    value.is_some_and(|v| v == "application/grpc-web-text" || v == "application/grpc-web-text+proto")
}

fn is_binary(value: Option<&HeaderValue>) -> bool {
    value.is_some_and(|v| v == "application/grpc-web" || v == "application/grpc-web+proto")
}

pub(super) fn on_request(exchange: &mut Exchange<'_>, index: usize) {
    let request = &mut exchange.request;
    let kind = request.headers.get(CONTENT_TYPE);
    let text = is_text(kind);
    if !text && !is_binary(kind) {
        return;
    }
    let wants_text = is_text(request.headers.get(ACCEPT));
    request.headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    request.accepts_trailers = true;
    crate::http::headers::insert_if_absent(&mut request.headers, GRPC_ACCEPT_ENCODING, || HeaderValue::from_static("identity"));
    if request.has_body() {
        request.length = Length::Unknown;
    }
    // A body of no bytes is decoded as any other, and has a length as little.
    let is_decoded = text && request.length != Length::None;
    exchange.bodies().note(index, Caller { text: wants_text });
    if is_decoded {
        exchange.change_request_body(Piecewise::new(FromText::default()), true);
    }
}

pub(super) async fn on_response(
    exchange: &mut Exchange<'_>,
    index: usize,
    response: &mut Response,
    body: &mut dyn Origin,
) -> Result<(), End> {
    let Some(Caller { text }) = exchange.noted(index) else { return Ok(()) };
    let (text, follows) = (*text, has_body(exchange, response));
    let fits =
        if follows { response.status == http::StatusCode::OK && (is_grpc(&response.headers) || is_proto(&response.headers)) } else { true };
    let kind = if text { "application/grpc-web-text+proto" } else { "application/grpc-web+proto" };
    response.headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if fits {
        if follows {
            response.length = Length::Unknown;
            exchange.change_response_body(Piecewise::new(ToWeb::new(text)));
        }
        return Ok(());
    }
    let held = hold::response(exchange, body, MOST_MESSAGE).await?;
    let all = held.bytes();
    let message = reply::percent(all.get(..MOST_MESSAGE).unwrap_or(&all));
    if let Ok(message) = HeaderValue::from_bytes(&message) {
        response.headers.insert(GRPC_MESSAGE, message);
    }
    response.headers.insert(GRPC_STATUS, reply::grpc_status(response.status).into());
    exchange.change_response_body(Nothing);
    response.length = Length::Known(0);
    Ok(())
}

/// Whether an answer is in our form already.
fn is_proto(map: &HeaderMap) -> bool {
    let kind = map.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim_end();
    kind.eq_ignore_ascii_case("application/grpc-web+proto") || kind.eq_ignore_ascii_case("application/grpc-web")
}

/// Lets nothing of a body through.
struct Nothing;

impl Stage for Nothing {
    fn poll_piece(&mut self, cx: &mut std::task::Context<'_>, info: &mut Info, source: &mut dyn Source) -> std::task::Poll<Piece> {
        loop {
            match std::task::ready!(source.poll_piece(cx, info)) {
                Some(Ok(Frame::Data(_))) => {}
                Some(Ok(Frame::Trailers(_))) | None => return std::task::Poll::Ready(None),
                error => return std::task::Poll::Ready(error),
            }
        }
    }
}

/// base64 to bytes. Callers may pad at the end of any frame.
#[derive(Default)]
struct FromText {
    input: BytesMut,
}

impl Convert for FromText {
    fn give(&mut self, data: Bytes) {
        self.input.extend_from_slice(&data);
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        let whole = self.input.len() / 4 * 4;
        if whole == 0 {
            return Ok(None);
        }
        let quads = self.input.split_to(whole);
        let mut out = Vec::with_capacity(whole / 4 * 3);
        let mut rest = &quads[..];
        while !rest.is_empty() {
            // Up to the end of the group with the first padding.
            let end = rest.iter().position(|b| *b == b'=').map_or(rest.len(), |at| (at / 4 + 1) * 4);
            let (group, after) = rest.split_at(end.min(rest.len()));
            STANDARD.decode_vec(group, &mut out).map_err(|_| bad_text(details::GRPC_BASE64_DECODE_FAILED))?;
            rest = after;
        }
        Ok(Some(out.into()))
    }

    fn end(&mut self, _: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        if self.input.is_empty() { Ok(()) } else { Err(bad_text(details::GRPC_BASE64_DECODE_FAILED_BAD_SIZE)) }
    }
}

fn bad_text(details: &'static str) -> Halt {
    Halt::Reply(Box::new(Reply::new(400, "Bad gRPC-web request, invalid base64 data.", details, ResponseFlags::NONE)))
}

/// gRPC to gRPC-Web: each frame in base64 by itself where that is asked for, and the trailers as a frame.
struct ToWeb {
    text: bool,
    frames: Frames,
    /// Bytes of a frame that make no group of three yet.
    waiting: BytesMut,
    out: Bytes,
}

/// Where frames end.
#[derive(Default)]
struct Frames {
    head: [u8; 5],
    have: usize,
    left: usize,
}

impl Frames {
    /// How much of `data` belongs to the frame that is on its way, and whether that is its end.
    fn next(&mut self, data: &[u8]) -> (usize, bool) {
        let mut taken = 0;
        while self.have < self.head.len() {
            let Some(byte) = data.get(taken) else { return (taken, false) };
            if let Some(slot) = self.head.get_mut(self.have) {
                *slot = *byte;
            }
            self.have += 1;
            taken += 1;
            if self.have == self.head.len() {
                let [_, a, b, c, d] = self.head;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
            }
        }
        let body = self.left.min(data.len() - taken);
        self.left -= body;
        let over = self.left == 0;
        if over {
            self.have = 0;
        }
        (taken + body, over)
    }
}

impl ToWeb {
    fn new(text: bool) -> Self {
        Self { text, frames: Frames::default(), waiting: BytesMut::new(), out: Bytes::new() }
    }

    /// Adds bytes of one frame, `last` its last ones.
    fn encode(&mut self, data: &[u8], last: bool, out: &mut String) {
        self.waiting.extend_from_slice(data);
        let whole = if last { self.waiting.len() } else { self.waiting.len() / 3 * 3 };
        STANDARD.encode_string(self.waiting.split_to(whole), out);
    }
}

impl Convert for ToWeb {
    fn give(&mut self, data: Bytes) {
        if !self.text {
            self.out = data;
            return;
        }
        let mut out = String::with_capacity(data.len() / 3 * 4 + 8);
        let mut rest = &data[..];
        while !rest.is_empty() {
            let (taken, last) = self.frames.next(rest);
            let (frame, after) = rest.split_at(taken.min(rest.len()));
            self.encode(frame, last, &mut out);
            rest = after;
        }
        self.out = out.into();
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        let out = std::mem::take(&mut self.out);
        Ok((!out.is_empty()).then_some(out))
    }

    fn end(&mut self, trailers: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        let mut text = String::new();
        self.encode(&[], true, &mut text);
        let mut out = BytesMut::from(text.as_bytes());
        if let Some(map) = trailers.take() {
            let frame = trailers_frame(&map);
            if self.text {
                out.extend_from_slice(STANDARD.encode(frame).as_bytes());
            } else {
                out.extend_from_slice(&frame);
            }
        }
        self.out = out.freeze();
        Ok(())
    }
}

fn trailers_frame(map: &HeaderMap) -> Bytes {
    let mut lines = BytesMut::new();
    for (name, value) in map {
        for part in [HeaderName::as_str(name).as_bytes(), b":", value.as_bytes(), b"\r\n"] {
            lines.extend_from_slice(part);
        }
    }
    let mut frame = BytesMut::with_capacity(lines.len() + 5);
    frame.put_u8(TRAILERS);
    frame.put_u32(u32::try_from(lines.len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&lines);
    frame.freeze()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(convert: &mut impl Convert, pieces: &[&[u8]], trailers: Option<HeaderMap>) -> Result<(Vec<u8>, Option<Box<HeaderMap>>), Halt> {
        let mut out = Vec::new();
        for piece in pieces {
            convert.give(Bytes::copy_from_slice(piece));
            while let Some(data) = convert.take()? {
                out.extend_from_slice(&data);
            }
        }
        let mut trailers = trailers.map(Box::new);
        convert.end(&mut trailers)?;
        while let Some(data) = convert.take()? {
            out.extend_from_slice(&data);
        }
        Ok((out, trailers))
    }

    #[test]
    fn frames_are_padded_one_by_one_however_they_are_cut() {
        let frames = [&b"\0\0\0\0\x01a"[..], b"\0\0\0\0\0", b"\0\0\0\0\x04bcde"];
        let body = frames.concat();
        let expected: String = frames.iter().map(|f| STANDARD.encode(f)).collect();
        let status: HeaderMap = [(GRPC_STATUS, HeaderValue::from_static("0"))].into_iter().collect();
        let expected = expected + &STANDARD.encode(b"\x80\0\0\0\x0fgrpc-status:0\r\n");
        for size in 1..=body.len() {
            let pieces: Vec<&[u8]> = body.chunks(size).collect();
            let (out, trailers) = all(&mut ToWeb::new(true), &pieces, Some(status.clone())).unwrap();
            assert_eq!((String::from_utf8(out).unwrap(), trailers), (expected.clone(), None), "{size}");
        }
    }

    #[test]
    fn text_is_read_in_any_pieces_and_refused_when_it_is_none() {
        let text = [STANDARD.encode(b"\0\0\0\0\x01a"), STANDARD.encode(b"\0\0\0\0\x02bc")].concat();
        for size in 1..=text.len() {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            assert_eq!(all(&mut FromText::default(), &pieces, None).unwrap().0, b"\0\0\0\0\x01a\0\0\0\0\x02bc", "{size}");
        }
        for (bad, details) in [("AAA", details::GRPC_BASE64_DECODE_FAILED_BAD_SIZE), ("A*AA", details::GRPC_BASE64_DECODE_FAILED)] {
            let Err(Halt::Reply(reply)) = all(&mut FromText::default(), &[bad.as_bytes()], None) else { panic!("{bad}") };
            assert_eq!((reply.status.as_u16(), &*reply.details), (400, details));
        }
    }
}
