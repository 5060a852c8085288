//! One worker's view of a cluster: its balancer, its counters, its pools.
mod reports;
mod target;
mod upkeep;

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lateen_balance::balancer::{Balancer, Tally};
use lateen_balance::{Address, Aggregate, Breakers, Choice, Context, Host, Priority};
use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::dns::cache::DnsCache;
use lateen_snapshot::{Cluster, ClusterId};
use lateen_telemetry::envoy_names::{
    cluster as names, health_check as check_names, outlier as outlier_names, subsets as subset_names, zones as zone_names,
};
use lateen_telemetry::istio::{DestinationId, PeerId};
use lateen_telemetry::stats::Counter;
use lateen_telemetry::{BlockName, Local};

pub(crate) use self::target::{Target, TargetWish};
use super::ahead::Foreseen;
use super::named::NamedHosts;
use super::pool::{Pool, PoolKey, Wanted};
use super::watch::AllWatched;
use crate::worker::Worker;

/// Pools by address: they outlive updates of the cluster, so that no update costs a connection.
#[derive(Default)]
pub(crate) struct Pools {
    by_address: RefCell<HashMap<Address, Rc<HostPools>>>,
    /// Hosts made up for original destinations.
    dynamic: RefCell<HashMap<SocketAddr, Arc<Host>>>,
    watched: AllWatched,
}

/// The pools of one address; nearly always one.
#[derive(Default)]
pub(crate) struct HostPools(RefCell<Vec<Rc<Pool>>>);

impl HostPools {
    fn pool(&self, key: PoolKey) -> Rc<Pool> {
        let mut pools = self.0.borrow_mut();
        if let Some(pool) = pools.iter().find(|p| p.key == key) {
            return Rc::clone(pool);
        }
        let pool = Pool::new(key);
        pools.push(Rc::clone(&pool));
        pool
    }
}

/// More destinations than this at once are not remembered between connections.
const MOST_DYNAMIC_HOSTS: usize = 10_000;

/// Where an exchange went.
struct Last {
    host: *const Host,
    wanted: Wanted,
    pool: Rc<Pool>,
    /// One that came with a request and was forgotten would leave its address in memory to another. The cluster keeps others.
    _dynamic: Option<Arc<Host>>,
}

/// The cluster as one worker uses it.
pub(crate) struct ClusterState {
    pub(crate) id: ClusterId,
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) stats: Local,
    balancer: RefCell<Balancer>,
    /// Whether a choice depends on the time of day.
    needs_time: bool,
    pub(super) foreseen: Foreseen,
    /// Counters of subsets, where the cluster is divided.
    subsets: Option<Local>,
    /// Counters of zone-aware routing, where there is a local cluster.
    zones: Option<Local>,
    /// The choice among members, where the cluster stands for several.
    pub(super) aggregate: RefCell<Option<Box<Aggregate>>>,
    pools: Rc<Pools>,
    /// Hosts that requests named, as the cache of this configuration knows them.
    named: NamedHosts,
    by_host: RefCell<HashMap<*const Host, Rc<HostPools>>>,
    /// The single pool most clusters ever use: that of the last exchange.
    last: RefCell<Option<Last>>,
    pub(crate) istio_destination: Cell<Option<DestinationId>>,
    /// Counters of outlier detection, where it is configured.
    outlier: Option<Local>,
    /// Counters of active health checks, where there are any.
    checks: Option<Local>,
    /// Whether a response may say how its host is.
    listens: bool,
    pub(crate) grpc: crate::filter::http::grpc_stats::Counters,
    /// Members by address as text, made when first asked for.
    by_text: OnceCell<HashMap<String, Arc<Host>>>,
    /// Counters of filters that decide about requests for this cluster.
    pub(crate) counters: crate::worker::Counters,
    /// Workloads behind endpoints, as interned for Istio's metrics.
    peers: RefCell<HashMap<*const Host, PeerId>>,
}

/// What a connection or request says of where it wants to go, for clusters that have no hosts of their own.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sought<'a> {
    /// Where the connection went to before it was captured, or what stands in its place.
    pub(crate) original: Option<SocketAddr>,
    /// The host that a request, or the server name of a connection, names.
    pub(crate) authority: &'a str,
    /// The port where that has none, instead of the cluster's.
    pub(crate) port: Option<u16>,
}

impl ClusterState {
    pub(crate) fn new(worker: &Worker, id: ClusterId, cluster: Arc<Cluster>, pools: Rc<Pools>, seed: u64) -> Rc<Self> {
        let block = worker.registry.block(names::DEFS, BlockName::cluster(&cluster.config.stat_name));
        let balancer = Balancer::new(Arc::clone(&cluster.hosts), cluster.local.clone(), &cluster.config.balance, seed);
        let counters = |defs| worker.shard.local(&worker.registry.block(defs, BlockName::cluster(&cluster.config.stat_name)));
        let subsets = cluster.config.balance.subsets.is_some().then(|| counters(subset_names::DEFS));
        let zones = cluster.local.is_some().then(|| counters(zone_names::DEFS));
        let outlier = cluster.config.outlier.is_some().then(|| counters(outlier_names::DEFS));
        let checks = cluster.config.health_check.is_some().then(|| counters(check_names::DEFS));
        let listens = checks.is_some() || cluster.config.outlier.as_ref().is_some_and(|s| s.detect_degraded_hosts);
        Rc::new(Self {
            id,
            stats: worker.shard.local(&block),
            needs_time: balancer.needs_time(),
            balancer: RefCell::new(balancer),
            foreseen: Foreseen::default(),
            subsets,
            zones,
            aggregate: RefCell::default(),
            cluster,
            pools,
            named: NamedHosts::default(),
            by_host: RefCell::default(),
            last: RefCell::default(),
            istio_destination: Cell::new(None),
            outlier,
            checks,
            listens,
            grpc: Default::default(),
            by_text: OnceCell::new(),
            counters: Default::default(),
            peers: RefCell::default(),
        })
    }

    pub(crate) fn breakers(&self, high_priority: bool) -> &Breakers {
        let [normal, high] = &self.cluster.live.breakers;
        if high_priority { high } else { normal }
    }

    /// Whether the host has all the connections that it may have, over all workers.
    pub(crate) fn host_is_full(&self, host: &Host, high_priority: bool) -> bool {
        let [normal, high] = self.cluster.config.per_host_connections;
        let most = if high_priority { high } else { normal };
        most != u32::MAX && host.counters.cx_active.load(Relaxed) >= u64::from(most)
    }

    /// The workload behind a host, from its metadata.
    pub(crate) fn peer_of(&self, worker: &Worker, host: &Arc<Host>) -> PeerId {
        if host.workload.is_none() {
            return PeerId::default();
        }
        let mut peers = self.peers.borrow_mut();
        *peers.entry(Arc::as_ptr(host)).or_insert_with(|| crate::http::endpoint_peer(worker, host.workload.as_deref()))
    }

    /// A host by the cluster's policy.
    pub(super) fn choose(&self, worker: &Worker, context: &Context<'_>, sought: &Sought<'_>) -> Option<Arc<Host>> {
        match &self.cluster.config.discovery {
            Discovery::OriginalDst(settings) => {
                let mut address = sought.original?;
                if let Some(port) = settings.port {
                    address.set_port(port);
                }
                return Some(self.dynamic_host(address));
            }
            Discovery::DynamicForwardProxy(cache) => {
                let port = sought.port.or(self.cluster.config.default_port())?;
                return self.named.host(cache, sought.authority, port);
            }
            _ => {}
        }
        if self.cluster.config.predictive_preconnect_ratio > 1.0
            && let Some(host) = self.foreseen.take(context)
        {
            return Some(host);
        }
        self.choose_now(worker, context)
    }

    /// The host whose turn it is.
    pub(super) fn choose_now(&self, worker: &Worker, context: &Context<'_>) -> Option<Arc<Host>> {
        let mut balancer = self.balancer.borrow_mut();
        let choice =
            if self.needs_time { balancer.choose(&Context { now: worker.millis(), ..*context }) } else { balancer.choose(context) };
        if let Some(tally) = balancer.take_tally() {
            self.count_choices(&tally);
        }
        match choice {
            Choice::Host(host) => Some(host),
            Choice::NoHealthyHost => None,
        }
    }

    /// The priorities that a request may go past, of all members where the cluster is an aggregate.
    pub(crate) fn with_priorities<T>(&self, look: impl FnOnce(&[&Priority]) -> T) -> T {
        match &*self.aggregate.borrow() {
            Some(aggregate) => look(&aggregate.priorities().collect::<Vec<_>>()),
            None => look(&self.cluster.hosts.priorities.iter().collect::<Vec<_>>()),
        }
    }

    /// Which of [`Self::with_priorities`] a host is in.
    pub(crate) fn priority_of(&self, host: &Arc<Host>) -> Option<usize> {
        match &*self.aggregate.borrow() {
            Some(aggregate) => aggregate.priority_of(host),
            None => self.cluster.hosts.priority_of(host),
        }
    }

    /// Whether the cluster has subsets: only then a request's metadata matters.
    pub(crate) fn is_divided(&self) -> bool {
        self.subsets.is_some()
    }

    fn count_choices(&self, tally: &Tally) {
        use {subset_names as s, zone_names as z};
        let add = |stats: &Local, counted: &[(Counter, u32)]| counted.iter().for_each(|(name, n)| stats.add(*name, (*n).into()));
        add(&self.stats, &[(names::LB_HEALTHY_PANIC, tally.healthy_panic)]);
        if let Some(stats) = &self.zones {
            add(stats, &[(z::RECALCULATE_ZONE_STRUCTURES, tally.recalculate_zone_structures)]);
            add(stats, &[(z::LOCAL_CLUSTER_NOT_OK, tally.local_cluster_not_ok), (z::ZONE_CLUSTER_TOO_SMALL, tally.zone_cluster_too_small)]);
            add(stats, &[(z::ZONE_NO_CAPACITY_LEFT, tally.zone_no_capacity_left)]);
            add(stats, &[(z::ZONE_ROUTING_ALL_DIRECTLY, tally.zone_routing_all_directly)]);
            add(
                stats,
                &[(z::ZONE_ROUTING_CROSS_ZONE, tally.zone_routing_cross_zone), (z::ZONE_ROUTING_SAMPLED, tally.zone_routing_sampled)],
            );
        }
        if let Some(stats) = &self.subsets {
            add(stats, &[(s::SELECTED, tally.subsets_selected), (s::FALLBACK, tally.subsets_fallback)]);
            add(stats, &[(s::FALLBACK_PANIC, tally.subsets_fallback_panic)]);
        }
    }

    /// The member at an address, as text.
    pub(crate) fn host_at(&self, address: &str) -> Option<Arc<Host>> {
        let all = self.by_text.get_or_init(|| self.cluster.hosts.hosts().map(|h| (h.address.to_string(), Arc::clone(h))).collect());
        all.get(address).cloned()
    }

    fn dynamic_host(&self, address: SocketAddr) -> Arc<Host> {
        let mut hosts = self.pools.dynamic.borrow_mut();
        if let Some(host) = hosts.get(&address) {
            return Arc::clone(host);
        }
        if hosts.len() >= MOST_DYNAMIC_HOSTS {
            hosts.clear();
        }
        let host = Arc::new(Host::new(Address::Socket(address)));
        hosts.insert(address, Arc::clone(&host));
        host
    }

    /// Where the names are resolved that requests bring along, if they do.
    pub(crate) fn dns_cache(&self) -> Option<&Arc<DnsCache>> {
        match &self.cluster.config.discovery {
            Discovery::DynamicForwardProxy(cache) => Some(cache),
            _ => None,
        }
    }

    /// Whether a request for this name need not ask the cache that all workers share.
    pub(crate) fn knows(&self, cache: &Arc<DnsCache>, authority: &str, default_port: u16) -> bool {
        self.dns_cache().is_some_and(|own| Arc::ptr_eq(own, cache)) && self.named.host(cache, authority, default_port).is_some()
    }

    /// Whether the hosts are no members, but come with requests.
    fn is_dynamic(&self) -> bool {
        matches!(self.cluster.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForwardProxy(_))
    }

    fn host_pools(&self, host: &Arc<Host>) -> Rc<HostPools> {
        if self.is_dynamic() {
            return Rc::clone(self.pools.by_address.borrow_mut().entry(host.address.clone()).or_default());
        }
        // The cluster keeps its hosts alive, so an address of a host means that host.
        let mut by_host = self.by_host.borrow_mut();
        let entry = by_host.entry(Arc::as_ptr(host));
        Rc::clone(entry.or_insert_with(|| Rc::clone(self.pools.by_address.borrow_mut().entry(host.address.clone()).or_default())))
    }
}
