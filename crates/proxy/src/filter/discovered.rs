//! What was discovered for the places of some filters, as of a snapshot: when nothing of it changed, what was made of it stays.
use std::sync::Arc;

use lateen_snapshot::extension::Extension;
use lateen_snapshot::{ExtensionId, Snapshot};

pub(crate) struct Found {
    version: u64,
    of: Vec<(ExtensionId, Option<Arc<Extension>>)>,
}

impl Found {
    pub(crate) fn new(snapshot: &Snapshot, ids: impl IntoIterator<Item = ExtensionId>) -> Self {
        Self { version: snapshot.version, of: ids.into_iter().map(|id| (id, snapshot.extension(id).cloned())).collect() }
    }

    /// Whether the snapshot has the same.
    pub(crate) fn is_current(&mut self, snapshot: &Snapshot) -> bool {
        if self.version == snapshot.version {
            return true;
        }
        let same = self.of.iter().all(|(id, known)| known.as_ref().map(Arc::as_ptr) == snapshot.extension(*id).map(Arc::as_ptr));
        if same {
            self.version = snapshot.version;
        }
        same
    }

    pub(crate) fn get(&self, id: ExtensionId) -> Option<&Extension> {
        self.of.iter().find(|(known, _)| *known == id)?.1.as_deref()
    }
}
