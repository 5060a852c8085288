//! The last touches to heads: configured header changes, rewrites, and what the router itself adds.
use http::header::{HeaderMap, HeaderValue};
use lateen_snapshot::header::{AppendAction, HeaderMutations, HeaderTemplate};
use lateen_snapshot::http::HeaderChanges;
use lateen_snapshot::route::{Forward, HostRewrite};

use super::lookup;
use super::timeouts::Timeouts;
use crate::http::access::RequestRecord;
use crate::http::headers as names;
use crate::http::{Exchange, Matched};
use crate::io::Text;

/// Visits the changes of weighted cluster, route, virtual host and table in Envoy's order.
fn changes<'a>(matched: &'a Matched, visit: &mut dyn FnMut(&'a HeaderChanges)) {
    let weighted = lookup::weighted(matched).map(|w| &w.headers);
    let host = matched.virtual_host().map(|h| &h.headers);
    let order = [weighted, Some(&matched.route.headers), host, Some(&matched.table.headers)];
    let present = order.into_iter().flatten();
    if matched.table.most_specific_header_mutations_wins {
        present.rev().for_each(visit);
    } else {
        present.for_each(visit);
    }
}

/// One mutation with its value settled.
enum Change {
    Remove(http::HeaderName),
    Add(http::HeaderName, HeaderValue, AppendAction),
}

fn settle(exchange: &Exchange<'_>, mutations: &HeaderMutations, response: Option<&HeaderMap>, out: &mut Vec<Change>) {
    out.extend(mutations.remove.iter().cloned().map(Change::Remove));
    for addition in &mutations.add {
        let value = match &addition.value {
            HeaderTemplate::Fixed(value) => value.clone(),
            HeaderTemplate::Format(text) => {
                let Some(format) = exchange.hcm.format(text) else { continue };
                let record = RequestRecord::new(exchange, response);
                let mut bytes = Vec::new();
                format.write(&record, &mut bytes);
                match HeaderValue::from_bytes(&bytes) {
                    Ok(value) => value,
                    Err(_) => continue,
                }
            }
        };
        if !value.is_empty() || addition.keep_empty {
            out.push(Change::Add(addition.name.clone(), value, addition.action));
        }
    }
}

fn apply(map: &mut HeaderMap, changes: Vec<Change>) {
    for change in changes {
        match change {
            Change::Remove(name) => {
                map.remove(name);
            }
            Change::Add(name, value, AppendAction::AppendIfExistsOrAdd) => {
                map.append(name, value);
            }
            Change::Add(name, value, AppendAction::AddIfAbsent) => names::insert_if_absent(map, name, || value),
            Change::Add(name, value, AppendAction::OverwriteIfExistsOrAdd) => {
                map.insert(name, value);
            }
            Change::Add(name, value, AppendAction::OverwriteIfExists) => {
                if map.contains_key(&name) {
                    map.insert(name, value);
                }
            }
        }
    }
}

/// Changes that a filter makes to the request's headers.
pub(crate) fn mutate_request(exchange: &mut Exchange<'_>, mutations: &HeaderMutations) {
    let mut settled = Vec::new();
    settle(exchange, mutations, None, &mut settled);
    apply(&mut exchange.request.headers, settled);
}

/// Changes to the headers of a copy of the request.
pub(super) fn mutate_copy(exchange: &Exchange<'_>, mutations: &HeaderMutations, map: &mut HeaderMap) {
    let mut settled = Vec::new();
    settle(exchange, mutations, None, &mut settled);
    apply(map, settled);
}

/// Changes that a filter makes to a response's headers.
pub(crate) fn mutate_response(exchange: &Exchange<'_>, mutations: &HeaderMutations, map: &mut HeaderMap) {
    let mut settled = Vec::new();
    settle(exchange, mutations, Some(map), &mut settled);
    apply(map, settled);
}

/// Changes without commands in their values.
pub(crate) fn mutate_fixed(mutations: &HeaderMutations, map: &mut HeaderMap) {
    let mut settled: Vec<Change> = mutations.remove.iter().cloned().map(Change::Remove).collect();
    for addition in &mutations.add {
        if let HeaderTemplate::Fixed(value) = &addition.value
            && (!value.is_empty() || addition.keep_empty)
        {
            settled.push(Change::Add(addition.name.clone(), value.clone(), addition.action));
        }
    }
    apply(map, settled);
}

/// Headers that a filter gives to its own reply.
pub(crate) fn reply_headers(exchange: &Exchange<'_>, mutations: &HeaderMutations) -> HeaderMap {
    let (mut settled, mut map) = (Vec::new(), HeaderMap::new());
    settle(exchange, mutations, None, &mut settled);
    apply(&mut map, settled);
    map
}

/// Turns the caller's request into the one that goes upstream.
pub(super) fn request(exchange: &mut Exchange<'_>, matched: &Matched, forward: &Forward, timeouts: &Timeouts) {
    let mut settled = Vec::new();
    changes(matched, &mut |c| {
        if !c.request.is_empty() {
            settle(exchange, &c.request, None, &mut settled);
        }
    });
    let suppress = exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers;
    let request = &mut exchange.request;
    if request.hints.envoy {
        for name in [
            names::TIMEOUT,
            names::PER_TRY_TIMEOUT,
            names::RETRY_ON,
            names::RETRY_GRPC_ON,
            names::MAX_RETRIES,
            names::RETRIABLE_STATUS_CODES,
            names::RETRIABLE_HEADERS,
            names::HEDGE_ON_PER_TRY_TIMEOUT,
            names::TIMEOUT_ALT_RESPONSE,
        ] {
            request.headers.remove(name);
        }
    }
    apply(&mut request.headers, settled);
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
    if let Some(host) = host {
        rewrite_host(exchange, forward, host);
    }
    let request = &mut exchange.request;
    if let Some(rewrite) = &forward.path_rewrite {
        let path = rewrite.apply(&matched.route.matches, &request.path);
        if path != *request.path {
            if !suppress && let Ok(original) = HeaderValue::from_maybe_shared(request.path.clone().into_bytes()) {
                request.headers.insert(names::ORIGINAL_PATH, original);
            }
            request.path = Text::from(path);
        }
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

/// Sends the request to another host name.
pub(super) fn rewrite_host(exchange: &mut Exchange<'_>, forward: &Forward, host: Text) {
    let request = &mut exchange.request;
    if host == request.authority {
        return;
    }
    let before = std::mem::replace(&mut request.authority, host);
    // The rewrite of a weighted cluster goes without it, as in Envoy.
    if forward.host_rewrite.is_some()
        && !(exchange.hcm.router.suppress_envoy_headers || exchange.hcm.config.suppress_envoy_headers)
        && let Ok(original) = HeaderValue::from_maybe_shared(before.clone().into_bytes())
    {
        request.headers.insert(names::ORIGINAL_HOST, original);
    }
    if forward.append_x_forwarded_host {
        names::append_list(&mut request.headers, names::FORWARDED_HOST, &before);
    }
}

/// The configured changes to a response, ours or the upstream's.
pub(crate) fn response_headers(exchange: &mut Exchange<'_>, status: http::StatusCode, map: &mut HeaderMap) {
    // Values may name the status.
    exchange.info.status = status.as_u16();
    let Some(matched) = exchange.info.route.clone() else { return };
    let mut settled = Vec::new();
    changes(&matched, &mut |c| {
        if !c.response.is_empty() {
            settle(exchange, &c.response, Some(map), &mut settled);
        }
    });
    apply(map, settled);
    if matched.virtual_host().is_some_and(|h| h.include_attempt_count_in_response) && exchange.info.attempts > 0 {
        map.insert(names::ATTEMPT_COUNT, exchange.info.attempts.into());
    }
    if let Some(cookie) = exchange.info.affinity_cookie.take() {
        map.append(http::header::SET_COOKIE, cookie);
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
