//! Where configuration comes from: folders of files, another part of the program, later Kubernetes.
mod files;
mod given;

use std::future::Future;
use std::pin::Pin;

use lateen_model::{AnyResource, Diagnostic, ResourceSet};
use lateen_translate::world::Live;

pub use files::Files;
pub use given::{Given, GivenSource};

/// All that a source knows at one moment.
#[derive(Clone, Debug, Default)]
pub struct State {
    pub resources: ResourceSet,
    /// Running pods and cluster addresses, beside those the resources describe.
    pub live: Live,
    pub diagnostics: Vec<Diagnostic>,
}

/// Something that keeps configuration and says when it changed.
pub trait Source: Send + 'static {
    /// For logs and debug pages: `folder /etc/lateen`.
    fn name(&self) -> String;

    /// Waits until a load may give something new. Dropping the future loses no change.
    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;

    /// Everything the source has now; runs where blocking is allowed. `None` when it could not be read
    /// completely: its last state stays, and until every source was read once, no proxy is answered.
    fn load(&mut self) -> Option<State>;
}

/// Joins what several sources give. Where two have a resource of the same name, the earlier source
/// wins and the message names both places.
pub(crate) fn join<'a>(states: impl IntoIterator<Item = &'a State>) -> State {
    let mut joined = State::default();
    for state in states {
        if joined.resources.is_empty() {
            joined.resources = state.resources.clone();
        } else {
            let duplicates = state.resources.iter().filter_map(|r: &AnyResource| joined.resources.insert_new(r.clone()).err());
            let duplicates: Vec<Diagnostic> = duplicates.map(|d| *d).collect();
            joined.diagnostics.extend(duplicates);
        }
        joined.live.workloads.extend(state.live.workloads.iter().cloned());
        joined.live.cluster_ips.extend(state.live.cluster_ips.iter().map(|(k, v)| (k.clone(), v.clone())));
        joined.diagnostics.extend(state.diagnostics.iter().cloned());
    }
    joined
}
