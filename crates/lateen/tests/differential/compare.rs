//! What is the same whichever proxy it was: ports, times and random ids get names, and then everything must be equal.
use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::{Captures, Regex};
use serde_json::Value;

use crate::config::Places;

static PORT: LazyLock<Regex> = LazyLock::new(|| Regex::new(r":(\d{4,5})\b").expect("a pattern"));
static UUID: LazyLock<Regex> =
    LazyLock::new(|| Regex::new(r"\b[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}\b").expect("a pattern"));
/// A cookie's value that is made of the ports of a connection.
static MADE: LazyLock<Regex> = LazyLock::new(|| Regex::new(r#"="[0-9a-f]{16}""#).expect("a pattern"));
const TIMED: [&str; 2] = ["date", "x-envoy-upstream-service-time"];

/// Gives names to what differs from run to run.
pub(crate) fn normalise(value: &mut Value, places: &Places) {
    named(value, &places.ports(), &places.folder);
}

fn named(value: &mut Value, ports: &BTreeMap<u16, &str>, folder: &str) {
    match value {
        Value::String(text) => {
            if let Some(name) = text.parse().ok().and_then(|port: u16| ports.get(&port)) {
                *text = format!("<{name}>");
                return;
            }
            let port = |found: &Captures<'_>| {
                let known = found[1].parse().ok().and_then(|port: u16| ports.get(&port).copied());
                format!(":<{}>", known.unwrap_or("port"))
            };
            let with_ports = PORT.replace_all(text, port);
            let without_cookies = MADE.replace_all(&with_ports, "=\"<made>\"");
            *text = UUID.replace_all(&without_cookies, "<uuid>").replace(folder, "<folder>");
        }
        Value::Array(all) => all.iter_mut().for_each(|v| named(v, ports, folder)),
        Value::Object(map) => {
            for (key, value) in map {
                if TIMED.iter().any(|name| name.eq_ignore_ascii_case(key)) && value.is_array() {
                    *value = serde_json::json!([format!("<{key}>")]);
                }
                if key == "x-envoy-expected-rq-timeout-ms" {
                    rounded(value);
                }
                named(value, ports, folder);
            }
        }
        _ => {}
    }
}

/// What is left of a timeout at a retry depends on how fast everything is: by the next 500 ms.
fn rounded(value: &mut Value) {
    for text in value.as_array_mut().into_iter().flatten() {
        if let Some(millis) = text.as_str().and_then(|t| t.parse::<u64>().ok()).filter(|m| *m > 1000) {
            *text = format!("<at most {}>", millis.div_ceil(500) * 500).into();
        }
    }
}

/// One place at which the two proxies differ.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    /// Such as `answer.headers.server` or `log[0].flags`.
    pub(crate) field: String,
    pub(crate) lateen: Value,
    pub(crate) envoy: Value,
}

pub(crate) fn differences(lateen: &Value, envoy: &Value) -> Vec<Difference> {
    let mut found = Vec::new();
    walk("", lateen, envoy, &mut found);
    found
}

fn walk(at: &str, lateen: &Value, envoy: &Value, found: &mut Vec<Difference>) {
    let none = Value::Null;
    match (lateen, envoy) {
        (Value::Object(ours), Value::Object(theirs)) => {
            let more = theirs.keys().filter(|k| !ours.contains_key(*k));
            for key in ours.keys().chain(more) {
                let field = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                walk(&field, ours.get(key).unwrap_or(&none), theirs.get(key).unwrap_or(&none), found);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                walk(&format!("{at}[{index}]"), ours, theirs, found);
            }
        }
        _ if lateen == envoy => {}
        _ => found.push(Difference { field: at.to_owned(), lateen: lateen.clone(), envoy: envoy.clone() }),
    }
}

/// Counts that random choices make: the same, give or take.
pub(crate) fn counts(lateen: &BTreeMap<String, u64>, envoy: &BTreeMap<String, u64>, tolerance: u64) -> Vec<Difference> {
    let count = |of: &BTreeMap<String, u64>, key: &String| of.get(key).copied().unwrap_or(0);
    let keys: std::collections::BTreeSet<&String> = lateen.keys().chain(envoy.keys()).collect();
    let differs = |key: &&&String| count(lateen, key).abs_diff(count(envoy, key)) > tolerance;
    let told =
        |key: &String| Difference { field: format!("count of {key}"), lateen: count(lateen, key).into(), envoy: count(envoy, key).into() };
    keys.iter().filter(differs).map(|key| told(key)).collect()
}
