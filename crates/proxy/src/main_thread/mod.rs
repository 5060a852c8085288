//! The main thread: everything about the configuration that is not a request's business.
//!
//! One owner of the compiler ([`state::Main`]) takes what arrives from the bootstrap file, the discovery
//! stream, the certificate rotation, DNS and the file system, and publishes a snapshot to the workers.
//! Around it run tasks of one idea each: [`discovery`], [`dns`], [`dns_cache`], [`files`], [`health`], [`ejection`], [`cluster_figures`],
//! [`on_demand`].
mod cluster_figures;
mod discovery;
mod dns;
mod dns_cache;
mod drain;
mod ejection;
mod figures;
mod files;
mod first_answers;
mod health;
mod health_events;
mod lifecycle;
pub(crate) mod memory;
mod on_demand;
mod overload;
mod probe;
mod state;
mod supervise;
#[cfg(test)]
pub(crate) mod test_support;
mod upstream;

pub use drain::DrainPlan;
pub(crate) use figures::Pages;
pub use lifecycle::{Options, Process, start, token_file};
pub(crate) use supervise::Panics;

pub use state::{Main, Parts, Phase, Publisher};
