//! Counters, gauges and histograms, sharded by worker.
//!
//! Metrics come in [`Block`]s: a static table of definitions plus one name (`cluster.outbound|80||x.`).
//! Each worker owns one [`Shard`] and writes only cells of its own, so a count is a plain load and store;
//! a scrape adds the shards up. Blocks are made when configuration changes and freed with their last handle.
mod block;
mod buckets;
mod carry;
pub(crate) mod cells;
mod extract;
mod family;
mod histogram;
mod metric;
mod name;
mod prometheus;
mod registry;
mod render;
mod sample;

pub use block::{Block, Held, Local, Shard};
pub use carry::{Exporter, Figures, Series};
pub use histogram::{Buckets, ENVOY_BYTES, ENVOY_MS, ENVOY_MS_FINE, HistogramValue};
pub use metric::{Counter, Gauge, Histogram, Kind, MetricDef, cell_of, cells_of};
pub use name::BlockName;
pub use registry::{BlockSource, Matcher, Registry, Source, TagStyle};
pub use render::{BucketMode, Format, InvalidQuery, Query, TypeFilter};
pub use sample::{Sample, Value};
