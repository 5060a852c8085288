//! CORS: answers preflights, marks responses for the origins that a route allows (Envoy cors filter).
use std::sync::Arc;

use http::header::{self, HeaderName, HeaderValue};
use lateen_snapshot::http::Cors;
use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::cors as names;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, per_route};
use crate::http::Exchange;
use crate::http::message::Response;
use crate::http::reply::Reply;

const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// What the answer says about an allowed origin.
#[derive(Clone)]
pub(super) struct Allowed {
    origin: HeaderValue,
    policy: Arc<Cors>,
}

fn policy(exchange: &Exchange<'_>) -> Option<Arc<Cors>> {
    let matched = exchange.info.route.as_ref()?;
    let of_route = || match &matched.route.action {
        Action::Forward(forward) => forward.cors.clone(),
        _ => None,
    };
    let configured = per_route(exchange, |p| p.cors.as_ref());
    let policy = configured.or_else(of_route).or_else(|| matched.virtual_host()?.cors.clone())?;
    policy.enabled.is_none_or(|f| f.hits(exchange.worker.roll())).then_some(policy)
}

fn allowed(exchange: &Exchange<'_>) -> Option<(Option<Allowed>, Arc<Cors>)> {
    let origin = exchange.request.headers.get(header::ORIGIN)?;
    let policy = policy(exchange)?;
    let text = origin.to_str().unwrap_or_default();
    let fits = !text.is_empty() && policy.allow_origins.iter().any(|m| m.matches(text));
    let allowed = fits.then(|| Allowed { origin: origin.clone(), policy: Arc::clone(&policy) });
    Some((allowed, policy))
}

pub(super) fn on_request(exchange: &mut Exchange<'_>) -> Step {
    let Some((allowed, policy)) = allowed(exchange) else { return Step::Continue };
    let request = &exchange.request;
    let preflight = request.method == http::Method::OPTIONS
        && request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|m| !m.is_empty());
    exchange.hcm.cors.inc(if allowed.is_some() { names::ORIGIN_VALID } else { names::ORIGIN_INVALID });
    let Some(allowed) = allowed else {
        // A browser takes an answer without the headers for a refusal.
        return if preflight && !policy.forward_not_matching_preflights { Step::Reply(answer()) } else { Step::Continue };
    };
    if !preflight {
        exchange.info.cors_origin = Some(allowed.origin);
        return Step::Continue;
    }
    let mut reply = answer().with_header(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed.origin.clone());
    if allowed.policy.allow_credentials {
        reply = reply.with_header(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if allowed.policy.allow_private_network_access && request.headers.get(PRIVATE_NETWORK_ASKED).is_some_and(|v| v == "true") {
        reply = reply.with_header(PRIVATE_NETWORK_ALLOWED, HeaderValue::from_static("true"));
    }
    let asked = |name: HeaderName| request.headers.get(name).cloned().unwrap_or(HeaderValue::from_static(""));
    // A star is no wildcard where credentials are sent: what was asked for is allowed by its name.
    let unless_any = |value: &HeaderValue, name| if value == "*" { asked(name) } else { value.clone() };
    let optional: [(HeaderName, Option<HeaderValue>); 4] = [
        (header::ACCESS_CONTROL_ALLOW_METHODS, policy.allow_methods.as_ref().map(|v| unless_any(v, header::ACCESS_CONTROL_REQUEST_METHOD))),
        (
            header::ACCESS_CONTROL_ALLOW_HEADERS,
            policy.allow_headers.as_ref().map(|v| unless_any(v, header::ACCESS_CONTROL_REQUEST_HEADERS)),
        ),
        (header::ACCESS_CONTROL_EXPOSE_HEADERS, policy.expose_headers.clone()),
        (header::ACCESS_CONTROL_MAX_AGE, policy.max_age.clone()),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            reply = reply.with_header(name, value);
        }
    }
    Step::Reply(reply)
}

fn answer() -> Reply {
    Reply::new(200, "", details::CORS_RESPONSE, ResponseFlags::NONE)
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, response: &mut Response) {
    let Some(origin) = exchange.info.cors_origin.take() else { return };
    let Some(policy) = policy(exchange) else { return };
    response.headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    if policy.allow_credentials {
        response.headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(expose) = &policy.expose_headers {
        response.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose.clone());
    }
}
