//! The last touches to heads: the order of configured changes, rewrites, and what the router itself adds.
use http::header::{HeaderMap, HeaderValue};
use lateen_snapshot::route::{Forward, HostRewrite};

use super::timeouts::Timeouts;
use super::{changes, lookup};
use crate::http::headers as names;
use crate::http::{Exchange, Matched};
use crate::io::Text;

/// Turns the caller's request into the one that goes upstream.
pub(super) fn request(exchange: &mut Exchange<'_>, matched: &Matched, forward: &Forward, timeouts: &Timeouts) {
    let suppress = exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers;
    let told = exchange.request.hints.envoy;
    if told {
        for name in [names::TIMEOUT, names::PER_TRY_TIMEOUT, names::HEDGE_ON_PER_TRY_TIMEOUT, names::TIMEOUT_ALT_RESPONSE] {
            exchange.request.headers.remove(name);
        }
    }
    changes::levels(matched).filter(|level| !level.request.is_empty()).for_each(|level| changes::of_request(exchange, &level.request));
    let request = &mut exchange.request;
    if told {
        // Envoy reads these when the changes are made, so that values may name them.
        for name in [names::RETRY_ON, names::RETRY_GRPC_ON, names::MAX_RETRIES, names::RETRIABLE_STATUS_CODES, names::RETRIABLE_HEADERS] {
            request.headers.remove(name);
        }
    }
    if let Some(expected) = timeouts.expected().filter(|_| !suppress) {
        request.headers.insert(names::EXPECTED_TIMEOUT, HeaderValue::from(u64::try_from(expected.as_millis()).unwrap_or(u64::MAX)));
    }
    if forward.max_grpc_timeout.is_some() && exchange.info.grpc {
        grpc_timeout(&mut exchange.request.headers, timeouts.expected());
    }
    let request = &mut exchange.request;
    let weighted = lookup::weighted(matched).and_then(|w| w.host_rewrite.as_deref());
    let host = match (weighted, &forward.host_rewrite) {
        (Some(host), _) => Some(Text::from(host)),
        (None, Some(HostRewrite::Literal(host))) => host.to_str().ok().map(Text::from),
        (None, Some(HostRewrite::Header(name))) => names::text(&request.headers, name).map(Text::from),
        (None, Some(HostRewrite::PathRegex { pattern, substitution })) => {
            let path = request.path.split(['?', '#']).next().unwrap_or_default();
            Some(Text::from(pattern.replace_all(path, &**substitution).into_owned()))
        }
        (None, Some(HostRewrite::Auto) | None) => None,
    };
    // What comes to nothing is no rewrite.
    if let Some(host) = host.filter(|host| !host.is_empty()) {
        rewrite_host(exchange, forward, host);
    }
    let request = &mut exchange.request;
    let rewritten = forward.path_rewrite.as_ref().and_then(|rewrite| rewrite.apply(&matched.route.matches, &request.path));
    if let Some(path) = rewritten {
        if !suppress && let Ok(original) = HeaderValue::from_maybe_shared(request.path.clone().into_bytes()) {
            request.headers.insert(names::ORIGINAL_PATH, original);
        }
        request.path = Text::from(path);
    }
}

/// Where the route heeds the caller's deadline the upstream is told what became of it.
fn grpc_timeout(map: &mut HeaderMap, limit: Option<std::time::Duration>) {
    // gRPC allows eight digits.
    let value = limit.map(|limit| match limit.as_millis() {
        millis if millis < 100_000_000 => format!("{millis}m"),
        millis => format!("{}S", (millis / 1000).min(99_999_999)),
    });
    match value.and_then(|v| HeaderValue::try_from(v).ok()) {
        Some(value) => drop(map.insert(names::GRPC_TIMEOUT, value)),
        None => drop(map.remove(names::GRPC_TIMEOUT)),
    }
}

/// Before another try: the upstream is told how much time is left.
pub(super) fn expected_timeout(exchange: &mut Exchange<'_>, forwarding: &super::forward::Forwarding) {
    let left = forwarding.deadline.map(|at| at.saturating_duration_since(tokio::time::Instant::now()));
    let per_try = forwarding.timeouts.per_try.filter(|_| !forwarding.timeouts.hedge);
    let expected = match (per_try, left) {
        (Some(one), Some(left)) => Some(one.min(left)),
        (one, left) => one.or(left),
    };
    if let Some(expected) = expected
        && exchange.request.headers.contains_key(names::EXPECTED_TIMEOUT)
    {
        let millis = u64::try_from(expected.as_millis()).unwrap_or(u64::MAX);
        exchange.request.headers.insert(names::EXPECTED_TIMEOUT, HeaderValue::from(millis));
    }
}

/// Sends the request to another host name; returns the one before.
pub(super) fn rewrite_host(exchange: &mut Exchange<'_>, forward: &Forward, host: Text) -> Text {
    let request = &mut exchange.request;
    let before = std::mem::replace(&mut request.authority, host);
    // The rewrite of a weighted cluster goes without it, as in Envoy.
    if forward.host_rewrite.is_some()
        && !(exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers)
        && let Ok(original) = HeaderValue::from_maybe_shared(before.clone().into_bytes())
    {
        request.headers.insert(names::ORIGINAL_HOST, original);
    }
    if forward.append_x_forwarded_host {
        names::append_list_once(&mut request.headers, names::FORWARDED_HOST, &before);
    }
    before
}

/// Adds the cookies that were made for the request to its upstream's response.
pub(super) fn affinity_cookies(exchange: &mut Exchange<'_>, map: &mut HeaderMap) {
    for cookie in exchange.info.affinity_cookies.drain(..) {
        // More than a map holds, which nobody means, are left out.
        let _ = map.try_append(http::header::SET_COOKIE, cookie);
    }
}

/// The configured changes to a response, ours or the upstream's.
pub(crate) fn response_headers(exchange: &mut Exchange<'_>, status: http::StatusCode, map: &mut HeaderMap) {
    // Values may name the status.
    exchange.info.status = status.as_u16();
    let Some(matched) = exchange.info.route.clone() else { return };
    let levels = changes::levels(&matched).filter(|level| !level.response.is_empty());
    levels.for_each(|level| changes::of_response(exchange, &level.response, map));
    if matched.virtual_host().is_some_and(|h| h.settings.include_attempt_count_in_response) && exchange.info.attempts > 0 {
        map.insert(names::ATTEMPT_COUNT, exchange.info.attempts.into());
    }
    if let Some(active) = &mut exchange.info.span {
        crate::spans::on_response(active, map);
    } else if exchange.hcm.config.tracing.is_some() {
        // The server's side names the operation; the caller's sidecar keeps that to itself.
        if exchange.hcm.inbound {
            let told = matched.route.decorator.as_deref().filter(|_| matched.route.decorator_propagates);
            if let Some(value) = told.and_then(|d| HeaderValue::from_str(d).ok()) {
                names::insert_if_absent(map, names::DECORATOR, || value);
            }
        } else {
            map.remove(names::DECORATOR);
        }
    }
}
