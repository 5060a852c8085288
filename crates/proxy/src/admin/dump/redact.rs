//! What must not be seen of keys and passwords: whatever the schema calls sensitive.
use base64::Engine;
use lateen_identity::pem;
use lateen_proto::any;
use lateen_proto::schema::{Cardinality, Field, Kind, Message, Schema};
use lateen_snapshot::compile::SecretValue;
use serde_json::{Map, Value, json};

use super::typed;

pub(super) const SECRET: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret";

const REDACTED: &str = "[redacted]";
/// The same where JSON has base64.
const REDACTED_BYTES: &str = "W3JlZGFjdGVkXQ==";

/// A secret as it would arrive, its key withheld.
pub(super) fn secret(name: &str, value: &SecretValue) -> Value {
    let bytes = |text: &str| json!({"inline_bytes": base64::engine::general_purpose::STANDARD.encode(text)});
    match value {
        SecretValue::Certificate(c) => {
            let chain = pem::encode_certificates(&c.key.cert);
            json!({"@type": SECRET, "name": name, "tls_certificate": {"certificate_chain": bytes(&chain), "private_key": {"inline_bytes": REDACTED_BYTES}}})
        }
        SecretValue::Validation(v) => {
            let roots = pem::encode_certificates(v.trusted());
            json!({"@type": SECRET, "name": name, "validation_context": {"trusted_ca": bytes(&roots)}})
        }
    }
}

/// Withholds what is sensitive anywhere in a message, given its full name.
pub(super) fn redact(schema: &Schema, full_name: &str, value: Value) -> Value {
    Redactor { schema, withholds: false }.message(full_name, value)
}

/// Goes through the JSON of messages field by field.
#[derive(Clone, Copy)]
struct Redactor<'s> {
    schema: &'s Schema,
    /// What is here stands within something sensitive.
    withholds: bool,
}

impl Redactor<'_> {
    fn message(self, full_name: &str, value: Value) -> Value {
        match full_name {
            "google.protobuf.Any" => self.packed(value),
            // They have no fields in JSON.
            name if name.starts_with("google.protobuf.") => self.well_known(name, value),
            "udpa.type.v1.TypedStruct" | "xds.type.v3.TypedStruct" => self.named_by_struct(value),
            "envoy.config.core.v3.DataSource" if self.withholds => self.source(value),
            name => match (self.schema.message_named(name), value) {
                (Some(id), Value::Object(fields)) => self.fields(self.schema.message(id), fields),
                // In a structure there may be anything.
                _ => json!(REDACTED),
            },
        }
    }

    fn fields(self, shape: &Message, fields: Map<String, Value>) -> Value {
        let field = |(key, value): (String, Value)| {
            let is_null = value.is_null();
            let Some((_, field)) = shape.field_named(&key) else { return Some((key, json!(REDACTED))) };
            let value = self.field(field, value);
            // What is sensitive and no text is left out.
            (is_null || !value.is_null()).then(|| (field.name.clone(), value))
        };
        Value::Object(fields.into_iter().filter_map(field).collect())
    }

    fn field(self, field: &Field, value: Value) -> Value {
        let within = Self { withholds: self.withholds || field.sensitive, ..self };
        match (field.cardinality, value) {
            (_, Value::Null) => Value::Null,
            (Cardinality::List, Value::Array(items)) => {
                let items = items.into_iter().map(|item| within.value(field.kind, item));
                items.filter(|item| !item.is_null() || !within.withholds).collect()
            }
            (Cardinality::Map, Value::Object(entries)) => {
                let Kind::Message(entry) = field.kind else { return json!(REDACTED) };
                let kind = self.schema.message(entry).field(2).map_or(Kind::String, |value| value.kind);
                // Whoever writes the configuration chose the keys: they say nothing about what is below them.
                Value::Object(entries.into_iter().map(|(key, value)| (key, within.value(kind, value))).collect())
            }
            (Cardinality::Single, value) => within.value(field.kind, value),
            _ => json!(REDACTED),
        }
    }

    fn value(self, kind: Kind, value: Value) -> Value {
        match kind {
            Kind::Message(id) => self.message(&self.schema.message(id).full_name, value),
            _ if value.is_object() || value.is_array() => json!(REDACTED),
            _ if !self.withholds => value,
            Kind::String => json!(REDACTED),
            Kind::Bytes => json!(REDACTED_BYTES),
            _ => Value::Null,
        }
    }

    fn well_known(self, name: &str, value: Value) -> Value {
        match name.rsplit('.').next() {
            _ if !self.withholds => value,
            Some("Struct" | "Value" | "ListValue" | "StringValue") => without_texts(value),
            Some("BytesValue") => json!(REDACTED_BYTES),
            _ => Value::Null,
        }
    }

    /// An `Any`: of one that nobody knows the type alone.
    fn packed(self, value: Value) -> Value {
        let Value::Object(mut fields) = value else { return json!(REDACTED) };
        let Some(Value::String(url)) = fields.shift_remove("@type") else { return json!({}) };
        let name = any::name_of(&url);
        let inner = match self.schema.message_named(name) {
            None => Map::new(),
            Some(_) if name.starts_with("google.protobuf.") => {
                let inner = fields.remove("value").map(|inner| ("value".to_owned(), self.message(name, inner)));
                inner.into_iter().collect()
            }
            Some(_) => match self.message(name, Value::Object(fields)) {
                Value::Object(fields) => fields,
                _ => Map::new(),
            },
        };
        typed(&url, Value::Object(inner))
    }

    /// Fields of a message that is named beside them, in either spelling.
    fn named_by_struct(self, value: Value) -> Value {
        let Value::Object(mut fields) = value else { return json!(REDACTED) };
        let Some(Value::String(url)) = fields.remove("type_url").or_else(|| fields.remove("typeUrl")) else { return json!({}) };
        let name = any::name_of(&url);
        let known = self.schema.message_named(name).and_then(|_| fields.remove("value"));
        match known.map(|inner| self.message(name, inner)) {
            Some(inner) => json!({"type_url": url, "value": inner}),
            None => json!({"type_url": url}),
        }
    }

    /// Of data the place, if they are in a file.
    fn source(self, value: Value) -> Value {
        const PLACE: [&str; 3] = ["filename", "watched_directory", "watchedDirectory"];
        match value {
            Value::Object(mut fields) if fields.get("filename").is_some_and(Value::is_string) => {
                fields.retain(|key, _| PLACE.contains(&key.as_str()));
                Value::Object(fields)
            }
            _ => json!({"inline_string": REDACTED}),
        }
    }
}

/// Values of any kind, of which none is to be seen.
fn without_texts(value: Value) -> Value {
    match value {
        Value::String(_) => json!(REDACTED),
        Value::Array(items) => items.into_iter().map(without_texts).collect(),
        Value::Object(fields) => Value::Object(fields.into_iter().map(|(key, value)| (key, without_texts(value))).collect()),
        _ => Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(full_name: &str, value: Value) -> Value {
        redact(&Schema::new(), full_name, value)
    }

    const TLS: &str = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext";

    #[test]
    fn inline_keys_are_withheld_and_file_names_are_not() {
        let with = |first: Value| {
            let keys = [first, json!({"filename": "/k", "watched_directory": {"path": "/d"}})];
            json!({"common_tls_context": {"tls_certificates": keys.map(|key| json!({"private_key": key, "certificate_chain": {"inline_string": "C"}}))}})
        };
        let name = any::name_of(TLS);
        assert_eq!(shown(name, with(json!({"inline_string": "KEY"}))), with(json!({"inline_string": REDACTED})));
        // No name of a file beside which there is something else.
        let mixed = json!({"filename": "/k", "inline_string": "KEY"});
        assert_eq!(shown(name, with(mixed)), with(json!({"filename": "/k"})));
    }

    #[test]
    fn untyped_configuration_is_redacted_as_what_it_names() {
        for kind in ["udpa.type.v1.TypedStruct", "xds.type.v3.TypedStruct"] {
            let filter = |url: &str, value: Value| json!({"@type": format!("x/{kind}"), "type_url": url, "value": value});
            let tls = json!({"commonTlsContext": {"tlsCertificates": [{
                "privateKey": {"inlineString": "KEY"}, "certificateChain": {"inlineString": "C"}, "nope": {"a": "KEY"},
            }]}});
            let expected = json!({"common_tls_context": {"tls_certificates": [{
                "private_key": {"inline_string": REDACTED}, "certificate_chain": {"inline_string": "C"}, "nope": REDACTED,
            }]}});
            assert_eq!(shown("google.protobuf.Any", filter(TLS, tls.clone())), filter(TLS, expected.clone()));
            // One within another, and one of which nobody knows what is in it.
            let socket = "x/envoy.config.core.v3.TransportSocket";
            let nested = |name: &str, inner: Value| filter(socket, json!({"name": "t", name: inner}));
            let made = shown("google.protobuf.Any", nested("typedConfig", filter(TLS, tls)));
            assert_eq!(made, nested("typed_config", filter(TLS, expected)));
            let unknown = filter("x/no.Such", json!({"key": "KEY"}));
            assert_eq!(shown("google.protobuf.Any", unknown), json!({"@type": format!("x/{kind}"), "type_url": "x/no.Such"}));
            let unknown = nested("typed_config", json!({"@type": "x/no.Such", "key": "KEY"}));
            assert_eq!(shown("google.protobuf.Any", unknown), nested("typed_config", json!({"@type": "x/no.Such"})));
        }
    }

    #[test]
    fn keys_that_the_user_chose_say_nothing_about_what_is_below_them() {
        let names = ["filename", "@type", "provider_name", "inline_string"];
        let of = |value: &Value| Value::Object(names.iter().map(|name| ((*name).to_owned(), value.clone())).collect());
        let sent =
            |value: &str| json!({"check_settings": {"context_extensions": of(&json!(value)), "disable_request_body_buffering": true}});
        let authorization = "envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
        assert_eq!(shown(authorization, sent("KEY")), sent(REDACTED));
        let sent = |value: &str| json!({"name": "s", "generic_secret": {"secrets": of(&json!({"inline_string": value}))}});
        assert_eq!(shown(any::name_of(SECRET), sent("KEY")), sent(REDACTED));
    }

    #[test]
    fn of_the_settings_of_a_key_provider_no_value_is_seen() {
        let provider = |inner: Value| json!({"provider_name": "p", "typed_config": inner, "fallback": true});
        let name = "envoy.extensions.transport_sockets.tls.v3.PrivateKeyProvider";
        let any = |value: Value| json!({"@type": "x/google.protobuf.Struct", "value": value});
        let made = shown(name, provider(any(json!({"a": ["KEY", 7], "b": {"c": "KEY"}}))));
        assert_eq!(made, provider(any(json!({"a": [REDACTED, null], "b": {"c": REDACTED}}))));
        let settings = |more: Value| typed("x/envoy.extensions.filters.http.ext_authz.v3.CheckSettings", more);
        let made = shown(name, provider(settings(json!({"disable_request_body_buffering": true, "context_extensions": {"a": "KEY"}}))));
        assert_eq!(made, provider(settings(json!({"context_extensions": {"a": REDACTED}}))));
    }
}
