//! The TCP proxy (Envoy `tcp_proxy`): a host, a connection or a tunnel to it, bytes both ways.
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;

use bytes::BytesMut;
use http::{HeaderMap, StatusCode};
use lateen_balance::breaker::Permit;
use lateen_balance::{Context, Criteria, Host};
use lateen_snapshot::cluster::{ClusterConfig, Discovery, Transport};
use lateen_snapshot::compile::Wish;
use lateen_snapshot::listener::{TcpCluster, TcpProxy};
use lateen_snapshot::log_filter::LogType;
use lateen_snapshot::route::HashSource;
use lateen_snapshot::tls::ClientTls;
use lateen_telemetry::envoy_names::{cluster as cluster_names, tcp as names, tcp_on_demand as on_demand};
use lateen_telemetry::istio::{DestinationId, Reporter, StreamLabels, TcpSeries};
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::clock::{Clock, Due};
use super::leaving::leaves;
use super::relay;
use super::tunnel::{self, Template};
use super::{Closed, Passed, dial};
use crate::http::{ConnectionRecord, LogSet};
use crate::io::Io;
use crate::listener::{Conn, TerminalState};
use crate::router::lookup;
use crate::upstream::{Caller, ClusterState, ConnectPlan, Ending, Names, Principals, Proxied, Sought, Watched, choose};
use crate::worker::{Discovered, Worker};

/// A TCP proxy bound to one worker's counters and logs.
pub(crate) struct TcpState {
    pub(super) config: Arc<TcpProxy>,
    pub(super) stats: Local,
    logs: LogSet,
    tunnel: Option<Template>,
    on_demand: Option<OnDemand>,
}

/// Connections wait for their cluster.
struct OnDemand {
    limit: Duration,
    stats: Local,
}

impl TcpState {
    pub(crate) fn new(worker: &Worker, config: Arc<TcpProxy>) -> Rc<Self> {
        let local = |defs| worker.shard.local(&worker.registry.block(defs, BlockName::tcp(&config.stat_prefix)));
        Rc::new(Self {
            stats: local(names::DEFS),
            on_demand: config.on_demand.map(|limit| OnDemand { limit, stats: local(on_demand::DEFS) }),
            logs: LogSet::new(worker, &config.access_logs),
            tunnel: config.tunnel.as_ref().map(Template::new),
            config,
        })
    }

    pub(super) fn log(&self, conn: &Conn, outcome: &Outcome, on: LogType) {
        if !self.logs.is_empty() {
            self.logs.connection(&outcome.record(conn), on);
        }
    }
}

/// What is known of the connection, so far or in the end.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) cluster: Option<Rc<ClusterState>>,
    pub(super) host: Option<Arc<Host>>,
    pub(super) upstream_local: Option<SocketAddr>,
    pub(super) received: u64,
    pub(super) sent: u64,
    pub(super) flags: ResponseFlags,
    pub(super) failure: String,
    pub(super) attempts: u32,
    pub(super) principals: Principals,
    /// Istio's metrics of the connection, once it is open on both sides.
    series: Option<TcpSeries>,
    /// What a tunnel was answered, where that is kept.
    pub(super) tunnel_headers: Option<(StatusCode, HeaderMap)>,
    pub(super) tunnel_trailers: Option<Box<HeaderMap>>,
}

impl Outcome {
    pub(super) fn record<'a>(&'a self, conn: &'a Conn) -> ConnectionRecord<'a> {
        ConnectionRecord {
            conn,
            cluster: self.cluster.as_ref(),
            host: self.host.as_deref(),
            upstream_local: self.upstream_local,
            received: self.received,
            sent: self.sent,
            flags: self.flags,
            transport_failure: &self.failure,
            details: "",
            termination: None,
            attempts: self.attempts,
            tunnel_headers: self.tunnel_headers.as_ref(),
            tunnel_trailers: self.tunnel_trailers.as_deref(),
        }
    }
}

/// One connection on its way through the proxy.
pub(super) struct Session<'a> {
    pub(super) worker: &'a Rc<Worker>,
    pub(super) state: &'a Rc<TcpState>,
    pub(super) conn: &'a Rc<Conn>,
    pub(super) passed: &'a Passed,
    /// What the host's subset must be.
    criteria: Option<Arc<Criteria>>,
    /// Where the connection ends when its host fails.
    pub(super) watched: Option<Rc<Watched>>,
    /// The host's cluster, where its bytes are the caller's.
    carrier: Option<Local>,
    pub(super) outcome: Outcome,
    /// What was received and sent when it was last counted.
    counted: (u64, u64),
}

pub(crate) async fn run(worker: &Rc<Worker>, state: &Rc<TcpState>, conn: &Rc<Conn>, io: Io, passed: Passed) {
    state.stats.inc(names::DOWNSTREAM_CX_TOTAL);
    let mut session = Session {
        worker,
        state,
        conn,
        passed: &passed,
        criteria: None,
        watched: None,
        carrier: None,
        outcome: Outcome::default(),
        counted: (0, 0),
    };
    if state.config.log_times.on_start {
        state.log(conn, &session.outcome, LogType::TcpConnectionStart);
    }
    session.serve(io).await;
    session.count();
    let mut outcome = session.outcome;
    if let Some(stats) = &passed.stats {
        let series = outcome.series.take().unwrap_or_else(|| series(worker, conn, &outcome, stats.reporter_source));
        series.closed();
    }
    state.log(conn, &outcome, LogType::TcpConnectionEnd);
    if !conn.listener.logs.is_empty() {
        conn.listener.logs.connection(&outcome.record(conn), LogType::NotSet);
    }
}

/// Tells of a connection that a filter closed before it was served: in the log of the TCP proxy behind it, and the listener's.
pub(crate) fn log_closed(worker: &Worker, conn: &Conn, why: &Closed) {
    let Closed { flags, details, termination, passed } = why;
    let cluster = match (&conn.chain.terminal, passed) {
        (TerminalState::Tcp(state), Some(passed)) => cluster(worker, passed, pick(worker, &state.config)),
        _ => None,
    };
    let termination = termination.as_deref();
    let record = ConnectionRecord { flags: *flags, details, termination, cluster: cluster.as_ref(), ..ConnectionRecord::of(conn) };
    if let TerminalState::Tcp(state) = &conn.chain.terminal {
        state.logs.connection(&record, LogType::TcpConnectionEnd);
    }
    conn.listener.logs.connection(&record, LogType::NotSet);
}

fn series(worker: &Worker, conn: &Conn, outcome: &Outcome, source: bool) -> TcpSeries {
    let destination = outcome.cluster.as_ref().map_or(DestinationId::default(), |c| crate::http::destination_of(worker, c));
    let peer = match (&outcome.cluster, &outcome.host) {
        (Some(cluster), Some(host)) if source => cluster.peer_of(worker, host),
        _ => Default::default(),
    };
    let labels = StreamLabels {
        reporter: if source { Reporter::Source } else { Reporter::Destination },
        destination,
        peer,
        peer_principal: if source { outcome.principals.host } else { conn.peer_principal },
        local_principal: if source { outcome.principals.own } else { conn.local_principal },
    };
    worker.istio.tcp(labels, outcome.flags)
}

/// The cluster that a filter named, or else the one picked, if it is there.
fn cluster(worker: &Worker, passed: &Passed, picked: Option<&TcpCluster>) -> Option<Rc<ClusterState>> {
    let live = worker.live();
    let id = match &passed.cluster {
        Some(name) => live.snapshot.cluster_named(name)?.0,
        None => picked?.id,
    };
    live.cluster(worker, id)
}

impl Session<'_> {
    async fn serve(&mut self, io: Io) {
        let mut clock = Clock::new(self);
        if self.pass(io, &mut clock).await == Err(Due::Old) {
            self.outcome.flags.insert(ResponseFlags::DURATION_TIMEOUT);
        }
    }

    /// Passes the caller's bytes on to a host.
    ///
    /// # Errors
    /// When the connection's time was over.
    async fn pass(&mut self, mut io: Io, clock: &mut Clock) -> Result<(), Due> {
        let (state, conn) = (self.state, self.conn);
        let Some(mut first) = clock.wait(state, conn, self.first_bytes(&mut io)).await? else { return Ok(()) };
        clock.touch();
        let picked = pick(self.worker, &state.config);
        self.criteria = picked.and_then(|c| c.metadata_match.clone());
        let mut found = cluster(self.worker, self.passed, picked);
        if let (None, Some(waits)) = (&found, &state.on_demand) {
            // On the heap while it lasts: hardly a connection waits.
            let discovered = Box::pin(self.discover(picked, waits, &mut io, &mut first));
            if clock.wait(state, conn, discovered).await?.is_break() {
                self.outcome.flags = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
                return Ok(());
            }
            found = cluster(self.worker, self.passed, picked);
        }
        let Some(cluster) = found else {
            state.stats.inc(names::DOWNSTREAM_CX_NO_ROUTE);
            self.outcome.flags = ResponseFlags::NO_CLUSTER_FOUND;
            return Ok(());
        };
        self.outcome.cluster = Some(Rc::clone(&cluster));
        match state.tunnel.as_ref().filter(|_| !self.passed.no_tunnel) {
            Some(template) => Box::pin(tunnel::serve(self, template, &cluster, io, first, clock)).await,
            None => self.forward(&cluster, io, first, clock).await,
        }
    }

    /// Waits for a cluster that nobody has told of yet, as long as the caller does.
    async fn discover(&self, picked: Option<&TcpCluster>, waits: &OnDemand, io: &mut Io, first: &mut BytesMut) -> ControlFlow<()> {
        let arrived = {
            let live = self.worker.live();
            let by_id = || lookup::name_of(&live.snapshot, picked?.id);
            let Some(name) = self.passed.cluster.as_deref().or_else(by_id) else { return ControlFlow::Continue(()) };
            self.worker.discover(Wish::Cluster(name.into()), waits.limit)
        };
        waits.stats.inc(on_demand::ATTEMPT);
        let arrived = tokio::select! {
            arrived = arrived => arrived,
            () = leaves(io, first) => return ControlFlow::Break(()),
        };
        waits.stats.inc(match arrived {
            Discovered::There => on_demand::SUCCESS,
            Discovered::Missing => on_demand::MISSING,
            Discovered::Late => on_demand::TIMEOUT,
        });
        ControlFlow::Continue(())
    }

    /// How long the connection may be silent.
    pub(super) fn idle_timeout(&self) -> Option<Duration> {
        self.passed.idle_timeout.or(self.state.config.idle_timeout).filter(|d| !d.is_zero())
    }

    /// What the caller sent, where the host is dialled only then; `None` when it left.
    async fn first_bytes(&self, io: &mut Io) -> Option<BytesMut> {
        let mut first = BytesMut::new();
        if self.state.config.waits_for_data {
            first = lateen_core::recycle::buffers::take();
            if !matches!(io.read_buf(&mut first).await, Ok(1..)) {
                return None;
            }
        }
        Some(first)
    }

    /// Bytes to the host as they are.
    async fn forward(&mut self, cluster: &Rc<ClusterState>, mut io: Io, first: BytesMut, clock: &mut Clock) -> Result<(), Due> {
        let Some(permit) = cluster.breakers(false).connections.take() else {
            cluster.stats.inc(cluster_names::UPSTREAM_CX_OVERFLOW);
            self.outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
            return Ok(());
        };
        let (state, conn) = (self.state, self.conn);
        let connected = clock.wait(state, conn, self.connect(cluster)).await?;
        let Some(Connected { io: mut upstream, host, cluster, permit: _member, ending }) = connected else { return Ok(()) };
        let _permit = permit;
        let _active = cluster.stats.hold(cluster_names::UPSTREAM_CX_ACTIVE);
        let _request = host.begin_request();
        self.watched = cluster.watch(&host);
        self.carrier = Some(cluster.stats.clone());
        self.outcome.upstream_local = upstream.socket().local_address();
        let transport = cluster.cluster.config.transports.get(host.transport as usize);
        self.outcome.principals = Principals::of(&upstream, transport, self.worker);
        self.connected();
        let start = Instant::now();
        let ended = relay::run(self, &mut io, &mut upstream, first, clock, &ending).await;
        cluster.stats.record(cluster_names::UPSTREAM_CX_LENGTH_MS, start.elapsed().as_micros() as u64);
        host.counters.cx_active.fetch_sub(1, Relaxed);
        ended
    }

    /// Both sides are open. Counted as opened now: a long connection would otherwise be seen only when it has ended.
    pub(super) fn connected(&mut self) {
        let (worker, conn, outcome) = (self.worker, self.conn, &mut self.outcome);
        outcome.series = self.passed.stats.as_ref().map(|stats| series(worker, conn, outcome, stats.reporter_source));
        if self.state.config.log_times.on_connected {
            self.state.log(conn, outcome, LogType::TcpUpstreamConnected);
        }
    }

    /// Counts the bytes that moved since the last time: whoever looks at a long connection is to see them.
    pub(super) fn count(&mut self) {
        let outcome = &self.outcome;
        let now = (outcome.received, outcome.sent);
        let (received, sent) = (now.0 - self.counted.0, now.1 - self.counted.1);
        self.counted = now;
        if received > 0 {
            self.state.stats.add(names::DOWNSTREAM_CX_RX_BYTES_TOTAL, received);
            self.carrier.iter().for_each(|stats| stats.add(cluster_names::UPSTREAM_CX_TX_BYTES_TOTAL, received));
            outcome.series.iter().for_each(|series| series.received(received));
        }
        if sent > 0 {
            self.state.stats.add(names::DOWNSTREAM_CX_TX_BYTES_TOTAL, sent);
            self.carrier.iter().for_each(|stats| stats.add(cluster_names::UPSTREAM_CX_RX_BYTES_TOTAL, sent));
            outcome.series.iter().for_each(|series| series.sent(sent));
        }
    }

    /// A host of the cluster, or of the member of it that was chosen.
    pub(super) fn choose(&mut self, cluster: &Rc<ClusterState>) -> Option<(Rc<ClusterState>, Arc<Host>)> {
        let own = &cluster.cluster.config.hash;
        let by_address =
            if own.is_empty() { self.state.config.hash_source_ip } else { own.iter().any(|h| matches!(h.source, HashSource::SourceIp)) };
        let hash = by_address.then(|| crate::router::hash::of_address(self.conn.remote.ip()));
        let context = Context { hash, criteria: self.criteria.as_deref(), ..Context::default() };
        let authority = self.passed.server_name.as_deref().or(self.conn.server_name.as_deref()).unwrap_or_default();
        let sought = Sought { original: original(self.conn, cluster), authority, port: self.passed.port };
        let chosen = choose(self.worker, &self.worker.live(), Rc::clone(cluster), &context, &sought);
        match &chosen {
            Some((_, host)) => {
                self.outcome.host = Some(Arc::clone(host));
                self.outcome.attempts += 1;
            }
            None => {
                cluster.stats.inc(cluster_names::UPSTREAM_CX_NONE_HEALTHY);
                self.outcome.flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
            }
        }
        chosen
    }

    /// The server name that a filter gave, or that of a host that was found by its name: whose certificate must have it then, where
    /// requests to it are checked. A cluster's options for requests do not mean connections otherwise, as in Envoy.
    fn names(&self, config: &ClusterConfig, tls: Option<&ClientTls>, host: &Host) -> Names {
        let named = matches!(config.discovery, Discovery::DynamicForwardProxy(_)) && tls.is_some_and(|tls| tls.auto_sni);
        let sent = self.passed.server_name.clone().or_else(|| named.then(|| Arc::clone(&host.hostname)));
        let checked = sent.clone().filter(|_| named && tls.is_some_and(|tls| tls.auto_san));
        Names { sent, checked }
    }

    async fn connect(&mut self, of: &Rc<ClusterState>) -> Option<Connected> {
        let mut attempts = dial::Attempts::new(&self.state.config);
        while attempts.next(self.worker).await {
            let (cluster, host) = self.choose(of)?;
            // The limit of the cluster that was asked for counts already.
            let permit = if Rc::ptr_eq(&cluster, of) { None } else { Some(cluster.breakers(false).connections.take()) };
            if let Some(None) = permit {
                cluster.stats.inc(cluster_names::UPSTREAM_CX_OVERFLOW);
                self.outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
                return None;
            }
            let config = &cluster.cluster.config;
            if cluster.host_is_full(&host, false) {
                cluster.stats.inc(cluster_names::UPSTREAM_CX_OVERFLOW);
                self.outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
                continue;
            }
            cluster.stats.inc(cluster_names::UPSTREAM_CX_TOTAL);
            let ending = Ending::new(&cluster.stats);
            host.counters.cx_total.fetch_add(1, Relaxed);
            let conn = self.conn;
            let transport = config.transports.get(host.transport as usize);
            let names = self.names(config, transport.and_then(|t| t.tls.as_deref()), &host);
            let plan = ConnectPlan { alpn: None, names, caller: caller(self.state, conn, transport) };
            let started = Instant::now();
            match self.worker.dialer.connect(config, transport, &host, &plan).await {
                Ok(upstream) => {
                    cluster.stats.record(cluster_names::UPSTREAM_CX_CONNECT_MS, started.elapsed().as_micros() as u64);
                    host.counters.cx_active.fetch_add(1, Relaxed);
                    cluster.report_connect(self.worker, &host, true);
                    self.outcome.flags = ResponseFlags::NONE;
                    self.outcome.failure.clear();
                    ending.in_use(true);
                    return Some(Connected { io: upstream, host, cluster, permit: permit.flatten(), ending });
                }
                Err(failure) => {
                    ending.not_made(&failure);
                    cluster.stats.inc(cluster_names::UPSTREAM_CX_CONNECT_FAIL);
                    host.counters.cx_connect_fail.fetch_add(1, Relaxed);
                    cluster.report_connect(self.worker, &host, false);
                    self.failed(&failure.reason());
                }
            }
        }
        self.gave_up(of);
        None
    }

    /// All attempts were used up.
    pub(super) fn gave_up(&mut self, of: &ClusterState) {
        of.stats.inc(cluster_names::UPSTREAM_CX_CONNECT_ATTEMPTS_EXCEEDED);
        self.outcome.flags.insert(ResponseFlags::CONNECT_ATTEMPTS_EXCEEDED);
    }

    /// An attempt brought no connection.
    pub(super) fn failed(&mut self, reason: &str) {
        self.outcome.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        self.outcome.failure = details::underscored(reason).into_owned();
    }
}

/// A connection to a host of the cluster, or of the member of it that was chosen.
struct Connected {
    io: Io,
    host: Arc<Host>,
    cluster: Rc<ClusterState>,
    permit: Option<Permit>,
    ending: Ending,
}

/// Where the connection goes in a cluster that has no hosts of its own: where metadata says, else where it went to.
fn original(conn: &Conn, cluster: &ClusterState) -> Option<SocketAddr> {
    let restored = conn.restored.then_some(conn.local);
    let Discovery::OriginalDst(settings) = &cluster.cluster.config.discovery else { return restored };
    let in_metadata = || {
        let (namespace, path) = settings.metadata.as_ref()?;
        conn.metadata()?.get(namespace, path)?.as_str()?.parse().ok()
    };
    in_metadata().or(restored)
}

/// What the connection to the host takes over from the caller's.
fn caller(state: &TcpState, conn: &Conn, transport: Option<&Transport>) -> Option<Rc<Caller>> {
    let tells = transport.is_some_and(|t| t.proxy_protocol.is_some());
    if !tells && conn.source.is_none() {
        return None;
    }
    let told = conn.told.as_ref().map(|told| told.tlvs.as_slice());
    let tlvs = match &state.config.more_tlvs {
        Some(more) => more.merge(told),
        None => told.unwrap_or_default().to_vec(),
    };
    let proxied = tells.then(|| Proxied { source: conn.remote, destination: conn.local, tlvs });
    Some(Caller::alone(proxied, conn.source))
}

fn pick<'a>(worker: &Worker, config: &'a TcpProxy) -> Option<&'a TcpCluster> {
    match config.clusters.as_slice() {
        [only] => Some(only),
        all => {
            let total = all.last()?.bound;
            let roll = worker.roll().checked_rem(total)?;
            all.iter().find(|c| roll < c.bound)
        }
    }
}
