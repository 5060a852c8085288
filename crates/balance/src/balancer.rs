//! One worker's choice among the hosts of a cluster.
use std::sync::Arc;

use crate::host::Host;

/// What a choice depends on beside the cluster itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Context<'a> {
    /// The request's hash, when the route has a hash policy.
    pub hash: Option<u64>,
    /// Hosts already tried, to be avoided while others are left (Envoy `previous_hosts`).
    pub avoid: &'a [Arc<Host>],
    /// How often to choose again when a host to avoid comes up (Envoy `host_selection_retry_max_attempts`).
    pub reselect: u32,
}

/// The outcome of a choice.
#[derive(Clone, Debug)]
pub enum Choice {
    Host(Arc<Host>),
    /// No host can be chosen: `503 no healthy upstream`, flag `UH`.
    NoHealthyHost,
}
