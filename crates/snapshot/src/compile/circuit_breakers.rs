//! Circuit breakers of a cluster, by priority.
use lateen_balance::{Limits, RetryBudget};
use lateen_proto::envoy::config::cluster::v3 as proto;

use super::common::percent_fraction;
use super::invalid::{Invalid, Result, Within, refuse};

/// The limits of a cluster by priority.
pub(crate) struct Thresholds {
    pub(crate) limits: [Limits; 2],
    /// Whether what is left of them is shown.
    pub(crate) tracked: [bool; 2],
    /// Connections to each host; `u32::MAX` is unlimited.
    pub(crate) per_host: [u32; 2],
}

pub(crate) fn thresholds(value: Option<proto::CircuitBreakers>) -> Result<Thresholds> {
    let proto::CircuitBreakers { thresholds, per_host_thresholds } = value.unwrap_or_default();
    let per_host = per_host(per_host_thresholds)?;
    let mut result = [Limits::default(); 2];
    let (mut seen, mut tracked) = ([false; 2], [false; 2]);
    for (index, value) in thresholds.into_iter().enumerate() {
        let proto::circuit_breakers::Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = value;
        // The largest number limits nothing.
        let max_connection_pools = max_connection_pools.filter(|most| *most != u32::MAX);
        let checked = || -> Result<usize> {
            refuse!(max_connection_pools);
            level(priority)
        };
        let priority = checked().within_item("thresholds", index)?;
        let retry_budget = retry_budget.map(budget).transpose().within("retry_budget").within_item("thresholds", index)?;
        // Of two entries for one priority Envoy takes the first.
        if let (Some(limits), Some(seen @ false), Some(tracked)) =
            (result.get_mut(priority), seen.get_mut(priority), tracked.get_mut(priority))
        {
            *seen = true;
            *tracked = track_remaining;
            // What has no limit is not counted; to be shown it must be.
            let most = if track_remaining { u32::MAX - 1 } else { u32::MAX };
            let default = Limits::default();
            *limits = Limits {
                max_connections: max_connections.unwrap_or(default.max_connections).min(most),
                max_pending_requests: max_pending_requests.unwrap_or(default.max_pending_requests).min(most),
                max_requests: max_requests.unwrap_or(default.max_requests).min(most),
                max_retries: max_retries.unwrap_or(default.max_retries).min(most),
                retry_budget,
            };
        }
    }
    Ok(Thresholds { limits: result, tracked, per_host })
}

fn level(priority: i32) -> Result<usize> {
    usize::try_from(priority).ok().filter(|p| *p < 2).ok_or_else(|| Invalid::field("priority", format!("{priority} is not known")))
}

/// Only connections have a limit for each host. Of two entries for one priority Envoy takes the first.
fn per_host(values: Vec<proto::circuit_breakers::Thresholds>) -> Result<[u32; 2]> {
    let mut limits = [None; 2];
    for (index, value) in values.into_iter().enumerate() {
        let proto::circuit_breakers::Thresholds {
            priority,
            max_connections,
            max_pending_requests,
            max_requests,
            max_retries,
            retry_budget,
            track_remaining,
            max_connection_pools,
        } = value;
        let checked = || -> Result<usize> {
            let only_connections = || Invalid::new("only max_connections can be limited for each host");
            let others = [max_pending_requests, max_requests, max_retries, max_connection_pools];
            if others.iter().any(Option::is_some) || retry_budget.is_some() || track_remaining {
                return Err(only_connections());
            }
            level(priority)
        };
        let priority = checked().within_item("per_host_thresholds", index)?;
        if let Some(limit) = limits.get_mut(priority) {
            limit.get_or_insert(max_connections.unwrap_or(u32::MAX));
        }
    }
    Ok(limits.map(|limit| limit.unwrap_or(u32::MAX)))
}

/// Envoy's defaults: a fifth of the requests, and never fewer than three.
fn budget(value: proto::circuit_breakers::thresholds::RetryBudget) -> Result<RetryBudget> {
    let proto::circuit_breakers::thresholds::RetryBudget { budget_percent, min_retry_concurrency, budget_interval } = value;
    // The budget follows the requests of this moment.
    refuse!(budget_interval);
    let share = budget_percent.map(percent_fraction).transpose().within("budget_percent")?;
    Ok(RetryBudget { share: share.map_or(200_000, |s| s.numerator), min_concurrency: min_retry_concurrency.unwrap_or(3) })
}
