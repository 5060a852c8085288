//! HTTP filters, run in the order of the configuration. Most decide on the spot; only a delay waits.
mod cors;
mod fault;
mod peer_metadata;
mod rbac;

use std::sync::Arc;

use lateen_snapshot::http::{AlpnOverrides, HttpFilter, PerRoute};

use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::http::{End, Exchange};

/// What a filter decided.
pub(crate) enum Step {
    Continue,
    Reply(Reply),
}

/// Runs every filter on the request.
pub(crate) async fn on_request(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let hcm = exchange.hcm;
    for filter in &hcm.config.filters {
        let step = match filter {
            HttpFilter::Fault(config) => fault::on_request(exchange, config).await?,
            HttpFilter::Cors => cors::on_request(exchange),
            HttpFilter::Rbac(config) => rbac::on_request(exchange, config),
            HttpFilter::PeerMetadata(config) => {
                peer_metadata::on_request(exchange, config);
                Step::Continue
            }
            // What these do is done where the facts arise: when connecting, and at the request's end.
            HttpFilter::IstioAlpn(_) | HttpFilter::IstioStats(_) | HttpFilter::GrpcStats | HttpFilter::Router(_) => Step::Continue,
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
    for filter in hcm.config.filters.iter().rev() {
        match filter {
            HttpFilter::Cors => cors::on_response(exchange, response),
            HttpFilter::PeerMetadata(config) => peer_metadata::on_response(exchange, config, response),
            _ => {}
        }
    }
}

/// The ALPN override in force, if any.
pub(crate) fn alpn_overrides<'a>(exchange: &Exchange<'a>) -> Option<&'a Arc<AlpnOverrides>> {
    exchange.hcm.config.filters.iter().find_map(|f| if let HttpFilter::IstioAlpn(o) = f { Some(o) } else { None })
}

/// A filter's configuration by route: that of the weighted cluster, else the route, else the virtual host.
fn per_route<T>(exchange: &Exchange<'_>, pick: impl Fn(&PerRoute) -> Option<&Arc<T>>) -> Option<Arc<T>> {
    let matched = exchange.info.route.as_ref()?;
    let weighted = crate::router::lookup::weighted(matched).and_then(|w| pick(&w.per_route));
    let found = weighted.or_else(|| pick(&matched.route.per_route)).or_else(|| pick(&matched.virtual_host()?.per_route));
    found.cloned()
}
