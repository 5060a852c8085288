//! The compiler: takes resources as they arrive, keeps the last good version of each, and makes
//! snapshots in which everything that is referred to is there.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use indexmap::IndexMap;
use lateen_balance::{LocalCluster, Locality};
use lateen_proto::{Any, any, envoy};
use prost::Name;

use self::entry::{Entry, name_by_place, name_inside};
use self::resolved::Resolved;
use super::cluster::Compiled;
use super::context::Uses;
use super::endpoint::Assignment;
use super::names::Names;
use super::record::Origin;
use super::scoped_routes::Scope;
use super::secret::Secrets;
use super::source::SecretSource;
use crate::cluster::{Cluster, ClusterLive};
use crate::dns::cache::DnsCaches;
use crate::extension::Extension;
use crate::{ClusterId, Listener, RouteTable, Snapshot};

type ListenerProto = envoy::config::listener::v3::Listener;
type RouteProto = envoy::config::route::v3::RouteConfiguration;
type ClusterProto = envoy::config::cluster::v3::Cluster;
type EndpointProto = envoy::config::endpoint::v3::ClusterLoadAssignment;
type ExtensionProto = envoy::config::core::v3::TypedExtensionConfig;
type VirtualHostProto = envoy::config::route::v3::VirtualHost;
type ScopeProto = envoy::config::route::v3::ScopedRouteConfiguration;
type SecretProto = envoy::extensions::transport_sockets::tls::v3::Secret;

/// A single resource larger than this is refused: a whole mesh's listener is a few megabytes.
const MAX_RESOURCE_BYTES: usize = 64 << 20;

mod addresses;
mod entry;
mod members;
mod on_demand;
mod refused;
mod reloads;
mod resolved;
mod scopes;
mod secrets;
mod settle;
mod take;
#[cfg(test)]
mod tests;
mod view;
mod virtual_hosts;
mod wanted;

pub use on_demand::Wish;
pub use reloads::{Outcome, Reload};
pub use wanted::{Since, Turn, Wanted};

/// A resource that arrived.
#[derive(Clone, Debug)]
pub struct Update {
    pub name: String,
    pub version: String,
    pub body: Any,
}

/// A resource that was refused, and why: which field, and what to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    pub reason: String,
}

#[derive(Debug)]
pub(crate) struct ListenerVersion {
    listener: Arc<Listener>,
    uses: Uses,
}

#[derive(Debug)]
pub(crate) struct RouteVersion {
    table: Arc<RouteTable>,
    /// Where virtual hosts are discovered for it: what they are put into.
    base: Option<Box<virtual_hosts::Base>>,
    uses: Uses,
}

#[derive(Debug)]
pub(crate) struct ClusterVersion {
    compiled: Compiled,
    uses: Uses,
    /// As published; made when the version is put to use and again when members change.
    cluster: Option<Arc<Cluster>>,
}

/// The single owner of the configuration. Not shared: the main thread calls it and publishes its snapshots.
#[derive(Debug, Default)]
pub struct Compiler {
    names: Names,
    secrets: Secrets,
    dns_caches: DnsCaches,
    pub(crate) listeners: IndexMap<Arc<str>, Entry<ListenerVersion>>,
    pub(crate) routes: HashMap<Arc<str>, Entry<RouteVersion>>,
    pub(crate) clusters: IndexMap<Arc<str>, Entry<ClusterVersion>>,
    pub(crate) endpoints: HashMap<Arc<str>, Entry<Arc<Assignment>>>,
    /// Wanted names of which discovery said that there are none.
    no_endpoints: HashSet<Arc<str>>,
    refused: refused::Refused,
    pub(crate) extensions: HashMap<Arc<str>, Entry<Arc<Extension>>>,
    /// Outlives the versions of a cluster.
    live: HashMap<Arc<str>, Arc<ClusterLive>>,
    resolved: HashMap<Arc<str>, Resolved>,
    on_demand: on_demand::OnDemand,
    reloads: Vec<Reload>,
    /// Virtual hosts that were discovered, by the routes that they belong to.
    hosts: HashMap<Arc<str>, virtual_hosts::Hosts>,
    scopes: HashMap<Arc<str>, Entry<Scope>>,
    /// The scope that has a key.
    scope_keys: HashMap<Box<str>, Arc<str>>,
    /// An answer about scopes has come.
    has_scopes: bool,
    /// Discovery tells only what changes, which virtual hosts need.
    by_delta: bool,
    zone: Option<Zone>,
    /// The active clusters that find their members under a name.
    users: HashMap<Arc<str>, Vec<Arc<str>>>,
    wanted: Arc<Wanted>,
    /// How often that changed.
    turn: Turn,
    /// Nothing waits, and `users` and `wanted` are as they must be. Members and secrets that change keep it so: only then an
    /// update of one endpoint costs the work of one cluster, however many there are.
    settled: bool,
    snapshot: Arc<Snapshot>,
    /// Clusters whose members changed since the last snapshot.
    renewed: Vec<ClusterId>,
    /// Anything else did.
    dirty: bool,
}

/// Where this process stands, for zone-aware routing.
#[derive(Debug)]
struct Zone {
    cluster: Arc<str>,
    locality: Locality,
    /// The local cluster, once it is known.
    local: Option<Arc<LocalCluster>>,
}

impl Compiler {
    pub fn new() -> Self {
        Self::default()
    }

    /// The cluster that this process is a member of, and its place: other clusters keep traffic in that zone as far as
    /// it carries it. To be said before there are any clusters.
    pub fn set_local_cluster(&mut self, name: &str, locality: Locality) {
        self.zone = Some(Zone { cluster: name.into(), locality, local: None });
    }

    /// Discovery is incremental: only then virtual hosts can be discovered one by one.
    pub fn set_incremental(&mut self, incremental: bool) {
        self.by_delta = incremental;
    }

    /// Takes resources of the bootstrap in use. Unlike discovered ones they cannot be removed or replaced.
    ///
    /// # Errors
    /// The first resource that is refused, with the reason.
    pub fn add_static(&mut self, resources: Vec<Any>, now: Instant) -> Result<(), Rejected> {
        let mut by_type: IndexMap<String, Vec<Update>> = IndexMap::new();
        for body in resources {
            let before = by_type.get(&body.type_url).map_or(0, Vec::len);
            let name = Some(name_inside(&body)).filter(|name| !name.is_empty()).unwrap_or_else(|| name_by_place(&body, before));
            by_type.entry(body.type_url.clone()).or_default().push(Update { name, version: String::new(), body });
        }
        for (type_url, updates) in by_type {
            if let Some(rejected) = self.take(&type_url, updates, Origin::Static, &SecretSource::Static, now).into_iter().next() {
                return Err(rejected);
            }
        }
        self.settle(now);
        Ok(())
    }

    /// Takes discovered resources of one type in use and forgets `removed`. What is refused leaves
    /// the version before in use; everything else of the same batch is applied.
    pub fn apply(&mut self, type_url: &str, updates: Vec<Update>, removed: &[String], now: Instant) -> Vec<Rejected> {
        self.apply_from(&SecretSource::Ads, type_url, updates, removed, now)
    }

    /// Of these resources came what could not be used at all: who waits for them goes on.
    pub fn refuse(&mut self, source: &SecretSource, type_url: &str, names: &[String], now: Instant) {
        let type_name = any::name_of(type_url);
        self.note_answer(type_url, &[], names);
        let mut is_news = type_name == VirtualHostProto::full_name();
        for name in names {
            is_news |= self.refused.note(type_name, name, source, true);
            is_news |= type_name == EndpointProto::full_name() && self.no_endpoints.insert(name.as_str().into());
        }
        // A file that cannot be read is refused at each look.
        if is_news {
            self.settled = false;
            self.settle(now);
        }
    }

    /// [`Compiler::apply`], for secrets that come from elsewhere than the aggregated stream.
    pub fn apply_from(
        &mut self,
        source: &SecretSource,
        type_url: &str,
        updates: Vec<Update>,
        removed: &[String],
        now: Instant,
    ) -> Vec<Rejected> {
        self.note_answer(type_url, &updates, removed);
        // The address of a listener that goes is free for one that comes.
        let removed_first = any::name_of(type_url) == ListenerProto::full_name();
        if removed_first {
            self.remove(type_url, removed, source);
        }
        let rejected = self.take(type_url, updates, Origin::Dynamic, source, now);
        if !removed_first {
            self.remove(type_url, removed, source);
        }
        self.settle(now);
        rejected
    }
}
