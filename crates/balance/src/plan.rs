//! How a cluster's traffic is shared among priorities and localities, given who is healthy.
//!
//! Recomputed only when membership or health changes (Envoy's load-balancing documentation, "priority levels",
//! "degraded endpoints", "panic threshold", "locality weighted"; the arithmetic of its `LoadBalancerBase`).
use std::sync::Arc;

use crate::config::Settings;
use crate::host::{Host, HostSet, LocalityHosts, Priority};
use crate::zone::{LocalCluster, NoZones, Routing, ZoneAware, zoning};

/// What is planned for: all members of a cluster, or a subset.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) priorities: &'a [Priority],
    pub(crate) set: &'a HostSet,
    pub(crate) settings: &'a Settings,
    pub(crate) local: Option<&'a LocalCluster>,
    /// Priorities to leave out while another has anybody, as bits.
    pub(crate) past: u64,
    /// Where all traffic goes, whatever the shares are.
    pub(crate) only: Option<Level>,
}

/// A priority, and which of its hosts. The place among priorities is 0 for the most preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Level {
    pub priority: usize,
    /// Its degraded hosts instead of its healthy ones.
    pub degraded: bool,
}

/// A group of hosts that gets `share` of the traffic; within it the policy chooses.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Percent of the cluster's traffic; the shares of all groups add up to 100.
    pub(crate) share: u32,
    pub(crate) spread: Spread,
    /// Health is ignored.
    pub(crate) panic: bool,
}

/// How a group's requests go to its hosts.
#[derive(Clone, Debug)]
pub(crate) enum Spread {
    /// All alike.
    Flat(Vec<Arc<Host>>),
    /// By the weights of localities. For hash policies these may have no hosts.
    Weighted(Vec<WeightedHosts>),
    Zones {
        flat: Vec<Arc<Host>>,
        /// In the order that the routing counts by.
        zones: Vec<Vec<Arc<Host>>>,
        routing: Routing,
    },
    /// Too few are healthy, and then the cluster wants no traffic.
    Fail,
    /// Too few of the local cluster are healthy: the share of requests that goes by zones fails.
    FailZones(Vec<Arc<Host>>),
}

/// Hosts of one locality with its weight.
#[derive(Clone, Debug)]
pub(crate) struct WeightedHosts {
    pub(crate) weight: f64,
    pub(crate) hosts: Vec<Arc<Host>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Class {
    Healthy,
    Degraded,
    /// Panic: health is ignored.
    All,
}

impl Class {
    fn has(self, host: &Host) -> bool {
        match self {
            Self::Healthy => host.is_healthy() && !host.is_degraded(),
            Self::Degraded => host.is_healthy() && host.is_degraded(),
            Self::All => true,
        }
    }
}

fn members<'a>(class: Class, localities: impl IntoIterator<Item = &'a LocalityHosts>) -> Vec<Arc<Host>> {
    localities.into_iter().flat_map(|l| &l.hosts).filter(|h| class.has(h)).cloned().collect()
}

/// What a plan found out about zones, for statistics.
pub(crate) type ZoneNote = Option<NoZones>;

/// Computes the groups; empty when no host may be chosen.
pub(crate) fn plan(view: &View<'_>) -> (Vec<Group>, ZoneNote) {
    let mut loads = Loads::of(view);
    if let Some(level) = view.only {
        loads.all_to(level, view.priorities.len());
    }
    let mut planner = Planner { view, note: None };
    let mut groups = Vec::new();
    for (class, loads_of_class) in [(Class::Healthy, &loads.healthy), (Class::Degraded, &loads.degraded)] {
        for (index, (share, priority)) in loads_of_class.iter().zip(view.priorities).enumerate() {
            if *share > 0 {
                let panic = loads.panic.get(index).is_some_and(|p| *p);
                let spread = planner.spread(index, priority, if panic { Class::All } else { class });
                groups.push(Group { share: *share, spread, panic });
            }
        }
    }
    (groups, planner.note)
}

struct Planner<'a> {
    view: &'a View<'a>,
    note: ZoneNote,
}

impl Planner<'_> {
    fn spread(&mut self, index: usize, priority: &Priority, class: Class) -> Spread {
        let Settings { policy, zone_aware, locality_weighted, .. } = self.view.settings;
        let weighted = *locality_weighted && priority.localities.iter().any(|l| l.weight > 0);
        let flat = || members(class, &priority.localities);
        if policy.goes_by_hash() {
            // Weights stand as they are: a table that followed health would move keys of healthy hosts.
            return if weighted { Spread::Weighted(by_weight(priority, class)) } else { Spread::Flat(flat()) };
        }
        if class == Class::All {
            return if zone_aware.fail_traffic_on_panic { Spread::Fail } else { Spread::Flat(flat()) };
        }
        if weighted {
            let overprovisioning = self.view.set.overprovisioning_percent;
            let localities: Vec<_> = priority.localities.iter().filter_map(|l| locality(l, class, overprovisioning)).collect();
            if !localities.is_empty() {
                return Spread::Weighted(localities);
            }
        }
        match self.view.local.filter(|_| index == 0) {
            Some(local) => self.zones(priority, class, local, zone_aware),
            None => Spread::Flat(flat()),
        }
    }

    /// Zones count only among the hosts of the first priority.
    fn zones(&mut self, priority: &Priority, class: Class, local: &LocalCluster, zone: &ZoneAware) -> Spread {
        let flat = members(class, &priority.localities);
        let zoning = match zoning(priority, local, zone) {
            Ok(zoning) => zoning,
            Err(why) => {
                self.note = Some(why);
                return Spread::Flat(flat);
            }
        };
        let callers = local.hosts.priorities.first().map(|p| Counts::of(p, false)).unwrap_or_default();
        if callers.panics(self.view.settings.panic_threshold_percent) {
            self.note = Some(NoZones::LocalNotOk);
            return if zone.fail_traffic_on_panic { Spread::FailZones(flat) } else { Spread::Flat(flat) };
        }
        let zones = zoning.order.iter().map(|i| members(class, priority.localities.get(*i))).collect();
        Spread::Zones { flat, zones, routing: zoning.routing }
    }
}

fn by_weight(priority: &Priority, class: Class) -> Vec<WeightedHosts> {
    let weighted = |l: &LocalityHosts| WeightedHosts { weight: f64::from(l.weight), hosts: members(class, [l]) };
    priority.localities.iter().filter(|l| l.weight > 0).map(weighted).collect()
}

/// A locality's weight shrinks with its health once over-provisioning is used up.
fn locality(locality: &LocalityHosts, class: Class, overprovisioning_percent: u32) -> Option<WeightedHosts> {
    let hosts = members(class, [locality]);
    let counted = locality.hosts.iter().filter(|h| !h.is_excluded()).count();
    if hosts.is_empty() || locality.weight == 0 || counted == 0 {
        return None;
    }
    let available = hosts.len() as f64 / counted as f64;
    let factor = (available * f64::from(overprovisioning_percent) / 100.0).min(1.0);
    Some(WeightedHosts { weight: f64::from(locality.weight) * factor, hosts })
}

/// Percent of the traffic by priority, for healthy and for degraded hosts, and where health is ignored.
#[derive(Debug, Default, PartialEq)]
struct Loads {
    healthy: Vec<u32>,
    degraded: Vec<u32>,
    panic: Vec<bool>,
}

impl Loads {
    fn of(view: &View<'_>) -> Self {
        let (weighted, overprovisioning) = (view.set.weighted_priority_health, view.set.overprovisioning_percent);
        let counts: Vec<_> = view.priorities.iter().map(|p| (Counts::of(p, weighted), overprovisioning)).collect();
        Self::among(&counts, view.settings.panic_threshold_percent, view.past)
    }

    /// The shares of priorities with these hosts and that over-provisioning; those of `past`, as bits, are left out while
    /// another has anybody.
    fn among(priorities: &[(Counts, u32)], threshold: u32, past: u64) -> Self {
        let counts: Vec<Counts> = priorities.iter().map(|(c, _)| *c).collect();
        let available = |some: fn(&Counts) -> u64| -> Vec<u32> {
            priorities.iter().map(|(c, overprovisioning)| c.availability(some(c), *overprovisioning)).collect()
        };
        let (mut healthy, mut degraded) = (available(|c| c.healthy_weight), available(|c| c.degraded_weight));
        let sum = |healthy: &[u32], degraded: &[u32]| healthy.iter().chain(degraded).sum::<u32>().min(100);
        let all = sum(&healthy, &degraded);
        let panic: Vec<bool> = counts.iter().map(|c| all < 100 && c.panics(threshold)).collect();
        if panic.iter().all(|p| *p) && (past == 0 || all == 0) {
            return Self { healthy: by_number(&counts), degraded: vec![0; counts.len()], panic };
        }
        if all == 0 {
            return Self::to_first(&counts, panic);
        }
        let left_over = |loads: &[u32]| -> Vec<u32> {
            loads.iter().enumerate().map(|(priority, load)| if goes_past(past, priority) { 0 } else { *load }).collect()
        };
        let others = (left_over(&healthy), left_over(&degraded));
        if sum(&others.0, &others.1) > 0 {
            (healthy, degraded) = others;
        }
        let total = sum(&healthy, &degraded);
        let mut left = 100;
        let mut distribute = |available: &[u32]| -> Vec<u32> {
            let load = |available: &u32| {
                let load = (available * 100).checked_div(total).unwrap_or(0).min(left);
                left -= load;
                load
            };
            available.iter().map(load).collect()
        };
        let mut loads = Self { healthy: distribute(&healthy), degraded: distribute(&degraded), panic };
        // What integer division left over goes to the most preferred priority that has anybody.
        if let Some((load, _)) =
            loads.healthy.iter_mut().chain(&mut loads.degraded).zip(healthy.iter().chain(&degraded)).find(|(_, a)| **a > 0)
        {
            *load += left;
        }
        loads
    }

    /// Those who serve are so few that no priority has one percent, and too few hosts fail for panic: the first that has
    /// anybody gets all. Envoy gives it to the most preferred priority, also where nobody serves there.
    fn to_first(counts: &[Counts], panic: Vec<bool>) -> Self {
        let mut loads = Self { panic, ..Self::default() };
        let healthy = counts.iter().position(|c| c.healthy > 0).map(|priority| Level { priority, degraded: false });
        let degraded = || counts.iter().position(|c| c.degraded > 0).map(|priority| Level { priority, degraded: true });
        if let Some(level) = healthy.or_else(degraded) {
            loads.all_to(level, counts.len());
        }
        loads
    }

    /// Which priorities are in panic stays as it is.
    fn all_to(&mut self, level: Level, priorities: usize) {
        (self.healthy, self.degraded) = (vec![0; priorities], vec![0; priorities]);
        let loads = if level.degraded { &mut self.degraded } else { &mut self.healthy };
        if let Some(load) = loads.get_mut(level.priority) {
            *load = 100;
        }
    }
}

fn goes_past(past: u64, priority: usize) -> bool {
    u32::try_from(priority).ok().and_then(|p| past.checked_shr(p)).is_some_and(|bits| bits & 1 == 1)
}

/// Percent of the traffic by the levels of several clusters whose priorities come one after the other, each with the
/// index of its cluster. Priorities without hosts are not among them. `past` counts by this order.
pub(crate) fn levels(clusters: &[Arc<HostSet>], panic_threshold: u32, past: u64) -> Vec<(u32, usize, Level)> {
    let mut places = Vec::new();
    let mut counts = Vec::new();
    for (cluster, set) in clusters.iter().enumerate() {
        for (index, priority) in set.priorities.iter().enumerate() {
            let found = Counts::of(priority, set.weighted_priority_health);
            if found.hosts > 0 {
                places.push((cluster, index));
                counts.push((found, set.overprovisioning_percent));
            }
        }
    }
    let loads = Loads::among(&counts, panic_threshold, past);
    let of_class = |loads: Vec<u32>, degraded: bool| {
        let shares = loads.into_iter().zip(places.clone()).filter(|(share, _)| *share > 0);
        shares.map(move |(share, (cluster, priority))| (share, cluster, Level { priority, degraded }))
    };
    of_class(loads.healthy, false).chain(of_class(loads.degraded, true)).collect()
}

/// All priorities are in panic: traffic goes by the number of hosts.
fn by_number(counts: &[Counts]) -> Vec<u32> {
    let total: u64 = counts.iter().map(|c| c.hosts).sum();
    let share = |c: &Counts| u32::try_from((100 * c.hosts).checked_div(total).unwrap_or(0)).unwrap_or(100);
    let mut loads: Vec<u32> = counts.iter().map(share).collect();
    let left = 100 - loads.iter().sum::<u32>().min(100);
    if let Some((load, _)) = loads.iter_mut().zip(counts).find(|(_, c)| c.hosts > 0) {
        *load += left;
    }
    loads
}

#[derive(Clone, Copy, Default)]
struct Counts {
    /// Also those that do not count.
    hosts: u64,
    counted: u64,
    healthy: u64,
    degraded: u64,
    /// Numbers, or weights where availability goes by these.
    total_weight: u64,
    healthy_weight: u64,
    degraded_weight: u64,
}

impl Counts {
    fn of(priority: &Priority, by_weight: bool) -> Self {
        let mut all = Self::default();
        for host in priority.localities.iter().flat_map(|l| &l.hosts) {
            all.hosts += 1;
            let weight = if by_weight { u64::from(host.weight()) } else { 1 };
            if !host.is_excluded() {
                all.counted += 1;
                all.total_weight += weight;
            }
            if Class::Healthy.has(host) {
                all.healthy += 1;
                all.healthy_weight += weight;
            } else if Class::Degraded.has(host) {
                all.degraded += 1;
                all.degraded_weight += weight;
            }
        }
        all
    }

    /// Percent of its share that this priority can take.
    fn availability(&self, weight: u64, overprovisioning_percent: u32) -> u32 {
        let percent = (u64::from(overprovisioning_percent) * weight).checked_div(self.total_weight).unwrap_or(0);
        u32::try_from(percent).unwrap_or(100).min(100)
    }

    /// The share of hosts that serve, of those that count, is below the threshold.
    fn panics(&self, threshold_percent: u32) -> bool {
        100 * (self.healthy + self.degraded) < u64::from(threshold_percent.min(100)) * self.counted
            || (self.counted == 0 && threshold_percent > 0)
    }
}

#[cfg(test)]
mod tests;
