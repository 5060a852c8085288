//! Dynamic metadata: what filters find out about a request, for later filters, RBAC and access logs.
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::matcher::StringMatcher;

/// Values by namespace (a filter's name) and key. Allocates nothing until a filter writes; what many requests have alike is
/// shared until one changes it.
#[derive(Debug, Clone, Default)]
pub struct Metadata(Vec<(Arc<str>, Arc<Value>)>);

impl Metadata {
    /// Writes one value, over one of the same key.
    pub fn set(&mut self, namespace: &Arc<str>, key: &str, value: Value) {
        match self.0.iter_mut().find(|(name, _)| name == namespace) {
            Some((_, known)) => match Arc::make_mut(known) {
                Value::Object(map) => drop(map.insert(key.to_owned(), value)),
                other => *other = Value::Object(Map::from_iter([(key.to_owned(), value)])),
            },
            None => self.0.push((Arc::clone(namespace), Arc::new(Value::Object(Map::from_iter([(key.to_owned(), value)]))))),
        }
    }

    /// Puts an object's values among those of a namespace: objects into objects, lists behind lists, all else over what is there.
    pub fn merge(&mut self, namespace: &Arc<str>, value: &Arc<Value>) {
        match self.0.iter_mut().find(|(name, _)| name == namespace) {
            Some((_, known)) => merge(Arc::make_mut(known), value),
            None => self.0.push((Arc::clone(namespace), Arc::clone(value))),
        }
    }

    /// The value at `path` below a namespace; the whole namespace for an empty path.
    pub fn get(&self, namespace: &str, path: &[Box<str>]) -> Option<&Value> {
        let root = self.0.iter().find(|(name, _)| **name == *namespace).map(|(_, value)| &**value)?;
        path.iter().try_fold(root, |value, key| value.get(&**key))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                match into.get_mut(key) {
                    Some(known) => merge(known, value),
                    None => drop(into.insert(key.clone(), value.clone())),
                }
            }
        }
        (Value::Array(into), Value::Array(from)) => into.extend(from.iter().cloned()),
        (into, from) => *into = from.clone(),
    }
}

/// A number as protobuf's JSON prints it: whole numbers without a fraction.
pub fn number(value: f64) -> Value {
    /// Whole numbers up to here are exact in a double.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Value::from(value as i64);
    }
    serde_json::Number::from_f64(value).map_or(Value::Null, Value::Number)
}

/// A protobuf value as metadata holds it.
pub fn from_proto(value: &prost_types::Value) -> Value {
    use prost_types::value::Kind;
    match &value.kind {
        None | Some(Kind::NullValue(_)) => Value::Null,
        Some(Kind::NumberValue(n)) => number(*n),
        Some(Kind::StringValue(s)) => Value::String(s.clone()),
        Some(Kind::BoolValue(b)) => Value::Bool(*b),
        Some(Kind::StructValue(s)) => Value::Object(s.fields.iter().map(|(k, v)| (k.clone(), from_proto(v))).collect()),
        Some(Kind::ListValue(l)) => Value::Array(l.values.iter().map(from_proto).collect()),
    }
}

/// Metadata as a protobuf value.
pub fn to_proto(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Object(map) => {
            Kind::StructValue(prost_types::Struct { fields: map.iter().map(|(k, v)| (k.clone(), to_proto(v))).collect() })
        }
        Value::Array(items) => Kind::ListValue(prost_types::ListValue { values: items.iter().map(to_proto).collect() }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// Envoy's `MetadataMatcher`, for dynamic metadata.
#[derive(Debug, Clone)]
pub struct MetadataMatcher {
    pub namespace: Arc<str>,
    pub path: Vec<Box<str>>,
    pub value: MetadataValue,
    pub invert: bool,
}

/// Envoy's `ValueMatcher`.
#[derive(Debug, Clone)]
pub enum MetadataValue {
    Null,
    Double(f64),
    /// The end is not in it.
    DoubleRange(f64, f64),
    String(StringMatcher),
    Bool(bool),
    Present,
    /// Some item of a list matches.
    OneOf(Box<MetadataValue>),
    Any(Vec<MetadataValue>),
}

impl MetadataMatcher {
    pub fn matches(&self, metadata: Option<&Metadata>) -> bool {
        let value = metadata.and_then(|m| m.get(&self.namespace, &self.path));
        value.is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

impl MetadataValue {
    pub fn matches(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Double(wanted) => value.as_f64() == Some(*wanted),
            Self::DoubleRange(start, end) => value.as_f64().is_some_and(|n| *start <= n && n < *end),
            Self::String(matcher) => value.as_str().is_some_and(|text| matcher.matches(text)),
            Self::Bool(wanted) => value.as_bool() == Some(*wanted),
            Self::Present => true,
            Self::OneOf(matcher) => value.as_array().is_some_and(|items| items.iter().any(|item| matcher.matches(item))),
            Self::Any(matchers) => matchers.iter().any(|matcher| matcher.matches(value)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_a_value_and_what_is_missing_matches_only_inverted() {
        let mut metadata = Metadata::default();
        let namespace: Arc<str> = "jwt".into();
        metadata.set(&namespace, "payload", serde_json::json!({"groups": ["a", "b"], "n": 1}));
        metadata.set(&namespace, "other", Value::Null);
        let exact = |text: &str| MetadataValue::String(StringMatcher::Exact { text: text.into(), ignore_case: false });
        let matcher = |path: &[&str], value, invert| MetadataMatcher {
            namespace: namespace.clone(),
            path: path.iter().map(|p| (*p).into()).collect(),
            value,
            invert,
        };
        let matches = |path: &[&str], value, invert| matcher(path, value, invert).matches(Some(&metadata));
        assert!(matches(&["payload", "groups"], MetadataValue::OneOf(Box::new(exact("b"))), false));
        assert!(!matches(&["payload", "groups"], exact("b"), false));
        assert!(matches(&["payload", "n"], MetadataValue::DoubleRange(0.5, 1.5), false));
        assert!(matches(&["other"], MetadataValue::Null, false));
        assert!(!matches(&["payload", "none"], MetadataValue::Present, false));
        assert!(matches(&["payload", "none"], exact("x"), true));
        assert!(!matcher(&["x"], MetadataValue::Present, false).matches(None));
    }

    #[test]
    fn metadata_survives_the_way_over_protobuf() {
        let value = serde_json::json!({"a": [1, 1.5, "x", true, null, {"b": {}}]});
        assert_eq!(from_proto(&to_proto(&value)), value);
    }

    #[test]
    fn numbers_print_as_protobuf_prints_them() {
        assert_eq!((number(-1e3).to_string(), number(1.5).to_string()), ("-1000".to_owned(), "1.5".to_owned()));
    }
}
