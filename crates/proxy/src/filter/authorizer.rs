//! What external authorizers are told of a connection, whether it is asked about itself or its requests are.
use std::net::SocketAddr;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::service::auth::v3::attribute_context::{Peer, TlsSession};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::listener::Conn;

/// The method that answers.
pub(crate) const METHOD: &str = "/envoy.service.auth.v3.Authorization/Check";
/// Envoy encodes a certificate's PEM as it does for `x-forwarded-client-cert`.
const PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// The caller's end.
pub(crate) fn source(conn: &Conn, with_certificate: bool) -> Peer {
    let peer = conn.peer();
    let certificate = peer.filter(|_| with_certificate).map(|p| utf8_percent_encode(&p.pem(), PEM).to_string());
    Peer {
        address: Some(address(conn.remote)),
        principal: peer.map(|p| p.uri_sans.first().or(p.dns_sans.first()).unwrap_or(&p.subject).clone()).unwrap_or_default(),
        certificate: certificate.unwrap_or_default(),
        ..Default::default()
    }
}

/// Our end.
pub(crate) fn destination(conn: &Conn) -> Peer {
    Peer { address: Some(address(conn.local)), principal: conn.local_uri.as_deref().cloned().unwrap_or_default(), ..Default::default() }
}

/// The TLS session, where it is wanted and there is one.
pub(crate) fn tls_session(conn: &Conn, wanted: bool) -> Option<TlsSession> {
    (wanted && conn.is_tls()).then(|| TlsSession { sni: conn.server_name.as_deref().unwrap_or_default().to_owned() })
}

fn address(of: SocketAddr) -> core::Address {
    let port = core::socket_address::PortSpecifier::PortValue(of.port().into());
    let socket = core::SocketAddress { address: of.ip().to_canonical().to_string(), port_specifier: Some(port), ..Default::default() };
    core::Address { address: Some(core::address::Address::SocketAddress(socket)) }
}
