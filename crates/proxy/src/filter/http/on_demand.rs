//! Waits for a cluster that is discovered because this request wants it (Envoy on_demand filter).
use std::sync::Arc;

use lateen_snapshot::http::OnDemand;

use super::wait::patiently;
use super::{Step, per_route};
use crate::http::{End, Exchange};
use crate::router::lookup;

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<OnDemand>) -> Result<Step, End> {
    let config = per_route(exchange, |p| p.on_demand.as_ref()).unwrap_or_else(|| Arc::clone(config));
    let Some(limit) = config.clusters else { return Ok(Step::Continue) };
    let Some(name) = lookup::unknown_cluster(exchange) else { return Ok(Step::Continue) };
    let arrived = exchange.worker.discover(&name, limit);
    patiently(exchange, arrived).await?;
    // Found or not, the router looks again.
    exchange.live = exchange.worker.live();
    Ok(Step::Continue)
}
