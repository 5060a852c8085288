//! Cells: the atomics that counts live in, each written by one worker.
use super::metric::Histogram;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

pub(crate) type Cells = Arc<[AtomicU64]>;

pub(crate) fn new_cells(count: usize) -> Cells {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

/// Adds without a locked instruction. Correct because a cell has one writer; a scrape reads a value
/// that is at most one addition old.
#[inline]
pub(crate) fn bump_at(cells: &[AtomicU64], index: usize, by: u64) {
    if let Some(cell) = cells.get(index) {
        cell.store(cell.load(Relaxed).wrapping_add(by), Relaxed);
    }
}

/// Adds to a gauge's cell, whose lowest bit tells that it was ever written: Envoy shows a used gauge that is zero again.
#[inline]
pub(crate) fn gauge_add_at(cells: &[AtomicU64], index: usize, by: u64) {
    if let Some(cell) = cells.get(index) {
        cell.store(cell.load(Relaxed).wrapping_add(by << 1) | WRITTEN, Relaxed);
    }
}

const WRITTEN: u64 = 1;

/// What a gauge's cell holds for a value.
pub(crate) fn gauge_cell(value: u64) -> u64 {
    value << 1 | WRITTEN
}

/// A gauge's value from its cell, negative where others have the rest of it, and whether it was ever written.
pub(crate) fn gauge_of(cell: u64) -> (i64, bool) {
    (cell as i64 >> 1, cell & WRITTEN != 0)
}

/// Counts `raw` into its bucket and into the sum.
#[inline]
pub(crate) fn record_at(cells: &[AtomicU64], histogram: Histogram, raw: u64) {
    let Histogram(first, buckets) = histogram;
    let first = first as usize;
    bump_at(cells, first + buckets.index(raw), 1);
    bump_at(cells, first + buckets.bounds.len() + 1, raw);
}
