//! A caller's HTTP connection: which version it speaks, one request after the other, its end.
use std::future::poll_fn;
use std::pin::pin;
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
use super::patience::Patience;
use super::reply::{self, Reply};
use super::stream::Downstream;
use super::{Exchange, Hcm};
use crate::http::h1::NoRequest;
use crate::io::{Io, Meter, Metered, Timer, Wire, last_words, leave, longer};
use crate::listener::Conn;
use crate::worker::Worker;

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
    conn.old_at.set(old_at(worker, hcm, conn));
    let mut patience = Patience::new();
    match version(worker, hcm, conn, io, &mut patience).await {
        Some((io, true, ahead)) => {
            stats.inc(names::DOWNSTREAM_CX_HTTP2_TOTAL);
            let _active = stats.hold(names::DOWNSTREAM_CX_HTTP2_ACTIVE);
            drop(patience);
            Box::pin(h2::serve(worker, hcm, conn, Metered { io, meter: meter(hcm) }, ahead)).await;
        }
        Some((io, false, ahead)) => {
            stats.inc(names::DOWNSTREAM_CX_HTTP1_TOTAL);
            let _active = stats.hold(names::DOWNSTREAM_CX_HTTP1_ACTIVE);
            serve_h1(worker, hcm, conn, io, ahead, &mut patience).await;
        }
        None => {}
    }
    stats.inc(names::DOWNSTREAM_CX_DESTROY);
    stats.record(names::DOWNSTREAM_CX_LENGTH_MS, conn.start.elapsed().as_micros() as u64);
}

/// Whether the caller speaks HTTP/2, and what had to be read to know; `None` when the connection came to its end before.
async fn version(worker: &Rc<Worker>, hcm: &Hcm, conn: &Conn, mut io: Io, patience: &mut Patience) -> Option<(Io, bool, BytesMut)> {
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
    // From the first byte on.
    let mut head_by = None;
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
        let mut reading = pin!(io.read_buf(&mut ahead));
        let read = poll_fn(|cx| {
            if let Poll::Ready(read) = reading.as_mut().poll(cx) {
                return Poll::Ready(Some(read));
            }
            if head_by.is_none() {
                return patience.poll_over(cx, worker, hcm, conn, false).map(|()| None);
            }
            patience.timer.set(head_by);
            patience.timer.poll(cx).map(|()| None)
        })
        .await;
        match read {
            Some(Ok(count @ 1..)) => {
                hcm.stats.add(names::DOWNSTREAM_CX_RX_BYTES_TOTAL, count as u64);
                head_by = head_by.or_else(|| Instant::now().checked_add(head_timeout(hcm)));
            }
            Some(_) => {
                hcm.stats.inc(names::DOWNSTREAM_CX_DESTROY_REMOTE);
                return None;
            }
            None => {
                if head_by.is_some() {
                    hcm.stats.inc(names::DOWNSTREAM_RQ_HEADER_TIMEOUT);
                }
                hcm.stats.inc(names::DOWNSTREAM_CX_DESTROY_LOCAL);
                return None;
            }
        }
    }
}

fn meter(hcm: &Hcm) -> Meter {
    Meter::new(&hcm.stats, names::DOWNSTREAM_CX_RX_BYTES_TOTAL, names::DOWNSTREAM_CX_TX_BYTES_TOTAL)
}

fn head_timeout(hcm: &Hcm) -> Duration {
    hcm.config.request_headers_timeout.unwrap_or(HEAD_TIMEOUT)
}

/// When the connection is to end however busy it is.
fn old_at(worker: &Worker, hcm: &Hcm, conn: &Conn) -> Option<Instant> {
    let limit = hcm.config.max_connection_duration?;
    conn.start.checked_add(longer(limit, hcm.config.max_connection_duration_jitter_percent, worker.roll64()))
}

async fn serve_h1(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, io: Io, ahead: BytesMut, patience: &mut Patience) {
    let mut wire = Wire::metered(io, meter(hcm));
    wire.input = ahead;
    let mut down = Downstream::H1(Box::new(H1Server::new(wire, hcm.limits, conn.is_tls())));
    let config = &hcm.config;
    let mut served = 0u32;
    loop {
        let Downstream::H1(h1) = &mut down else { return };
        let mut head_since = None;
        let next = poll_fn(|cx| {
            if let Poll::Ready(request) = h1.poll_request(cx) {
                return Poll::Ready(Some(request));
            }
            if !h1.in_head() {
                return patience.poll_over(cx, worker, hcm, conn, served > 0).map(|()| None);
            }
            patience.timer.set(head_since.get_or_insert_with(Instant::now).checked_add(head_timeout(hcm)));
            patience.timer.poll(cx).map(|()| None)
        })
        .await;
        patience.timer.set(None);
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
                return Box::pin(refuse(worker, hcm, conn, &mut down, &mut patience.timer, reply::malformed(why))).await;
            }
            None => {
                if h1.in_head() {
                    hcm.stats.inc(names::DOWNSTREAM_RQ_HEADER_TIMEOUT);
                    return Box::pin(refuse(worker, hcm, conn, &mut down, &mut patience.timer, reply::late_head())).await;
                }
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
        let exchange = async { Exchange::new(worker, hcm, conn, request, &mut down, &mut patience.timer).run().await };
        patience.since = Box::pin(exchange).await;
        patience.note_age(hcm, conn);
        let Downstream::H1(h1) = &mut down else { return };
        if !h1.next() {
            return Box::pin(close(h1, config.delayed_close_timeout)).await;
        }
    }
}

/// Ends a connection such that the caller gets what was sent: bytes of its that are still under way would
/// otherwise turn the close into a reset, which may overtake the response.
async fn close(h1: &mut H1Server, patience: Duration) {
    let flushed = tokio::time::timeout(last_words(patience), poll_fn(|cx| h1.wire.poll_flush(cx))).await;
    if matches!(flushed, Ok(Ok(()))) {
        leave(&mut h1.wire.io, patience).await;
    }
}

/// Answers what never became a request, and ends the connection.
async fn refuse(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, down: &mut Downstream, timer: &mut Timer, reply: Reply) {
    Exchange::new(worker, hcm, conn, Request::unread(), down, timer).refuse(reply).await;
    if let Downstream::H1(h1) = down {
        close(h1, hcm.config.delayed_close_timeout).await;
    }
}
