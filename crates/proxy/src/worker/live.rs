//! A snapshot with this worker's state of it: made at once when published, filled as it is used.
use std::cell::{OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use lateen_snapshot::{ClusterId, Snapshot};
use tokio::time::Instant;

use super::Worker;
use crate::upstream::ClusterState;

/// The worker's current configuration. Cluster state appears with the first request for a cluster, so that
/// a mesh of thousands costs a worker only what it calls.
pub(crate) struct Live {
    pub(crate) snapshot: Arc<Snapshot>,
    clusters: Vec<OnceCell<Rc<ClusterState>>>,
    used: RefCell<Vec<ClusterId>>,
}

impl Live {
    pub(super) fn new(snapshot: Arc<Snapshot>) -> Self {
        let clusters = (0..snapshot.clusters.len()).map(|_| OnceCell::new()).collect();
        Self { snapshot, clusters, used: RefCell::default() }
    }

    /// The next one, which keeps the state of every cluster that did not change.
    pub(super) fn after(before: &Self, snapshot: Arc<Snapshot>) -> Self {
        let next = Self::new(snapshot);
        for id in before.used.borrow().iter() {
            if let (Some(state), Some(cluster)) = (before.clusters.get(id.0 as usize).and_then(OnceCell::get), next.snapshot.cluster(*id))
                && Arc::ptr_eq(&state.cluster, cluster)
                && let Some(slot) = next.clusters.get(id.0 as usize)
            {
                let _ = slot.set(Rc::clone(state));
                next.used.borrow_mut().push(*id);
            }
        }
        next
    }

    /// Closes connections that the next snapshot has no use for.
    pub(super) fn retire(&self, next: &Snapshot) {
        for state in self.states() {
            let cluster = next.cluster(state.id);
            if cluster.is_none_or(|c| !Arc::ptr_eq(c, &state.cluster)) {
                state.replaced_by(cluster);
            }
        }
    }

    pub(super) fn used(&self) -> Vec<ClusterId> {
        self.used.borrow().clone()
    }

    fn states(&self) -> Vec<Rc<ClusterState>> {
        let used = self.used.borrow();
        used.iter().filter_map(|id| self.clusters.get(id.0 as usize)?.get().cloned()).collect()
    }

    pub(super) fn sweep(&self, now: Instant) {
        for state in self.states() {
            state.sweep(now);
        }
    }

    /// The cluster, if the snapshot knows it.
    pub(crate) fn cluster(&self, worker: &Worker, id: ClusterId) -> Option<Rc<ClusterState>> {
        let slot = self.clusters.get(id.0 as usize)?;
        if let Some(state) = slot.get() {
            return Some(Rc::clone(state));
        }
        let cluster = self.snapshot.cluster(id)?;
        let state = ClusterState::new(worker, id, Arc::clone(cluster), worker.pools_of(id), worker.roll64());
        let _ = slot.set(Rc::clone(&state));
        self.used.borrow_mut().push(id);
        Some(state)
    }
}
