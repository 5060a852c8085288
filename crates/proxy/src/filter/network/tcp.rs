//! The TCP proxy (Envoy `tcp_proxy`): a host, a connection, bytes both ways.
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use lateen_balance::breaker::Permit;
use lateen_balance::{Context, Host};
use lateen_identity::tls::PeerIdentity;
use lateen_snapshot::cluster::{Discovery, Transport};
use lateen_snapshot::listener::TcpProxy;
use lateen_telemetry::envoy_names::{cluster as cluster_names, tcp as names};
use lateen_telemetry::istio::{DestinationId, PrincipalId, Reporter, StreamLabels, TcpSeries};
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};
use tokio::time::Instant;

use super::Passed;
use super::copy::Direction;
use super::peer_exchange;
use crate::http::{ConnectionRecord, LogSet};
use crate::io::{Io, Timer};
use crate::listener::Conn;
use crate::upstream::{Caller, ClusterState, ConnectPlan, Proxied, Sought, choose};
use crate::worker::Worker;

/// A TCP proxy bound to one worker's counters and logs.
pub(crate) struct TcpState {
    config: Arc<TcpProxy>,
    stats: Local,
    logs: LogSet,
}

impl TcpState {
    pub(crate) fn new(worker: &Worker, config: Arc<TcpProxy>) -> Rc<Self> {
        let block = worker.registry.block(names::DEFS, BlockName::tcp(&config.stat_prefix));
        Rc::new(Self { stats: worker.shard.local(&block), logs: LogSet::new(worker, &config.access_logs), config })
    }
}

/// What is known when the connection ends.
#[derive(Default)]
struct Outcome {
    cluster: Option<Rc<ClusterState>>,
    host: Option<Arc<Host>>,
    upstream_local: Option<SocketAddr>,
    received: u64,
    sent: u64,
    flags: ResponseFlags,
    failure: String,
    /// The host's verified identity.
    principal: PrincipalId,
    /// Istio's metrics of the connection, once it is open on both sides.
    series: Option<TcpSeries>,
}

pub(crate) async fn run(worker: &Rc<Worker>, state: &Rc<TcpState>, conn: &Rc<Conn>, mut io: Io, passed: Passed) {
    state.stats.inc(names::DOWNSTREAM_CX_TOTAL);
    let mut outcome = Outcome::default();
    serve(worker, state, conn, &mut io, &passed, &mut outcome).await;
    state.stats.add(names::DOWNSTREAM_CX_RX_BYTES_TOTAL, outcome.received);
    state.stats.add(names::DOWNSTREAM_CX_TX_BYTES_TOTAL, outcome.sent);
    if let Some(stats) = &passed.stats {
        let series = outcome.series.take().unwrap_or_else(|| series(worker, conn, &outcome, stats.reporter_source));
        series.received(outcome.received);
        series.sent(outcome.sent);
        series.closed();
    }
    if !state.logs.is_empty() {
        state.logs.connection(&ConnectionRecord {
            conn,
            cluster: outcome.cluster.as_ref(),
            host: outcome.host.as_deref(),
            upstream_local: outcome.upstream_local,
            received: outcome.received,
            sent: outcome.sent,
            flags: outcome.flags,
            transport_failure: &outcome.failure,
        });
    }
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
        peer_principal: if source { outcome.principal } else { conn.peer_principal },
        local_principal: conn.local_principal,
    };
    worker.istio.tcp(labels, outcome.flags)
}

async fn serve(worker: &Rc<Worker>, state: &TcpState, conn: &Conn, io: &mut Io, passed: &Passed, outcome: &mut Outcome) {
    let live = worker.live();
    let by_name = passed.cluster.as_ref().and_then(|name| live.snapshot.cluster_named(name)).map(|(id, _)| id);
    let id = by_name.or_else(|| if passed.cluster.is_some() { None } else { pick(worker, &state.config) });
    let Some(cluster) = id.and_then(|id| live.cluster(worker, id)) else {
        state.stats.inc(names::DOWNSTREAM_CX_NO_ROUTE);
        outcome.flags = ResponseFlags::NO_CLUSTER_FOUND;
        return;
    };
    drop(live);
    outcome.cluster = Some(Rc::clone(&cluster));
    let Some(permit) = cluster.breakers(false).connections.take() else {
        cluster.stats.inc(cluster_names::UPSTREAM_CX_OVERFLOW);
        outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
        return;
    };
    let Some(Connected { io: mut upstream, host, cluster, permit: _member }) =
        connect(worker, state, conn, passed, &cluster, outcome).await
    else {
        return;
    };
    let _permit = permit;
    let _active = cluster.stats.hold(cluster_names::UPSTREAM_CX_ACTIVE);
    let _request = host.begin_request();
    outcome.upstream_local = upstream.socket().local_address();
    if let Some(uri) = upstream.tls().and_then(PeerIdentity::of_connection).and_then(|p| p.uri_sans.first().cloned()) {
        outcome.principal = worker.istio.shared().principal(&uri);
    }
    // Counted as opened now: a long connection would otherwise be seen only when it has ended.
    outcome.series = passed.stats.as_ref().map(|stats| series(worker, conn, outcome, stats.reporter_source));
    let start = Instant::now();
    relay(state, conn, passed, io, &mut upstream, outcome).await;
    cluster.stats.inc(cluster_names::UPSTREAM_CX_DESTROY);
    cluster.stats.record(cluster_names::UPSTREAM_CX_LENGTH_MS, start.elapsed().as_micros() as u64);
    cluster.stats.add(cluster_names::UPSTREAM_CX_TX_BYTES_TOTAL, outcome.received);
    cluster.stats.add(cluster_names::UPSTREAM_CX_RX_BYTES_TOTAL, outcome.sent);
    host.counters.cx_active.fetch_sub(1, Relaxed);
}

fn pick(worker: &Worker, config: &TcpProxy) -> Option<lateen_snapshot::ClusterId> {
    match config.clusters.as_slice() {
        [(only, _)] => Some(*only),
        all => {
            let total = all.last()?.1;
            let roll = worker.roll().checked_rem(total)?;
            all.iter().find(|(_, bound)| roll < *bound).map(|(id, _)| *id)
        }
    }
}

/// Where the connection goes in a cluster that has no hosts of its own: where metadata says, else where it went to.
fn original(conn: &Conn, cluster: &ClusterState) -> Option<SocketAddr> {
    let Discovery::OriginalDst(settings) = &cluster.cluster.config.discovery else { return None };
    let in_metadata = || {
        let (namespace, path) = settings.metadata.as_ref()?;
        conn.metadata()?.get(namespace, path)?.as_str()?.parse().ok()
    };
    in_metadata().or_else(|| conn.restored.then_some(conn.local))
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

/// A connection to a host of the cluster, or of the member of it that was chosen.
struct Connected {
    io: Io,
    host: Arc<Host>,
    cluster: Rc<ClusterState>,
    permit: Option<Permit>,
}

async fn connect(
    worker: &Rc<Worker>,
    state: &TcpState,
    conn: &Conn,
    passed: &Passed,
    cluster: &Rc<ClusterState>,
    outcome: &mut Outcome,
) -> Option<Connected> {
    let hash = state.config.hash_source_ip.then(|| crate::router::hash::of_address(conn.remote.ip()));
    let context = Context { hash, ..Context::default() };
    let authority = conn.server_name.as_deref().unwrap_or_default();
    let sought = Sought { original: original(conn, cluster), authority, port: passed.port };
    for _ in 0..state.config.max_connect_attempts.max(1) {
        let Some((member, host)) = choose(worker, &worker.live(), Rc::clone(cluster), &context, &sought) else {
            cluster.stats.inc(cluster_names::UPSTREAM_CX_NONE_HEALTHY);
            outcome.flags = ResponseFlags::NO_HEALTHY_UPSTREAM;
            return None;
        };
        // The cluster's own limit counts already.
        let permit = if Rc::ptr_eq(&member, cluster) { None } else { Some(member.breakers(false).connections.take()) };
        let cluster = member;
        if let Some(None) = permit {
            cluster.stats.inc(cluster_names::UPSTREAM_CX_OVERFLOW);
            outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
            return None;
        }
        let config = &cluster.cluster.config;
        outcome.host = Some(Arc::clone(&host));
        cluster.stats.inc(cluster_names::UPSTREAM_CX_TOTAL);
        host.counters.cx_total.fetch_add(1, Relaxed);
        let transport = config.transports.get(host.transport as usize);
        let plan = ConnectPlan { alpn: None, server_name: conn.server_name.clone(), caller: caller(state, conn, transport) };
        let started = Instant::now();
        match worker.dialer.connect(config, transport, &host, &plan).await {
            Ok(upstream) => {
                cluster.stats.record(cluster_names::UPSTREAM_CX_CONNECT_MS, started.elapsed().as_micros() as u64);
                host.counters.cx_active.fetch_add(1, Relaxed);
                cluster.report_connect(worker, &host, true);
                outcome.flags = ResponseFlags::NONE;
                outcome.failure.clear();
                return Some(Connected { io: upstream, host, cluster, permit: permit.flatten() });
            }
            Err(failure) => {
                cluster.stats.inc(cluster_names::UPSTREAM_CX_CONNECT_FAIL);
                host.counters.cx_connect_fail.fetch_add(1, Relaxed);
                cluster.report_connect(worker, &host, false);
                outcome.flags = ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
                outcome.failure = details::underscored(&failure.reason()).into_owned();
            }
        }
    }
    cluster.stats.inc(cluster_names::UPSTREAM_CX_CONNECT_ATTEMPTS_EXCEEDED);
    None
}

async fn relay(state: &TcpState, conn: &Conn, passed: &Passed, down: &mut Io, up: &mut Io, outcome: &mut Outcome) {
    let (mut request, mut response) = (Direction::new(), Direction::new());
    let exchanges = |io: &Io| io.tls().and_then(|tls| tls.alpn_protocol()) == Some(peer_exchange::ALPN);
    if passed.peer_exchange && exchanges(down) {
        request.strip();
    }
    if exchanges(up) {
        response.strip();
    }
    let mut timer = Timer::default();
    let idle = state.config.idle_timeout.filter(|d| !d.is_zero());
    let ends = state.config.max_downstream_connection_duration.and_then(|limit| conn.start.checked_add(limit));
    let deadline = |now: Instant| [idle.and_then(|i| now.checked_add(i)), ends].into_iter().flatten().min();
    timer.set(deadline(Instant::now()));
    let result = poll_fn(|cx| {
        let before = request.moved + response.moved;
        let one = request.poll(cx, down, up);
        let other = response.poll(cx, up, down);
        if let (Poll::Ready(Err(e)), _) | (_, Poll::Ready(Err(e))) = (one, other) {
            return Poll::Ready(Err(e));
        }
        if request.done() && response.done() {
            return Poll::Ready(Ok(true));
        }
        if idle.is_some() && request.moved + response.moved != before {
            timer.set(deadline(Instant::now()));
        }
        timer.poll(cx).map(|()| Ok(false))
    })
    .await;
    if let Ok(false) = result {
        let over = ends.is_some_and(|end| end <= Instant::now());
        state.stats.inc(if over { names::MAX_DOWNSTREAM_CONNECTION_DURATION } else { names::IDLE_TIMEOUT });
    }
    outcome.received = request.moved;
    outcome.sent = response.moved;
}
