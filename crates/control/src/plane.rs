//! The whole control plane: bound, then run.
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_identity::authenticate::Authenticators;
use lateen_identity::ca::{CONTROL_PLANE_NAMES, serve_certificate};
use lateen_identity::csr_service::{CsrService, Limits as CsrLimits, PeerCertificates};
use lateen_identity::tls::{ClientAuth, RotatingKey, ServerParams, Verification};
use lateen_identity::{CertificateAuthority, WorkloadSecrets};
use lateen_proto::json::Codec;
use lateen_xds::server::{Discovery, Hub};
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tonic::transport::Server;
use tonic::transport::server::{Connected, Router, TcpConnectInfo, TlsConnectInfo};

use crate::backend::{ControlBackend, Streams};
use crate::config::Config;
use crate::debug::{self, Context};
use crate::keeper::Keeper;
use crate::listen;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;
use crate::source::Source;

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The server certificate's life; it is renewed at about half of it.
const CERTIFICATE_TTL: Duration = Duration::from_secs(24 * 3600);
/// A peer that does not answer an HTTP/2 ping for this long is gone.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(10);
/// Streams of one connection at once: a proxy needs one for ADS, a few for CSR.
const STREAMS_PER_CONNECTION: u32 = 128;

/// Who signs certificates and who may ask for them.
#[derive(Clone)]
pub struct Identity {
    pub ca: Arc<CertificateAuthority>,
    pub authenticators: Authenticators,
    pub csr_limits: CsrLimits,
}

/// Why a control plane could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error(transparent)]
    Bind(#[from] io::Error),
    #[error("no certificate for the control plane: {0}")]
    Certificate(#[from] lateen_identity::ca::SignError),
    #[error("the TLS port cannot be set up: {0}")]
    Tls(#[from] lateen_identity::tls::InvalidTlsParams),
}

/// Where the ports ended up; port 0 in the [`Config`] gives a free one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub xds_plain: Option<SocketAddr>,
    /// `None` also when there is no [`Identity`] to make a certificate from.
    pub xds_tls: Option<SocketAddr>,
    pub debug: Option<SocketAddr>,
    pub monitoring: Option<SocketAddr>,
}

/// Looks into a control plane from within the same program. Cheap to clone.
#[derive(Clone)]
pub struct Handle {
    current: watch::Receiver<Option<Arc<Snapshot>>>,
    streams: Arc<Streams>,
    metrics: Arc<Metrics>,
}

impl Handle {
    /// The world in force; `None` until every source has been read once.
    pub fn current(&self) -> Option<Arc<Snapshot>> {
        self.current.borrow().clone()
    }

    /// To wait for changes of the world.
    pub fn snapshots(&self) -> watch::Receiver<Option<Arc<Snapshot>>> {
        self.current.clone()
    }

    /// The connected proxies, and what they made of what they were sent.
    pub fn streams(&self) -> &Streams {
        &self.streams
    }

    pub fn metrics(&self) -> &Metrics {
        &self.metrics
    }
}

/// A control plane whose ports are bound.
pub struct ControlPlane {
    addresses: Addresses,
    handle: Handle,
    discovery: Discovery<ControlBackend>,
    identity: Option<Identity>,
    plain: Option<TcpListener>,
    tls: Option<(TcpListener, watch::Receiver<Arc<ServerConfig>>)>,
    pages: Vec<TcpListener>,
    context: Arc<Context>,
    keeper: Keeper,
    shutdown: Duration,
}

/// Binds every port and prepares everything; nothing is answered before [`ControlPlane::run`]. Must
/// be called within a tokio runtime.
///
/// # Errors
/// When a port cannot be bound or the server certificate cannot be made.
pub async fn build(config: Config, sources: Vec<Box<dyn Source>>, identity: Option<Identity>) -> Result<ControlPlane, BuildError> {
    let metrics = Arc::new(Metrics::default());
    let streams: Arc<Streams> = Arc::new(Hub::new(config.push_concurrency));
    let (publish, current) = watch::channel(None);
    let backend = ControlBackend {
        metrics: metrics.clone(),
        authenticators: identity.as_ref().map(|i| i.authenticators.clone()),
        require_identity: config.require_identity,
    };
    let discovery = Discovery::new(backend, streams.clone(), &config.identifier, config.limits.clone());
    let keeper = Keeper::new(sources, config.mesh, config.debounce, streams.clone(), metrics.clone(), publish);

    let plain = bind_if("the xDS port", config.xds_plain).await?;
    let tls = match (&identity, bind_if("the xDS TLS port", config.xds_tls.filter(|_| identity.is_some())).await?) {
        (Some(identity), Some(listener)) => Some((listener, tls_config(&identity.ca, config.server_names)?)),
        _ => None,
    };
    let debug = bind_if("the debug port", config.debug).await?;
    let monitoring = bind_if("the monitoring port", config.monitoring).await?;
    let addresses = Addresses {
        xds_plain: address(plain.as_ref())?,
        xds_tls: address(tls.as_ref().map(|(l, _)| l))?,
        debug: address(debug.as_ref())?,
        monitoring: address(monitoring.as_ref())?,
    };
    let context = Context {
        version: VERSION,
        identifier: config.identifier,
        current: current.clone(),
        streams: streams.clone(),
        metrics: metrics.clone(),
        authority: identity.as_ref().map(|i| i.ca.clone()),
        codec: Codec::new(),
        debug_for_all: config.debug_for_all,
    };
    Ok(ControlPlane {
        addresses,
        handle: Handle { current, streams, metrics },
        discovery,
        identity,
        plain,
        tls,
        pages: debug.into_iter().chain(monitoring).collect(),
        context: Arc::new(context),
        keeper,
        shutdown: config.shutdown,
    })
}

impl ControlPlane {
    pub fn addresses(&self) -> Addresses {
        self.addresses
    }

    pub fn handle(&self) -> Handle {
        self.handle.clone()
    }

    /// Serves until `shutdown`, then ends every stream and returns.
    pub async fn run(self, shutdown: impl Future<Output = ()>) {
        let mut tasks = JoinSet::new();
        let (stop, stopped) = watch::channel(false);
        if let Some(listener) = self.plain {
            let server = server(&self.discovery, self.identity.as_ref());
            tasks.spawn(serve(server, listen::plain(listener), stopped.clone()));
        }
        if let Some((listener, config)) = self.tls {
            let server = server(&self.discovery, self.identity.as_ref());
            tasks.spawn(serve(server, listen::tls(listener, config), stopped.clone()));
        }
        // These have nothing to finish: they end with this scope.
        let mut endless = JoinSet::new();
        for listener in self.pages {
            endless.spawn(debug::serve(listener, self.context.clone()));
        }
        endless.spawn(self.keeper.run());
        shutdown.await;
        self.handle.streams.close();
        stop.send_replace(true);
        let ended = tokio::time::timeout(self.shutdown, async { while tasks.join_next().await.is_some() {} }).await;
        if ended.is_err() {
            tracing::warn!("connections did not end in time and are cut");
        }
    }
}

async fn bind_if(what: &str, address: Option<SocketAddr>) -> io::Result<Option<TcpListener>> {
    match address {
        Some(address) => Ok(Some(listen::bind(what, address).await?)),
        None => Ok(None),
    }
}

fn address(listener: Option<&TcpListener>) -> io::Result<Option<SocketAddr>> {
    listener.map(TcpListener::local_addr).transpose()
}

/// The services, for one port.
fn server(discovery: &Discovery<ControlBackend>, identity: Option<&Identity>) -> Router {
    let mut builder = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .max_concurrent_streams(STREAMS_PER_CONNECTION);
    let router = builder.add_service(discovery.aggregated());
    match identity {
        None => router,
        Some(identity) => {
            let service = CsrService::new(identity.ca.clone(), identity.authenticators.clone(), identity.csr_limits);
            router.add_service(tonic::service::interceptor::InterceptedService::new(service.into_server(), show_certificates))
        }
    }
}

/// Tells the certificate service which certificate the caller showed in the handshake.
#[allow(clippy::result_large_err)] // tonic's own signature
fn show_certificates(mut request: tonic::Request<()>) -> Result<tonic::Request<()>, tonic::Status> {
    let shown = request.extensions().get::<TlsConnectInfo<TcpConnectInfo>>().and_then(TlsConnectInfo::peer_certs);
    if let Some(chain) = shown {
        request.extensions_mut().insert(PeerCertificates(chain));
    }
    Ok(request)
}

async fn serve<S>(server: Router, incoming: S, mut stopped: watch::Receiver<bool>)
where
    S: tokio_stream::Stream + Send + 'static,
    S: tokio_stream::Stream<Item = io::Result<<S as Incoming>::Io>> + Incoming,
{
    let shutdown = async move {
        // Fails when the control plane was dropped, which is a reason to stop as well.
        let _ = stopped.wait_for(|stop| *stop).await;
    };
    if let Err(error) = server.serve_with_incoming_shutdown(incoming, shutdown).await {
        tracing::error!(%error, "a discovery port failed");
    }
}

/// A stream of connections, named so that [`serve`] can be written once for plaintext and TLS.
trait Incoming {
    type Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static;
}

impl<T> Incoming for tokio_stream::wrappers::ReceiverStream<io::Result<T>>
where
    T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Connected + Unpin + Send + 'static,
{
    type Io = T;
}

/// The TLS configuration, remade when the authority's roots change; the certificate itself rotates within it.
fn tls_config(ca: &Arc<CertificateAuthority>, more_names: Vec<String>) -> Result<watch::Receiver<Arc<ServerConfig>>, BuildError> {
    let names: Vec<String> = CONTROL_PLANE_NAMES.iter().map(|n| (*n).to_owned()).chain(more_names).collect();
    let secrets = serve_certificate(ca.clone(), names, CERTIFICATE_TTL)?;
    let mut changes = ca.changes();
    let (publish, receiver) = watch::channel(with_roots(ca, secrets.clone())?);
    let ca = ca.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                () = publish.closed() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            match with_roots(&ca, secrets.clone()) {
                Ok(config) => drop(publish.send_replace(config)),
                Err(error) => tracing::error!(%error, "the new roots cannot be used; the old ones stay"),
            }
        }
    });
    Ok(receiver)
}

/// A client certificate is welcome and verified, not demanded: a proxy that starts has only a token.
fn with_roots(
    ca: &CertificateAuthority,
    secrets: watch::Receiver<Option<Arc<WorkloadSecrets>>>,
) -> Result<Arc<ServerConfig>, lateen_identity::tls::InvalidTlsParams> {
    let mut params = ServerParams::with_resolver(RotatingKey::new(secrets));
    params.client_auth = ClientAuth::Optional;
    params.verification = Verification::roots(ca.roots(), Vec::new());
    params.alpn = vec![b"h2".to_vec()];
    params.build()
}

/// A shutdown that somebody else triggers.
pub fn shutdown_signal() -> (oneshot::Sender<()>, impl Future<Output = ()>) {
    let (sender, receiver) = oneshot::channel();
    (sender, async move {
        // The sender dropped means the same as the sender fired.
        let _ = receiver.await;
    })
}
