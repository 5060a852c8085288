//! Spans as Zipkin's JSON, version 2 (zipkin2-api.yaml).
use std::time::SystemTime;

use serde_json::{Map, Value, json};

use super::context::trace_text;
use super::span::{Kind, Span};
use crate::worker::NodeText;

pub(super) fn encode(spans: &[Span], node: &NodeText) -> Vec<u8> {
    let all: Vec<Value> = spans.iter().map(|span| value(span, node)).collect();
    Value::Array(all).to_string().into_bytes()
}

fn value(span: &Span, node: &NodeText) -> Value {
    let mut endpoint = json!({ "serviceName": node.cluster });
    if let (Some(address), Some(map)) = (node.address, endpoint.as_object_mut()) {
        map.insert(if address.is_ipv4() { "ipv4" } else { "ipv6" }.to_owned(), address.to_string().into());
    }
    let micros = span.start.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_micros());
    let tags: Map<String, Value> = span.tags.iter().map(|(name, value)| (name.to_string(), value.as_str().into())).collect();
    let mut out = json!({
        "traceId": trace_text(span.ids.trace),
        "id": format!("{:016x}", span.ids.span),
        "kind": match span.kind { Kind::Client => "CLIENT", Kind::Server => "SERVER" },
        "name": span.name,
        "timestamp": u64::try_from(micros).unwrap_or(0),
        // Zipkin takes zero for "unknown".
        "duration": u64::try_from(span.duration.as_micros()).unwrap_or(u64::MAX).max(1),
        "localEndpoint": endpoint,
        "tags": tags,
    });
    if let Some(map) = out.as_object_mut() {
        if let Some(parent) = span.ids.parent {
            map.insert("parentId".to_owned(), format!("{parent:016x}").into());
        }
        if span.shared {
            map.insert("shared".to_owned(), true.into());
        }
    }
    out
}
