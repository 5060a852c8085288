//! One accepted connection: original destination, inspection, chain, TLS, then the chain's filters.
use std::cell::{Cell, OnceCell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::http::HeaderValue;
use lateen_identity::tls::PeerIdentity;
use lateen_snapshot::bootstrap::overload::Action;
use lateen_snapshot::listener::ConnectionInfo;
use lateen_snapshot::log_filter::LogType;
use lateen_snapshot::metadata::Metadata;
use lateen_snapshot::ratelimit::{Limiter, LocalRateLimit};
use lateen_telemetry::ResponseFlags;
use lateen_telemetry::envoy_names::listener as names;
use lateen_telemetry::istio::PrincipalId;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::inspect::{self, Inspected, Told};
use super::{ChainState, ListenerState, TerminalState, socket};
use crate::filter::network::{self, Closed, Verdict};
use crate::io::{Io, Raw, Socket};
use crate::upstream::{Caller, Needs, Source};
use crate::worker::{Connected, Worker};
use crate::{http, tls};

/// A handshake that takes longer is given up even where the configuration sets no limit.
const LONGEST_HANDSHAKE: Duration = Duration::from_secs(15);

/// What is known of a connection; shared by its requests.
pub(crate) struct Conn {
    pub(crate) connected: Connected,
    pub(crate) listener: Rc<ListenerState>,
    pub(crate) chain: Rc<ChainState>,
    /// The (original) destination.
    pub(crate) local: SocketAddr,
    pub(crate) remote: SocketAddr,
    pub(crate) direct_remote: SocketAddr,
    pub(crate) server_name: Option<Arc<str>>,
    /// Whether it wanted to go to `local` when it was captured, or its PROXY protocol header says so.
    pub(crate) restored: bool,
    /// What a PROXY protocol header told beside addresses.
    pub(crate) told: Option<Box<Told>>,
    /// Where connections to hosts come from, when not from ourselves.
    pub(crate) source: Option<Source>,
    /// What connections to hosts take over, by what matters for them.
    pub(crate) callers: RefCell<Vec<(Needs, Rc<Caller>)>>,
    pub(crate) tls: Option<TlsInfo>,
    /// The URI of the certificate that we showed: our own SPIFFE id.
    pub(crate) local_uri: Option<Arc<String>>,
    /// This connection's element of `x-forwarded-client-cert`, once a request asked for it.
    pub(crate) client_cert: OnceCell<Option<HeaderValue>>,
    pub(crate) start: Instant,
    pub(crate) start_time: SystemTime,
    /// What its requests hold of bodies that cannot go up yet.
    pub(crate) ahead: Rc<Cell<usize>>,
    /// From when on it has lasted too long, and each answer is its last (`max_connection_duration`).
    pub(crate) old_at: Cell<Option<Instant>>,
    /// The caller's identity among the principals of Istio's metrics.
    pub(crate) peer_principal: PrincipalId,
    pub(crate) local_principal: PrincipalId,
    /// Rate limits that count this connection by itself.
    pub(crate) limits: RefCell<Vec<(Arc<LocalRateLimit>, Rc<Limiter>)>>,
}

/// What a TLS session settled.
pub(crate) struct TlsInfo {
    /// The caller's verified certificate, if it showed one.
    pub(crate) peer: Option<Arc<PeerIdentity>>,
    pub(crate) alpn: Option<Vec<u8>>,
    pub(crate) version: &'static str,
    pub(crate) cipher: &'static str,
}

impl Conn {
    pub(crate) fn is_tls(&self) -> bool {
        self.tls.is_some()
    }

    pub(crate) fn peer(&self) -> Option<&PeerIdentity> {
        self.tls.as_ref()?.peer.as_deref()
    }

    /// What is known of the connection before any request.
    pub(crate) fn metadata(&self) -> Option<&Metadata> {
        self.told.as_ref().map(|told| &told.metadata)
    }

    /// Whether the connection is to end, idle or not.
    pub(crate) fn draining(&self, worker: &Worker) -> bool {
        self.chain.drain.is_draining() || worker.drain.is_draining()
    }

    /// Since when it is to end, idle or not.
    pub(crate) fn draining_since(&self, worker: &Worker) -> Option<Instant> {
        [self.chain.drain.since(), worker.drain.since()].into_iter().flatten().min()
    }

    pub(crate) fn is_old(&self) -> bool {
        self.old_at.get().is_some_and(|at| at <= Instant::now())
    }

    /// Whether the connection is to end after the request at hand.
    pub(crate) fn ends(&self, worker: &Worker) -> bool {
        let listener = &self.listener.listener;
        self.chain.drain.ends(|| worker.roll())
            || worker.drain.ends(|| worker.roll())
            || (worker.failing.is_draining() && !listener.drains_when_modified_only)
    }

    /// Whether an HTTP connection is to end after the request at hand since memory or the like runs short. Of connections
    /// that serve no HTTP, Envoy asks nothing of the sort.
    pub(crate) fn ends_by_overload(&self, worker: &Worker) -> bool {
        !self.listener.listener.ignores_overload && worker.overload.concerns(Action::DisableKeepalive, || worker.roll())
    }
}

/// Counts a connection of a listener while it lives, once it has a chain.
struct Active(Rc<ListenerState>, Instant);

impl Active {
    fn new(listener: &Rc<ListenerState>) -> Self {
        listener.stats.inc(names::DOWNSTREAM_CX_TOTAL);
        listener.stats.gauge_inc(names::DOWNSTREAM_CX_ACTIVE);
        Self(Rc::clone(listener), Instant::now())
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.stats.inc(names::DOWNSTREAM_CX_DESTROY);
        self.0.stats.gauge_dec(names::DOWNSTREAM_CX_ACTIVE);
        self.0.stats.record(names::DOWNSTREAM_CX_LENGTH_MS, self.1.elapsed().as_micros() as u64);
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(worker: Rc<Worker>, listener: Rc<ListenerState>, stream: TcpStream, remote: SocketAddr) {
    let start = Instant::now();
    if let Some(keepalive) = &listener.listener.tcp_keepalive {
        crate::upstream::keep_alive(&stream, keepalive);
    }
    let Some(local) = stream.local_addr().ok().map(socket::plain) else { return };
    let remote = socket::plain(remote);
    let (listener, destination) = hand_over(&worker, listener, &stream, local);
    let mut stream = stream;
    let wish = ConnectionInfo {
        destination: destination.unwrap_or(local),
        source: remote,
        direct_source: remote,
        server_name: None,
        application_protocols: Vec::new(),
        transport_protocol: "raw_buffer",
    };
    let logged = (!listener.logs.is_empty()).then(|| Box::new(wish.clone()));
    let Some(Inspected { info, ahead, told, source }) = inspect::run(&worker, &listener, &mut stream, wish).await else {
        if let Some(wish) = logged {
            http::log_refused(&listener, &wish, start, ResponseFlags::NONE);
        }
        return;
    };
    let listener = listener.newest(&worker);
    let Some(chain) = listener.listener.choose_chain(&info).cloned() else {
        listener.stats.inc(names::NO_FILTER_CHAIN_MATCH);
        http::log_refused(&listener, &info, start, ResponseFlags::NO_ROUTE_FOUND);
        return;
    };
    let active = Active::new(&listener);
    let chain = listener.chain(&worker, &chain);
    let socket = Socket { ahead: ahead.freeze(), ..Socket::new(Raw::Tcp(stream)) };
    let io = match &chain.chain.tls {
        None => Io::Plain(socket),
        Some(server) => {
            let limit = chain.chain.transport_connect_timeout.unwrap_or(LONGEST_HANDSHAKE);
            // On the heap while it lasts: its state would otherwise stay part of every connection's.
            match Box::pin(tls::accept(server, socket, limit, &listener)).await {
                Some(io) => io,
                None => return http::log_refused(&listener, &info, start, ResponseFlags::NONE),
            }
        }
    };
    let tls = io.tls().map(tls::describe);
    let metrics = worker.istio.shared();
    let principal = |text: Option<&str>| text.map_or(PrincipalId::default(), |text| metrics.principal(text));
    let peer_uri = tls.as_ref().and_then(|t| t.peer.as_ref()).and_then(|p| p.uri_sans.first());
    let local_uri = chain.chain.tls.as_ref().and_then(|server| server.uri.get());
    let conn = Rc::new(Conn {
        connected: worker.connection(),
        source,
        local: info.destination,
        remote: info.source,
        direct_remote: info.direct_source,
        server_name: info.server_name,
        restored: destination.is_some() || info.destination != local,
        told,
        callers: RefCell::default(),
        peer_principal: principal(peer_uri.map(String::as_str)),
        local_principal: principal(local_uri.as_deref().map(String::as_str)),
        local_uri,
        client_cert: OnceCell::new(),
        tls,
        start,
        start_time: SystemTime::now(),
        ahead: Rc::default(),
        old_at: Cell::default(),
        chain: Rc::clone(&chain),
        listener: Rc::clone(&listener),
        limits: RefCell::default(),
    });
    let is_logged = dispatch(&worker, &conn, io).await;
    if !is_logged && !conn.listener.logs.is_empty() {
        conn.listener.logs.connection(&http::ConnectionRecord::of(&conn), LogType::NotSet);
    }
    drop(active);
}

/// The listener that serves the connection, and where the connection wanted to go.
fn hand_over(
    worker: &Worker,
    listener: Rc<ListenerState>,
    stream: &TcpStream,
    local: SocketAddr,
) -> (Rc<ListenerState>, Option<SocketAddr>) {
    let config = &listener.listener;
    let restores = listener.inspection(worker).inspectors.original_dst.as_ref().is_some_and(|gate| gate.applies_to(local.port()));
    if !restores && !config.use_original_dst {
        return (listener, None);
    }
    // A transparent socket has the wanted address as its own.
    let transparent = (restores && config.transparent).then_some(local);
    let destination = socket::original_destination(stream, local).map(socket::plain).or(transparent);
    if config.use_original_dst
        && let Some(destination) = destination
        && let Some(other) = worker.listeners.find(destination)
    {
        return (other, Some(destination));
    }
    (listener, destination)
}

/// Serves what passes the chain's filters. Whether the listener's log has it: it does where more is known of it than here.
async fn dispatch(worker: &Rc<Worker>, conn: &Rc<Conn>, io: Io) -> bool {
    let passed = match network::run(worker, conn).await {
        Verdict::Continue(passed) => passed,
        Verdict::Close(why) => {
            network::log_closed(worker, conn, &why);
            return true;
        }
    };
    if passed.resolve.is_some() && !Box::pin(network::resolve(conn, &passed)).await {
        network::log_closed(worker, conn, &Closed::default());
        return true;
    }
    match &conn.chain.terminal {
        TerminalState::Http(hcm) => Box::pin(http::serve(worker, hcm, conn, io)).await,
        TerminalState::Tcp(tcp) => Box::pin(network::tcp_proxy(worker, tcp, conn, io, passed)).await,
        TerminalState::Direct(bytes) => network::direct_response(io, bytes).await,
        TerminalState::Echo => network::echo(io).await,
        TerminalState::Missing => conn.listener.stats.inc(names::NETWORK_EXTENSION_CONFIG_MISSING),
    }
    matches!(conn.chain.terminal, TerminalState::Tcp(_))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How large the future is that a function returns.
    fn size<A, F: Future>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }

    /// An idle connection's memory is mostly its futures: what only a handshake, a request or another protocol needs is on
    /// the heap while it lasts.
    #[test]
    fn a_connection_between_requests_holds_no_room_for_one() {
        type Accepted = (Rc<Worker>, Rc<ListenerState>, TcpStream, SocketAddr);
        let accepted = size(|(worker, listener, stream, remote): Accepted| serve(worker, listener, stream, remote));
        type Dispatched<'a> = (&'a Rc<Worker>, &'a Rc<http::Hcm>, &'a Rc<Conn>, Io);
        let waiting = size(|(worker, hcm, conn, io): Dispatched<'static>| http::serve(worker, hcm, conn, io));
        assert!(accepted + waiting <= 3072, "{accepted} + {waiting} bytes");
    }
}
