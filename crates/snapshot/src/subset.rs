//! `envoy.lb` metadata of routes, requests and endpoints, in the form that load balancing compares.
use std::fmt::Write as _;
use std::sync::Arc;

use lateen_balance::subset::{Criteria, Entry, FALLBACK_LIST, Label, Labels};
use serde_json::{Map, Value};

/// Where load balancing looks for metadata.
pub const NAMESPACE: &str = "envoy.lb";

/// What a request with this metadata asks of its hosts.
pub fn criteria(fields: &Map<String, Value>) -> Criteria {
    let variant = |value: &Value| value.as_object().map(|fields| entries(fields).collect()).unwrap_or_default();
    let variants = fields.get(FALLBACK_LIST).map(|list| list.as_array().into_iter().flatten().map(variant).collect());
    Criteria::new(entries(fields), variants)
}

fn entries(fields: &Map<String, Value>) -> impl Iterator<Item = Entry> {
    fields.iter().map(|(key, value)| (key.as_str().into(), text(value)))
}

/// What a host with this metadata has to offer.
pub(crate) fn labels(fields: &Map<String, Value>) -> Labels {
    let label = |value: &Value| Label { value: text(value), items: value.as_array().map(|items| items.iter().map(text).collect()) };
    fields.iter().map(|(key, value)| (key.as_str().into(), label(value))).collect()
}

/// Equal texts for equal values and for no others: numbers are doubles, and the order of a struct's keys means nothing.
fn text(value: &Value) -> Arc<str> {
    let mut out = String::new();
    write(value, &mut out);
    out.into()
}

fn write(value: &Value, out: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => {
            let _ = write!(out, "{value}");
        }
        // Adding zero makes minus zero the same as zero.
        Value::Number(number) => {
            let _ = write!(out, "{}", number.as_f64().unwrap_or_default() + 0.0);
        }
        Value::Array(items) => {
            out.push('[');
            for item in items {
                write(item, out);
                out.push(',');
            }
            out.push(']');
        }
        Value::Object(fields) => {
            let mut sorted: Vec<_> = fields.iter().collect();
            sorted.sort_by_key(|(key, _)| *key);
            out.push('{');
            for (key, value) in sorted {
                let _ = write!(out, "{}:", Value::from(key.as_str()));
                write(value, out);
                out.push(',');
            }
            out.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn same(one: Value, other: Value) -> bool {
        text(&one) == text(&other)
    }

    #[test]
    fn equal_values_are_equal_texts_and_others_are_not() {
        assert!(same(json!(1), json!(1.0)) && same(json!(-0.0), json!(0)));
        assert!(same(json!({"a": 1, "b": [2]}), json!({"b": [2.0], "a": 1})));
        for (one, other) in
            [(json!("1"), json!(1)), (json!("null"), json!(null)), (json!(["a,"]), json!(["a", ""])), (json!(true), json!("true"))]
        {
            assert!(!same(one.clone(), other.clone()), "{one} {other}");
        }
    }

    #[test]
    fn variants_come_from_the_list_of_fallbacks() {
        let fields = |value: Value| value.as_object().cloned().unwrap();
        let with = criteria(&fields(json!({"v": "1", "fallback_list": [{"v": "2"}, 7]})));
        let variants = vec![vec![("v".into(), "\"2\"".into())], Vec::new()];
        assert_eq!(with, Criteria::new(with.entries().to_vec(), Some(variants)));
        assert_eq!(criteria(&fields(json!({"v": "1"}))), Criteria::new([("v".into(), "\"1\"".into())], None));
    }
}
