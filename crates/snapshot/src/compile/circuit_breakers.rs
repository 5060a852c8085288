//! Circuit breakers of a cluster, by priority.
use std::time::Duration;

use lateen_balance::{Limits, RetryBudget};
use lateen_proto::envoy::config::cluster::v3 as proto;

use super::common::{duration_or, percent_fraction};
use super::invalid::{Invalid, Result, Within, each, refuse};

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
    let per_host = each(per_host_thresholds, "per_host_thresholds", of_host)?;
    let entries = each(thresholds, "thresholds", entry)?;
    // Of two entries for one priority Envoy takes the first.
    let [normal, high] = [0, 1].map(|level| entries.iter().find(|e| e.priority == level));
    let connections = |level: usize| per_host.iter().find(|e| e.priority == level).and_then(|e| e.max_connections).unwrap_or(u32::MAX);
    Ok(Thresholds {
        limits: [normal, high].map(|entry| entry.map(Entry::limits).unwrap_or_default()),
        tracked: [normal, high].map(|entry| entry.is_some_and(|e| e.track_remaining)),
        per_host: [0, 1].map(connections),
    })
}

/// One entry, of whichever list.
struct Entry {
    priority: usize,
    max_connections: Option<u32>,
    max_pending_requests: Option<u32>,
    max_requests: Option<u32>,
    max_retries: Option<u32>,
    retry_budget: Option<RetryBudget>,
    track_remaining: bool,
}

impl Entry {
    fn limits(&self) -> Limits {
        // What has no limit is not counted; to be shown it must be.
        let most = if self.track_remaining { u32::MAX - 1 } else { u32::MAX };
        let default = Limits::default();
        Limits {
            max_connections: self.max_connections.unwrap_or(default.max_connections).min(most),
            max_pending_requests: self.max_pending_requests.unwrap_or(default.max_pending_requests).min(most),
            max_requests: self.max_requests.unwrap_or(default.max_requests).min(most),
            max_retries: self.max_retries.unwrap_or(default.max_retries).min(most),
            retry_budget: self.retry_budget,
        }
    }
}

fn entry(value: proto::circuit_breakers::Thresholds) -> Result<Entry> {
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
    refuse!(max_connection_pools);
    let known = usize::try_from(priority).ok().filter(|p| *p < 2);
    Ok(Entry {
        priority: known.ok_or_else(|| Invalid::field("priority", format!("{priority} is not known")))?,
        max_connections,
        max_pending_requests,
        max_requests,
        max_retries,
        retry_budget: retry_budget.map(budget).transpose().within("retry_budget")?,
        track_remaining,
    })
}

/// Only connections have a limit for each host.
fn of_host(value: proto::circuit_breakers::Thresholds) -> Result<Entry> {
    let entry = entry(value)?;
    let others = [entry.max_pending_requests, entry.max_requests, entry.max_retries];
    if others.iter().any(Option::is_some) || entry.retry_budget.is_some() || entry.track_remaining {
        return Err(Invalid::new("only max_connections can be limited for each host"));
    }
    Ok(entry)
}

/// Envoy's defaults: a fifth of the requests, and never fewer than three.
fn budget(value: proto::circuit_breakers::thresholds::RetryBudget) -> Result<RetryBudget> {
    let proto::circuit_breakers::thresholds::RetryBudget { budget_percent, min_retry_concurrency, budget_interval } = value;
    let interval = duration_or(budget_interval.as_ref(), Duration::ZERO, "budget_interval")?;
    let share = budget_percent.map(percent_fraction).transpose().within("budget_percent")?;
    Ok(RetryBudget { share: share.map_or(200_000, |s| s.numerator), min_concurrency: min_retry_concurrency.unwrap_or(3), interval })
}
