//! Global rate limits: a service counts requests for many proxies (Envoy ratelimit filter).
use std::rc::Rc;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::common::ratelimit::v3::{self as common, rate_limit_descriptor};
use lateen_proto::envoy::service::ratelimit::v3::{self as rls, rate_limit_response as response};
use lateen_snapshot::global_ratelimit::{GlobalRateLimit, LimitedRequests};
use lateen_snapshot::header::AppendAction;
use lateen_snapshot::metadata;
use lateen_snapshot::ratelimit::{Counted, VirtualHostLimits};
use lateen_telemetry::envoy_names::{count_upstream_code, ratelimit as names};
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};

use super::heads::{self, Mutation, Target};
use super::{Step, descriptors, per_route, wait};
use crate::http::headers::{RATE_LIMIT_LIMIT, RATE_LIMIT_REMAINING, RATE_LIMIT_RESET, RATE_LIMITED};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::{changes, lookup};
use crate::upstream::{ClusterState, grpc};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u32 = 8;

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<GlobalRateLimit>) -> Result<Step, End> {
    if !config.enabled.hits(exchange.worker.roll()) || !counts(exchange, config.requests) {
        return Ok(Step::Continue);
    }
    let Some(question) = question(exchange, config) else { return Ok(Step::Continue) };
    let Some(cluster) = cluster(exchange) else { return Ok(Step::Continue) };
    let prefix = &config.stat_prefix;
    let name = || BlockName::cluster(&cluster.cluster.config.stat_name).below(prefix);
    let stats = cluster.counters.get(exchange.worker, names::DEFS, prefix, name);
    let (worker, live) = (exchange.worker.clone(), exchange.live.clone());
    let asking = Box::pin(grpc::unary::<rls::RateLimitResponse>(&worker, &live, &config.service, METHOD, &question));
    match wait::patiently(exchange, asking).await? {
        Ok(answer) if is_excessive(&answer) => Ok(failed(exchange, config, &stats)),
        Ok(answer) => Ok(decide(exchange, config, &cluster, &stats, answer)),
        Err(status) => {
            tracing::debug!(code = status.code, message = status.message, "the rate limit service failed");
            Ok(failed(exchange, config, &stats))
        }
    }
}

fn counts(exchange: &Exchange<'_>, requests: LimitedRequests) -> bool {
    match requests {
        LimitedRequests::Both => true,
        LimitedRequests::Internal => exchange.info.internal,
        LimitedRequests::External => !exchange.info.internal,
    }
}

/// The cluster that the request is for; what is not forwarded is not counted.
fn cluster(exchange: &Exchange<'_>) -> Option<Rc<ClusterState>> {
    let matched = exchange.info.route.as_ref()?;
    let id = lookup::cluster_of(matched, &exchange.live.snapshot, &exchange.request)?;
    exchange.live.cluster(exchange.worker, id)
}

/// What the service is asked; `None` where the request counts as nothing.
fn question(exchange: &Exchange<'_>, config: &GlobalRateLimit) -> Option<rls::RateLimitRequest> {
    let by_route = per_route(exchange, |p| p.rate_limit.as_ref());
    let head = lookup::head_of(&exchange.request);
    let facts = descriptors::facts(exchange, &head);
    let own = by_route.as_ref().map(|r| &r.limits).filter(|l| !l.is_empty());
    let descriptors = match own.or(Some(&config.limits).filter(|l| !l.is_empty())) {
        Some(limits) => descriptors::of(exchange, limits.iter(), &facts),
        None => {
            let host = by_route.as_ref().map_or(VirtualHostLimits::Override, |r| r.virtual_host);
            descriptors::of_route(exchange, host, config.stage, &facts)
        }
    };
    let domain = by_route.as_ref().and_then(|r| r.domain.as_ref()).unwrap_or(&config.domain);
    let descriptors: Vec<_> = descriptors.into_iter().map(descriptor).collect();
    (!descriptors.is_empty()).then(|| rls::RateLimitRequest { domain: domain.to_string(), descriptors, hits_addend: 0 })
}

fn descriptor(of: Counted<'_>) -> common::RateLimitDescriptor {
    let entry =
        |e: lateen_snapshot::ratelimit::Entry<'_>| rate_limit_descriptor::Entry { key: e.key.into_owned(), value: e.value.into_owned() };
    common::RateLimitDescriptor {
        entries: of.entries.into_iter().map(entry).collect(),
        hits_addend: of.hits.count,
        is_negative_hits: of.hits.negative,
        ..Default::default()
    }
}

/// Whether a service wants more headers than a head may be given.
fn is_excessive(answer: &rls::RateLimitResponse) -> bool {
    answer.request_headers_to_add.len().max(answer.response_headers_to_add.len()) > heads::MOST_ADDED
}

fn decide(
    exchange: &mut Exchange<'_>,
    config: &GlobalRateLimit,
    cluster: &ClusterState,
    stats: &Local,
    answer: rls::RateLimitResponse,
) -> Step {
    let over = answer.overall_code == response::Code::OverLimit as i32;
    if let Some(said) = &answer.dynamic_metadata {
        for (key, value) in &said.fields {
            exchange.info.metadata.set(&config.metadata_namespace, key, metadata::from_proto(value));
        }
    }
    let mut headers = mutations(answer.response_headers_to_add);
    if over {
        stats.inc(names::OVER_LIMIT);
        count_upstream_code(&cluster.stats, config.status);
        if config.marks {
            headers.push(appended(RATE_LIMITED, HeaderValue::from_static("true")));
        }
    } else {
        stats.inc(names::OK);
    }
    if config.quota_headers {
        headers.extend(quota(&answer.statuses));
    }
    if over && config.enforced.hits(exchange.worker.roll()) {
        if config.retry_after && config.status == 429 && !headers.iter().any(|m| m.target == Target::Header(RETRY_AFTER)) {
            headers.extend(retry_after(&answer.statuses));
        }
        return Step::Reply(refusal(exchange, config, headers, answer.raw_body.to_vec()));
    }
    for mutation in mutations(answer.request_headers_to_add) {
        heads::change_request(exchange, &mutation);
    }
    exchange.info.add_response_mutations(headers);
    Step::Continue
}

fn failed(exchange: &Exchange<'_>, config: &GlobalRateLimit, stats: &Local) -> Step {
    stats.inc(names::ERROR);
    if !config.failure_mode_deny.hits(exchange.worker.roll()) {
        stats.inc(names::FAILURE_MODE_ALLOWED);
        return Step::Continue;
    }
    let flags = ResponseFlags::RATE_LIMIT_SERVICE_ERROR;
    Step::Reply(Reply::new(config.status_on_error, "", details::RATE_LIMITER_ERROR, flags))
}

fn refusal(exchange: &Exchange<'_>, config: &GlobalRateLimit, headers: Vec<Mutation>, body: Vec<u8>) -> Reply {
    let mut reply = Reply::new(config.status, "", details::REQUEST_RATE_LIMITED, ResponseFlags::RATE_LIMITED);
    reply.body = body.into();
    reply.grpc_status = config.resource_exhausted.then_some(RESOURCE_EXHAUSTED);
    for Mutation { target, value, .. } in headers {
        match target {
            Target::Header(name) if name == CONTENT_TYPE => reply.content_type = Some(value),
            Target::Header(name) => reply = reply.with_header(name, value),
            _ => {}
        }
    }
    for (name, value) in &changes::of_reply(exchange, &config.response_headers) {
        reply = reply.with_header(name.clone(), value.clone());
    }
    reply
}

fn appended(name: HeaderName, value: HeaderValue) -> Mutation {
    Mutation { target: Target::Header(name), value, action: AppendAction::AppendIfExistsOrAdd, joins: false }
}

/// What the service wants in a head, without what no head can hold.
fn mutations(headers: Vec<core::HeaderValue>) -> Vec<Mutation> {
    let one = |header: core::HeaderValue| {
        let value = if header.value.is_empty() { &header.raw_value[..] } else { header.value.as_bytes() };
        match heads::target(&header.key) {
            Ok(Some(Target::Header(name))) => Some(appended(name, HeaderValue::from_bytes(value).ok()?)),
            _ => None,
        }
    };
    headers.into_iter().filter_map(one).collect()
}

/// The limit that is nearest to being reached, and all limits with their windows (draft-polli-ratelimit-headers-03).
fn quota(statuses: &[response::DescriptorStatus]) -> Vec<Mutation> {
    let limited = || statuses.iter().filter_map(|s| Some((s, s.current_limit.as_ref()?)));
    let Some((nearest, limit)) = limited().min_by_key(|(status, _)| status.limit_remaining) else { return Vec::new() };
    let mut policy = limit.requests_per_unit.to_string();
    for (_, limit) in limited() {
        let Some(window) = seconds(limit.unit) else { continue };
        policy.push_str(&format!(", {};w={window}", limit.requests_per_unit));
        if !limit.name.is_empty() {
            policy.push_str(&format!(";name=\"{}\"", limit.name));
        }
    }
    let reset = nearest.duration_until_reset.as_ref().map_or(0, |d| d.seconds);
    let pairs = [
        (RATE_LIMIT_LIMIT, HeaderValue::try_from(policy).ok()),
        (RATE_LIMIT_REMAINING, Some(nearest.limit_remaining.into())),
        (RATE_LIMIT_RESET, Some(reset.into())),
    ];
    pairs.into_iter().filter_map(|(name, value)| Some(appended(name, value?))).collect()
}

fn seconds(unit: i32) -> Option<u32> {
    use response::rate_limit::Unit;
    Some(match Unit::try_from(unit).ok()? {
        Unit::Unknown => return None,
        Unit::Second => 1,
        Unit::Minute => 60,
        Unit::Hour => 3600,
        Unit::Day => 86_400,
        Unit::Week => 604_800,
        Unit::Month => 2_592_000,
        Unit::Year => 31_536_000,
    })
}

/// When the last of the limits that were passed starts over.
fn retry_after(statuses: &[response::DescriptorStatus]) -> Option<Mutation> {
    let over = statuses.iter().filter(|s| s.code == response::Code::OverLimit as i32);
    let longest = over.map(|s| s.duration_until_reset.as_ref().map_or(0, |d| d.seconds)).max()?;
    Some(appended(RETRY_AFTER, longest.max(1).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(per_unit: u32, unit: response::rate_limit::Unit, name: &str, left: u32, reset: i64) -> response::DescriptorStatus {
        let limit = response::RateLimit { name: name.to_owned(), requests_per_unit: per_unit, unit: unit as i32 };
        response::DescriptorStatus {
            code: response::Code::OverLimit as i32,
            current_limit: Some(limit),
            limit_remaining: left,
            duration_until_reset: Some(lateen_proto::Duration { seconds: reset, nanos: 0 }),
            quota: None,
        }
    }

    #[test]
    fn quota_headers_tell_the_nearest_limit_and_every_window() {
        use response::rate_limit::Unit;
        let statuses = [status(1, Unit::Minute, "first", 2, 3), status(4, Unit::Hour, "", 1, 6), status(9, Unit::Unknown, "odd", 5, 1)];
        let told: Vec<_> = quota(&statuses).into_iter().map(|m| m.value.to_str().unwrap().to_owned()).collect();
        assert_eq!(told, ["4, 1;w=60;name=\"first\", 4;w=3600", "1", "6"]);
        assert_eq!(quota(&[]), []);
        assert_eq!(retry_after(&statuses).map(|m| m.value), Some(6.into()));
        assert_eq!(retry_after(&[]), None);
    }
}
