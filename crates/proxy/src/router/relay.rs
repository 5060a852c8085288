//! The answer on its way to the caller, while the rest of the request may still be going up.
use std::borrow::Cow;
use std::future::poll_fn;
use std::task::Poll;

use http::HeaderValue;
use lateen_telemetry::envoy_names::{cluster as cluster_names, http as names};
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::attempt::{Began, Limits};
use super::finalize;
use super::forward::Forwarding;
use super::outcome::Failed;
use crate::filter;
use crate::http::headers::SERVICE_TIME;
use crate::http::message::{Frame, Length, Response};
use crate::http::{End, Exchange};
use crate::upstream::Lease;

enum Broken {
    /// The caller went away.
    Caller,
    Upstream(Failed),
}

pub(super) async fn run(
    exchange: &mut Exchange<'_>,
    forwarding: &mut Forwarding,
    mut response: Response,
    mut lease: Lease,
    began: Began,
) -> Result<(), End> {
    let arrived = exchange.info.moment;
    exchange.info.response_at = Some(arrived.saturating_duration_since(exchange.info.start));
    exchange.info.details = Cow::Borrowed(details::VIA_UPSTREAM);
    let upgraded = response.upgrade.is_some() && exchange.request.upgrade.is_some();
    if exchange.info.peer == Default::default() && !exchange.hcm.inbound {
        exchange.info.peer = forwarding.cluster.peer_of(exchange.worker, began.active.host());
    }
    filter::http::on_response(exchange, &mut response);
    let suppress = exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers;
    // Before the request is complete the time would say how long the caller took.
    if !suppress && forwarding.body.complete() && exchange.request.upgrade.is_none() {
        let millis = arrived.saturating_duration_since(began.at).as_millis();
        response.headers.insert(SERVICE_TIME, HeaderValue::from(u64::try_from(millis).unwrap_or(u64::MAX)));
    }
    finalize::response_headers(exchange, response.status, &mut response.headers);
    if upgraded {
        forwarding.body.start_raw();
        lease.upstream.start_raw();
        exchange.hcm.stats.inc(names::DOWNSTREAM_CX_UPGRADES_TOTAL);
    } else {
        forwarding.body.forget();
    }
    let _upgrades = upgraded.then(|| exchange.hcm.stats.hold(names::DOWNSTREAM_CX_UPGRADES_ACTIVE));
    let end = !upgraded && (response.length == Length::None || response.length == Length::Known(0));
    exchange.send_head(response, end);
    let result = pump(exchange, forwarding, &mut lease, upgraded).await;
    match result {
        Ok(()) => {
            let ended = *exchange.info.ended.insert(Instant::now());
            if upgraded && forwarding.body.complete() {
                caller_left(exchange);
            }
            if forwarding.body.sent() || upgraded {
                lease.finish(forwarding.cluster.cluster.config.max_requests_per_connection, ended);
            }
            Ok(())
        }
        Err(Broken::Caller) => {
            forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_CANCELLED);
            // Both ends of an upgraded connection just stop; that is no failure.
            if upgraded {
                caller_left(exchange);
                return Ok(());
            }
            Err(End::Gone)
        }
        Err(Broken::Upstream(_)) if upgraded => Err(End::Cut),
        Err(Broken::Upstream(failed)) => {
            exchange.hcm.stats.inc(names::RQ_RESET_AFTER_DOWNSTREAM_RESPONSE_STARTED);
            exchange.info.flags.insert(failed.failure.flags());
            exchange.info.details = failed.after_response();
            Err(End::Cut)
        }
    }
}

/// Of an upgraded connection the log tells who ended it.
fn caller_left(exchange: &mut Exchange<'_>) {
    exchange.info.flags.insert(ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION);
    exchange.info.details = Cow::Borrowed(details::DOWNSTREAM_REMOTE_DISCONNECT);
}

async fn pump(exchange: &mut Exchange<'_>, forwarding: &mut Forwarding, lease: &mut Lease, upgraded: bool) -> Result<(), Broken> {
    let mut limits = Limits::while_relaying(forwarding, exchange.info.moment);
    if upgraded {
        limits.deadline = None;
    }
    exchange.timer.set(limits.next());
    let (down, timer, info) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info);
    let mut answered = false;
    poll_fn(|cx| {
        let mut moved = false;
        if !forwarding.body.sent() {
            match forwarding.body.poll(cx, down, &mut lease.upstream) {
                Ok(some) => moved |= some,
                Err(_) => return Poll::Ready(Err(Broken::Caller)),
            }
        } else if upgraded {
            let _ = lease.upstream.poll_flush(cx);
        }
        while !answered {
            match down.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Caller)),
                Poll::Pending => break,
            }
            match lease.upstream.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    moved = true;
                    info.body_sent += data.len() as u64;
                    if let Some(call) = &mut info.grpc_call {
                        call.response.push(&data);
                    }
                    down.send_data(data);
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    if info.grpc {
                        info.grpc_status =
                            crate::http::headers::number(&trailers, &crate::http::headers::GRPC_STATUS).and_then(|n| u16::try_from(n).ok());
                    }
                    info.response_trailers = Some(trailers.clone());
                    down.send_end(Some(trailers));
                    answered = true;
                }
                Poll::Ready(None) => {
                    down.send_end(None);
                    answered = true;
                }
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(Broken::Upstream(e.into()))),
                Poll::Pending => break,
            }
        }
        match down.poll_flush(cx) {
            Poll::Ready(Ok(())) if answered => return Poll::Ready(Ok(())),
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Caller)),
            _ => {}
        }
        if forwarding.body.complete() && !upgraded && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::Caller));
        }
        if moved && limits.has_idle() {
            limits.touch();
            timer.set(limits.next());
        }
        timer.poll(cx).map(|()| Err(Broken::Upstream(limits.expired(Instant::now()).into())))
    })
    .await
}
