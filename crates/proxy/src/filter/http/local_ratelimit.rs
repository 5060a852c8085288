//! Local rate limits: token buckets that the workers share (Envoy local_ratelimit filter; texts and headers are Envoy's).
use std::rc::Rc;
use std::sync::Arc;

use http::HeaderValue;
use http::header::RETRY_AFTER;
use lateen_snapshot::ratelimit::{Counted, LimitFacts, Limiter, LocalRateLimit, TokenBucket, Verdict};
use lateen_telemetry::envoy_names::local_rate_limit as names;
use lateen_telemetry::{BlockName, ResponseFlags, details};

use super::{Step, descriptors, per_route};
use crate::http::Exchange;
use crate::http::headers::{RATE_LIMIT_LIMIT, RATE_LIMIT_REMAINING, RATE_LIMIT_RESET};
use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::router::{changes, lookup};

/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u32 = 8;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<LocalRateLimit>) -> Step {
    let config = per_route(exchange, |p| p.local_rate_limit.as_ref()).unwrap_or_else(|| Arc::clone(config));
    if !config.enabled.hits(exchange.worker.roll()) {
        return Step::Continue;
    }
    let prefix = &config.stat_prefix;
    let stats = exchange.hcm.counters.get(exchange.worker, names::DEFS, prefix, || BlockName::http_local_rate_limit(prefix));
    stats.inc(names::ENABLED);
    let now = exchange.worker.nanos();
    let (verdict, bucket) = take(exchange, &config, now);
    let reset = bucket.as_ref().map(|b| b.reset(now));
    if config.quota_headers {
        exchange.info.quotas.extend(bucket);
    }
    if verdict == Verdict::Allowed {
        stats.inc(names::OK);
        return Step::Continue;
    }
    stats.inc(names::RATE_LIMITED);
    if verdict == Verdict::Shadowed {
        stats.inc(names::SHADOW_MODE);
        return Step::Continue;
    }
    if !config.enforced.hits(exchange.worker.roll()) {
        changes::of_request(exchange, &config.request_headers);
        return Step::Continue;
    }
    stats.inc(names::ENFORCED);
    Step::Reply(refusal(exchange, &config, reset))
}

fn refusal(exchange: &Exchange<'_>, config: &LocalRateLimit, reset: Option<u64>) -> Reply {
    let mut reply = Reply::new(config.status, "local_rate_limited", details::LOCAL_RATE_LIMITED, ResponseFlags::RATE_LIMITED);
    for (name, value) in &changes::of_reply(exchange, &config.response_headers) {
        reply = reply.with_header(name.clone(), value.clone());
    }
    if config.retry_after {
        reply = reply.with_header(RETRY_AFTER, HeaderValue::from(reset.unwrap_or(0).max(1)));
    }
    reply.grpc_status = config.resource_exhausted.then_some(RESOURCE_EXHAUSTED);
    reply
}

fn take(exchange: &Exchange<'_>, config: &Arc<LocalRateLimit>, now: u64) -> (Verdict, Option<Arc<TokenBucket>>) {
    let own = config.per_connection.then(|| of_connection(exchange, config));
    let limiter = own.as_deref().unwrap_or(&config.limiter);
    if limiter.described.is_empty() {
        let (verdict, bucket) = limiter.take(&[], now);
        return (verdict, bucket.cloned());
    }
    let head = lookup::head_of(&exchange.request);
    let described = descriptors(exchange, config, &descriptors::facts(exchange, &head));
    let (verdict, bucket) = limiter.take(&described, now);
    (verdict, bucket.cloned())
}

/// The connection's own buckets, made full at its first request.
fn of_connection(exchange: &Exchange<'_>, config: &Arc<LocalRateLimit>) -> Rc<Limiter> {
    let mut known = exchange.conn.limits.borrow_mut();
    if let Some((_, limiter)) = known.iter().find(|(of, _)| Arc::ptr_eq(of, config)) {
        return Rc::clone(limiter);
    }
    let limiter = Rc::new(config.limiter.fresh());
    // Configurations that were replaced are seen no more: a long connection must not gather them.
    known.retain(|(of, _)| Arc::strong_count(of) > 1);
    known.push((Arc::clone(config), Rc::clone(&limiter)));
    limiter
}

/// What the request counts as: by the filter's own limits, or the route's and the virtual host's.
fn descriptors<'a>(exchange: &'a Exchange<'_>, config: &'a LocalRateLimit, facts: &LimitFacts<'a>) -> Vec<Counted<'a>> {
    if config.limits.is_empty() {
        return descriptors::of_route(exchange, config.virtual_host, config.stage, facts);
    }
    descriptors::of(exchange, config.limits.iter().filter(|l| l.stage == config.stage), facts)
}

/// Tells the caller how much is left.
pub(super) fn on_response(exchange: &mut Exchange<'_>, response: &mut Response) {
    let now = exchange.worker.nanos();
    for bucket in exchange.info.quotas.drain(..) {
        response.headers.append(RATE_LIMIT_LIMIT, bucket.most().into());
        response.headers.append(RATE_LIMIT_REMAINING, bucket.remaining(now).into());
        response.headers.append(RATE_LIMIT_RESET, bucket.reset(now).into());
    }
}
