//! Figures that outlive a process: what the one before has counted goes on in the one that took its place.
//!
//! Counters are handed over as what came since the last time, and added to the cells of the same name; series of other
//! sources, whose cells cannot be had by name, are added where they are read. Gauges are those of the workers (open
//! connections, requests under way): what the other process still has counts as well, until it has ended.
use super::block::Inner;
use super::metric::Kind;
use super::registry::Registry;
use super::sample::{Sample, Value};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Names that wait for a block of theirs, and series, each. A proxy with more has a figure or two start from zero.
const MOST: usize = 100_000;

/// What one process tells the next.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Figures {
    /// Envoy's names, and what was added since the last time.
    pub counters: Vec<(String, u64)>,
    pub series: Vec<Series>,
    /// Envoy's names and values.
    pub gauges: Vec<(String, u64)>,
}

/// A counter of a source, which only its labels tell from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Series {
    pub name: String,
    pub family: String,
    pub labels: Vec<(String, String)>,
    pub by: u64,
}

/// Remembers what was told, so that each count is told once.
#[derive(Default)]
pub struct Exporter {
    told: HashMap<String, u64>,
}

impl Exporter {
    /// What there is to tell since the last call.
    pub fn next(&mut self, registry: &Registry) -> Figures {
        let mut figures = Figures::default();
        for block in registry.living() {
            for (def, cell) in block.metrics() {
                let name = || format!("{}{}", block.name.dotted, def.name);
                match def.kind {
                    Kind::Counter => {
                        let value = block.sum(usize::from(cell));
                        if value > 0
                            && let Some(by) = self.since(name(), value)
                        {
                            figures.counters.push(by);
                        }
                    }
                    Kind::Gauge => {
                        let value = block.workers_gauge(usize::from(cell));
                        if value > 0 {
                            figures.gauges.push((name(), value));
                        }
                    }
                    Kind::Histogram(_) => {}
                }
            }
        }
        registry.collect(&mut |sample| {
            let Value::Counter(value) = sample.value else { return };
            if let Some((name, by)) = (value > 0).then(|| self.since(sample.name, value)).flatten() {
                let labels = sample.labels.into_iter().map(|(key, value)| (key.into_owned(), value)).collect();
                figures.series.push(Series { name, family: sample.family, labels, by });
            }
        });
        figures
    }

    fn since(&mut self, name: String, value: u64) -> Option<(String, u64)> {
        let before = self.told.get(&name).copied().unwrap_or(0);
        // A counter that was reset begins again.
        let by = if value >= before { value - before } else { value };
        if by == 0 {
            return None;
        }
        self.told.insert(name.clone(), value);
        Some((name, by))
    }
}

/// What came from elsewhere and is not in a cell.
#[derive(Default)]
pub(super) struct Carried(Mutex<State>);

#[derive(Default)]
struct State {
    /// Counters whose block is not there yet.
    waiting: HashMap<String, u64>,
    /// What is to be added to samples of sources: wrapping, since a reset takes away.
    series: HashMap<String, (Option<Series>, u64)>,
    /// What was added to gauges and goes again.
    gauges: Vec<(Weak<Inner>, u16, u64)>,
}

impl Carried {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a new block what has waited for it.
    pub(super) fn welcome(&self, block: &Inner) {
        let mut state = self.state();
        if !state.waiting.is_empty() {
            state.settle(block);
        }
    }

    /// Passes samples of sources on, with what is to be added to them.
    pub(super) fn collect(&self, emit: &mut dyn FnMut(Sample), sources: impl FnOnce(&mut dyn FnMut(Sample))) {
        // Cloned, or a source that takes long would hold up whoever makes a block.
        let mut series = self.state().series.clone();
        sources(&mut |mut sample| {
            if let (Value::Counter(value), Some((_, by))) = (&mut sample.value, series.remove(&sample.name)) {
                *value = value.wrapping_add(by);
            }
            emit(sample);
        });
        for (about, value) in series.into_values() {
            if let Some(Series { name, family, labels, .. }) = about {
                let labels = labels.into_iter().map(|(key, value)| (Cow::Owned(key), value)).collect();
                emit(Sample { name, family, labels, value: Value::Counter(value) });
            }
        }
    }
}

impl State {
    fn settle(&mut self, block: &Inner) {
        for (def, cell) in block.metrics().filter(|(def, _)| matches!(def.kind, Kind::Counter)) {
            if let Some(by) = self.waiting.remove(&format!("{}{}", block.name.dotted, def.name)) {
                block.add_shared(cell, by);
            }
        }
    }
}

impl Registry {
    /// Adds what the process before has counted; its gauges replace those it told before.
    pub fn absorb(&self, figures: Figures) {
        let mut state = self.carried().state();
        for (name, by) in figures.counters {
            if state.waiting.len() < MOST || state.waiting.contains_key(&name) {
                *state.waiting.entry(name).or_default() += by;
            }
        }
        // After the names, or a block made in between would miss them.
        let living = self.living();
        for block in &living {
            state.settle(block);
        }
        for series in figures.series {
            if state.series.len() < MOST || state.series.contains_key(&series.name) {
                let by = series.by;
                let (about, value) = state.series.entry(series.name.clone()).or_default();
                *value = value.wrapping_add(by);
                *about = Some(series);
            }
        }
        for (block, cell, by) in std::mem::take(&mut state.gauges) {
            if let Some(block) = block.upgrade() {
                block.add_gauge_shared(cell, by.wrapping_neg());
            }
        }
        let gauges: HashMap<String, u64> = figures.gauges.into_iter().collect();
        if gauges.is_empty() {
            return;
        }
        for block in &living {
            for (def, cell) in block.metrics().filter(|(def, _)| matches!(def.kind, Kind::Gauge)) {
                if let Some(by) = gauges.get(&format!("{}{}", block.name.dotted, def.name)) {
                    block.add_gauge_shared(cell, *by);
                    state.gauges.push((Arc::downgrade(block), cell, *by));
                }
            }
        }
    }

    /// Sets every counter to zero (Envoy `/reset_counters`). Cells have one writer each, so what was counted is taken off
    /// in the cell of no worker.
    pub fn reset_counters(&self) {
        for block in self.living() {
            for (_, cell) in block.metrics().filter(|(def, _)| matches!(def.kind, Kind::Counter)) {
                match block.sum(usize::from(cell)) {
                    0 => {}
                    counted => block.add_shared(cell, counted.wrapping_neg()),
                }
            }
        }
        let mut counted = Vec::new();
        self.collect(&mut |sample| {
            if let (Value::Counter(value), name) = (sample.value, sample.name) {
                counted.push((name, value));
            }
        });
        let mut state = self.carried().state();
        for (name, value) in counted {
            if state.series.len() < MOST || state.series.contains_key(&name) {
                let (_, by) = state.series.entry(name).or_default();
                *by = by.wrapping_sub(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{BlockName, Query, TagStyle};
    use super::*;
    use crate::envoy_names::{cluster_state, http};

    const NAME: &str = "http.x.downstream_rq_total";

    fn value(registry: &Registry, name: &str) -> Option<Value> {
        registry.scrape(false, &|n| n == name).first().map(|s| s.value.clone())
    }

    #[test]
    fn counters_go_on_and_gauges_of_workers_count_while_the_other_lives() {
        let (old, old_shards) = Registry::new(2, TagStyle::Envoy);
        let theirs = old.block(http::DEFS, BlockName::http("x"));
        let state = old.block(cluster_state::DEFS, BlockName::cluster("c"));
        state.set(cluster_state::MEMBERSHIP_TOTAL, 4);
        old_shards[0].add(&theirs, http::DOWNSTREAM_RQ_TOTAL, 5);
        old_shards[1].add(&theirs, http::DOWNSTREAM_RQ_TOTAL, 2);
        old_shards[1].gauge_add(&theirs, http::DOWNSTREAM_CX_ACTIVE, 3);
        let (new, new_shards) = Registry::new(1, TagStyle::Envoy);
        let mut exporter = Exporter::default();
        let membership = new.block(cluster_state::DEFS, BlockName::cluster("c"));
        new.absorb(exporter.next(&old));
        // The block comes later, as those of clusters do with their first request.
        let ours = new.block(http::DEFS, BlockName::http("x"));
        assert_eq!(ours.counter(http::DOWNSTREAM_RQ_TOTAL), 7);
        assert_eq!(membership.gauge(cluster_state::MEMBERSHIP_TOTAL), 0, "each process knows its own members");
        new_shards[0].inc(&ours, http::DOWNSTREAM_RQ_TOTAL);
        old_shards[0].inc(&theirs, http::DOWNSTREAM_RQ_TOTAL);
        new.absorb(exporter.next(&old));
        assert_eq!((ours.counter(http::DOWNSTREAM_RQ_TOTAL), ours.gauge(http::DOWNSTREAM_CX_ACTIVE)), (9, 3));
        old_shards[1].gauge_add(&theirs, http::DOWNSTREAM_CX_ACTIVE, -1);
        new.absorb(exporter.next(&old));
        assert_eq!((ours.counter(http::DOWNSTREAM_RQ_TOTAL), ours.gauge(http::DOWNSTREAM_CX_ACTIVE)), (9, 2));
        new.absorb(Figures::default());
        assert_eq!(ours.gauge(http::DOWNSTREAM_CX_ACTIVE), 0);
    }

    struct Fixed(u64);

    impl super::super::Source for Fixed {
        fn collect(&self, emit: &mut dyn FnMut(Sample)) {
            let labels = vec![(Cow::Borrowed("a"), "b".to_owned())];
            emit(Sample { name: "istio.total.a.b".into(), family: "istio_total".into(), labels, value: Value::Counter(self.0) });
        }
    }

    #[test]
    fn series_of_sources_go_on_whether_the_new_process_has_them_or_not() {
        let (old, _) = Registry::new(1, TagStyle::Envoy);
        old.add_source(Arc::new(Fixed(5)));
        let (new, _) = Registry::new(1, TagStyle::Envoy);
        new.absorb(Exporter::default().next(&old));
        let page = Query { format: super::super::Format::Prometheus, ..Query::default() };
        assert!(page.render(&new).contains("istio_total{a=\"b\"} 5"), "{}", page.render(&new));
        new.add_source(Arc::new(Fixed(2)));
        assert!(page.render(&new).contains("istio_total{a=\"b\"} 7"), "{}", page.render(&new));
    }

    #[test]
    fn a_reset_takes_away_what_was_counted_and_nothing_after() {
        let (registry, shards) = Registry::new(1, TagStyle::Envoy);
        registry.add_source(Arc::new(Fixed(5)));
        let block = registry.block(http::DEFS, BlockName::http("x"));
        let local = shards[0].local(&block);
        local.add(http::DOWNSTREAM_RQ_TOTAL, 5);
        local.gauge_inc(http::DOWNSTREAM_CX_ACTIVE);
        registry.reset_counters();
        assert_eq!(value(&registry, NAME), Some(Value::Counter(0)));
        assert_eq!(value(&registry, "istio.total.a.b"), Some(Value::Counter(0)));
        assert_eq!(block.gauge(http::DOWNSTREAM_CX_ACTIVE), 1);
        local.inc(http::DOWNSTREAM_RQ_TOTAL);
        assert_eq!(value(&registry, NAME), Some(Value::Counter(1)));
        registry.reset_counters();
        assert_eq!(value(&registry, NAME), Some(Value::Counter(0)));
    }

    #[test]
    fn what_was_told_is_not_told_again_and_a_reset_counter_begins_again() {
        let (registry, shards) = Registry::new(1, TagStyle::Envoy);
        let block = registry.block(http::DEFS, BlockName::http("x"));
        shards[0].add(&block, http::DOWNSTREAM_RQ_TOTAL, 9);
        let mut exporter = Exporter::default();
        assert_eq!(exporter.next(&registry).counters, [(NAME.to_owned(), 9)]);
        assert_eq!(exporter.next(&registry), Figures::default());
        registry.reset_counters();
        shards[0].add(&block, http::DOWNSTREAM_RQ_TOTAL, 4);
        assert_eq!(exporter.next(&registry).counters, [(NAME.to_owned(), 4)]);
    }
}
