//! The compiler: takes resources as they arrive, keeps the last good version of each, and makes
//! snapshots in which everything that is referred to is there.
use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use indexmap::IndexMap;
use lateen_balance::{Address, Breakers, Host, HostSet, LbPolicy, LocalCluster, Locality};
use lateen_identity::WorkloadSecrets;
use lateen_proto::{Any, any, envoy};
use prost::{Message, Name};

use self::resolved::{Resolved, resolved_members};
use super::cluster::{self, Compiled};
use super::context::{Context, Uses};
use super::endpoint::{Assignment, EndpointAddress, Member, Members};
use super::invalid::{Invalid, Result};
use super::names::Names;
use super::record::{Failure, Kind, Listed, Origin, Record};
use super::scoped_routes::Scope;
use super::secret::{SecretKey, SecretValue, Secrets};
use super::source::SecretSource;
use super::tls::Waiting;
use super::warming::Versions;
use super::{extension, listener, route};
use crate::cluster::{AssignmentPolicy, Cluster, ClusterLive, Discovery};
use crate::dns::cache::{DnsCache, DnsCaches};
use crate::extension::Extension;
use crate::{ClusterId, Listener, RouteTable, RouteTableId, Snapshot};

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

mod on_demand;
mod reloads;
mod scopes;
mod virtual_hosts;

pub use on_demand::Wish;
pub use reloads::{Outcome, Reload};

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

/// The names of resources that what is in use, or warming, refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: BTreeSet<Arc<str>>,
    pub endpoints: BTreeSet<Arc<str>>,
    pub secrets: BTreeSet<SecretKey>,
    pub extensions: BTreeSet<Arc<str>>,
    /// Clusters that requests asked for.
    pub clusters: BTreeSet<Arc<str>>,
    /// `<routes>` where virtual hosts are discovered, and `<routes>/<host>` for those that requests asked for.
    pub virtual_hosts: BTreeSet<Arc<str>>,
    /// All scopes.
    pub scopes: bool,
}

/// One named resource of a type, with its versions.
#[derive(Debug)]
pub(crate) struct Entry<T> {
    pub(crate) origin: Origin,
    pub(crate) versions: Versions<T>,
    pub(crate) failure: Option<Box<Failure>>,
}

impl<T> Entry<T> {
    fn new(origin: Origin) -> Self {
        Self { origin, versions: Versions::default(), failure: None }
    }
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
    /// Nothing waits, and `users` and `wanted` are as they must be. Members that change keep it so: only then an update of
    /// one endpoint costs the work of one cluster, however many there are.
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
    pub fn add_static(&mut self, resources: Vec<Any>, now: Instant) -> std::result::Result<(), Rejected> {
        let mut by_type: IndexMap<String, Vec<Update>> = IndexMap::new();
        for body in resources {
            let name = name_inside(&body);
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
        let rejected = self.take(type_url, updates, Origin::Dynamic, source, now);
        self.remove(type_url, removed, source);
        self.settle(now);
        rejected
    }

    fn take(&mut self, type_url: &str, updates: Vec<Update>, origin: Origin, source: &SecretSource, now: Instant) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let mut seen = HashSet::with_capacity(updates.len());
        let mut changed: Vec<String> = Vec::new();
        let type_name = any::name_of(type_url).to_owned();
        self.settled &= type_name == EndpointProto::full_name();
        if type_name == VirtualHostProto::full_name() {
            return self.take_virtual_hosts(updates);
        }
        self.has_scopes |= type_name == ScopeProto::full_name();
        for update in updates {
            let name = update.name.clone();
            let result = if update.body.value.len() > MAX_RESOURCE_BYTES {
                Err(Invalid::new(format!("has {} bytes, more than {MAX_RESOURCE_BYTES}; split it", update.body.value.len())))
            } else if !seen.insert(name.clone()) {
                Err(Invalid::new("occurs twice in one response; names must differ"))
            } else if type_name == ListenerProto::full_name() {
                let taken = self.take_listener(update, origin, now);
                if taken.is_ok() {
                    self.note_places(&name);
                }
                taken
            } else if type_name == RouteProto::full_name() {
                self.take_route(update, origin, now)
            } else if type_name == ClusterProto::full_name() {
                self.take_cluster(update, origin, now)
            } else if type_name == EndpointProto::full_name() {
                changed.push(name.clone());
                self.take_endpoints(update, origin, now)
            } else if type_name == SecretProto::full_name() {
                self.take_secret(&update, source)
            } else if type_name == ExtensionProto::full_name() {
                let taken = self.take_extension(update, origin, now);
                if taken.is_err() {
                    self.note_reload(&name, Outcome::Failed);
                }
                taken
            } else if type_name == ScopeProto::full_name() {
                self.take_scope(update, origin, now)
            } else {
                Err(Invalid::new(format!("resources of type {type_name} are not supported")))
            };
            if let Err(invalid) = result {
                rejected.push(Rejected { name, reason: invalid.to_string() });
            }
        }
        changed.iter().for_each(|service| self.refresh_users(service));
        rejected
    }

    fn take_listener(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { listeners, names, secrets, dns_caches, .. } = self;
        let entry = listeners.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        let before = entry.versions.newest().map(|v| Arc::clone(&v.value.listener));
        let taken = entry.take(update, origin, now, |proto: ListenerProto, name| {
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            let mut listener = listener::listener(proto, &mut context)?;
            if let Some(before) = before {
                listener.follow(&before);
            }
            Ok(ListenerVersion { listener: Arc::new(listener), uses: context.uses })
        });
        forget_if_empty(taken, listeners, |e| e.versions.newest().is_none() && e.origin == Origin::Static)
    }

    fn take_route(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { routes, names, secrets, dns_caches, hosts, by_delta, .. } = self;
        let name: Arc<str> = update.name.as_str().into();
        let entry = routes.entry(name).or_insert_with(|| Entry::new(origin));
        entry.take_sent(update, origin, now, |body, name| {
            let mut sent = route::Sent::open(body)?;
            same_name(&sent.rest.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            let id = context.names.route_table(name);
            let Some(vhds) = sent.rest.vhds.take() else {
                let table = Arc::new(sent.table(&mut context)?);
                return Ok(RouteVersion { table, base: None, uses: context.uses });
            };
            virtual_hosts::check(vhds, origin, *by_delta)?;
            let base = virtual_hosts::Base::new(sent, id, &mut context)?;
            let mut uses = std::mem::take(&mut context.uses);
            if let Some(found) = hosts.get_mut(name) {
                found.follow(&base, &mut context)?;
                uses.clusters.extend(found.clusters());
            }
            let table = Arc::new(base.with(hosts.get(name))?);
            Ok(RouteVersion { table, base: Some(Box::new(base)), uses })
        })
    }

    fn take_cluster(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { clusters, names, secrets, dns_caches, .. } = self;
        let entry = clusters.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: ClusterProto, name| {
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            context.names.cluster(name);
            let compiled = cluster::cluster(proto, &mut context)?;
            Ok(ClusterVersion { compiled, uses: context.uses, cluster: None })
        })
    }

    fn take_endpoints(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let name = update.name.clone();
        let entry = self.endpoints.entry(name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: EndpointProto, name| {
            same_name(&proto.cluster_name, name)?;
            cluster::load_assignment(proto).map(Arc::new)
        })?;
        // Endpoints wait for nothing.
        entry.versions.promote(now, |_| true);
        self.settled &= self.wanted.endpoints.contains(name.as_str());
        Ok(())
    }

    fn take_extension(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let name = update.name.clone();
        let users = self.listeners.values().flat_map(|e| e.versions.all()).flat_map(|v| &v.value.uses.extensions);
        let wanted: Vec<_> = users.filter(|u| *u.name == *update.name).map(|u| (u.place, u.types.clone())).collect();
        self.names.extension(&update.name);
        let Self { extensions, names, secrets, dns_caches, .. } = self;
        let entry = extensions.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: ExtensionProto, name| {
            same_name(&proto.name, name)?;
            let mut context = Context::new(names, secrets, dns_caches, false);
            extension::extension(proto, &wanted, &mut context).map(Arc::new)
        })?;
        // A filter waits for nothing.
        if entry.versions.promote(now, |_| true) {
            self.dirty = true;
            self.note_reload(&name, Outcome::Reloaded);
        }
        Ok(())
    }

    fn take_secret(&mut self, update: &Update, source: &SecretSource) -> Result<()> {
        let proto: SecretProto = decode(&update.body)?;
        same_name(&proto.name, &update.name)?;
        let key = SecretKey { source: source.clone(), name: update.name.as_str().into() };
        self.secrets.put(key.clone(), proto)?;
        self.refresh_tls(&key)
    }

    /// Makes every TLS configuration again that uses the secret. One that fails keeps its last.
    fn refresh_tls(&mut self, key: &SecretKey) -> Result<()> {
        let mut result = Ok(());
        for waiting in self.all_tls().filter(|w| w.needs(key)) {
            if let Err(invalid) = waiting.refresh(&self.secrets) {
                result = Err(invalid);
            }
        }
        result
    }

    fn all_tls(&self) -> impl Iterator<Item = &Waiting> {
        let listeners = self.listeners.values().flat_map(|e| e.versions.all()).flat_map(|v| &v.value.uses.tls);
        let clusters = self.clusters.values().flat_map(|e| e.versions.all()).flat_map(|v| &v.value.uses.tls);
        listeners.chain(clusters).filter(|w| w.is_alive())
    }

    fn remove(&mut self, type_url: &str, removed: &[String], source: &SecretSource) {
        let type_name = any::name_of(type_url);
        self.settled &= type_name == EndpointProto::full_name() || removed.is_empty();
        if type_name == VirtualHostProto::full_name() {
            return self.remove_virtual_hosts(removed);
        }
        for name in removed {
            let name = name.as_str();
            if type_name == ListenerProto::full_name() {
                self.dirty |= remove_dynamic(&mut self.listeners, name);
            } else if type_name == ClusterProto::full_name() {
                self.on_demand.clusters.remove(name);
                if remove_dynamic(&mut self.clusters, name) {
                    self.live.remove(name);
                    self.resolved.remove(name);
                    self.dirty = true;
                }
            } else if type_name == RouteProto::full_name() {
                self.on_demand.routes.remove(name);
                // Envoy keeps the last routes while a listener wants them: nothing says what to do instead.
                if !self.all_wanted().routes.contains(name) {
                    self.dirty |= self.routes.remove(name).is_some();
                }
            } else if type_name == ScopeProto::full_name() {
                self.remove_scope(name);
            } else if type_name == EndpointProto::full_name() {
                self.endpoints.remove(name);
                self.refresh_users(name);
            } else if type_name == ExtensionProto::full_name() {
                // Its places have their defaults again, or nothing.
                if self.extensions.remove(name).is_some() {
                    self.dirty = true;
                    self.note_reload(name, Outcome::Reloaded);
                }
            } else if type_name == SecretProto::full_name() {
                let key = SecretKey { source: source.clone(), name: name.into() };
                if !self.all_tls().any(|w| w.needs(&key)) {
                    self.secrets.remove(&key);
                }
            }
        }
    }

    /// The workload's own certificate and roots, as secrets `default` and `ROOTCA` of `source`.
    ///
    /// # Errors
    /// When a TLS configuration cannot be made with them; the others are in use.
    pub fn set_identity(&mut self, source: &SecretSource, identity: &WorkloadSecrets, now: Instant) -> std::result::Result<(), Invalid> {
        self.settled = false;
        let keys = self.secrets.set_identity(source, identity);
        let results: Vec<_> = keys.iter().map(|key| self.refresh_tls(key)).collect();
        self.settle(now);
        results.into_iter().collect()
    }

    /// The files that secrets were read from.
    pub fn files(&self) -> BTreeSet<PathBuf> {
        self.secrets.files().map(Path::to_path_buf).collect()
    }

    /// Reads secrets in changed files again. Returns those that failed, which keep their last value.
    pub fn reload_files(&mut self, changed: impl Fn(&Path) -> bool, now: Instant) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        self.settled = false;
        for (key, result) in self.secrets.reload(changed) {
            if let Err(invalid) = result.and_then(|()| self.refresh_tls(&key)) {
                rejected.push(Rejected { name: key.name.to_string(), reason: invalid.to_string() });
            }
        }
        self.settle(now);
        rejected
    }

    fn has_members(&self, version: &ClusterVersion) -> bool {
        match &version.compiled.config.discovery {
            Discovery::Eds(service) => self.endpoints.contains_key(service),
            Discovery::StrictDns(_) | Discovery::LogicalDns(_) => self.is_resolved(version),
            Discovery::Static | Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::DynamicForwardProxy(_) => true,
        }
    }

    /// Puts to use what has become ready, in the order in which things refer to each other.
    pub fn settle(&mut self, now: Instant) {
        if self.settled {
            return;
        }
        self.settle_clusters(now);
        let waiting: HashSet<_> = self.waiting_clusters();
        let arrived = |uses: &Uses| !uses.clusters.iter().any(|id| waiting.contains(id));
        for (name, entry) in &mut self.routes {
            // Those that are in use already serve on with the virtual hosts that there are.
            let has_hosts = !entry.versions.is_new() || self.hosts.get(name).is_some_and(|hosts| hosts.answered);
            self.dirty |= entry.versions.promote(now, |v| arrived(&v.uses) && (v.base.is_none() || has_hosts));
        }
        let routes = &self.routes;
        let names = self.names.route_names();
        let active = |name: &Arc<str>| routes.get(name).is_some_and(|e| !e.versions.is_new());
        let has_table = |id: &RouteTableId| names.get(id.0 as usize).is_some_and(active);
        for entry in self.scopes.values_mut() {
            self.dirty |= entry.versions.promote(now, |scope| scope.waits_for().is_none_or(|id| has_table(&id)));
        }
        let has_scopes = self.has_scopes && self.scopes.values().all(|e| e.versions.warming.is_none());
        let has_routes = |uses: &Uses| uses.route_tables.iter().all(has_table) && (!uses.scopes || has_scopes);
        let extensions = &self.extensions;
        let is_there = |name: &Arc<str>| extensions.get(name).is_some_and(|e| !e.versions.is_new());
        let has_extensions = |uses: &Uses| uses.extensions.iter().all(|u| !u.waits || is_there(&u.name));
        for entry in self.listeners.values_mut() {
            let ready = |v: &ListenerVersion| {
                has_routes(&v.uses) && has_extensions(&v.uses) && arrived(&v.uses) && v.uses.tls.iter().all(Waiting::is_ready)
            };
            self.dirty |= entry.versions.promote(now, ready);
        }
        self.forget_unwanted();
        self.settled = self.deadline().is_none();
    }

    fn settle_clusters(&mut self, now: Instant) {
        let ready: Vec<bool> = self
            .clusters
            .values()
            .map(|e| {
                e.versions.warming.as_ref().is_some_and(|w| self.has_members(&w.value) && w.value.uses.tls.iter().all(Waiting::is_ready))
            })
            .collect();
        let mut promoted = Vec::new();
        for ((name, entry), ready) in self.clusters.iter_mut().zip(ready) {
            // The hosts of the version before live on in the next.
            let before = entry.versions.active.as_ref().and_then(|v| v.value.cluster.clone());
            if entry.versions.promote(now, |_| ready) {
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

    /// Clusters that were announced but have never been usable: routes to them wait.
    fn waiting_clusters(&mut self) -> HashSet<ClusterId> {
        let names = &mut self.names;
        self.clusters
            .iter()
            .filter(|(_, e)| e.versions.is_new() && e.versions.warming.is_some())
            .map(|(name, _)| names.cluster(name))
            .collect()
    }

    /// The local cluster has other members: every cluster that goes by zones sees them, with its own as they are.
    fn tell_local_cluster(&mut self) {
        self.dirty = true;
        for entry in self.clusters.values_mut() {
            let Some(cluster) = entry.versions.active.as_mut().and_then(|v| v.value.cluster.as_mut()) else { continue };
            let local = local_cluster(self.zone.as_ref(), &cluster.config);
            if local.is_some() {
                let Cluster { config, hosts, local: _, live } = &**cluster;
                *cluster = Arc::new(Cluster { config: config.clone(), hosts: hosts.clone(), local, live: live.clone() });
            }
        }
    }

    /// [`Self::refresh_members`] of the clusters that find theirs under this name.
    fn refresh_users(&mut self, service: &str) {
        for name in self.users.get(service).cloned().unwrap_or_default() {
            self.refresh_members(&name);
        }
    }

    /// A host that only stayed because it passed its checks fails them.
    pub fn drop_failed(&mut self, cluster: &str, now: Instant) {
        self.refresh_members(cluster);
        self.settle(now);
    }

    /// Makes the published form of a cluster again, with the members of the moment.
    fn refresh_members(&mut self, name: &str) {
        let Self { clusters, endpoints, resolved, live, zone, .. } = self;
        let Some(version) = clusters.get_mut(name).and_then(|e| e.versions.active.as_mut()).map(|v| &mut v.value) else { return };
        let given = version.compiled.members.take();
        let compiled = &version.compiled;
        let config = compiled.config.clone();
        let before = version.cluster.as_ref().map(|c| c.hosts.clone());
        // What a host is by another version's word counts no longer.
        let same = version.cluster.as_ref().is_some_and(|c| Arc::ptr_eq(&c.config, &config));
        let kept = before.as_deref().filter(|_| same && config.keeps_healthy_hosts);
        let hosts = match (&config.discovery, given, &before) {
            // They were made when this version was put to use, and nothing else can change them.
            (Discovery::Static, None, Some(made)) => Arc::clone(made),
            (_, given, before) => {
                Arc::new(members(compiled, given.as_ref(), endpoints, resolved.get(name), &Before { all: before.as_deref(), kept }))
            }
        };
        let live = live.entry(config.name.clone()).or_insert_with(|| Arc::new(ClusterLive { breakers: config.limits.map(Breakers::new) }));
        for (breakers, limits) in live.breakers.iter().zip(config.limits) {
            breakers.set_limits(limits);
        }
        let mut moved = false;
        if let Some(zone) = zone.as_mut().filter(|z| *z.cluster == *name) {
            zone.local = Some(Arc::new(LocalCluster { hosts: Arc::clone(&hosts), locality: zone.locality.clone() }));
            moved = true;
        }
        let local = local_cluster(zone.as_ref(), &config);
        version.cluster = Some(Arc::new(Cluster { config, hosts, local, live: live.clone() }));
        self.renewed.push(self.names.cluster(name));
        if moved {
            self.tell_local_cluster();
        }
    }

    fn forget_unwanted(&mut self) {
        self.refresh_wanted();
        let wanted = self.wanted();
        let Self { routes, endpoints, secrets, extensions, .. } = self;
        // What was subscribed to and is no longer would be stale when it is wanted again.
        let before = routes.len();
        routes.retain(|name, e| e.origin == Origin::Static || wanted.routes.contains(name));
        endpoints.retain(|name, e| e.origin == Origin::Static || wanted.endpoints.contains(name));
        secrets.keep(|key| wanted.secrets.contains(key));
        extensions.retain(|name, e| e.origin == Origin::Static || wanted.extensions.contains(name));
        let fewer = routes.len() != before;
        self.dirty |= fewer;
        self.forget_hosts();
        self.forget_scopes();
        if fewer {
            self.refresh_wanted();
        }
    }

    /// What must be subscribed to. The same value as before when nothing changed.
    pub fn wanted(&self) -> Arc<Wanted> {
        self.wanted.clone()
    }

    fn refresh_wanted(&mut self) {
        let wanted = self.all_wanted();
        if *self.wanted != wanted {
            self.wanted = Arc::new(wanted);
        }
    }

    fn all_wanted(&self) -> Wanted {
        let mut wanted = Wanted { clusters: self.on_demand.clusters.clone(), ..Wanted::default() };
        let name_of = |id: RouteTableId| self.names.route_names().get(id.0 as usize).cloned();
        wanted.routes.clone_from(&self.on_demand.routes);
        for version in self.listeners.values().flat_map(|e| e.versions.all()) {
            wanted.routes.extend(version.value.uses.route_tables.iter().filter_map(|id| name_of(*id)));
            wanted.scopes |= version.value.uses.scopes;
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

    /// When the next resource has waited long enough: call [`Compiler::settle`] then.
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
        self.deadline().is_none()
    }

    /// Names of listeners that wait, with what for, for the operator.
    pub fn waiting(&self) -> Vec<String> {
        let listeners = self.listeners.iter().filter(|(_, e)| e.versions.warming.is_some()).map(|(n, _)| format!("listener {n}"));
        let clusters = self.clusters.iter().filter(|(_, e)| e.versions.warming.is_some()).map(|(n, _)| format!("cluster {n}"));
        let routes = self.routes.iter().filter(|(_, e)| e.versions.warming.is_some()).map(|(n, _)| format!("routes {n}"));
        listeners.chain(clusters).chain(routes).collect()
    }

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
            Kind::Listener => self.listeners.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Route => self.routes.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Cluster => self.clusters.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Endpoint => self.endpoints.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Extension => self.extensions.iter().map(|(n, e)| e.listed(n)).collect(),
            Kind::Scope => self.scopes.iter().map(|(n, e)| e.listed(n)).collect(),
        }
    }

    /// The secrets known, for the admin pages.
    pub fn secrets(&self) -> impl Iterator<Item = (&SecretKey, &SecretValue)> {
        self.secrets.all()
    }

    /// Whether a secret has arrived.
    pub fn knows_secret(&self, key: &SecretKey) -> bool {
        self.secrets.knows(key)
    }
}

impl<T> Entry<T> {
    fn listed<'a>(&'a self, name: &'a str) -> Listed<'a> {
        Listed {
            name,
            origin: self.origin,
            active: self.versions.active.as_ref().map(|v| &v.record),
            warming: self.versions.warming.as_ref().map(|v| &v.record),
            failure: self.failure.as_deref(),
        }
    }

    /// Decodes and compiles an update into the warming version; remembers a failure.
    fn take<M: Message + Name + Default + Send>(
        &mut self,
        update: Update,
        origin: Origin,
        now: Instant,
        compile: impl FnOnce(M, &str) -> Result<T>,
    ) -> Result<()> {
        self.take_sent(update, origin, now, |body, name| compile(decode(body)?, name))
    }

    /// [`Self::take`] for what is not decoded all at once.
    fn take_sent(&mut self, update: Update, origin: Origin, now: Instant, compile: impl FnOnce(&Any, &str) -> Result<T>) -> Result<()> {
        let Update { name, version, body } = update;
        let record = Record { body: Arc::new(body), version: version.into(), updated: SystemTime::now() };
        let result = if self.origin == Origin::Static && origin == Origin::Dynamic {
            Err(Invalid::new("is part of the bootstrap and cannot be replaced; rename one of the two"))
        } else if self.versions.newest().is_some_and(|v| v.record.body == record.body) {
            // The same bytes again: nothing to do, and pointers that tell what changed stay equal.
            self.failure = None;
            return Ok(());
        } else {
            compile(&record.body, &name)
        };
        match result {
            Ok(value) => {
                self.failure = None;
                self.versions.warm(value, record, now);
                Ok(())
            }
            Err(invalid) => {
                let Record { body, version, updated } = record;
                self.failure = Some(Box::new(Failure { body, version, at: updated, reason: invalid.to_string() }));
                Err(invalid)
            }
        }
    }
}

fn decode<M: Message + Name + Default + Send>(body: &Any) -> Result<M> {
    any::open_apart(body).map_err(|e| Invalid::new(e.to_string()))
}

fn same_name(inside: &str, outside: &str) -> Result<()> {
    if inside == outside { Ok(()) } else { Err(Invalid::field("name", format!("is `{inside}`, but the resource was sent as `{outside}`"))) }
}

/// Every named resource keeps its name in field 1.
fn name_inside(body: &Any) -> String {
    #[derive(Clone, PartialEq, prost::Message)]
    struct Named {
        #[prost(string, tag = "1")]
        name: String,
    }
    Named::decode(body.value.as_slice()).map(|n| n.name).unwrap_or_default()
}

fn remove_dynamic<T>(entries: &mut IndexMap<Arc<str>, Entry<T>>, name: &str) -> bool {
    match entries.get(name) {
        Some(entry) if entry.origin == Origin::Dynamic => entries.shift_remove(name).is_some(),
        _ => false,
    }
}

fn forget_if_empty<T>(taken: Result<()>, entries: &mut IndexMap<Arc<str>, Entry<T>>, empty: impl Fn(&Entry<T>) -> bool) -> Result<()> {
    if taken.is_err() {
        entries.retain(|_, e| !empty(e));
    }
    taken
}

/// What a cluster has to know of the local cluster: hash policies and original destinations know no zones.
fn local_cluster(zone: Option<&Zone>, config: &crate::cluster::ClusterConfig) -> Option<Arc<LocalCluster>> {
    let policy = &config.balance.policy;
    zone.and_then(|z| z.local.clone()).filter(|_| !policy.goes_by_hash() && *policy != LbPolicy::OriginalDestination)
}

/// The hosts of a cluster before its members changed.
struct Before<'a> {
    all: Option<&'a HostSet>,
    /// Those that may stay although discovery has them no longer.
    kept: Option<&'a HostSet>,
}

fn members(
    compiled: &Compiled,
    given: Option<&Assignment>,
    endpoints: &HashMap<Arc<str>, Entry<Arc<Assignment>>>,
    resolved: Option<&Resolved>,
    before: &Before<'_>,
) -> HostSet {
    let living = before.all.map(HostSet::by_address).unwrap_or_default();
    match &compiled.config.discovery {
        Discovery::Static => given.map(|given| assigned(compiled, given, None, &living)).unwrap_or_default(),
        Discovery::Eds(service) => match endpoints.get(service).and_then(|e| e.versions.active.as_ref()) {
            Some(version) => assigned(compiled, &version.value, before.kept, &living),
            None => Members::default().build(AssignmentPolicy::default(), compiled.config.balance.subsets.as_deref()),
        },
        Discovery::StrictDns(dns) => resolved_members(compiled, dns, resolved, false, before.kept, &living),
        Discovery::LogicalDns(dns) => resolved_members(compiled, dns, resolved, true, None, &living),
        Discovery::OriginalDst(_) | Discovery::Aggregate(_) | Discovery::DynamicForwardProxy(_) => HostSet::default(),
    }
}

fn assigned(compiled: &Compiled, assignment: &Assignment, kept: Option<&HostSet>, living: &HashMap<&Address, &Arc<Host>>) -> HostSet {
    let mut result = Members::new(compiled.config.balance.subsets.is_some());
    for locality in &assignment.localities {
        for endpoint in &locality.endpoints {
            let EndpointAddress::Fixed(address) = &endpoint.at else { continue };
            let member = Member {
                address: address.clone(),
                addresses: compiled.config.address_order.sort(&endpoint.addresses),
                hostname: endpoint.hostname.clone(),
                weight: endpoint.weight,
                locality: locality.locality.clone(),
                transport: compiled.transport(endpoint.transport_match.as_ref()),
                workload: endpoint.workload.clone(),
                labels: endpoint.labels.clone(),
                hash_key: endpoint.hash_key.clone(),
                flags: endpoint.flags,
                checked_at: endpoint.checked_at.clone(),
                unchecked: compiled.config.unchecked(),
            };
            result.add(locality.priority, &locality.locality, locality.weight, member, living);
        }
    }
    kept.into_iter().for_each(|before| result.keep_healthy(before));
    result.build(assignment.policy, compiled.config.balance.subsets.as_deref())
}

mod resolved;
#[cfg(test)]
mod tests;
