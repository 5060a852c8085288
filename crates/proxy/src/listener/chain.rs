//! A worker's state of a listener and of its chains.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use lateen_snapshot::Listener;
use lateen_snapshot::listener::{ConnectionRateLimit, Direction, FilterChain, Inspectors, Terminal};
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
    pub(crate) drain: Rc<DrainSignal>,
    chains: RefCell<HashMap<*const FilterChain, Kept>>,
    /// Logs of connections without a chain.
    pub(crate) logs: LogSet,
    inspection: RefCell<Rc<Inspection>>,
    /// What stands in the places of listener filters that are discovered.
    inspected: RefCell<Option<Found>>,
    pub(crate) active: Cell<u64>,
    /// Connections from their acceptance on, handed over to another listener or not.
    pub(crate) accepted: Cell<u64>,
}

/// Listener filters bound to counters.
pub(crate) struct Inspection {
    pub(super) inspectors: Arc<Inspectors>,
    /// Of its limits of connections, in their order.
    limits: Vec<Local>,
}

impl Inspection {
    fn new(worker: &Worker, inspectors: Arc<Inspectors>) -> Self {
        let stats = |limit: &ConnectionRateLimit| limit_stats(worker, "listener_local_ratelimit", &limit.stat_prefix);
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
            logs: LogSet::new(worker, &listener.access_logs),
            inspection: RefCell::new(Rc::new(Inspection::new(worker, Arc::clone(&listener.inspectors)))),
            inspected: RefCell::default(),
            active: Cell::new(0),
            accepted: Cell::new(0),
            listener,
        })
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
        if let Some(Kept { state, found }) = before {
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
        if chain.discovered().next().is_none() {
            return Kept { state: Rc::new(ChainState::new(worker, &self.listener, Arc::clone(chain), before)), found: None };
        }
        let found = Found::new(&worker.live().snapshot, chain.discovered());
        let now = chain.resolve(|id| found.get(id), self.listener.direction == Direction::Outbound);
        Kept { state: Rc::new(ChainState::new(worker, &self.listener, Arc::new(now), before)), found: Some(found) }
    }
}

impl ChainState {
    fn new(worker: &Rc<Worker>, listener: &Listener, chain: Arc<FilterChain>, before: Option<&Rc<Self>>) -> Self {
        let terminal = match &chain.terminal {
            Terminal::Http(config) => TerminalState::Http(Hcm::new(worker, listener, Arc::clone(config))),
            Terminal::Tcp(config) => TerminalState::Tcp(TcpState::new(worker, Arc::clone(config))),
            Terminal::DirectResponse(bytes) => TerminalState::Direct(bytes.clone()),
            Terminal::Echo => TerminalState::Echo,
            Terminal::Discovered(_) => TerminalState::Missing,
        };
        let filters = NetworkFilters::new(worker, &chain, before.map(|before| &before.filters));
        Self { filters, chain, terminal }
    }
}

/// Envoy names a listener's metrics by its address unless it has a prefix.
pub(crate) fn stat_name(listener: &Listener) -> String {
    if !listener.stat_prefix.is_empty() {
        return listener.stat_prefix.to_string();
    }
    listener.addresses.first().map_or_else(|| listener.name.to_string(), ToString::to_string)
}
