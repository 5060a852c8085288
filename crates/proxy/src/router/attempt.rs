//! One try: host, connection, request up, until a response's head comes or something gives.
use std::future::{Future, poll_fn};
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use http::StatusCode;
use lateen_balance::host::ActiveRequest;
use lateen_balance::outlier::Outcome;
use lateen_balance::{Context, Host};
use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::dns::cache::DnsCache;
use lateen_snapshot::route::{Connect, Forward, HostRewrite};
use lateen_telemetry::envoy_names::{cluster as names, count_upstream_code};
use lateen_telemetry::istio::PeerId;
use tokio::time::Instant;

use super::finalize;
use super::forward::Forwarding;
use super::hedge::{Answer, Late};
use super::limits::Limits;
use super::outcome::{Failed, Failure};
use super::replay::Progress;
use super::retry::Retries;
use crate::filter::http::body::{Caller, Halt};
use crate::filter::http::{dynamic_forward_proxy, stateful_session};
use crate::http::message::{Response, Version};
use crate::http::stream::{StreamError, Upstream};
use crate::http::{End, Exchange, Info, reply};
use crate::io::Text;
use crate::listener::proxy_header;
use crate::upstream::{ClusterState, Lease, NoConnection, Principals, Proxied, Sought, Target, TargetWish, choose, grpc};

/// 1xx responses that a try may have: they are written for a caller who need not be reading.
const MOST_INFORMATIONAL: u32 = 32;

/// How a try ended.
pub(super) enum Tried {
    Response(Box<Answered>),
    Failed {
        failed: Failed,
        /// It was a pooled connection that had been closed: repeating is free.
        stale: bool,
        /// Some of the request may have reached the host.
        sent_any: bool,
    },
    /// It is too slow, and goes on beside its repetition.
    Late(Box<Late>),
}

impl Tried {
    /// Whether it ended for a reason of its own, which may be one to try again (Envoy `RetryStateImpl::shouldRetry`).
    pub(super) fn is_judged(&self) -> bool {
        match self {
            Self::Response(_) => true,
            Self::Failed { failed, .. } => {
                !failed.failure.ends_request() && !self.lacks_host() && failed.failure != Failure::NameNotResolved
            }
            Self::Late(_) => false,
        }
    }

    /// Nobody could be asked at all.
    fn lacks_host(&self) -> bool {
        matches!(self, Self::Failed { failed, .. } if failed.failure == Failure::NoHealthyHost)
    }
}

/// A response's head, and where the rest comes from. Boxed wherever it goes: a request's future would else hold room for
/// it in each of its layers, and move it through all of them.
pub(super) struct Answered {
    pub(super) response: Response,
    pub(super) lease: Lease,
    pub(super) began: Began,
}

impl Answered {
    /// Nobody gets what is left of it. Where nothing is its connection serves the next.
    pub(super) fn leave(self, now: Instant) -> Response {
        self.lease.finish(self.began.cluster.cluster.config.max_requests_per_connection, now);
        self.response
    }
}

/// What an exchange holds of a host while it lasts.
pub(super) struct Began {
    pub(super) active: ActiveRequest,
    _permit: lateen_balance::breaker::Permit,
    _gauge: lateen_telemetry::stats::Held,
    /// The cluster of the host: a member, where the route names several that are taken as one.
    pub(super) cluster: Rc<ClusterState>,
}

fn failed(failure: impl Into<Failed>) -> Tried {
    Tried::Failed { failed: failure.into(), stale: false, sent_any: false }
}

/// A try that has its host.
struct Begun<'a> {
    target: Target,
    began: Began,
    tunnel: Option<&'a Connect>,
}

/// Chooses the host. An inner error is the end of the try, an outer one of the request.
fn begin<'a>(
    exchange: &mut Exchange<'_>,
    forward: &'a Forward,
    forwarding: &mut Forwarding,
    retries: &Retries,
) -> Result<Result<Begun<'a>, Tried>, End> {
    let policy = retries.policy();
    let every = policy.and_then(|p| p.previous_priorities);
    let past = every.map_or(0, |every| {
        let (cluster, tried) = (&forwarding.cluster, &forwarding.tried);
        cluster.with_priorities(|all| forwarding.passed.by_now(every, all, |host| cluster.priority_of(host), tried))
    });
    let avoid: &[Arc<Host>] = if policy.is_some_and(|p| p.avoid_previous_hosts) { &forwarding.tried } else { &[] };
    let context = Context {
        hash: forwarding.hash,
        avoid,
        omit: policy.filter(|_| retries.taken() > 0).and_then(|p| p.omit.as_deref()),
        reselect: policy.map_or(0, |p| p.host_selection_attempts),
        past,
        only: None,
        criteria: forwarding.criteria.as_deref(),
        now: 0,
    };
    let own = if exchange.info.session.is_some() { stateful_session::choose(exchange, &forwarding.cluster)? } else { None };
    let own = own.map(|host| (Rc::clone(&forwarding.cluster), host));
    let sought = Sought { original: original(exchange, &forwarding.cluster), authority: &exchange.request.authority, port: None };
    let Some((cluster, host)) = own.or_else(|| choose(exchange.worker, &exchange.live, Rc::clone(&forwarding.cluster), &context, &sought))
    else {
        if forwarding.cluster.dns_cache().is_none() {
            forwarding.cluster.stats.inc(names::UPSTREAM_CX_NONE_HEALTHY);
        }
        return Ok(Err(failed(Failure::NoHealthyHost)));
    };
    let stats = &cluster.stats;
    note_host(exchange, &cluster, &host);
    if let Some(HostRewrite::Auto) = forward.host_rewrite
        && !host.hostname.is_empty()
    {
        let before = finalize::rewrite_host(exchange, forward, Text::from(&*host.hostname));
        forwarding.asked_for.get_or_insert(before);
    }
    let Some(permit) = cluster.breakers(forwarding.high_priority).take_request(|| exchange.worker.millis()) else {
        stats.inc(names::UPSTREAM_RQ_PENDING_OVERFLOW);
        return Ok(Err(failed(Failure::Overflow)));
    };
    let tunnel = forward.connect.as_ref().filter(|connect| connect.takes(&exchange.request.method));
    let wish = TargetWish {
        downstream: exchange.request.version,
        alpn: crate::filter::http::alpn_overrides(exchange),
        authority: Some(forwarding.asked_for.as_ref().unwrap_or(&exchange.request.authority)),
        upgrade: exchange.request.upgrade.is_some(),
        conn: Some(&**exchange.conn),
    };
    let target = if tunnel.is_some() { cluster.tcp_target(host, &wish) } else { cluster.target(host, &wish) };
    if cluster.cluster.config.predictive_preconnect_ratio > 1.0 {
        cluster.preconnect_next(exchange.worker, forwarding.high_priority, &wish);
    }
    let at = exchange.info.moment;
    let began = Began {
        active: target.host.begin_request(),
        _permit: permit,
        _gauge: stats.hold(names::UPSTREAM_RQ_ACTIVE),
        cluster: Rc::clone(&cluster),
    };
    if forwarding.body.complete() {
        start_deadline(forwarding, at);
        // Behind a wish for another protocol more may come.
        if exchange.request.upgrade.is_none() {
            forwarding.received.get_or_insert(at);
        }
    }
    Ok(Ok(Begun { target, began, tunnel }))
}

/// [`begin`] for a host that the request names, once its name is resolved: no filter has asked for it.
async fn begin_by_name<'a>(
    exchange: &mut Exchange<'_>,
    forward: &'a Forward,
    forwarding: &mut Forwarding,
    retries: &Retries,
    cache: &Arc<DnsCache>,
) -> Result<Result<Begun<'a>, Tried>, End> {
    let port = forwarding.cluster.cluster.config.default_port().unwrap_or_default();
    match dynamic_forward_proxy::resolve(exchange, cache, port).await? {
        Ok(()) => begin(exchange, forward, forwarding, retries),
        Err(why) => {
            forwarding.cluster.stats.inc(names::UPSTREAM_CX_NONE_HEALTHY);
            Ok(Err(failed(Failed { failure: Failure::NameNotResolved, transport: why.details().into_owned() })))
        }
    }
}

pub(super) async fn run(
    exchange: &mut Exchange<'_>,
    forward: &Forward,
    forwarding: &mut Forwarding,
    retries: &Retries,
) -> Result<Tried, End> {
    let Begun { target, began, tunnel } = match begin(exchange, forward, forwarding, retries)? {
        Ok(begun) => begun,
        Err(ended) => match forwarding.cluster.dns_cache().cloned().filter(|_| ended.lacks_host()) {
            // Apart, because most clusters know their hosts.
            Some(cache) => match Box::pin(begin_by_name(exchange, forward, forwarding, retries, &cache)).await? {
                Ok(begun) => begun,
                Err(ended) => return Ok(ended),
            },
            None => return Ok(ended),
        },
    };
    let cluster = Rc::clone(&began.cluster);
    let stats = &cluster.stats;
    let mut lease = match target.pool.ready(&cluster) {
        Some(lease) => lease,
        // Apart, because most requests find a connection and need no room for how one is made.
        None => match Box::pin(connect(exchange, forwarding, &cluster, &target, retries)).await? {
            Connecting::Done(Ok(lease)) => lease,
            Connecting::Done(Err(why)) => return Ok(not_connected(exchange, &cluster, &target, why)),
            Connecting::Overtaken(answer) => return Ok(Tried::Response(answer.settle(exchange, forwarding))),
        },
    };
    if cluster.cluster.config.preconnect_ratio > 1.0 {
        cluster.preconnect(exchange.worker, &target, forwarding.high_priority);
    }
    cluster.report_reached(exchange.worker, &target.host);
    if exchange.request.upgrade.is_some() && !Box::pin(takes_upgrade(exchange, forwarding, &cluster, &lease)).await? {
        return Ok(failed(Failure::ProtocolError));
    }
    exchange.info.upstream_local = lease.local_address();
    exchange.info.upstream_protocol = lease.protocol();
    exchange.info.upstream_principals = lease.principals();
    let sent = exchange.info.moment;
    if let Err(e) = lease.upstream.send_request(&exchange.request) {
        // A connection that took the request took no more when it was to be sent: that says nothing of the host.
        return Ok(Tried::Failed { failed: e.into(), stale: true, sent_any: false });
    }
    stats.inc(names::UPSTREAM_RQ_TOTAL);
    target.host.counters.rq_total.fetch_add(1, Relaxed);
    if let Some(config) = tunnel.and_then(|connect| connect.proxy_protocol.as_ref()) {
        let caller = Proxied { source: exchange.conn.remote, destination: exchange.conn.local, tlvs: Vec::new() };
        let header = proxy_header::encode(config, Some(&caller));
        lease.upstream.send_data(header.into());
    }
    let result = await_response(exchange, forwarding, &mut lease, retries).await;
    let response = match result {
        Ok(response) => response,
        Err(Stop::End(end)) => {
            stats.inc(names::UPSTREAM_RQ_CANCELLED);
            return Err(end);
        }
        Err(Stop::Overtaken(answer)) => return Ok(Tried::Response(answer.settle(exchange, forwarding))),
        Err(Stop::Late(progress)) => {
            cluster.report(exchange.worker, &target.host, Outcome::LocalTimeout);
            return Ok(Tried::Late(Box::new(Late { lease, began, progress })));
        }
        Err(Stop::Failed(why)) => {
            note_failure(exchange, &cluster, &target.host, &why);
            let closed = matches!(why.failure, Failure::ConnectionTermination | Failure::RefusedStream);
            let untouched = lease.upstream.untouched();
            let harmless = untouched || why.failure == Failure::RefusedStream || exchange.request.method.is_idempotent();
            let stale = closed && lease.reused && harmless && !lease.upstream.answered();
            return Ok(Tried::Failed { failed: why, stale, sent_any: !untouched });
        }
    };
    exchange.info.moment = Instant::now();
    let took = exchange.info.moment.saturating_duration_since(sent);
    cluster.report_answer(exchange.worker, &target.host, took, &response.headers, &mut forwarding.load_told);
    note_response(exchange, &cluster, &began, &response);
    Ok(Tried::Response(Box::new(Answered { response, lease, began })))
}

/// Where the try goes, and what configuration tells of the workload there: a failed request is reported with it, while a response
/// may tell better. The connection of a try before is not this one's (Envoy makes an `UpstreamInfo` for each).
pub(super) fn note_host(exchange: &mut Exchange<'_>, cluster: &ClusterState, host: &Arc<Host>) {
    exchange.info.host = Some(Arc::clone(host));
    exchange.info.upstream_local = None;
    exchange.info.upstream_protocol = None;
    exchange.info.upstream_principals = Principals::default();
    if !exchange.hcm.inbound {
        exchange.info.peer = cluster.peer_of(exchange.worker, host);
    }
}

/// Tells of a connection that did not come about.
fn not_connected(exchange: &mut Exchange<'_>, cluster: &Rc<ClusterState>, target: &Target, why: Failed) -> Tried {
    if why.failure == Failure::Overflow {
        // The host was not even asked.
        exchange.info.host = None;
        if !exchange.hcm.inbound {
            exchange.info.peer = PeerId::default();
        }
    }
    if why.failure.blames_host() {
        let outcome = if why.failure == Failure::ConnectionTimeout { Outcome::LocalTimeout } else { Outcome::LocalFailure };
        cluster.report(exchange.worker, &target.host, outcome);
    }
    target.host.counters.rq_error.fetch_add(1, Relaxed);
    failed(why)
}

/// Tells of a response to whoever counts or judges.
pub(super) fn note_response(exchange: &Exchange<'_>, cluster: &Rc<ClusterState>, began: &Began, response: &Response) {
    let host = began.active.host();
    let status = response.status.as_u16();
    if status >= 500 {
        host.counters.rq_error.fetch_add(1, Relaxed)
    } else {
        host.counters.rq_success.fetch_add(1, Relaxed)
    };
    let judged = if exchange.info.grpc { grpc::as_http(&response.headers).unwrap_or(status) } else { status };
    cluster.report(exchange.worker, host, Outcome::Response(judged));
    if cluster.listens() {
        cluster.listen(exchange.worker, host, &response.headers);
    }
}

/// This try is the one: slower ones are given up, and none comes after it.
fn note_informational(forwarding: &mut Forwarding, status: StatusCode) {
    count_upstream_code(&forwarding.cluster.stats, status.as_u16());
    forwarding.begun = true;
    forwarding.late.forget();
}

/// Where the request goes in a cluster that has no hosts of its own: the first that metadata or headers name, else where
/// the connection went to.
fn original(exchange: &Exchange<'_>, cluster: &ClusterState) -> Option<SocketAddr> {
    let restored = exchange.conn.restored.then_some(exchange.conn.local);
    let Discovery::OriginalDst(settings) = &cluster.cluster.config.discovery else { return restored };
    let in_metadata = settings.metadata.as_ref().and_then(|(namespace, path)| {
        let value = exchange.info.metadata.get(namespace, path).or_else(|| exchange.conn.metadata()?.get(namespace, path));
        value?.as_str()?.parse().ok()
    });
    let in_header = || exchange.request.headers.get(settings.header.as_ref()?)?.to_str().ok()?.parse().ok();
    in_metadata.or_else(in_header).or(restored)
}

pub(super) fn note_failure(exchange: &Exchange<'_>, cluster: &Rc<ClusterState>, host: &Arc<Host>, why: &Failed) {
    let stats = &cluster.stats;
    host.counters.rq_error.fetch_add(1, Relaxed);
    match why.failure {
        Failure::PerTryTimeout => stats.inc(names::UPSTREAM_RQ_PER_TRY_TIMEOUT),
        Failure::PerTryIdleTimeout => stats.inc(names::UPSTREAM_RQ_PER_TRY_IDLE_TIMEOUT),
        Failure::StreamDuration => stats.inc(names::UPSTREAM_RQ_MAX_DURATION_REACHED),
        Failure::RemoteReset | Failure::RefusedStream => stats.inc(names::UPSTREAM_RQ_RX_RESET),
        Failure::ProtocolError => stats.inc(names::UPSTREAM_CX_PROTOCOL_ERROR),
        _ => {}
    }
    if why.failure.is_timeout() {
        host.counters.rq_timeout.fetch_add(1, Relaxed);
    }
    if why.failure.blames_host() {
        cluster.report(exchange.worker, host, if why.failure.is_timeout() { Outcome::LocalTimeout } else { Outcome::LocalFailure });
    }
}

fn start_deadline(forwarding: &mut Forwarding, now: Instant) {
    if forwarding.deadline.is_none() {
        forwarding.deadline = forwarding.timeouts.global.and_then(|limit| now.checked_add(limit));
    }
}

/// All of the request is here: its time begins (Envoy `Filter::onRequestComplete`).
pub(super) fn note_received(forwarding: &mut Forwarding, info: &mut Info, limits: &mut Limits, now: Instant) {
    info.request_done = Some(now.saturating_duration_since(info.start));
    start_deadline(forwarding, now);
    forwarding.received.get_or_insert(now);
    limits.deadline = forwarding.deadline;
    limits.request = None;
}

/// Connects within the request's limits. Meanwhile the rest of the request is taken, so that it is known when that is over.
async fn connect(
    exchange: &mut Exchange<'_>,
    forwarding: &mut Forwarding,
    cluster: &Rc<ClusterState>,
    target: &Target,
    retries: &Retries,
) -> Result<Connecting, End> {
    // A connection has a limit of its own: those of a try start when it is there.
    let mut limits = Limits::new(forwarding, exchange.info.moment);
    exchange.timer.set(limits.next());
    let worker = exchange.worker;
    let mut acquire = pin!(target.pool.acquire(worker, cluster, &target.host, forwarding.high_priority, &target.plan));
    let (down, timer, info, request) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info, &exchange.request);
    let mut caller = Caller { down, timer, chain: exchange.bodies.as_mut().map(|b| &mut b.request) };
    let result = poll_fn(|cx| {
        if let Poll::Ready(result) = acquire.as_mut().poll(cx) {
            return Poll::Ready(Ok(Connecting::Done(result.map_err(|e: NoConnection| Failed::from(e)))));
        }
        let was_complete = forwarding.body.complete();
        let moved = match forwarding.body.pull_ahead(cx, info, &mut caller) {
            Ok(moved) => moved,
            Err(halt) => return Poll::Ready(Err(halted(halt, request.version))),
        };
        if forwarding.body.complete() && !was_complete {
            note_received(forwarding, info, &mut limits, Instant::now());
        }
        if moved {
            limits.touch();
            caller.timer.set(limits.next());
        }
        if (forwarding.body.complete() || request.version == Version::Http2) && caller.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        if let Poll::Ready(answer) = forwarding.late.poll(cx, &forwarding.body, request, retries) {
            return Poll::Ready(Ok(Connecting::Overtaken(answer)));
        }
        caller.timer.poll(cx).map(|()| Ok(Connecting::Done(Err(limits.expired(Instant::now()).into()))))
    })
    .await;
    exchange.info.moment = Instant::now();
    result
}

/// Extended CONNECT is only for peers that said they take it (RFC 8441, section 3): waits for their word.
async fn takes_upgrade(exchange: &mut Exchange<'_>, forwarding: &Forwarding, cluster: &ClusterState, lease: &Lease) -> Result<bool, End> {
    let Upstream::H2(h2) = &lease.upstream else { return Ok(true) };
    exchange.timer.set(Limits::new(forwarding, exchange.info.moment).next());
    let limit = Instant::now() + cluster.cluster.config.connect_timeout;
    let (timer, down, request) = (&mut exchange.timer, &mut exchange.down, &exchange.request);
    let mut patience = pin!(tokio::time::sleep_until(limit));
    poll_fn(|cx| {
        if let Poll::Ready(takes) = h2.poll_takes(request, cx) {
            return Poll::Ready(Ok(takes));
        }
        if down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        if timer.poll(cx).is_ready() || patience.as_mut().poll(cx).is_ready() { Poll::Ready(Ok(false)) } else { Poll::Pending }
    })
    .await
}

#[allow(clippy::large_enum_variant, reason = "moved once per try, and boxing would allocate per request")]
enum Connecting {
    Done(Result<Lease, Failed>),
    /// A slower try has answered meanwhile.
    Overtaken(Box<Answer>),
}

enum Stop {
    /// The caller is gone, or its request is not one to be answered by an upstream.
    End(End),
    /// A slower try has answered.
    Overtaken(Box<Answer>),
    /// This try is too slow, and goes on.
    Late(Progress),
    Failed(Failed),
}

/// Why the rest of a request does not come.
fn halted(halt: Halt, version: Version) -> End {
    match halt {
        // The body is not framed as its head says.
        Halt::Stream(StreamError::Protocol) if version != Version::Http2 => reply::malformed_body().into(),
        Halt::Stream(_) => End::Gone,
        // A filter does not like it.
        Halt::Reply(reply) => End::Reply(reply),
    }
}

async fn await_response(
    exchange: &mut Exchange<'_>,
    forwarding: &mut Forwarding,
    lease: &mut Lease,
    retries: &Retries,
) -> Result<Response, Stop> {
    let mut now = Some(exchange.info.moment);
    let mut limits = Limits::new(forwarding, exchange.info.moment);
    if forwarding.body.complete() {
        limits.start_try(&forwarding.timeouts, exchange.info.moment);
    }
    exchange.timer.set(limits.next());
    let (down, timer, info, request) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info, &exchange.request);
    let mut caller = Caller { down, timer, chain: exchange.bodies.as_mut().map(|b| &mut b.request) };
    let mut informational = 0u32;
    poll_fn(|cx| {
        let was_complete = forwarding.body.complete();
        match forwarding.body.poll(cx, &mut *info, &mut caller, &mut lease.upstream) {
            Ok(moved) => {
                if moved && limits.has_idle() {
                    limits.touch();
                    caller.timer.set(limits.next());
                }
            }
            Err(halt) => return Poll::Ready(Err(Stop::End(halted(halt, request.version)))),
        }
        if forwarding.body.complete() && !was_complete {
            let now = now.unwrap_or_else(Instant::now);
            note_received(forwarding, info, &mut limits, now);
            limits.start_try(&forwarding.timeouts, now);
            caller.timer.set(limits.next());
        }
        now = None;
        loop {
            match lease.upstream.poll_response(cx) {
                Poll::Ready(Ok(response)) if response.status.is_informational() && response.upgrade.is_none() => {
                    informational += 1;
                    if informational > MOST_INFORMATIONAL {
                        return Poll::Ready(Err(Stop::Failed(StreamError::Protocol.into())));
                    }
                    note_informational(forwarding, response.status);
                    limits.try_ends = None;
                    caller.timer.set(limits.next());
                    // Our own 100 went out when the body was asked for.
                    if response.status != StatusCode::CONTINUE {
                        caller.down.send_informational(response.status, &response.headers);
                        let _ = caller.down.poll_flush(cx);
                    }
                }
                Poll::Ready(Ok(response)) => return Poll::Ready(Ok(response)),
                Poll::Ready(Err(e)) => return Poll::Ready(Err(Stop::Failed(e.into()))),
                Poll::Pending => break,
            }
        }
        if (forwarding.body.complete() || request.version == Version::Http2) && caller.down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(Stop::End(End::Gone)));
        }
        if let Poll::Ready(answer) = forwarding.late.poll(cx, &forwarding.body, request, retries) {
            return Poll::Ready(Err(Stop::Overtaken(answer)));
        }
        while caller.timer.poll(cx).is_ready() {
            let why = limits.expired(Instant::now());
            if !forwarding.timeouts.hedge || !matches!(why, Failure::PerTryTimeout | Failure::PerTryIdleTimeout) {
                return Poll::Ready(Err(Stop::Failed(why.into())));
            }
            if !forwarding.begun
                && let Some(progress) = forwarding.body.progress()
            {
                return Poll::Ready(Err(Stop::Late(progress)));
            }
            // What could not be sent again is waited for as long as it takes.
            limits = Limits::new(forwarding, Instant::now());
            caller.timer.set(limits.next());
        }
        Poll::Pending
    })
    .await
}
