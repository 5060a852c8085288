//! Connections of the main thread itself: to discovery services and for health checks.
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::Address;
use lateen_snapshot::Cluster;
use lateen_snapshot::cluster::ClusterConfig;
use lateen_snapshot::tls::ClientTls;
use lateen_xds::client::Io;
use rustls_pki_types::ServerName;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpStream, UnixStream};

use super::Main;
use crate::listener::proxy_header;
use crate::upstream::Dialer;

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

impl<'a> Destination<'a> {
    /// The name to ask for, and whether the certificate must have it. That of an authority precedes the context's own,
    /// but an address is never sent (Envoy `Router::Filter`, `ClientContextImpl::newSsl`).
    fn server_name(&self, tls: &'a ClientTls) -> (Option<&'a str>, bool) {
        let asked = self.authority.filter(|_| tls.auto_sni).map(host_of);
        let is_address = |host: &str| host.parse::<std::net::IpAddr>().is_ok();
        match asked {
            Some(host) if tls.auto_san || !is_address(host) => (Some(host), tls.auto_san || tls.checks_sni),
            _ => {
                let name = tls.own_name(self.hostname);
                (name, name.is_some() && tls.checks_sni)
            }
        }
    }
}

/// An authority without its port.
fn host_of(authority: &str) -> &str {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    let host = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, _)) => return address,
        None => authority,
    };
    host.rsplit_once(':').filter(|(_, port)| is_port(port)).map_or(host, |(host, _)| host)
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
        let missing = || io::Error::new(io::ErrorKind::NotFound, "a certificate of its TLS context has not arrived");
        let (name, check_name) = to.server_name(tls);
        let config = tls.with_alpn(alpn, check_name).ok_or_else(missing)?;
        let connector = tokio_rustls::TlsConnector::from(config);
        let name = server_name(name)?;
        Ok(match stream {
            Stream::Tcp(stream) => Box::new(connector.connect(name, stream).await?) as Box<dyn Io>,
            Stream::Unix(stream) => Box::new(connector.connect(name, stream).await?) as Box<dyn Io>,
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

fn server_name(name: Option<&str>) -> io::Result<ServerName<'static>> {
    match name {
        Some(name) => ServerName::try_from(name.to_owned()).map_err(|e| io::Error::new(io::ErrorKind::InvalidInput, e)),
        // An address is never sent.
        None => Ok(ServerName::IpAddress(std::net::IpAddr::from([127, 0, 0, 1]).into())),
    }
}

#[cfg(test)]
mod tests {
    use lateen_snapshot::tls::Slot;

    use super::*;

    fn tls(sni: Option<&str>) -> ClientTls {
        ClientTls {
            config: Slot::empty(),
            uri: Slot::empty(),
            sni: sni.map(Into::into),
            auto_host_sni: false,
            checks_sni: false,
            auto_sni: true,
            auto_san: false,
            alpn: Vec::new(),
        }
    }

    fn asked(authority: Option<&str>, tls: &ClientTls) -> (String, bool) {
        let address = Address::Socket("10.0.0.1:15012".parse().unwrap());
        let (name, check) = Destination { address: &address, transport: 0, hostname: "host", authority }.server_name(tls);
        (name.unwrap_or_default().to_owned(), check)
    }

    #[test]
    fn a_discovery_service_is_asked_for_the_name_in_the_authority() {
        let (own, none) = (tls(Some("fixed")), tls(None));
        let names = [("istiod:15012", "istiod"), ("xds", "xds"), ("10.1.2.3:99", "fixed"), ("[::1]:99", "fixed"), ("[::1]", "fixed")];
        for (authority, name) in names {
            assert_eq!(asked(Some(authority), &own), (name.to_owned(), false), "{authority}");
        }
        assert_eq!(asked(Some("10.1.2.3"), &none), (String::new(), false), "an address is never sent");
        assert_eq!(asked(None, &own), ("fixed".to_owned(), false), "a health check is no request");
        assert_eq!(asked(Some("istiod"), &ClientTls { auto_sni: false, ..tls(Some("fixed")) }), ("fixed".to_owned(), false));
    }

    #[test]
    fn a_discovery_services_certificate_must_have_the_name_in_the_authority_where_requests_ask_for_it() {
        let checked = |sni, checks_sni| ClientTls { auto_san: true, checks_sni, ..tls(sni) };
        assert_eq!(asked(Some("istiod:15012"), &checked(Some("fixed"), false)), ("istiod".to_owned(), true));
        assert_eq!(asked(Some("10.1.2.3:99"), &checked(None, false)), ("10.1.2.3".to_owned(), true));
        let by_sni = |sni| ClientTls { checks_sni: true, ..tls(sni) };
        assert_eq!(asked(Some("istiod"), &by_sni(None)), ("istiod".to_owned(), true));
        assert_eq!(asked(Some("10.1.2.3"), &by_sni(Some("fixed"))), ("fixed".to_owned(), true));
        assert_eq!(asked(Some("10.1.2.3"), &by_sni(None)), (String::new(), false));
        assert_eq!(asked(None, &checked(None, false)), (String::new(), false));
    }
}
