//! Waits for what is discovered because this request wants it (Envoy on_demand filter): the routes of its scope, its virtual
//! host, its cluster.
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::compile::Wish;
use lateen_snapshot::http::OnDemand;

use super::wait::patiently;
use super::{Step, per_route};
use crate::http::{End, Exchange};
use crate::router::lookup;

/// How long routes are waited for where nothing is said of clusters.
const ROUTES_LIMIT: Duration = Duration::from_secs(5);

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<OnDemand>) -> Result<Step, End> {
    let unknown = exchange.info.route.is_none();
    // The routes of a scope may discover virtual hosts in turn. Nothing is asked for twice.
    let mut asked = None;
    for _ in 0..2 {
        let Some(wish) = lookup::unknown_routes(exchange).filter(|wish| asked.as_ref() != Some(wish)) else { break };
        asked = Some(wish.clone());
        wait(exchange, wish, config.clusters.unwrap_or(ROUTES_LIMIT)).await?;
        exchange.find_late_route()?;
    }
    // Those before have not seen what the route says of them. A body may have gone through them already (Envoy recreates a stream
    // only where it holds none of one).
    if unknown && exchange.info.route.is_some() && !exchange.request.has_body() {
        return Err(End::FiltersAnew);
    }
    let config = per_route(exchange, |p| p.on_demand.as_ref()).unwrap_or_else(|| Arc::clone(config));
    let Some(limit) = config.clusters else { return Ok(Step::Continue) };
    if let Some(name) = lookup::unknown_cluster(exchange) {
        wait(exchange, Wish::Cluster(name.into()), limit).await?;
    }
    Ok(Step::Continue)
}

/// Found or not, whoever comes next looks again.
async fn wait(exchange: &mut Exchange<'_>, wish: Wish, limit: Duration) -> Result<(), End> {
    let arrived = exchange.worker.discover(wish, limit);
    patiently(exchange, arrived).await?;
    exchange.live = exchange.worker.live();
    Ok(())
}
