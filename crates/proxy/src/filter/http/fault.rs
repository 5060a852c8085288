//! Fault injection: slow answers, delays, then aborts (Envoy fault filter; texts and details are Envoy's).
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;
use lateen_snapshot::bandwidth::ByteBucket;
use lateen_snapshot::http::{AbortKind, DelayKind, Fault, FaultAbort, RateKind};
use lateen_snapshot::matcher::Fraction;
use lateen_telemetry::envoy_names::fault as names;
use lateen_telemetry::{ResponseFlags, details};

use super::body::throttle::{SLICE, Throttled};
use super::{Step, per_route, wait};
use crate::http::headers::{self, DOWNSTREAM_NODE};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::lookup;

const ABORT: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request");
const ABORT_GRPC: HeaderName = HeaderName::from_static("x-envoy-fault-abort-grpc-request");
const ABORT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-abort-request-percentage");
const DELAY: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request");
const DELAY_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-delay-request-percentage");
const THROUGHPUT: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response");
const THROUGHPUT_PERCENTAGE: HeaderName = HeaderName::from_static("x-envoy-fault-throughput-response-percentage");

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Fault>, index: usize) -> Result<Step, End> {
    let fault = per_route(exchange, |p| p.fault.as_ref()).unwrap_or_else(|| Arc::clone(config));
    if fault.delay.is_none() && fault.abort.is_none() && fault.rate_limit.is_none() {
        return Ok(Step::Continue);
    }
    let stats = &exchange.hcm.fault;
    if fault.max_active_faults.is_some_and(|most| stats.block().gauge(names::ACTIVE_FAULTS) >= u64::from(most)) {
        stats.inc(names::FAULTS_OVERFLOW);
        return Ok(Step::Continue);
    }
    if !applies(exchange, &fault) {
        return Ok(Step::Continue);
    }
    let rate = rate(exchange, &fault);
    let (delay, abort) = (delay(exchange, &fault), abort(exchange, &fault));
    if rate.is_none() && delay.is_none() && abort.is_none() {
        return Ok(Step::Continue);
    }
    // It is over with the exchange.
    let active = exchange.hcm.fault.hold(names::ACTIVE_FAULTS);
    exchange.bodies().note(index, active);
    if let Some(rate) = rate {
        exchange.hcm.fault.inc(names::RESPONSE_RL_INJECTED);
        exchange.bodies().note(index, Rate(rate));
    }
    if let Some(delay) = delay {
        hold_up(exchange, delay).await?;
    }
    let Some((kind, body)) = abort else { return Ok(Step::Continue) };
    exchange.hcm.fault.inc(names::ABORTS_INJECTED);
    let mut reply = Reply::new(200, body, details::FAULT_FILTER_ABORT, ResponseFlags::FAULT_INJECTED);
    match kind {
        Aborted::Http(status) => reply.status = http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::SERVICE_UNAVAILABLE),
        Aborted::Grpc(status) => reply.grpc_status = Some(status),
    }
    Ok(Step::Reply(reply))
}

/// Bytes a second that the response may have.
struct Rate(u64);

/// A response that is to be slow is slowed down.
pub(super) fn on_response(exchange: &mut Exchange<'_>, index: usize) {
    if let Some(Rate(rate)) = exchange.noted(index) {
        let bucket = Arc::new(ByteBucket::holding(*rate, SLICE));
        let stage = Throttled::new(bucket, SLICE, ());
        exchange.change_response_body(stage);
    }
}

async fn hold_up(exchange: &mut Exchange<'_>, delay: Duration) -> Result<(), End> {
    exchange.hcm.fault.inc(names::DELAYS_INJECTED);
    exchange.info.flags.insert(ResponseFlags::DELAY_INJECTED);
    // As long as nothing comes or goes the exchange is idle, and that has a limit of its own.
    let idle = wait::idle_limit(exchange).filter(|limit| *limit < delay);
    wait::at_most(exchange, idle.unwrap_or(delay), pending::<()>()).await?;
    if idle.is_some() { Err(wait::idle(exchange.down.request_done()).into()) } else { Ok(()) }
}

/// Whether the dice say so; a caller's header may make it rarer where headers say what happens.
fn hits(exchange: &Exchange<'_>, fraction: Fraction, by_header: Option<HeaderName>) -> bool {
    let asked = by_header.and_then(|name| headers::number(&exchange.request.headers, &name));
    let numerator = asked.map_or(fraction.numerator, |n| fraction.numerator.min(u32::try_from(n).unwrap_or(u32::MAX)));
    Fraction { numerator, ..fraction }.hits(exchange.worker.roll())
}

fn rate(exchange: &Exchange<'_>, fault: &Fault) -> Option<u64> {
    let limit = fault.rate_limit?;
    let (kbps, header) = match limit.kind {
        RateKind::Fixed(kbps) => (Some(kbps), None),
        RateKind::Header => (headers::number(&exchange.request.headers, &THROUGHPUT).filter(|n| *n > 0), Some(THROUGHPUT_PERCENTAGE)),
    };
    Some(kbps?.saturating_mul(1024)).filter(|_| hits(exchange, limit.fraction, header))
}

fn delay(exchange: &Exchange<'_>, fault: &Fault) -> Option<Duration> {
    let delay = fault.delay?;
    let (span, header) = match delay.kind {
        DelayKind::Fixed(span) => (Some(span), None),
        DelayKind::Header => (headers::number(&exchange.request.headers, &DELAY).map(Duration::from_millis), Some(DELAY_PERCENTAGE)),
    };
    span.filter(|span| !span.is_zero() && hits(exchange, delay.fraction, header))
}

enum Aborted {
    Http(u16),
    Grpc(u32),
}

fn abort(exchange: &Exchange<'_>, fault: &Fault) -> Option<(Aborted, std::borrow::Cow<'static, str>)> {
    let FaultAbort { kind, fraction, body } = fault.abort.as_ref()?;
    let number = |name: HeaderName| headers::number(&exchange.request.headers, &name);
    let (aborted, header) = match kind {
        AbortKind::Http(status) => (Some(Aborted::Http(*status)), None),
        AbortKind::Grpc(status) => (Some(Aborted::Grpc(*status)), None),
        AbortKind::Header => {
            let http = number(ABORT).and_then(|n| u16::try_from(n).ok()).filter(|s| (200..600).contains(s)).map(Aborted::Http);
            let grpc = || number(ABORT_GRPC).and_then(|n| u32::try_from(n).ok()).map(Aborted::Grpc);
            (http.or_else(grpc), Some(ABORT_PERCENTAGE))
        }
    };
    let text = body.as_deref().map_or("fault filter abort".into(), |b| b.to_owned().into());
    Some((aborted?, text)).filter(|_| hits(exchange, *fraction, header))
}

fn applies(exchange: &Exchange<'_>, fault: &Fault) -> bool {
    let cluster_fits = fault.upstream_cluster.as_ref().is_none_or(|wanted| {
        let id = exchange.info.route.as_ref().and_then(lookup::fixed_cluster);
        id.and_then(|id| exchange.live.snapshot.cluster(id)).is_some_and(|c| c.config.name == *wanted)
    });
    let node = || headers::text(&exchange.request.headers, &DOWNSTREAM_NODE);
    cluster_fits
        && (fault.downstream_nodes.is_empty() || node().is_some_and(|node| fault.downstream_nodes.iter().any(|n| **n == *node)))
        && fault.headers.iter().all(|m| lookup::header_matches(m, &exchange.request))
}
