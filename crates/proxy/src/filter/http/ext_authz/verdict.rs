//! What an authorizer decided, whichever way it was asked, and what becomes of the request.
use http::header::{HeaderMap, HeaderName, HeaderValue};
use lateen_snapshot::ext_authz::{ExtAuthz, NAMESPACE};
use lateen_snapshot::header::AppendAction;
use lateen_telemetry::envoy_names::ext_authz_filter as filter_names;
use lateen_telemetry::{Local, ResponseFlags, details};
use serde_json::{Map, Value};

use super::super::Step;
use super::super::heads::{self, Mutation, Target};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::io::Text;

/// The answer in words of ours.
#[derive(Debug)]
pub(super) struct Verdict {
    pub(super) decision: Decision,
    pub(super) metadata: Map<String, Value>,
}

#[derive(Debug)]
pub(super) enum Decision {
    Allowed(Box<Changes>),
    Denied(Refusal),
    /// The authorizer could not be asked, or says that it failed.
    Error(Option<Refusal>),
}

impl Verdict {
    pub(super) fn error() -> Self {
        Self { decision: Decision::Error(None), metadata: Map::new() }
    }

    /// Whether it wants more headers than a head may be given.
    pub(super) fn is_excessive(&self) -> bool {
        let most = match &self.decision {
            Decision::Allowed(changes) => changes.request.len().max(changes.response.len()),
            Decision::Denied(refusal) | Decision::Error(Some(refusal)) => refusal.headers.len(),
            Decision::Error(None) => 0,
        };
        most > heads::MOST_ADDED
    }
}

/// What an allowed request goes on with.
#[derive(Debug, Default)]
pub(super) struct Changes {
    pub(super) request: Vec<Mutation>,
    pub(super) remove: Vec<String>,
    pub(super) response: Vec<Mutation>,
    pub(super) set_query: Vec<(String, String)>,
    pub(super) remove_query: Vec<String>,
    /// Something among them cannot be.
    pub(super) invalid: bool,
}

/// What the caller of a refused request gets.
#[derive(Debug, Default)]
pub(super) struct Refusal {
    /// 0 for the filter's own.
    pub(super) status: u16,
    pub(super) headers: Vec<Mutation>,
    pub(super) body: Vec<u8>,
    pub(super) invalid: bool,
}

/// Collects mutations, noting what cannot be one.
#[derive(Default)]
pub(super) struct Collected {
    pub(super) mutations: Vec<Mutation>,
    pub(super) invalid: bool,
}

impl Collected {
    pub(super) fn add(&mut self, name: &str, value: &[u8], action: AppendAction, joins: bool) {
        match (heads::target(name), HeaderValue::from_bytes(value)) {
            (Ok(Some(target)), Ok(value)) => self.mutations.push(Mutation { target, value, action, joins }),
            (Ok(None), Ok(_)) => {}
            _ => self.invalid = true,
        }
    }
}

/// Keeps what the authorizer says about the request.
pub(super) fn note_metadata(
    exchange: &mut Exchange<'_>,
    config: &ExtAuthz,
    stats: &Local,
    verdict: &mut Verdict,
    took: std::time::Duration,
) {
    if verdict.metadata.is_empty() {
        return;
    }
    if !config.ingest_metadata {
        stats.inc(filter_names::IGNORED_DYNAMIC_METADATA);
        return;
    }
    let mut metadata = std::mem::take(&mut verdict.metadata);
    if matches!(verdict.decision, Decision::Allowed(_)) {
        metadata.insert("ext_authz_duration".to_owned(), u64::try_from(took.as_millis()).unwrap_or(u64::MAX).into());
    }
    let namespace = NAMESPACE.into();
    for (key, value) in metadata {
        exchange.info.metadata.set(&namespace, &key, value);
    }
}

/// Changes an allowed request as the authorizer wants it. One whose head is then larger than it may come is refused.
pub(super) fn apply(exchange: &mut Exchange<'_>, config: &ExtAuthz, stats: &Local, changes: Changes) -> Result<Step, End> {
    let changed =
        !changes.request.is_empty() || !changes.remove.is_empty() || !changes.set_query.is_empty() || !changes.remove_query.is_empty();
    for mutation in &changes.request {
        heads::change_request(exchange, mutation);
    }
    for name in &changes.remove {
        // What makes a request one is not removed.
        if let Ok(Some(Target::Header(name))) = heads::target(name) {
            exchange.request.headers.remove(name);
        }
    }
    if !changes.set_query.is_empty() || !changes.remove_query.is_empty() {
        let path = heads::change_query(&exchange.request.path, &changes.set_query, &changes.remove_query);
        exchange.request.path = Text::from(path);
    }
    if !heads::is_allowed(exchange) {
        return Ok(invalid(stats));
    }
    exchange.info.add_response_mutations(changes.response);
    if config.clear_route_cache && changed {
        exchange.refresh_route()?;
    }
    Ok(Step::Continue)
}

/// The answer to a request that is not let through.
pub(super) fn refuse(config: &ExtAuthz, refusal: Refusal, details: &'static str) -> Step {
    let status = if refusal.status == 0 { config.status_on_error } else { refusal.status };
    let mut body = refusal.body;
    body.truncate(config.max_denied_body);
    let mut reply = Reply::new(status, "", details, ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE);
    reply.body = body.into();
    let mut map = HeaderMap::new();
    for Mutation { target, value, action, joins } in &refusal.headers {
        if let Target::Header(name) = target {
            heads::change(&mut map, name, value, *action, *joins);
        }
    }
    let pairs: Vec<(HeaderName, HeaderValue)> = map.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    reply.headers = pairs;
    Step::Reply(reply)
}

/// The answer when the authorizer's own makes no sense.
pub(super) fn invalid(stats: &Local) -> Step {
    stats.inc(filter_names::INVALID);
    Step::Reply(Reply::new(500, "", details::EXT_AUTHZ_INVALID, ResponseFlags::UNAUTHORIZED_EXTERNAL_SERVICE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_adds_so_many_headers_and_no_more() {
        let headers = |count: usize| {
            let mut collected = Collected::default();
            (0..count).for_each(|i| collected.add(&format!("x-{i}"), b"v", AppendAction::AppendIfExistsOrAdd, false));
            collected.mutations
        };
        let excessive = |decision| Verdict { decision, metadata: Map::new() }.is_excessive();
        for (count, expected) in [(1000, false), (1001, true)] {
            let refusal = || Refusal { headers: headers(count), ..Refusal::default() };
            assert_eq!(excessive(Decision::Denied(refusal())), expected);
            assert_eq!(excessive(Decision::Error(Some(refusal()))), expected);
            assert_eq!(excessive(Decision::Allowed(Box::new(Changes { request: headers(count), ..Changes::default() }))), expected);
            assert_eq!(excessive(Decision::Allowed(Box::new(Changes { response: headers(count), ..Changes::default() }))), expected);
        }
        assert!(!Verdict::error().is_excessive());
    }
}
