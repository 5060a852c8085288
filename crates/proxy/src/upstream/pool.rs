//! The connections of one worker to one host over one transport.
use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;
use std::time::Duration;

use lateen_balance::Host;
use lateen_http2::Refused;
use lateen_http2::shell::{self, Sender};
use lateen_snapshot::cluster::{ClusterConfig, Transport, UpstreamHttp};
use lateen_snapshot::http::Http2Options;
use lateen_telemetry::envoy_names::cluster as names;
use tokio::time::Instant;

use super::caller::Caller;
use super::cluster::ClusterState;
use super::connect::{ConnectFailure, ConnectPlan};
use super::lease::Lease;
use super::open::{Dial, Open};
use super::waiting::{self, Waiting};
use crate::http::h1::H1Client;
use crate::http::tcp::TcpClient;
use crate::io::{Io, Wire};
use crate::worker::Worker;

/// A shared connection that nobody holds any more may take so long to write what is left. Its peer may not be there to read.
const LINGER: Duration = Duration::from_secs(1);

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
    /// The ALPN override, by address; 0 for none.
    pub(crate) alpn: usize,
    pub(crate) server_name: Option<Arc<str>>,
    pub(crate) wanted: Wanted,
    /// What connections take over from the caller's, where that matters.
    pub(crate) caller: Option<Rc<Caller>>,
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

/// An HTTP/2 connection shared by exchanges.
pub(crate) struct Shared {
    sender: Sender,
    pub(crate) active: Cell<u32>,
    served: Cell<u32>,
    last_used: Cell<Instant>,
    limit: u32,
    pub(crate) open: Open,
}

impl Drop for Shared {
    /// Neither the pool nor an exchange has it: its driver would wait for the peer to end it.
    fn drop(&mut self) {
        self.sender.close();
    }
}

/// The pool.
pub(crate) struct Pool {
    pub(crate) key: PoolKey,
    idle: RefCell<Vec<Idle>>,
    shared: RefCell<Vec<Rc<Shared>>>,
    pub(super) waiting: Waiting,
    /// Connections that exist or are being made.
    open: Cell<usize>,
    /// HTTP/2 connections being made: later exchanges wait for them instead of dialling too.
    dialling: Cell<usize>,
    /// Connections being made for no exchange in particular.
    ahead: Cell<usize>,
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
            ahead: Cell::new(0),
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
        Counted::start(self, |pool| &pool.dialling)
    }

    fn multiplexed(&self) -> bool {
        match self.key.wanted {
            Wanted::Http1 | Wanted::Tcp => false,
            Wanted::Http2 => true,
            Wanted::Auto => self.known_http2.get().unwrap_or(false),
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
                state.stats.inc(names::UPSTREAM_CX_DESTROY_REMOTE);
            }
        }
        self.stream(state)
    }

    /// A stream on a shared connection.
    fn stream(self: &Rc<Self>, state: &ClusterState) -> Option<Lease> {
        let mut shared = self.shared.borrow_mut();
        let most = state.cluster.config.max_requests_per_connection.unwrap_or(u32::MAX);
        let mut at = 0;
        while let Some(connection) = shared.get(at) {
            match connection.sender.can_open() {
                Err(Refused::Closing) => {
                    shared.remove(at);
                }
                Ok(()) if connection.active.get() < connection.limit => {
                    let connection = Rc::clone(connection);
                    let lease = self.lend(&connection);
                    if connection.served.get() >= most {
                        state.stats.inc(names::UPSTREAM_CX_MAX_REQUESTS);
                        shared.remove(at);
                    }
                    return Some(lease);
                }
                _ => at += 1,
            }
        }
        None
    }

    /// One more stream on a shared connection.
    fn lend(self: &Rc<Self>, connection: &Rc<Shared>) -> Lease {
        let reused = connection.served.get() > 0;
        connection.served.set(connection.served.get() + 1);
        Lease::of_stream(Rc::clone(connection), connection.sender.clone(), self, reused)
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
            // One dial at a time where connections are shared: a burst needs one connection, not a hundred.
            let wait_for_dial = self.multiplexed() && self.dialling.get() > 0;
            if !wait_for_dial {
                let permit = if state.host_is_full(host, high_priority) { None } else { breakers.connections.take() };
                match permit {
                    Some(permit) => {
                        let dial = Dial::begin(self, worker, state, host, Some(permit));
                        return self.dial(worker, state, host, dial, plan).await;
                    }
                    // With no connection at all nobody would ever wake us: one is always allowed.
                    None if self.open.get() == 0 => {
                        let dial = Dial::begin(self, worker, state, host, None);
                        return self.dial(worker, state, host, dial, plan).await;
                    }
                    None => state.stats.inc(names::UPSTREAM_CX_OVERFLOW),
                }
            }
            if let Some(idle) = waiting::wait(self).await {
                return Ok(Lease::of_idle(idle, self));
            }
            if let Some(lease) = self.ready(state) {
                return Ok(lease);
            }
        }
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
        let ahead = Counted::start(self, |pool| &pool.ahead);
        let (pool, state, host, plan) = (Rc::clone(self), Rc::clone(state), Arc::clone(host), plan.clone());
        let of_task = Rc::clone(worker);
        crate::worker::spawn(worker, async move {
            let made = pool.dial(&of_task, &state, &host, dial, &plan).await;
            drop(ahead);
            if let Ok(lease) = made {
                lease.unused(Instant::now());
            }
        });
        true
    }

    /// The exchanges that have a connection or wait for one, and how many could have one.
    pub(super) fn used(&self, config: &ClusterConfig) -> (usize, usize) {
        let waiting = self.waiting.len();
        if self.multiplexed() {
            let shared = self.shared.borrow();
            let one = http2_options(config).max_concurrent_streams.max(1) as usize;
            let active: usize = shared.iter().map(|s| s.active.get() as usize).sum();
            return (active + waiting, (shared.len() + self.dialling.get()).saturating_mul(one));
        }
        let free = self.idle.borrow().len() + self.ahead.get();
        (self.open.get().saturating_sub(free) + waiting, self.open.get())
    }

    async fn dial(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        state: &Rc<ClusterState>,
        host: &Arc<Host>,
        dial: Dial,
        plan: &ConnectPlan,
    ) -> Result<Lease, NoConnection> {
        let config = &state.cluster.config;
        let Dial { mut open, dialling } = dial;
        let transport = config.transports.get(host.transport as usize);
        let result = worker.dialer.connect(config, transport, host, plan).await;
        let io = match result {
            Ok(io) => io,
            Err(failure) => {
                state.stats.inc(names::UPSTREAM_CX_CONNECT_FAIL);
                if failure == ConnectFailure::Timeout {
                    state.stats.inc(names::UPSTREAM_CX_CONNECT_TIMEOUT);
                }
                host.counters.cx_connect_fail.fetch_add(1, Relaxed);
                // Whoever waits for this dial must dial on its own.
                drop(dialling);
                return Err(NoConnection::Failed(failure));
            }
        };
        open.made(&io, worker);
        let lease = if self.key.wanted == Wanted::Tcp {
            Ok(Lease::of_tcp(TcpClient::new(Wire::new(io)), open, self))
        } else if self.speaks_http2(&io) {
            self.share(worker, state, io, open, http2_options(config)).await
        } else {
            state.stats.inc(names::UPSTREAM_CX_HTTP1_TOTAL);
            let client = Box::new(H1Client::new(Wire::new(io), config.http1_names));
            Ok(Lease::fresh(Idle { client, open, since: Instant::now(), served: 1 }, self))
        };
        drop(dialling);
        lease
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

    /// Starts HTTP/2 on a connection that exchanges will share.
    async fn share(
        self: &Rc<Self>,
        worker: &Rc<Worker>,
        state: &Rc<ClusterState>,
        io: Io,
        open: Open,
        options: Http2Options,
    ) -> Result<Lease, NoConnection> {
        state.stats.inc(names::UPSTREAM_CX_HTTP2_TOTAL);
        let config = lateen_http2::Config {
            stream_window: options.initial_stream_window_size,
            connection_window: options.initial_connection_window_size,
            ..lateen_http2::Config::default()
        };
        let (sender, mut driver) = shell::connect(io, config);
        let shared = Rc::new(Shared {
            sender,
            active: Cell::new(0),
            served: Cell::new(0),
            last_used: Cell::new(Instant::now()),
            limit: options.max_concurrent_streams.max(1),
            open,
        });
        let (pool, weak) = (Rc::downgrade(self), Rc::downgrade(&shared));
        crate::worker::spawn(worker, async move {
            drive(&mut driver, &weak).await;
            if let Some(pool) = pool.upgrade() {
                pool.shared.borrow_mut().retain(|s| !Weak::ptr_eq(&Rc::downgrade(s), &weak));
                pool.waiting.wake_all();
            }
        });
        if shared.open.is_retired(self, Instant::now()) {
            // Told to end while it was made: it serves whom it was made for.
            return Ok(self.lend(&shared));
        }
        self.shared.borrow_mut().push(shared);
        self.stream(state).ok_or_else(|| NoConnection::Failed(ConnectFailure::Refused("the HTTP/2 connection ended at once".to_owned())))
    }

    /// Takes a connection back after an exchange.
    pub(crate) fn put_back(&self, idle: Idle) {
        if idle.open.is_retired(self, idle.since) {
            return;
        }
        if let Some(idle) = self.waiting.hand(idle) {
            self.idle.borrow_mut().push(idle);
        }
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
        let (keep, gone): (Vec<_>, Vec<_>) = std::mem::take(&mut *self.shared.borrow_mut())
            .into_iter()
            .partition(|s| (s.active.get() > 0 || !expired(s.last_used.get())) && !s.open.is_spent(now));
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

/// Moves a shared connection's bytes until it has ended, or was given up and has had its time.
async fn drive(driver: &mut (impl Future<Output = ()> + Unpin), shared: &Weak<Shared>) {
    let ended = poll_fn(|cx| match Pin::new(&mut *driver).poll(cx) {
        // Giving it up wakes the driver.
        Poll::Pending if shared.strong_count() > 0 => Poll::Pending,
        polled => Poll::Ready(polled.is_ready()),
    })
    .await;
    if !ended {
        let _ = tokio::time::timeout(LINGER, driver).await;
    }
}

/// Counts a dial while it lasts; then wakes who waited for it.
pub(super) struct Counted {
    pool: Rc<Pool>,
    among: fn(&Pool) -> &Cell<usize>,
}

impl Counted {
    fn start(pool: &Rc<Pool>, among: fn(&Pool) -> &Cell<usize>) -> Self {
        among(pool).set(among(pool).get() + 1);
        Self { pool: Rc::clone(pool), among }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let count = (self.among)(&self.pool);
        count.set(count.get() - 1);
        if self.pool.multiplexed() {
            self.pool.waiting.wake_all();
        }
    }
}

fn http2_options(config: &ClusterConfig) -> Http2Options {
    match &config.http {
        UpstreamHttp::Http2(options) | UpstreamHttp::Downstream(options) | UpstreamHttp::Auto(options) => *options,
        UpstreamHttp::Http1 => Http2Options {
            max_concurrent_streams: 1024,
            initial_stream_window_size: 1 << 20,
            initial_connection_window_size: 1 << 20,
            allow_connect: false,
            keepalive_interval: None,
            keepalive_timeout: Duration::from_secs(10),
        },
    }
}

/// The TLS context's address, for [`PoolKey`].
pub(crate) fn tls_id(transport: Option<&Transport>) -> usize {
    transport.and_then(|t| t.tls.as_ref()).map_or(0, |tls| Arc::as_ptr(tls) as usize)
}
