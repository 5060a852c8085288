//! One worker's choice among the hosts of a cluster.
use std::collections::HashMap;
use std::sync::Arc;

use rand::SeedableRng;
use rand::rngs::SmallRng;

use crate::chooser::{Chooser, Desk};
use crate::config::{LbPolicy, Settings};
use crate::host::{Host, HostSet};
use crate::omit::Omit;
use crate::plan::{Level, View};
use crate::subset::{Criteria, SubsetSettings};
use crate::subsets::{Step, Subset, Subsets, Target, Via};
use crate::zone::LocalCluster;

/// What a choice depends on beside the cluster itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The request's hash, when the route has a hash policy.
    pub hash: Option<u64>,
    /// Hosts already tried, to be avoided while others are left (Envoy `previous_hosts`).
    pub avoid: &'a [Arc<Host>],
    /// Hosts to be avoided in the same way for what they are.
    pub omit: Option<&'a Omit>,
    /// How often to choose again when a host to avoid comes up (Envoy `host_selection_retry_max_attempts`).
    pub reselect: u32,
    /// Priorities to go past while another has anybody, as bits (Envoy `previous_priorities`).
    pub past: u64,
    /// The level that was chosen already, where the cluster is a member of an aggregate.
    pub only: Option<Level>,
    /// What the host's subset must be, where the cluster has subsets.
    pub criteria: Option<&'a Criteria>,
    /// Milliseconds of a clock that all workers share; only looked at where [`Balancer::needs_time`].
    pub now: u64,
}

/// The outcome of a choice.
#[derive(Clone, Debug)]
pub enum Choice {
    Host(Arc<Host>),
    /// No host can be chosen: `503 no healthy upstream`, flag `UH`.
    NoHealthyHost,
}

/// What choices counted since they were last asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    any: bool,
    pub healthy_panic: u32,
    pub recalculate_zone_structures: u32,
    pub local_cluster_not_ok: u32,
    pub zone_cluster_too_small: u32,
    pub zone_no_capacity_left: u32,
    pub zone_routing_all_directly: u32,
    pub zone_routing_cross_zone: u32,
    pub zone_routing_sampled: u32,
    pub subsets_selected: u32,
    pub subsets_fallback: u32,
    pub subsets_fallback_panic: u32,
}

impl Tally {
    pub(crate) fn count(&mut self, which: impl FnOnce(&mut Self) -> &mut u32) {
        self.any = true;
        let counter = which(self);
        *counter = counter.saturating_add(1);
    }
}

/// A worker's own balancer: scheduling state is not shared, health and load are read from the hosts.
pub struct Balancer {
    hosts: Arc<HostSet>,
    local: Option<Arc<LocalCluster>>,
    settings: Settings,
    whole: Chooser,
    divided: Option<Box<Divided>>,
    tally: Tally,
    rng: SmallRng,
}

/// The scheduling state of a cluster's subsets, made as they are used.
struct Divided {
    settings: Arc<SubsetSettings>,
    choosers: HashMap<Option<u32>, Chooser>,
    /// Where to look for what requests asked.
    steps: HashMap<Criteria, Arc<[Step]>>,
}

/// What more different requests ask is looked up anew.
const MOST_REMEMBERED: usize = 4_096;

impl Balancer {
    /// `seed` sets this worker's dice and starting points apart from the others'.
    pub fn new(hosts: Arc<HostSet>, local: Option<Arc<LocalCluster>>, settings: &Settings, seed: u64) -> Self {
        let divided = |settings: &Arc<SubsetSettings>| {
            Box::new(Divided { settings: Arc::clone(settings), choosers: HashMap::new(), steps: HashMap::new() })
        };
        Self {
            hosts,
            local,
            settings: settings.clone(),
            whole: Chooser::default(),
            divided: settings.subsets.as_ref().map(divided),
            tally: Tally::default(),
            rng: SmallRng::seed_from_u64(seed),
        }
    }

    /// Whether choices depend on [`Context::now`].
    pub fn needs_time(&self) -> bool {
        self.settings.slow_start.is_some() || matches!(self.settings.policy, LbPolicy::ByLoad(_))
    }

    /// Chooses a host.
    pub fn choose(&mut self, context: &Context<'_>) -> Choice {
        let Self { hosts, local, settings, whole, divided, tally, rng } = self;
        let view =
            View { priorities: &hosts.priorities, set: hosts, settings, local: local.as_deref(), past: context.past, only: context.only };
        let mut desk = Desk { rng, tally };
        let chosen = match (divided, &hosts.subsets) {
            (Some(divided), Some(subsets)) => divided.choose(subsets, whole, &view, context, &mut desk),
            _ => whole.choose(&view, context, &mut desk),
        };
        chosen.map_or(Choice::NoHealthyHost, Choice::Host)
    }

    /// What was counted since the last time; `None` when nothing was.
    pub fn take_tally(&mut self) -> Option<Tally> {
        self.tally.any.then(|| std::mem::take(&mut self.tally))
    }
}

impl Divided {
    fn choose(
        &mut self,
        subsets: &Subsets,
        whole: &mut Chooser,
        view: &View<'_>,
        context: &Context<'_>,
        desk: &mut Desk<'_>,
    ) -> Option<Arc<Host>> {
        for Step { target, via } in self.steps(subsets, context.criteria).iter() {
            if *via == Via::Selected {
                desk.tally.count(|t| &mut t.subsets_selected);
            }
            let chosen = match target {
                Target::Any => whole.choose(view, context, desk),
                Target::Default => {
                    let view = View { priorities: subsets.default_subset(), ..*view };
                    self.choosers.entry(None).or_default().choose(&view, context, desk)
                }
                Target::Subset(index) => match subsets.get(*index)? {
                    Subset::One(host) => Some(Arc::clone(host)),
                    Subset::Many(priorities) => {
                        let view = View { priorities, ..*view };
                        self.choosers.entry(Some(*index)).or_default().choose(&view, context, desk)
                    }
                },
            };
            if chosen.is_some() {
                match via {
                    Via::Fallback => desk.tally.count(|t| &mut t.subsets_fallback),
                    Via::Panic => desk.tally.count(|t| &mut t.subsets_fallback_panic),
                    Via::Selected | Via::SelectorFallback => {}
                }
                return chosen;
            }
        }
        None
    }

    fn steps(&mut self, subsets: &Subsets, criteria: Option<&Criteria>) -> Arc<[Step]> {
        let nothing = Criteria::default();
        let criteria = criteria.unwrap_or(&nothing);
        if let Some(steps) = self.steps.get(criteria) {
            return Arc::clone(steps);
        }
        let steps: Arc<[Step]> = subsets.steps(&self.settings, criteria).into();
        if self.steps.len() < MOST_REMEMBERED {
            self.steps.insert(criteria.clone(), Arc::clone(&steps));
        }
        steps
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::by_load::{ByLoad, LoadReport};
    use crate::config::{Choices, HashFunction};
    use crate::host::{Address, FAILED_OUTLIER, Locality, LocalityHosts, Priority};
    use crate::slow_start::SlowStart;

    fn host(port: u16, weight: u32) -> Arc<Host> {
        let host = Host::new(Address::Socket(([10, 0, 0, 1], port).into()));
        host.set_weight(weight);
        Arc::new(host)
    }

    fn settings(policy: LbPolicy) -> Settings {
        Settings { policy, panic_threshold_percent: 0, ..Settings::default() }
    }

    fn count(balancer: &mut Balancer, n: usize, context: &Context<'_>) -> HashMap<Address, usize> {
        let mut counts = HashMap::new();
        for _ in 0..n {
            if let Choice::Host(host) = balancer.choose(context) {
                *counts.entry(host.address.clone()).or_insert(0) += 1;
            }
        }
        counts
    }

    #[test]
    fn round_robin_takes_exact_turns_and_weights_exact_shares() {
        let set = Arc::new(HostSet::flat(vec![host(1, 1), host(2, 1), host(3, 1)]));
        let counts = count(&mut Balancer::new(set, None, &settings(LbPolicy::RoundRobin), 1), 300, &Context::default());
        assert!(counts.len() == 3 && counts.values().all(|c| *c == 100), "{counts:?}");
        let set = Arc::new(HostSet::flat(vec![host(1, 1), host(2, 3)]));
        let counts = count(&mut Balancer::new(set, None, &settings(LbPolicy::RoundRobin), 1), 400, &Context::default());
        assert_eq!(counts[&Address::Socket(([10, 0, 0, 1], 2).into())], 300);
    }

    #[test]
    fn least_request_prefers_the_idle_host() {
        let (busy, idle) = (host(1, 1), host(2, 1));
        let _load: Vec<_> = (0..10).map(|_| busy.begin_request()).collect();
        let set = Arc::new(HostSet::flat(vec![busy, Arc::clone(&idle)]));
        let policy = LbPolicy::LeastRequest { choices: Choices::Random(2), active_request_bias: 1.0 };
        let counts = count(&mut Balancer::new(set, None, &settings(policy), 1), 1000, &Context::default());
        assert!(counts[&idle.address] > 700, "{counts:?}");
    }

    #[test]
    fn an_ejection_is_seen_at_the_next_choice_and_all_ejected_is_no_host() {
        let hosts = [host(1, 1), host(2, 1)];
        let set = Arc::new(HostSet::flat(hosts.to_vec()));
        let mut balancer = Balancer::new(Arc::clone(&set), None, &settings(LbPolicy::Random), 1);
        hosts[0].set_flag(FAILED_OUTLIER, true);
        set.health_changed();
        assert_eq!(count(&mut balancer, 50, &Context::default()), HashMap::from([(hosts[1].address.clone(), 50)]));
        hosts[1].set_flag(FAILED_OUTLIER, true);
        set.health_changed();
        assert!(matches!(balancer.choose(&Context::default()), Choice::NoHealthyHost));
    }

    #[test]
    fn a_retry_avoids_the_host_it_tried_while_there_is_another() {
        let hosts = [host(1, 1), host(2, 1)];
        let set = Arc::new(HostSet::flat(hosts.to_vec()));
        let mut balancer = Balancer::new(set, None, &settings(LbPolicy::RoundRobin), 1);
        let avoid = [Arc::clone(&hosts[0])];
        let context = Context { avoid: &avoid, reselect: 5, ..Context::default() };
        assert_eq!(count(&mut balancer, 20, &context), HashMap::from([(hosts[1].address.clone(), 20)]));
        let context = Context { avoid: &hosts, reselect: 5, ..Context::default() };
        assert_eq!(count(&mut balancer, 20, &context).values().sum::<usize>(), 20, "better a tried host than none");
    }

    #[test]
    fn one_hash_always_finds_the_same_host() {
        let set = Arc::new(HostSet::flat((1..=5).map(|p| host(p, 1)).collect()));
        for policy in [
            LbPolicy::RingHash { minimum_size: 1024, maximum_size: 1 << 20, function: HashFunction::MurmurHash2 },
            LbPolicy::Maglev { table_size: 65_537 },
        ] {
            let mut balancer = Balancer::new(Arc::clone(&set), None, &settings(policy), 1);
            let context = Context { hash: Some(42), ..Context::default() };
            assert_eq!(count(&mut balancer, 50, &context).len(), 1);
            assert!(count(&mut balancer, 500, &Context::default()).len() > 1, "without a hash any host will do");
        }
    }

    #[test]
    fn weighted_localities_get_their_shares() {
        let locality = |zone: &str, weight, port| LocalityHosts {
            locality: Locality { zone: zone.into(), ..Locality::default() },
            weight,
            hosts: vec![host(port, 1)],
        };
        let set = Arc::new(HostSet::new(vec![Priority { localities: vec![locality("a", 80, 1), locality("b", 20, 2)] }]));
        let settings = Settings { locality_weighted: true, ..settings(LbPolicy::RoundRobin) };
        let counts = count(&mut Balancer::new(set, None, &settings, 7), 10_000, &Context::default());
        let a = counts[&Address::Socket(([10, 0, 0, 1], 1).into())];
        assert!((7_800..8_200).contains(&a), "{counts:?}");
    }

    #[test]
    fn an_empty_cluster_has_no_host() {
        for policy in
            [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest { choices: Choices::Random(2), active_request_bias: 1.0 }]
        {
            let mut balancer = Balancer::new(Arc::new(HostSet::default()), None, &Settings { policy, ..Settings::default() }, 1);
            assert!(matches!(balancer.choose(&Context::default()), Choice::NoHealthyHost));
        }
    }

    fn zone(zone: &str) -> Locality {
        Locality { zone: zone.into(), ..Locality::default() }
    }

    fn zones(sizes: &[(&str, u16)], first_port: u16) -> Arc<HostSet> {
        let mut port = first_port;
        let mut hosts = |n: u16| -> Vec<_> {
            port += n;
            (port - n..port).map(|p| host(p, 1)).collect()
        };
        let localities = sizes.iter().map(|(name, n)| LocalityHosts { locality: zone(name), weight: 0, hosts: hosts(*n) });
        Arc::new(HostSet::new(vec![Priority { localities: localities.collect() }]))
    }

    /// How many of 10 000 requests went to each zone, by the name of its first host's port.
    fn by_zone(upstream: &Arc<HostSet>, callers: &[(&str, u16)], settings: &Settings) -> (Vec<usize>, Tally) {
        let local = Arc::new(LocalCluster { hosts: zones(callers, 1_000), locality: zone("a") });
        let mut balancer = Balancer::new(Arc::clone(upstream), Some(local), settings, 3);
        let counts = count(&mut balancer, 10_000, &Context::default());
        let of = |l: &LocalityHosts| l.hosts.iter().filter_map(|h| counts.get(&h.address)).sum();
        (upstream.priorities[0].localities.iter().map(of).collect(), balancer.take_tally().unwrap())
    }

    #[test]
    fn zones_keep_what_they_can_carry_and_send_the_rest_where_there_is_room() {
        let settings = settings(LbPolicy::RoundRobin);
        let even = [("a", 1), ("b", 1)];
        let (counts, tally) = by_zone(&zones(&[("b", 5), ("a", 5)], 1), &even, &settings);
        assert_eq!((counts, tally.zone_routing_all_directly, tally.recalculate_zone_structures), (vec![0, 10_000], 10_000, 1));
        // A fifth of the hosts for half of the callers: two fifths stay.
        let (counts, tally) = by_zone(&zones(&[("a", 2), ("b", 8)], 1), &even, &settings);
        assert!((3_800..4_200).contains(&counts[0]), "{counts:?}");
        assert_eq!(tally.zone_routing_sampled as usize, counts[0]);
        // Of what leaves, the zone with more room gets more: 10 to 5.
        let (counts, _) = by_zone(&zones(&[("a", 5), ("b", 10), ("c", 5)], 1), &[("a", 4), ("b", 4), ("c", 2)], &settings);
        assert!((6_050..6_450).contains(&counts[0]) && (2_350..2_650).contains(&counts[1]), "{counts:?}");
        let (counts, tally) = by_zone(&zones(&[("a", 1), ("b", 4)], 1), &even, &settings);
        assert_eq!((counts, tally.zone_cluster_too_small), (vec![2_000, 8_000], 1), "below six hosts all are alike");
    }

    #[test]
    fn only_some_requests_go_by_zones_where_that_is_said() {
        let mut settings = settings(LbPolicy::Random);
        settings.zone_aware.routing_enabled = 50;
        let (counts, _) = by_zone(&zones(&[("a", 5), ("b", 5)], 1), &[("a", 1), ("b", 1)], &settings);
        assert!((7_200..7_800).contains(&counts[0]), "{counts:?}");
    }

    #[test]
    fn a_change_of_the_local_cluster_is_seen_at_the_next_choice() {
        let local = Arc::new(LocalCluster { hosts: zones(&[("a", 1), ("b", 1)], 1_000), locality: zone("a") });
        let upstream = zones(&[("a", 5), ("b", 5)], 1);
        let mut balancer = Balancer::new(Arc::clone(&upstream), Some(Arc::clone(&local)), &settings(LbPolicy::RoundRobin), 3);
        let far = &upstream.priorities[0].localities[1].hosts;
        let reaches_far =
            |balancer: &mut Balancer| count(balancer, 50, &Context::default()).keys().any(|a| far.iter().any(|h| h.address == *a));
        assert!(!reaches_far(&mut balancer));
        local.hosts.hosts().nth(1).unwrap().set_flag(FAILED_OUTLIER, true);
        local.hosts.health_changed();
        assert!(reaches_far(&mut balancer), "all callers are in zone a now, and half of the hosts");
    }

    #[test]
    fn a_new_host_starts_slowly_and_takes_equal_turns_in_the_end() {
        let hosts = [host(1, 1), host(2, 1)];
        let slow = SlowStart { window_millis: 10_000, aggression: 1.0, min_weight: 0.1 };
        for policy in [LbPolicy::RoundRobin, LbPolicy::LeastRequest { choices: Choices::Random(2), active_request_bias: 1.0 }] {
            hosts[0].became_healthy(0);
            hosts[1].became_healthy(20_000);
            let settings = Settings { slow_start: Some(slow), ..settings(policy) };
            let mut balancer = Balancer::new(Arc::new(HostSet::flat(hosts.to_vec())), None, &settings, 1);
            let mut share =
                |now| count(&mut balancer, 1_100, &Context { now, ..Context::default() }).get(&hosts[1].address).copied().unwrap_or(0);
            let early = share(20_000);
            assert!((90..=110).contains(&early), "a tenth to one: {early}");
            let half = share(25_000);
            assert!((350..=380).contains(&half), "a half to one: {half}");
            let late = share(30_000);
            assert!((500..=600).contains(&late), "{late}");
        }
        assert!(!Balancer::new(Arc::default(), None, &settings(LbPolicy::RoundRobin), 1).needs_time());
    }

    #[test]
    fn shares_follow_what_hosts_report() {
        let hosts = [host(1, 1), host(2, 1)];
        let by_load =
            ByLoad { blackout_millis: 0, expiration_millis: 60_000, update_millis: 1_000, error_penalty: 0.0, metrics: Arc::default() };
        let settings = settings(LbPolicy::ByLoad(by_load.clone()));
        let mut balancer = Balancer::new(Arc::new(HostSet::flat(hosts.to_vec())), None, &settings, 1);
        assert!(balancer.needs_time());
        let mut share = |now| count(&mut balancer, 400, &Context { now, ..Context::default() })[&hosts[1].address];
        assert_eq!(share(0), 200);
        for (host, cpu_utilization) in hosts.iter().zip([0.9, 0.3]) {
            by_load.observe(host, &LoadReport { rps: 90.0, cpu_utilization, ..LoadReport::default() }, 100);
        }
        assert_eq!(share(999), 200, "weights are not computed before it is time");
        assert!((299..=301).contains(&share(1_000)), "three times the requests for the same effort");
        assert_eq!(share(70_000), 200, "what was reported long ago does not count");
    }

    #[test]
    fn a_subset_without_a_host_that_serves_is_no_reason_to_fall_back() {
        use crate::subset::{Fallback, Label, Selector};
        let subsets = SubsetSettings {
            fallback: Fallback::AnyEndpoint,
            selectors: vec![Selector { keys: vec!["v".into()], single_host_per_subset: false, fallback: None }],
            ..SubsetSettings::default()
        };
        let hosts: Vec<_> = (1..=3).map(|port| host(port, 1)).collect();
        let mut set = HostSet::flat(hosts.clone());
        let labels = ["1", "1", "2"].map(|v| [("v".into(), Label { value: v.into(), items: None })].into());
        let member = |(host, labels)| crate::subsets::Labelled { priority: 0, locality: 0, host, labels: Some(labels) };
        set.subsets = Some(Box::new(Subsets::new(&subsets, &set.priorities, hosts.iter().zip(&labels).map(member))));
        let set = Arc::new(set);
        let settings = Settings { subsets: Some(Arc::new(subsets)), ..settings(LbPolicy::RoundRobin) };
        let mut balancer = Balancer::new(Arc::clone(&set), None, &settings, 1);
        let asks = |v: &str| Criteria::new([("v".into(), v.into())], None);
        let (one, two, three) = (asks("1"), asks("2"), asks("3"));
        let mut ports = |asked| count(&mut balancer, 30, &Context { criteria: Some(asked), ..Context::default() });
        assert_eq!(ports(&one), HashMap::from([(hosts[0].address.clone(), 15), (hosts[1].address.clone(), 15)]));
        assert_eq!(ports(&three).len(), 3);
        hosts[2].set_flag(FAILED_OUTLIER, true);
        set.health_changed();
        assert!(ports(&two).is_empty());
        assert_eq!(ports(&three).len(), 2);
        let tally = balancer.take_tally().unwrap();
        assert_eq!((tally.subsets_selected, tally.subsets_fallback), (60, 60));
        assert!(balancer.take_tally().is_none());
    }
}
