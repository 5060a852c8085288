//! What must not be seen of keys and passwords.
use base64::Engine;
use lateen_identity::pem;
use lateen_snapshot::compile::SecretValue;
use serde_json::{Value, json};

const REDACTED: &str = "[redacted]";

/// A secret as it would arrive, its key withheld.
pub(super) fn secret(name: &str, value: &SecretValue) -> Value {
    let bytes = |text: &str| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(text)});
    let url = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";
    match value {
        SecretValue::Certificate(c) => {
            let chain = pem::encode_certificates(&c.key.cert);
            json!({"@type": url, "name": name, "tls_certificate": {"certificate_chain": bytes(&chain), "private_key": bytes(REDACTED)}})
        }
        SecretValue::Validation(v) => {
            let roots = pem::encode_certificates(v.trusted());
            json!({"@type": url, "name": name, "validation_context": {"trusted_ca": bytes(&roots)}})
        }
    }
}

/// Fields that hold nothing but what must not be seen (Envoy `udpa.annotations.sensitive`).
const SENSITIVE: [&str; 8] = [
    "private_key",
    "private_key_provider",
    "password",
    "pkcs12",
    "inline_key",
    "session_ticket_keys",
    "generic_secret",
    "context_extensions",
];

/// Withholds keys and passwords given inline anywhere inside.
pub(super) fn redact(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let field = |(key, value): (String, Value)| {
                let value = if SENSITIVE.contains(&key.as_str()) { withheld(value) } else { redact(value) };
                (key, value)
            };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(redact).collect()),
        other => other,
    }
}

/// Of a sensitive value its shape, and which files it is in.
fn withheld(value: Value) -> Value {
    match value {
        Value::Object(fields) if fields.contains_key("filename") => Value::Object(fields),
        Value::Object(fields) if ["inline_string", "inline_bytes", "environment_variable"].iter().any(|f| fields.contains_key(*f)) => {
            json!({"inline_string": REDACTED})
        }
        Value::Object(fields) => {
            let is_plain = |key: &str| ["@type", "provider_name"].contains(&key);
            let field = |(key, value): (String, Value)| if is_plain(&key) { (key, value) } else { (key, withheld(value)) };
            Value::Object(fields.into_iter().map(field).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(withheld).collect()),
        Value::String(_) => json!(REDACTED),
        other => other,
    }
}
