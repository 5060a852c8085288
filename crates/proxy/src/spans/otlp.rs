//! Spans as OpenTelemetry's `ExportTraceServiceRequest` (opentelemetry-proto 1.x, `trace/v1/trace.proto`): the
//! few fields that a proxy fills in.
use std::sync::Arc;
use std::time::SystemTime;

use prost::Message;

use super::span::{Kind, Span};

#[derive(Clone, PartialEq, Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<WireSpan>,
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(string, optional, tag = "1")]
    string_value: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct WireSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start_time_unix_nano: u64,
    #[prost(fixed64, tag = "8")]
    end_time_unix_nano: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(int32, tag = "3")]
    code: i32,
}

const STATUS_ERROR: i32 = 2;

fn attribute(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: Some(AnyValue { string_value: Some(value.to_owned()) }) }
}

pub(super) fn encode(spans: &[Span], resource: &[(Arc<str>, Arc<str>)], scope: bool) -> Vec<u8> {
    let attributes = resource.iter().map(|(key, value)| attribute(key, value)).collect();
    let scope = scope.then(|| Scope { name: "lateen".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() });
    let scope_spans = vec![ScopeSpans { scope, spans: spans.iter().map(wire).collect() }];
    Export { resource_spans: vec![ResourceSpans { resource: Some(Resource { attributes }), scope_spans }] }.encode_to_vec()
}

fn wire(span: &Span) -> WireSpan {
    let start = span.start.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let nanos = |d: std::time::Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
    WireSpan {
        trace_id: span.ids.trace.to_be_bytes().to_vec(),
        span_id: span.ids.span.to_be_bytes().to_vec(),
        trace_state: span.trace_state.clone().unwrap_or_default(),
        parent_span_id: span.ids.parent.map(|p| p.to_be_bytes().to_vec()).unwrap_or_default(),
        name: span.name.clone(),
        kind: match span.kind {
            Kind::Server => 2,
            Kind::Client => 3,
        },
        start_time_unix_nano: nanos(start),
        end_time_unix_nano: nanos(start.saturating_add(span.duration)),
        attributes: span.tags.iter().map(|(key, value)| attribute(key, value)).collect(),
        status: is_error(span).then_some(Status { code: STATUS_ERROR }),
    }
}

/// OpenTelemetry's HTTP conventions: what the caller did wrong is an error of the client's span alone.
fn is_error(span: &Span) -> bool {
    span.status >= 500 || (span.kind == Kind::Client && span.status >= 400)
}
