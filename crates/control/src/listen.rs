//! Sockets: listening, the TLS handshake, and what one peer may take of each.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

/// A handshake that takes longer is given up.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes under way at once; later connections wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// Pause after a failed `accept`, which usually means that file descriptors ran out: trying again
/// at once would burn the CPU that is needed to close some.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds a port; the error names the address.
///
/// # Errors
/// When the address cannot be bound.
pub(crate) async fn bind(what: &str, address: SocketAddr) -> io::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|e| io::Error::new(e.kind(), format!("{what} cannot listen on {address}: {e}")))
}

/// Takes one connection, come what may.
pub(crate) async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                // Best effort: without it small messages may wait 40 ms.
                let _ = stream.set_nodelay(true);
                return (stream, remote);
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Connections as a stream, for a server that wants one. Ends when the receiver is dropped.
pub(crate) fn plain(listener: TcpListener) -> ReceiverStream<io::Result<TcpStream>> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                (stream, _) = accept(&listener) => {
                    if sender.send(Ok(stream)).await.is_err() {
                        return;
                    }
                }
                () = sender.closed() => return,
            }
        }
    });
    ReceiverStream::new(receiver)
}

/// Connections after their TLS handshake, with whatever configuration is current at their start. A
/// failed handshake concerns its peer alone.
pub(crate) fn tls(listener: TcpListener, config: watch::Receiver<Arc<ServerConfig>>) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (sender, receiver) = mpsc::channel(16);
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    tokio::spawn(async move {
        loop {
            let Ok(permit) = handshakes.clone().acquire_owned().await else { return };
            let (stream, remote) = tokio::select! {
                accepted = accept(&listener) => accepted,
                () = sender.closed() => return,
            };
            let acceptor = TlsAcceptor::from(config.borrow().clone());
            let sender = sender.clone();
            tokio::spawn(async move {
                let _permit = permit;
                match timeout(HANDSHAKE, acceptor.accept(stream)).await {
                    // Fails when the server is shutting down.
                    Ok(Ok(stream)) => drop(sender.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::info!(%remote, %error, "a TLS handshake failed"),
                    Err(_) => tracing::info!(%remote, "a TLS handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(receiver)
}
