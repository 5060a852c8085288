//! Upgrades and CONNECT: which are let through, and past which filters (Envoy `createUpgradeFilterChain`).
use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::http as names;
use lateen_telemetry::{ResponseFlags, details};

use super::reply::Reply;
use super::{End, Exchange};

/// Refuses what neither route nor listener allows, before any filter sees it; the route has the last word. That there is
/// no route is for the router to say.
pub(super) fn admit(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let (Some(wanted), Some(matched)) = (&exchange.request.upgrade, &exchange.info.route) else { return Ok(()) };
    let hcm = exchange.hcm;
    let by_route = match &matched.route.action {
        Action::Forward(forward) => forward.upgrades.iter().find(|(name, _)| **name == **wanted).map(|(_, allowed)| *allowed),
        _ => None,
    };
    let by_listener = hcm.config.upgrades.iter().position(|upgrade| *upgrade.name == **wanted);
    let allowed = by_route.unwrap_or_else(|| by_listener.and_then(|at| hcm.config.upgrades.get(at)).is_some_and(|u| u.enabled));
    if !allowed {
        hcm.stats.inc(names::DOWNSTREAM_RQ_WS_ON_NON_WS_ROUTE);
        return Err(Reply::new(403, "", details::UPGRADE_FAILED, ResponseFlags::NONE).into());
    }
    hcm.stats.inc(names::DOWNSTREAM_CX_UPGRADES_TOTAL);
    if let Some(own) = by_listener.and_then(|at| hcm.upgrades.get(at)?.as_ref()) {
        exchange.hcm = own;
    }
    Ok(())
}
