//! External authorization: another server decides about a request before it goes on (Envoy ext_authz filter).
#![allow(deprecated, reason = "older fields of answers still count")]
mod grpc;
mod http;
mod verdict;

use std::rc::Rc;
use std::sync::Arc;

use ::http::HeaderValue;
use bytes::Bytes;
use lateen_snapshot::ext_authz::{Authorizer, BodyRules, ExtAuthz, ExtAuthzPerRoute};
use lateen_telemetry::envoy_names::{count_upstream_code, ext_authz as names, ext_authz_filter as filter_names};
use lateen_telemetry::stats::Counter;
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};
use tokio::time::Instant;

use self::verdict::{Decision, Refusal};
use super::{Step, all_per_route};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::lookup;
use crate::upstream::ClusterState;

/// The part of a body that the authorizer gets.
struct Shown {
    bytes: Bytes,
    partial: bool,
    as_bytes: bool,
}

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<ExtAuthz>) -> Result<Step, End> {
    let settings = super::per_route(exchange, |p| p.ext_authz.as_ref());
    let settings = settings.as_deref();
    if settings.is_some_and(|s| s.disabled) {
        return Ok(Step::Continue);
    }
    let stats = Stats::new(exchange, config);
    if !is_enabled(exchange, config) {
        stats.filter.inc(filter_names::DISABLED);
        return Ok(if config.deny_at_disable { denied_at_disable(config) } else { Step::Continue });
    }
    let body = match body_rules(exchange, config, settings) {
        None => None,
        Some(rules) => match show(exchange, rules).await? {
            Ok(shown) => Some(shown),
            Err(reply) => return Ok(Step::Reply(reply)),
        },
    };
    let asked = Instant::now();
    let mut verdict = match &config.service {
        Authorizer::Grpc(service) => grpc::ask(exchange, config, service, body).await?,
        Authorizer::Http(authorizer) => http::ask(exchange, config, authorizer, body).await?,
    };
    if verdict.is_excessive() {
        return Ok(verdict::invalid(&stats.filter));
    }
    verdict::note_metadata(exchange, config, &stats.filter, &mut verdict, asked.elapsed());
    Ok(match verdict.decision {
        Decision::Allowed(changes) if changes.invalid && config.validate_mutations => verdict::invalid(&stats.filter),
        Decision::Allowed(changes) => {
            let step = verdict::apply(exchange, config, &stats.filter, *changes)?;
            if matches!(step, Step::Continue) {
                stats.inc(names::OK);
            }
            step
        }
        Decision::Denied(refusal) if refusal.invalid && config.validate_mutations => verdict::invalid(&stats.filter),
        Decision::Denied(refusal) => {
            stats.inc(names::DENIED);
            if let Some(cluster) = stats.cluster.as_ref().filter(|_| config.charge_cluster) {
                count_upstream_code(&cluster.stats, refusal.status);
            }
            verdict::refuse(config, refusal, details::EXT_AUTHZ_DENIED)
        }
        Decision::Error(refusal) => failed(exchange, config, &stats, refusal),
    })
}

/// What happens when nobody decided.
fn failed(exchange: &mut Exchange<'_>, config: &ExtAuthz, stats: &Stats, refusal: Option<Refusal>) -> Step {
    stats.inc(names::ERROR);
    if !config.failure_mode_allow {
        return verdict::refuse(config, refusal.unwrap_or_default(), details::EXT_AUTHZ_ERROR);
    }
    stats.inc(names::FAILURE_MODE_ALLOWED);
    if config.failure_mode_allow_header_add {
        exchange.request.headers.append("x-envoy-auth-failure-mode-allowed", HeaderValue::from_static("true"));
    }
    Step::Continue
}

fn is_enabled(exchange: &Exchange<'_>, config: &ExtAuthz) -> bool {
    let metadata = config.enabled_metadata.as_ref();
    config.enabled.hits(exchange.worker.roll()) && metadata.is_none_or(|m| m.matches(Some(&exchange.info.metadata)))
}

fn denied_at_disable(config: &ExtAuthz) -> Step {
    let flags = ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE;
    Step::Reply(Reply::new(config.status_on_error, "", details::EXT_AUTHZ_ERROR, flags))
}

/// Whether the authorizer gets the body, and how much of it. An upgraded connection has no end to wait for.
fn body_rules(exchange: &Exchange<'_>, config: &ExtAuthz, settings: Option<&ExtAuthzPerRoute>) -> Option<BodyRules> {
    let request = &exchange.request;
    if !request.has_body() || request.upgrade.is_some() || settings.is_some_and(|s| s.skip_body) {
        return None;
    }
    settings.and_then(|s| s.with_request_body).or(config.with_request_body)
}

/// Waits for the body; a reply when it is too large.
async fn show(exchange: &mut Exchange<'_>, rules: BodyRules) -> Result<Result<Shown, Reply>, End> {
    use super::body::hold;
    // As much as is shown is enough where a part will do.
    let limit = if rules.allow_partial { rules.max_bytes - 1 } else { rules.max_bytes };
    let held = Box::pin(hold::request(exchange, limit)).await?;
    if !held.is_complete() && !rules.allow_partial {
        return Ok(Err(hold::request_too_large(exchange)));
    }
    let all = held.bytes();
    let bytes = all.slice(..all.len().min(rules.max_bytes));
    let partial = bytes.len() < all.len();
    exchange.put_back_request(held);
    Ok(Ok(Shown { bytes, partial, as_bytes: rules.pack_as_bytes }))
}

/// What routes tell the authorizer, the most specific last so that it counts.
fn context_extensions(exchange: &Exchange<'_>) -> Vec<(String, String)> {
    let told = all_per_route(exchange, |p| p.ext_authz.as_ref());
    told.iter().rev().flat_map(|level| level.context.iter().cloned()).collect()
}

/// The filter's counters, and those of the cluster that the route named when the authorizer was asked.
struct Stats {
    shared: Rc<Local>,
    filter: Rc<Local>,
    cluster: Option<Rc<ClusterState>>,
    of_cluster: Option<Rc<Local>>,
}

impl Stats {
    fn new(exchange: &Exchange<'_>, config: &ExtAuthz) -> Self {
        let (worker, hcm, prefix) = (exchange.worker, exchange.hcm, &config.stat_prefix);
        let name = || BlockName::http_filters(&hcm.config.stat_prefix).ext_authz(prefix);
        let id = exchange.info.route.as_ref().and_then(|m| lookup::cluster_of(m, &exchange.live.snapshot, &exchange.request));
        let cluster = id.and_then(|id| exchange.live.cluster(worker, id));
        let of_cluster = cluster.as_ref().map(|cluster| {
            let name = || BlockName::cluster(&cluster.cluster.config.stat_name).ext_authz(prefix);
            cluster.counters.get(worker, names::DEFS, prefix, name)
        });
        Self {
            shared: hcm.counters.get(worker, names::DEFS, prefix, name),
            filter: hcm.counters.get(worker, filter_names::DEFS, prefix, name),
            cluster,
            of_cluster,
        }
    }

    fn inc(&self, counter: Counter) {
        self.shared.inc(counter);
        if let Some(stats) = &self.of_cluster {
            stats.inc(counter);
        }
    }
}
