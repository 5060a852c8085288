//! What the compiler shows: the snapshot of the moment, and its resources for the admin pages.
use std::sync::Arc;

use super::Compiler;
use super::entry::Entry;
use crate::compile::context::Uses;
use crate::compile::record::{Failure, Kind, Listed, Origin, Record};
use crate::compile::secret::Unusable;
use crate::dns::cache::DnsCache;
use crate::{ClusterId, Snapshot};

impl Compiler {
    /// The configuration of the moment. The same value as before when nothing changed.
    pub fn snapshot(&mut self) -> Arc<Snapshot> {
        let renewed = std::mem::take(&mut self.renewed);
        if !self.dirty {
            if !renewed.is_empty() {
                self.snapshot = Arc::new(self.with_members(&renewed));
            }
            return self.snapshot.clone();
        }
        let cluster = |name: &Arc<str>| self.clusters.get(name)?.versions.active.as_ref()?.value.cluster.clone();
        let table = |name: &Arc<str>| Some(self.routes.get(name)?.versions.active.as_ref()?.value.table.clone());
        let extension = |name: &Arc<str>| Some(self.extensions.get(name)?.versions.active.as_ref()?.value.clone());
        self.snapshot = Arc::new(Snapshot {
            version: self.snapshot.version + 1,
            listeners: self.listeners.values().filter_map(|e| Some(e.versions.active.as_ref()?.value.listener.clone())).collect(),
            clusters: self.names.cluster_names().iter().map(cluster).collect(),
            routes: self.names.route_names().iter().map(table).collect(),
            extensions: self.names.extension_names().iter().map(extension).collect(),
            scopes: Arc::new(self.active_scopes()),
            cluster_ids: self.names.cluster_ids(),
        });
        self.dirty = false;
        self.snapshot.clone()
    }

    /// The snapshot before with other members of these clusters.
    fn with_members(&self, renewed: &[ClusterId]) -> Snapshot {
        let mut next = Snapshot::clone(&self.snapshot);
        next.version += 1;
        for id in renewed {
            let index = id.0 as usize;
            let name = self.names.cluster_names().get(index);
            let active = name.and_then(|name| self.clusters.get(name)?.versions.active.as_ref()?.value.cluster.clone());
            if let Some(slot) = next.clusters.get_mut(index) {
                *slot = active;
            }
        }
        next
    }

    /// Every cluster's configuration, also of those that still wait.
    pub fn each_cluster(&self, mut each: impl FnMut(&crate::cluster::ClusterConfig)) {
        self.clusters.values().flat_map(|e| e.versions.all()).for_each(|v| each(&v.value.compiled.config));
    }

    /// The DNS caches that something refers to.
    pub fn dns_caches(&mut self) -> Vec<Arc<DnsCache>> {
        self.dns_caches.all()
    }

    /// Whether a cluster was discovered rather than given by the bootstrap.
    pub fn is_dynamic_cluster(&self, name: &str) -> bool {
        self.clusters.get(name).is_some_and(|e| e.origin == Origin::Dynamic)
    }

    /// The resources of a kind as they arrived, for the admin pages.
    pub fn list(&self, kind: Kind) -> Vec<Listed<'_>> {
        match kind {
            Kind::Listener => self.listeners.iter().map(|(n, e)| self.listed(n, e, |version| &version.uses)).collect(),
            Kind::Route => self.routes.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Cluster => self.clusters.iter().map(|(n, e)| self.listed(n, e, |version| &version.uses)).collect(),
            Kind::Endpoint => self.endpoints.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Extension => self.extensions.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Scope => self.scopes.iter().map(|(n, e)| e.listed(n)).collect(),
        }
    }

    /// One that has certificates.
    fn listed<'a, T>(&self, name: &'a str, entry: &'a Entry<T>, uses: fn(&T) -> &Uses) -> Listed<'a> {
        let tls = entry.versions.all().flat_map(|version| &uses(&version.value).tls);
        let failed = |Unusable { reason, at }: &Unusable| {
            let Record { body, version, .. } = entry.versions.newest()?.record.clone();
            Some(Failure { body, version, at: *at, reason: reason.clone() })
        };
        Listed { unusable_files: self.unusable(tls).and_then(failed), ..entry.listed(name) }
    }
}
