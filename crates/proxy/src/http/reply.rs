//! Responses that we make ourselves: texts and statuses as Envoy gives them, in gRPC's form for gRPC callers.
use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use lateen_telemetry::{ResponseFlags, details};

use super::h1::InvalidHead;
use super::headers;
use super::message::{Frame, Length, Response};
use super::{End, Exchange};
use crate::filter;
use crate::filter::http::body::Whole;

/// How long a caller may take over a reply, or the next piece of it.
const LONGEST: Duration = Duration::from_secs(15);

/// A local reply.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) body: Cow<'static, [u8]>,
    pub(crate) details: Cow<'static, str>,
    pub(crate) flags: ResponseFlags,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
    pub(crate) grpc_status: Option<u32>,
    /// Instead of plain text.
    pub(crate) content_type: Option<HeaderValue>,
    /// Filters do not see it: it takes the place of a response that they have seen.
    pub(crate) direct: bool,
}

impl Reply {
    pub(crate) fn new(
        status: u16,
        body: impl Into<Cow<'static, str>>,
        details: impl Into<Cow<'static, str>>,
        flags: ResponseFlags,
    ) -> Self {
        let body = match body.into() {
            Cow::Borrowed(text) => Cow::Borrowed(text.as_bytes()),
            Cow::Owned(text) => Cow::Owned(text.into_bytes()),
        };
        Self {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
            body,
            details: details.into(),
            flags,
            headers: Vec::new(),
            grpc_status: None,
            content_type: None,
            direct: false,
        }
    }

    #[must_use]
    pub(crate) fn with_header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.push((name, value));
        self
    }
}

/// gRPC's status for an HTTP status (grpc.io "HTTP to gRPC status code mapping").
pub(crate) fn grpc_status(status: StatusCode) -> u16 {
    grpc_status_of(status.as_u16())
}

/// [`grpc_status`] of a number.
pub(crate) fn grpc_status_of(status: u16) -> u16 {
    match status {
        400 => 13,
        401 => 16,
        403 => 7,
        404 => 12,
        429 | 502 | 503 | 504 => 14,
        _ => 2,
    }
}

/// Sends a local reply and ends the exchange.
pub(crate) async fn send(exchange: &mut Exchange<'_>, reply: Reply) {
    let info = &mut exchange.info;
    info.flags.insert(reply.flags);
    info.details = reply.details;
    let mut response = Response::new(reply.status);
    for (name, value) in reply.headers {
        // More than a map holds, which nobody means, are left out.
        let _ = response.headers.try_append(name, value);
    }
    let mut body = Bytes::from(reply.body.into_owned());
    let words = exchange.hcm.words.clone();
    if let Some(words) = &words {
        note_cluster(exchange);
        crate::router::finalize::response_headers(exchange, response.status, &mut response.headers);
        if let Some(kind) = &reply.content_type {
            headers::insert_if_absent(&mut response.headers, header::CONTENT_TYPE, || kind.clone());
        }
        words.apply(exchange, &mut response, &mut body);
    }
    let status = response.status;
    if exchange.info.grpc {
        // What would be the body is not told to who wants none.
        let message = if exchange.request.method == http::Method::HEAD { &[] } else { &*body };
        as_grpc(&mut response, status, reply.grpc_status, message);
        body = Bytes::new();
    }
    if words.is_some() {
        exchange.info.status = response.status.as_u16();
    } else {
        note_cluster(exchange);
        crate::router::finalize::response_headers(exchange, response.status, &mut response.headers);
    }
    if !body.is_empty() {
        // What the route says of the content is not contradicted.
        let kind = reply.content_type.unwrap_or(HeaderValue::from_static("text/plain"));
        headers::insert_if_absent(&mut response.headers, header::CONTENT_TYPE, || kind);
    }
    response.length = if body.is_empty() { Length::None } else { Length::Known(body.len() as u64) };
    let mut body = Whole(Some(body));
    if reply.direct {
        exchange.bodies = None;
    } else if exchange.hcm.holds_responses {
        exchange.timer.after(Some(LONGEST));
        let held = Box::pin(filter::http::on_response_held(exchange, &mut response, &mut body)).await;
        if let Err(End::Reply(mut other)) = held {
            // It takes the reply's place, and filters have seen one already (Envoy `sendDirectLocalReply`).
            other.direct = true;
            return Box::pin(send(exchange, *other)).await;
        }
    } else {
        filter::http::on_response(exchange, &mut response);
    }
    let bodiless = exchange.request.method == http::Method::HEAD || matches!(status.as_u16(), 204 | 304);
    // What is left of the request's body either has arrived and is dropped, or the connection ends:
    // the caller must hear of that before it sends the next request.
    let end = bodiless || matches!(response.length, Length::None | Length::Known(0));
    drain_arrived(exchange).await;
    if !exchange.down.request_done() {
        exchange.down.close_after();
    }
    exchange.send_head(&mut response, end);
    if !end && exchange.bodies.as_ref().is_some_and(|b| !b.response.is_empty()) {
        return Box::pin(flow(exchange, body)).await;
    }
    if !end {
        let body = body.0.unwrap_or_default();
        exchange.info.body_sent += body.len() as u64;
        exchange.down.send_data(body);
        exchange.down.send_end(None);
    }
    let down = &mut exchange.down;
    let timer = &mut exchange.timer;
    timer.after(Some(LONGEST));
    let _ = poll_fn(|cx| match down.poll_flush(cx) {
        Poll::Pending => timer.poll(cx).map(|()| Ok(())),
        ready => ready,
    })
    .await;
}

/// Sends a body through what filters make of it.
async fn flow(exchange: &mut Exchange<'_>, mut body: Whole) {
    let (down, timer, info) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info);
    let Some(bodies) = &mut exchange.bodies else { return };
    let mut sent = false;
    timer.after(Some(LONGEST));
    poll_fn(|cx| {
        while !sent && matches!(down.poll_room(cx), Poll::Ready(Ok(()))) {
            match bodies.response.poll_piece(cx, info, &mut body) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    info.body_sent += data.len() as u64;
                    down.send_data(data);
                    timer.after(Some(LONGEST));
                    continue;
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => down.send_end(Some(trailers)),
                Poll::Ready(None) => down.send_end(None),
                Poll::Ready(Some(Err(_))) => down.abort(),
                Poll::Pending => break,
            }
            sent = true;
        }
        match down.poll_flush(cx) {
            Poll::Ready(Err(_)) => Poll::Ready(()),
            Poll::Ready(Ok(())) if sent => Poll::Ready(()),
            _ => timer.poll(cx),
        }
    })
    .await;
}

/// A filter may answer before the router took the cluster: logs and metrics name it all the same.
fn note_cluster(exchange: &mut Exchange<'_>) {
    // A route that answers itself has no cluster, and neither has a redirect in front of one.
    if exchange.info.cluster.is_none()
        && exchange.info.details != details::DIRECT_RESPONSE
        && let Some(id) = exchange.info.route.as_ref().and_then(crate::router::lookup::fixed_cluster)
    {
        exchange.info.cluster = exchange.live.cluster(exchange.worker, id);
    }
}

/// Takes off the wire what of the body is there already, at most this much.
async fn drain_arrived(exchange: &mut Exchange<'_>) {
    const MOST: usize = 256 * 1024;
    if exchange.request.expects_continue {
        return;
    }
    let mut taken = 0;
    let down = &mut exchange.down;
    poll_fn(|cx| {
        while taken < MOST && !down.request_done() {
            match down.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => taken += data.len(),
                Poll::Ready(Some(Ok(Frame::Trailers(_))) | None | Some(Err(_))) | Poll::Pending => break,
            }
        }
        Poll::Ready(())
    })
    .await;
}

/// Trailers-only form: everything in the head.
fn as_grpc(response: &mut Response, status: StatusCode, code: Option<u32>, body: &[u8]) {
    response.status = StatusCode::OK;
    let before = response.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    response.headers.insert(headers::GRPC_STATUS, code.unwrap_or_else(|| u32::from(grpc_status(status))).into());
    let is_json = before.is_some_and(|kind| kind == "application/json");
    let body = body.strip_suffix(b"\n").filter(|_| is_json).unwrap_or(body);
    if !body.is_empty()
        && let Ok(message) = HeaderValue::from_bytes(&percent(body))
    {
        response.headers.insert(headers::GRPC_MESSAGE, message);
    }
}

/// gRPC's message encoding: bytes outside printable ASCII, and `%`, as `%XX`; the last of the printable ones too, as Envoy does.
pub(crate) fn percent(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(text.len());
    for byte in text {
        if (b' '..b'~').contains(byte) && *byte != b'%' {
            out.push(*byte);
        } else {
            out.extend_from_slice(format!("%{byte:02X}").as_bytes());
        }
    }
    out
}

/// The answer to bytes that are no request, with the details of Envoy's HTTP/1 codec.
pub(crate) fn malformed(why: InvalidHead) -> Reply {
    let (status, body, details) = match why {
        InvalidHead::TooLarge => (431, "Request Header Fields Too Large", "http1.headers_too_large"),
        InvalidHead::TooMany => (431, "Request Header Fields Too Large", "http1.too_many_headers"),
        InvalidHead::OldVersion => (426, "Upgrade Required", details::LOW_VERSION),
        InvalidHead::NoHost => (400, "", details::MISSING_HOST_HEADER),
        InvalidHead::Target => (400, "Bad Request", "http1.invalid_url"),
        InvalidHead::ConnectBody => (400, "Bad Request", "http1.body_disallowed"),
        InvalidHead::TransferEncoding => (400, "Bad Request", "http1.invalid_transfer_encoding"),
        InvalidHead::TwoLengths => (400, "Bad Request", "http1.content_length_and_chunked_not_allowed"),
        InvalidHead::Connection => (400, "Bad Request", "http1.connection_header_rejected"),
        InvalidHead::Characters => (400, "Bad Request", "http1.invalid_characters"),
        InvalidHead::Syntax | InvalidHead::Host | InvalidHead::ContentLength => (400, "Bad Request", CODEC_ERROR),
    };
    let flags = if why == InvalidHead::NoHost { ResponseFlags::NONE } else { ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR };
    Reply::new(status, body, details, flags)
}

/// The answer to a head that came over HTTP/2 and is no request.
pub(crate) fn malformed_http2(why: InvalidHead) -> Reply {
    let details = match why {
        InvalidHead::TooLarge | InvalidHead::TooMany => "http2.too_many_headers",
        InvalidHead::NoHost => details::MISSING_HOST_HEADER,
        _ => "http2.invalid.header.field",
    };
    Reply { details: details.into(), ..malformed(why) }
}

/// The answer to a body whose framing is broken.
pub(crate) fn malformed_body() -> Reply {
    Reply::new(400, "Bad Request", CODEC_ERROR, ResponseFlags::DOWNSTREAM_PROTOCOL_ERROR)
}

/// The answer to a head that did not come in time.
pub(crate) fn late_head() -> Reply {
    Reply::new(408, "request header timeout", details::REQUEST_HEADER_TIMEOUT, ResponseFlags::NONE)
}

const CODEC_ERROR: &str = "http1.codec_error";
