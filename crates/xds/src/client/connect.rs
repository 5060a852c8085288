//! Ways to reach a discovery server: TCP, TLS over TCP, a unix socket, or whatever the caller brings.
use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tonic::transport::Endpoint;

use super::pool::{Lifeline, Pool, Seat, TAKES_NO_MORE};
use super::shell::causes;

/// A byte stream to a server.
pub trait Io: AsyncRead + AsyncWrite + Send + Unpin + 'static {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin + 'static> Io for T {}

type Dial = dyn Fn() -> Pin<Box<dyn Future<Output = io::Result<Box<dyn Io>>> + Send>> + Send + Sync;

/// Opens a connection each time the client needs one.
#[derive(Clone)]
pub struct Connector {
    dial: Arc<Dial>,
    /// Of all that share them.
    connections: Option<Arc<Pool>>,
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Connector {
    /// Connects by the caller's own means.
    pub fn new<F, T>(dial: impl Fn() -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<T>> + Send + 'static,
        T: Io,
    {
        let dial = Arc::new(move || {
            let future = dial();
            Box::pin(async move { Ok(Box::new(future.await?) as Box<dyn Io>) }) as Pin<Box<dyn Future<Output = _> + Send>>
        });
        Self { dial, connections: None }
    }

    /// The clients that get clones of it have connections together, so many of them on one and fewer where the server takes no
    /// more: each is opened when the first of its clients needs it, and closed when all of them are gone. The
    /// options of the first count for it.
    #[must_use]
    pub fn shared(self, most: usize) -> Self {
        Self { connections: Some(Arc::new(Pool::new(most))), ..self }
    }

    /// Plain TCP to `host:port`. The name is resolved at each attempt.
    pub fn tcp(address: impl Into<String>) -> Self {
        let address: Arc<str> = address.into().into();
        Self::new(move || tcp(address.clone()))
    }

    /// A unix socket.
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        let path: Arc<std::path::Path> = path.into().into();
        Self::new(move || {
            let path = path.clone();
            async move { UnixStream::connect(&path).await.map_err(|e| io::Error::new(e.kind(), format!("unix socket {}: {e}", path.display()))) }
        })
    }

    /// TLS over TCP to `host:port`, checking the server against `server_name`. `config` is asked at
    /// each attempt, so that a renewed client certificate is used from the next connection on; it
    /// must offer `h2` by ALPN if the server insists on it.
    pub fn tls(
        address: impl Into<String>,
        server_name: ServerName<'static>,
        config: impl Fn() -> io::Result<Arc<ClientConfig>> + Send + Sync + 'static,
    ) -> Self {
        let address: Arc<str> = address.into().into();
        Self::new(move || {
            let (address, server_name, config) = (address.clone(), server_name.clone(), config());
            async move {
                let connector = TlsConnector::from(config?);
                let stream = tcp(address.clone()).await?;
                let failed = |e: io::Error| io::Error::new(e.kind(), format!("TLS with {address}: {e}"));
                connector.connect(server_name, stream).await.map_err(failed)
            }
        })
    }

    /// Opens a connection, or finds a place on one that is shared, or fails to within so long.
    ///
    /// # Errors
    /// Why there is none, in words.
    pub(super) async fn seat(&self, endpoint: &Endpoint, within: Duration) -> Result<Seat, String> {
        let Some(connections) = &self.connections else {
            let dial = self.dial.clone();
            let dial = tower::service_fn(move |_: http::Uri| {
                let connecting = dial();
                async move { connecting.await.map(TokioIo::new) }
            });
            return endpoint.connect_with_connector(dial).await.map(Seat::alone).map_err(|e| causes(&e));
        };
        let connect = |line: Lifeline| {
            let dial = self.dial.clone();
            let dial = tower::service_fn(move |_: http::Uri| {
                let opening = line.is_new().then(|| line.again().open(within, dial()));
                let opening = opening.ok_or_else(|| io::Error::new(io::ErrorKind::NotConnected, TAKES_NO_MORE));
                async move { opening?.await.map(TokioIo::new) }
            });
            endpoint.connect_with_connector_lazy(dial)
        };
        connections.seat(connect).await
    }
}

async fn tcp(address: Arc<str>) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(&*address).await.map_err(|e| io::Error::new(e.kind(), format!("{address}: {e}")))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
