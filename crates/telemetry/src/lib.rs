//! What a proxy tells about its work: sharded counters and histograms, Istio's standard metrics, access logs.
//!
//! Nothing here opens a socket or locks on a request's path. Names, labels, buckets and log formats are
//! Envoy's and Istio's, so that existing dashboards and log pipelines read them unchanged.
pub mod access_log;
pub mod details;
pub mod envoy_names;
pub mod flags;
pub mod istio;
pub mod stats;

pub use flags::ResponseFlags;
pub use stats::{Block, BlockName, Local, Registry, Shard};
