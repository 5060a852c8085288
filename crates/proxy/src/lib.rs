//! The data plane: workers, listeners, filters, routing, upstream connections, admin.
//!
//! Folders follow the path of a request: [`worker`] owns the threads, `listener` accepts and inspects,
//! `tls` secures, `filter` and `http` act on connections and requests, `router` chooses and retries,
//! `upstream` connects, `spans` tells collectors, [`restart`] lets a new process take over. The main thread compiles configuration and publishes snapshots to the workers;
//! a request reads its worker's own copy and takes no lock.
pub mod admin;
pub mod bootstrap;
mod dns;
mod filter;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod http;
mod io;
mod listener;
pub mod main_thread;
pub mod restart;
mod router;
mod spans;
mod tls;
mod upstream;
pub mod worker;

pub use lateen_telemetry::istio::PeerMetadata;
pub use lateen_telemetry::stats::TagStyle;
pub use worker::{Asked, Drain, DrainTime, LogFiles, Overload, Peers, Wishes, WorkerConfig, WorkerHandle};
