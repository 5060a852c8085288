//! Requests that other sites make a browser send (Envoy csrf filter): those that change something must come from here.
use std::sync::Arc;

use http::Method;
use http::header::{HeaderValue, ORIGIN, REFERER};
use lateen_snapshot::http::Csrf;
use lateen_telemetry::envoy_names::csrf as names;
use lateen_telemetry::{Local, ResponseFlags, details};

use super::{Step, per_route};
use crate::http::Exchange;
use crate::http::reply::Reply;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Csrf>, stats: &Local) -> Step {
    let route = per_route(exchange, |p| p.csrf.as_ref());
    let policy = route.as_ref().unwrap_or(config);
    let enabled = policy.enabled.hits(exchange.worker.roll());
    let shadow = policy.shadow.hits(exchange.worker.roll());
    let request = &exchange.request;
    if !(enabled || shadow) || !matches!(request.method, Method::POST | Method::PUT | Method::DELETE | Method::PATCH) {
        return Step::Continue;
    }
    let origin = |name| request.headers.get(name).map_or("", host_and_port);
    let source = Some(origin(ORIGIN)).filter(|o| !o.is_empty()).unwrap_or_else(|| origin(REFERER));
    if source.is_empty() {
        stats.inc(names::MISSING_SOURCE_ORIGIN);
    }
    let known = source == &*request.authority || policy.additional_origins.iter().any(|m| m.matches(source));
    if !known {
        stats.inc(names::REQUEST_INVALID);
    }
    if known && !source.is_empty() {
        stats.inc(names::REQUEST_VALID);
        return Step::Continue;
    }
    if !enabled {
        return Step::Continue;
    }
    Step::Reply(Reply::new(403, "Invalid origin", details::CSRF_ORIGIN_MISMATCH, ResponseFlags::NONE))
}

/// Of a URL its authority; anything else as it stands.
fn host_and_port(value: &HeaderValue) -> &str {
    let text = value.to_str().unwrap_or_default();
    let Some((_, rest)) = text.split_once("://") else { return text };
    rest.split(['/', '?', '#']).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_its_host_and_port() {
        for (value, origin) in [
            ("https://shop.example", "shop.example"),
            ("http://shop.example:8080/x?y=/z", "shop.example:8080"),
            ("https://shop.example?q", "shop.example"),
            ("shop.example", "shop.example"),
            ("null", "null"),
            ("", ""),
        ] {
            assert_eq!(host_and_port(&HeaderValue::from_static(value)), origin, "{value}");
        }
    }
}
