//! What waits, what for and how long, and what is no longer wanted.
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use super::resolved::is_resolved;
use super::{Compiler, ListenerVersion, Wanted};
use crate::cluster::Discovery;
use crate::compile::context::Uses;
use crate::compile::file_names::file_and_name;
use crate::compile::record::Origin;
use crate::compile::secret::{SecretKey, Unusable};
use crate::compile::tls::Waiting;
use crate::compile::warming::{FetchTimeout, Wait};
use crate::{ClusterId, RouteTableId};

impl Compiler {
    /// Puts to use what has become ready, in the order in which things refer to each other.
    pub fn settle(&mut self, now: Instant) {
        if self.settled {
            return;
        }
        self.settle_clusters(now);
        let waiting = self.waiting_clusters();
        // A cluster is waited for only so long, however long it waits itself: nobody should be without routes because of it.
        let arrived = |uses: &Uses, wait: &mut Wait| {
            uses.clusters.iter().filter_map(|id| waiting.get(id)).for_each(|until| wait.until(*until));
        };
        for (name, entry) in &mut self.routes {
            // Those that are in use already serve on with the virtual hosts that there are.
            let has_hosts = !entry.versions.is_new() || self.hosts.get(name).is_some_and(|hosts| hosts.answered);
            self.dirty |= entry.versions.promote(now, |v, wait| {
                arrived(&v.uses, wait);
                v.base.iter().for_each(|base| wait.on(has_hosts, base.timeout));
            });
        }
        let Self { routes, scopes, extensions, secrets, refused, .. } = self;
        let names = self.names.route_names();
        let active = |name: &Arc<str>| match routes.get(name) {
            Some(entry) if !entry.versions.is_new() => true,
            Some(entry) => entry.versions.warming.is_none() && refused.routes.contains(name),
            None => refused.routes.contains(name),
        };
        let has_table = |id: &RouteTableId| names.get(id.0 as usize).is_some_and(active);
        let users = self.listeners.values().flat_map(|e| e.versions.all()).filter_map(|v| v.value.uses.scopes);
        let scope_timeout = users.map(|uses| uses.routes).max().unwrap_or_default();
        for entry in scopes.values_mut() {
            self.dirty |= entry.versions.promote(now, |scope, wait| {
                scope.waits_for().iter().for_each(|id| wait.on(has_table(id), scope_timeout));
            });
        }
        let has_scopes = self.has_scopes && scopes.values().all(|e| e.versions.warming.is_none());
        let is_there = |name: &Arc<str>| extensions.get(name).is_some_and(|e| !e.versions.is_new()) || refused.extensions.contains(name);
        let has_secret = |key: &SecretKey| secrets.knows(key) || refused.secrets.contains(key);
        for entry in self.listeners.values_mut() {
            self.dirty |= entry.versions.promote(now, |ListenerVersion { uses, .. }, wait| {
                uses.route_tables.iter().for_each(|(id, timeout)| wait.on(has_table(id), *timeout));
                uses.scopes.iter().for_each(|uses| wait.on(has_scopes, uses.scopes));
                uses.extensions.iter().for_each(|u| u.waits.iter().for_each(|timeout| wait.on(is_there(&u.name), *timeout)));
                arrived(uses, wait);
                uses.tls.iter().for_each(|tls| tls.waits(has_secret, wait));
            });
        }
        self.forget_unwanted();
        self.settled = !self.is_warming();
    }

    fn settle_clusters(&mut self, now: Instant) {
        let Self { clusters, endpoints, no_endpoints, resolved, secrets, refused, .. } = self;
        let has_secret = |key: &SecretKey| secrets.knows(key) || refused.secrets.contains(key);
        let answered = |name: &Arc<str>| endpoints.contains_key(name) || no_endpoints.contains(name) || refused.endpoints.contains(name);
        let mut promoted = Vec::new();
        for (name, entry) in clusters.iter_mut() {
            // The hosts of the version before live on in the next.
            let before = entry.versions.active.as_ref().and_then(|v| v.value.cluster.clone());
            let is_promoted = entry.versions.promote(now, |version, wait| {
                match &version.compiled.config.discovery {
                    Discovery::Eds(service) => {
                        wait.on(answered(service), version.uses.endpoints);
                    }
                    Discovery::StrictDns(_) | Discovery::LogicalDns(_) => {
                        wait.on(is_resolved(&version.compiled.config, resolved), FetchTimeout::default());
                    }
                    Discovery::Static | Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::DynamicForwardProxy(_) => {}
                }
                version.uses.tls.iter().for_each(|tls| tls.waits(has_secret, wait));
            });
            if is_promoted {
                if let Some(active) = &mut entry.versions.active {
                    active.value.cluster = before;
                }
                promoted.push(name.clone());
            }
        }
        self.dirty |= !promoted.is_empty();
        promoted.iter().for_each(|name| self.refresh_members(name));
        self.users.clear();
        for (name, entry) in &self.clusters {
            let active = entry.versions.active.as_ref().map(|v| &v.value.compiled.config.discovery);
            if let Some(Discovery::Eds(service)) = active {
                self.users.entry(service.clone()).or_default().push(name.clone());
            }
        }
    }

    /// Clusters that were announced but have never been usable: routes to them wait, until then.
    fn waiting_clusters(&mut self) -> HashMap<ClusterId, Instant> {
        let Self { names, clusters, .. } = self;
        clusters.iter().filter_map(|(name, e)| Some((names.cluster(name), e.versions.holds_up_until()?))).collect()
    }

    fn forget_unwanted(&mut self) {
        self.refresh_wanted();
        let wanted = self.wanted();
        let Self { routes, endpoints, no_endpoints, secrets, extensions, refused, .. } = self;
        // What was subscribed to and is no longer would be stale when it is wanted again.
        let before = routes.len();
        routes.retain(|name, e| e.origin == Origin::Static || wanted.routes.contains(name));
        endpoints.retain(|name, e| e.origin == Origin::Static || wanted.endpoints.contains(name));
        no_endpoints.retain(|name| wanted.endpoints.contains(name));
        secrets.keep(|key| wanted.secrets.contains(key));
        refused.keep(&wanted);
        extensions.retain(|name, e| e.origin == Origin::Static || wanted.extensions.contains(name));
        let fewer = routes.len() != before;
        self.dirty |= fewer;
        self.forget_hosts();
        self.forget_scopes();
        if fewer {
            self.refresh_wanted();
        }
    }

    pub(super) fn all_wanted(&self) -> Wanted {
        let mut wanted = Wanted::default();
        wanted.clusters.extend(self.on_demand.clusters.iter().cloned());
        let name_of = |id: RouteTableId| self.names.route_names().get(id.0 as usize).cloned();
        wanted.routes.extend(self.on_demand.routes.iter().cloned());
        for version in self.listeners.values().flat_map(|e| e.versions.all()) {
            wanted.routes.extend(version.value.uses.route_tables.iter().filter_map(|(id, _)| name_of(*id)));
            wanted.scopes |= version.value.uses.scopes.is_some();
            wanted.extensions.extend(version.value.uses.extensions.iter().map(|u| u.name.clone()));
        }
        for version in self.clusters.values().flat_map(|e| e.versions.all()) {
            if let Discovery::Eds(service) = &version.value.compiled.config.discovery {
                wanted.endpoints.insert(service.clone());
            }
        }
        if wanted.scopes {
            let scopes = self.scopes.values().flat_map(|e| e.versions.all());
            wanted.routes.extend(scopes.filter_map(|v| v.value.waits_for()).filter_map(name_of));
        }
        wanted.virtual_hosts.extend(self.wanted_hosts().cloned());
        wanted.secrets.extend(self.all_tls().flat_map(Waiting::secrets).cloned());
        wanted
    }

    /// When the next resource has waited long enough for something: call [`Compiler::settle`] then.
    pub fn deadline(&self) -> Option<Instant> {
        if self.settled {
            return None;
        }
        let listeners = self.listeners.values().filter_map(|e| e.versions.deadline());
        let clusters = self.clusters.values().filter_map(|e| e.versions.deadline());
        let routes = self.routes.values().filter_map(|e| e.versions.deadline());
        let scopes = self.scopes.values().filter_map(|e| e.versions.deadline());
        listeners.chain(clusters).chain(routes).chain(scopes).min()
    }

    /// Whether nothing waits for anything.
    pub fn is_settled(&self) -> bool {
        self.settled || !self.is_warming()
    }

    fn is_warming(&self) -> bool {
        self.listeners.values().any(|e| e.versions.warming.is_some())
            || self.clusters.values().any(|e| e.versions.warming.is_some())
            || self.routes.values().any(|e| e.versions.warming.is_some())
            || self.scopes.values().any(|e| e.versions.warming.is_some())
    }

    /// Listeners, clusters and routes that wait, and why where it is files that cannot be used, for the operator.
    pub fn waiting(&self) -> Vec<String> {
        let shown = |kind: &str, name: &str, tls: &[Waiting]| match self.unusable(tls.iter()) {
            Some(Unusable { reason, .. }) => format!("{kind} {name} ({reason})"),
            None => format!("{kind} {name}"),
        };
        let listeners = self.listeners.iter().filter_map(|(n, e)| Some(shown("listener", n, &e.versions.warming.as_ref()?.value.uses.tls)));
        let clusters = self.clusters.iter().filter_map(|(n, e)| Some(shown("cluster", n, &e.versions.warming.as_ref()?.value.uses.tls)));
        let routes =
            self.routes.iter().filter(|(_, e)| e.versions.warming.is_some()).map(|(n, _)| format!("routes {}", file_and_name(n).1));
        listeners.chain(clusters).chain(routes).collect()
    }
}
