//! A finished span, and the tags that Envoy gives it (Envoy `HttpTracerUtility::finalizeDownstreamSpan`).
use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::header::{self, HeaderMap};
use lateen_snapshot::trace::{CustomTag, TagValue};

use super::Active;
use super::context::Ids;
use super::decision::CLIENT_TRACE_ID;
use crate::http::access::RequestRecord;
use crate::http::{Exchange, headers as names};

/// Which end of a call a span tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Client,
    Server,
}

/// Tags longer than this are cut: a caller decides how long its headers are.
const LONGEST_TAG: usize = 4096;

#[derive(Clone, Debug)]
pub(crate) struct Span {
    pub(super) ids: Ids,
    pub(super) kind: Kind,
    /// The caller's end has the same id.
    pub(super) shared: bool,
    pub(super) name: String,
    pub(super) start: SystemTime,
    pub(super) duration: Duration,
    pub(super) tags: Vec<(Cow<'static, str>, String)>,
    pub(super) trace_state: Option<String>,
    /// 0 when there was no response.
    pub(super) status: u16,
}

impl Span {
    pub(super) fn tag(&mut self, name: &'static str, value: impl Into<String>) {
        self.add(Cow::Borrowed(name), value.into());
    }

    fn add(&mut self, name: Cow<'static, str>, mut value: String) {
        if value.len() > LONGEST_TAG {
            let cut = (0..=LONGEST_TAG).rev().find(|i| value.is_char_boundary(*i)).unwrap_or(0);
            value.truncate(cut);
        }
        // The last value of a tag counts.
        match self.tags.iter_mut().find(|(known, _)| *known == name) {
            Some(slot) => slot.1 = value,
            None => self.tags.push((name, value)),
        }
    }

    fn copy(&mut self, name: &'static str, map: &HeaderMap, header: &header::HeaderName) {
        if let Some(value) = names::text(map, header) {
            self.tag(name, value);
        }
    }
}

/// The tags of a request's own span.
pub(super) fn finish(exchange: &Exchange<'_>, active: &Active, span: &mut Span) {
    let tracer = &active.tracer;
    if !tracer.node.id.is_empty() {
        span.tag("node_id", &*tracer.node.id);
    }
    span.tag("zone", &*tracer.node.zone);
    request_tags(exchange, tracer.config.max_path_tag_length as usize, span);
    common_tags(exchange, span);
    let info = &exchange.info;
    for map in [info.response_headers.as_ref(), info.response_trailers.as_deref()].into_iter().flatten() {
        grpc_tags(map, span);
    }
    let of_route = info.route.as_ref().and_then(|m| m.route.tracing.as_deref());
    let own = of_route.map_or(&[][..], |t| &t.custom_tags);
    for tag in tracer.config.custom_tags.iter().filter(|tag| !own.iter().any(|o| o.name == tag.name)).chain(own) {
        custom(exchange, tag, span);
    }
}

fn request_tags(exchange: &Exchange<'_>, longest_path: usize, span: &mut Span) {
    let (request, map) = (&exchange.request, &exchange.request.headers);
    span.copy("guid:x-request-id", map, &names::REQUEST_ID);
    let path = names::text(map, &names::ORIGINAL_PATH).unwrap_or(&request.path);
    let path: String = path.char_indices().take_while(|(at, c)| at + c.len_utf8() <= longest_path).map(|(_, c)| c).collect();
    let scheme = names::text(map, &names::FORWARDED_PROTO).unwrap_or(request.scheme);
    span.tag("http.url", format!("{scheme}://{}{path}", &*request.authority));
    span.tag("http.method", request.method.as_str());
    span.tag("downstream_cluster", names::text(map, &names::DOWNSTREAM_CLUSTER).unwrap_or("-"));
    span.tag("user_agent", names::text(map, &header::USER_AGENT).unwrap_or("-"));
    span.tag("http.protocol", request.version.name());
    span.tag("peer.address", exchange.conn.direct_remote.ip().to_string());
    span.copy("guid:x-client-trace-id", map, &CLIENT_TRACE_ID);
    if exchange.info.grpc {
        span.tag("grpc.path", &*request.path);
        span.tag("grpc.authority", &*request.authority);
        span.copy("grpc.content_type", map, &header::CONTENT_TYPE);
        span.copy("grpc.timeout", map, &names::GRPC_TIMEOUT);
    }
    span.tag("request_size", exchange.info.body_received.to_string());
    span.tag("response_size", exchange.info.body_sent.to_string());
}

/// What every span of an exchange tells.
pub(super) fn common_tags(exchange: &Exchange<'_>, span: &mut Span) {
    let info = &exchange.info;
    span.tag("component", "proxy");
    if let Some(cluster) = &info.cluster {
        span.tag("upstream_cluster", &*cluster.cluster.config.name);
        span.tag("upstream_cluster.name", &*cluster.cluster.config.stat_name);
    }
    span.status = info.status;
    span.tag("http.status_code", info.status.to_string());
    let mut flags = Vec::new();
    info.flags.write_short(&mut flags);
    span.tag("response_flags", String::from_utf8(flags).unwrap_or_default());
    if info.status == 0 || (500..600).contains(&info.status) {
        span.tag("error", "true");
    }
}

/// gRPC's status, and whether it is the server's fault.
pub(super) fn grpc_tags(map: &HeaderMap, span: &mut Span) {
    span.copy("grpc.status_code", map, &names::GRPC_STATUS);
    span.copy("grpc.message", map, &names::GRPC_MESSAGE);
    if matches!(names::number(map, &names::GRPC_STATUS), Some(2 | 4 | 12 | 13 | 14 | 15)) {
        span.tag("error", "true");
    }
}

fn custom(exchange: &Exchange<'_>, tag: &CustomTag, span: &mut Span) {
    let value = match &tag.value {
        TagValue::Fixed(value) => value.to_string(),
        TagValue::Header { name, default } => match exchange.request.length.said() {
            Some(length) if name == header::CONTENT_LENGTH => length.to_string(),
            _ => names::text(&exchange.request.headers, name).unwrap_or(default).to_owned(),
        },
        TagValue::Format(text) => {
            let Some(format) = exchange.hcm.format(text) else { return };
            let record = RequestRecord::new(exchange, exchange.info.response_headers.as_ref());
            let mut bytes = Vec::new();
            format.write(&record, &mut bytes);
            if bytes == b"-" { String::new() } else { String::from_utf8_lossy(&bytes).into_owned() }
        }
        TagValue::Metadata { namespace, path, default } => match exchange.info.metadata.get(namespace, path) {
            None | Some(serde_json::Value::Null) => default.to_string(),
            Some(serde_json::Value::String(text)) => text.clone(),
            Some(value) => value.to_string(),
        },
    };
    if !value.is_empty() {
        span.add(Cow::Owned(tag.name.to_string()), value);
    }
}
