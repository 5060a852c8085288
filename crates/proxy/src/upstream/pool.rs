//! The connections of one worker to one host over one transport.
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lateen_balance::Host;
use lateen_http2::Refused;
use lateen_snapshot::cluster::{ClusterConfig, HeadLimits, Transport};
use lateen_telemetry::envoy_names::cluster as names;
use tokio::time::Instant;

use super::caller::Caller;
use super::cluster::ClusterState;
use super::connect::{ConnectFailure, ConnectPlan, Names};
use super::lease::Lease;
use super::open::{Dial, Open};
use super::shared::{self, Shared};
use super::waiting::{self, Given, Waiting};
use crate::http::h1::{self, H1Client};
use crate::http::tcp::TcpClient;
use crate::io::{Io, Metered, Wire};
use crate::worker::Worker;

/// The HTTP version wanted upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    Http1,
    Http2,
    /// What ALPN settles.
    Auto,
    /// None: a connection for one tunnel.
    Tcp,
}

/// Connections are shared by exchanges that agree on all of this.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PoolKey {
    /// The TLS context, by address; 0 for plaintext.
    pub(crate) tls: usize,
    /// The ALPN override.
    pub(crate) alpn: Option<Arc<Vec<Vec<u8>>>>,
    /// The host's name, where another host at the same address is not the same to a connection.
    pub(crate) hostname: Option<Arc<str>>,
    /// What the request that made it settles.
    pub(crate) names: Names,
    pub(crate) wanted: Wanted,
    /// What connections take over from the caller's, where that matters.
    pub(crate) caller: Option<Rc<Caller>>,
}

impl PoolKey {
    /// Of connections in the clear.
    pub(crate) fn plain(wanted: Wanted) -> Self {
        Self { tls: 0, alpn: None, hostname: None, names: Names::default(), wanted, caller: None }
    }

    /// Whether more exchanges are likely to agree on it: each caller or name has its own, and few come back; a TLS context that is
    /// no longer configured never does.
    pub(super) fn recurs(&self, is_configured: impl Fn(usize) -> bool) -> bool {
        self.caller.is_none() && self.hostname.is_none() && self.names == Names::default() && (self.tls == 0 || is_configured(self.tls))
    }
}

/// Why an exchange got no connection.
#[derive(Clone, Debug)]
pub(crate) enum NoConnection {
    /// A circuit breaker is open.
    Overflow,
    Failed(ConnectFailure),
}

/// An HTTP/1 connection between exchanges.
pub(crate) struct Idle {
    pub(crate) client: Box<H1Client>,
    pub(crate) open: Open,
    pub(crate) since: Instant,
    pub(crate) served: u32,
}

/// The pool.
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    pub(super) waiting: Waiting,
    /// Connections that exist or are being made.
    open: Cell<usize>,
    /// Connections being made: exchanges wait for them instead of dialling too.
    dialling: Cell<usize>,
    /// How many times all connections were told to end.
    round: Cell<u64>,
    /// What ALPN settled last time.
    known_http2: Cell<Option<bool>>,
}

impl Pool {
    pub(crate) fn new(key: PoolKey) -> Rc<Self> {
        Rc::new(Self {
            key,
            idle: RefCell::default(),
            shared: RefCell::default(),
            waiting: Waiting::default(),
            open: Cell::new(0),
            dialling: Cell::new(0),
            round: Cell::new(0),
            known_http2: Cell::new(None),
        })
    }

    /// How many times all connections were told to end.
    pub(super) fn round(&self) -> u64 {
        self.round.get()
    }

    /// A connection is made or about to be.
    pub(super) fn opened(&self) {
        self.open.set(self.open.get() + 1);
    }

    /// It is no more.
    pub(super) fn closed(&self) {
        self.open.set(self.open.get().saturating_sub(1));
        self.waiting.wake_one();
    }

    pub(super) fn count_dial(self: &Rc<Self>) -> Counted {
        self.dialling.set(self.dialling.get() + 1);
        Counted { pool: Rc::clone(self), multiplexed: self.multiplexed() }
    }

    fn multiplexed(&self) -> bool {
        match self.key.wanted {
            Wanted::Http1 | Wanted::Tcp => false,
            Wanted::Http2 => true,
            // Expected until a peer says otherwise, as in Envoy (`HttpConnPoolImplMixed`): or all who come before the first
            // connection is there would make one each.
            Wanted::Auto => self.known_http2.get().unwrap_or(true),
        }
    }

    /// A ready connection, if there is one.
    pub(crate) fn ready(self: &Rc<Self>, state: &ClusterState) -> Option<Lease> {
        if self.key.wanted != Wanted::Http2 {
            loop {
                let Some(mut idle) = self.idle.borrow_mut().pop() else { break };
                if idle.client.is_alive() {
                    idle.served += 1;
                    return Some(Lease::of_idle(idle, self));
                }
            }
        }
        self.stream(state)
    }

    /// A stream on a shared connection.
    fn stream(self: &Rc<Self>, state: &ClusterState) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        let mut at = 0;
        while let Some(connection) = shared.get(at) {
            match connection.can_lend() {
                Err(Refused::Closing) => {
                    shared.remove(at);
                }
                Ok(()) => {
                    let lease = connection.lend(self);
                    if connection.is_used_up() {
                        state.stats.inc(names::UPSTREAM_CX_MAX_REQUESTS);
                        shared.remove(at);
                    }
                    return Some(lease);
                }
                Err(Refused::Full) => at += 1,
            }
        }
        None
    }

    /// A connection, made or waited for.
    pub(crate) async fn acquire(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        state: &Rc<ClusterState>,
        host: &Arc<Host>,
        high_priority: bool,
        plan: &ConnectPlan,
    ) -> Result<Lease, NoConnection> {
        if let Some(lease) = self.ready(state) {
            return Ok(lease);
        }
        let breakers = state.breakers(high_priority);
        let Some(_pending) = breakers.pending.take() else {
            state.stats.inc(names::UPSTREAM_RQ_PENDING_OVERFLOW);
            return Err(NoConnection::Overflow);
        };
        state.stats.inc(names::UPSTREAM_RQ_PENDING_TOTAL);
        let _gauge = state.stats.hold(names::UPSTREAM_RQ_PENDING_ACTIVE);
        loop {
            if self.needs_dial(&state.cluster.config) {
                let permit = if state.host_is_full(host, high_priority) { None } else { breakers.connections.take() };
                // With no connection at all nobody would ever wake us: one is always allowed.
                if permit.is_some() || self.open.get() == 0 {
                    let dial = Dial::begin(self, worker, state, host, permit);
                    if self.key.wanted == Wanted::Tcp {
                        return self.tunnel(worker, state, host, dial, plan).await;
                    }
                    self.dial(worker, state, host, dial, plan);
                } else {
                    state.stats.inc(names::UPSTREAM_CX_OVERFLOW);
                }
            }
            match waiting::wait(self).await {
                Given::Lease(lease) => return Ok(lease),
                Given::Failure(failure) => return Err(NoConnection::Failed(failure)),
                Given::Change => {}
            }
            if let Some(lease) = self.ready(state) {
                return Ok(lease);
            }
        }
    }

    /// Whether the connections that are being made are too few for those who wait and one more. A tunnel has its own.
    fn needs_dial(&self, config: &ClusterConfig) -> bool {
        let each = if self.multiplexed() { shared::room_of_one(config) } else { 1 };
        self.key.wanted == Wanted::Tcp || self.waiting.len() >= self.dialling.get().saturating_mul(each)
    }

    /// Makes a connection for no exchange in particular; says whether there may be one.
    pub(super) fn connect_ahead(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        state: &Rc<ClusterState>,
        host: &Arc<Host>,
        high_priority: bool,
        plan: &ConnectPlan,
    ) -> bool {
        // A tunnel's connection cannot wait for the next one.
        if self.key.wanted == Wanted::Tcp || !host.is_healthy() || state.host_is_full(host, high_priority) {
            return false;
        }
        let Some(permit) = state.breakers(high_priority).connections.take() else { return false };
        let dial = Dial::begin(self, worker, state, host, Some(permit));
        self.dial(worker, state, host, dial, plan);
        true
    }

    /// The exchanges that have a connection or wait for one, and how many could have one.
    pub(super) fn used(&self, config: &ClusterConfig) -> (usize, usize) {
        let waiting = self.waiting.len();
        if self.multiplexed() {
            let shared = self.shared.borrow();
            let active: usize = shared.iter().map(|s| s.active.get() as usize).sum();
            return (active + waiting, (shared.len() + self.dialling.get()).saturating_mul(shared::room_of_one(config)));
        }
        let free = if self.key.wanted == Wanted::Tcp { 0 } else { self.idle.borrow().len() + self.dialling.get() };
        (self.open.get().saturating_sub(free) + waiting, self.open.get())
    }

    /// Makes a connection for whoever waits then. It is a task of its own: the exchange that wanted it may be over by that
    /// time, and a connection that takes longer than any request lasts would never come about.
    fn dial(self: &Rc<Self>, worker: &Rc<Worker>, state: &Rc<ClusterState>, host: &Arc<Host>, dial: Dial, plan: &ConnectPlan) {
        let (pool, state, host, plan) = (Rc::clone(self), Rc::clone(state), Arc::clone(host), plan.clone());
        let of_task = Rc::clone(worker);
        crate::worker::spawn(worker, async move {
            let Dial { mut open, dialling } = dial;
            let Ok(io) = pool.connect(&of_task, &state, &host, &mut open, &plan).await else { return };
            if pool.speaks_http2(&io) {
                pool.share(&of_task, &state, io, open);
            } else {
                state.stats.inc(names::UPSTREAM_CX_HTTP1_TOTAL);
                let client = Box::new(H1Client::new(Wire::metered(io, open.meter()), head_limits(&state.cluster.config)));
                let lease = Lease::fresh(Idle { client, open, since: Instant::now(), served: 1 }, &pool);
                if let Some(lease) = pool.waiting.hand(lease) {
                    lease.unused(Instant::now());
                }
            }
            drop(dialling);
        });
    }

    /// A connection for one tunnel, which nobody else has a use for.
    async fn tunnel(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        state: &Rc<ClusterState>,
        host: &Arc<Host>,
        dial: Dial,
        plan: &ConnectPlan,
    ) -> Result<Lease, NoConnection> {
        let Dial { mut open, dialling: _dialling } = dial;
        match self.connect(worker, state, host, &mut open, plan).await {
            Ok(io) => Ok(Lease::of_tcp(TcpClient::new(Wire::metered(io, open.meter())), open, self)),
            Err(failure) => {
                state.stats.inc(names::UPSTREAM_RQ_PENDING_FAILURE_EJECT);
                Err(NoConnection::Failed(failure))
            }
        }
    }

    async fn connect(
        &self,
        worker: &Worker,
        state: &ClusterState,
        host: &Host,
        open: &mut Open,
        plan: &ConnectPlan,
    ) -> Result<Io, ConnectFailure> {
        let config = &state.cluster.config;
        let transport = config.transports.get(host.transport as usize);
        let result = worker.dialer.connect(config, transport, host, plan).await;
        match &result {
            Ok(io) => open.made(io, transport, worker),
            Err(failure) => {
                open.ending.not_made(failure);
                state.stats.inc(names::UPSTREAM_CX_CONNECT_FAIL);
                if *failure == ConnectFailure::Timeout {
                    state.stats.inc(names::UPSTREAM_CX_CONNECT_TIMEOUT);
                }
                host.counters.cx_connect_fail.fetch_add(1, Relaxed);
                // All at once, as in Envoy (`ConnPoolImplBase::onConnectionEvent`): one after the other would find out the same.
                let ejected = self.waiting.fail_all(failure);
                state.stats.add(names::UPSTREAM_RQ_PENDING_FAILURE_EJECT, ejected as u64);
            }
        }
        result
    }

    fn speaks_http2(&self, io: &Io) -> bool {
        match self.key.wanted {
            Wanted::Http1 | Wanted::Tcp => false,
            Wanted::Http2 => true,
            Wanted::Auto => {
                let http2 = matches!(io.tls().and_then(|tls| tls.alpn_protocol()), Some(b"h2" | b"istio-h2"));
                self.known_http2.set(Some(http2));
                http2
            }
        }
    }

    /// Starts HTTP/2 on a connection, for those who wait and for others after them.
    fn share(self: &Rc<Self>, worker: &Rc<Worker>, state: &ClusterState, io: Io, open: Open) {
        state.stats.inc(names::UPSTREAM_CX_HTTP2_TOTAL);
        let (shared, driver) = Shared::start(worker, Metered { io, meter: open.meter() }, open, &state.cluster.config);
        let (pool, weak) = (Rc::downgrade(self), Rc::downgrade(&shared));
        // Not the cluster itself, which has the pool, which has the connection.
        let (of_task, stats) = (Rc::clone(worker), state.stats.clone());
        crate::worker::spawn(worker, async move {
            shared::drive(&of_task, &stats, driver, &weak, &pool).await;
            if let Some(pool) = pool.upgrade() {
                pool.shared.borrow_mut().retain(|s| !Weak::ptr_eq(&Rc::downgrade(s), &weak));
                pool.waiting.wake_all();
            }
        });
        while !self.waiting.is_empty() && !shared.is_used_up() && shared.can_lend().is_ok() {
            self.waiting.hand(shared.lend(self));
        }
        if shared.is_used_up() {
            state.stats.inc(names::UPSTREAM_CX_MAX_REQUESTS);
        } else if !shared.open.is_retired(self, Instant::now()) {
            self.shared.borrow_mut().push(shared);
        }
    }

    /// Takes a connection back after an exchange.
    pub(crate) fn put_back(self: &Rc<Self>, mut idle: Idle) {
        if idle.open.is_retired(self, idle.since) {
            return;
        }
        if self.waiting.is_empty() {
            self.idle.borrow_mut().push(idle);
            return;
        }
        idle.served += 1;
        self.waiting.hand(Lease::of_idle(idle, self));
    }

    pub(crate) fn stream_ended(&self, shared: &Shared) {
        shared.last_used.set(Instant::now());
        self.waiting.wake_one();
    }

    /// Closes what has been idle or open for too long, was closed by the peer, or is from before the host failed (Envoy drains
    /// pools then): what is in use ends with what it carries. Says whether nothing is left.
    pub(crate) fn sweep(&self, config: &ClusterConfig, stats: &lateen_telemetry::Local, now: Instant) -> bool {
        let expired = |since: Instant| config.idle_timeout.is_some_and(|limit| now.duration_since(since) >= limit);
        let keep = |idle: &mut Idle| {
            let timed_out = expired(idle.since);
            if timed_out {
                stats.inc(names::UPSTREAM_CX_IDLE_TIMEOUT);
            }
            !timed_out && !idle.open.is_spent(now) && idle.client.is_alive()
        };
        // Taken out first: dropping a connection calls back into this pool.
        let mut idle = std::mem::take(&mut *self.idle.borrow_mut());
        idle.retain_mut(keep);
        self.idle.borrow_mut().extend(idle);
        let keep = |shared: &Rc<Shared>| {
            let timed_out = shared.active.get() == 0 && expired(shared.last_used.get());
            if timed_out {
                stats.inc(names::UPSTREAM_CX_IDLE_TIMEOUT);
            }
            !timed_out && !shared.open.is_spent(now)
        };
        let (keep, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.shared.borrow_mut()).into_iter().partition(keep);
        self.shared.borrow_mut().extend(keep);
        drop(gone);
        self.open.get() == 0 && self.waiting.is_empty()
    }

    /// Closes idle connections and lets those in use end with what they carry: the host or its configuration is gone.
    pub(crate) fn retire(&self) {
        self.round.set(self.round.get() + 1);
        let idle = std::mem::take(&mut *self.idle.borrow_mut());
        let shared = std::mem::take(&mut *self.shared.borrow_mut());
        drop((idle, shared));
    }
}

/// Counts a dial while it lasts; then those look again whom it has not helped.
pub(super) struct Counted {
    pool: Rc<Pool>,
    /// Several counted on it.
    multiplexed: bool,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.pool.dialling.set(self.pool.dialling.get().saturating_sub(1));
        // A task that panics tells nobody.
        if self.multiplexed || self.pool.multiplexed() || std::thread::panicking() {
            self.pool.waiting.wake_all();
        }
    }
}

/// How much of a response's head is read.
fn head_limits(config: &ClusterConfig) -> h1::HeadLimits {
    let HeadLimits { headers, http1_bytes, .. } = config.response_heads;
    h1::HeadLimits {
        bytes: http1_bytes as usize,
        count: headers as usize,
        accept_http_10: true,
        allow_chunked_length: false,
        names: config.http1_names,
    }
}

/// The TLS context's address, for [`PoolKey`].
pub(crate) fn tls_id(transport: Option<&Transport>) -> usize {
    transport.and_then(|t| t.tls.as_ref()).map_or(0, |tls| Arc::as_ptr(tls) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_is_found_again_while_its_context_and_what_it_offers_are_the_same() {
        let key = |tls, alpn: &str| PoolKey { tls, alpn: Some(Arc::new(vec![alpn.into()])), ..PoolKey::plain(Wanted::Http1) };
        // The same words of another listener, or of the same after an update.
        assert_eq!(key(1, "istio"), key(1, "istio"));
        assert_ne!(key(1, "istio"), key(1, "h2"));
        assert!(key(1, "istio").recurs(|tls| tls == 1) && key(0, "istio").recurs(|_| false));
        assert!(!key(1, "istio").recurs(|tls| tls == 2));
    }
}
