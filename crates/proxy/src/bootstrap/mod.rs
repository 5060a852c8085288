//! Bootstraps made in code: for our own sidecar or gateway from the environment of Istio's agent, and
//! for a stock Envoy under our control plane. Files are read by `lateen_snapshot::bootstrap`.
mod environment;
mod envoy;
mod sidecar;

pub use environment::{Environment, InvalidEnvironment, Role};
pub use envoy::{EnvoyBootstrap, StatsChoice};
pub use sidecar::{ControlPlane, agent_bootstrap, node};
