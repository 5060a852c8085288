//! Asking an authorizer over HTTP: a request like the caller's, whose status is the answer.
use bytes::Bytes;
use http::StatusCode;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use lateen_snapshot::ext_authz::{AuthorizerPath, ExtAuthz, HttpAuthorizer};
use lateen_snapshot::header::AppendAction;
use lateen_snapshot::matcher::StringMatcher;
use serde_json::{Map, Value};

use super::super::{heads, wait};
use super::Shown;
use super::verdict::{Changes, Collected, Decision, Refusal, Verdict};
use crate::http::headers::INTERNAL;
use crate::http::message::{Hints, Length, Request, Version};
use crate::http::{End, Exchange};
use crate::io::Text;
use crate::router::changes;
use crate::upstream::call::{self, Answer, Limits};

/// Of an answer; a larger one is an error.
const MOST_ANSWER: usize = 1 << 20;
/// Names of headers that an authorizer wants removed.
const TO_REMOVE: &str = "x-envoy-auth-headers-to-remove";
/// Headers of a permission that say something about the answer itself.
const OF_THE_ANSWER: [HeaderName; 2] = [header::DATE, header::CONTENT_TYPE];

pub(super) async fn ask(
    exchange: &mut Exchange<'_>,
    config: &ExtAuthz,
    authorizer: &HttpAuthorizer,
    body: Option<Shown>,
) -> Result<Verdict, End> {
    let request = request(exchange, config, authorizer, body.as_ref());
    let body = body.map_or_else(Bytes::new, |shown| shown.bytes);
    let (worker, live) = (exchange.worker.clone(), exchange.live.clone());
    let limits = Limits { time: authorizer.uri.timeout, bytes: MOST_ANSWER };
    let asking = Box::pin(call::ask(&worker, &live, authorizer.uri.cluster, &request, body, limits));
    let answer = wait::patiently(exchange, asking).await?;
    Ok(answer.map_or_else(|_| Verdict::error(), |answer| verdict(authorizer, answer)))
}

fn request(exchange: &Exchange<'_>, config: &ExtAuthz, authorizer: &HttpAuthorizer, body: Option<&Shown>) -> Request {
    let original = &exchange.request;
    let mut headers = HeaderMap::new();
    for (name, value) in heads::of_request(original) {
        if !config.headers.passes(name) {
            continue;
        }
        let Ok(Some(heads::Target::Header(name))) = heads::target(name) else { continue };
        let value = if config.raw_headers { value } else { heads::sanitized(&value).into_bytes() };
        let Ok(value) = HeaderValue::from_bytes(&value) else { continue };
        if config.raw_headers || !headers.contains_key(&name) {
            headers.append(name, value);
        } else {
            heads::change(&mut headers, &name, &value, AppendAction::AppendIfExistsOrAdd, true);
        }
    }
    if let Some(shown) = body {
        headers.insert("x-envoy-auth-partial-body", HeaderValue::from_static(if shown.partial { "true" } else { "false" }));
    }
    for (name, value) in &changes::of_reply(exchange, &authorizer.add) {
        headers.insert(name, value.clone());
    }
    headers.insert(INTERNAL, HeaderValue::from_static("true"));
    call::tell_patience(&mut headers, authorizer.uri.timeout);
    Request {
        method: original.method.clone(),
        authority: original.authority.clone(),
        scheme: original.scheme,
        scheme_given: original.scheme_given,
        path: match &authorizer.path {
            AuthorizerPath::Prefix(prefix) if prefix.is_empty() => original.path.clone(),
            AuthorizerPath::Prefix(prefix) => Text::from(format!("{prefix}{}", &*original.path)),
            AuthorizerPath::Fixed(path) => Text::from(&**path),
        },
        headers,
        version: Version::Http11,
        length: Length::Known(body.map_or(0, |shown| shown.bytes.len() as u64)),
        upgrade: None,
        expects_continue: false,
        accepts_trailers: false,
        hints: Hints::default(),
        head_bytes: 0,
        spelling: None,
    }
}

fn verdict(authorizer: &HttpAuthorizer, answer: Answer) -> Verdict {
    if answer.status.is_server_error() {
        return Verdict::error();
    }
    let mut headers = answer.headers;
    let remove: Vec<String> = headers.get_all(TO_REMOVE).iter().flat_map(names_in).collect();
    headers.remove(TO_REMOVE);
    let mut metadata = Map::new();
    for (name, value) in headers.iter().filter(|(name, _)| matches(&authorizer.metadata, name)) {
        metadata.insert(name.as_str().to_owned(), Value::String(heads::sanitized(value.as_bytes())));
    }
    let decision = if answer.status == StatusCode::OK {
        Decision::Allowed(Box::new(changes(authorizer, &headers, remove)))
    } else {
        let passes =
            |name: &HeaderName| if authorizer.client.is_empty() { *name != header::HOST } else { matches(&authorizer.client, name) };
        let told = collect(&headers, passes, AppendAction::AppendIfExistsOrAdd);
        let (headers, invalid) = (told.mutations, told.invalid);
        Decision::Denied(Refusal { status: answer.status.as_u16(), headers, body: answer.body.into(), invalid })
    };
    Verdict { decision, metadata }
}

fn changes(authorizer: &HttpAuthorizer, headers: &HeaderMap, remove: Vec<String>) -> Changes {
    let set = collect(headers, |name| matches(&authorizer.upstream, name), AppendAction::OverwriteIfExistsOrAdd);
    let append = collect(headers, |name| matches(&authorizer.upstream_append, name), AppendAction::AppendIfExistsOrAdd);
    let client = |name: &HeaderName| matches(&authorizer.client_on_success, name) && !OF_THE_ANSWER.contains(name);
    let response = collect(headers, client, AppendAction::AppendIfExistsOrAdd);
    Changes { request: [set.mutations, append.mutations].concat(), remove, response: response.mutations, ..Changes::default() }
}

fn matches(list: &[StringMatcher], name: &HeaderName) -> bool {
    list.iter().any(|m| m.matches(name.as_str()))
}

fn collect(headers: &HeaderMap, passes: impl Fn(&HeaderName) -> bool, action: AppendAction) -> Collected {
    let mut collected = Collected::default();
    for (name, value) in headers.iter().filter(|(name, _)| passes(name)) {
        collected.add(name.as_str(), value.as_bytes(), action, false);
    }
    collected
}

fn names_in(value: &HeaderValue) -> Vec<String> {
    let text = value.to_str().unwrap_or_default();
    text.split(',').map(|name| name.trim().to_owned()).filter(|name| !name.is_empty()).collect()
}
