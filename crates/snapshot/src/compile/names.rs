//! Names to ids: what a request would otherwise look up by text is an index.
use std::collections::HashMap;
use std::sync::{Arc, Weak};

use crate::jwt::{KeySource, RemoteKeys};
use crate::{ClusterId, ClusterIds, ExtensionId, RouteTableId};

/// The ids given so far. A name keeps its id for the life of the process.
#[derive(Debug, Default)]
pub(crate) struct Names {
    clusters: Arc<ClusterIds>,
    cluster_names: Vec<Arc<str>>,
    routes: HashMap<Arc<str>, RouteTableId>,
    route_names: Vec<Arc<str>>,
    extensions: HashMap<Arc<str>, ExtensionId>,
    extension_names: Vec<Arc<str>>,
    /// Keys that are fetched: the same source keeps its keys when what refers to it changes.
    keys: Vec<Weak<RemoteKeys>>,
}

impl Names {
    pub(crate) fn cluster(&mut self, name: &str) -> ClusterId {
        if let Some(id) = self.clusters.get(name) {
            return *id;
        }
        let id = ClusterId(u32::try_from(self.cluster_names.len()).unwrap_or(u32::MAX));
        let name: Arc<str> = Arc::from(name);
        self.cluster_names.push(name.clone());
        Arc::make_mut(&mut self.clusters).insert(name, id);
        id
    }

    pub(crate) fn route_table(&mut self, name: &str) -> RouteTableId {
        if let Some(id) = self.routes.get(name) {
            return *id;
        }
        let id = RouteTableId(u32::try_from(self.route_names.len()).unwrap_or(u32::MAX));
        let name: Arc<str> = Arc::from(name);
        self.route_names.push(name.clone());
        self.routes.insert(name, id);
        id
    }

    pub(crate) fn extension(&mut self, name: &str) -> ExtensionId {
        if let Some(id) = self.extensions.get(name) {
            return *id;
        }
        let id = ExtensionId(u32::try_from(self.extension_names.len()).unwrap_or(u32::MAX));
        let name: Arc<str> = Arc::from(name);
        self.extension_names.push(name.clone());
        self.extensions.insert(name, id);
        id
    }

    pub(crate) fn extension_names(&self) -> &[Arc<str>] {
        &self.extension_names
    }

    pub(crate) fn remote_keys(&mut self, source: KeySource) -> Arc<RemoteKeys> {
        self.keys.retain(|keys| keys.strong_count() > 0);
        let known = self.keys.iter().filter_map(Weak::upgrade).find(|keys| keys.source == source);
        known.unwrap_or_else(|| {
            let made = RemoteKeys::new(source);
            self.keys.push(Arc::downgrade(&made));
            made
        })
    }

    pub(crate) fn cluster_names(&self) -> &[Arc<str>] {
        &self.cluster_names
    }

    pub(crate) fn route_names(&self) -> &[Arc<str>] {
        &self.route_names
    }

    /// Shared with every snapshot; copied only when a name is added while a snapshot holds it.
    pub(crate) fn cluster_ids(&self) -> Arc<ClusterIds> {
        self.clusters.clone()
    }
}
