//! Requests that the proxy makes itself over a cluster's ordinary connections: copies, reports, a filter's questions.
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context as TaskContext, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, StatusCode};
use lateen_balance::breaker::Permit;
use lateen_balance::host::ActiveRequest;
use lateen_balance::outlier::Outcome;
use lateen_balance::{Context, Host};
use lateen_snapshot::ClusterId;
use lateen_telemetry::envoy_names::{cluster as names, count_upstream_code};
use lateen_telemetry::stats::Held;
use tokio::time::Instant;

use super::{ClusterState, ConnectFailure, Lease, NoConnection, Sought, TargetWish, choose, grpc};
use crate::http::headers::EXPECTED_TIMEOUT;
use crate::http::message::{Frame, Request, Response};
use crate::http::stream::StreamError;
use crate::worker::{Live, Worker};

/// A server that closes idle connections closes many at once: each repeat may meet another of them.
const FREE_REPEATS: u32 = 8;
/// No answer is waited for longer, whatever the configuration says.
const LONGEST: Duration = Duration::from_secs(300);

/// Why there is no answer, or not all of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lost {
    NoCluster,
    NoHost,
    /// A circuit breaker is open.
    Overflow,
    NoConnection,
    Broken(StreamError),
    Late,
    /// The answer is larger than its limit.
    TooLarge,
}

/// How much of an answer is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// From the begin to the last byte of the answer.
    pub(crate) time: Option<Duration>,
    /// Of the body.
    pub(crate) bytes: usize,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) trailers: Option<Box<HeaderMap>>,
}

/// Tells a server how long its answer is waited for, as the router tells every upstream.
pub(crate) fn tell_patience(headers: &mut HeaderMap, time: Option<Duration>) {
    if let Some(time) = time {
        headers.insert(EXPECTED_TIMEOUT, HeaderValue::from(u64::try_from(time.as_millis()).unwrap_or(u64::MAX)));
    }
}

/// Why no stream came about.
pub(crate) enum NotOpened {
    NoConnection(NoConnection),
    Broken(StreamError),
}

/// Sends the request's head over a connection that takes it: one that was handed out may take no more when its stream is to be
/// opened, which says nothing of the host.
pub(crate) async fn open_stream<F>(acquire: impl Fn() -> F, request: &Request) -> Result<Lease, NotOpened>
where
    F: Future<Output = Result<Lease, NoConnection>>,
{
    let mut repeats = FREE_REPEATS;
    loop {
        let mut lease = acquire().await.map_err(NotOpened::NoConnection)?;
        match lease.upstream.send_request(request) {
            Ok(()) => return Ok(lease),
            Err(_) if repeats > 0 => repeats -= 1,
            Err(why) => return Err(NotOpened::Broken(why)),
        }
    }
}

/// A request under way. Dropped midway, its stream is reset or its connection closed.
pub(crate) struct Call {
    lease: Lease,
    cluster: Rc<ClusterState>,
    active: ActiveRequest,
    _permit: Permit,
    _gauge: Held,
    /// When the request was complete; taken when the answer is.
    asked: Option<Instant>,
    grpc: bool,
}

impl Call {
    /// Picks a host, gets a connection and queues the request's head.
    pub(crate) async fn begin(worker: &Rc<Worker>, live: &Live, id: ClusterId, request: &Request) -> Result<Self, Lost> {
        let cluster = live.cluster(worker, id).ok_or(Lost::NoCluster)?;
        let sought = Sought { authority: &request.authority, ..Sought::default() };
        let Some((cluster, host)) = choose(worker, live, Rc::clone(&cluster), &Context::default(), &sought) else {
            cluster.stats.inc(names::UPSTREAM_CX_NONE_HEALTHY);
            return Err(Lost::NoHost);
        };
        let stats = &cluster.stats;
        let Some(permit) = cluster.breakers(false).requests.take() else {
            stats.inc(names::UPSTREAM_RQ_PENDING_OVERFLOW);
            return Err(Lost::Overflow);
        };
        let wish = TargetWish { downstream: request.version, alpn: None, authority: Some(&request.authority), upgrade: false, conn: None };
        let target = cluster.target(host, &wish);
        let active = target.host.begin_request();
        let gauge = stats.hold(names::UPSTREAM_RQ_ACTIVE);
        let acquire = || target.pool.acquire(worker, &cluster, &target.host, false, &target.plan);
        let lease = open_stream(acquire, request).await.map_err(|none| match none {
            NotOpened::NoConnection(NoConnection::Overflow) => Lost::Overflow,
            NotOpened::NoConnection(NoConnection::Failed(why)) => {
                let outcome = if why == ConnectFailure::Timeout { Outcome::LocalTimeout } else { Outcome::LocalFailure };
                blame(worker, &cluster, &target.host, outcome);
                Lost::NoConnection
            }
            NotOpened::Broken(why) => Lost::Broken(why),
        })?;
        stats.inc(names::UPSTREAM_RQ_TOTAL);
        target.host.counters.rq_total.fetch_add(1, Relaxed);
        let asked = (!request.has_body()).then(Instant::now);
        Ok(Self { lease, cluster, active, _permit: permit, _gauge: gauge, asked, grpc: request.is_grpc() })
    }

    /// Sends a piece of the body once there is room for it.
    pub(crate) async fn send(&mut self, data: Bytes) -> Result<(), Lost> {
        let up = &mut self.lease.upstream;
        poll_fn(|cx| up.poll_room(cx)).await.map_err(Lost::Broken)?;
        up.send_data(data);
        let _ = poll_fn(|cx| Poll::Ready(up.poll_flush(cx))).await;
        Ok(())
    }

    /// The request is complete.
    pub(crate) fn end(&mut self) {
        self.asked.get_or_insert_with(Instant::now);
        self.lease.upstream.send_end(None);
    }

    /// Ready when there is room for another piece, or the request can go no further.
    pub(super) fn poll_room(&mut self, cx: &mut TaskContext<'_>) -> Poll<Result<(), Lost>> {
        self.lease.upstream.poll_room(cx).map_err(Lost::Broken)
    }

    /// Sends a piece of the body for which there is room.
    pub(super) fn queue(&mut self, data: Bytes) {
        self.lease.upstream.send_data(data);
    }

    /// What was queued goes out.
    pub(super) fn flush(&mut self, cx: &mut TaskContext<'_>) {
        // What cannot be written any more is told by the answer.
        let _ = self.lease.upstream.poll_flush(cx);
    }

    /// The answer's head, while what was queued goes out.
    pub(crate) async fn response(&mut self, worker: &Worker) -> Result<Response, Lost> {
        poll_fn(|cx| self.poll_response(worker, cx)).await
    }

    pub(super) fn poll_response(&mut self, worker: &Worker, cx: &mut TaskContext<'_>) -> Poll<Result<Response, Lost>> {
        let up = &mut self.lease.upstream;
        // What cannot be written any more is told by the answer, if there is one.
        let _ = up.poll_flush(cx);
        let response = loop {
            match ready!(up.poll_response(cx)) {
                Ok(response) if response.status.is_informational() => {}
                other => break other,
            }
        };
        let host = self.active.host();
        let response = match response {
            Ok(response) => response,
            Err(why) => {
                blame(worker, &self.cluster, host, Outcome::LocalFailure);
                return Poll::Ready(Err(Lost::Broken(why)));
            }
        };
        let status = response.status.as_u16();
        count_upstream_code(&self.cluster.stats, status);
        let counter = if status >= 500 { &host.counters.rq_error } else { &host.counters.rq_success };
        counter.fetch_add(1, Relaxed);
        let judged = if self.grpc { grpc::as_http(&response.headers).unwrap_or(status) } else { status };
        self.cluster.report(worker, host, Outcome::Response(judged));
        Poll::Ready(Ok(response))
    }

    /// The next piece of the answer's body, while what was queued goes out; `None` at its end.
    pub(crate) async fn frame(&mut self) -> Option<Result<Frame, Lost>> {
        poll_fn(|cx| self.poll_frame(cx)).await
    }

    pub(super) fn poll_frame(&mut self, cx: &mut TaskContext<'_>) -> Poll<Option<Result<Frame, Lost>>> {
        let up = &mut self.lease.upstream;
        let _ = up.poll_flush(cx);
        let frame = ready!(up.poll_frame(cx));
        if matches!(frame, None | Some(Ok(Frame::Trailers(_))))
            && let Some(asked) = self.asked.take()
        {
            self.cluster.stats.record(names::UPSTREAM_RQ_TIME, asked.elapsed().as_micros() as u64);
        }
        Poll::Ready(frame.map(|f| f.map_err(Lost::Broken)))
    }

    /// Both directions are over: the connection may serve others.
    pub(crate) fn finish(self) {
        self.lease.finish(self.cluster.cluster.config.max_requests_per_connection, Instant::now());
    }

    /// Whether the request may be sent again because a pooled connection turned out to be closed.
    fn was_stale(&self, why: Lost, idempotent: bool) -> bool {
        let up = &self.lease.upstream;
        let Lost::Broken(why) = why else { return false };
        let harmless = idempotent || why == StreamError::Refused || up.untouched();
        self.lease.reused && matches!(why, StreamError::Closed | StreamError::Refused) && harmless && !up.answered()
    }
}

fn blame(worker: &Worker, cluster: &ClusterState, host: &Arc<Host>, outcome: Outcome) {
    host.counters.rq_error.fetch_add(1, Relaxed);
    cluster.report(worker, host, outcome);
}

/// Sends a request with its body and waits for the whole answer.
pub(crate) async fn ask(
    worker: &Rc<Worker>,
    live: &Live,
    id: ClusterId,
    request: &Request,
    body: Bytes,
    limits: Limits,
) -> Result<Answer, Lost> {
    let mut asked = None;
    let work = Box::pin(tries(worker, live, id, request, body, limits.bytes, &mut asked));
    let time = limits.time.map_or(LONGEST, |time| time.min(LONGEST));
    if let Ok(result) = tokio::time::timeout(time, work).await {
        return result;
    }
    if let Some((cluster, host)) = asked {
        cluster.stats.inc(names::UPSTREAM_RQ_TIMEOUT);
        host.counters.rq_timeout.fetch_add(1, Relaxed);
        blame(worker, &cluster, &host, Outcome::LocalTimeout);
    }
    Err(Lost::Late)
}

async fn tries(
    worker: &Rc<Worker>,
    live: &Live,
    id: ClusterId,
    request: &Request,
    body: Bytes,
    most: usize,
    asked: &mut Option<(Rc<ClusterState>, Arc<Host>)>,
) -> Result<Answer, Lost> {
    let mut repeats = FREE_REPEATS;
    loop {
        let mut call = Call::begin(worker, live, id, request).await?;
        *asked = Some((Rc::clone(&call.cluster), Arc::clone(call.active.host())));
        if request.has_body() {
            call.lease.upstream.send_data(body.clone());
            call.end();
        }
        match call.response(worker).await {
            Ok(response) => return read(call, response, most).await,
            Err(why) if repeats > 0 && call.was_stale(why, request.method.is_idempotent()) => repeats -= 1,
            Err(why) => return Err(why),
        }
    }
}

async fn read(mut call: Call, response: Response, most: usize) -> Result<Answer, Lost> {
    let (mut body, mut trailers) = (BytesMut::new(), None);
    while let Some(frame) = call.frame().await {
        match frame? {
            Frame::Data(data) if body.len() + data.len() > most => return Err(Lost::TooLarge),
            Frame::Data(data) => body.extend_from_slice(&data),
            Frame::Trailers(map) => {
                trailers = Some(map);
                break;
            }
        }
    }
    call.finish();
    Ok(Answer { status: response.status, headers: response.headers, body: body.freeze(), trailers })
}
