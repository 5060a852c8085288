//! The registry: knows every living block, and adds the shards up when somebody asks.
use super::block::{Block, Inner, Shard};
use super::carry::Carried;
use super::family::Form;
use super::metric::MetricDef;
use super::name::BlockName;
use super::prometheus::{self, Choice};
use super::sample::{Sample, Value, label_key};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

pub use super::sample::TagStyle;

/// Metrics that live elsewhere: computed at scrape time, or kept in a store of their own.
pub trait Source: Send + Sync {
    /// Calls `emit` with each metric.
    fn collect(&self, emit: &mut dyn FnMut(Sample));
}

/// Blocks that are made when somebody asks, because their values stand elsewhere.
pub trait BlockSource: Send + Sync {
    /// The blocks of the moment, from [`Block::alone`].
    fn blocks(&self) -> Vec<Block>;
}

/// Decides by Envoy's name whether a metric exists at all (`stats_config.stats_matcher` of a bootstrap).
pub type Matcher = dyn Fn(&str) -> bool + Send + Sync;

/// Decides by Envoy's name whether a metric is shown in one answer.
pub(super) type Keep<'a> = &'a dyn Fn(&str) -> bool;

/// A block's identity: its prefix and its table, so that two tables may share a prefix.
type Key = (String, usize);

/// Knows all metrics of a process. Registration happens when configuration changes, never on a request's path.
pub struct Registry {
    shards: usize,
    style: TagStyle,
    blocks: Mutex<HashMap<Key, Weak<Inner>>>,
    sources: Mutex<Vec<Arc<dyn Source>>>,
    block_sources: Mutex<Vec<Arc<dyn BlockSource>>>,
    matcher: Mutex<Option<Arc<Matcher>>>,
    /// Of the process before.
    carried: Carried,
}

impl Registry {
    /// A registry for `workers` workers, with the shard of each.
    pub fn new(workers: usize, style: TagStyle) -> (Arc<Self>, Vec<Shard>) {
        let registry = Self {
            shards: workers + 1,
            style,
            blocks: Mutex::default(),
            sources: Mutex::default(),
            block_sources: Mutex::default(),
            matcher: Mutex::default(),
            carried: Carried::default(),
        };
        (Arc::new(registry), (0..workers).map(Shard::new).collect())
    }

    /// The number of workers it was made for.
    pub fn workers(&self) -> usize {
        self.shards - 1
    }

    pub fn tag_style(&self) -> TagStyle {
        self.style
    }

    /// The block of this name and table: the living one if there is one, so that an update keeps its counts.
    pub fn block(&self, defs: &'static [MetricDef], name: BlockName) -> Block {
        let key = (name.dotted.clone(), defs.as_ptr() as usize);
        let mut blocks = lock(&self.blocks);
        if let Some(inner) = blocks.get(&key).and_then(Weak::upgrade) {
            return Block(inner);
        }
        // Dead entries go when the map would grow anyway, so that churn cannot make it grow without bound.
        if blocks.len() == blocks.capacity() {
            blocks.retain(|_, inner| inner.strong_count() > 0);
        }
        let block = Block::new(defs, name, self.shards);
        blocks.insert(key, Arc::downgrade(&block.0));
        drop(blocks);
        self.carried.welcome(&block.0);
        block
    }

    /// Adds a source of metrics.
    pub fn add_source(&self, source: Arc<dyn Source>) {
        lock(&self.sources).push(source);
    }

    /// Adds a source of blocks.
    pub fn add_blocks(&self, source: Arc<dyn BlockSource>) {
        lock(&self.block_sources).push(source);
    }

    /// Shows only metrics whose Envoy name `matcher` accepts, as Istio's bootstrap asks for with `proxyStatsMatcher`.
    /// Cells are made only where something is counted, so what is not shown costs little.
    pub fn show_only(&self, matcher: Arc<Matcher>) {
        *lock(&self.matcher) = Some(matcher);
    }

    /// The number of living blocks.
    pub fn blocks(&self) -> usize {
        lock(&self.blocks).values().filter(|inner| inner.strong_count() > 0).count()
    }

    /// Every metric whose Envoy name `keep` accepts, in no particular order; without those never counted if `used_only`.
    pub fn scrape(&self, used_only: bool, keep: &dyn Fn(&str) -> bool) -> Vec<Sample> {
        let mut out = Vec::new();
        self.matching(keep, |keep| {
            for block in self.living() {
                self.scrape_block(&block, used_only, keep, &mut out);
            }
            self.collect(&mut |sample| {
                if keep(&sample.name) && !(used_only && sample.value.is_unused()) {
                    out.push(sample);
                }
            });
        });
        out
    }

    /// The Prometheus page of metrics whose name `keep` and whose value `wants` accepts.
    pub(super) fn prometheus(&self, keep: Keep<'_>, wants: &dyn Fn(&Value) -> bool) -> String {
        let mut out = String::new();
        self.matching(keep, |keep| out = prometheus::page(self, &Choice { keep, wants }));
        out
    }

    /// Calls `then` with `keep` narrowed by the matcher.
    fn matching(&self, keep: Keep<'_>, mut then: impl FnMut(Keep<'_>)) {
        match lock(&self.matcher).clone() {
            Some(matcher) => then(&|name| matcher(name) && keep(name)),
            None => then(keep),
        }
    }

    /// The blocks that somebody holds, and those made for this moment. No lock is held while they are made or read.
    pub(super) fn living(&self) -> Vec<Arc<Inner>> {
        let sources = lock(&self.block_sources).clone();
        let made: Vec<Block> = sources.iter().flat_map(|source| source.blocks()).collect();
        let mut living: Vec<Arc<Inner>> = lock(&self.blocks).values().filter_map(Weak::upgrade).collect();
        living.extend(made.into_iter().map(|block| block.0));
        living
    }

    /// The metrics of every source.
    pub(super) fn collect(&self, emit: &mut dyn FnMut(Sample)) {
        let sources = lock(&self.sources).clone();
        self.carried.collect(emit, |emit| sources.iter().for_each(|source| source.collect(emit)));
    }

    pub(super) fn carried(&self) -> &Carried {
        &self.carried
    }

    fn scrape_block(&self, block: &Inner, used_only: bool, keep: Keep<'_>, out: &mut Vec<Sample>) {
        if used_only && !block.touched() {
            return;
        }
        let form = Form::new(&block.name, self.style);
        for (def, cell) in block.metrics() {
            let value = block.value(def, cell);
            if (def.hide_zero || used_only) && value.is_unused() {
                continue;
            }
            let name = format!("{}{}", block.name.dotted, def.name);
            if keep(&name) {
                out.push(self.sample(&form, def, name, value));
            }
        }
    }

    fn sample(&self, form: &Form, def: &MetricDef, name: String, value: Value) -> Sample {
        let (family, tag) = form.family(def.name, self.style);
        let tags = tag.iter().chain(&form.tags);
        let labels = tags.map(|tag| (label_key(tag, self.style), tag.value.clone())).collect();
        Sample { name, family, labels, value }
    }
}

/// A panic elsewhere must not end all metrics: the maps are valid after any interruption.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
