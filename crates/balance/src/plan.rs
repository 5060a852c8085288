//! How a cluster's traffic is shared among priorities and localities, given who is healthy.
//!
//! Recomputed only when membership or health changes (Envoy's load-balancing documentation,
//! "priority levels", "degraded endpoints", "panic threshold", "locality weighted").
use std::sync::Arc;

use crate::config::Settings;
use crate::host::{Host, HostSet, LocalityHosts, PENDING_ACTIVE_HC, Priority};

/// A group of hosts that gets `share` of the traffic; within it the policy chooses.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    /// Percent of the cluster's traffic; the shares of all groups add up to 100.
    pub(crate) share: u32,
    pub(crate) localities: Vec<WeightedHosts>,
}

/// Hosts of one locality (or of all, when localities are not weighted) with their weight.
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

fn members(class: Class, hosts: &[Arc<Host>]) -> Vec<Arc<Host>> {
    let wanted = |h: &&Arc<Host>| match class {
        Class::Healthy => h.is_healthy() && !h.is_degraded(),
        Class::Degraded => h.is_healthy() && h.is_degraded(),
        Class::All => true,
    };
    hosts.iter().filter(wanted).cloned().collect()
}

/// Computes the groups; empty when no host may be chosen.
pub(crate) fn plan(set: &HostSet, settings: &Settings) -> Vec<Group> {
    let counts: Vec<Counts> = set.priorities.iter().map(Counts::of).collect();
    let availability = |some: fn(&Counts) -> usize| -> Vec<u32> {
        counts.iter().map(|c| c.availability(some(c), settings.overprovisioning_percent)).collect()
    };
    let healthy = availability(|c| c.healthy);
    let degraded = availability(|c| c.degraded);
    let total = healthy.iter().chain(&degraded).sum::<u32>().min(100);
    if total == 0 {
        return if settings.panic_threshold_percent > 0.0 { everyone(set, &counts, settings) } else { Vec::new() };
    }
    let mut left = 100;
    let mut groups = Vec::new();
    for (class, shares) in [(Class::Healthy, &healthy), (Class::Degraded, &degraded)] {
        for (index, share) in shares.iter().enumerate() {
            let load = (share * 100 / total).min(left);
            if load == 0 {
                continue;
            }
            left -= load;
            let panic = total < 100 && counts[index].panics(settings.panic_threshold_percent);
            groups.push(group(&set.priorities[index], if panic { Class::All } else { class }, load, settings));
        }
    }
    // What integer division left over goes to the most preferred group.
    if let Some(first) = groups.first_mut() {
        first.share += left;
    }
    groups
}

/// Nobody is available and panic is allowed: traffic goes by the number of hosts.
fn everyone(set: &HostSet, counts: &[Counts], settings: &Settings) -> Vec<Group> {
    let total: usize = counts.iter().map(|c| c.all).sum();
    let mut left = 100;
    let mut groups = Vec::new();
    for (priority, counts) in set.priorities.iter().zip(counts) {
        let percent = (counts.all * 100).checked_div(total).unwrap_or(0);
        let share = u32::try_from(percent).unwrap_or(100).min(left);
        if share > 0 {
            left -= share;
            groups.push(group(priority, Class::All, share, settings));
        }
    }
    if let Some(first) = groups.first_mut() {
        first.share += left;
    }
    groups
}

fn group(priority: &Priority, class: Class, share: u32, settings: &Settings) -> Group {
    let localities = if settings.locality_weighted && priority.localities.iter().any(|l| l.weight > 0) {
        priority.localities.iter().filter_map(|l| locality(l, class, settings)).collect()
    } else {
        let hosts = priority.localities.iter().flat_map(|l| members(class, &l.hosts)).collect();
        vec![WeightedHosts { weight: 1.0, hosts }]
    };
    Group { share, localities }
}

/// A locality's weight shrinks with its health once over-provisioning is used up.
fn locality(locality: &LocalityHosts, class: Class, settings: &Settings) -> Option<WeightedHosts> {
    let hosts = members(class, &locality.hosts);
    if hosts.is_empty() || locality.weight == 0 {
        return None;
    }
    let available = hosts.len() as f64 / locality.hosts.len().max(1) as f64;
    let factor = (available * f64::from(settings.overprovisioning_percent) / 100.0).min(1.0);
    Some(WeightedHosts { weight: f64::from(locality.weight) * factor, hosts })
}

struct Counts {
    all: usize,
    healthy: usize,
    degraded: usize,
}

impl Counts {
    fn of(priority: &Priority) -> Self {
        let mut counts = Self { all: 0, healthy: 0, degraded: 0 };
        let counted = |h: &&Arc<Host>| h.flags() & PENDING_ACTIVE_HC == 0;
        for host in priority.localities.iter().flat_map(|l| &l.hosts).filter(counted) {
            counts.all += 1;
            match (host.is_healthy(), host.is_degraded()) {
                (true, false) => counts.healthy += 1,
                (true, true) => counts.degraded += 1,
                _ => {}
            }
        }
        counts
    }

    /// Percent of its share that this priority can take.
    fn availability(&self, hosts: usize, overprovisioning_percent: u32) -> u32 {
        if self.all == 0 {
            return 0;
        }
        u32::try_from(hosts * overprovisioning_percent as usize / self.all).unwrap_or(100).min(100)
    }

    /// The share of healthy hosts, of those that count, is below the threshold.
    fn panics(&self, threshold: f64) -> bool {
        self.all > 0 && 100.0 * (self.healthy + self.degraded) as f64 / (self.all as f64) < threshold.min(100.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{Address, FAILED_EDS};

    /// Priorities given as (healthy, unhealthy) counts.
    fn set(priorities: &[(u16, u16)]) -> HostSet {
        let mut port = 0;
        let mut host = |healthy: bool| {
            port += 1;
            let host = Host::new(Address::Socket(([10, 0, 0, 1], port).into()));
            host.set_flag(FAILED_EDS, !healthy);
            Arc::new(host)
        };
        let priority = |&(up, down): &(u16, u16)| {
            let hosts = (0..up).map(|_| true).chain((0..down).map(|_| false)).map(&mut host).collect();
            Priority { localities: vec![LocalityHosts { hosts, ..LocalityHosts::default() }] }
        };
        HostSet::new(priorities.iter().map(priority).collect())
    }

    fn shares(priorities: &[(u16, u16)], panic: f64) -> Vec<(u32, usize)> {
        let settings = Settings { panic_threshold_percent: panic, ..Settings::default() };
        plan(&set(priorities), &settings).iter().map(|g| (g.share, g.localities[0].hosts.len())).collect()
    }

    #[test]
    fn spill_over_follows_envoys_table() {
        assert_eq!(shares(&[(100, 0), (100, 0)], 0.0), [(100, 100)]);
        assert_eq!(shares(&[(72, 28), (100, 0)], 0.0), [(100, 72)]);
        assert_eq!(shares(&[(50, 50), (100, 0)], 0.0), [(70, 50), (30, 100)]);
        assert_eq!(shares(&[(0, 100), (100, 0)], 0.0), [(100, 100)]);
        assert_eq!(shares(&[(25, 75), (25, 75)], 0.0), [(50, 25), (50, 25)]);
    }

    #[test]
    fn panic_sends_to_unhealthy_hosts_too_unless_the_threshold_is_zero() {
        assert_eq!(shares(&[(1, 3)], 50.0), [(100, 4)]);
        assert_eq!(shares(&[(1, 3)], 0.0), [(100, 1)]);
        assert_eq!(shares(&[(0, 4)], 50.0), [(100, 4)]);
        assert!(shares(&[(0, 4)], 0.0).is_empty());
    }

    #[test]
    fn hosts_that_wait_for_their_first_check_start_no_panic() {
        let set = set(&[(2, 6)]);
        let settings = Settings::default();
        assert_eq!(plan(&set, &settings)[0].localities[0].hosts.len(), 8, "a quarter is less than half");
        set.hosts().filter(|h| !h.is_healthy()).for_each(|h| h.set_flag(PENDING_ACTIVE_HC, true));
        assert_eq!(plan(&set, &settings)[0].localities[0].hosts.len(), 2);
    }

    #[test]
    fn no_panic_while_other_priorities_carry_the_load() {
        assert_eq!(shares(&[(1, 9), (10, 0)], 50.0), [(14, 1), (86, 10)]);
    }
}
