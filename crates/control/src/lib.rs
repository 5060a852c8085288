//! The live control plane: from sources of configuration to streams of resources.
//!
//! On the path of a change this crate is everything between the file that was saved and the bytes
//! that leave for a proxy: [`source`]s are watched, the keeper builds the next immutable
//! [`Snapshot`], the hub leaves at most one pending push per proxy, and resources are generated
//! once and shared. Beside it stand the certificate service and the debug pages.
//!
//! [`Config`] is plain data; [`build`] binds the ports; [`ControlPlane::run`] serves.
mod backend;
mod change;
mod config;
mod debug;
mod keeper;
mod listen;
mod metrics;
mod plane;
mod resources;
mod snapshot;
pub mod source;

pub use backend::{Client, Streams};
pub use config::{Config, Debounce};
pub use metrics::Metrics;
pub use plane::{Addresses, BuildError, ControlPlane, Handle, Identity, build, shutdown_signal};
pub use snapshot::Snapshot;
pub use source::{Files, Given, GivenSource, Source, State};

#[cfg(test)]
mod tests;
