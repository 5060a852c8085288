//! The server's side of TLS: handshakes with a limit, and what a session settled.
use std::sync::Arc;
use std::time::Duration;

use lateen_identity::tls::suites::openssl_name;
use lateen_identity::tls::{PeerIdentity, PeerRefused};
use lateen_snapshot::tls::ServerTls;
use lateen_telemetry::envoy_names::{listener as names, ssl};
use rustls::server::Acceptor;
use rustls::{CommonState, ServerConfig};
use tokio_rustls::server::TlsStream as ServerStream;
use tokio_rustls::{LazyConfigAcceptor, TlsStream};

use crate::io::{Io, Socket};
use crate::listener::{ListenerState, TlsInfo};

/// Shakes hands; `None` when that failed, which is counted and logged.
pub(crate) async fn accept(server: &ServerTls, socket: Socket, limit: Duration, listener: &ListenerState) -> Option<Io> {
    let Some(config) = server.config.get() else {
        tracing::debug!("listener {}: a TLS connection came before its certificate", listener.listener.name);
        listener.ssl().inc(ssl::CONNECTION_ERROR);
        return None;
    };
    match tokio::time::timeout(limit, handshake(config, socket)).await {
        Ok(Ok(stream)) => {
            listener.ssl().inc(ssl::HANDSHAKE);
            if stream.get_ref().1.peer_certificates().is_none() {
                listener.ssl().inc(ssl::NO_CERTIFICATE);
            }
            Some(Io::Tls(Box::new(TlsStream::Server(stream))))
        }
        Ok(Err(e)) => {
            tracing::debug!("listener {}: TLS handshake failed: {e}", listener.listener.name);
            listener.ssl().inc(failure(&e));
            None
        }
        Err(_) => {
            listener.stats.inc(names::DOWNSTREAM_CX_TRANSPORT_SOCKET_CONNECT_TIMEOUT);
            None
        }
    }
}

/// A caller whose protocols (ALPN) we have none of in common is served without one, as Envoy does: Istio's callers offer
/// `istio` alone for mirrored and TCP traffic, and the chain was chosen by what they offered already.
async fn handshake(config: Arc<ServerConfig>, socket: Socket) -> std::io::Result<ServerStream<Socket>> {
    let start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
    let common = match start.client_hello().alpn() {
        Some(mut offered) => offered.any(|protocol| config.alpn_protocols.iter().any(|own| own == protocol)),
        None => true,
    };
    if common || config.alpn_protocols.is_empty() {
        return start.into_stream(config).await;
    }
    let mut without = (*config).clone();
    without.alpn_protocols.clear();
    start.into_stream(Arc::new(without)).await
}

fn failure(error: &std::io::Error) -> lateen_telemetry::stats::Counter {
    match error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()) {
        Some(rustls::Error::NoCertificatesPresented) => ssl::FAIL_VERIFY_NO_CERT,
        Some(refused @ rustls::Error::InvalidCertificate(_)) => match PeerRefused::of(refused) {
            Some(PeerRefused::NotPinned) => ssl::FAIL_VERIFY_CERT_HASH,
            Some(refused) if refused.is_of_names() => ssl::FAIL_VERIFY_SAN,
            _ => ssl::FAIL_VERIFY_ERROR,
        },
        _ => ssl::CONNECTION_ERROR,
    }
}

/// What the session settled.
pub(crate) fn describe(session: &CommonState) -> TlsInfo {
    TlsInfo {
        peer: PeerIdentity::of_connection(session),
        alpn: session.alpn_protocol().map(<[u8]>::to_vec),
        version: match session.protocol_version() {
            Some(rustls::ProtocolVersion::TLSv1_3) => "TLSv1.3",
            Some(rustls::ProtocolVersion::TLSv1_2) => "TLSv1.2",
            _ => "",
        },
        cipher: session.negotiated_cipher_suite().map_or("", |s| openssl_name(s.suite())),
    }
}
