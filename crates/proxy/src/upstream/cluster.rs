//! One worker's view of a cluster: its balancer, its counters, its pools.
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::HeaderMap;
use lateen_balance::balancer::{Balancer, Tally};
use lateen_balance::by_load::ByLoad;
use lateen_balance::outlier::{self, Detection, Detector, Ejection, Outcome};
use lateen_balance::{Address, Aggregate, Breakers, Choice, Context, Host, LbPolicy, Priority};
use lateen_snapshot::cluster::{Discovery, UpstreamHttp};
use lateen_snapshot::dns::cache::DnsCache;
use lateen_snapshot::http::AlpnOverrides;
use lateen_snapshot::{Cluster, ClusterId};
use lateen_telemetry::envoy_names::{
    cluster as names, health_check as check_names, outlier as outlier_names, subsets as subset_names, zones as zone_names,
};
use lateen_telemetry::istio::{DestinationId, PeerId};
use lateen_telemetry::stats::Counter;
use lateen_telemetry::{BlockName, Local};
use tokio::time::Instant;

use super::ahead::Foreseen;
use super::caller::{Caller, Needs};
use super::connect::ConnectPlan;
use super::named::NamedHosts;
use super::pool::{Pool, PoolKey, Wanted, tls_id};
use super::watch::{AllWatched, Watched};
use crate::http::headers::{DEGRADED, IMMEDIATE_HEALTH_CHECK_FAIL};
use crate::http::message::Version;
use crate::listener::Conn;
use crate::worker::Worker;

/// Pools by address: they outlive updates of the cluster, so that no update costs a connection.
#[derive(Default)]
pub(crate) struct Pools {
    by_address: RefCell<HashMap<Address, Rc<HostPools>>>,
    /// Hosts made up for original destinations.
    dynamic: RefCell<HashMap<SocketAddr, Arc<Host>>>,
    /// Hosts that requests named.
    named: NamedHosts,
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
    by_host: RefCell<HashMap<*const Host, Rc<HostPools>>>,
    /// The single pool most clusters ever use: host, key parts and pool of the last exchange.
    last: RefCell<Option<(*const Host, usize, Rc<Pool>)>>,
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

/// Where an exchange goes.
pub(crate) struct Target {
    pub(crate) host: Arc<Host>,
    pub(crate) pool: Rc<Pool>,
    pub(crate) plan: ConnectPlan,
}

/// What decides about transport and protocol, beside the host.
pub(crate) struct TargetWish<'a> {
    pub(crate) downstream: Version,
    pub(crate) alpn: Option<&'a Arc<AlpnOverrides>>,
    pub(crate) authority: &'a str,
    pub(crate) upgrade: bool,
    /// The caller's connection.
    pub(crate) conn: Option<&'a Conn>,
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

    /// Tells outlier detection how a connection attempt went, where nothing more will be known.
    pub(crate) fn report_connect(&self, worker: &Worker, host: &Arc<Host>, connected: bool) {
        let outcome = if connected { Outcome::LocalSuccessFinal } else { Outcome::LocalFailure };
        self.report(worker, host, outcome);
    }

    /// Tells outlier detection how an exchange went.
    pub(crate) fn report(&self, worker: &Worker, host: &Arc<Host>, outcome: Outcome) {
        let Some(settings) = &self.cluster.config.outlier else { return };
        if let Some(detection) = outlier::report(settings, &self.cluster.hosts, host, outcome, worker.millis(), worker.roll()) {
            self.count_detection(&detection);
        }
    }

    /// Tells outlier detection that there is a connection for an exchange, where that is told apart from its answer.
    pub(crate) fn report_reached(&self, worker: &Worker, host: &Arc<Host>) {
        if self.cluster.config.outlier.as_ref().is_some_and(|s| s.split_external_local_origin_errors) {
            self.report(worker, host, Outcome::LocalSuccess);
        }
    }

    /// Takes note of how long an answer took, or what it says of its host's load, where the policy goes by that and nothing of the
    /// request's answers has told it yet.
    pub(crate) fn report_answer(&self, worker: &Worker, host: &Host, took: Duration, headers: &HeaderMap, told: &mut bool) {
        match &self.cluster.config.balance.policy {
            LbPolicy::PeakEwma(settings) => host.latency.observe(settings, took.as_secs_f64() * 1_000.0, worker.nanos()),
            LbPolicy::ByLoad(settings) => observe_load(settings, worker, host, headers, told),
            _ => {}
        }
    }

    /// The same of what trailers say of their host's load.
    pub(crate) fn report_trailers(&self, worker: &Worker, host: &Host, trailers: &HeaderMap, told: &mut bool) {
        if let LbPolicy::ByLoad(settings) = &self.cluster.config.balance.policy {
            observe_load(settings, worker, host, trailers, told);
        }
    }

    /// Whether responses may say how their host is: see [`Self::listen`].
    pub(crate) fn listens(&self) -> bool {
        self.listens
    }

    /// Takes note of what a response says of its host: that it is degraded, or fails its health checks.
    pub(crate) fn listen(&self, worker: &Worker, host: &Arc<Host>, headers: &HeaderMap) {
        if let Some(settings) = self.cluster.config.outlier.as_ref().filter(|s| s.detect_degraded_hosts)
            && headers.contains_key(&DEGRADED)
            && outlier::degraded(settings, &self.cluster.hosts, host, worker.millis())
        {
            tracing::info!("{} of {} says that it is degraded", host.address, self.cluster.config.name);
        }
        let is_checked = || !host.checked_at.as_ref().is_some_and(|c| c.disabled);
        if let Some(checks) = &self.checks
            && headers.contains_key(&IMMEDIATE_HEALTH_CHECK_FAIL)
            && is_checked()
        {
            checks.inc(check_names::FAILURE);
            checks.inc(check_names::PASSIVE_FAILURE);
            if host.fail_at_once() {
                self.cluster.hosts.health_changed();
            }
        }
    }

    /// Counts what outlier detection found.
    fn count_detection(&self, detection: &Detection) {
        use outlier_names as n;
        let Some(stats) = &self.outlier else { return };
        let enforced = detection.result == Ejection::Ejected;
        let (detected, by_kind) = match detection.detector {
            Detector::Consecutive5xx => (n::EJECTIONS_DETECTED_CONSECUTIVE_5XX, n::EJECTIONS_ENFORCED_CONSECUTIVE_5XX),
            Detector::ConsecutiveGatewayFailure => {
                (n::EJECTIONS_DETECTED_CONSECUTIVE_GATEWAY_FAILURE, n::EJECTIONS_ENFORCED_CONSECUTIVE_GATEWAY_FAILURE)
            }
            Detector::ConsecutiveLocalOriginFailure => {
                (n::EJECTIONS_DETECTED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE, n::EJECTIONS_ENFORCED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE)
            }
            // Found by the main thread's tick, and counted there.
            Detector::SuccessRate
            | Detector::FailurePercentage
            | Detector::LocalOriginSuccessRate
            | Detector::LocalOriginFailurePercentage => return,
        };
        stats.inc(detected);
        if enforced {
            stats.inc(by_kind);
            stats.inc(n::EJECTIONS_ENFORCED_TOTAL);
            tracing::info!("outlier detection took {} out of {}", detection.host.address, self.cluster.config.name);
        } else if detection.result == Ejection::Overflow {
            stats.inc(n::EJECTIONS_OVERFLOW);
        }
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
                return self.pools.named.host(cache, sought.authority, port);
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

    /// The pool for an exchange with `host`.
    pub(crate) fn target(&self, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        let config = &self.cluster.config;
        let wanted = match &config.http {
            UpstreamHttp::Http1 => Wanted::Http1,
            UpstreamHttp::Http2(_) => Wanted::Http2,
            // An upgrade of an HTTP/1 caller stays HTTP/1.
            UpstreamHttp::Downstream(_) if wish.downstream == Version::Http2 => Wanted::Http2,
            UpstreamHttp::Downstream(_) => Wanted::Http1,
            UpstreamHttp::Auto(_) if wish.upgrade => Wanted::Http1,
            UpstreamHttp::Auto(_) => Wanted::Auto,
        };
        self.target_speaking(wanted, host, wish)
    }

    /// Where the bytes of a tunnel go as they are.
    pub(crate) fn tcp_target(&self, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        self.target_speaking(Wanted::Tcp, host, wish)
    }

    fn target_speaking(&self, wanted: Wanted, host: Arc<Host>, wish: &TargetWish<'_>) -> Target {
        let config = &self.cluster.config;
        let transport = config.transports.get(host.transport as usize);
        let needs = Needs { proxied: transport.is_some_and(|t| t.proxy_protocol.is_some()), own_pool: config.pool_per_downstream };
        let caller = Caller::of(wish.conn, needs);
        let Some(tls) = transport.and_then(|t| t.tls.as_ref()) else {
            let named = matches!(config.discovery, Discovery::DynamicForwardProxy(_)).then(|| Arc::clone(&host.hostname));
            if caller.is_some() || named.is_some() {
                let key = PoolKey { tls: 0, alpn: 0, server_name: named, wanted, caller: caller.clone() };
                let pool = self.host_pools(&host).pool(key);
                return Target { host, pool, plan: ConnectPlan { caller, ..ConnectPlan::default() } };
            }
            let token = wanted as usize;
            if let Some((last, last_token, pool)) = &*self.last.borrow()
                && *last == Arc::as_ptr(&host)
                && *last_token == token
            {
                return Target { host, pool: Rc::clone(pool), plan: ConnectPlan::default() };
            }
            let key = PoolKey { tls: 0, alpn: 0, server_name: None, wanted, caller: None };
            let pool = self.host_pools(&host).pool(key);
            *self.last.borrow_mut() = Some((Arc::as_ptr(&host), token, Rc::clone(&pool)));
            return Target { host, pool, plan: ConnectPlan::default() };
        };
        let server_name = (tls.sni.is_none() && tls.auto_sni).then(|| Arc::from(wish.authority));
        let (alpn_id, alpn) = alpn_offer(wish, wanted, &tls.alpn);
        let key = PoolKey { tls: tls_id(transport), alpn: alpn_id, server_name: server_name.clone(), wanted, caller: caller.clone() };
        let pool = self.host_pools(&host).pool(key);
        Target { host, pool, plan: ConnectPlan { alpn, server_name, caller } }
    }

    /// The exchanges that have a connection or wait for one, and how many could have one, to all hosts.
    pub(super) fn used(&self) -> (usize, usize) {
        let by_address = self.pools.by_address.borrow();
        let mut sum = (0, 0);
        for pools in by_address.values() {
            for pool in pools.0.borrow().iter() {
                let (exchanges, room) = pool.used(&self.cluster.config);
                sum = (sum.0 + exchanges, usize::saturating_add(sum.1, room));
            }
        }
        sum
    }

    /// To be held while a connection to the host is open, where it ends when the host fails.
    pub(crate) fn watch(&self, host: &Arc<Host>) -> Option<Rc<Watched>> {
        self.cluster.config.close_on_host_failure.then(|| self.pools.watched.add(host))
    }

    /// Closes what is idle for too long or goes to a host that failed, forgets addresses that nobody uses.
    pub(crate) fn sweep(&self, now: Instant) {
        self.pools.named.sweep();
        self.pools.watched.sweep();
        let config = &self.cluster.config;
        let mut empty = Vec::new();
        let all: Vec<(Address, Rc<HostPools>)> =
            self.pools.by_address.borrow().iter().map(|(address, pools)| (address.clone(), Rc::clone(pools))).collect();
        for (address, host_pools) in all {
            let pools = host_pools.0.borrow().clone();
            // Every pool is swept, also behind one that is in use.
            let mut unused = true;
            for pool in &pools {
                if pool.key.caller.as_ref().is_some_and(Caller::has_left) {
                    pool.retire();
                }
                let empty = pool.sweep(config, &self.stats, now);
                unused &= empty;
                // Each caller or name has its own here, and few come back. One that an exchange still holds stays.
                if empty && (pool.key.caller.is_some() || pool.key.server_name.is_some()) && Rc::strong_count(pool) <= 2 {
                    host_pools.0.borrow_mut().retain(|other| !Rc::ptr_eq(other, pool));
                }
            }
            if unused && !self.cluster.hosts.hosts().any(|h| h.address == address) {
                empty.push(address);
            }
        }
        if !empty.is_empty() {
            let mut by_address = self.pools.by_address.borrow_mut();
            let mut dynamic = self.pools.dynamic.borrow_mut();
            for address in empty {
                by_address.remove(&address);
                if let Address::Socket(address) = address {
                    dynamic.remove(&address);
                }
            }
        }
    }

    /// After an update: pools of hosts that left, and of transports that changed, take no more exchanges.
    pub(crate) fn replaced_by(&self, next: Option<&Arc<Cluster>>) {
        let all: Vec<(Address, Rc<HostPools>)> =
            self.pools.by_address.borrow().iter().map(|(address, pools)| (address.clone(), Rc::clone(pools))).collect();
        let members = next.map(|n| n.hosts.by_address());
        let all_go = members.as_ref().is_some_and(|members| {
            next.is_some_and(|n| n.config.close_on_host_set_change) && differ(&self.cluster.hosts.by_address(), members)
        });
        let transports: Vec<usize> = next.map(|n| n.config.transports.iter().map(|t| tls_id(Some(t))).collect()).unwrap_or_default();
        for (address, host_pools) in all {
            // Connections to hosts that come with requests outlive the change as long as they come.
            let dynamic = next.is_some() && self.is_dynamic();
            let stays = dynamic || members.as_ref().is_some_and(|m| m.contains_key(&address));
            for pool in host_pools.0.borrow().iter() {
                if !stays || all_go || (pool.key.tls != 0 && !transports.contains(&pool.key.tls)) {
                    pool.retire();
                }
            }
        }
    }
}

/// A request has one report, as in Envoy: the first that makes sense, whichever try it is of.
fn observe_load(settings: &ByLoad, worker: &Worker, host: &Host, headers: &HeaderMap, told: &mut bool) {
    if *told {
        return;
    }
    if let Some(report) = super::load_report::find(headers) {
        *told = true;
        settings.observe(host, &report, worker.millis());
    }
}

/// Whether a host came or went.
fn differ(before: &HashMap<&Address, &Arc<Host>>, after: &HashMap<&Address, &Arc<Host>>) -> bool {
    before.len() != after.len() || before.keys().any(|address| !after.contains_key(address))
}

static HTTP1: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"http/1.1".to_vec()]));
static HTTP2: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"h2".to_vec()]));
static EITHER: LazyLock<Arc<Vec<Vec<u8>>>> = LazyLock::new(|| Arc::new(vec![b"h2".to_vec(), b"http/1.1".to_vec()]));

/// The ALPN to offer: the filter's override by upstream protocol, else what the context says, else the protocol's own.
fn alpn_offer(wish: &TargetWish<'_>, wanted: Wanted, configured: &[Vec<u8>]) -> (usize, Option<Arc<Vec<Vec<u8>>>>) {
    if let Some(overrides) = wish.alpn.filter(|_| wanted != Wanted::Tcp) {
        let list = match (wanted, wish.downstream) {
            (Wanted::Http2, _) => &overrides.http2,
            (_, Version::Http10) if !overrides.http10.is_empty() => &overrides.http10,
            _ => &overrides.http11,
        };
        if !list.is_empty() {
            return (Arc::as_ptr(list) as usize, Some(Arc::clone(list)));
        }
    }
    if !configured.is_empty() || wanted == Wanted::Tcp {
        return (0, None);
    }
    let fallback = match wanted {
        Wanted::Http1 => &HTTP1,
        Wanted::Http2 => &HTTP2,
        Wanted::Auto | Wanted::Tcp => &EITHER,
    };
    (0, Some(Arc::clone(fallback)))
}
