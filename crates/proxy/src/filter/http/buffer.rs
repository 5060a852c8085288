//! Requests that wait until they are complete (Envoy buffer filter).
use std::sync::Arc;

use lateen_snapshot::http::{Buffer, BufferPerRoute};

use super::body::hold;
use super::{Step, per_route};
use crate::http::{End, Exchange};

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Buffer>) -> Result<Step, End> {
    // An upgraded connection has no end to wait for.
    if !exchange.request.has_body() || exchange.request.upgrade.is_some() {
        return Ok(Step::Continue);
    }
    let most = match per_route(exchange, |p| p.buffer.as_ref()).as_deref() {
        Some(BufferPerRoute::Disabled) => return Ok(Step::Continue),
        Some(BufferPerRoute::Override(other)) => other.max_request_bytes,
        None => config.max_request_bytes,
    } as usize;
    exchange.bodies().kept = Some(most);
    let held = Box::pin(hold::request(exchange, most)).await?;
    if !held.is_complete() {
        return Ok(Step::Reply(hold::request_too_large(exchange)));
    }
    exchange.put_back_request(held);
    Ok(Step::Continue)
}
