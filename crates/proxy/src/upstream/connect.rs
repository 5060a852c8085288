//! Dialling a host: socket options, source address, PROXY protocol header, TLS.
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::{Address, Host};
use lateen_snapshot::cluster::{ClusterConfig, TcpKeepalive, Transport};
use lateen_snapshot::tls::ClientTls;
use rustls_pki_types::ServerName;
use socket2::{Domain, Protocol, SockRef, Socket as RawSocket, Type};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpSocket, UnixStream};
use tokio_rustls::{TlsConnector, TlsStream, client};

use super::caller::{Caller, Source};
use super::eyeballs;
use crate::io::{Io, Raw, Socket};
use crate::listener::proxy_header;

/// What all connections of a process have in common.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Dialer {
    /// `SO_MARK`, so that the capture rules let our own connections pass.
    pub(crate) mark: Option<u32>,
}

/// How one connection is to be made.
#[derive(Clone, Debug, Default)]
pub(crate) struct ConnectPlan {
    /// ALPN to offer instead of the context's own.
    pub(crate) alpn: Option<Arc<Vec<Vec<u8>>>>,
    /// What a request or a filter settles of its names.
    pub(crate) names: Names,
    /// What is taken over from the caller's connection.
    pub(crate) caller: Option<Rc<Caller>>,
}

/// The names of a connection over TLS, where a request or a filter settles them instead of the context.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Names {
    /// The one to ask for.
    pub(crate) sent: Option<Arc<str>>,
    /// The one that the certificate must have.
    pub(crate) checked: Option<Arc<str>>,
}

impl Names {
    /// Those of a request for `authority`, where the context heeds it. An address is never asked for, so that the context's own name
    /// stands, and yet it is what the certificate must have (Envoy's router).
    pub(crate) fn asked(authority: Option<&str>, tls: &ClientTls) -> Self {
        let Some(host) = authority.filter(|_| tls.auto_sni).map(host_of) else { return Self::default() };
        let name: Arc<str> = host.into();
        Self { sent: host.parse::<IpAddr>().is_err().then(|| Arc::clone(&name)), checked: tls.auto_san.then_some(name) }
    }

    /// The name to send to a host of this name, and the one that its certificate must have.
    fn towards<'a>(&'a self, tls: &'a ClientTls, hostname: &'a str) -> (Option<&'a str>, Option<&'a str>) {
        let sent = self.sent.as_deref().or_else(|| tls.own_name(hostname));
        (sent, self.checked.as_deref().or(sent.filter(|_| tls.checks_sni)))
    }
}

/// Without port and brackets.
fn host_of(authority: &str) -> &str {
    let host = authority
        .rsplit_once(':')
        .filter(|(host, port)| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')))
        .map_or(authority, |(host, _)| host);
    host.trim_start_matches('[').trim_end_matches(']')
}

/// Why there is no connection; the text is what operators see as the transport failure reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ConnectFailure {
    Refused(String),
    Timeout,
    Tls(String),
    /// Certificates have not arrived yet.
    NotReady,
}

impl ConnectFailure {
    pub(crate) fn reason(&self) -> String {
        match self {
            Self::Refused(text) => format!("delayed connect error: {text}"),
            Self::Timeout => String::new(),
            Self::Tls(text) => format!("TLS error: {text}"),
            Self::NotReady => "TLS error: Secret is not supplied by SDS".to_owned(),
        }
    }
}

/// The error without Rust's `(os error 111)`.
pub(crate) fn plain_error(error: &io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(at) => text[..at].to_owned(),
        None => text,
    }
}

/// Why a handshake failed, in words: what was wrong with the peer's certificate, else what TLS or the socket says.
fn handshake_error(error: &io::Error) -> String {
    if error.get_ref().is_some() { lateen_identity::tls::refusal(error) } else { plain_error(error) }
}

impl Dialer {
    /// Connects within the cluster's `connect_timeout`, which includes the TLS handshake as in Envoy.
    pub(crate) async fn connect(
        &self,
        config: &ClusterConfig,
        transport: Option<&Transport>,
        host: &Host,
        plan: &ConnectPlan,
    ) -> Result<Io, ConnectFailure> {
        let attempt = self.attempt(config, transport, host, plan);
        match tokio::time::timeout(config.connect_timeout.max(Duration::from_millis(1)), attempt).await {
            Ok(result) => result,
            Err(_) => Err(ConnectFailure::Timeout),
        }
    }

    async fn attempt(
        &self,
        config: &ClusterConfig,
        transport: Option<&Transport>,
        host: &Host,
        plan: &ConnectPlan,
    ) -> Result<Io, ConnectFailure> {
        let source = plan.caller.as_ref().and_then(|c| c.source.as_ref());
        let refused = |e: io::Error| ConnectFailure::Refused(plain_error(&e));
        let raw = match &host.address {
            Address::Socket(address) if host.addresses.is_empty() => {
                let socket = self.socket(config, *address, source).map_err(refused)?;
                Raw::Tcp(socket.connect(*address).await.map_err(refused)?)
            }
            Address::Socket(_) => {
                let connect = |address| async move { self.socket(config, address, source)?.connect(address).await };
                Raw::Tcp(Box::pin(eyeballs::first(&host.addresses, connect)).await.map_err(refused)?)
            }
            Address::Pipe(path) => Raw::Unix(UnixStream::connect(&**path).await.map_err(refused)?),
        };
        let mut socket = Socket::new(raw);
        let Some(transport) = transport else { return Ok(Io::Plain(socket)) };
        if let Some(config) = &transport.proxy_protocol {
            let header = proxy_header::encode(config, plan.caller.as_ref().and_then(|c| c.proxied.as_ref()));
            socket.write_all(&header).await.map_err(refused)?;
        }
        let Some(tls) = &transport.tls else { return Ok(Io::Plain(socket)) };
        let alpn = plan.alpn.as_ref().map(|a| a.as_slice());
        let stream = handshake(socket, tls, &plan.names, &host.hostname, alpn).await?;
        Ok(Io::Tls(Box::new(TlsStream::Client(stream))))
    }

    /// A socket with the options and the source address that the cluster demands, or the caller's own address.
    pub(crate) fn socket(&self, config: &ClusterConfig, address: SocketAddr, caller: Option<&Source>) -> io::Result<TcpSocket> {
        let raw = RawSocket::new(Domain::for_address(address), Type::STREAM.nonblocking().cloexec(), Some(Protocol::TCP))?;
        raw.set_tcp_nodelay(true)?;
        if let Some(mark) = caller.and_then(|c| c.mark).or(self.mark) {
            raw.set_mark(mark)?;
        }
        if let Some(keepalive) = &config.tcp_keepalive {
            raw.set_tcp_keepalive(&keepalive_of(keepalive))?;
        }
        let source = config.bind.source_for(address).filter(|_| caller.is_none());
        let options = source.and_then(|s| s.options.as_ref()).unwrap_or(&config.bind.options);
        for option in options.iter().filter(|o| o.applies_to(address)) {
            crate::listener::apply(&raw, option)?;
        }
        if let Some(on) = config.bind.freebind {
            if address.is_ipv4() { raw.set_freebind_v4(on)? } else { raw.set_freebind_v6(on)? }
        }
        if let Some(caller) = caller {
            transparent(&raw, caller.address, address)?;
        }
        if let Some(from) = caller.map(|c| c.address).or(source.map(|s| s.address)) {
            if from.port() == 0 {
                // Ports are chosen at connect time, so that one source address serves 64k per destination.
                let _ = crate::listener::set_option(&raw, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1);
            }
            raw.bind(&from.into())?;
        }
        Ok(TcpSocket::from_std_stream(raw.into()))
    }
}

/// TLS over a connection to a host of this name. `alpn` replaces the protocols offered.
pub(crate) async fn handshake<S: AsyncRead + AsyncWrite + Unpin>(
    socket: S,
    tls: &ClientTls,
    names: &Names,
    hostname: &str,
    alpn: Option<&[Vec<u8>]>,
) -> Result<client::TlsStream<S>, ConnectFailure> {
    let (sent, checked) = names.towards(tls, hostname);
    // The library checks for the name that it is told to send; for another one the certificate is looked at once it is here.
    let as_sent = checked.is_some() && (sent.is_none() || sent == checked);
    let client = tls.with_alpn(alpn, as_sent).ok_or(ConnectFailure::NotReady)?;
    let name = sent.or(checked).map_or_else(|| Ok(no_server_name()), server_name)?;
    let stream = TlsConnector::from(client).connect(name, socket).await.map_err(|e| ConnectFailure::Tls(handshake_error(&e)))?;
    if let Some(checked) = checked.filter(|_| !as_sent) {
        lateen_identity::tls::check_name(stream.get_ref().1.peer_certificates(), &server_name(checked)?)
            .map_err(|e| ConnectFailure::Tls(e.to_string()))?;
    }
    Ok(stream)
}

/// Lets the socket come from an address that this host does not have.
fn transparent(socket: &RawSocket, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    match (from, to) {
        (SocketAddr::V4(_), SocketAddr::V4(_)) => socket.set_ip_transparent_v4(true),
        (SocketAddr::V6(_), SocketAddr::V6(_)) => crate::listener::set_option(socket, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
        _ => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the caller has no address of the host's family")),
    }
}

/// Of a connection that asks for none: an address is never sent.
fn no_server_name() -> ServerName<'static> {
    ServerName::IpAddress(IpAddr::from([127, 0, 0, 1]).into())
}

fn server_name(name: &str) -> Result<ServerName<'static>, ConnectFailure> {
    ServerName::try_from(host_of(name).to_owned()).map_err(|_| ConnectFailure::Tls(format!("`{name}` cannot be a server name")))
}

fn keepalive_of(settings: &TcpKeepalive) -> socket2::TcpKeepalive {
    let mut keepalive = socket2::TcpKeepalive::new();
    if let Some(time) = settings.time {
        keepalive = keepalive.with_time(time);
    }
    if let Some(interval) = settings.interval {
        keepalive = keepalive.with_interval(interval);
    }
    if let Some(probes) = settings.probes {
        keepalive = keepalive.with_retries(probes);
    }
    keepalive
}

/// Looks for dead peers of an accepted connection; without it they are only found later.
pub(crate) fn keep_alive(stream: &tokio::net::TcpStream, keepalive: &TcpKeepalive) {
    let _ = SockRef::from(stream).set_tcp_keepalive(&keepalive_of(keepalive));
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

    /// What is sent and what is checked.
    fn asked(authority: Option<&str>, tls: &ClientTls) -> [String; 2] {
        let names = Names::asked(authority, tls);
        let (sent, checked) = names.towards(tls, "host");
        [sent, checked].map(|name| name.unwrap_or_default().to_owned())
    }

    fn names(sent: &str, checked: &str) -> [String; 2] {
        [sent, checked].map(str::to_owned)
    }

    #[test]
    fn the_name_in_the_authority_is_asked_for() {
        let (own, none) = (tls(Some("fixed")), tls(None));
        let cases = [("istiod:15012", "istiod"), ("xds", "xds"), ("10.1.2.3:99", "fixed"), ("[::1]:99", "fixed"), ("[::1]", "fixed")];
        for (authority, name) in cases {
            assert_eq!(asked(Some(authority), &own), names(name, ""), "{authority}");
        }
        assert_eq!(asked(Some("10.1.2.3"), &none), names("", ""), "an address is never sent");
        assert_eq!(asked(None, &own), names("fixed", ""), "a health check is no request");
        assert_eq!(asked(None, &ClientTls { auto_host_sni: true, ..tls(Some("fixed")) }), names("host", ""));
        assert_eq!(asked(Some("istiod"), &ClientTls { auto_sni: false, auto_san: true, ..tls(Some("fixed")) }), names("fixed", ""));
    }

    #[test]
    fn the_certificate_must_have_the_name_in_the_authority_where_requests_ask_for_it() {
        let checked = |sni, checks_sni| ClientTls { auto_san: true, checks_sni, ..tls(sni) };
        assert_eq!(asked(Some("istiod:15012"), &checked(Some("fixed"), false)), names("istiod", "istiod"));
        assert_eq!(asked(Some("10.1.2.3:99"), &checked(None, false)), names("", "10.1.2.3"));
        assert_eq!(asked(Some("10.1.2.3:99"), &checked(Some("fixed"), true)), names("fixed", "10.1.2.3"), "its own name is sent");
        let by_sni = |sni| ClientTls { checks_sni: true, ..tls(sni) };
        assert_eq!(asked(Some("istiod"), &by_sni(None)), names("istiod", "istiod"));
        assert_eq!(asked(Some("10.1.2.3"), &by_sni(Some("fixed"))), names("fixed", "fixed"));
        assert_eq!(asked(Some("10.1.2.3"), &by_sni(None)), names("", ""));
        assert_eq!(asked(None, &checked(None, false)), names("", ""));
    }
}
