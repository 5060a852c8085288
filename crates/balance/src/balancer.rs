//! One worker's choice among the hosts of a cluster.
use std::sync::Arc;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::config::{LbPolicy, Settings};
use crate::edf::Edf;
use crate::hashing::{Maglev, Ring};
use crate::host::{Host, HostSet};
use crate::plan::{Group, WeightedHosts, plan};

/// What a choice depends on beside the cluster itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The request's hash, when the route has a hash policy.
    pub hash: Option<u64>,
    /// Hosts already tried, to be avoided while others are left (Envoy `previous_hosts`).
    pub avoid: &'a [Arc<Host>],
    /// How often to choose again when a host to avoid comes up (Envoy `host_selection_retry_max_attempts`).
    pub reselect: u32,
}

/// The outcome of a choice.
#[derive(Clone, Debug)]
pub enum Choice {
    Host(Arc<Host>),
    /// No host can be chosen: `503 no healthy upstream`, flag `UH`.
    NoHealthyHost,
}

/// A worker's own balancer: scheduling state is not shared, health and load are read from the hosts.
pub struct Balancer {
    hosts: Arc<HostSet>,
    settings: Settings,
    /// The health epoch that `groups` was computed for.
    epoch: u64,
    groups: Vec<(u32, Vec<Pool>)>,
    rng: SmallRng,
}

/// One locality's hosts with the policy's state.
struct Pool {
    weight: f64,
    hosts: Vec<Arc<Host>>,
    scheduler: Scheduler,
}

enum Scheduler {
    /// Equal weights: take turns.
    Turns(usize),
    Weighted(Edf),
    LeastOf(u32),
    /// Weights differ: scheduled by weight over current load.
    WeightedLeast {
        edf: Edf,
        bias: f64,
    },
    Random,
    Ring(Ring),
    Maglev(Maglev),
}

impl Balancer {
    /// `seed` sets this worker's dice and starting points apart from the others'.
    pub fn new(hosts: Arc<HostSet>, settings: &Settings, seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let epoch = hosts.health_epoch();
        let groups = build(&hosts, settings, &mut rng);
        Self { hosts, settings: settings.clone(), epoch, groups, rng }
    }

    /// Chooses a host. Costs a few dice rolls; recomputes the plan only after a health change.
    pub fn choose(&mut self, context: &Context<'_>) -> Choice {
        let epoch = self.hosts.health_epoch();
        if epoch != self.epoch {
            self.epoch = epoch;
            self.groups = build(&self.hosts, &self.settings, &mut self.rng);
        }
        let mut last = None;
        for attempt in 0..=context.reselect {
            let Some(host) = self.choose_once(context.hash, attempt) else { break };
            if !context.avoid.iter().any(|a| Arc::ptr_eq(a, &host)) {
                return Choice::Host(host);
            }
            last = Some(host);
        }
        last.map_or(Choice::NoHealthyHost, Choice::Host)
    }

    fn choose_once(&mut self, hash: Option<u64>, attempt: u32) -> Option<Arc<Host>> {
        let rng = &mut self.rng;
        let roll = match (hash, self.groups.len()) {
            (_, 0 | 1) => 0,
            (Some(hash), _) => (hash % 100) as u32,
            (None, _) => rng.random_range(0..100),
        };
        let mut bound = 0;
        let (_, pools) = self.groups.iter_mut().find(|(share, _)| {
            bound += share;
            roll < bound
        })?;
        let pool = match pools.as_mut_slice() {
            [only] => only,
            pools => {
                let mut roll = rng.random::<f64>() * pools.iter().map(|p| p.weight).sum::<f64>();
                pools.iter_mut().find(|p| {
                    roll -= p.weight;
                    roll < 0.0
                })?
            }
        };
        pool.choose(hash, attempt, rng)
    }
}

impl Pool {
    fn choose(&mut self, hash: Option<u64>, attempt: u32, rng: &mut SmallRng) -> Option<Arc<Host>> {
        let hosts = &self.hosts;
        if let ([only], Scheduler::Turns(_) | Scheduler::LeastOf(_) | Scheduler::Random) = (hosts.as_slice(), &self.scheduler) {
            return Some(Arc::clone(only));
        }
        match &mut self.scheduler {
            Scheduler::Turns(next) => {
                let host = hosts.get(*next % hosts.len().max(1))?;
                *next = (*next + 1) % hosts.len();
                Some(Arc::clone(host))
            }
            Scheduler::Random => Some(Arc::clone(hosts.get(rng.random_range(0..hosts.len().max(1)))?)),
            Scheduler::LeastOf(choices) => least_of(hosts, *choices, rng),
            Scheduler::Weighted(edf) => {
                let index = edf.take()?;
                let host = hosts.get(index as usize)?;
                edf.add(index, f64::from(host.weight));
                Some(Arc::clone(host))
            }
            Scheduler::WeightedLeast { edf, bias } => {
                let index = edf.take()?;
                let host = hosts.get(index as usize)?;
                edf.add(index, loaded_weight(host, *bias));
                Some(Arc::clone(host))
            }
            Scheduler::Ring(ring) => ring.choose(hash.unwrap_or_else(|| rng.random()), attempt),
            Scheduler::Maglev(table) => table.choose(hash.unwrap_or_else(|| rng.random()), attempt),
        }
    }
}

/// The host with the fewest requests in flight of `choices` random ones.
fn least_of(hosts: &[Arc<Host>], choices: u32, rng: &mut SmallRng) -> Option<Arc<Host>> {
    let mut best: Option<&Arc<Host>> = None;
    for _ in 0..choices.max(1) {
        let candidate = hosts.get(rng.random_range(0..hosts.len().max(1)))?;
        if best.is_none_or(|b| candidate.active_requests() < b.active_requests()) {
            best = Some(candidate);
        }
    }
    best.cloned()
}

fn loaded_weight(host: &Host, bias: f64) -> f64 {
    f64::from(host.weight) / f64::from(host.active_requests() + 1).powf(bias)
}

fn build(hosts: &HostSet, settings: &Settings, rng: &mut SmallRng) -> Vec<(u32, Vec<Pool>)> {
    plan(hosts, settings).into_iter().map(|group| (group.share, pools(group, settings, rng))).collect()
}

fn pools(group: Group, settings: &Settings, rng: &mut SmallRng) -> Vec<Pool> {
    // Hash policies spread over all localities at once: the weight is in the table.
    let whole = |scheduler, group: Group| {
        vec![Pool { weight: 1.0, hosts: group.localities.into_iter().flat_map(|l| l.hosts).collect(), scheduler }]
    };
    match settings.policy {
        LbPolicy::RingHash { minimum_size, maximum_size } => {
            whole(Scheduler::Ring(Ring::new(&group.localities, minimum_size, maximum_size)), group)
        }
        LbPolicy::Maglev { table_size } => whole(Scheduler::Maglev(Maglev::new(&group.localities, table_size)), group),
        _ => group.localities.into_iter().map(|l| pool(l, settings, rng)).collect(),
    }
}

fn pool(locality: WeightedHosts, settings: &Settings, rng: &mut SmallRng) -> Pool {
    let WeightedHosts { weight, hosts } = locality;
    let equal = hosts.windows(2).all(|pair| pair[0].weight == pair[1].weight);
    let start = rng.random::<u32>();
    let scheduler = match settings.policy {
        LbPolicy::RoundRobin if equal => Scheduler::Turns(start as usize % hosts.len().max(1)),
        LbPolicy::RoundRobin => Scheduler::Weighted(Edf::new(hosts.iter().map(|h| f64::from(h.weight)), start)),
        LbPolicy::LeastRequest { choices, .. } if equal => Scheduler::LeastOf(choices),
        LbPolicy::LeastRequest { active_request_bias: bias, .. } => {
            Scheduler::WeightedLeast { edf: Edf::new(hosts.iter().map(|h| loaded_weight(h, bias)), start), bias }
        }
        _ => Scheduler::Random,
    };
    Pool { weight, hosts, scheduler }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::host::{Address, FAILED_OUTLIER, Locality, LocalityHosts, Priority};

    fn host(port: u16, weight: u32) -> Arc<Host> {
        let mut host = Host::new(Address::Socket(([10, 0, 0, 1], port).into()));
        host.weight = weight;
        Arc::new(host)
    }

    fn settings(policy: LbPolicy) -> Settings {
        Settings { policy, panic_threshold_percent: 0.0, ..Settings::default() }
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
        let counts = count(&mut Balancer::new(set, &settings(LbPolicy::RoundRobin), 1), 300, &Context::default());
        assert!(counts.len() == 3 && counts.values().all(|c| *c == 100), "{counts:?}");
        let set = Arc::new(HostSet::flat(vec![host(1, 1), host(2, 3)]));
        let counts = count(&mut Balancer::new(set, &settings(LbPolicy::RoundRobin), 1), 400, &Context::default());
        assert_eq!(counts[&Address::Socket(([10, 0, 0, 1], 2).into())], 300);
    }

    #[test]
    fn least_request_prefers_the_idle_host() {
        let (busy, idle) = (host(1, 1), host(2, 1));
        let _load: Vec<_> = (0..10).map(|_| busy.begin_request()).collect();
        let set = Arc::new(HostSet::flat(vec![busy, Arc::clone(&idle)]));
        let policy = LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0 };
        let counts = count(&mut Balancer::new(set, &settings(policy), 1), 1000, &Context::default());
        assert!(counts[&idle.address] > 700, "{counts:?}");
    }

    #[test]
    fn an_ejection_is_seen_at_the_next_choice_and_all_ejected_is_no_host() {
        let hosts = [host(1, 1), host(2, 1)];
        let set = Arc::new(HostSet::flat(hosts.to_vec()));
        let mut balancer = Balancer::new(Arc::clone(&set), &settings(LbPolicy::Random), 1);
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
        let mut balancer = Balancer::new(set, &settings(LbPolicy::RoundRobin), 1);
        let avoid = [Arc::clone(&hosts[0])];
        let context = Context { avoid: &avoid, reselect: 5, ..Context::default() };
        assert_eq!(count(&mut balancer, 20, &context), HashMap::from([(hosts[1].address.clone(), 20)]));
        let context = Context { avoid: &hosts, reselect: 5, ..Context::default() };
        assert_eq!(count(&mut balancer, 20, &context).values().sum::<usize>(), 20, "better a tried host than none");
    }

    #[test]
    fn one_hash_always_finds_the_same_host() {
        let set = Arc::new(HostSet::flat((1..=5).map(|p| host(p, 1)).collect()));
        for policy in [LbPolicy::RingHash { minimum_size: 1024, maximum_size: 1 << 20 }, LbPolicy::Maglev { table_size: 65_537 }] {
            let mut balancer = Balancer::new(Arc::clone(&set), &settings(policy), 1);
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
        let counts = count(&mut Balancer::new(set, &settings, 7), 10_000, &Context::default());
        let a = counts[&Address::Socket(([10, 0, 0, 1], 1).into())];
        assert!((7_800..8_200).contains(&a), "{counts:?}");
    }

    #[test]
    fn an_empty_cluster_has_no_host() {
        for policy in [LbPolicy::RoundRobin, LbPolicy::Random, LbPolicy::LeastRequest { choices: 2, active_request_bias: 1.0 }] {
            let mut balancer = Balancer::new(Arc::new(HostSet::default()), &Settings { policy, ..Settings::default() }, 1);
            assert!(matches!(balancer.choose(&Context::default()), Choice::NoHealthyHost));
        }
    }
}
