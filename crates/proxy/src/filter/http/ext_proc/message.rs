//! What a processor is told of an exchange, and what its answers do to heads.
use std::collections::HashMap;

use bytes::Bytes;
use http::StatusCode;
use http::header::{HeaderMap, HeaderValue};
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::ext_proc::v3::processing_mode::BodySendMode;
use lateen_proto::envoy::service::ext_proc::v3::{
    self as proto, HeaderMutation, ImmediateResponse, ProcessingRequest, ProcessingResponse, StreamedBodyResponse,
    body_mutation::Mutation as BodyChange, common_response::ResponseStatus, processing_request::Request,
    processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{BodyMode, ExtProc, NAMESPACE};
use lateen_snapshot::header::AppendAction;
use lateen_snapshot::metadata::{self, Metadata};
use lateen_snapshot::mutation_rules::MutationRules;
use lateen_telemetry::envoy_names::ext_proc as names;
use lateen_telemetry::{Local, ResponseFlags, details};
use prost_types::value::Kind;

use super::super::heads::{self, Mutation, Target};
use super::session::Session;
use super::side::{Part, Way};
use crate::http::message::{Length, Response};
use crate::http::reply::Reply;

/// A message about one part of an exchange.
pub(super) fn request(session: &mut Session, way: Way, known: &Metadata, request: Request) -> ProcessingRequest {
    let attributes = session.attributes(way);
    let config = &session.config;
    let namespaces = config.forwarded.iter();
    let told = namespaces.filter_map(|name| match metadata::to_proto(known.get(name, &[])?).kind {
        Some(Kind::StructValue(fields)) => Some((name.to_string(), fields)),
        _ => None,
    });
    let filter_metadata: HashMap<_, _> = told.collect();
    ProcessingRequest {
        request: Some(request),
        attributes: attributes.map(|all| (NAMESPACE.to_owned(), *all)).into_iter().collect(),
        metadata_context: Some(core::Metadata { filter_metadata, ..Default::default() }),
        observability_mode: config.observes,
        protocol_config: (!session.begun && !config.observes).then(|| proto::ProtocolConfiguration {
            request_body_mode: body_mode(session.mode.request_body) as i32,
            response_body_mode: body_mode(session.mode.response_body) as i32,
            send_body_without_waiting_for_header_response: config.early_bodies,
        }),
        ..Default::default()
    }
}

fn body_mode(mode: BodyMode) -> BodySendMode {
    match mode {
        BodyMode::None => BodySendMode::None,
        BodyMode::Streamed => BodySendMode::Streamed,
        BodyMode::Buffered => BodySendMode::Buffered,
        BodyMode::BufferedPartial => BodySendMode::BufferedPartial,
        BodyMode::FullDuplexStreamed => BodySendMode::FullDuplexStreamed,
    }
}

pub(super) fn headers(config: &ExtProc, way: Way, all: Vec<(&str, Vec<u8>)>, end: bool) -> Request {
    let headers = proto::HttpHeaders { headers: Some(header_map(config, all)), end_of_stream: end, ..Default::default() };
    match way {
        Way::Request => Request::RequestHeaders(headers),
        Way::Response => Request::ResponseHeaders(headers),
    }
}

pub(super) fn body(way: Way, body: Bytes, end: bool) -> Request {
    let body = proto::HttpBody { body, end_of_stream: end, ..Default::default() };
    match way {
        Way::Request => Request::RequestBody(body),
        Way::Response => Request::ResponseBody(body),
    }
}

pub(super) fn trailers(config: &ExtProc, way: Way, map: &HeaderMap) -> Request {
    let all = map.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())).collect();
    let trailers = proto::HttpTrailers { trailers: Some(header_map(config, all)) };
    match way {
        Way::Request => Request::RequestTrailers(trailers),
        Way::Response => Request::ResponseTrailers(trailers),
    }
}

fn header_map(config: &ExtProc, all: Vec<(&str, Vec<u8>)>) -> core::HeaderMap {
    // How a body is cut into pieces on the wire is nothing that a processor could change.
    let shown = all.into_iter().filter(|(name, _)| *name != "transfer-encoding" && config.headers.passes(name));
    let headers = shown.map(|(key, value)| core::HeaderValue { key: key.to_owned(), raw_value: value.into(), ..Default::default() });
    core::HeaderMap { headers: headers.collect() }
}

/// A response's head as other servers see it.
pub(super) fn of_response(response: &Response) -> Vec<(&str, Vec<u8>)> {
    let mut all = vec![(":status", response.status.as_str().as_bytes().to_vec())];
    all.extend(response.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes().to_vec())));
    if let Some(protocol) = response.upgrade.as_ref().filter(|_| response.status == StatusCode::SWITCHING_PROTOCOLS) {
        all.push(("connection", b"upgrade".to_vec()));
        all.push(("upgrade", protocol.as_bytes().to_vec()));
    }
    if let Length::Known(n) = response.length {
        all.push(("content-length", n.to_string().into_bytes()));
    }
    all
}

/// What a processor does to a head, as far as it may.
#[derive(Default)]
pub(super) struct Changes {
    pub(super) remove: Vec<http::HeaderName>,
    pub(super) set: Vec<Mutation>,
}

impl Changes {
    pub(super) fn apply_to(&self, map: &mut HeaderMap) {
        for name in &self.remove {
            map.remove(name);
        }
        for Mutation { target, value, action, joins } in &self.set {
            if let Target::Header(name) = target {
                heads::change(map, name, value, *action, *joins);
            }
        }
    }

    pub(super) fn apply_to_response(&self, response: &mut Response) {
        self.apply_to(&mut response.headers);
        let status = self.set.iter().rev().find(|m| m.target == Target::Status);
        if let Some(status) = status.and_then(|m| StatusCode::from_bytes(m.value.as_bytes()).ok()).filter(|s| s.as_u16() >= 200) {
            response.status = status;
        }
    }
}

/// Why a mutation is refused, in Envoy's words.
pub(super) type Refused = &'static str;
const TOO_MANY: Refused = "header_mutation_operation_count_exceeds_limit";
const TOO_LARGE: Refused = "header_mutation_result_exceeds_limit";
const NOT_REMOVED: Refused = "header_mutation_remove_headers_failed";
const NOT_SET: Refused = "header_mutation_set_headers_failed";

/// How large a head may be.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    pub(super) count: usize,
    pub(super) bytes: usize,
}

impl Limits {
    /// What Envoy takes of responses and trailers unless told otherwise.
    pub(super) const DEFAULT: Self = Self { count: 100, bytes: 60 << 10 };

    /// Whether a head with that many pseudo headers is within the limits.
    pub(super) fn check(self, map: &HeaderMap, pseudo: usize) -> Result<(), Refused> {
        let bytes: usize = map.iter().map(|(name, value)| name.as_str().len() + value.len()).sum();
        if map.len() + pseudo > self.count || bytes > self.bytes { Err(TOO_LARGE) } else { Ok(()) }
    }
}

/// The allowed part of a mutation.
///
/// # Errors
/// Why all of it is refused.
pub(super) fn changes(rules: &MutationRules, limits: Limits, stats: &Local, mutation: Option<HeaderMutation>) -> Result<Changes, Refused> {
    let mut changes = Changes::default();
    let HeaderMutation { set_headers, remove_headers } = mutation.unwrap_or_default();
    let allowed = |name: &str| {
        let allows = rules.allows(&name.to_ascii_lowercase());
        if !allows {
            stats.inc(names::REJECTED_HEADER_MUTATIONS);
        }
        allows
    };
    let invalid = |reason: Refused| {
        stats.inc(names::REJECTED_HEADER_MUTATIONS);
        Err(reason)
    };
    if remove_headers.len().max(set_headers.len()) > limits.count {
        return invalid(TOO_MANY);
    }
    for name in remove_headers {
        match heads::target(&name) {
            Err(()) => return invalid("header_mutation_remove_contains_invalid_character"),
            _ if !allowed(&name) && rules.disallow_is_error => return Err(NOT_REMOVED),
            Ok(Some(Target::Header(header))) if rules.allows(header.as_str()) => changes.remove.push(header),
            _ => {}
        }
    }
    for core::HeaderValueOption { header, append, .. } in set_headers {
        let Some(core::HeaderValue { key, value, raw_value }) = header else { continue };
        let value = if raw_value.is_empty() { value.as_bytes() } else { &raw_value[..] };
        let (Ok(target), Ok(value)) = (heads::target(&key), HeaderValue::from_bytes(value)) else {
            return invalid("header_mutation_set_contains_invalid_character");
        };
        if !allowed(&key) {
            if rules.disallow_is_error {
                return Err(NOT_SET);
            }
            continue;
        }
        // Without a word a header is replaced here, and `append_action` has no meaning, other than elsewhere in Envoy's API.
        let action = if append.unwrap_or(false) { AppendAction::AppendIfExistsOrAdd } else { AppendAction::OverwriteIfExistsOrAdd };
        if let Some(target) = target {
            changes.set.push(Mutation { target, value, action, joins: false });
        }
    }
    Ok(changes)
}

/// What becomes of a body: `None` when it stays.
pub(super) fn new_body(change: Option<proto::BodyMutation>) -> Option<Bytes> {
    match change?.mutation? {
        BodyChange::Body(body) => Some(body),
        BodyChange::ClearBody(true) => Some(Bytes::new()),
        BodyChange::ClearBody(false) | BodyChange::StreamedResponse(_) => None,
    }
}

fn body_mutation(answer: &ProcessingResponse) -> Option<&BodyChange> {
    match answer.response.as_ref()? {
        Answer::RequestBody(said) | Answer::ResponseBody(said) => said.response.as_ref()?.body_mutation.as_ref()?.mutation.as_ref(),
        _ => None,
    }
}

/// The piece of a body in full duplex that an answer brings.
pub(super) fn streamed(answer: &ProcessingResponse) -> Option<&StreamedBodyResponse> {
    if let BodyChange::StreamedResponse(piece) = body_mutation(answer)? { Some(piece) } else { None }
}

/// The bytes that an answer brings.
pub(super) fn body_of(answer: &ProcessingResponse) -> Option<&Bytes> {
    match body_mutation(answer)? {
        BodyChange::Body(body) => Some(body),
        BodyChange::StreamedResponse(piece) => Some(&piece.body),
        BodyChange::ClearBody(_) => None,
    }
}

/// Whether an answer about a head puts another body in the place of the one that is coming.
pub(super) fn replaces(answer: &ProcessingResponse) -> bool {
    let (Some(Answer::RequestHeaders(said)) | Some(Answer::ResponseHeaders(said))) = &answer.response else { return false };
    said.response.as_ref().is_some_and(|r| r.status == ResponseStatus::ContinueAndReplace as i32)
}

/// Keeps what a processor says about a request.
pub(super) fn note_metadata(config: &ExtProc, known: &mut Metadata, said: Option<lateen_proto::Struct>) {
    for (namespace, value) in said.unwrap_or_default().fields {
        let Some(Kind::StructValue(fields)) = value.kind else { continue };
        if config.received.iter().any(|name| **name == *namespace) {
            let namespace = namespace.into();
            for (key, value) in &fields.fields {
                known.set(&namespace, key, metadata::from_proto(value));
            }
        }
    }
}

/// The answer that a processor gives in the upstream's place.
pub(super) fn immediate(stats: &Local, response: ImmediateResponse) -> Reply {
    let ImmediateResponse { status, headers, body, grpc_status, details: said } = response;
    let status = status.and_then(|s| u16::try_from(s.code).ok()).filter(|code| (200..600).contains(code)).unwrap_or(200);
    let rules = MutationRules { allow_all_routing: true, allow_envoy: true, ..Default::default() };
    let mut reply = Reply::new(status, "", details::underscored(&said).into_owned(), ResponseFlags::NONE);
    reply.body = body.to_vec().into();
    reply.grpc_status = grpc_status.map(|s| s.status);
    let mut map = HeaderMap::new();
    if let Ok(changes) = changes(&rules, Limits::DEFAULT, stats, headers) {
        changes.apply_to(&mut map);
    }
    for (name, value) in &map {
        reply = reply.with_header(name.clone(), value.clone());
    }
    reply
}

/// Which part a message is about.
pub(super) fn part(of: &Request) -> Part {
    match of {
        Request::RequestHeaders(_) | Request::ResponseHeaders(_) => Part::Headers,
        Request::RequestBody(_) | Request::ResponseBody(_) => Part::Body,
        Request::RequestTrailers(_) | Request::ResponseTrailers(_) => Part::Trailers,
    }
}
