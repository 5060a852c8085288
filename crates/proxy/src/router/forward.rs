//! Forwarding: picks the cluster, prepares the request, tries hosts until one answers, relays the answer.
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use http::HeaderValue;
use lateen_balance::{Criteria, Host};
use lateen_snapshot::route::{BufferLimit, Forward};
use lateen_telemetry::envoy_names::{cluster as cluster_names, count_upstream_code, http as names};
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::attempt::{self, Answered, Tried};
use super::hedge::LateTries;
use super::outcome::{Failed, Failure};
use super::passed::Passed;
use super::replay::{Ahead, Body};
use super::retry::{Decision, Retries};
use super::timeouts::{Inherited, ListenerLimits, Timeouts};
use super::{finalize, hash, hedge, internal_redirect, lookup, mirror, relay};
use crate::http::headers as header_names;
use crate::http::message::Version;
use crate::http::reply::Reply;
use crate::http::{End, Exchange, Matched};
use crate::io::Text;
use crate::spans;
use crate::upstream::ClusterState;

/// Envoy's default for `per_connection_buffer_limit_bytes` bounds the kept body by 1 MiB; its retry buffer by
/// 64 KiB where nothing else is said.
const KEPT_BODY: usize = 64 * 1024;

/// Whatever a route says, a request keeps no more than this.
const MOST_KEPT: usize = 64 << 20;

/// One forwarded request's state over its tries.
pub(super) struct Forwarding {
    pub(super) cluster: Rc<ClusterState>,
    pub(super) body: Body,
    pub(super) timeouts: Timeouts,
    pub(super) hash: Option<u64>,
    /// What the host's subset must be, where the cluster has subsets.
    pub(super) criteria: Option<Arc<Criteria>>,
    /// The host that was asked for, where requests get the name of their endpoint instead: names and certificates of connections
    /// are by this one, whichever try it is (Envoy settles them before it chooses a host).
    pub(super) asked_for: Option<Text>,
    /// Hosts of tries that were not enough.
    pub(super) tried: Vec<Arc<Host>>,
    pub(super) passed: Passed,
    /// An answer has told of its host's load.
    pub(super) load_told: bool,
    /// An interim response went to the caller: whatever becomes of its try, there is no other (Envoy `Filter::onUpstream1xxHeaders`).
    pub(super) begun: bool,
    pub(super) high_priority: bool,
    /// When all of the request was here.
    pub(super) received: Option<Instant>,
    /// When the whole request must be over; set when the request has been received.
    pub(super) deadline: Option<Instant>,
    pub(super) stream_deadline: Option<Instant>,
    /// When the caller must have sent all of the request (the listener's `request_timeout`).
    pub(super) request_deadline: Option<Instant>,
    pub(super) late: LateTries,
}

pub(super) async fn run(exchange: &mut Exchange<'_>, matched: &Matched, forward: &Forward) -> Result<(), End> {
    let (mut forwarding, mut retries) = begin(exchange, matched, forward)?;
    let result = tries(exchange, matched, forward, &mut forwarding, &mut retries).await;
    // A chain counts what comes in; what goes out of it is something else.
    if exchange.bodies.is_none() {
        exchange.info.body_received = forwarding.body.received;
    }
    if let (Some(call), Some(messages)) = (&mut exchange.info.grpc_call, forwarding.body.messages) {
        call.request = messages;
    }
    result
}

/// Finds the cluster and makes the request what its tries send.
fn begin(exchange: &mut Exchange<'_>, matched: &Matched, forward: &Forward) -> Result<(Forwarding, Retries), End> {
    let id = lookup::cluster_of(matched, &exchange.live.snapshot, &exchange.request);
    let Some(cluster) = id.and_then(|id| exchange.live.cluster(exchange.worker, id)) else {
        exchange.hcm.stats.inc(names::NO_CLUSTER);
        let status = forward.cluster_not_found_status.as_u16();
        // Envoy answers this with an empty body; a rule that names a subset nobody defines is easier found by its name.
        let name = id.and_then(|id| lookup::name_of(&exchange.live.snapshot, id));
        let body = name.map_or_else(String::new, |name| format!("cluster not found: {name}"));
        return Err(Reply::new(status, body, details::CLUSTER_NOT_FOUND, ResponseFlags::NO_CLUSTER_FOUND).into());
    };
    exchange.info.cluster = Some(Rc::clone(&cluster));
    if cluster.cluster.hosts.dropped_per_million > 0 {
        drop_overload(exchange, &cluster)?;
    }
    let policy = forward.retry.clone().or_else(|| matched.virtual_host().and_then(|h| h.settings.retry.clone()));
    let listener = ListenerLimits {
        idle: exchange.hcm.config.stream_idle_timeout,
        flush: exchange.hcm.config.stream_flush_timeout,
        stream: exchange.hcm.config.max_stream_duration,
    };
    let inherited = Inherited {
        listener,
        hedge: matched.virtual_host().is_some_and(|h| h.settings.hedge_on_per_try_timeout),
        respects_expected: exchange.hcm.router.respect_expected_rq_timeout,
    };
    let timeouts = Timeouts::new(&exchange.request, forward, policy.as_deref(), inherited);
    let retries = Retries::new(policy, &exchange.request);
    // Those of a redirect that was followed are over.
    exchange.info.affinity_cookies.clear();
    let own = &cluster.cluster.config.hash;
    let mut hash = if forward.hash.is_empty() || !own.is_empty() { None } else { hash::of(exchange, &forward.hash) };
    let criteria = if cluster.is_divided() { lookup::criteria(exchange, matched, forward) } else { None };
    finalize::request(exchange, matched, forward, &timeouts);
    if !own.is_empty() {
        // By what the host will see.
        hash = hash::of(exchange, own);
    }
    let upgrade = exchange.request.upgrade.is_some();
    let mirrored = !forward.mirrors.is_empty() && !upgrade;
    let mirrors = if mirrored { mirror::start(exchange, &forward.mirrors) } else { mirror::Mirrors::default() };
    let limit = exchange.bodies.as_ref().and_then(|b| b.kept);
    let cap = if upgrade { 0 } else { limit.unwrap_or_else(|| kept_body(exchange, matched)) };
    let ahead = Ahead::new(&exchange.conn.ahead, exchange.conn.listener.listener.per_connection_buffer_limit as usize);
    let body = Body::new(exchange.request.has_body(), upgrade, cap, ahead, mirrors);
    let start = exchange.info.start;
    let mut forwarding = Forwarding {
        body,
        stream_deadline: timeouts.stream.and_then(|limit| start.checked_add(limit)),
        request_deadline: exchange.hcm.config.request_timeout.filter(|_| !upgrade).and_then(|limit| start.checked_add(limit)),
        cluster,
        timeouts,
        hash,
        criteria,
        asked_for: None,
        tried: Vec::new(),
        passed: Passed::default(),
        load_told: false,
        begun: false,
        high_priority: forward.high_priority,
        received: None,
        deadline: None,
        late: LateTries::default(),
    };
    if exchange.info.grpc_call.is_some() {
        forwarding.body.count_messages();
    }
    Ok((forwarding, retries))
}

/// Turns away the share of requests that the control plane wants dropped, whose servers have too much to do.
fn drop_overload(exchange: &Exchange<'_>, cluster: &ClusterState) -> Result<(), End> {
    let dropped = cluster.cluster.hosts.dropped_per_million;
    let (text, details, flags, header) = if dropped >= 1_000_000 {
        let flags = ResponseFlags::UNCONDITIONAL_DROP_OVERLOAD;
        ("unconditional drop overload", details::UNCONDITIONAL_DROP_OVERLOAD, flags, header_names::DROPPED_ALWAYS)
    } else if exchange.worker.roll64() % 1_000_000 < u64::from(dropped) {
        ("drop overload", details::DROP_OVERLOAD, ResponseFlags::DROP_OVERLOAD, header_names::DROPPED)
    } else {
        return Ok(());
    };
    count_upstream_code(&cluster.stats, 503);
    let reply = Reply::new(503, text, details, flags);
    let suppress = exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers;
    Err(if suppress { reply } else { reply.with_header(header, HeaderValue::from_static("true")) }.into())
}

/// How much of the body may be sent again.
fn kept_body(exchange: &Exchange<'_>, matched: &Matched) -> usize {
    let connection = exchange.conn.listener.listener.per_connection_buffer_limit as usize;
    let own = match matched.route.buffer_limit {
        BufferLimit::Inherited => matched.virtual_host().map_or(BufferLimit::Inherited, |h| h.settings.buffer_limit),
        own => own,
    };
    let bytes = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    match own {
        BufferLimit::Inherited => KEPT_BODY.min(connection),
        BufferLimit::Own(n) => bytes(n).min(MOST_KEPT),
        BufferLimit::Below(n) => bytes(n).min(connection),
    }
}

async fn tries(
    exchange: &mut Exchange<'_>,
    matched: &Matched,
    forward: &Forward,
    forwarding: &mut Forwarding,
    retries: &mut Retries,
) -> Result<(), End> {
    let count_attempts = matched.virtual_host().is_some_and(|h| h.settings.include_request_attempt_count);
    // A server that closes idle connections closes many at once: each repeat may meet another of them.
    let mut free_repeats = 8;
    let mut again = false;
    // Held while the retry lasts.
    let mut permit = None;
    let outcome = loop {
        if again {
            exchange.info.moment = Instant::now();
        }
        again = true;
        exchange.info.attempts += 1;
        if count_attempts {
            exchange.request.headers.insert(header_names::ATTEMPT_COUNT, header_names::numeric(exchange.info.attempts.into()));
        }
        if exchange.info.span.is_some() {
            spans::begin_try(exchange);
        }
        let tried = attempt::run(exchange, forward, forwarding, retries).await?;
        let decision = match &tried {
            _ if forwarding.begun => Decision::No,
            Tried::Response(answered) => retries.after_response(&answered.response, &exchange.request),
            // A pooled connection that its peer had closed says nothing about the host.
            Tried::Failed { stale: true, .. } if free_repeats > 0 && forwarding.body.repeatable() => {
                free_repeats -= 1;
                exchange.info.attempts -= 1;
                forwarding.body.rewind();
                continue;
            }
            Tried::Failed { failed, sent_any, .. } => retries.after_failure(failed.failure, *sent_any),
            Tried::Late(_) => retries.after_slowness(),
        };
        // The retry before is over, and its place may be taken.
        let retried = permit.take().is_some();
        if retried && decision == Decision::No && forwarding.body.repeatable() && !forwarding.begun && tried.is_judged() {
            forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_RETRY_SUCCESS);
        }
        if decision == Decision::Retry && forwarding.body.repeatable() {
            permit = forwarding.cluster.breakers(forwarding.high_priority).take_retry(|| exchange.worker.millis());
            if permit.is_some() {
                match Box::pin(prepare_retry(exchange, matched, forwarding, retries, tried)).await? {
                    Some(answered) => break Ok(answered),
                    None => continue,
                }
            }
            forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_RETRY_OVERFLOW);
            exchange.info.flags.insert(ResponseFlags::UPSTREAM_OVERFLOW);
        } else if decision == Decision::Exhausted {
            forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_RETRY_LIMIT_EXCEEDED);
            exchange.info.flags.insert(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED);
        }
        // What would be tried again is no answer while there may be a better one.
        let wanting = match &tried {
            Tried::Late(_) => true,
            Tried::Response(_) => decision != Decision::No && !forwarding.late.is_empty(),
            Tried::Failed { failed, .. } => !failed.failure.ends_request() && !forwarding.late.is_empty(),
        };
        break match tried {
            _ if wanting => Box::pin(hedge::outcome(exchange, forwarding, retries, tried)).await?,
            Tried::Response(answered) => Ok(answered),
            Tried::Failed { failed, .. } => Err(failed),
            // Wanting, always.
            Tried::Late(_) => Err(Failure::PerTryTimeout.into()),
        };
    };
    conclude(exchange, matched, forward, forwarding, outcome, retries).await
}

/// Waits, and makes the request ready for its next try. Returns the answer of a slower try that came meanwhile.
async fn prepare_retry(
    exchange: &mut Exchange<'_>,
    matched: &Matched,
    forwarding: &mut Forwarding,
    retries: &mut Retries,
    tried: Tried,
) -> Result<Option<Box<Answered>>, End> {
    let slow = match tried {
        Tried::Late(late) => {
            forwarding.late.push(*late);
            true
        }
        Tried::Failed { failed, .. } => failed.failure.is_timeout(),
        Tried::Response(answered) => {
            // Others may have its place while this request waits.
            answered.leave(exchange.info.moment);
            false
        }
    };
    forwarding.tried.extend(exchange.info.host.clone());
    let wait = retries.take(exchange.worker.roll64());
    if let Some(answered) = back_off(exchange, forwarding, wait.span, retries).await? {
        return Ok(Some(answered));
    }
    // As in Envoy, a retry that its request's end forestalls is none.
    let stats = &forwarding.cluster.stats;
    stats.inc(cluster_names::UPSTREAM_RQ_RETRY);
    stats.inc(if wait.rate_limited {
        cluster_names::UPSTREAM_RQ_RETRY_BACKOFF_RATELIMITED
    } else {
        cluster_names::UPSTREAM_RQ_RETRY_BACKOFF_EXPONENTIAL
    });
    forwarding.body.rewind();
    finalize::expected_timeout(exchange, forwarding);
    if matched.virtual_host().is_some_and(|h| h.settings.include_is_timeout_retry) {
        exchange.request.headers.insert(header_names::IS_TIMEOUT_RETRY, HeaderValue::from_static(if slow { "true" } else { "false" }));
    }
    Ok(None)
}

async fn conclude(
    exchange: &mut Exchange<'_>,
    matched: &Matched,
    forward: &Forward,
    forwarding: &mut Forwarding,
    outcome: Result<Box<Answered>, Failed>,
    retries: &Retries,
) -> Result<(), End> {
    forwarding.late.forget();
    match outcome {
        Ok(answered) => {
            let response = &answered.response;
            if let Some(policy) = &forward.internal_redirect
                && internal_redirect::follow(exchange, matched, policy, forwarding, response)
            {
                return internal_redirect::leave(exchange, *answered);
            }
            // What was tried again or leads elsewhere is no response of the cluster that the route names.
            count_upstream_code(&forwarding.cluster.stats, answered.response.status.as_u16());
            relay::run(exchange, forwarding, answered).await
        }
        Err(failed) => {
            if failed.failure != Failure::NameNotResolved {
                exchange.info.transport_failure = details::underscored(&failed.transport).into_owned();
            }
            match failed.failure {
                Failure::Timeout => forwarding.cluster.stats.inc(cluster_names::UPSTREAM_RQ_TIMEOUT),
                Failure::SlowRequest => exchange.hcm.stats.inc(names::DOWNSTREAM_RQ_TIMEOUT),
                _ => {}
            }
            let mut reply = failed.reply(retries.taken() > 0, forwarding.body.complete(), forwarding.timeouts.quiet);
            if forwarding.begun {
                reply.details = failed.after_response();
            } else if failed.failure.is_of_cluster() {
                count_upstream_code(&forwarding.cluster.stats, reply.status.as_u16());
            }
            Err(reply.into())
        }
    }
}

/// Waits before the next try, within the request's own limit. Returns the answer of a slower try that came meanwhile.
async fn back_off(
    exchange: &mut Exchange<'_>,
    forwarding: &mut Forwarding,
    wait: std::time::Duration,
    retries: &Retries,
) -> Result<Option<Box<Answered>>, End> {
    let until = Instant::now() + wait;
    let limit = [forwarding.deadline, forwarding.stream_deadline].into_iter().flatten().min();
    exchange.timer.set(Some(limit.map_or(until, |limit| limit.min(until))));
    let (timer, down, request) = (&mut exchange.timer, &mut exchange.down, &exchange.request);
    let Forwarding { late, body, .. } = &mut *forwarding;
    let answer = poll_fn(|cx| {
        // What comes on an HTTP/1 connection before the request is complete is the request.
        if (body.complete() || request.version == Version::Http2) && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        if let Poll::Ready(answer) = late.poll(cx, body, request, retries) {
            return Poll::Ready(Ok(Some(answer)));
        }
        timer.poll(cx).map(|()| Ok(None))
    })
    .await?;
    if let Some(answer) = answer {
        return Ok(Some(answer.settle(exchange, forwarding)));
    }
    let now = Instant::now();
    if limit.is_none_or(|limit| limit > now) {
        return Ok(None);
    }
    let timeout = forwarding.deadline.is_some_and(|limit| limit <= now);
    let failed = Failed::from(if timeout { Failure::Timeout } else { Failure::StreamDuration });
    let reply = failed.reply(true, forwarding.body.complete(), forwarding.timeouts.quiet);
    if timeout {
        forwarding.late.count_timeout(&forwarding.cluster, reply.status.as_u16());
    }
    Err(reply.into())
}
