//! A worker's state of a listener and of its chains.
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;

use lateen_snapshot::Listener;
use lateen_snapshot::listener::{ConnectionRateLimit, FilterChain, Inspectors, Terminal};
use lateen_telemetry::envoy_names::{connection_rate_limit, listener as names, ssl};
use lateen_telemetry::{BlockName, Local};

use crate::filter::Found;
use crate::filter::network::{NetworkFilters, TcpState, limit_stats};
use crate::http::{Hcm, LogSet};
use crate::worker::{DrainSignal, Worker};

/// A listener as one worker serves it.
pub(crate) struct ListenerState {
    pub(crate) listener: Arc<Listener>,
    pub(crate) stats: Local,
    ssl: Local,
    /// As far as connections of all chains are asked to leave; a chain has a signal of its own.
    drain: Rc<DrainSignal>,
    /// Once the next version has taken the chains over that stay, those that go.
    chains: RefCell<HashMap<*const FilterChain, Kept>>,
    /// The next version has taken the others.
    is_succeeded: Cell<bool>,
    /// Logs of its connections, with a chain or without.
    pub(crate) logs: LogSet,
    inspection: RefCell<Rc<Inspection>>,
    /// What stands in the places of listener filters that are discovered.
    inspected: RefCell<Option<Found>>,
    /// Connections from their acceptance on, handed over to another listener or not; of all versions that differ in their chains alone.
    pub(crate) accepted: Rc<Cell<u64>>,
}

/// Listener filters bound to counters.
pub(crate) struct Inspection {
    pub(super) inspectors: Arc<Inspectors>,
    /// Of its limits of connections, in their order.
    limits: Vec<Local>,
}

impl Inspection {
    fn new(worker: &Worker, inspectors: Arc<Inspectors>) -> Self {
        let stats = |limit: &ConnectionRateLimit| limit_stats(worker, BlockName::listener_rate_limit(&limit.stat_prefix));
        Self { limits: inspectors.rate_limits.iter().map(|(_, limit)| stats(limit)).collect(), inspectors }
    }

    /// Whether a connection to this port is let in: every filter is there, and no limit is reached. `now` is the clock of
    /// token buckets.
    pub(super) fn admits(&self, listener: &ListenerState, port: u16, now: u64) -> bool {
        if self.inspectors.discovered.iter().any(|(gate, _)| gate.applies_to(port)) {
            listener.stats.inc(names::EXTENSION_CONFIG_MISSING);
            return false;
        }
        for ((gate, limit), stats) in self.inspectors.rate_limits.iter().zip(&self.limits) {
            if gate.applies_to(port) && !limit.bucket.take(now) {
                stats.inc(connection_rate_limit::RATE_LIMITED);
                return false;
            }
        }
        true
    }
}

/// A chain with its filters bound to counters and logs.
pub(crate) struct ChainState {
    pub(crate) chain: Arc<FilterChain>,
    /// Connections of the chain are to end, by themselves or with those of the whole listener.
    pub(crate) drain: Rc<DrainSignal>,
    pub(crate) filters: NetworkFilters,
    pub(crate) terminal: TerminalState,
}

pub(crate) enum TerminalState {
    Http(Rc<Hcm>),
    Tcp(Rc<TcpState>),
    Direct(bytes::Bytes),
    Echo,
    /// Its configuration is discovered, and has not arrived.
    Missing,
}

/// A chain's state, with what was discovered for its filters.
struct Kept {
    state: Rc<ChainState>,
    /// Holds the address by which it is kept.
    _chain: Arc<FilterChain>,
    found: Option<Found>,
}

impl ListenerState {
    pub(crate) fn new(worker: &Worker, listener: Arc<Listener>) -> Rc<Self> {
        if let Some(balance) = &listener.balance {
            balance.join(worker.shard.index());
        }
        let name = stat_name(&listener);
        let block = worker.registry.block(names::DEFS, BlockName::listener(&name));
        let tls = worker.registry.block(ssl::DEFS, BlockName::listener(&name));
        Rc::new(Self {
            stats: worker.shard.local(&block),
            ssl: worker.shard.local(&tls),
            drain: Rc::default(),
            chains: RefCell::default(),
            is_succeeded: Cell::new(false),
            logs: LogSet::new(worker, &listener.access_logs),
            inspection: RefCell::new(Rc::new(Inspection::new(worker, Arc::clone(&listener.inspectors)))),
            inspected: RefCell::default(),
            accepted: Rc::default(),
            listener,
        })
    }

    /// The next version of a listener of which only chains differ. It takes those over that stay, with their connections.
    pub(super) fn succeed(self: &Rc<Self>, worker: &Worker, listener: Arc<Listener>) -> Rc<Self> {
        let stays: HashSet<_> = listener.all_chains().map(Arc::as_ptr).collect();
        let mut next = Self::new(worker, listener);
        if let Some(next) = Rc::get_mut(&mut next) {
            next.drain = Rc::clone(&self.drain);
            next.accepted = Rc::clone(&self.accepted);
            *next.chains.get_mut() = self.chains.borrow_mut().extract_if(|chain, _| stays.contains(chain)).collect();
        }
        self.is_succeeded.set(true);
        next
    }

    /// The version that connections are for whose chain is not chosen yet.
    pub(super) fn newest(self: Rc<Self>, worker: &Worker) -> Rc<Self> {
        if !self.is_succeeded.get() {
            return self;
        }
        worker.listeners.named(&self.listener.name).filter(|now| Rc::ptr_eq(&now.drain, &self.drain)).unwrap_or_else(|| {
            worker.listeners.follow(&self);
            self
        })
    }

    /// Has all connections end.
    pub(crate) fn drain(&self, how: impl Fn(&DrainSignal)) {
        how(&self.drain);
        self.drain_chains(how);
    }

    /// Has the connections end that no other version has.
    pub(super) fn leave(&self, how: impl Fn(&DrainSignal)) {
        if self.is_succeeded.get() { self.drain_chains(how) } else { self.drain(how) }
    }

    fn drain_chains(&self, how: impl Fn(&DrainSignal)) {
        self.chains.borrow().values().for_each(|kept| how(&kept.state.drain));
    }

    /// Whether every connection that leaves was told to; then nothing of its chains needs to be kept for them.
    pub(super) fn was_told(&self) -> bool {
        let mut chains = self.chains.borrow_mut();
        let told = chains.values().all(|kept| kept.state.drain.is_draining()) && (self.is_succeeded.get() || self.drain.is_draining());
        if told {
            chains.clear();
        }
        told
    }

    /// Whether any of its chains has connections.
    pub(super) fn has_connections(&self) -> bool {
        let has = |state: &Rc<ChainState>| Rc::strong_count(state) > 1 || Rc::strong_count(&state.drain) > 1;
        self.chains.borrow().values().any(|kept| has(&kept.state))
    }

    /// What a connection is looked at for.
    pub(super) fn inspection(&self, worker: &Worker) -> Rc<Inspection> {
        if self.listener.inspectors.discovered.is_empty() {
            return Rc::clone(&self.inspection.borrow());
        }
        let live = worker.live();
        let mut inspection = self.inspection.borrow_mut();
        let is_current = self.inspected.borrow_mut().as_mut().is_some_and(|found| found.is_current(&live.snapshot));
        if !is_current {
            let found = Found::new(&live.snapshot, self.listener.inspectors.discovered.iter().map(|(_, place)| place.id));
            *inspection = Rc::new(Inspection::new(worker, Arc::new(self.listener.inspectors.resolve(|id| found.get(id)))));
            *self.inspected.borrow_mut() = Some(found);
        }
        Rc::clone(&inspection)
    }

    pub(crate) fn ssl(&self) -> &Local {
        &self.ssl
    }

    /// The chain's state, made at its first connection, and again when what is discovered for its filters has changed.
    /// Connections that are open keep theirs.
    pub(crate) fn chain(&self, worker: &Rc<Worker>, chain: &Arc<FilterChain>) -> Rc<ChainState> {
        let mut chains = self.chains.borrow_mut();
        let before = chains.get_mut(&Arc::as_ptr(chain));
        if let Some(Kept { state, found, .. }) = before {
            let Some(found) = found else { return Rc::clone(state) };
            if found.is_current(&worker.live().snapshot) {
                return Rc::clone(state);
            }
        }
        let kept = self.resolved(worker, chain, chains.get(&Arc::as_ptr(chain)).map(|kept| &kept.state));
        let state = Rc::clone(&kept.state);
        chains.insert(Arc::as_ptr(chain), kept);
        state
    }

    fn resolved(&self, worker: &Rc<Worker>, chain: &Arc<FilterChain>, before: Option<&Rc<ChainState>>) -> Kept {
        let drain = before.map_or_else(|| Rc::new(DrainSignal::like(&self.drain)), |before| Rc::clone(&before.drain));
        let state = |chain| Rc::new(ChainState::new(worker, &self.listener, chain, drain));
        if chain.discovered().next().is_none() {
            return Kept { state: state(Arc::clone(chain)), _chain: Arc::clone(chain), found: None };
        }
        let found = Found::new(&worker.live().snapshot, chain.discovered());
        let now = chain.resolve(|id| found.get(id), self.listener.direction.is_source());
        Kept { state: state(Arc::new(now)), _chain: Arc::clone(chain), found: Some(found) }
    }
}

impl ChainState {
    fn new(worker: &Rc<Worker>, listener: &Listener, chain: Arc<FilterChain>, drain: Rc<DrainSignal>) -> Self {
        let terminal = match &chain.terminal {
            Terminal::Http(config) => TerminalState::Http(Hcm::new(worker, listener, Arc::clone(config))),
            Terminal::Tcp(config) => TerminalState::Tcp(TcpState::new(worker, Arc::clone(config))),
            Terminal::DirectResponse(bytes) => TerminalState::Direct(bytes.clone()),
            Terminal::Echo => TerminalState::Echo,
            Terminal::Discovered(_) => TerminalState::Missing,
        };
        let filters = NetworkFilters::new(worker, &chain);
        Self { filters, chain, drain, terminal }
    }
}

/// Envoy names a listener's metrics by its address unless it has a prefix.
pub(crate) fn stat_name(listener: &Listener) -> String {
    if !listener.stat_prefix.is_empty() {
        return listener.stat_prefix.to_string();
    }
    listener.addresses.first().map_or_else(|| listener.name.to_string(), ToString::to_string)
}
