//! A worker's state of a listener and of its chains.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use lateen_snapshot::Listener;
use lateen_snapshot::listener::{FilterChain, Terminal};
use lateen_telemetry::envoy_names::{connection_rate_limit, listener as names, ssl};
use lateen_telemetry::{BlockName, Local};

use crate::filter::network::{NetworkFilters, TcpState, limit_stats};
use crate::http::{Hcm, LogSet};
use crate::worker::{DrainSignal, Worker};

/// A listener as one worker serves it.
pub(crate) struct ListenerState {
    pub(crate) listener: Arc<Listener>,
    pub(crate) stats: Local,
    ssl: Local,
    pub(crate) drain: Rc<DrainSignal>,
    chains: RefCell<HashMap<*const FilterChain, Rc<ChainState>>>,
    /// Logs of connections without a chain.
    pub(crate) logs: LogSet,
    /// Counters of its limits of connections, in their order.
    limits: Vec<Local>,
    pub(crate) active: Cell<u64>,
    /// Connections from their acceptance on, handed over to another listener or not.
    pub(crate) accepted: Cell<u64>,
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
}

impl ListenerState {
    pub(crate) fn new(worker: &Worker, listener: Arc<Listener>) -> Rc<Self> {
        let name = stat_name(&listener);
        let block = worker.registry.block(names::DEFS, BlockName::listener(&name));
        let tls = worker.registry.block(ssl::DEFS, BlockName::listener(&name));
        Rc::new(Self {
            stats: worker.shard.local(&block),
            ssl: worker.shard.local(&tls),
            drain: Rc::default(),
            chains: RefCell::default(),
            logs: LogSet::new(worker, &listener.access_logs),
            limits: listener
                .inspectors
                .rate_limits
                .iter()
                .map(|(_, limit)| limit_stats(worker, "listener_local_ratelimit", &limit.stat_prefix))
                .collect(),
            active: Cell::new(0),
            accepted: Cell::new(0),
            listener,
        })
    }

    /// Whether the listener's limits let a connection to this port in.
    pub(super) fn admits(&self, port: u16, now: u64) -> bool {
        let limits = self.listener.inspectors.rate_limits.iter().zip(&self.limits);
        for ((gate, limit), stats) in limits {
            if gate.applies_to(port) && !limit.bucket.take(now) {
                stats.inc(connection_rate_limit::RATE_LIMITED);
                return false;
            }
        }
        true
    }

    pub(crate) fn ssl(&self) -> &Local {
        &self.ssl
    }

    /// The chain's state, made at its first connection.
    pub(crate) fn chain(&self, worker: &Rc<Worker>, chain: &Arc<FilterChain>) -> Rc<ChainState> {
        let mut chains = self.chains.borrow_mut();
        let entry = chains.entry(Arc::as_ptr(chain));
        Rc::clone(entry.or_insert_with(|| Rc::new(ChainState::new(worker, &self.listener, Arc::clone(chain)))))
    }
}

impl ChainState {
    fn new(worker: &Rc<Worker>, listener: &Listener, chain: Arc<FilterChain>) -> Self {
        let terminal = match &chain.terminal {
            Terminal::Http(config) => TerminalState::Http(Hcm::new(worker, listener, Arc::clone(config))),
            Terminal::Tcp(config) => TerminalState::Tcp(TcpState::new(worker, Arc::clone(config))),
            Terminal::DirectResponse(bytes) => TerminalState::Direct(bytes.clone()),
            Terminal::Echo => TerminalState::Echo,
        };
        Self { filters: NetworkFilters::new(worker, &chain), chain, terminal }
    }
}

/// Envoy names a listener's metrics by its address unless it has a prefix.
pub(crate) fn stat_name(listener: &Listener) -> String {
    if !listener.stat_prefix.is_empty() {
        return listener.stat_prefix.to_string();
    }
    listener.addresses.first().map_or_else(|| listener.name.to_string(), ToString::to_string)
}
