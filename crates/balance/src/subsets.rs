//! The subsets of a cluster's members: found when members change, looked up by what a request asks.
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::host::{Host, LocalityHosts, Priority};
use crate::subset::{Criteria, Entry, Fallback, Labels, Selector, SelectorFallback, SubsetSettings, only};

/// One host with lists as values belongs to so many subsets of a selector at most: each list multiplies them.
const MOST_PER_HOST: usize = 1_000;

/// A member with what it is divided by: where it stands among priorities and localities, and its labels.
pub struct Labelled<'a> {
    pub priority: usize,
    pub locality: usize,
    pub host: &'a Arc<Host>,
    pub labels: Option<&'a Labels>,
}

/// All subsets that have a member.
#[derive(Debug, Default)]
pub struct Subsets {
    by_entries: HashMap<Box<[Entry]>, u32>,
    all: Vec<Subset>,
    default: Vec<Priority>,
    duplicates: u64,
}

#[derive(Debug)]
pub(crate) enum Subset {
    Many(Vec<Priority>),
    /// Of a selector with a single host: chosen whatever its health.
    One(Arc<Host>),
}

/// Where to look for a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Step {
    pub(crate) target: Target,
    pub(crate) via: Via,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Subset(u32),
    Default,
    Any,
}

/// Why, for statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    Selected,
    SelectorFallback,
    Fallback,
    Panic,
}

impl Subsets {
    pub fn new<'a>(settings: &SubsetSettings, priorities: &[Priority], members: impl Iterator<Item = Labelled<'a>>) -> Self {
        let mut subsets = Self::default();
        for member in members {
            if settings.is_default(member.labels) {
                place(&mut subsets.default, settings, priorities, &member);
            }
            for selector in &settings.selectors {
                for entries in combinations(selector, member.labels, settings.list_as_any) {
                    subsets.add(entries, selector, settings, priorities, &member);
                }
            }
        }
        subsets
    }

    fn add(&mut self, entries: Vec<Entry>, by: &Selector, settings: &SubsetSettings, priorities: &[Priority], member: &Labelled<'_>) {
        let next = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        let index = *self.by_entries.entry(entries.into()).or_insert(next);
        if index == next {
            self.all.push(if by.single_host_per_subset { Subset::One(Arc::clone(member.host)) } else { Subset::Many(Vec::new()) });
        }
        match self.all.get_mut(index as usize) {
            Some(Subset::Many(own)) => place(own, settings, priorities, member),
            Some(Subset::One(_)) if index != next => self.duplicates += 1,
            _ => {}
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.all.len()
    }

    pub fn is_empty(&self) -> bool {
        self.all.is_empty()
    }

    /// How many of these the others lack.
    pub fn beyond(&self, others: &Self) -> u64 {
        self.by_entries.keys().filter(|entries| !others.by_entries.contains_key(*entries)).count() as u64
    }

    /// Hosts that are never chosen because another stands for their subset of a single host.
    pub fn duplicates(&self) -> u64 {
        self.duplicates
    }

    pub(crate) fn get(&self, index: u32) -> Option<&Subset> {
        self.all.get(index as usize)
    }

    pub(crate) fn default_subset(&self) -> &[Priority] {
        &self.default
    }

    /// The hosts of the first place to look; `None` for all of the cluster.
    pub(crate) fn asked(&self, settings: &SubsetSettings, criteria: Option<&Criteria>) -> Option<Vec<&Arc<Host>>> {
        let steps = self.steps(settings, criteria.unwrap_or(&Criteria::default()));
        let of = |priorities| hosts_of(priorities).collect();
        match steps.first().map(|step| step.target) {
            None => Some(Vec::new()),
            Some(Target::Any) => None,
            Some(Target::Default) => Some(of(&self.default)),
            Some(Target::Subset(index)) => Some(match self.get(index)? {
                Subset::One(host) => vec![host],
                Subset::Many(priorities) => of(priorities),
            }),
        }
    }

    /// Where to look, in order, for a request that asks this.
    pub(crate) fn steps(&self, settings: &SubsetSettings, criteria: &Criteria) -> Vec<Step> {
        let mut steps = Vec::new();
        for entries in criteria.tries(settings) {
            self.steps_of(settings, entries, &mut steps);
        }
        steps
    }

    fn steps_of(&self, settings: &SubsetSettings, mut entries: Cow<'_, [Entry]>, steps: &mut Vec<Step>) {
        loop {
            entries = settings.counted(entries);
            if let Some(index) = self.by_entries.get(&*entries) {
                return steps.push(Step { target: Target::Subset(*index), via: Via::Selected });
            }
            match settings.selector(&entries).and_then(|s| s.fallback.as_ref()) {
                // Ends: each time there are fewer keys.
                Some(SelectorFallback::Keys(keys)) => entries = Cow::Owned(only(&entries, keys)),
                Some(SelectorFallback::Plain(fallback)) => {
                    return steps.extend(target(*fallback).map(|target| Step { target, via: Via::SelectorFallback }));
                }
                None => break,
            }
        }
        if let Some(target) = target(settings.fallback) {
            steps.push(Step { target, via: Via::Fallback });
            if settings.panic_mode_any {
                steps.push(Step { target: Target::Any, via: Via::Panic });
            }
        }
    }
}

fn hosts_of(priorities: &[Priority]) -> impl Iterator<Item = &Arc<Host>> {
    priorities.iter().flat_map(|p| &p.localities).flat_map(|l| &l.hosts)
}

fn target(fallback: Fallback) -> Option<Target> {
    match fallback {
        Fallback::None => None,
        Fallback::AnyEndpoint => Some(Target::Any),
        Fallback::DefaultSubset => Some(Target::Default),
    }
}

/// Puts a member where it stands in the whole cluster.
fn place(own: &mut Vec<Priority>, settings: &SubsetSettings, priorities: &[Priority], member: &Labelled<'_>) {
    let Some(whole) = priorities.get(member.priority).and_then(|p| p.localities.get(member.locality)) else { return };
    if own.len() <= member.priority {
        own.resize_with(member.priority + 1, Priority::default);
    }
    let Some(priority) = own.get_mut(member.priority) else { return };
    let at = match priority.localities.iter().position(|l| l.locality == whole.locality) {
        Some(at) => at,
        None => {
            priority.localities.push(LocalityHosts { locality: whole.locality.clone(), weight: whole.weight, hosts: Vec::new() });
            priority.localities.len() - 1
        }
    };
    let Some(locality) = priority.localities.get_mut(at) else { return };
    // A list may name the same value twice, and two selectors the same keys.
    if locality.hosts.last().is_some_and(|last| Arc::ptr_eq(last, member.host)) {
        return;
    }
    locality.hosts.push(Arc::clone(member.host));
    if settings.scale_locality_weight {
        let share = locality.hosts.len() as f64 / whole.hosts.len().max(1) as f64;
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let scaled = (f64::from(whole.weight) * share).round() as u32;
        locality.weight = scaled;
    }
}

/// The subsets of one selector that a host belongs to: none when it lacks a key.
fn combinations(selector: &Selector, labels: Option<&Labels>, list_as_any: bool) -> Vec<Vec<Entry>> {
    let Some(labels) = labels else { return Vec::new() };
    let mut all: Vec<Vec<Entry>> = vec![Vec::with_capacity(selector.keys.len())];
    for key in &selector.keys {
        let Some(label) = labels.get(key) else { return Vec::new() };
        match &label.items {
            Some(items) if list_as_any => {
                let with = |so_far: &Vec<Entry>| {
                    let so_far = so_far.clone();
                    items.iter().map(move |item| [so_far.as_slice(), &[(Arc::clone(key), Arc::clone(item))]].concat()).collect::<Vec<_>>()
                };
                all = all.iter().flat_map(with).take(MOST_PER_HOST).collect();
            }
            _ => all.iter_mut().for_each(|entries| entries.push((Arc::clone(key), Arc::clone(&label.value)))),
        }
    }
    if selector.keys.is_empty() { Vec::new() } else { all }
}

#[cfg(test)]
mod tests;
