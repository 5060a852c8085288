//! The membership of a cluster: its hosts by priority and locality.
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering::Acquire, Ordering::Release};
use std::sync::{Arc, OnceLock};

use crate::config::Settings;
use crate::host::{Address, Host, Locality};
use crate::subset::{Criteria, Labels};
use crate::subsets::Subsets;

/// Hosts of one locality within a priority.
#[derive(Clone, Debug, Default)]
pub struct LocalityHosts {
    pub locality: Locality,
    /// Share of the priority's traffic when localities are weighted; 0 when unset.
    pub weight: u32,
    pub hosts: Vec<Arc<Host>>,
}

/// One priority level; 0 is preferred.
#[derive(Clone, Debug, Default)]
pub struct Priority {
    pub localities: Vec<LocalityHosts>,
}

impl Priority {
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.localities.iter().flat_map(|l| &l.hosts)
    }
}

/// What Envoy takes more of a healthy priority than its share, in percent.
pub const OVERPROVISIONING_PERCENT: u32 = 140;

/// The membership of a cluster at one moment.
#[derive(Debug)]
pub struct HostSet {
    pub priorities: Vec<Priority>,
    /// How much more than its share a healthy priority may take, in percent (Envoy default 140).
    pub overprovisioning_percent: u32,
    /// Availability goes by the weights of hosts, not by their number (`weighted_priority_health`).
    pub weighted_priority_health: bool,
    /// Of a million requests, how many are turned away before anybody is asked (`drop_overloads`).
    pub dropped_per_million: u32,
    /// Where the cluster is divided.
    pub subsets: Option<Box<Subsets>>,
    /// The `envoy.lb` metadata of hosts that have any, by where the host is in memory.
    labels: Box<[(usize, Arc<Labels>)]>,
    /// The levels of members, by where the host is in memory; made when first asked for.
    levels: OnceLock<HashMap<usize, usize>>,
    /// Bumped when a health flag of a member changes; a balancer that sees another number recomputes.
    /// The sets of one cluster share it: see [`Self::succeed`].
    health_epoch: Arc<AtomicU64>,
}

/// What tells a living host from all others.
fn place(host: &Arc<Host>) -> usize {
    Arc::as_ptr(host) as usize
}

impl Default for HostSet {
    fn default() -> Self {
        Self::new(Vec::new())
    }
}

impl HostSet {
    pub fn new(priorities: Vec<Priority>) -> Self {
        Self {
            priorities,
            overprovisioning_percent: OVERPROVISIONING_PERCENT,
            weighted_priority_health: false,
            dropped_per_million: 0,
            subsets: None,
            labels: Box::default(),
            levels: OnceLock::new(),
            health_epoch: Arc::default(),
        }
    }

    /// A set of equal hosts in one priority and locality.
    pub fn flat(hosts: Vec<Arc<Host>>) -> Self {
        Self::new(vec![Priority { localities: vec![LocalityHosts { hosts, ..LocalityHosts::default() }] }])
    }

    /// Says what members are labelled with.
    pub fn set_labels(&mut self, labels: impl IntoIterator<Item = (Arc<Host>, Arc<Labels>)>) {
        let mut all: Vec<_> = labels.into_iter().map(|(host, labels)| (place(&host), labels)).collect();
        all.sort_by_key(|(place, _)| *place);
        self.labels = all.into();
    }

    /// What a member is labelled with.
    pub fn labels_of(&self, host: &Arc<Host>) -> Option<&Arc<Labels>> {
        let found = self.labels.binary_search_by_key(&place(host), |(place, _)| *place).ok()?;
        self.labels.get(found).map(|(_, labels)| labels)
    }

    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flat_map(|p| &p.localities).flat_map(|l| &l.hosts)
    }

    /// The level of a member.
    pub fn priority_of(&self, host: &Arc<Host>) -> Option<usize> {
        let levels = self.levels.get_or_init(|| {
            let members = |(level, priority): (usize, &Priority)| priority.hosts().map(|host| (place(host), level)).collect::<Vec<_>>();
            self.priorities.iter().enumerate().flat_map(members).collect()
        });
        levels.get(&place(host)).copied()
    }

    pub fn is_empty(&self) -> bool {
        self.hosts().next().is_none()
    }

    pub fn len(&self) -> usize {
        self.hosts().count()
    }

    /// The hosts that a request may be sent to, whatever their health, where its criteria count.
    pub fn asked(&self, settings: &Settings, criteria: Option<&Criteria>) -> Vec<&Arc<Host>> {
        match (&self.subsets, &settings.subsets) {
            (Some(subsets), Some(settings)) => subsets.asked(settings, criteria).unwrap_or_else(|| self.hosts().collect()),
            _ => self.hosts().collect(),
        }
    }

    /// Takes the place of an earlier set of the same cluster. Hosts live on in both, and a request that began with the earlier one
    /// may be what finds that a host has failed: whoever chooses from this set has to hear of that too.
    pub fn succeed(&mut self, before: &Self) {
        self.health_epoch = Arc::clone(&before.health_epoch);
    }

    /// A health flag of a member was set or cleared: whoever sees the new number sees that as well.
    pub fn health_changed(&self) {
        self.health_epoch.fetch_add(1, Release);
    }

    pub fn health_epoch(&self) -> u64 {
        self.health_epoch.load(Acquire)
    }

    /// The hosts by address, for carrying live hosts over into the next set.
    pub fn by_address(&self) -> HashMap<&Address, &Arc<Host>> {
        self.hosts().map(|h| (&h.address, h)).collect()
    }
}
