//! The policy at work: schedulers over the groups that a plan made, for all of a cluster's hosts or for a subset.
use std::collections::HashMap;
use std::sync::Arc;

use rand::Rng;
use rand::rngs::SmallRng;

use crate::balancer::{Context, Tally};
use crate::config::{Choices, LbPolicy, Settings};
use crate::edf::Edf;
use crate::hashing::Table;
use crate::host::Host;
use crate::peak_ewma::PeakEwma;
use crate::plan::{Group, Level, Spread, View, WeightedHosts, plan};
use crate::slow_start::SlowStart;
use crate::zone::{NoZones, Routing};

/// One worker's scheduling state. Made empty, and filled when it is first asked.
#[derive(Default)]
pub(crate) struct Chooser {
    /// The health epochs, of the cluster and of the local cluster, that `groups` was computed for.
    epochs: Option<(u64, u64)>,
    /// When to compute them anew in any case: weights by load are due, or the last host leaves its slow start, and equal hosts can
    /// take turns again.
    due: Option<u64>,
    groups: Vec<(u32, Hosts)>,
    /// For choices that go past priorities, or to a certain one, by which these are.
    past: HashMap<(u64, Option<Level>), Chooser>,
}

/// Choosers beside a chooser. There are not that many ways of which priorities are gone past first.
const MOST_PAST: usize = 64;

/// What a choice adds to the statistics, and the dice.
pub(crate) struct Desk<'a> {
    pub(crate) rng: &'a mut SmallRng,
    pub(crate) tally: &'a mut Tally,
}

/// A group's hosts with the policy's state.
enum Hosts {
    One(Pool, bool),
    Weighted { turns: Edf, weights: Vec<f64>, pools: Vec<Pool> },
    Zones(Box<Zones>),
    Fail,
}

struct Zones {
    flat: Pool,
    zones: Vec<Pool>,
    /// `None` fails.
    routing: Option<Routing>,
    /// Percent of the requests that go by zones.
    enabled: u32,
}

struct Pool {
    hosts: Vec<Arc<Host>>,
    scheduler: Scheduler,
}

enum Scheduler {
    /// Equal weights: take turns.
    Turns(usize),
    Weighted(Edf),
    LeastOf(u32),
    LeastOfAll,
    /// Weights differ: scheduled by weight over current load.
    WeightedLeast {
        edf: Edf,
        bias: f64,
    },
    PeakEwma(PeakEwma),
    /// Weights as they were reported when the plan was made.
    ByLoad {
        edf: Edf,
        weights: Vec<f64>,
    },
    Random,
    Hash(Table),
}

impl Chooser {
    /// Chooses a host. Costs a few dice rolls; recomputes the plan only after a change.
    pub(crate) fn choose(&mut self, view: &View<'_>, context: &Context<'_>, desk: &mut Desk<'_>) -> Option<Arc<Host>> {
        if view.past != 0 || view.only.is_some() {
            let which = (view.past, view.only);
            if self.past.len() >= MOST_PAST && !self.past.contains_key(&which) {
                self.past.clear();
            }
            return self.past.entry(which).or_default().choose_here(view, context, desk);
        }
        self.choose_here(view, context, desk)
    }

    fn choose_here(&mut self, view: &View<'_>, context: &Context<'_>, desk: &mut Desk<'_>) -> Option<Arc<Host>> {
        let epochs = Some((view.set.health_epoch(), view.local.map_or(0, |l| l.hosts.health_epoch())));
        if epochs != self.epochs || self.due.is_some_and(|due| context.now >= due) {
            self.epochs = epochs;
            self.rebuild(view, context.now, desk);
        }
        let goes_by_hash = view.settings.policy.goes_by_hash();
        let hash = goes_by_hash.then(|| context.hash.unwrap_or_else(|| desk.rng.random()));
        let mut last = None;
        for attempt in 0..=context.reselect {
            let roll = match (hash, self.groups.len()) {
                (_, 0 | 1) => 0,
                (Some(hash), _) => (hash % 100) as u32,
                (None, _) => desk.rng.random_range(0..100),
            };
            let mut bound = 0;
            let (_, hosts) = self.groups.iter_mut().find(|(share, _)| {
                bound += share;
                roll < bound
            })?;
            let Some(host) = hosts.choose(&Pick { view, hash, attempt, now: context.now }, desk) else { break };
            let omitted = || context.omit.is_some_and(|omit| view.set.labels_of(&host).is_some_and(|labels| omit.omits(labels)));
            if !context.avoid.iter().any(|a| Arc::ptr_eq(a, &host)) && !omitted() {
                return Some(host);
            }
            last = Some(host);
        }
        last
    }

    fn rebuild(&mut self, view: &View<'_>, now: u64, desk: &mut Desk<'_>) {
        let (groups, note) = plan(view);
        if view.local.is_some() {
            desk.tally.count(|t| &mut t.recalculate_zone_structures);
        }
        match note {
            Some(NoZones::TooSmall) => desk.tally.count(|t| &mut t.zone_cluster_too_small),
            Some(NoZones::LocalNotOk) => desk.tally.count(|t| &mut t.local_cluster_not_ok),
            Some(NoZones::One) | None => {}
        }
        let mut builder = Builder { settings: view.settings, now, slow_until: None, rng: &mut *desk.rng };
        self.groups = groups.into_iter().map(|group| (group.share, builder.hosts(group))).collect();
        let by_load = match &view.settings.policy {
            LbPolicy::ByLoad(by_load) => Some(now.saturating_add(by_load.update_millis)),
            _ => None,
        };
        self.due = [by_load, builder.slow_until].into_iter().flatten().min();
    }
}

/// One choice within a group.
struct Pick<'a> {
    view: &'a View<'a>,
    hash: Option<u64>,
    attempt: u32,
    now: u64,
}

impl Hosts {
    fn choose(&mut self, pick: &Pick<'_>, desk: &mut Desk<'_>) -> Option<Arc<Host>> {
        match self {
            Self::One(pool, panic) => {
                if *panic {
                    desk.tally.count(|t| &mut t.healthy_panic);
                }
                pool.choose(pick, desk.rng)
            }
            Self::Weighted { turns, weights, pools } => {
                let index = turns.take()?;
                turns.add(index, *weights.get(index as usize)?);
                pools.get_mut(index as usize)?.choose(pick, desk.rng)
            }
            Self::Zones(zones) => zones.choose(pick, desk),
            Self::Fail => {
                desk.tally.count(|t| &mut t.healthy_panic);
                None
            }
        }
    }
}

impl Zones {
    fn choose(&mut self, pick: &Pick<'_>, desk: &mut Desk<'_>) -> Option<Arc<Host>> {
        if self.enabled < 100 && desk.rng.random_range(0..100) >= self.enabled {
            return self.flat.choose(pick, desk.rng);
        }
        let index = match self.routing.as_ref()? {
            Routing::Direct => {
                desk.tally.count(|t| &mut t.zone_routing_all_directly);
                0
            }
            Routing::Residual { local, .. } if desk.rng.random_range(0..10_000) < *local => {
                desk.tally.count(|t| &mut t.zone_routing_sampled);
                0
            }
            Routing::Residual { capacity, .. } => {
                desk.tally.count(|t| &mut t.zone_routing_cross_zone);
                match capacity.last() {
                    Some(all @ 1..) => {
                        let roll = desk.rng.random_range(0..*all);
                        capacity.partition_point(|bound| *bound <= roll)
                    }
                    // Rounding can leave nobody with room.
                    _ => {
                        desk.tally.count(|t| &mut t.zone_no_capacity_left);
                        desk.rng.random_range(0..capacity.len().max(1))
                    }
                }
            }
        };
        // A zone may have healthy hosts and no degraded ones: better another zone than nobody.
        let zone = self.zones.get_mut(index).filter(|pool| !pool.hosts.is_empty());
        zone.unwrap_or(&mut self.flat).choose(pick, desk.rng)
    }
}

impl Pool {
    fn choose(&mut self, pick: &Pick<'_>, rng: &mut SmallRng) -> Option<Arc<Host>> {
        let hosts = &self.hosts;
        let slow = pick.view.settings.slow_start.as_ref();
        match &mut self.scheduler {
            Scheduler::Hash(table) => {
                let active = || pick.view.set.hosts().map(|h| h.active_requests()).sum();
                table.choose(pick.hash?, pick.attempt, active)
            }
            _ if hosts.len() == 1 => hosts.first().cloned(),
            Scheduler::Turns(next) => {
                let host = hosts.get(*next % hosts.len().max(1))?;
                *next = (*next + 1) % hosts.len();
                Some(Arc::clone(host))
            }
            Scheduler::Random => Some(Arc::clone(hosts.get(rng.random_range(0..hosts.len().max(1)))?)),
            Scheduler::PeakEwma(settings) => settings.choose(hosts, rng),
            Scheduler::ByLoad { edf, weights } => {
                let index = edf.take()?;
                let (host, weight) = (hosts.get(index as usize)?, weights.get(index as usize)?);
                edf.add(index, slowed(*weight, host, slow, pick.now));
                Some(Arc::clone(host))
            }
            Scheduler::LeastOf(choices) => least_of(hosts, *choices, rng),
            Scheduler::LeastOfAll => least_of_all(hosts, rng),
            Scheduler::Weighted(edf) => next(edf, hosts, |host| slowed(f64::from(host.weight()), host, slow, pick.now)),
            Scheduler::WeightedLeast { edf, bias } => next(edf, hosts, |host| slowed(loaded_weight(host, *bias), host, slow, pick.now)),
        }
    }
}

fn next(edf: &mut Edf, hosts: &[Arc<Host>], weight: impl FnOnce(&Host) -> f64) -> Option<Arc<Host>> {
    let index = edf.take()?;
    let host = hosts.get(index as usize)?;
    edf.add(index, weight(host));
    Some(Arc::clone(host))
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

/// The host with the fewest requests in flight; any of those that share the place.
fn least_of_all(hosts: &[Arc<Host>], rng: &mut SmallRng) -> Option<Arc<Host>> {
    let mut best: Option<(&Arc<Host>, u32)> = None;
    let mut alike = 0;
    for host in hosts {
        let active = host.active_requests();
        match best {
            Some((_, least)) if active > least => continue,
            Some((_, least)) if active == least => alike += 1,
            _ => alike = 1,
        }
        if alike == 1 || rng.random_range(0..alike) == 0 {
            best = Some((host, active));
        }
    }
    best.map(|(host, _)| Arc::clone(host))
}

fn loaded_weight(host: &Host, bias: f64) -> f64 {
    f64::from(host.weight()) / f64::from(host.active_requests().saturating_add(1)).powf(bias)
}

/// The weight in slow start. Degraded hosts have none.
fn slowed(weight: f64, host: &Host, slow: Option<&SlowStart>, now: u64) -> f64 {
    match slow {
        Some(slow) if host.is_healthy() && !host.is_degraded() => weight * slow.factor(host.healthy_for(now)),
        _ => weight,
    }
}

struct Builder<'a> {
    settings: &'a Settings,
    now: u64,
    slow_until: Option<u64>,
    rng: &'a mut SmallRng,
}

impl Builder<'_> {
    fn hosts(&mut self, group: Group) -> Hosts {
        let Settings { policy, hashing, zone_aware, .. } = self.settings;
        match group.spread {
            Spread::Fail => Hosts::Fail,
            Spread::FailZones(flat) => {
                let flat = self.pool(flat);
                Hosts::Zones(Box::new(Zones { flat, zones: Vec::new(), routing: None, enabled: zone_aware.routing_enabled }))
            }
            Spread::Zones { flat, zones, routing } => {
                let (flat, zones) = (self.pool(flat), zones.into_iter().map(|zone| self.pool(zone)).collect());
                Hosts::Zones(Box::new(Zones { flat, zones, routing: Some(routing), enabled: zone_aware.routing_enabled }))
            }
            Spread::Flat(hosts) => {
                let all = [WeightedHosts { weight: 1.0, hosts }];
                match Table::new(policy, &all, hashing) {
                    Some(table) => Hosts::One(Pool { hosts: Vec::new(), scheduler: Scheduler::Hash(table) }, group.panic),
                    None => {
                        let [WeightedHosts { hosts, .. }] = all;
                        Hosts::One(self.pool(hosts), group.panic)
                    }
                }
            }
            Spread::Weighted(localities) => match Table::new(policy, &localities, hashing) {
                // One table over all localities: the weights are in it.
                Some(table) => Hosts::One(Pool { hosts: Vec::new(), scheduler: Scheduler::Hash(table) }, group.panic),
                None => {
                    let weights: Vec<f64> = localities.iter().map(|l| l.weight).collect();
                    let turns = Edf::new(weights.iter().copied(), self.rng.random());
                    let pools = localities.into_iter().map(|l| self.pool(l.hosts)).collect();
                    Hosts::Weighted { turns, weights, pools }
                }
            },
        }
    }

    fn pool(&mut self, hosts: Vec<Arc<Host>>) -> Pool {
        let (settings, now) = (self.settings, self.now);
        let slow = settings.slow_start.as_ref();
        let equal = hosts.windows(2).all(|pair| pair[0].weight() == pair[1].weight()) && !self.any_slow(&hosts);
        let start = self.rng.random::<u32>();
        let scheduler = match settings.policy {
            LbPolicy::RoundRobin if equal => Scheduler::Turns(start as usize % hosts.len().max(1)),
            LbPolicy::RoundRobin => {
                let weights = hosts.iter().map(|h| slowed(f64::from(h.weight()), h, slow, now));
                Scheduler::Weighted(Edf::new(weights, start))
            }
            LbPolicy::LeastRequest { choices: Choices::Random(choices), .. } if equal => Scheduler::LeastOf(choices),
            LbPolicy::LeastRequest { choices: Choices::All, .. } if equal => Scheduler::LeastOfAll,
            LbPolicy::LeastRequest { active_request_bias: bias, .. } => {
                let weights = hosts.iter().map(|h| slowed(loaded_weight(h, bias), h, slow, now));
                Scheduler::WeightedLeast { edf: Edf::new(weights, start), bias }
            }
            LbPolicy::PeakEwma(settings) => Scheduler::PeakEwma(settings),
            LbPolicy::ByLoad(ref by_load) => {
                let weights = by_load.weights(&hosts, now);
                if weights.windows(2).all(|pair| pair[0] == pair[1]) && !self.any_slow(&hosts) {
                    Scheduler::Turns(start as usize % hosts.len().max(1))
                } else {
                    let slowed = hosts.iter().zip(&weights).map(|(host, weight)| slowed(*weight, host, slow, now));
                    Scheduler::ByLoad { edf: Edf::new(slowed, start), weights }
                }
            }
            _ => Scheduler::Random,
        };
        Pool { hosts, scheduler }
    }

    /// Whether a host is in slow start; remembers when the last of them leaves it.
    fn any_slow(&mut self, hosts: &[Arc<Host>]) -> bool {
        let Some(slow) = &self.settings.slow_start else { return false };
        let healthy = hosts.iter().filter(|h| h.is_healthy() && !h.is_degraded());
        let left = healthy.map(|h| slow.window_millis.saturating_sub(h.healthy_for(self.now))).max().unwrap_or(0);
        if left > 0 {
            let until = self.now.saturating_add(left);
            self.slow_until = Some(self.slow_until.map_or(until, |other| other.max(until)));
        }
        left > 0
    }
}
