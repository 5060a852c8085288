//! `x-forwarded-client-cert`: which certificates the request came through (Envoy `forward_client_cert_details`).
use std::fmt::Write;

use bytes::Bytes;
use http::header::HeaderValue;
use lateen_identity::tls::PeerIdentity;
use lateen_snapshot::http::{CurrentClientCert, ForwardClientCert};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::Exchange;
use super::headers as names;
use crate::listener::Conn;

/// Envoy encodes PEM for this header so that it survives quoting.
const PEM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

pub(crate) fn run(exchange: &mut Exchange<'_>) {
    let config = &exchange.hcm.config;
    let mode = config.forward_client_cert;
    let peer = exchange.conn.peer();
    let present = exchange.request.hints.client_cert;
    let map = &mut exchange.request.headers;
    match (mode, peer) {
        (ForwardClientCert::AlwaysForwardOnly, _) | (ForwardClientCert::ForwardOnly, Some(_)) => {}
        // Without a verified caller nobody vouches for what the header says.
        (ForwardClientCert::Sanitize, _) | (_, None) => {
            if present {
                map.remove(names::FORWARDED_CLIENT_CERT);
            }
        }
        (ForwardClientCert::AppendForward | ForwardClientCert::SanitizeSet, Some(peer)) => {
            let Some(element) = of_connection(exchange.conn, peer, config.set_current_client_cert) else { return };
            // However many lines it came in: they are one list (RFC 9110, section 5.3).
            let mut list = Vec::new();
            if mode == ForwardClientCert::AppendForward && present {
                for before in map.get_all(names::FORWARDED_CLIENT_CERT).iter().filter(|v| !v.is_empty()) {
                    list.extend_from_slice(before.as_bytes());
                    list.push(b',');
                }
            }
            let value = if list.is_empty() {
                Some(element.clone())
            } else {
                list.extend_from_slice(element.as_bytes());
                HeaderValue::from_maybe_shared(Bytes::from(list)).ok()
            };
            if let Some(value) = value {
                map.insert(names::FORWARDED_CLIENT_CERT, value);
            }
        }
    }
}

/// The connection's own element, written for its first request; `None` when a name in the certificate cannot stand in a header.
fn of_connection<'a>(conn: &'a Conn, peer: &PeerIdentity, want: CurrentClientCert) -> Option<&'a HeaderValue> {
    let by = conn.local_uri.as_deref().map(String::as_str);
    conn.client_cert.get_or_init(|| HeaderValue::from_maybe_shared(Bytes::from(element(peer, want, by))).ok()).as_ref()
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
    if want.chain {
        let _ = write!(out, ";Chain=\"{}\"", utf8_percent_encode(&peer.chain_pem(), PEM));
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
