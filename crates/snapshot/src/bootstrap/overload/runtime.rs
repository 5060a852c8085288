//! Limits of connections that a runtime layer gives.
use lateen_proto::{Struct, Value};
use prost_types::value::Kind;

use super::Limits;

/// Limits given as runtime keys: `overload.global_downstream_max_connections` and
/// `envoy.resource_limits.listener.NAME.connection_limit` (Envoy listener statistics and limits).
pub(in crate::bootstrap) fn runtime_limits(values: &Struct, limits: &mut Limits) {
    for (key, value) in &values.fields {
        walk(key.clone(), value, limits);
    }
}

fn walk(key: String, value: &Value, limits: &mut Limits) {
    match &value.kind {
        Some(Kind::StructValue(inner)) => {
            for (name, value) in &inner.fields {
                walk(format!("{key}.{name}"), value, limits);
            }
        }
        Some(Kind::NumberValue(n)) if *n >= 0.0 => number(&key, *n as u64, limits),
        Some(Kind::StringValue(text)) => {
            if let Ok(n) = text.parse() {
                number(&key, n, limits);
            }
        }
        _ => {}
    }
}

fn number(key: &str, n: u64, limits: &mut Limits) {
    if key == "overload.global_downstream_max_connections" {
        limits.connections = Some(n);
    }
    let name = key.strip_prefix("envoy.resource_limits.listener.").and_then(|k| k.strip_suffix(".connection_limit"));
    if let Some(name) = name {
        limits.listeners.insert(name.to_owned(), n);
    }
}
