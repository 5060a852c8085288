//! `/certs`: what certificates are in use and until when.
use std::time::SystemTime;

use lateen_core::utc::rfc3339_millis;
use lateen_identity::PeerIdentity;
use lateen_snapshot::compile::SecretValue;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};

use super::server::Reply;
use crate::main_thread::Main;

pub(super) fn page(main: &Main) -> Reply {
    let compiler = main.compiler();
    let mut entries: Vec<(String, Value)> = compiler
        .secrets()
        .map(|(key, known)| {
            let entry = match &known.value {
                SecretValue::Certificate(c) => json!({"ca_cert": [], "cert_chain": chain(&c.key.cert, &key.name)}),
                SecretValue::Validation(v) => json!({"ca_cert": chain(v.trusted(), &key.name), "cert_chain": []}),
            };
            (key.name.to_string(), entry)
        })
        .collect();
    entries.sort_by(|(a, _), (b, _)| a.cmp(b));
    let certificates: Vec<Value> = entries.into_iter().map(|(_, v)| v).collect();
    Reply::json(&json!({ "certificates": certificates }))
}

fn chain(certificates: &[CertificateDer<'static>], name: &str) -> Vec<Value> {
    certificates.iter().filter_map(|c| PeerIdentity::from_der(c).ok()).map(|c| details(&c, name)).collect()
}

fn details(certificate: &PeerIdentity, name: &str) -> Value {
    let uris = certificate.uri_sans.iter().map(|n| json!({"uri": n}));
    let names = certificate.dns_sans.iter().map(|n| json!({"dns": n}));
    let addresses = certificate.ip_sans.iter().map(|n| json!({"ip_address": n.to_string()}));
    let left = certificate.not_after.duration_since(SystemTime::now()).unwrap_or_default();
    json!({
        "path": name,
        "serial_number": certificate.serial,
        "subject_alt_names": uris.chain(names).chain(addresses).collect::<Vec<_>>(),
        "days_until_expiration": (left.as_secs() / 86_400).to_string(),
        "valid_from": rfc3339_millis(certificate.not_before),
        "expiration_time": rfc3339_millis(certificate.not_after),
    })
}
