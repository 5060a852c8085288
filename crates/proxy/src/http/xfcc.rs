//! `x-forwarded-client-cert`: which certificates the request came through (Envoy `forward_client_cert_details`).
use std::fmt::Write;

use http::header::HeaderValue;
use lateen_identity::tls::PeerIdentity;
use lateen_snapshot::http::{CurrentClientCert, ForwardClientCert};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Exchange;
use super::headers as names;

/// Envoy encodes PEM for this header so that it survives quoting.
const PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(crate) fn run(exchange: &mut Exchange<'_>) {
    let config = &exchange.hcm.config;
    let mode = config.forward_client_cert;
    let peer = exchange.conn.peer();
    let present = exchange.request.hints.forwarded;
    let map = &mut exchange.request.headers;
    match (mode, peer) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        // Without a verified caller nobody vouches for what the header says.
        (ForwardClientCert::Sanitize, _) | (_, None) => {
            if present {
                map.remove(names::FORWARDED_CLIENT_CERT);
            }
        }
        (ForwardClientCert::AppendForward, Some(peer)) => {
            let element = element(peer, config.set_current_client_cert, local_uri(exchange.conn));
            names::append_list(map, names::FORWARDED_CLIENT_CERT, &element);
        }
        (ForwardClientCert::SanitizeSet, Some(peer)) => {
            let element = element(peer, config.set_current_client_cert, local_uri(exchange.conn));
            if let Ok(value) = HeaderValue::from_str(&element) {
                map.insert(names::FORWARDED_CLIENT_CERT, value);
            }
        }
    }
}

fn local_uri(conn: &crate::listener::Conn) -> Option<&str> {
    conn.local_uri.as_deref().map(String::as_str)
}

fn element(peer: &PeerIdentity, want: CurrentClientCert, by: Option<&str>) -> String {
    let mut out = String::with_capacity(256);
    if let Some(by) = by {
        let _ = write!(out, "By={by};");
    }
    let _ = write!(out, "Hash={}", peer.fingerprint);
    if want.cert {
        let _ = write!(out, ";Cert=\"{}\"", utf8_percent_encode(&peer.pem(), PEM));
    }
    if want.subject {
        let _ = write!(out, ";Subject=\"{}\"", peer.subject.replace('\\', "\\\\").replace('"', "\\\""));
    }
    if want.uri {
        match peer.uri_sans.as_slice() {
            [] => out.push_str(";URI="),
            all => {
                for uri in all {
                    let _ = write!(out, ";URI={uri}");
                }
            }
        }
    }
    if want.dns {
        for name in &peer.dns_sans {
            let _ = write!(out, ";DNS={name}");
        }
    }
    out
}
