//! Blocks of cells, and the handles that workers write through.
use super::cells::{Cells, bump_at, gauge_add_at, gauge_cell, gauge_of, new_cells, record_at};
use super::histogram::HistogramValue;
use super::metric::{Counter, Gauge, Histogram, Kind, MetricDef, cell_of, cells_of};
use super::name::BlockName;
use super::sample::Value;
use std::cell::Cell;
use std::marker::PhantomData;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, OnceLock};

pub(crate) struct Inner {
    pub(crate) defs: &'static [MetricDef],
    pub(crate) name: BlockName,
    /// One set of cells per shard, made when that shard first writes: a cluster nobody calls costs no cells.
    /// The last set belongs to the shared writer.
    shards: Box<[OnceLock<Cells>]>,
}

/// A handle on a block. Clone it freely; the block's cells are freed with the last handle.
#[derive(Clone)]
pub struct Block(pub(crate) Arc<Inner>);

impl Block {
    pub(crate) fn new(defs: &'static [MetricDef], name: BlockName, shards: usize) -> Self {
        Self(Arc::new(Inner { defs, name, shards: (0..shards).map(|_| OnceLock::new()).collect() }))
    }

    /// A block for one moment, of a [`BlockSource`](super::BlockSource): no registry knows it, and workers cannot write to it.
    pub fn alone(defs: &'static [MetricDef], name: BlockName) -> Self {
        Self::new(defs, name, 1)
    }

    /// The block's name.
    pub fn name(&self) -> &BlockName {
        &self.0.name
    }

    fn cells(&self, shard: usize) -> Option<&Cells> {
        self.0.shards.get(shard).map(|slot| slot.get_or_init(|| new_cells(cells_of(self.0.defs))))
    }

    /// Sets a gauge that only the main thread writes (membership, versions). Takes no lock; last writer wins.
    pub fn set(&self, gauge: Gauge, value: u64) {
        if let Some(cell) = self.cells(self.0.shards.len() - 1).and_then(|cells| cells.get(gauge.0 as usize)) {
            cell.store(gauge_cell(value), Relaxed);
        }
    }

    /// Adds to a counter from a thread that has no shard (xDS, health checks): a locked addition, off the hot path.
    pub fn add_shared(&self, counter: Counter, by: u64) {
        if let Some(cell) = self.cells(self.0.shards.len() - 1).and_then(|cells| cells.get(counter.0 as usize)) {
            cell.fetch_add(by, Relaxed);
        }
    }

    /// As [`Self::add_shared`] for a gauge; `by` may be negative.
    pub fn add_gauge_shared(&self, gauge: Gauge, by: i64) {
        self.0.add_gauge_shared(gauge.0, by as u64);
    }

    /// The sum over all shards of one counter.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.0.sum(counter.0 as usize)
    }

    /// The net value over all shards of one gauge; a momentary negative (two shards read apart) counts as 0.
    pub fn gauge(&self, gauge: Gauge) -> u64 {
        self.0.gauge(gauge.0 as usize).0
    }

    /// The sum over all shards of one histogram.
    pub fn histogram(&self, histogram: Histogram) -> HistogramValue {
        self.0.histogram(histogram)
    }
}

impl Inner {
    pub(crate) fn sum(&self, cell: usize) -> u64 {
        let cells = self.shards.iter().filter_map(|shard| shard.get());
        cells.filter_map(|cells| cells.get(cell)).fold(0, |sum, cell| sum.wrapping_add(cell.load(Relaxed)))
    }

    /// The net value of one gauge, and whether anyone has ever written it.
    pub(crate) fn gauge(&self, cell: usize) -> (u64, bool) {
        gauge_sum(self.shards.iter().filter_map(OnceLock::get), cell)
    }

    pub(crate) fn histogram(&self, Histogram(first, buckets): Histogram) -> HistogramValue {
        let first = first as usize;
        let counts = (0..=buckets.bounds.len()).map(|bucket| self.sum(first + bucket)).collect();
        HistogramValue { buckets, counts, sum: self.sum(first + buckets.bounds.len() + 1) }
    }

    /// The value of one metric; a momentary negative gauge (two shards read apart) counts as 0.
    pub(crate) fn value(&self, def: &MetricDef, cell: u16) -> Value {
        match def.kind {
            Kind::Histogram(buckets) => Value::Histogram(self.histogram(Histogram(cell, buckets))),
            Kind::Counter => Value::Counter(self.sum(cell as usize)),
            Kind::Gauge => {
                let (value, used) = self.gauge(cell as usize);
                Value::Gauge { value, used }
            }
        }
    }

    /// A gauge's value in the workers, without what the main thread sets.
    pub(super) fn workers_gauge(&self, cell: usize) -> u64 {
        let workers = self.shards.len().saturating_sub(1);
        gauge_sum(self.shards.iter().take(workers).filter_map(OnceLock::get), cell).0
    }

    fn shared(&self, cell: u16) -> Option<&AtomicU64> {
        self.shards.last()?.get_or_init(|| new_cells(cells_of(self.defs))).get(usize::from(cell))
    }

    /// Adds, wrapping, to a counter's cell of the shared writer.
    pub(super) fn add_shared(&self, cell: u16, by: u64) {
        if let Some(cell) = self.shared(cell) {
            cell.fetch_add(by, Relaxed);
        }
    }

    /// As [`Self::add_shared`] for a gauge.
    pub(super) fn add_gauge_shared(&self, cell: u16, by: u64) {
        if let Some(cell) = self.shared(cell) {
            cell.fetch_add(by << 1, Relaxed);
            cell.fetch_or(gauge_cell(0), Relaxed);
        }
    }

    /// Whether any shard has ever written.
    pub(crate) fn touched(&self) -> bool {
        self.shards.iter().any(|shard| shard.get().is_some())
    }

    /// The definitions with their first cells.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = (&'static MetricDef, u16)> {
        let defs = self.defs;
        defs.iter().enumerate().map(move |(index, def)| (def, cell_of(defs, index)))
    }
}

/// A momentary negative (two shards read apart) counts as 0.
fn gauge_sum<'a>(shards: impl Iterator<Item = &'a Cells>, cell: usize) -> (u64, bool) {
    let cells = shards.filter_map(|cells| cells.get(cell)).map(|cell| gauge_of(cell.load(Relaxed)));
    let (sum, used) = cells.fold((0i64, false), |(sum, used), (value, written)| (sum.wrapping_add(value), used || written));
    (sum.max(0) as u64, used)
}

/// One worker's right to write. There is one for each worker and it is not `Sync`: move it into the worker's
/// thread before taking [`Local`]s from it.
pub struct Shard {
    index: usize,
    not_sync: PhantomData<Cell<()>>,
}

impl Shard {
    pub(crate) fn new(index: usize) -> Self {
        Self { index, not_sync: PhantomData }
    }

    /// The worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// This worker's cells of a block, resolved once so that each count is one load and one store. Keep it
    /// beside the worker's own cluster, listener or filter object.
    pub fn local(&self, block: &Block) -> Local {
        let cells = block.cells(self.index).cloned().unwrap_or_else(|| new_cells(0));
        Local { block: block.clone(), cells, not_send: PhantomData }
    }

    #[inline]
    pub fn inc(&self, block: &Block, counter: Counter) {
        self.add(block, counter, 1);
    }

    #[inline]
    pub fn add(&self, block: &Block, counter: Counter, by: u64) {
        if let Some(cells) = block.cells(self.index) {
            bump_at(cells, counter.0 as usize, by);
        }
    }

    #[inline]
    pub fn gauge_add(&self, block: &Block, gauge: Gauge, by: i64) {
        if let Some(cells) = block.cells(self.index) {
            gauge_add_at(cells, gauge.0 as usize, by as u64);
        }
    }

    /// Records into a histogram, in its raw unit: microseconds for `_ms` and `_time`, bytes for sizes.
    #[inline]
    pub fn record(&self, block: &Block, histogram: Histogram, raw: u64) {
        if let Some(cells) = block.cells(self.index) {
            record_at(cells, histogram, raw);
        }
    }
}

/// One worker's cells of one block. Not `Send`: it must stay with its writer.
#[derive(Clone)]
pub struct Local {
    block: Block,
    cells: Cells,
    not_send: PhantomData<Rc<()>>,
}

impl Local {
    #[inline]
    pub fn inc(&self, counter: Counter) {
        bump_at(&self.cells, counter.0 as usize, 1);
    }

    #[inline]
    pub fn add(&self, counter: Counter, by: u64) {
        bump_at(&self.cells, counter.0 as usize, by);
    }

    #[inline]
    pub fn gauge_inc(&self, gauge: Gauge) {
        gauge_add_at(&self.cells, gauge.0 as usize, 1);
    }

    #[inline]
    pub fn gauge_dec(&self, gauge: Gauge) {
        gauge_add_at(&self.cells, gauge.0 as usize, u64::MAX);
    }

    #[inline]
    pub fn gauge_add(&self, gauge: Gauge, by: i64) {
        gauge_add_at(&self.cells, gauge.0 as usize, by as u64);
    }

    /// See [`Shard::record`].
    #[inline]
    pub fn record(&self, histogram: Histogram, raw: u64) {
        record_at(&self.cells, histogram, raw);
    }

    /// Raises a gauge until the guard is dropped: active requests, active connections.
    pub fn hold(&self, gauge: Gauge) -> Held {
        self.gauge_inc(gauge);
        Held { local: self.clone(), gauge }
    }

    /// The block behind.
    pub fn block(&self) -> &Block {
        &self.block
    }
}

/// A raised gauge; falls when dropped.
pub struct Held {
    local: Local,
    gauge: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.local.gauge_dec(self.gauge);
    }
}
