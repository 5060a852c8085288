//! Network filters: what happens to a connection before, and instead of, HTTP.
mod clock;
mod copy;
mod dial;
mod leaving;
mod named;
mod peer_exchange;
mod relay;
mod services;
mod splice;
mod tcp;
mod tunnel;

pub(crate) use named::resolve;
pub(crate) use tcp::{TcpState, log_closed, run as tcp_proxy};

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lateen_snapshot::authorize::Facts;
use lateen_snapshot::dns::cache::DnsCache;
use lateen_snapshot::http::IstioStats;
use lateen_snapshot::listener::{ConnectionLimit, FilterChain, NetworkFilter, StateKey, StateValue};
use lateen_telemetry::access_log::TextFormat;
use lateen_telemetry::envoy_names::{connection_limit, connection_rate_limit, listener, rbac as names, rbac_shadow as shadow_names};
use lateen_telemetry::stats::Held;
use lateen_telemetry::{BlockName, Local, ResponseFlags, details};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::io::Io;
use crate::listener::Conn;
use crate::worker::Worker;

/// A chain's network filters bound to one worker.
pub(crate) struct NetworkFilters {
    rbac: Vec<(Local, Local)>,
    limits: Vec<Local>,
    /// Of filters that ask another server.
    asking: Vec<services::Bound>,
    /// Of `SetState` filters, one after the other.
    formats: Vec<TextFormat>,
    /// Of limits of open connections.
    open: Vec<Local>,
}

/// What the filters decided.
pub(crate) enum Verdict {
    Continue(Passed),
    Close(Closed),
}

/// What logs tell of a connection that a filter closed.
#[derive(Default)]
pub(crate) struct Closed {
    pub(crate) flags: ResponseFlags,
    pub(crate) details: &'static str,
    pub(crate) termination: Option<String>,
    /// Where the filter decides about bytes in Envoy: by then the TCP proxy behind it has its cluster.
    pub(crate) passed: Option<Box<Passed>>,
}

impl Closed {
    fn flagged(flags: ResponseFlags) -> Self {
        Self { flags, ..Self::default() }
    }
}

/// What the terminal filter gets from the ones before it.
#[derive(Default)]
pub(crate) struct Passed {
    /// The cluster named by SNI.
    pub(crate) cluster: Option<Arc<str>>,
    /// The server name to ask for upstream, where it is not the caller's.
    pub(crate) server_name: Option<Arc<str>>,
    /// Instead of the configured one; zero for none.
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) no_tunnel: bool,
    pub(crate) stats: Option<Arc<IstioStats>>,
    /// Frames of Istio's metadata exchange may come in front.
    pub(crate) peer_exchange: bool,
    /// The name in the SNI is to be resolved with this cache.
    pub(crate) resolve: Option<Arc<DnsCache>>,
    /// The port to connect to at the host that the SNI names.
    pub(crate) port: Option<u16>,
    _open: Vec<Open>,
}

impl Passed {
    fn set(&mut self, value: &StateValue, format: &TextFormat, conn: &Conn) {
        let mut bytes = Vec::new();
        format.write(&tcp::Outcome::default().record(conn), &mut bytes);
        let Ok(text) = String::from_utf8(bytes) else { return };
        if text.is_empty() && value.skip_if_empty {
            return;
        }
        match value.key {
            StateKey::Cluster => self.cluster = Some(text.into()),
            StateKey::ServerName => self.server_name = Some(text.into()),
            // What is no number is no timeout of its own.
            StateKey::IdleTimeout => self.idle_timeout = text.parse().ok().map(Duration::from_millis),
            StateKey::DisableTunneling => self.no_tunnel = text == "true",
        }
    }
}

/// A connection that counts for a limit while this lives.
struct Open {
    limit: Arc<ConnectionLimit>,
    _active: Held,
}

impl Drop for Open {
    fn drop(&mut self) {
        self.limit.release();
    }
}

impl NetworkFilters {
    pub(crate) fn new(worker: &Worker, chain: &FilterChain) -> Self {
        let rbac = chain.filters.iter().filter_map(|f| match f {
            NetworkFilter::Rbac(rbac) => {
                let prefix = rbac.stat_prefix.trim_end_matches('.');
                let local = |defs, name| worker.shard.local(&worker.registry.block(defs, name));
                let shadow = match rbac.shadow_stat_prefix.trim_end_matches('.') {
                    "" => BlockName::rbac(prefix),
                    own => BlockName::rbac(prefix).below(own),
                };
                Some((local(names::DEFS, BlockName::rbac(prefix)), local(shadow_names::DEFS, shadow)))
            }
            _ => None,
        });
        let limits = chain.filters.iter().filter_map(|f| match f {
            NetworkFilter::LocalRateLimit(limit) => Some(limit_stats(worker, BlockName::local_rate_limit(&limit.stat_prefix))),
            _ => None,
        });
        let open = chain.filters.iter().filter_map(|f| match f {
            NetworkFilter::ConnectionLimit(limit) => {
                let name = BlockName::connection_limit(&limit.stat_prefix);
                Some(worker.shard.local(&worker.registry.block(connection_limit::DEFS, name)))
            }
            _ => None,
        });
        let values = chain.filters.iter().filter_map(|f| if let NetworkFilter::SetState(values) = f { Some(values) } else { None });
        // They compiled when the configuration came.
        let formats = values.flat_map(|v| v.iter()).filter_map(|v| TextFormat::compile(&v.format).ok());
        Self {
            rbac: rbac.collect(),
            limits: limits.collect(),
            asking: chain.filters.iter().filter_map(|f| services::Bound::new(worker, f)).collect(),
            formats: formats.collect(),
            open: open.collect(),
        }
    }
}

/// The counters of a limit of connections.
pub(crate) fn limit_stats(worker: &Worker, name: BlockName) -> Local {
    worker.shard.local(&worker.registry.block(connection_rate_limit::DEFS, name))
}

/// Runs the filters in order.
pub(crate) async fn run(worker: &Rc<Worker>, conn: &Conn) -> Verdict {
    let mut passed = Passed::default();
    let filters = &conn.chain.filters;
    let (mut rbac_stats, mut limit_stats, mut formats) = (filters.rbac.iter(), filters.limits.iter(), filters.formats.iter());
    let (mut asking, mut open_stats) = (filters.asking.iter(), filters.open.iter());
    for filter in &conn.chain.chain.filters {
        match filter {
            NetworkFilter::MetadataExchange => passed.peer_exchange = true,
            NetworkFilter::SniCluster => passed.cluster.clone_from(&conn.server_name),
            NetworkFilter::SniDynamicForwardProxy(cache, port) => {
                passed.resolve = Some(Arc::clone(cache));
                passed.port = Some(*port);
            }
            NetworkFilter::IstioStats(stats) => passed.stats = Some(Arc::clone(stats)),
            NetworkFilter::Rbac(rbac) => {
                let facts = Facts {
                    head: None,
                    destination: conn.local,
                    direct_remote: conn.direct_remote.ip(),
                    connection_remote: conn.remote.ip(),
                    remote: conn.remote.ip(),
                    source_port: conn.remote.port(),
                    peer: conn.peer(),
                    server_name: conn.server_name.as_deref(),
                    metadata: conn.metadata(),
                };
                let stats = rbac_stats.next();
                if let (Some(rules), Some((_, stats))) = (&rbac.shadow, stats) {
                    let allowed = rules.evaluate(&facts).allowed;
                    stats.inc(if allowed { shadow_names::SHADOW_ALLOWED } else { shadow_names::SHADOW_DENIED });
                }
                let verdict = rbac.evaluate(&facts);
                if let (Some(_), Some((stats, _))) = (&rbac.rules, stats) {
                    stats.inc(if verdict.allowed { names::ALLOWED } else { names::DENIED });
                }
                if !verdict.allowed {
                    tracing::debug!("connection from {} denied by {:?}", conn.remote, verdict.policy);
                    return Verdict::Close(Closed {
                        termination: Some(details::rbac_denied(verdict.policy.as_deref())),
                        passed: Some(Box::new(passed)),
                        ..Closed::default()
                    });
                }
            }
            NetworkFilter::LocalRateLimit(limit) => {
                let stats = limit_stats.next();
                if !limit.bucket.take(worker.nanos()) {
                    if let Some(stats) = stats {
                        stats.inc(connection_rate_limit::RATE_LIMITED);
                    }
                    return Verdict::Close(Closed::flagged(ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED));
                }
            }
            NetworkFilter::SetState(values) => {
                for value in values.iter() {
                    let Some(format) = formats.next() else { break };
                    passed.set(value, format, conn);
                }
            }
            // On the heap while it lasts, as its state would otherwise be part of every connection's.
            NetworkFilter::ExtAuthz(config) => {
                let Some(bound) = asking.next() else { return Verdict::Close(Closed::default()) };
                if let Err(details) = Box::pin(services::authorized(worker, conn, config, bound)).await {
                    let flags = ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE;
                    return Verdict::Close(Closed { flags, details, passed: Some(Box::new(passed)), ..Closed::default() });
                }
            }
            NetworkFilter::RateLimit(config) => {
                let Some(bound) = asking.next() else { return Verdict::Close(Closed::default()) };
                if !Box::pin(services::within_quota(worker, conn, config, bound)).await {
                    return Verdict::Close(Closed::default());
                }
            }
            NetworkFilter::Discovered(_) => {
                conn.listener.stats.inc(listener::NETWORK_EXTENSION_CONFIG_MISSING);
                return Verdict::Close(Closed::default());
            }
            NetworkFilter::ConnectionLimit(limit) => {
                let Some(stats) = open_stats.next() else { return Verdict::Close(Closed::default()) };
                if !limit.take() {
                    stats.inc(connection_limit::LIMITED_CONNECTIONS);
                    return Verdict::Close(Closed::default());
                }
                let active = stats.hold(connection_limit::ACTIVE_CONNECTIONS);
                passed._open.push(Open { limit: Arc::clone(limit), _active: active });
            }
        }
    }
    Verdict::Continue(passed)
}

/// Writes the bytes and closes.
pub(crate) async fn direct_response(mut io: Io, bytes: &Bytes) {
    if io.write_all(bytes).await.is_ok() {
        let _ = io.shutdown().await;
    }
}

/// Sends back what comes.
pub(crate) async fn echo(mut io: Io) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        match io.read(&mut buffer).await {
            Ok(n) if n > 0 => {
                let Some(bytes) = buffer.get(..n) else { return };
                if io.write_all(bytes).await.is_err() || io.flush().await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
