//! The answer on its way to the caller, while the rest of the request may still be going up.
use std::borrow::Cow;
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use lateen_telemetry::details;
use lateen_telemetry::envoy_names::{cluster as cluster_names, http as names};
use tokio::time::Instant;

use super::attempt::{Answered, note_received};
use super::finalize;
use super::forward::Forwarding;
use super::limits::Limits;
use super::outcome::{Failed, Failure};
use crate::filter;
use crate::filter::http::body::{Caller, Halt, Origin, Piece, Source};
use crate::http::headers::{SERVICE_TIME, numeric};
use crate::http::message::{Frame, Length, Response, Version};
use crate::http::reply::Reply;
use crate::http::stream::{StreamError, Upstream};
use crate::http::{End, Exchange, Info};
use crate::upstream::Lease;

/// How long one direction of a tunnel may be silent after the other has ended, where nothing else limits it.
const HALF_CLOSED: Duration = Duration::from_secs(3600);

enum Broken {
    /// The caller went away.
    Caller,
    Upstream(Failed),
    /// A filter would answer otherwise, which is too late now.
    Filter(Box<Reply>),
}

pub(super) async fn run(exchange: &mut Exchange<'_>, forwarding: &mut Forwarding, mut answered: Box<Answered>) -> Result<(), End> {
    let Answered { response, lease, began } = &mut *answered;
    let arrived = exchange.info.moment;
    exchange.info.response_at = Some(arrived.saturating_duration_since(exchange.info.start));
    exchange.info.details = Cow::Borrowed(details::VIA_UPSTREAM);
    let upgraded = response.upgrade.is_some() && exchange.request.upgrade.is_some();
    let suppress = exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers;
    // With all tries and what lay between them; before the request is complete the time would say how long the caller took.
    if !suppress && let Some(received) = forwarding.received.filter(|_| exchange.request.upgrade.is_none()) {
        let millis = arrived.saturating_duration_since(received).as_millis();
        response.headers.insert(SERVICE_TIME, numeric(u64::try_from(millis).unwrap_or(u64::MAX)));
    }
    finalize::affinity_cookies(exchange, &mut response.headers);
    finalize::response_headers(exchange, response.status, &mut response.headers);
    if exchange.hcm.holds_responses {
        Box::pin(held(exchange, forwarding, response, lease)).await?;
        exchange.info.moment = Instant::now();
    } else {
        filter::http::on_response(exchange, response);
    }
    if upgraded {
        // What follows belongs to another protocol.
        exchange.bodies = exchange.bodies.take().and_then(|bodies| bodies.into_tunnel());
        forwarding.body.start_raw();
        forwarding.received = None;
        lease.upstream.start_raw();
    } else {
        forwarding.body.forget();
    }
    let _upgrades = upgraded.then(|| exchange.hcm.stats.hold(names::DOWNSTREAM_CX_UPGRADES_ACTIVE));
    let end = !upgraded && (response.length == Length::None || response.length == Length::Known(0));
    exchange.send_head(response, end);
    let result = pump(exchange, forwarding, lease, upgraded).await;
    match result {
        Ok(Ended { upstream_first, waited }) => {
            if waited {
                exchange.info.moment = Instant::now();
            }
            let ended = *exchange.info.ended.insert(exchange.info.moment);
            if let Some(trailers) = &exchange.info.response_trailers {
                began.cluster.report_trailers(exchange.worker, began.active.host(), trailers, &mut forwarding.load_told);
            }
            if upgraded {
                note_end(exchange, forwarding, lease, upstream_first);
            }
            if forwarding.body.sent() || upgraded {
                answered.lease.finish(answered.began.cluster.cluster.config.max_requests_per_connection, ended);
            }
            Ok(())
        }
        // Both ends of an upgraded connection just stop; that is no failure.
        Err(Broken::Caller) if upgraded => {
            began.cluster.stats.inc(cluster_names::UPSTREAM_RQ_CANCELLED);
            exchange.note_gone();
            Ok(())
        }
        Err(broken) => {
            match &broken {
                Broken::Upstream(failed) if failed.failure == Failure::StreamIdle => {
                    exchange.hcm.stats.inc(names::DOWNSTREAM_RQ_IDLE_TIMEOUT);
                }
                Broken::Upstream(_) if upgraded => exchange.down.abort_tunnel(),
                _ => {}
            }
            Err(cut(exchange, forwarding, broken))
        }
    }
}

/// How an exchange ends that broke after its response had begun.
fn cut(exchange: &mut Exchange<'_>, forwarding: &Forwarding, broken: Broken) -> End {
    let (flags, details) = match broken {
        Broken::Caller => {
            forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_CANCELLED);
            return End::Gone;
        }
        Broken::Upstream(failed) => {
            note_late(exchange, forwarding, &failed);
            (failed.failure.flags(), failed.after_response())
        }
        Broken::Filter(reply) => (reply.flags, reply.details),
    };
    exchange.hcm.stats.inc(names::RQ_RESET_AFTER_DOWNSTREAM_RESPONSE_STARTED);
    exchange.info.flags.insert(flags);
    exchange.info.details = details;
    End::Cut
}

/// A response that did not end in time counts as late as one that did not begin.
fn note_late(exchange: &Exchange<'_>, forwarding: &Forwarding, failed: &Failed) {
    if failed.failure == Failure::Timeout {
        forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_TIMEOUT);
        if let Some(host) = &exchange.info.host {
            host.counters.rq_timeout.fetch_add(1, Relaxed);
        }
    }
}

/// Lets filters see the response that may wait for its body before its head goes on.
async fn held(exchange: &mut Exchange<'_>, forwarding: &mut Forwarding, response: &mut Response, lease: &mut Lease) -> Result<(), End> {
    let limits = Limits::while_relaying(forwarding, exchange.info.moment);
    exchange.timer.set(limits.next());
    let mut coming = Coming { forwarding: &mut *forwarding, upstream: &mut lease.upstream, limits, ended: false, broken: None };
    let Err(end) = filter::http::on_response_held(exchange, response, &mut coming).await else { return Ok(()) };
    match (coming.broken, end) {
        (Some(Broken::Upstream(failed)), _) => Err(End::Reply(Box::new(in_place(exchange, forwarding, &failed)))),
        (Some(broken), _) => Err(cut(exchange, forwarding, broken)),
        // It takes the response's place, and filters have seen one already.
        (None, End::Reply(mut reply)) => {
            reply.direct = true;
            Err(End::Reply(reply))
        }
        (None, end) => Err(end),
    }
}

/// The answer to a caller that has not heard of the response which broke (Envoy `DownstreamFilterManager::sendLocalReply`).
fn in_place(exchange: &Exchange<'_>, forwarding: &Forwarding, failed: &Failed) -> Reply {
    let stats = &exchange.hcm.stats;
    stats.inc(names::RQ_RESET_AFTER_DOWNSTREAM_RESPONSE_STARTED);
    if failed.failure == Failure::StreamIdle {
        stats.inc(names::DOWNSTREAM_RQ_IDLE_TIMEOUT);
    }
    note_late(exchange, forwarding, failed);
    let mut reply = failed.reply(false, forwarding.body.complete(), forwarding.timeouts.quiet);
    reply.details = failed.after_response();
    reply.direct = true;
    reply
}

/// The request's body goes on up while the response comes; says whether anything moved. When that was the end of it the time for
/// the response begins, in these limits where it matters still.
fn send_on(
    forwarding: &mut Forwarding,
    cx: &mut Context<'_>,
    info: &mut Info,
    caller: &mut Caller<'_>,
    upstream: &mut Upstream,
    limits: Option<&mut Limits>,
) -> Result<bool, Broken> {
    if forwarding.body.sent() {
        return Ok(false);
    }
    let was_complete = forwarding.body.complete();
    let moved = forwarding.body.poll(cx, info, caller, upstream).map_err(|halt| match halt {
        Halt::Stream(_) => Broken::Caller,
        Halt::Reply(reply) => Broken::Filter(reply),
    })?;
    if forwarding.body.broken() {
        caller.let_go(cx);
    }
    if forwarding.body.complete() && !was_complete {
        let now = Instant::now();
        match limits {
            Some(limits) => {
                note_received(forwarding, info, limits, now);
                limits.request_complete(&forwarding.timeouts, now);
                caller.timer.set(limits.next());
            }
            None => _ = forwarding.received.get_or_insert(now),
        }
    }
    Ok(moved)
}

/// All of the response is here: how long that took since all of the request was (Envoy `Filter::onUpstreamComplete`).
fn note_complete(forwarding: &Forwarding, info: &Info) {
    let Some(received) = forwarding.received.filter(|_| !info.health_check) else { return };
    forwarding.cluster.stats.record(cluster_names::UPSTREAM_RQ_TIME, info.moment.saturating_duration_since(received).as_micros() as u64);
}

/// A response whose head is held back: while its body is waited for the request's goes on up.
struct Coming<'a> {
    forwarding: &'a mut Forwarding,
    upstream: &'a mut Upstream,
    limits: Limits,
    ended: bool,
    broken: Option<Broken>,
}

impl Coming<'_> {
    /// The request's body goes on up.
    fn send(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Result<(), Broken> {
        let limits = Some(&mut self.limits).filter(|_| !self.ended);
        send_on(self.forwarding, cx, info, caller, self.upstream, limits).map(|_| ())
    }

    fn poll_over(&mut self, cx: &mut Context<'_>, caller: &mut Caller<'_>) -> Poll<Broken> {
        if self.forwarding.body.complete() && caller.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Broken::Caller);
        }
        caller.timer.poll(cx).map(|()| Broken::Upstream(self.limits.expired(Instant::now()).into()))
    }

    fn poll_all(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Poll<Result<Piece, Broken>> {
        self.send(cx, info, caller)?;
        match Source::poll_piece(self.upstream, cx, info) {
            Poll::Ready(Some(Err(Halt::Stream(e)))) => Poll::Ready(Err(Broken::Upstream(e.into()))),
            Poll::Ready(piece) => {
                self.limits.touch();
                caller.timer.set(self.limits.next());
                Poll::Ready(Ok(piece))
            }
            Poll::Pending => self.poll_over(cx, caller).map(Err),
        }
    }

    fn halt(&mut self, broken: Broken) -> Halt {
        match broken {
            Broken::Filter(reply) => Halt::Reply(reply),
            broken => {
                self.broken = Some(broken);
                Halt::Stream(StreamError::Closed)
            }
        }
    }
}

impl Origin for Coming<'_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Poll<Piece> {
        if self.ended {
            return Poll::Ready(None);
        }
        match ready!(self.poll_all(cx, info, caller)) {
            Ok(piece) => {
                self.ended = !matches!(piece, Some(Ok(Frame::Data(_))));
                if self.ended {
                    // The upstream was in time.
                    self.limits.deadline = None;
                    caller.timer.set(self.limits.next());
                }
                Poll::Ready(piece)
            }
            Err(broken) => Poll::Ready(Some(Err(self.halt(broken)))),
        }
    }

    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Poll<Halt> {
        let broken = match self.send(cx, info, caller) {
            Ok(()) => ready!(self.poll_over(cx, caller)),
            Err(broken) => broken,
        };
        Poll::Ready(self.halt(broken))
    }
}

/// What the log says of a tunnel that came to its end. An HTTP/1 connection has no end of a message to tell from its own.
fn note_end(exchange: &mut Exchange<'_>, forwarding: &Forwarding, lease: &Lease, upstream_first: bool) {
    if upstream_first && matches!(lease.upstream, Upstream::H1(_)) {
        let ended = Failed::from(Failure::ConnectionTermination);
        exchange.info.flags.insert(ended.failure.flags());
        exchange.info.details = ended.after_response();
    } else if !upstream_first && forwarding.body.complete() && exchange.request.version != Version::Http2 {
        exchange.note_gone();
    }
}

/// How the relaying came to its end.
struct Ended {
    /// The upstream ended it before the caller had sent all.
    upstream_first: bool,
    /// The clock was last read in an earlier turn of the event loop.
    waited: bool,
}

/// Moves bytes until the response is over, and of a CONNECT's tunnel both directions.
async fn pump(exchange: &mut Exchange<'_>, forwarding: &mut Forwarding, lease: &mut Lease, upgraded: bool) -> Result<Ended, Broken> {
    let mut limits = Limits::while_relaying(forwarding, exchange.info.moment);
    // TCP has half-closed connections, and so have its tunnels.
    let tunnel = upgraded && exchange.request.is_connect();
    if upgraded {
        limits.deadline = None;
    }
    exchange.timer.set(limits.next());
    let (down, timer, info) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info);
    let (request, mut response) = match exchange.bodies.as_deref_mut() {
        None => (None, None),
        Some(bodies) => (Some(&mut bodies.request), Some(&mut bodies.response)),
    };
    let mut caller = Caller { down, timer, chain: request };
    let (mut answered, mut upstream_first, mut flushing) = (false, false, false);
    // A piece that there is no room for yet: the end after what fits is seen without room too, so that only the caller is waited for.
    let mut held = None;
    // The clock is read once in a turn at most, and not in that of the head.
    let (mut turns, mut read_in) = (0u32, 1u32);
    poll_fn(|cx| {
        turns = turns.saturating_add(1);
        // Of a tunnel, and of a response that only waits for its caller to take it, the end of the request changes nothing.
        let of_request = Some(&mut limits).filter(|_| !upgraded && !flushing);
        let mut moved = send_on(forwarding, cx, info, &mut caller, &mut lease.upstream, of_request)?;
        // What is still on its way up when all has been handed over.
        let up_flushed = upgraded && lease.upstream.poll_flush(cx).is_ready();
        while !answered {
            let room = match caller.down.poll_room(cx) {
                Poll::Ready(Ok(())) => true,
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Caller)),
                Poll::Pending if held.is_some() => break,
                Poll::Pending => false,
            };
            if let Some(data) = held.take() {
                caller.down.send_data(data);
                continue;
            }
            let piece = match &mut response {
                None => lease.upstream.poll_frame(cx).map(|piece| piece.map(|p| p.map_err(Halt::Stream))),
                Some(chain) => chain.poll_piece(cx, info, &mut lease.upstream),
            };
            match piece {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    moved = true;
                    info.body_sent += data.len() as u64;
                    // A chain counts what goes into it.
                    if let Some(call) = &mut info.grpc_call
                        && response.is_none()
                    {
                        call.response.push(&data);
                    }
                    if room {
                        caller.down.send_data(data);
                    } else {
                        held = Some(data);
                    }
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    if info.grpc {
                        info.grpc_status =
                            crate::http::headers::number(&trailers, &crate::http::headers::GRPC_STATUS).and_then(|n| u16::try_from(n).ok());
                    }
                    info.response_trailers = Some(trailers.clone());
                    caller.down.send_end(Some(trailers));
                    answered = true;
                }
                Poll::Ready(None) => {
                    caller.down.send_end(None);
                    answered = true;
                    upstream_first = !forwarding.body.complete();
                    if tunnel {
                        limits.bound_idle(HALF_CLOSED);
                    }
                }
                Poll::Ready(Some(Err(Halt::Stream(e)))) => return Poll::Ready(Err(Broken::Upstream(e.into()))),
                Poll::Ready(Some(Err(Halt::Reply(reply)))) => return Poll::Ready(Err(Broken::Filter(reply))),
                Poll::Pending => break,
            }
            if answered {
                if turns > read_in {
                    info.moment = Instant::now();
                    read_in = turns;
                }
                note_complete(forwarding, info);
            }
        }
        match caller.down.poll_flush(cx) {
            Poll::Ready(Ok(())) if answered && (!tunnel || forwarding.body.broken() || (forwarding.body.sent() && up_flushed)) => {
                return Poll::Ready(Ok(Ended { upstream_first, waited: turns > read_in }));
            }
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Caller)),
            Poll::Pending if answered && !upgraded && !flushing => {
                flushing = true;
                limits = Limits::while_flushing(forwarding.timeouts.flush);
                caller.timer.set(limits.next());
            }
            _ => {}
        }
        if forwarding.body.complete() && !upgraded && caller.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Broken::Caller));
        }
        if moved && !flushing && limits.has_idle() {
            limits.touch();
            caller.timer.set(limits.next());
        }
        caller.timer.poll(cx).map(|()| Err(Broken::Upstream(limits.expired(Instant::now()).into())))
    })
    .await
}
