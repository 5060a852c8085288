//! Worker threads: each has its own runtime, sockets, snapshot, pools, balancers and counters.
mod counters;
mod drain;
mod guard;
mod handle;
mod live;
mod logs;
mod overload;
mod peers;
mod queues;
mod wishes;

pub(crate) use counters::Counters;
pub use drain::DrainTime;
pub(crate) use drain::{DRAIN_IDLE, DrainSignal, Registration};
pub(crate) use guard::{poll_guarded, spawn};
pub use handle::{Drain, Sockets, WorkerConfig, WorkerHandle};
pub(crate) use live::Live;
pub use logs::LogFiles;
pub use overload::Overload;
pub(crate) use peers::Handed;
pub use peers::Peers;
pub(crate) use queues::Queues;
pub(crate) use wishes::Discovered;
pub use wishes::{Asked, Wishes};

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::HeaderValue;
use lateen_snapshot::{ClusterId, Snapshot};
use lateen_telemetry::istio::IstioShard;
use lateen_telemetry::{Registry, Shard};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use crate::upstream::{Dialer, Pools};
use handle::Shared;
use logs::LogWriters;

/// How often idle connections are looked over and logs handed on.
const TICK: Duration = Duration::from_secs(1);

/// Everything one worker owns. Shared by its tasks, never with another thread.
pub(crate) struct Worker {
    pub(crate) shard: Shard,
    pub(crate) registry: Arc<Registry>,
    pub(crate) istio: IstioShard,
    pub(crate) dialer: Dialer,
    pub(crate) node: Arc<NodeText>,
    pub(crate) node_headers: NodeHeaders,
    live: RefCell<Rc<Live>>,
    pools: RefCell<HashMap<ClusterId, Rc<Pools>>>,
    rng: RefCell<SmallRng>,
    date: RefCell<(u64, HeaderValue)>,
    /// One moment on both clocks, looked up with every tick: see [`Worker::wall_clock`].
    clocks: Cell<(Instant, SystemTime)>,
    pub(crate) logs: LogWriters,
    pub(crate) listeners: crate::listener::Manager,
    pub(crate) peers: Peers,
    /// Set when the whole process drains.
    pub(crate) drain: Rc<DrainSignal>,
    /// Set while the process fails its health check.
    pub(crate) failing: Rc<DrainSignal>,
    pub(crate) overload: Arc<Overload>,
    /// Of the process itself.
    pub(crate) server: lateen_telemetry::Local,
    /// Of callers' HTTP/2 connections.
    pub(crate) http2: lateen_telemetry::Local,
    connections: Cell<u64>,
    next_connection: Cell<u64>,
    shared: Arc<Shared>,
    pub(crate) wishes: Wishes,
    /// Zero of the millisecond clock that all workers share for outlier detection.
    epoch: std::time::Instant,
}

/// What this proxy tells about itself to peers and collectors, encoded once.
#[derive(Debug, Default)]
pub struct NodeText {
    /// Value of `x-envoy-peer-metadata-id`: the node id.
    pub id: String,
    /// Value of `x-envoy-peer-metadata`; empty when there is none to tell.
    pub metadata: String,
    /// The node's cluster: the service that spans name.
    pub cluster: String,
    pub zone: String,
    /// This workload's own address.
    pub address: Option<std::net::IpAddr>,
}

/// [`NodeText`] as header values.
pub(crate) struct NodeHeaders {
    pub(crate) id: Option<HeaderValue>,
    pub(crate) metadata: Option<HeaderValue>,
}

impl NodeHeaders {
    fn of(text: &NodeText) -> Self {
        let value = |text: &str| HeaderValue::from_str(text).ok().filter(|v| !v.is_empty());
        Self { id: value(&text.id), metadata: value(&text.metadata) }
    }
}

impl Worker {
    fn new(config: WorkerConfig, shared: Arc<Shared>) -> Rc<Self> {
        use lateen_telemetry::BlockName;
        use lateen_telemetry::envoy_names::{http2, server};
        Rc::new(Self {
            server: config.shard.local(&config.registry.block(server::DEFS, BlockName::plain("server"))),
            http2: config.shard.local(&config.registry.block(http2::DEFS, BlockName::plain(""))),
            failing: Rc::default(),
            overload: config.overload,
            shard: config.shard,
            registry: config.registry,
            istio: config.istio,
            dialer: Dialer { mark: config.upstream_mark },
            node_headers: NodeHeaders::of(&config.node),
            node: config.node,
            live: RefCell::new(Rc::new(Live::new(Arc::new(Snapshot::default())))),
            pools: RefCell::default(),
            rng: RefCell::new(SmallRng::from_os_rng()),
            date: RefCell::new((0, HeaderValue::from_static(""))),
            clocks: Cell::new((Instant::now(), SystemTime::now())),
            logs: LogWriters::new(config.logs),
            listeners: crate::listener::Manager::new(config.drain),
            peers: config.peers,
            drain: Rc::new(DrainSignal::default()),
            connections: Cell::new(0),
            next_connection: Cell::new(config.index as u64),
            shared,
            wishes: config.wishes,
            epoch: config.epoch,
        })
    }

    /// The configuration of this moment; a request keeps the one it began with.
    pub(crate) fn live(&self) -> Rc<Live> {
        Rc::clone(&self.live.borrow())
    }

    /// The version of the snapshot in force, as it changes.
    pub(crate) fn applied(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.applied.subscribe()
    }

    pub(crate) fn pools_of(&self, id: ClusterId) -> Rc<Pools> {
        Rc::clone(self.pools.borrow_mut().entry(id).or_default())
    }

    pub(crate) fn roll(&self) -> u32 {
        self.rng.borrow_mut().random()
    }

    pub(crate) fn roll64(&self) -> u64 {
        self.rng.borrow_mut().random()
    }

    pub(crate) fn random_bytes(&self) -> [u8; 16] {
        self.rng.borrow_mut().random()
    }

    /// The time of day at `moment`. A clock that is set is followed within a second.
    pub(crate) fn wall_clock(&self, moment: Instant) -> SystemTime {
        let (then, time) = self.clocks.get();
        time + moment.saturating_duration_since(then)
    }

    /// Milliseconds of the clock that outlier detection compares.
    pub(crate) fn millis(&self) -> u64 {
        self.epoch.elapsed().as_millis() as u64
    }

    /// The same clock in nanoseconds, which token buckets go by.
    pub(crate) fn nanos(&self) -> u64 {
        self.epoch.elapsed().as_nanos() as u64
    }

    /// The `date` header, made once a second.
    pub(crate) fn date(&self, now: SystemTime) -> HeaderValue {
        let seconds = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let mut date = self.date.borrow_mut();
        if date.0 != seconds
            && let Ok(value) = HeaderValue::from_str(&httpdate::fmt_http_date(now))
        {
            *date = (seconds, value);
        }
        date.1.clone()
    }

    /// Counts a connection in; the guard counts it out.
    pub(crate) fn connection(self: &Rc<Self>) -> Connected {
        self.connections.set(self.connections.get() + 1);
        self.shared.connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let id = self.next_connection.get();
        self.next_connection.set(id + self.registry.workers().max(1) as u64);
        Connected { worker: Rc::clone(self), id }
    }

    fn publish(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        let version = snapshot.version;
        let next = Rc::new(Live::after(&self.live.borrow(), Arc::clone(&snapshot)));
        let before = std::mem::replace(&mut *self.live.borrow_mut(), next);
        before.retire(&snapshot);
        // What was in use stays known, or nobody would look after its idle connections.
        before.used().into_iter().for_each(|id| drop(self.live().cluster(self, id)));
        self.pools.borrow_mut().retain(|id, pools| snapshot.cluster(*id).is_some() || Rc::strong_count(pools) > 1);
        self.listeners.apply(self, &snapshot);
        self.shared.applied.send_replace(version);
    }

    fn tick(&self) {
        self.clocks.set((Instant::now(), SystemTime::now()));
        self.live().sweep(Instant::now());
        self.logs.tick();
        self.drain.tick();
        self.listeners.tick();
    }
}

/// A counted connection.
pub(crate) struct Connected {
    worker: Rc<Worker>,
    pub(crate) id: u64,
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.worker.connections.set(self.worker.connections.get() - 1);
        self.worker.shared.connections.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests;
