//! Upgrades and CONNECT: which are let through, and past which filters (Envoy `createUpgradeFilterChain`).
use std::rc::Rc;

use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::http as names;
use lateen_telemetry::{ResponseFlags, details};

use super::exchange::Matched;
use super::reply::Reply;
use super::{End, Exchange, Hcm};

/// What a connection manager says of an upgrade.
struct Offer<'a> {
    enabled: bool,
    /// The manager whose filters such requests meet.
    hcm: &'a Rc<Hcm>,
}

/// Refuses what neither route nor listener allows, before any filter sees it; the route has the last word. That there is
/// no route is for the router to say; till a filter finds one the listener alone counts.
pub(super) fn admit(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let Some(wanted) = &exchange.request.upgrade else { return Ok(()) };
    let offer = offer(exchange.entered, wanted);
    match &exchange.info.route {
        Some(matched) if !says(matched, wanted).unwrap_or(offer.enabled) => return Err(refused(exchange)),
        None if !offer.enabled => return Ok(()),
        _ => {}
    }
    exchange.hcm.stats.inc(names::DOWNSTREAM_CX_UPGRADES_TOTAL);
    exchange.hcm = offer.hcm;
    Ok(())
}

/// The same for a route that was found, as the first, after the filters had begun: those of an upgrade begin with the first.
///
/// # Errors
/// Where the upgrade is refused, and where it is for other filters.
pub(crate) fn admit_late(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let (Some(wanted), Some(matched)) = (&exchange.request.upgrade, &exchange.info.route) else { return Ok(()) };
    let offer = offer(exchange.entered, wanted);
    if !says(matched, wanted).unwrap_or(offer.enabled) {
        return Err(refused(exchange));
    }
    if !offer.enabled {
        exchange.hcm.stats.inc(names::DOWNSTREAM_CX_UPGRADES_TOTAL);
    }
    if Rc::ptr_eq(exchange.hcm, offer.hcm) {
        return Ok(());
    }
    exchange.hcm = offer.hcm;
    Err(End::FiltersAnew)
}

fn offer<'a>(hcm: &'a Rc<Hcm>, wanted: &str) -> Offer<'a> {
    let at = hcm.config.upgrades.iter().position(|upgrade| *upgrade.name == *wanted);
    let enabled = at.and_then(|at| hcm.config.upgrades.get(at)).is_some_and(|upgrade| upgrade.enabled);
    Offer { enabled, hcm: at.and_then(|at| hcm.upgrades.get(at)?.as_ref()).unwrap_or(hcm) }
}

/// What the route says of an upgrade, if anything.
fn says(matched: &Matched, wanted: &str) -> Option<bool> {
    match &matched.route.action {
        Action::Forward(forward) => forward.upgrades.iter().find(|(name, _)| **name == *wanted).map(|(_, allowed)| *allowed),
        _ => None,
    }
}

fn refused(exchange: &Exchange<'_>) -> End {
    exchange.hcm.stats.inc(names::DOWNSTREAM_RQ_WS_ON_NON_WS_ROUTE);
    Reply::new(403, "", details::UPGRADE_FAILED, ResponseFlags::NONE).into()
}
