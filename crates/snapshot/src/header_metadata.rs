//! Metadata made of headers and cookies (Envoy header_to_metadata filter).
use std::sync::Arc;

use base64::Engine;
use http::header::COOKIE;
use http::{HeaderMap, HeaderName};
use prost::Message;
use regex::Regex;
use serde_json::Value as Json;

use crate::metadata::{Metadata, number};

/// Envoy takes no value larger than this.
const MAX_VALUE_BYTES: usize = 8 * 1024;

#[derive(Debug, Default)]
pub struct HeaderToMetadata {
    pub request: Vec<MetadataRule>,
    pub response: Vec<MetadataRule>,
}

#[derive(Debug)]
pub struct MetadataRule {
    pub source: Source,
    pub present: Option<Target>,
    pub missing: Option<Target>,
    /// The header goes no further.
    pub remove: bool,
}

#[derive(Debug)]
pub enum Source {
    Header(HeaderName),
    /// Which is not among the headers.
    ContentLength,
    Cookie(Box<str>),
}

/// Where a value goes, and what becomes of it on the way.
#[derive(Debug)]
pub struct Target {
    pub namespace: Arc<str>,
    pub key: Box<str>,
    pub value: Value,
    pub kind: Kind,
    pub base64: bool,
}

#[derive(Debug)]
pub enum Value {
    /// The header's own.
    Taken,
    Fixed(Box<str>),
    Rewritten(Regex, Box<str>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Text,
    Number,
    /// A serialized `google.protobuf.Value`.
    Protobuf,
}

/// Applies rules to a message's headers. A value that cannot be made is left out, as in Envoy.
pub fn apply(rules: &[MetadataRule], headers: &mut HeaderMap, content_length: Option<u64>, metadata: &mut Metadata) {
    for rule in rules {
        let value = rule.source.value(headers, content_length).filter(|v| !v.is_empty());
        let target = if value.is_some() { &rule.present } else { &rule.missing };
        if let Some(target) = target
            && let Some(made) = target.make(value.as_deref().unwrap_or_default())
        {
            metadata.set(&target.namespace, &target.key, made);
        }
        if rule.remove
            && value.is_some()
            && let Source::Header(name) = &rule.source
        {
            headers.remove(name);
        }
    }
}

impl Source {
    fn value(&self, headers: &HeaderMap, content_length: Option<u64>) -> Option<Vec<u8>> {
        match self {
            Self::Header(name) => {
                let values: Vec<&[u8]> = headers.get_all(name).iter().map(http::HeaderValue::as_bytes).collect();
                (!values.is_empty()).then(|| values.join(&b','))
            }
            Self::ContentLength => content_length.map(|length| length.to_string().into_bytes()),
            Self::Cookie(name) => cookie(headers, name).map(|value| value.as_bytes().to_vec()),
        }
    }
}

/// The value of a cookie, without quotes.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let pairs = headers.get_all(COOKIE).iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let found = pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name);
    found.map(|(_, value)| value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

impl Target {
    fn make(&self, taken: &[u8]) -> Option<Json> {
        let value = match &self.value {
            Value::Taken => taken.to_vec(),
            Value::Fixed(text) => text.as_bytes().to_vec(),
            Value::Rewritten(pattern, text) => pattern.replace_all(std::str::from_utf8(taken).ok()?, &**text).into_owned().into_bytes(),
        };
        let value = if self.base64 { base64::engine::general_purpose::STANDARD.decode(value).ok()? } else { value };
        if value.is_empty() || value.len() > MAX_VALUE_BYTES {
            return None;
        }
        match self.kind {
            Kind::Text => String::from_utf8(value).ok().map(Json::String),
            Kind::Number => std::str::from_utf8(&value).ok()?.trim().parse().ok().filter(|n: &f64| n.is_finite()).map(number),
            Kind::Protobuf => lateen_proto::Value::decode(value.as_slice()).ok().as_ref().map(crate::compile::value_json),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(key: &str, value: Value, kind: Kind, base64: bool) -> Option<Target> {
        Some(Target { namespace: "ns".into(), key: key.into(), value, kind, base64 })
    }

    fn header(name: &'static str, present: Option<Target>, missing: Option<Target>, remove: bool) -> MetadataRule {
        MetadataRule { source: Source::Header(HeaderName::from_static(name)), present, missing, remove }
    }

    /// What Envoy 1.40 logged for the same rules and requests.
    #[test]
    fn values_are_envoys() {
        let rules = [
            header("x-v", target("k", Value::Taken, Kind::Text, false), target("k", Value::Fixed("none".into()), Kind::Text, false), true),
            header("x-n", target("n", Value::Taken, Kind::Number, false), None, false),
            header("x-j", target("j", Value::Taken, Kind::Protobuf, true), None, false),
        ];
        let cases: [(&[(&'static str, &str)], &str); 4] = [
            (&[("x-v", "1"), ("x-v", "2"), ("x-n", "1.50"), ("x-j", "eyJhIjoxfQ==")], r#"{"k":"1,2","n":1.5}"#),
            (&[("x-n", "12abc")], r#"{"k":"none"}"#),
            (&[("x-n", "12")], r#"{"k":"none","n":12}"#),
            (&[("x-v", ""), ("x-n", "-1e3")], r#"{"k":"none","n":-1000}"#),
        ];
        for (headers, expected) in cases {
            let mut map = HeaderMap::new();
            for (name, value) in headers {
                map.append(*name, value.parse().unwrap());
            }
            let had = map.get("x-v").is_some_and(|v| !v.is_empty());
            let mut metadata = Metadata::default();
            apply(&rules, &mut map, None, &mut metadata);
            assert_eq!(metadata.get("ns", &[]).unwrap().to_string(), expected);
            assert!(!had || !map.contains_key("x-v"));
        }
    }

    #[test]
    fn a_cookie_is_rewritten_and_a_protobuf_value_opened() {
        let rewrite = Value::Rewritten(Regex::new("^a(.*)$").unwrap(), "b${1}".into());
        let rules = [
            MetadataRule {
                source: Source::Cookie("c".into()),
                present: target("c", rewrite, Kind::Text, false),
                missing: None,
                remove: false,
            },
            header("x-p", target("p", Value::Taken, Kind::Protobuf, true), None, false),
        ];
        let mut map = HeaderMap::new();
        map.insert("cookie", "d=1; c=\"axy\"".parse().unwrap());
        let proto = lateen_proto::Value { kind: Some(prost_types::value::Kind::BoolValue(true)) };
        map.insert("x-p", base64::engine::general_purpose::STANDARD.encode(proto.encode_to_vec()).parse().unwrap());
        let mut metadata = Metadata::default();
        apply(&rules, &mut map, None, &mut metadata);
        assert_eq!(metadata.get("ns", &[]).unwrap().to_string(), r#"{"c":"bxy","p":true}"#);
    }
}
