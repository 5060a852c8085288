//! A caller's HTTP connection: which version it speaks, one request after the other, its end.
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use lateen_core::recycle::buffers;
use lateen_snapshot::http::Codec;
use lateen_telemetry::envoy_names::http as names;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::h1::H1Server;
use super::h2;
use super::message::Request;
use super::reply::{self, Reply};
use super::stream::Downstream;
use super::{Exchange, Hcm};
use crate::http::h1::NoRequest;
use crate::io::{Io, Timer, Wire, longer};
use crate::listener::Conn;
use crate::worker::{DRAIN_IDLE, Worker};

const PREFACE: &[u8] = lateen_http2::PREFACE;
/// A request's head must be complete this long after its first byte, unless configured: slow senders would
/// otherwise hold connections for nothing.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);

/// Serves a connection to its end.
pub(crate) async fn serve(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, io: Io) {
    let stats = &hcm.stats;
    stats.inc(names::DOWNSTREAM_CX_TOTAL);
    let _active = stats.hold(names::DOWNSTREAM_CX_ACTIVE);
    let _tls = conn.is_tls().then(|| {
        stats.inc(names::DOWNSTREAM_CX_SSL_TOTAL);
        stats.hold(names::DOWNSTREAM_CX_SSL_ACTIVE)
    });
    match version(hcm, conn, io).await {
        Some((io, true, ahead)) => {
            stats.inc(names::DOWNSTREAM_CX_HTTP2_TOTAL);
            let _active = stats.hold(names::DOWNSTREAM_CX_HTTP2_ACTIVE);
            Box::pin(h2::serve(worker, hcm, conn, io, ahead)).await;
        }
        Some((io, false, ahead)) => {
            stats.inc(names::DOWNSTREAM_CX_HTTP1_TOTAL);
            let _active = stats.hold(names::DOWNSTREAM_CX_HTTP1_ACTIVE);
            serve_h1(worker, hcm, conn, io, ahead).await;
        }
        None => {}
    }
    stats.inc(names::DOWNSTREAM_CX_DESTROY);
    stats.record(names::DOWNSTREAM_CX_LENGTH_MS, conn.start.elapsed().as_micros() as u64);
}

/// Whether the caller speaks HTTP/2, and what had to be read to know.
async fn version(hcm: &Hcm, conn: &Conn, mut io: Io) -> Option<(Io, bool, BytesMut)> {
    match hcm.config.codec {
        Codec::Http1 => return Some((io, false, BytesMut::new())),
        Codec::Http2 => return Some((io, true, BytesMut::new())),
        Codec::Auto => {}
    }
    match conn.tls.as_ref().and_then(|t| t.alpn.as_deref()) {
        Some(b"h2" | b"istio-h2") => return Some((io, true, BytesMut::new())),
        Some(b"http/1.1" | b"http/1.0" | b"istio-http/1.1" | b"istio-http/1.0") => return Some((io, false, BytesMut::new())),
        _ => {}
    }
    let mut ahead = BytesMut::new();
    let limit = hcm.config.idle_timeout.unwrap_or(Duration::from_secs(3600));
    loop {
        let common = ahead.len().min(PREFACE.len());
        if ahead[..common] != PREFACE[..common] {
            return Some((io, false, ahead));
        }
        if common == PREFACE.len() {
            return Some((io, true, ahead));
        }
        // One byte tells most connections apart, and nothing is held for one that sends none.
        if ahead.is_empty() {
            ahead = buffers::take();
        }
        match tokio::time::timeout(limit, io.read_buf(&mut ahead)).await {
            Ok(Ok(n)) if n > 0 => {}
            _ => return None,
        }
    }
}

/// When the connection is to end however busy it is.
pub(super) fn ends_at(worker: &Worker, hcm: &Hcm, conn: &Conn) -> Option<Instant> {
    let limit = hcm.config.max_connection_duration?;
    conn.start.checked_add(longer(limit, hcm.config.max_connection_duration_jitter_percent, worker.roll64()))
}

async fn serve_h1(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, io: Io, ahead: BytesMut) {
    let mut wire = Wire::new(io);
    wire.input = ahead;
    let mut down = Downstream::H1(Box::new(H1Server::new(wire, hcm.limits, conn.is_tls())));
    let mut timer = Timer::default();
    let config = &hcm.config;
    let ends = ends_at(worker, hcm, conn);
    let mut drain = None;
    let mut served = 0u32;
    let mut idle_since = Instant::now();
    loop {
        let Downstream::H1(h1) = &mut down else { return };
        let mut draining = conn.draining(worker);
        let mut head_since = None;
        let next = poll_fn(|cx| {
            if drain.is_none() {
                drain = Some((conn.chain.drain.register(cx), worker.drain.register(cx)));
            }
            if let Poll::Ready(request) = h1.poll_request(cx) {
                return Poll::Ready(Some(request));
            }
            draining |= conn.draining(worker);
            let deadline = if h1.in_head() {
                let since = *head_since.get_or_insert_with(Instant::now);
                since.checked_add(config.request_headers_timeout.unwrap_or(HEAD_TIMEOUT))
            } else {
                let idle = config.idle_timeout.and_then(|limit| idle_since.checked_add(limit));
                // A request may be on its way of a caller that was not told yet, however long it had been silent.
                let drained = conn.draining_since(worker).map(|since| since.max(idle_since) + DRAIN_IDLE);
                [idle, drained, ends].into_iter().flatten().min()
            };
            timer.set(deadline);
            timer.poll(cx).map(|()| None)
        })
        .await;
        timer.set(None);
        let request = match next {
            Some(Ok(request)) => request,
            Some(Err(NoRequest::Closed | NoRequest::Io)) => {
                hcm.stats.inc(names::DOWNSTREAM_CX_DESTROY_REMOTE);
                return;
            }
            Some(Err(NoRequest::Invalid(why))) => {
                hcm.stats.inc(names::DOWNSTREAM_CX_PROTOCOL_ERROR);
                tracing::debug!("a request was refused: {why}");
                // Apart, so that a connection between requests holds no room for it.
                return Box::pin(refuse(worker, hcm, conn, &mut down, &mut timer, reply::malformed(why))).await;
            }
            None => {
                if head_since.is_some() {
                    hcm.stats.inc(names::DOWNSTREAM_RQ_HEADER_TIMEOUT);
                    return Box::pin(refuse(worker, hcm, conn, &mut down, &mut timer, reply::late_head())).await;
                }
                hcm.stats.inc(if draining { names::DOWNSTREAM_CX_DRAIN_CLOSE } else { names::DOWNSTREAM_CX_IDLE_TIMEOUT });
                hcm.stats.inc(names::DOWNSTREAM_CX_DESTROY_LOCAL);
                return;
            }
        };
        served = served.saturating_add(1);
        if config.max_requests_per_connection.is_some_and(|most| served >= most) {
            hcm.stats.inc(names::DOWNSTREAM_CX_MAX_REQUESTS_REACHED);
            h1.close_after();
        }
        // On the heap while it lasts, so that a connection between requests does not hold the room for one.
        let resolved = hcm.discovers.then(|| hcm.current(worker));
        let hcm = resolved.as_ref().unwrap_or(hcm);
        let exchange = async { Exchange::new(worker, hcm, conn, request, &mut down, &mut timer).run().await };
        idle_since = Box::pin(exchange).await;
        let Downstream::H1(h1) = &mut down else { return };
        if !h1.next() {
            return close(h1, config.delayed_close_timeout).await;
        }
    }
}

/// Ends a connection such that the caller gets what was sent: bytes of its that are still under way would
/// otherwise turn the close into a reset, which may overtake the response.
async fn close(h1: &mut H1Server, patience: Duration) {
    let lingering = async {
        poll_fn(|cx| h1.wire.poll_flush(cx)).await?;
        poll_fn(|cx| h1.wire.poll_shutdown(cx)).await?;
        while !patience.is_zero() {
            h1.wire.input.clear();
            if poll_fn(|cx| h1.wire.poll_fill(cx)).await? == 0 {
                break;
            }
        }
        std::io::Result::Ok(())
    };
    // What was sent has its time to go out even where nobody waits for the caller.
    let limit = if patience.is_zero() { Duration::from_secs(1) } else { patience };
    let _ = tokio::time::timeout(limit, lingering).await;
}

/// Answers what never became a request, and ends the connection.
async fn refuse(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, down: &mut Downstream, timer: &mut Timer, reply: Reply) {
    Exchange::new(worker, hcm, conn, Request::unread(), down, timer).refuse(reply).await;
    if let Downstream::H1(h1) = down {
        close(h1, hcm.config.delayed_close_timeout).await;
    }
}
