//! A caller's HTTP/2 connection: its streams, and its own end.
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use lateen_http2::shell::{Accepted, Server};
use lateen_http2::{Config, Reason};
use lateen_telemetry::envoy_names::{http as names, http2 as codec};
use tokio::time::Instant;

use super::streams::Streams;
use super::{H2ServerStream, Keepalive, mark, request_of};
use crate::http::h1::InvalidHead;
use crate::http::message::{Request, Version};
use crate::http::stream::Downstream;
use crate::http::{Exchange, Hcm, reply};
use crate::io::{Metered, Timer, last_words, leave};
use crate::listener::Conn;
use crate::worker::Worker;

/// A connection whose client does not even send its SETTINGS is closed.
const HANDSHAKE: Duration = Duration::from_secs(60);

/// Serves the connection to its end; `ahead` holds bytes already read from it.
pub(crate) async fn serve(worker: &Rc<Worker>, hcm: &Rc<Hcm>, conn: &Rc<Conn>, io: Metered, ahead: BytesMut) {
    let mut server = Server::new(io, config(hcm), ahead);
    let begin = Instant::now();
    let mut end = End::new(hcm, conn, begin);
    let mut keepalive = hcm.config.http2.keepalive.map(|config| Box::new(Keepalive::new(worker, config, server.pulse())));
    let mut streams = Streams::default();
    let mut served = 0u32;
    let mut drain = None;
    // The time of this turn.
    let mut moment = None;
    // The connection ends though it is not over.
    let mut given_up = false;
    loop {
        let accepted = poll_fn(|cx| {
            let now = *moment.get_or_insert_with(|| {
                let now = Instant::now();
                server.set_moment(now.saturating_duration_since(begin).as_millis() as u32);
                now
            });
            streams.attend(cx);
            if drain.is_none() {
                drain = Some((conn.chain.drain.register(cx), worker.drain.register(cx)));
            }
            if conn.draining(worker) && end.announce(&server) {
                hcm.stats.inc(names::DOWNSTREAM_CX_DRAIN_CLOSE);
            }
            if let Poll::Ready(accepted) = server.poll_accept(cx) {
                return Poll::Ready(accepted);
            }
            server.expect_output();
            end.used |= streams.poll(worker);
            if server.poll_written(cx).is_ready() {
                return Poll::Ready(None);
            }
            let next = match end.poll(cx, now, hcm, &mut server, streams.active()) {
                // What is said goes out with the next turn; without one there would be nobody to write it.
                Poll::Ready(true) => server.poll_accept(cx),
                Poll::Ready(false) => {
                    given_up = true;
                    Poll::Ready(None)
                }
                Poll::Pending => Poll::Pending,
            };
            if next.is_pending() {
                if let Some(keepalive) = &mut keepalive
                    && keepalive.poll(cx, worker).is_ready()
                {
                    worker.http2.inc(codec::KEEPALIVE_TIMEOUT);
                    given_up = true;
                    return Poll::Ready(None);
                }
                streams.rest(cx);
                moment = None;
            }
            next
        })
        .await;
        let Some(accepted) = accepted else { break };
        served = served.saturating_add(1);
        let last = hcm.config.max_requests_per_connection.is_some_and(|most| served >= most);
        if last {
            end.announce(&server);
        } else if conn.ends(worker) {
            if end.announce(&server) {
                hcm.stats.inc(names::DOWNSTREAM_CX_DRAIN_CLOSE);
            }
        } else if conn.ends_by_overload(worker) && end.announce(&server) {
            hcm.stats.inc(names::DOWNSTREAM_CX_DRAIN_CLOSE);
            hcm.stats.inc(names::DOWNSTREAM_CX_OVERLOAD_DISABLE_KEEPALIVE);
        }
        streams.start(Job { worker: Rc::clone(worker), hcm: Rc::clone(hcm), conn: Rc::clone(conn), accepted });
    }
    // Streams notice that their connection is gone, and end as they do then.
    server.close();
    if streams.active() > 0 {
        crate::worker::spawn(worker, streams.finish(Rc::clone(worker)));
    }
    if !given_up {
        Box::pin(leave(&mut server.io().io, hcm.config.delayed_close_timeout)).await;
    }
}

fn config(hcm: &Hcm) -> Config {
    let options = hcm.config.http2;
    Config {
        max_concurrent_streams: options.max_concurrent_streams.max(1),
        stream_window: options.initial_stream_window_size,
        connection_window: options.initial_connection_window_size,
        max_header_bytes: (hcm.config.max_request_headers_kb as usize).saturating_mul(1024),
        max_headers: hcm.limits.count,
        extended_connect: options.allow_connect,
        mark,
    }
}

/// When and how the connection ends.
struct End {
    timer: Timer,
    handshake_by: Instant,
    active_at: Instant,
    /// A stream did something since [`Self::active_at`].
    used: bool,
    /// `max_connection_duration` is over then.
    old_at: Option<Instant>,
    /// The shutdown was announced; streams are refused from then on.
    refuse_at: Option<Instant>,
    refusing: bool,
    /// After the announcement of a shutdown, how long streams that are on their way may still arrive.
    late_streams: Duration,
    broken: bool,
    /// The connection is broken or has ended but for what its caller has to read, and is dropped then unless it reads.
    drop_at: Option<Instant>,
    /// What was written when that was settled.
    sent: u64,
}

impl End {
    fn new(hcm: &Hcm, conn: &Conn, now: Instant) -> Self {
        Self {
            timer: Timer::default(),
            handshake_by: now + HANDSHAKE,
            active_at: now,
            used: false,
            old_at: conn.old_at.get(),
            refuse_at: None,
            refusing: false,
            late_streams: hcm.config.drain_timeout,
            broken: false,
            drop_at: None,
            sent: 0,
        }
    }

    /// Tells the caller to open no more streams here; false when it was told before.
    fn announce(&mut self, server: &Server<Metered>) -> bool {
        let first = self.refuse_at.is_none();
        if first {
            server.announce_shutdown();
            self.refuse_at = Instant::now().checked_add(self.late_streams).or(Some(Instant::now()));
        }
        first
    }

    /// Ready with true when something was said to the caller, with false when the connection is to be dropped.
    fn poll(&mut self, cx: &mut Context<'_>, now: Instant, hcm: &Hcm, server: &mut Server<Metered>, active: u32) -> Poll<bool> {
        if active > 0 || std::mem::take(&mut self.used) {
            self.active_at = now;
        }
        let idle_at = if active == 0 { hcm.config.idle_timeout.and_then(|limit| self.active_at.checked_add(limit)) } else { None };
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if server.is_broken() {
            if !std::mem::replace(&mut self.broken, true) {
                hcm.stats.inc(names::DOWNSTREAM_CX_PROTOCOL_ERROR);
            }
            return self.poll_drop(cx, now, hcm, server);
        }
        if !server.is_ready() && self.handshake_by <= now {
            hcm.stats.inc(names::DOWNSTREAM_CX_PROTOCOL_ERROR);
            return Poll::Ready(false);
        }
        if !self.refusing && due(self.refuse_at) {
            self.refusing = true;
            server.go_away(Reason::NO_ERROR);
            return Poll::Ready(true);
        }
        let old = due(self.old_at);
        if (old || due(idle_at)) && self.announce(server) {
            hcm.stats.inc(if old { names::DOWNSTREAM_CX_MAX_DURATION_REACHED } else { names::DOWNSTREAM_CX_IDLE_TIMEOUT });
            return Poll::Ready(true);
        }
        if self.refusing && active == 0 {
            return self.poll_drop(cx, now, hcm, server);
        }
        let handshake = (!server.is_ready()).then_some(self.handshake_by);
        let refuse = self.refuse_at.filter(|_| !self.refusing);
        let (idle_at, old_at) = if self.refuse_at.is_some() { (None, None) } else { (idle_at, self.old_at) };
        self.timer.set([handshake, refuse, idle_at, old_at].into_iter().flatten().min());
        self.timer.poll(cx).map(|()| {
            cx.waker().wake_by_ref();
            true
        })
    }

    /// Ready when the caller has taken nothing for so long that what is left to write is not worth waiting for: each byte
    /// that it takes begins the wait anew (Envoy `ConnectionImpl::onWriteReady`).
    fn poll_drop(&mut self, cx: &mut Context<'_>, now: Instant, hcm: &Hcm, server: &mut Server<Metered>) -> Poll<bool> {
        let sent = server.io().io.socket().sent;
        if self.drop_at.is_none() || sent != self.sent {
            self.sent = sent;
            let patience = last_words(hcm.config.delayed_close_timeout);
            self.drop_at = Some(now.checked_add(patience).unwrap_or(now));
        }
        self.timer.set(self.drop_at);
        self.timer.poll(cx).map(|()| false)
    }
}

/// A stream to be served.
pub(super) struct Job {
    worker: Rc<Worker>,
    hcm: Rc<Hcm>,
    conn: Rc<Conn>,
    accepted: Accepted,
}

/// Serves a stream to its end.
pub(super) async fn stream(job: Job) {
    let Job { worker, hcm, conn, accepted } = job;
    let Accepted { head, end, stream } = accepted;
    let is_head = head.as_ref().is_some_and(|head| head.method == http::Method::HEAD);
    let (request, refused) = match head.ok_or(InvalidHead::TooLarge).and_then(|head| request_of(head, end, conn.is_tls())) {
        Ok(request) => (request, None),
        Err(why) => (Request { version: Version::Http2, ..Request::unread() }, Some(why)),
    };
    let mut down = Downstream::H2(H2ServerStream::new(stream, &request, is_head));
    let mut timer = Timer::default();
    if let Some(why) = refused {
        hcm.stats.inc(names::DOWNSTREAM_CX_PROTOCOL_ERROR);
        tracing::debug!("a request was refused: {why}");
        // Apart, so that other streams hold no room for it.
        return Box::pin(Exchange::new(&worker, &hcm, &conn, request, &mut down, &mut timer).refuse(reply::malformed_http2(why))).await;
    }
    let resolved = hcm.discovers.then(|| hcm.current(&worker));
    let hcm = resolved.as_ref().unwrap_or(&hcm);
    Exchange::new(&worker, hcm, &conn, request, &mut down, &mut timer).run().await;
}
