//! Several clusters as one: their priorities laid end to end (Envoy aggregate cluster).
//!
//! Health and over-provisioning decide which level gets a request, as within one cluster; the balancer of the member that
//! has this level decides about the host.
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::host::{Host, HostSet, Priority};
use crate::plan::{Level, levels};

/// One worker's choice among the members.
pub struct Aggregate {
    members: Vec<Arc<HostSet>>,
    panic_threshold_percent: u32,
    /// What `shares` were computed for: the health epochs, and the priorities to go past.
    of: (Vec<u64>, u64),
    shares: Vec<(u32, usize, Level)>,
    rng: SmallRng,
}

impl Aggregate {
    /// The threshold is that of the whole, over-provisioning is each member's own.
    pub fn new(members: Vec<Arc<HostSet>>, panic_threshold_percent: u32, seed: u64) -> Self {
        let mut new =
            Self { members, panic_threshold_percent, of: (Vec::new(), 0), shares: Vec::new(), rng: SmallRng::seed_from_u64(seed) };
        new.compute(0);
        new
    }

    /// Whether these are the members' hosts of the moment.
    pub fn is_of<'a>(&self, hosts: impl Iterator<Item = &'a Arc<HostSet>>) -> bool {
        let mut known = self.members.iter();
        hosts.into_iter().all(|h| known.next().is_some_and(|m| Arc::ptr_eq(m, h))) && known.next().is_none()
    }

    /// The priorities of all members end to end, as [`Self::choose`] numbers those to go past: empty ones are none.
    pub fn priorities(&self) -> impl Iterator<Item = &Priority> {
        self.members.iter().flat_map(|m| &m.priorities).filter(|p| p.hosts().next().is_some())
    }

    /// Which of [`Self::priorities`] a host is in.
    pub fn priority_of(&self, host: &Arc<Host>) -> Option<usize> {
        let mut before = 0;
        for member in &self.members {
            let filled = |upto: usize| member.priorities.iter().take(upto).filter(|p| p.hosts().next().is_some()).count();
            match member.priority_of(host) {
                Some(level) => return Some(before + filled(level)),
                None => before += filled(member.priorities.len()),
            }
        }
        None
    }

    /// The index of a member, and one of its levels. Priorities of `past`, as bits over all members, are left out while
    /// another has anybody.
    pub fn choose(&mut self, past: u64) -> Option<(usize, Level)> {
        if past != self.of.1 || !self.members.iter().map(|m| m.health_epoch()).eq(self.of.0.iter().copied()) {
            self.compute(past);
        }
        let roll = if self.shares.len() > 1 { self.rng.random_range(0..100) } else { 0 };
        let mut bound = 0;
        let found = self.shares.iter().find(|(share, ..)| {
            bound += share;
            roll < bound
        });
        found.map(|(_, member, level)| (*member, *level))
    }

    fn compute(&mut self, past: u64) {
        self.of = (self.members.iter().map(|m| m.health_epoch()).collect(), past);
        self.shares = levels(&self.members, self.panic_threshold_percent, past);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::balancer::{Balancer, Choice, Context};
    use crate::config::Settings;
    use crate::host::{Address, DEGRADED_EDS, FAILED_EDS, Host, LocalityHosts, Priority};

    fn cluster(third: u8, priorities: &[u16]) -> Arc<HostSet> {
        let priority = |(level, count): (usize, &u16)| {
            let host = |n: u16| Arc::new(Host::new(Address::Socket(([10, 0, third, level as u8], n).into())));
            Priority { localities: vec![LocalityHosts { hosts: (1..=*count).map(host).collect(), ..LocalityHosts::default() }] }
        };
        Arc::new(HostSet::new(priorities.iter().enumerate().map(priority).collect()))
    }

    /// How often each member and priority was chosen of a thousand times.
    fn counts(aggregate: &mut Aggregate, past: u64) -> Vec<((usize, usize), usize)> {
        let mut counts = BTreeMap::new();
        for (member, level) in (0..1000).filter_map(|_| aggregate.choose(past)) {
            *counts.entry((member, level.priority)).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn mark(member: &HostSet, priority: usize, hosts: usize, flag: u32) {
        for host in member.priorities[priority].localities[0].hosts.iter().take(hosts) {
            host.set_flag(flag, true);
        }
        member.health_changed();
    }

    #[test]
    fn a_host_is_found_among_the_priorities_that_have_any() {
        let (first, second) = (cluster(1, &[2, 0, 1]), cluster(2, &[0, 3]));
        let aggregate = Aggregate::new(vec![first.clone(), second.clone()], 0, 7);
        let of = |member: &HostSet, level: usize| aggregate.priority_of(&member.priorities[level].localities[0].hosts[0]);
        assert_eq!([of(&first, 0), of(&first, 2), of(&second, 1)], [Some(0), Some(1), Some(2)]);
        assert_eq!(aggregate.priorities().count(), 3);
        assert_eq!(aggregate.priority_of(&Arc::new(Host::new(Address::Pipe("x".into())))), None);
    }

    #[test]
    fn the_next_priority_comes_in_when_the_one_before_fails_over_the_border_of_clusters() {
        let (first, second) = (cluster(1, &[2, 2]), cluster(2, &[2]));
        let mut aggregate = Aggregate::new(vec![first.clone(), second.clone()], 0, 7);
        assert_eq!(counts(&mut aggregate, 0), [((0, 0), 1000)]);
        mark(&first, 0, 2, FAILED_EDS);
        assert_eq!(counts(&mut aggregate, 0), [((0, 1), 1000)]);
        mark(&first, 1, 2, FAILED_EDS);
        assert_eq!(counts(&mut aggregate, 0), [((1, 0), 1000)]);
        mark(&second, 0, 2, FAILED_EDS);
        assert_eq!(counts(&mut aggregate, 0), []);
        let mut panics = Aggregate::new(vec![first, second], 50, 7);
        assert_eq!(counts(&mut panics, 0).len(), 3, "by the number of hosts");
    }

    #[test]
    fn a_half_failed_cluster_shares_with_the_next_by_its_own_over_provisioning() {
        let (mut first, second) = (cluster(1, &[4]), cluster(2, &[4]));
        mark(&first, 0, 2, FAILED_EDS);
        let ours = |first: &Arc<HostSet>| {
            let counts = counts(&mut Aggregate::new(vec![first.clone(), second.clone()], 0, 7), 0);
            let [((0, 0), ours), ((1, 0), theirs)] = counts.as_slice() else { panic!("{counts:?}") };
            assert_eq!(ours + theirs, 1000);
            *ours
        };
        assert!((650..750).contains(&ours(&first)));
        Arc::get_mut(&mut first).unwrap().overprovisioning_percent = 100;
        assert!((450..550).contains(&ours(&first)));
    }

    #[test]
    fn empty_priorities_and_members_are_left_out_and_do_not_count_as_past() {
        let mut aggregate = Aggregate::new(vec![cluster(1, &[]), cluster(2, &[0, 3]), cluster(3, &[1])], 50, 7);
        assert_eq!(counts(&mut aggregate, 0), [((1, 1), 1000)]);
        assert_eq!(counts(&mut aggregate, 0b1), [((2, 0), 1000)]);
        assert_eq!(counts(&mut aggregate, 0b11), [((1, 1), 1000)], "better one that was tried than none");
    }

    #[test]
    fn the_member_chooses_within_the_level_and_panics_by_itself() {
        let member = cluster(1, &[2, 2]);
        mark(&member, 1, 1, DEGRADED_EDS);
        let ports = |only: Level, panic: u32| {
            let settings = Settings { panic_threshold_percent: panic, ..Settings::default() };
            let mut balancer = Balancer::new(Arc::clone(&member), None, &settings, 1);
            let mut found = BTreeMap::new();
            for _ in 0..20 {
                let Choice::Host(host) = balancer.choose(&Context { only: Some(only), ..Context::default() }) else { continue };
                *found.entry(host.address.to_string()).or_insert(0) += 1;
            }
            found.into_iter().collect::<Vec<_>>()
        };
        let level = |priority, degraded| Level { priority, degraded };
        let text = |s: &str, n| (s.to_owned(), n);
        assert_eq!(ports(level(1, false), 50), [text("10.0.1.1:2", 20)]);
        assert_eq!(ports(level(1, true), 50), [text("10.0.1.1:1", 20)]);
        assert_eq!(ports(level(2, false), 50), []);
        mark(&member, 0, 2, FAILED_EDS);
        mark(&member, 1, 2, FAILED_EDS);
        assert_eq!(ports(level(0, false), 0), []);
        assert_eq!(ports(level(0, false), 50), [text("10.0.1.0:1", 10), text("10.0.1.0:2", 10)]);
    }

    #[test]
    fn other_hosts_are_told_from_these() {
        let (first, second) = (cluster(1, &[1]), cluster(2, &[1]));
        let aggregate = Aggregate::new(vec![first.clone(), second.clone()], 50, 7);
        assert!(aggregate.is_of([&first, &second].into_iter()));
        assert!(!aggregate.is_of([&first].into_iter()));
        assert!(!aggregate.is_of([&first, &cluster(2, &[1])].into_iter()));
        assert!(!aggregate.is_of([&first, &second, &second].into_iter()));
    }
}
