//! Which filters of a chain an exchange meets: settled when the first of them comes, and kept though the route changes later
//! (Envoy asks `filterDisabled` when it makes the chain).
use lateen_snapshot::http::{FilterOverrides, HttpFilter};

use super::levels;
use crate::http::Exchange;

/// The filters of a chain that are switched off, by their places.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Off(u64);

impl Off {
    pub(super) fn has(self, index: usize) -> bool {
        1u64.checked_shl(u32::try_from(index).unwrap_or(u32::MAX)).is_some_and(|bit| self.0 & bit != 0)
    }
}

/// Settles which filters are switched off, by what is known now.
pub(super) fn settle(exchange: &mut Exchange<'_>) -> Off {
    *exchange.info.off.insert(now(exchange))
}

/// What was settled; a reply to a request that no filter has seen goes by what is known now.
pub(super) fn off(exchange: &Exchange<'_>) -> Off {
    exchange.info.off.unwrap_or_else(|| now(exchange))
}

/// Filters that are not switched off.
pub(crate) fn in_force<'a>(exchange: &'a Exchange<'_>) -> impl Iterator<Item = &'a HttpFilter> {
    let off = off(exchange);
    let filters = exchange.hcm.config.filters.iter().enumerate();
    filters.filter(move |(index, _)| !off.has(*index)).map(|(_, filter)| filter)
}

/// For almost every route and chain none.
fn now(exchange: &Exchange<'_>) -> Off {
    if !has_switches(exchange) {
        return Off::default();
    }
    let disabled = (0..exchange.hcm.config.filters.len()).filter(|index| is_disabled(exchange, *index));
    Off(disabled.filter_map(|index| 1u64.checked_shl(u32::try_from(index).ok()?)).fold(0, |all, bit| all | bit))
}

/// Whether any filter is switched off, or by the route off or on.
fn has_switches(exchange: &Exchange<'_>) -> bool {
    !exchange.hcm.config.filters_off.is_empty()
        || exchange.info.route.as_ref().is_some_and(|matched| levels(matched).any(|level| !level.disabled.is_empty()))
}

/// The most specific place that speaks of the filter counts (Envoy `FilterConfig.disabled`).
fn is_disabled(exchange: &Exchange<'_>, index: usize) -> bool {
    let config = &exchange.hcm.config;
    let off = config.filters_off.get(index).copied().unwrap_or(false);
    let (Some(matched), Some(name)) = (&exchange.info.route, config.filter_names.get(index)) else { return off };
    let at = |level: &FilterOverrides| {
        let switch = level.disabled.iter().find(|(known, _)| known == name).map(|(_, off)| *off);
        switch.or_else(|| level.of(name).map(|_| false))
    };
    levels(matched).find_map(at).unwrap_or(off)
}
