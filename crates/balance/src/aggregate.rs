//! Several clusters as one: their priorities laid end to end (Envoy aggregate cluster).
//!
//! Health and over-provisioning decide which priority gets a request, as within one cluster; the policy of the member
//! that has this priority decides about the host.
use std::collections::HashMap;
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::balancer::{Balancer, Choice, Context};
use crate::config::Settings;
use crate::host::{Host, HostSet, LocalityHosts, Priority};
use crate::plan::{Group, plan};

/// A cluster among those that are taken as one.
#[derive(Clone, Debug)]
pub struct Member {
    pub hosts: Arc<HostSet>,
    pub settings: Settings,
}

/// One worker's choice among the members.
pub struct Aggregate {
    members: Vec<Member>,
    /// The health epochs that the parts were computed for.
    epochs: Vec<u64>,
    settings: Settings,
    parts: Vec<Part>,
    rng: SmallRng,
}

/// A priority of a member, with those of its hosts that are chosen from at the moment.
struct Part {
    share: u32,
    member: usize,
    balancer: Balancer,
}

impl Aggregate {
    /// `settings` are those of the whole; the over-provisioning is the first member's.
    pub fn new(members: Vec<Member>, settings: &Settings, seed: u64) -> Self {
        let mut settings = Settings { locality_weighted: false, ..settings.clone() };
        if let Some(first) = members.first() {
            settings.overprovisioning_percent = first.settings.overprovisioning_percent;
        }
        let mut new = Self { members, epochs: Vec::new(), settings, parts: Vec::new(), rng: SmallRng::seed_from_u64(seed) };
        new.build();
        new
    }

    /// Whether these are the members' hosts of the moment.
    pub fn is_of<'a>(&self, hosts: impl Iterator<Item = &'a Arc<HostSet>>) -> bool {
        let mut known = self.members.iter();
        hosts.into_iter().all(|h| known.next().is_some_and(|m| Arc::ptr_eq(&m.hosts, h))) && known.next().is_none()
    }

    /// The index of a member, and one of its hosts.
    pub fn choose(&mut self, context: &Context<'_>) -> Option<(usize, Arc<Host>)> {
        if !self.members.iter().map(|m| m.hosts.health_epoch()).eq(self.epochs.iter().copied()) {
            self.build();
        }
        let roll = match context.hash {
            Some(hash) => (hash % 100) as u32,
            None => self.rng.random_range(0..100),
        };
        let mut bound = 0;
        let part = self.parts.iter_mut().find(|part| {
            bound += part.share;
            roll < bound
        })?;
        match part.balancer.choose(context) {
            Choice::Host(host) => Some((part.member, host)),
            Choice::NoHealthyHost => None,
        }
    }

    fn build(&mut self) {
        self.epochs = self.members.iter().map(|m| m.hosts.health_epoch()).collect();
        let mut places: HashMap<*const Host, (usize, usize)> = HashMap::new();
        let mut all = Vec::new();
        for (member, Member { hosts, .. }) in self.members.iter().enumerate() {
            for (index, priority) in hosts.priorities.iter().enumerate().filter(|(_, p)| p.localities.iter().any(|l| !l.hosts.is_empty())) {
                for host in priority.localities.iter().flat_map(|l| &l.hosts) {
                    places.insert(Arc::as_ptr(host), (member, index));
                }
                all.push(priority.clone());
            }
        }
        let groups = plan(&HostSet::new(all), &self.settings);
        self.parts = groups.into_iter().filter_map(|group| self.part(group, &places)).collect();
    }

    fn part(&mut self, group: Group, places: &HashMap<*const Host, (usize, usize)>) -> Option<Part> {
        let Group { share, localities } = group;
        let chosen: Vec<Arc<Host>> = localities.into_iter().flat_map(|l| l.hosts).collect();
        let (member, index) = *places.get(&Arc::as_ptr(chosen.first()?))?;
        let Member { hosts, settings } = self.members.get(member)?;
        let narrowed = hosts.priorities.get(index)?.localities.iter().map(|locality| LocalityHosts {
            hosts: locality.hosts.iter().filter(|h| chosen.iter().any(|c| Arc::ptr_eq(c, h))).cloned().collect(),
            ..locality.clone()
        });
        let set = HostSet::new(vec![Priority { localities: narrowed.collect() }]);
        Some(Part { share, member, balancer: Balancer::new(Arc::new(set), settings, self.rng.random()) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::LbPolicy;
    use crate::host::{Address, FAILED_EDS};

    fn cluster(third: u8, priorities: &[u16]) -> Member {
        let priority = |(level, count): (usize, &u16)| {
            let host = |n: u16| Arc::new(Host::new(Address::Socket(([10, 0, third, level as u8], n).into())));
            Priority { localities: vec![LocalityHosts { hosts: (1..=*count).map(host).collect(), ..LocalityHosts::default() }] }
        };
        let settings = Settings { policy: LbPolicy::RoundRobin, panic_threshold_percent: 0.0, ..Settings::default() };
        Member { hosts: Arc::new(HostSet::new(priorities.iter().enumerate().map(priority).collect())), settings }
    }

    fn whole() -> Settings {
        Settings { policy: LbPolicy::OriginalDestination, panic_threshold_percent: 0.0, ..Settings::default() }
    }

    /// How often each member and priority was chosen of a hundred times.
    fn counts(aggregate: &mut Aggregate) -> Vec<((usize, u8), usize)> {
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..1000 {
            let Some((member, host)) = aggregate.choose(&Context::default()) else { continue };
            let Address::Socket(address) = &host.address else { continue };
            let std::net::IpAddr::V4(ip) = address.ip() else { continue };
            *counts.entry((member, ip.octets()[3])).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }

    fn fail(member: &Member, priority: usize, hosts: usize) {
        for host in member.hosts.priorities[priority].localities[0].hosts.iter().take(hosts) {
            host.set_flag(FAILED_EDS, true);
        }
        member.hosts.health_changed();
    }

    #[test]
    fn the_next_priority_comes_in_when_the_one_before_fails_over_the_border_of_clusters() {
        let (first, second) = (cluster(1, &[2, 2]), cluster(2, &[2]));
        let mut aggregate = Aggregate::new(vec![first.clone(), second.clone()], &whole(), 7);
        assert_eq!(counts(&mut aggregate), [((0, 0), 1000)]);
        fail(&first, 0, 2);
        assert_eq!(counts(&mut aggregate), [((0, 1), 1000)]);
        fail(&first, 1, 2);
        assert_eq!(counts(&mut aggregate), [((1, 0), 1000)]);
        fail(&second, 0, 2);
        assert_eq!(counts(&mut aggregate), []);
    }

    #[test]
    fn a_half_failed_cluster_shares_with_the_next() {
        let (first, second) = (cluster(1, &[4]), cluster(2, &[4]));
        fail(&first, 0, 2);
        let mut aggregate = Aggregate::new(vec![first, second], &whole(), 7);
        let counts = counts(&mut aggregate);
        let [((0, 0), ours), ((1, 0), theirs)] = counts.as_slice() else { panic!("{counts:?}") };
        assert!((650..750).contains(ours) && ours + theirs == 1000, "{counts:?}");
    }

    #[test]
    fn empty_priorities_and_members_are_left_out() {
        let mut aggregate = Aggregate::new(vec![cluster(1, &[]), cluster(2, &[0, 3]), cluster(3, &[1])], &whole(), 7);
        assert_eq!(counts(&mut aggregate), [((1, 1), 1000)]);
    }

    #[test]
    fn other_hosts_are_told_from_these() {
        let (first, second) = (cluster(1, &[1]), cluster(2, &[1]));
        let aggregate = Aggregate::new(vec![first.clone(), second.clone()], &whole(), 7);
        assert!(aggregate.is_of([&first.hosts, &second.hosts].into_iter()));
        assert!(!aggregate.is_of([&first.hosts].into_iter()));
        assert!(!aggregate.is_of([&first.hosts, &cluster(2, &[1]).hosts].into_iter()));
        assert!(!aggregate.is_of([&first.hosts, &second.hosts, &second.hosts].into_iter()));
    }
}
