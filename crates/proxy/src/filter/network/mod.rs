//! Network filters: what happens to a connection before, and instead of, HTTP.
mod copy;
mod named;
mod peer_exchange;
mod splice;
mod tcp;

pub(crate) use named::resolve;
pub(crate) use tcp::{TcpState, run as tcp_proxy};

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use lateen_snapshot::authorize::Facts;
use lateen_snapshot::dns::cache::DnsCache;
use lateen_snapshot::http::IstioStats;
use lateen_snapshot::listener::{FilterChain, NetworkFilter};
use lateen_telemetry::envoy_names::{rbac as names, rbac_shadow as shadow_names};
use lateen_telemetry::{BlockName, Local};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::io::Io;
use crate::listener::Conn;
use crate::worker::Worker;

/// A chain's network filters bound to one worker.
pub(crate) struct NetworkFilters {
    rbac: Vec<(Local, Local)>,
    /// Open connections, for connection limits; each worker counts its own share.
    open: Rc<Cell<u64>>,
}

/// What the filters decided.
pub(crate) enum Verdict {
    Continue(Passed),
    Close,
}

/// What the terminal filter gets from the ones before it.
#[derive(Default)]
pub(crate) struct Passed {
    /// The cluster named by SNI.
    pub(crate) cluster: Option<Arc<str>>,
    pub(crate) stats: Option<Arc<IstioStats>>,
    /// Frames of Istio's metadata exchange may come in front.
    pub(crate) peer_exchange: bool,
    /// The name in the SNI is to be resolved with this cache.
    pub(crate) resolve: Option<Arc<DnsCache>>,
    /// The port to connect to at the host that the SNI names.
    pub(crate) port: Option<u16>,
    _open: Option<Open>,
}

struct Open(Rc<Cell<u64>>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl NetworkFilters {
    pub(crate) fn new(worker: &Worker, chain: &FilterChain) -> Self {
        let rbac = chain.filters.iter().filter_map(|f| match f {
            NetworkFilter::Rbac(rbac) => {
                let prefix = rbac.stat_prefix.trim_end_matches('.');
                let local = |defs, name: &str| worker.shard.local(&worker.registry.block(defs, BlockName::plain(name)));
                let shadow = match rbac.shadow_stat_prefix.trim_end_matches('.') {
                    "" => format!("{prefix}.rbac"),
                    own => format!("{prefix}.rbac.{own}"),
                };
                Some((local(names::DEFS, &format!("{prefix}.rbac")), local(shadow_names::DEFS, &shadow)))
            }
            _ => None,
        });
        Self { rbac: rbac.collect(), open: Rc::default() }
    }
}

/// Runs the filters in order.
pub(crate) fn run(worker: &Worker, conn: &Conn) -> Verdict {
    let mut passed = Passed::default();
    let filters = &conn.chain.filters;
    let mut rbac_stats = filters.rbac.iter();
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
                    return Verdict::Close;
                }
            }
            NetworkFilter::ConnectionLimit { max } => {
                let share = max.div_ceil(worker.registry.workers().max(1) as u64);
                if filters.open.get() >= share {
                    conn.listener.stats.inc(lateen_telemetry::envoy_names::listener::DOWNSTREAM_CX_OVERFLOW);
                    return Verdict::Close;
                }
                filters.open.set(filters.open.get() + 1);
                passed._open = Some(Open(Rc::clone(&filters.open)));
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
