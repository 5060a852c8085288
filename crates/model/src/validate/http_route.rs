//! HTTP routes of a VirtualService: the action, the match, and what is done on the way.
use lateen_core::framing::is_framing;

use super::checker::Checker;
use super::pattern::check_pattern;
use super::virtual_service::{destination, weights};
use super::{text, traffic_policy};
use crate::kinds::common::{Percent, StringMatch};
use crate::kinds::virtual_service::*;
use crate::schema::path::join;

/// Longest body of a direct response, in bytes: Istio's limit.
const MAX_BODY_BYTES: usize = 1 << 20;

pub(super) fn check(route: &HttpRoute, path: &str, in_delegate: bool, check: &mut Checker<'_>) {
    action(route, path, in_delegate, check);
    for (index, found) in route.r#match.iter().enumerate() {
        http_match(found, &format!("{path}.match[{index}]"), check);
    }
    for (index, target) in route.route.iter().enumerate() {
        let at = format!("{path}.route[{index}]");
        destination(&target.destination, &join(&at, "destination"), check);
        headers(target.headers.as_ref(), &at, check);
    }
    weights(route.route.iter().map(|target| target.weight), path, check);
    headers(route.headers.as_ref(), path, check);
    authority_once(route, path, check);
    mirrors(route, path, check);
    // A timeout of 0 is Envoy's way to say "none"; Istio's webhook refuses it, its data plane takes it.
    text::optional_duration(check, path, "timeout", route.timeout.filter(|timeout| !timeout.is_zero()));
    if let Some(redirect) = &route.redirect {
        redirection(redirect, &route.r#match, &join(path, "redirect"), check);
    }
    if let Some(response) = &route.direct_response {
        direct_response(response, &join(path, "directResponse"), check);
    }
    if let Some(rewrite) = &route.rewrite {
        rewriting(rewrite, &join(path, "rewrite"), check);
    }
    if let Some(retries) = &route.retries {
        traffic_policy::retries(retries, &join(path, "retries"), check);
    }
    if let Some(fault) = &route.fault {
        faults(fault, &join(path, "fault"), check);
    }
    if let Some(cors) = &route.cors_policy {
        cors_policy(cors, &join(path, "corsPolicy"), check);
    }
}

/// Exactly one of route, redirect, directResponse, delegate, and nothing beside it that it makes void.
fn action(route: &HttpRoute, path: &str, in_delegate: bool, check: &mut Checker<'_>) {
    if route.delegate.is_some() {
        if in_delegate {
            check.error(&join(path, "delegate"), "a delegate cannot delegate further");
        }
        for (field, present) in [("route", !route.route.is_empty()), ("redirect", route.redirect.is_some())] {
            if present {
                check.error_with(&join(path, field), format!("{field} cannot stand beside delegate"), "keep one of them");
            }
        }
        if route.delegate.as_ref().is_some_and(|delegate| delegate.name.is_none()) {
            check.error(&join(path, "delegate"), "name is required");
        }
        return;
    }
    let void_beside = |name: &'static str| {
        [
            ("route", !route.route.is_empty()),
            ("directResponse", route.direct_response.is_some()),
            ("redirect", route.redirect.is_some()),
            ("fault", route.fault.is_some()),
            ("rewrite", route.rewrite.is_some()),
        ]
        .into_iter()
        .filter(move |(field, present)| *present && *field != name)
    };
    let alone = match (&route.redirect, &route.direct_response) {
        (Some(_), _) => "redirect",
        (None, Some(_)) => "directResponse",
        (None, None) => {
            if route.route.is_empty() {
                check.error(path, "one of route, redirect, directResponse, delegate is required");
            }
            return;
        }
    };
    for (field, _) in void_beside(alone) {
        check.error_with(&join(path, field), format!("{field} cannot stand beside {alone}"), "keep one of them");
    }
}

fn http_match(found: &HttpMatchRequest, path: &str, check: &mut Checker<'_>) {
    if let Some(uri) = &found.uri {
        // An empty prefix of the path matches everything; elsewhere it is a mistake.
        string_match(uri, &join(path, "uri"), true, check);
    }
    for (field, matcher) in [("scheme", &found.scheme), ("method", &found.method), ("authority", &found.authority)] {
        if let Some(matcher) = matcher {
            string_match(matcher, &join(path, field), false, check);
        }
    }
    for (name, matcher) in &found.headers {
        let at = join(&join(path, "headers"), name);
        check.expect(&at, text::header_in_match(name));
        string_match(matcher, &at, false, check);
    }
    for (name, matcher) in &found.without_headers {
        let at = join(&join(path, "withoutHeaders"), name);
        check.expect(&at, text::header_in_match(name));
        // `regex: "*"` is no regular expression and means presence here, by Istio's rule.
        if !matches!(matcher, StringMatch::Regex(pattern) if pattern == "*") {
            string_match(matcher, &at, false, check);
        }
    }
    for (name, matcher) in &found.query_params {
        string_match(matcher, &join(&join(path, "queryParams"), name), false, check);
    }
    text::labels(check, &join(path, "sourceLabels"), &found.source_labels);
    text::gateway_names(check, &join(path, "gateways"), &found.gateways);
    if found.source_namespace.as_deref().is_some_and(|namespace| !text::is_label(namespace)) {
        check.error(&join(path, "sourceNamespace"), "this is no namespace");
    }
}

fn string_match(matcher: &StringMatch, path: &str, empty_prefix: bool, check: &mut Checker<'_>) {
    match matcher {
        StringMatch::Regex(pattern) => check.expect(&join(path, "regex"), check_pattern(pattern)),
        StringMatch::Prefix(prefix) if prefix.is_empty() && !empty_prefix => {
            check.error_with(&join(path, "prefix"), "an empty prefix matches nothing", "leave the prefix out to match whatever is there");
        }
        StringMatch::Prefix(_) | StringMatch::Exact(_) | StringMatch::Present => {}
    }
}

fn headers(headers: Option<&Headers>, path: &str, check: &mut Checker<'_>) {
    let Some(headers) = headers else { return };
    let sides = [("request", headers.request.as_ref(), true), ("response", headers.response.as_ref(), false)];
    for (side, operations, is_request) in sides {
        let Some(operations) = operations else { continue };
        let at = format!("{path}.headers.{side}");
        for (field, values) in [("set", &operations.set), ("add", &operations.add)] {
            for (name, value) in values {
                let at = join(&join(&at, field), name);
                check.expect(&at, text::header_in_operation(name, is_request));
                check.expect(&at, text::header_value(value));
                of_the_codec(name, &at, check);
            }
        }
        for (index, name) in operations.remove.iter().enumerate() {
            let at = format!("{at}.remove[{index}]");
            check.expect(&at, text::header_in_operation(name, false));
            of_the_codec(name, &at, check);
        }
    }
}

/// Such a change is left out: a proxy that made it would say two things of where a message ends.
fn of_the_codec(name: &str, path: &str, check: &mut Checker<'_>) {
    if is_framing(name) {
        check.warning(path, format!("{name:?} is set by how a message is sent; changing it has no effect"));
    }
}

/// The authority can be rewritten in three places, of which one may be used.
fn authority_once(route: &HttpRoute, path: &str, check: &mut Checker<'_>) {
    let mut places: Vec<String> = Vec::new();
    if route.rewrite.as_ref().is_some_and(|rewrite| rewrite.authority.is_some()) {
        places.push(format!("{path}.rewrite.authority"));
    }
    if let Some(request) = route.headers.as_ref().and_then(|headers| headers.request.as_ref()) {
        for (field, values) in [("set", &request.set), ("add", &request.add)] {
            let at = format!("{path}.headers.request.{field}");
            places.extend(values.keys().filter(|name| text::is_authority(name)).map(|name| join(&at, name)));
        }
    }
    if let [first, second, ..] = &places[..] {
        check.error(second, format!("the authority is rewritten already at {first}"));
    }
}

fn mirrors(route: &HttpRoute, path: &str, check: &mut Checker<'_>) {
    if let Some(mirror) = &route.mirror {
        destination(mirror, &join(path, "mirror"), check);
        if !route.mirrors.is_empty() {
            check.error_with(&join(path, "mirrors"), "mirrors cannot stand beside mirror", "keep mirrors");
        }
    }
    for (index, mirror) in route.mirrors.iter().enumerate() {
        let at = format!("{path}.mirrors[{index}]");
        destination(&mirror.destination, &join(&at, "destination"), check);
        share(mirror.percentage, &join(&at, "percentage"), check);
    }
    if let Some(percent) = route.mirror_percent {
        let at = join(path, "mirrorPercent");
        check.warning(&at, "is the old spelling; write mirrorPercentage with value under it");
        if percent > 100 {
            check.error(&at, format!("{percent} is not a percentage from 0 to 100"));
        }
    }
    share(route.mirror_percentage, &join(path, "mirrorPercentage"), check);
}

fn share(percent: Option<Percent>, path: &str, check: &mut Checker<'_>) {
    if let Some(Percent(value)) = percent.filter(|percent| !(0.0..=100.0).contains(&percent.0)) {
        check.error(path, format!("{value} is not a percentage from 0 to 100"));
    }
}

fn redirection(redirect: &HttpRedirect, matches: &[HttpMatchRequest], path: &str, check: &mut Checker<'_>) {
    if redirect.uri.is_some() && redirect.prefix_rewrite.is_some() {
        check.error_with(&join(path, "prefixRewrite"), "prefixRewrite cannot stand beside uri", "keep one of them");
    }
    let by_prefix = |found: &HttpMatchRequest| matches!(found.uri, None | Some(StringMatch::Prefix(_)));
    if redirect.prefix_rewrite.is_some() && !matches.iter().all(by_prefix) {
        check.error(&join(path, "prefixRewrite"), "needs every match of the route to be by uri.prefix");
    }
    let changes = [&redirect.uri, &redirect.prefix_rewrite, &redirect.authority, &redirect.scheme];
    if changes.iter().all(|change| change.is_none()) && redirect.port.is_none() && redirect.derive_port.is_none() {
        check.error(path, "one of uri, prefixRewrite, authority, scheme, port, derivePort is required");
    }
    if let Some(code) = redirect.redirect_code.filter(|code| ![301, 302, 303, 307, 308].contains(code)) {
        check.error(&join(path, "redirectCode"), format!("{code} is none of the accepted codes 301, 302, 303, 307, 308"));
    }
    if let Some(scheme) = redirect.scheme.as_deref().filter(|scheme| !["http", "https"].contains(scheme)) {
        check.error(&join(path, "scheme"), format!("{scheme:?} is neither http nor https"));
    }
}

fn direct_response(response: &HttpDirectResponse, path: &str, check: &mut Checker<'_>) {
    status(response.status, &join(path, "status"), check);
    let size = response.body.as_ref().map_or(0, |body| body.content().len());
    if size > MAX_BODY_BYTES {
        check.error(&join(path, "body"), format!("the body has {size} bytes; at most {MAX_BODY_BYTES} are accepted"));
    }
}

fn status(status: u16, path: &str, check: &mut Checker<'_>) {
    if !(200..600).contains(&status) {
        check.error(path, format!("{status} is not an HTTP status from 200 to 599"));
    }
}

fn rewriting(rewrite: &HttpRewrite, path: &str, check: &mut Checker<'_>) {
    if rewrite.uri.is_some() && rewrite.uri_regex_rewrite.is_some() {
        check.error_with(&join(path, "uriRegexRewrite"), "uriRegexRewrite cannot stand beside uri", "keep one of them");
    }
    if rewrite.uri.is_none() && rewrite.uri_regex_rewrite.is_none() && rewrite.authority.is_none() {
        check.error(path, "one of uri, uriRegexRewrite, authority is required");
    }
    if let Some(by_pattern) = &rewrite.uri_regex_rewrite {
        let at = join(path, "uriRegexRewrite");
        if by_pattern.r#match.is_empty() || by_pattern.rewrite.is_empty() {
            check.error(&at, "match and rewrite are both required");
        } else {
            check.expect(&join(&at, "match"), check_pattern(&by_pattern.r#match));
        }
    }
}

fn faults(fault: &HttpFaultInjection, path: &str, check: &mut Checker<'_>) {
    if fault.delay.is_none() && fault.abort.is_none() {
        check.error(path, "delay or abort is required");
    }
    if let Some(delay) = &fault.delay {
        let at = join(path, "delay");
        share(delay.percentage, &join(&at, "percentage"), check);
        if let Some(percent) = delay.percent.filter(|percent| *percent > 100) {
            check.error(&join(&at, "percent"), format!("{percent} is not a percentage from 0 to 100"));
        }
        text::optional_duration(check, &at, "fixedDelay", delay.fixed_delay);
        if delay.fixed_delay.is_none() && delay.exponential_delay.is_none() {
            check.warning(&at, "delays nothing without fixedDelay");
        }
        if delay.percentage.is_none() && delay.percent.is_none() {
            check.warning(&at, "delays nothing without percentage (absent means 0)");
        }
    }
    if let Some(abort) = &fault.abort {
        let at = join(path, "abort");
        share(abort.percentage, &join(&at, "percentage"), check);
        if let Some(code) = abort.http_status {
            status(code, &join(&at, "httpStatus"), check);
        }
        if let Some(code) = &abort.grpc_status {
            check.expect(&join(&at, "grpcStatus"), text::one_of(code, &lateen_core::grpc::STATUSES));
        }
        if abort.http_status.is_none() && abort.grpc_status.is_none() {
            check.warning(&at, "aborts nothing without httpStatus or grpcStatus");
        }
        if abort.percentage.is_none() {
            check.warning(&at, "aborts nothing without percentage (absent means 0)");
        }
    }
}

const CORS_METHODS: [&str; 10] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

fn cors_policy(cors: &CorsPolicy, path: &str, check: &mut Checker<'_>) {
    for (index, origin) in cors.allow_origins.iter().enumerate() {
        let at = format!("{path}.allowOrigins[{index}]");
        match origin {
            StringMatch::Present => check.error(&at, "one of exact, prefix, regex is required"),
            StringMatch::Exact(text) | StringMatch::Prefix(text) if text.is_empty() => check.error(&at, "the origin is empty"),
            StringMatch::Regex(pattern) => check.expect(&join(&at, "regex"), check_pattern(pattern)),
            StringMatch::Exact(_) | StringMatch::Prefix(_) => {}
        }
    }
    if !cors.allow_origin.is_empty() {
        check.warning(&join(path, "allowOrigin"), "is the old spelling; write allowOrigins");
    }
    for (index, method) in cors.allow_methods.iter().enumerate() {
        check.expect(&format!("{path}.allowMethods[{index}]"), text::one_of(method, &CORS_METHODS));
    }
    for (field, names) in [("allowHeaders", &cors.allow_headers), ("exposeHeaders", &cors.expose_headers)] {
        for (index, name) in names.iter().enumerate().filter(|(_, name)| *name != "*") {
            check.expect(&format!("{path}.{field}[{index}]"), text::header_name(name));
        }
    }
    if let Some(age) = cors.max_age {
        let at = join(path, "maxAge");
        check.expect(&at, text::duration(age));
        if age.subsec_nanos() != 0 {
            check.error(&at, "the duration must be in whole seconds");
        }
    }
}
