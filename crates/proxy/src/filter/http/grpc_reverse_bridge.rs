//! gRPC calls for upstreams that speak plain HTTP (Envoy grpc_http1_reverse_bridge filter): one message each way, without its
//! frame where that is asked for, and a status made of the HTTP status.
use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use lateen_snapshot::http::GrpcReverseBridge;
use lateen_telemetry::{ResponseFlags, details};

use super::body::{Convert, Halt, Origin, Piecewise, hold};
use super::{Step, has_body, per_route};
use crate::http::headers::GRPC_STATUS;
use crate::http::message::{Length, Response, is_grpc};
use crate::http::reply::{self, Reply};
use crate::http::{End, Exchange};

/// Before each message: a flag and its length.
const FRAME: usize = 5;
const OK: u16 = 0;
const UNKNOWN: u32 = 2;
const INTERNAL: u32 = 13;

/// The caller's content type, to be given back to it.
struct Bridged(HeaderValue);

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<GrpcReverseBridge>, index: usize) -> Result<Step, End> {
    let off = per_route(exchange, |p| p.grpc_reverse_bridge_disabled.as_ref());
    let request = &mut exchange.request;
    if !request.has_body() || off.as_deref() == Some(&true) || !is_grpc(&request.headers) {
        return Ok(Step::Continue);
    }
    let Some(kind) = request.headers.insert(CONTENT_TYPE, config.content_type.clone()) else { return Ok(Step::Continue) };
    request.headers.insert(ACCEPT, config.content_type.clone());
    exchange.bodies().note(index, Bridged(kind));
    if config.withhold_frames {
        let length = exchange.request.length;
        exchange.change_request_body(Piecewise::new(Unframe::default()), true);
        if let Length::Known(n) = length {
            exchange.request.length = Length::Known(n.saturating_sub(FRAME as u64));
        }
    }
    exchange.refresh_route()?;
    Ok(Step::Continue)
}

pub(super) async fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<GrpcReverseBridge>,
    index: usize,
    response: &mut Response,
    body: &mut dyn Origin,
) -> Result<(), End> {
    let Some(Bridged(kind)) = exchange.noted(index) else { return Ok(()) };
    let kind = kind.clone();
    if response.headers.get(CONTENT_TYPE) != Some(&config.content_type) {
        return Err(failed(UNKNOWN, bad_content_type(response), details::GRPC_BRIDGE_CONTENT_TYPE_WRONG));
    }
    response.headers.insert(CONTENT_TYPE, kind);
    let status = if response.status == http::StatusCode::OK { OK } else { reply::grpc_status(response.status) };
    let follows = has_body(exchange, response);
    response.status = http::StatusCode::OK;
    let mut head = None;
    if config.withhold_frames {
        let length = match (&config.size_header, follows) {
            (Some(name), _) => match response.headers.get(name).and_then(first_number) {
                Some(length) => length,
                None => {
                    let message = "envoy reverse bridge: upstream did not set content length".to_owned();
                    return Err(failed(INTERNAL, message, details::GRPC_BRIDGE_CONTENT_LENGTH_MISSING));
                }
            },
            (None, false) => 0,
            (None, true) => {
                let limit = exchange.conn.listener.listener.per_connection_buffer_limit as usize;
                let held = Box::pin(hold::response(exchange, body, limit)).await?;
                if !held.is_complete() {
                    return Err(hold::response_too_large(exchange).into());
                }
                let length = held.len() as u32;
                exchange.put_back_response(held);
                length
            }
        };
        response.length = Length::Known(u64::from(length) + FRAME as u64);
        head = Some(length);
    } else if !follows {
        return Ok(());
    }
    response.headers.remove(CONTENT_LENGTH);
    exchange.change_response_body(Piecewise::new(Frame { status, head, left: head.map(u64::from), data: Bytes::new() }));
    Ok(())
}

fn failed(status: u32, message: String, details: &'static str) -> End {
    let mut reply = Reply::new(200, message, details, ResponseFlags::NONE);
    reply.grpc_status = Some(status);
    reply.into()
}

fn bad_content_type(response: &Response) -> String {
    let status = response.status.as_u16();
    match response.headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()) {
        Some(kind) => format!("envoy reverse bridge: upstream responded with unsupported content-type {kind}, status code {status}"),
        None => format!("envoy reverse bridge: upstream responded with no content-type header, status code {status}"),
    }
}

fn first_number(value: &HeaderValue) -> Option<u32> {
    value.to_str().ok()?.split(',').next()?.trim().parse().ok()
}

/// A request without the frame of its message.
#[derive(Default)]
struct Unframe {
    taken: usize,
    data: Bytes,
}

impl Convert for Unframe {
    fn give(&mut self, mut data: Bytes) {
        let part = (FRAME - self.taken).min(data.len());
        let _ = data.split_to(part);
        self.taken += part;
        self.data = data;
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        let data = std::mem::take(&mut self.data);
        Ok((!data.is_empty()).then_some(data))
    }

    fn end(&mut self, _: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        if self.taken == FRAME {
            return Ok(());
        }
        let mut reply = Reply::new(200, "invalid request body", details::GRPC_BRIDGE_DATA_TOO_SMALL, ResponseFlags::NONE);
        reply.grpc_status = Some(UNKNOWN);
        Err(Halt::Reply(Box::new(reply)))
    }
}

/// A response with the frame of its message and the call's status behind it.
struct Frame {
    status: u16,
    /// The message's length, before its frame was sent.
    head: Option<u32>,
    /// What of the message is still to come.
    left: Option<u64>,
    data: Bytes,
}

impl Convert for Frame {
    fn give(&mut self, data: Bytes) {
        // More than was said wraps to a number that never becomes zero.
        self.left = self.left.map(|left| left.wrapping_sub(data.len() as u64));
        self.data = data;
    }

    fn take(&mut self) -> Result<Option<Bytes>, Halt> {
        if let Some(length) = self.head.take() {
            let mut frame = BytesMut::with_capacity(FRAME);
            frame.put_u8(0);
            frame.put_u32(length);
            return Ok(Some(frame.freeze()));
        }
        let data = std::mem::take(&mut self.data);
        Ok((!data.is_empty()).then_some(data))
    }

    fn end(&mut self, trailers: &mut Option<Box<HeaderMap>>) -> Result<(), Halt> {
        if self.left.is_some_and(|left| left != 0) {
            let message = "envoy reverse bridge: upstream set incorrect content length";
            let mut reply = Reply::new(200, message, details::GRPC_BRIDGE_CONTENT_LENGTH_WRONG, ResponseFlags::NONE);
            reply.grpc_status = Some(INTERNAL);
            return Err(Halt::Reply(Box::new(reply)));
        }
        trailers.get_or_insert_default().insert(GRPC_STATUS, self.status.into());
        Ok(())
    }
}
