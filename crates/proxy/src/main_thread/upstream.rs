//! Connections of the main thread itself: to discovery services and for health checks.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::Address;
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::ClusterConfig;
use lateen_xds::client::Io;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::Main;
use crate::listener::proxy_header;
use crate::upstream::{ConnectFailure, Dialer, Names, handshake};

/// How long to wait for a cluster to have a host at all, e.g. for its name to be resolved.
const WAIT_FOR_HOST: Duration = Duration::from_secs(5);

impl Main {
    /// Connects to a host of a static cluster, another one each time, for requests with this authority.
    ///
    /// # Errors
    /// When there is no such cluster, it has no host, or the host cannot be reached.
    pub(crate) async fn connect(&self, cluster: &str, authority: &str) -> io::Result<Box<dyn Io>> {
        let mut snapshots = self.snapshots();
        let turn = self.next_turn();
        let pick = |snapshot: &lateen_snapshot::Snapshot| {
            let (_, cluster) = snapshot.cluster_named(cluster)?;
            let hosts: Vec<_> = cluster.hosts.hosts().cloned().collect();
            let host = hosts.get(turn.checked_rem(hosts.len())?)?;
            Some((cluster.clone(), host.clone()))
        };
        // The guard that `wait_for` returns must not live across the next await.
        let _ = tokio::time::timeout(WAIT_FOR_HOST, snapshots.wait_for(|s| pick(s).is_some())).await.map(|found| found.is_ok());
        let picked = pick(&self.snapshot());
        let Some((cluster, host)) = picked else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("cluster {cluster} has no host")));
        };
        let (transport, hostname) = (host.transport, &*host.hostname);
        let destination = Destination { address: &host.address, transport, hostname, authority: Some(authority) };
        connect_to(&cluster, &destination, self.upstream_mark, None).await
    }
}

/// Where the main thread connects to, and over which of the cluster's transport sockets.
pub(super) struct Destination<'a> {
    pub(super) address: &'a Address,
    pub(super) transport: u32,
    pub(super) hostname: &'a str,
    /// Of the requests to be sent: what the cluster says of requests (`auto_sni`, `auto_san_validation`) holds, as it does
    /// not for health checks.
    pub(super) authority: Option<&'a str>,
}

/// Connects as the transport socket demands. `alpn` replaces the protocols offered.
pub(super) async fn connect_to(
    cluster: &Arc<Cluster>,
    to: &Destination<'_>,
    mark: Option<u32>,
    alpn: Option<&[Vec<u8>]>,
) -> io::Result<Box<dyn Io>> {
    let timeout = cluster.config.connect_timeout;
    let attempt = async {
        let mut stream = match to.address {
            Address::Socket(address) => Stream::Tcp(tcp(&cluster.config, *address, mark).await?),
            Address::Pipe(path) => Stream::Unix(UnixStream::connect(&**path).await?),
        };
        let transport = cluster.config.transports.get(to.transport as usize);
        if let Some(config) = transport.and_then(|t| t.proxy_protocol.as_ref()) {
            // Nobody stands behind a connection of our own.
            stream.write(&proxy_header::encode(config, None)).await?;
        }
        let Some(tls) = transport.and_then(|t| t.tls.as_ref()) else { return Ok(stream.plain()) };
        let names = Names::asked(to.authority, tls);
        Ok(match stream {
            Stream::Tcp(stream) => Box::new(handshake(stream, tls, &names, to.hostname, alpn).await.map_err(no_tls)?) as Box<dyn Io>,
            Stream::Unix(stream) => Box::new(handshake(stream, tls, &names, to.hostname, alpn).await.map_err(no_tls)?) as Box<dyn Io>,
        })
    };
    let failed = |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", to.address));
    match tokio::time::timeout(timeout, attempt).await {
        Ok(result) => result.map_err(failed),
        Err(_) => Err(failed(io::Error::new(io::ErrorKind::TimedOut, format!("no connection within {timeout:?}")))),
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Tcp(stream) => stream.write_all(bytes).await,
            Self::Unix(stream) => stream.write_all(bytes).await,
        }
    }

    fn plain(self) -> Box<dyn Io> {
        match self {
            Self::Tcp(stream) => Box::new(stream),
            Self::Unix(stream) => Box::new(stream),
        }
    }
}

/// With the cluster's own source address and options, and marked: that keeps our own connections out of the capture.
async fn tcp(config: &ClusterConfig, address: SocketAddr, mark: Option<u32>) -> io::Result<TcpStream> {
    Dialer { mark }.socket(config, address, None)?.connect(address).await
}

fn no_tls(failure: ConnectFailure) -> io::Error {
    match failure {
        ConnectFailure::NotReady => io::Error::new(io::ErrorKind::NotFound, "a certificate of its TLS context has not arrived"),
        other => io::Error::new(io::ErrorKind::InvalidData, other.reason()),
    }
}

#[cfg(test)]
mod tests {
    use lateen_identity::tls::ServerParams;
    use lateen_identity::{PrivateKey, secrets};
    use tokio::net::TcpListener;

    use super::*;
    use crate::main_thread::test_support;

    /// A server on loopback whose certificate has these names, once; it tells which one was asked for. And its certificate.
    async fn server(names: &[&str]) -> (u16, String, tokio::task::JoinHandle<Option<String>>) {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let certificate = rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap();
        let own = PrivateKey::from_pem(key.serialize_pem().as_bytes(), "key").unwrap();
        let params = ServerParams::new(vec![Arc::new(secrets::certified_key(vec![certificate.der().clone()], &own).unwrap())]);
        let acceptor = tokio_rustls::TlsAcceptor::from(params.build().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = tokio::spawn(async move {
            let stream = acceptor.accept(listener.accept().await.unwrap().0).await.unwrap();
            stream.get_ref().1.server_name().map(str::to_owned)
        });
        (port, certificate.pem(), asked)
    }

    /// Connects to it for requests to its address.
    async fn connect(port: u16, root: &str) -> io::Result<Box<dyn Io>> {
        let tls = serde_json::json!({
            "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext", "sni": "fixed.test",
            "common_tls_context": {"validation_context": {"trusted_ca": {"inline_string": root}}}
        });
        let http = serde_json::json!({
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions", "explicit_http_config": {"http2_protocol_options": {}},
            "upstream_http_protocol_options": {"auto_sni": true, "auto_san_validation": true}
        });
        let address = serde_json::json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
        let cluster = serde_json::json!({
            "name": "xds", "load_assignment": {"cluster_name": "xds", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]},
            "transport_socket": {"name": "tls", "typed_config": tls},
            "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": http}
        });
        let bootstrap = serde_json::json!({"node": {"id": "n", "cluster": "c"}, "static_resources": {"clusters": [cluster]}});
        let main = test_support::main(&bootstrap.to_string());
        main.connect("xds", &format!("127.0.0.1:{port}")).await
    }

    #[tokio::test]
    async fn a_discovery_service_at_an_address_is_asked_for_the_contexts_name_and_shows_its_address() {
        let (port, root, asked) = server(&["127.0.0.1"]).await;
        let _stream = connect(port, &root).await.unwrap();
        assert_eq!(asked.await.unwrap().as_deref(), Some("fixed.test"));
        let (port, root, _asked) = server(&["fixed.test"]).await;
        assert!(connect(port, &root).await.err().is_some_and(|e| e.to_string().contains("TLS error")));
    }
}
