//! Definitions of metrics and the typed handles by which hot code names them.
use super::histogram::Buckets;

/// What a metric measures.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down; its value is the net sum over all shards.
    Gauge,
    /// A distribution over fixed buckets.
    Histogram(&'static Buckets),
}

/// One metric of a block: Envoy's name without the block's prefix.
#[derive(Clone, Copy, Debug)]
pub struct MetricDef {
    pub name: &'static str,
    pub kind: Kind,
    /// Left out of every output while zero, as Envoy's per-code counters are, which appear on first use.
    pub hide_zero: bool,
}

/// A counter of a block's table: the index of its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counter(pub u16);

/// A gauge of a block's table: the index of its cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gauge(pub u16);

/// A histogram of a block's table: the index of its first cell and its buckets.
#[derive(Clone, Copy, Debug)]
pub struct Histogram(pub u16, pub &'static Buckets);

/// The number of cells a kind takes: a histogram has one per bucket, one for overflow, one for the sum.
const fn width(kind: Kind) -> usize {
    match kind {
        Kind::Counter | Kind::Gauge => 1,
        Kind::Histogram(buckets) => buckets.bounds.len() + 2,
    }
}

/// The first cell of the metric at `index`; usable in constants, so that a handle costs nothing at run time.
pub const fn cell_of(defs: &[MetricDef], index: usize) -> u16 {
    let mut cell = 0;
    let mut at = 0;
    while at < index {
        cell += width(defs[at].kind);
        at += 1;
    }
    assert!(cell <= u16::MAX as usize, "a block's table is too large");
    cell as u16
}

/// The number of cells of a whole table.
pub const fn cells_of(defs: &[MetricDef]) -> usize {
    let mut cells = 0;
    let mut at = 0;
    while at < defs.len() {
        cells += width(defs[at].kind);
        at += 1;
    }
    cells
}
