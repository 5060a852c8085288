//! Answers to health checks of callers, or what they learn on the way (Envoy health_check filter).
use std::cell::Cell;
use std::sync::Arc;

use http::HeaderValue;
use lateen_snapshot::http::HealthCheckFilter;
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::Step;
use crate::http::Exchange;
use crate::http::headers::{HEALTH_CHECKED_CLUSTER, IMMEDIATE_HEALTH_CHECK_FAIL};
use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::router::lookup;

/// The last answer of an upstream, and how long it holds.
pub(crate) type Cached = Cell<Option<(Instant, u16)>>;

/// The request is a health check, and whether its answer may be kept.
struct Check {
    keep: bool,
}

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<HealthCheckFilter>, cached: &Cached, index: usize) -> Step {
    if !config.headers.iter().all(|m| lookup::header_matches(m, &exchange.request)) {
        return Step::Continue;
    }
    exchange.info.health_check = true;
    exchange.info.span = None;
    let failing = exchange.worker.failing.is_draining();
    let kept = cached.get().filter(|(until, _)| *until > exchange.info.moment).map(|(_, status)| status);
    let passes = config.pass_through && !failing && kept.is_none();
    exchange.bodies().note(index, Check { keep: passes && config.cache.is_some() });
    if passes {
        return Step::Continue;
    }
    let (status, details) = match (failing, kept) {
        (true, _) => (503, details::HEALTH_CHECK_FAILED),
        (false, Some(status)) => (status, details::HEALTH_CHECK_CACHED),
        (false, None) => by_clusters(exchange, config),
    };
    let flags = if (200..300).contains(&status) { ResponseFlags::NONE } else { ResponseFlags::FAILED_LOCAL_HEALTH_CHECK };
    Step::Reply(Reply::new(status, "", details, flags))
}

/// Healthy as long as enough of each cluster's hosts are.
fn by_clusters(exchange: &Exchange<'_>, config: &HealthCheckFilter) -> (u16, &'static str) {
    let mut said = details::HEALTH_CHECK_OK;
    for (name, least) in &config.min_healthy {
        let cluster = exchange.live.snapshot.cluster_named(name).and_then(|(id, _)| exchange.live.cluster(exchange.worker, id));
        let Some(cluster) = cluster else { return (503, details::HEALTH_CHECK_FAILED_NO_CLUSTER_FOUND) };
        let hosts = &cluster.cluster.hosts;
        if hosts.is_empty() {
            if *least == 0.0 {
                continue;
            }
            return (503, details::HEALTH_CHECK_FAILED_CLUSTER_EMPTY);
        }
        let healthy = hosts.hosts().filter(|h| h.is_healthy()).count();
        if (healthy as f64) < hosts.len() as f64 * least / 100.0 {
            return (503, details::HEALTH_CHECK_FAILED_CLUSTER_UNHEALTHY);
        }
        said = details::HEALTH_CHECK_OK_CLUSTER_HEALTHY;
    }
    (200, said)
}

pub(super) fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<HealthCheckFilter>,
    cached: &Cached,
    index: usize,
    response: &mut Response,
) {
    let Some(Check { keep }) = exchange.noted(index) else {
        if exchange.worker.failing.is_draining() {
            response.headers.insert(IMMEDIATE_HEALTH_CHECK_FAIL, HeaderValue::from_static("true"));
        }
        return;
    };
    if *keep && let Some(until) = config.cache.and_then(|span| Instant::now().checked_add(span)) {
        cached.set(Some((until, response.status.as_u16())));
    }
    if let Ok(cluster) = HeaderValue::from_str(&exchange.worker.node.cluster) {
        response.headers.insert(HEALTH_CHECKED_CLUSTER, cluster);
    }
}
