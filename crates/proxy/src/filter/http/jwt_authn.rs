//! JSON Web Tokens: who asks, proved by an issuer's signature (Envoy jwt_authn filter; texts are Envoy's).
use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use http::header::{ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use lateen_snapshot::jwt::{JwtAuthn, JwtFault, JwtPerRoute, JwtRequest, Requirement};
use lateen_telemetry::envoy_names::jwt_authn as names;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, jwks, per_route};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::io::Text;
use crate::router::lookup;

/// The longest path that an answer repeats.
const MAX_REALM_PATH: usize = 256;

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<JwtAuthn>) -> Result<Step, End> {
    if config.bypass_cors_preflight && is_preflight(exchange) {
        exchange.hcm.jwt_authn.inc(names::CORS_PREFLIGHT_BYPASSED);
        return Ok(Step::Continue);
    }
    let override_ = per_route(exchange, |p| p.jwt_authn.as_ref());
    let requirement = match override_.as_deref() {
        Some(JwtPerRoute::Disabled) => None,
        Some(JwtPerRoute::Named(name)) => match config.named.get(name) {
            Some(requirement) => Some(requirement),
            None => return Ok(wrong_name(exchange, config, name)),
        },
        None => by_rule(exchange, config),
    };
    if !config.remote.is_empty()
        && let Some(requirement) = requirement
    {
        let mut wanted = Vec::new();
        requirement.unfetched(&exchange.request.headers, &exchange.request.path, Instant::now(), &mut wanted);
        if !wanted.is_empty() {
            // On the heap while it lasts: its state would otherwise be part of every request's.
            Box::pin(jwks::wait_for(exchange, wanted)).await?;
        }
    }
    let result = requirement.map_or(Ok(false), |requirement| check(exchange, requirement));
    Ok(match result {
        Ok(clears_route) => {
            exchange.hcm.jwt_authn.inc(names::ALLOWED);
            if clears_route {
                exchange.refresh_route()?;
            }
            Step::Continue
        }
        Err(fault) => {
            exchange.hcm.jwt_authn.inc(names::DENIED);
            Step::Reply(refusal(exchange, fault, config.strip_failure_response))
        }
    })
}

fn is_preflight(exchange: &Exchange<'_>) -> bool {
    let has = |name| exchange.request.headers.get(name).is_some_and(|v| !v.is_empty());
    exchange.request.method == http::Method::OPTIONS && has(ORIGIN) && has(ACCESS_CONTROL_REQUEST_METHOD)
}

fn by_rule<'a>(exchange: &Exchange<'_>, config: &'a JwtAuthn) -> Option<&'a Requirement> {
    let head = lookup::head_of(&exchange.request);
    let (metadata, roll) = (Some(&exchange.info.metadata), exchange.worker.roll64());
    config.rules.iter().find(|rule| rule.matches.check(&head, head.path(), metadata, roll).is_ok())?.requirement.as_ref()
}

/// Whether the route is to be found again.
fn check(exchange: &mut Exchange<'_>, requirement: &Requirement) -> Result<bool, JwtFault> {
    let now = exchange.info.start_time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let mut request = JwtRequest {
        headers: &mut exchange.request.headers,
        path: &exchange.request.path,
        metadata: &mut exchange.info.metadata,
        now,
        new_path: None,
        clear_route: false,
    };
    requirement.check(&mut request)?;
    let (new_path, clear_route) = (request.new_path, request.clear_route);
    if let Some(path) = new_path {
        exchange.request.path = Text::from(path);
    }
    Ok(clear_route)
}

fn refusal(exchange: &Exchange<'_>, fault: JwtFault, strip: bool) -> Reply {
    let status = if fault == JwtFault::Audience { 403 } else { 401 };
    let body = if strip { Cow::Borrowed("") } else { fault.text() };
    let request = &exchange.request;
    let path: String = request.path.chars().take(MAX_REALM_PATH).collect();
    let mut challenge = format!("Bearer realm=\"{}://{}{path}\"", request.scheme, &*request.authority);
    if fault != JwtFault::Missing {
        challenge.push_str(", error=\"invalid_token\"");
    }
    let reply = Reply::new(status, body, details::jwt_denied(&fault.text()), ResponseFlags::NONE);
    match HeaderValue::try_from(challenge) {
        Ok(value) => reply.with_header(WWW_AUTHENTICATE, value),
        Err(_) => reply,
    }
}

/// Routes and filters come in resources of their own: only together do they show that a name leads nowhere.
fn wrong_name(exchange: &Exchange<'_>, config: &JwtAuthn, name: &str) -> Step {
    exchange.hcm.jwt_authn.inc(names::DENIED);
    let mut known: Vec<&str> = config.named.keys().map(|k| &**k).collect();
    known.sort_unstable();
    let reason = format!("Wrong requirement_name: {name}. It should be one of [{}]", known.join(","));
    let details = details::jwt_denied(&reason);
    Step::Reply(Reply::new(403, format!("Failed JWT authentication: {reason}"), details, ResponseFlags::NONE))
}
