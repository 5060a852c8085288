//! HTTP filters, run in the order of the configuration. Most decide on the spot; some wait, for a time or for another server.
mod admission_control;
mod bandwidth_limit;
pub(crate) mod body;
mod buffer;
mod compression;
pub(crate) mod cors;
mod csrf;
mod descriptors;
pub(crate) mod dynamic_forward_proxy;
mod ext_authz;
mod ext_proc;
mod fault;
mod grpc_reverse_bridge;
pub(crate) mod grpc_stats;
mod grpc_web;
mod header_mutation;
mod header_to_metadata;
mod heads;
mod health_check;
pub(crate) mod jwks;
mod jwt_authn;
mod local_ratelimit;
mod on_demand;
mod peer_metadata;
mod ratelimit;
pub(crate) mod rbac;
mod set_metadata;
pub(crate) mod stateful_session;
pub(crate) mod switches;
mod wait;

use std::rc::Rc;
use std::sync::Arc;

use body::Origin;
use lateen_snapshot::http::{AlpnOverrides, FilterOverrides, HttpFilter, PerRoute};
use lateen_telemetry::{BlockName, Local, ResponseFlags, envoy_names};

pub(crate) use heads::Mutations;
pub(crate) use switches::in_force;

use crate::http::message::{Length, Response};
use crate::http::reply::Reply;
use crate::http::{End, Exchange, Matched};
use crate::worker::Worker;
use compression::{compressor, decompressor};

/// What a filter decided.
pub(crate) enum Step {
    Continue,
    Reply(Reply),
}

/// Runs every filter on the request.
pub(crate) async fn on_request(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let hcm = exchange.hcm;
    let mut off = switches::settle(exchange);
    for (index, filter) in hcm.config.filters.iter().enumerate() {
        if off.has(index) {
            continue;
        }
        exchange.info.filter = index;
        let step = match filter {
            HttpFilter::Fault(config) => fault::on_request(exchange, config, index).await?,
            HttpFilter::Cors => cors::on_request(exchange),
            HttpFilter::DynamicForwardProxy(cache) => dynamic_forward_proxy::on_request(exchange, cache).await?,
            HttpFilter::Rbac(config) => rbac::on_request(exchange, config),
            HttpFilter::JwtAuthn(config) => jwt_authn::on_request(exchange, config).await?,
            // On the heap while it lasts: its state would otherwise be part of every request's.
            HttpFilter::ExtAuthz(config) => Box::pin(ext_authz::on_request(exchange, config)).await?,
            HttpFilter::RateLimit(config) => Box::pin(ratelimit::on_request(exchange, config)).await?,
            HttpFilter::ExtProc(config) => Box::pin(ext_proc::on_request(exchange, config, index)).await?,
            HttpFilter::HeaderToMetadata(config) => header_to_metadata::on_request(exchange, config),
            HttpFilter::LocalRateLimit(config) => local_ratelimit::on_request(exchange, config),
            HttpFilter::StatefulSession(config) => stateful_session::on_request(exchange, config),
            // Apart, so that requests without it do not hold the room for its wait.
            HttpFilter::OnDemand(config) => {
                let unknown = exchange.info.route.is_none();
                let step = Box::pin(on_demand::on_request(exchange, config)).await?;
                if unknown {
                    // The route may be known only now.
                    off = switches::settle(exchange);
                }
                step
            }
            HttpFilter::Compressor(config) => {
                if let Some(FilterStats::Compressor(stats)) = hcm.filter_stats.get(index) {
                    compressor::on_request(exchange, config, stats, index);
                }
                Step::Continue
            }
            HttpFilter::Decompressor(config) => {
                if let Some(FilterStats::Decompressor(stats)) = hcm.filter_stats.get(index) {
                    decompressor::on_request(exchange, config, stats);
                }
                Step::Continue
            }
            HttpFilter::HeaderMutation(config) => {
                header_mutation::on_request(exchange, config);
                Step::Continue
            }
            HttpFilter::HealthCheck(config) => match hcm.filter_stats.get(index) {
                Some(FilterStats::HealthCheck(cached)) => health_check::on_request(exchange, config, cached, index),
                _ => Step::Continue,
            },
            HttpFilter::Csrf(config) => match hcm.filter_stats.get(index) {
                Some(FilterStats::One(stats)) => csrf::on_request(exchange, config, stats),
                _ => Step::Continue,
            },
            HttpFilter::BandwidthLimit(config) => {
                bandwidth_limit::on_request(exchange, config, index);
                Step::Continue
            }
            HttpFilter::AdmissionControl(config) => match hcm.filter_stats.get(index) {
                Some(FilterStats::Admission(state)) => admission_control::on_request(exchange, config, state, index),
                _ => Step::Continue,
            },
            HttpFilter::SetMetadata(config) => {
                if let Some(FilterStats::One(stats)) = hcm.filter_stats.get(index) {
                    set_metadata::on_request(exchange, config, stats);
                }
                Step::Continue
            }
            HttpFilter::GrpcReverseBridge(config) => grpc_reverse_bridge::on_request(exchange, config, index)?,
            HttpFilter::GrpcWeb => {
                grpc_web::on_request(exchange, index);
                Step::Continue
            }
            HttpFilter::Buffer(config) => Box::pin(buffer::on_request(exchange, config)).await?,
            HttpFilter::PeerMetadata(config) => {
                peer_metadata::on_request(exchange, config);
                Step::Continue
            }
            HttpFilter::GrpcStats(config) => {
                let call = || Box::new(grpc_stats::Call { emitted: config.emits, ..Default::default() });
                exchange.info.grpc_call = exchange.info.grpc.then(call);
                Step::Continue
            }
            HttpFilter::Discovered(_) => Step::Reply(Reply::new(500, "", "", ResponseFlags::NO_FILTER_CONFIG_FOUND)),
            // What these do is done where the facts arise: when connecting, and at the request's end.
            HttpFilter::IstioAlpn(_) | HttpFilter::IstioStats(_) | HttpFilter::Router(_) => Step::Continue,
        };
        if let Step::Reply(reply) = step {
            return Err(reply.into());
        }
    }
    Ok(())
}

/// Lets filters see a response's head, last filter first.
pub(crate) fn on_response(exchange: &mut Exchange<'_>, response: &mut Response) {
    let hcm = exchange.hcm;
    if !hcm.response_filters {
        return;
    }
    let off = switches::off(exchange);
    for (index, filter) in hcm.config.filters.iter().enumerate().rev() {
        if off.has(index) {
            continue;
        }
        exchange.info.filter = index;
        see_response(exchange, index, filter, response);
    }
}

fn see_response(exchange: &mut Exchange<'_>, index: usize, filter: &HttpFilter, response: &mut Response) {
    match filter {
        HttpFilter::Fault(_) => fault::on_response(exchange, index),
        HttpFilter::HealthCheck(config) => {
            if let Some(FilterStats::HealthCheck(cached)) = exchange.hcm.filter_stats.get(index) {
                health_check::on_response(exchange, config, cached, index, response);
            }
        }
        HttpFilter::BandwidthLimit(config) => bandwidth_limit::on_response(exchange, config, index, response),
        HttpFilter::AdmissionControl(config) => {
            if let Some(FilterStats::Admission(state)) = exchange.hcm.filter_stats.get(index) {
                admission_control::on_response(exchange, config, state, index, response);
            }
        }
        HttpFilter::HeaderMutation(config) => header_mutation::on_response(exchange, config, response),
        HttpFilter::Cors => cors::on_response(exchange, response),
        HttpFilter::PeerMetadata(config) => peer_metadata::on_response(exchange, config, response),
        HttpFilter::HeaderToMetadata(config) => header_to_metadata::on_response(exchange, config, response),
        HttpFilter::LocalRateLimit(_) => local_ratelimit::on_response(exchange, response),
        HttpFilter::ExtAuthz(_) | HttpFilter::RateLimit(_) => heads::change_response(exchange, response),
        HttpFilter::StatefulSession(_) => stateful_session::on_response(exchange, response),
        HttpFilter::Compressor(config) => {
            if let Some(FilterStats::Compressor(stats)) = exchange.hcm.filter_stats.get(index) {
                compressor::on_response(exchange, config, stats, index, response);
            }
        }
        HttpFilter::Decompressor(config) => {
            if let Some(FilterStats::Decompressor(stats)) = exchange.hcm.filter_stats.get(index) {
                decompressor::on_response(exchange, config, stats, response);
            }
        }
        _ => {}
    }
}

/// Whether the filter may hold a response's head back, to wait for its body or for somebody's word on it.
pub(crate) fn may_hold_response(filter: &HttpFilter) -> bool {
    matches!(filter, HttpFilter::GrpcWeb | HttpFilter::GrpcReverseBridge(_) | HttpFilter::ExtProc(_))
}

/// [`on_response`] where a filter may hold the response back; `body` is what comes after its head.
///
/// # Errors
/// When a filter answers in the response's place, or waiting for the body failed.
pub(crate) async fn on_response_held(exchange: &mut Exchange<'_>, response: &mut Response, body: &mut dyn Origin) -> Result<(), End> {
    let hcm = exchange.hcm;
    let off = switches::off(exchange);
    for (index, filter) in hcm.config.filters.iter().enumerate().rev() {
        if off.has(index) {
            continue;
        }
        exchange.info.filter = index;
        match filter {
            // What follows a switch of protocols is no body.
            HttpFilter::GrpcWeb | HttpFilter::GrpcReverseBridge(_) if response.upgrade.is_some() => {}
            HttpFilter::GrpcWeb => grpc_web::on_response(exchange, index, response, body).await?,
            HttpFilter::GrpcReverseBridge(config) => grpc_reverse_bridge::on_response(exchange, config, index, response, body).await?,
            HttpFilter::ExtProc(config) => Box::pin(ext_proc::on_response(exchange, config, index, response, body)).await?,
            _ => see_response(exchange, index, filter, response),
        }
    }
    Ok(())
}

/// Whether anything comes after a response's head.
fn has_body(exchange: &Exchange<'_>, response: &Response) -> bool {
    exchange.request.method != http::Method::HEAD
        && response.upgrade.is_none()
        && !matches!(response.status.as_u16(), 204 | 304)
        && !matches!(response.length, Length::None | Length::Known(0))
}

/// What one filter counts, where those of its kind do not count together.
pub(crate) enum FilterStats {
    None,
    One(Local),
    HealthCheck(health_check::Cached),
    Admission(Rc<admission_control::State>),
    Compressor(Box<compressor::Stats>),
    Decompressor(Box<decompressor::Stats>),
}

impl FilterStats {
    pub(crate) fn new(worker: &Worker, prefix: &str, filter: &HttpFilter) -> Self {
        let local = |defs, name: &str| worker.shard.local(&worker.registry.block(defs, BlockName::http_filter(prefix, name)));
        match filter {
            HttpFilter::Compressor(config) => {
                let name = format!("compressor.{}", config.stat_prefix);
                let response = if config.response_has_prefix { format!("{name}.response") } else { name.clone() };
                Self::Compressor(Box::new(compressor::Stats {
                    request: local(envoy_names::compressor::DEFS, &format!("{name}.request")),
                    response: local(envoy_names::compressor::DEFS, &response),
                    choice: local(envoy_names::compressor_choice::DEFS, &name),
                }))
            }
            HttpFilter::Decompressor(config) => {
                let name = format!("decompressor.{}", config.stat_prefix);
                Self::Decompressor(Box::new(decompressor::Stats {
                    request: local(envoy_names::decompressor::DEFS, &format!("{name}.request")),
                    response: local(envoy_names::decompressor::DEFS, &format!("{name}.response")),
                }))
            }
            HttpFilter::HealthCheck(_) => Self::HealthCheck(health_check::Cached::default()),
            HttpFilter::AdmissionControl(_) => {
                let stats = local(envoy_names::admission_control::DEFS, "admission_control");
                Self::Admission(Rc::new(admission_control::State::new(stats)))
            }
            HttpFilter::Csrf(_) => Self::One(local(envoy_names::csrf::DEFS, "csrf")),
            HttpFilter::SetMetadata(_) => Self::One(local(envoy_names::set_metadata::DEFS, "set_metadata")),
            _ => Self::None,
        }
    }
}

/// The ALPN override in force, if any.
pub(crate) fn alpn_overrides<'a>(exchange: &Exchange<'a>) -> Option<&'a Arc<AlpnOverrides>> {
    let mut filters = exchange.hcm.config.filters.iter().enumerate();
    let (index, overrides) = filters.find_map(|(i, f)| if let HttpFilter::IstioAlpn(o) = f { Some((i, o)) } else { None })?;
    (!switches::off(exchange).has(index)).then_some(overrides)
}

/// The places of per-route configuration, most specific first.
fn levels(matched: &Matched) -> impl Iterator<Item = &FilterOverrides> {
    let weighted = crate::router::lookup::weighted(matched).map(|w| &w.per_route);
    let host = matched.virtual_host().map(|h| &h.settings.per_route);
    [weighted, Some(&matched.route.per_route), host, Some(&matched.table.per_route)].into_iter().flatten()
}

/// A filter's configuration by route: that of the weighted cluster, else the route, else the virtual host.
fn route_of<T>(exchange: &Exchange<'_>, index: usize, pick: impl Fn(&PerRoute) -> Option<&Arc<T>>) -> Option<Arc<T>> {
    let matched = exchange.info.route.as_ref()?;
    let name = exchange.hcm.config.filter_names.get(index)?;
    levels(matched).find_map(|level| level.of(name).and_then(&pick)).cloned()
}

/// All that the places of the running filter's configuration say, most specific first.
fn all_per_route<T>(exchange: &Exchange<'_>, pick: impl Fn(&PerRoute) -> Option<&Arc<T>>) -> Vec<Arc<T>> {
    let name = exchange.hcm.config.filter_names.get(exchange.info.filter);
    let (Some(matched), Some(name)) = (&exchange.info.route, name) else { return Vec::new() };
    levels(matched).filter_map(|level| level.of(name).and_then(&pick)).cloned().collect()
}

/// The running filter's configuration by route.
fn per_route<T>(exchange: &Exchange<'_>, pick: impl Fn(&PerRoute) -> Option<&Arc<T>>) -> Option<Arc<T>> {
    route_of(exchange, exchange.info.filter, pick)
}
