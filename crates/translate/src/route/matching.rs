//! From a VirtualService's conditions to a route's.
use lateen_core::{Labels, selects};
use lateen_model::kinds::common::StringMatch;
use lateen_model::kinds::virtual_service::HttpMatchRequest;

use crate::wire::{self, matcher_v3, route_v3};

/// Who asks: conditions on the caller are settled when routes are made, not when requests come.
#[derive(Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) labels: &'a Labels,
    pub(crate) namespace: &'a str,
    /// `mesh`, or `namespace/name` of a Gateway.
    pub(crate) gateway: &'a str,
    /// The port of the listener, or of the Gateway's server.
    pub(crate) port: u16,
}

/// Whether a block can apply to the caller at all. Naming gateways excludes looking at the caller's labels.
pub(crate) fn applies(block: &HttpMatchRequest, caller: Caller<'_>) -> bool {
    if block.port.is_some_and(|port| port != 0 && port != caller.port) {
        return false;
    }
    if !block.gateways.is_empty() {
        return block.gateways.iter().any(|gateway| gateway == caller.gateway);
    }
    selects(&block.source_labels, caller.labels) && in_namespace(block.source_namespace.as_deref(), caller.namespace)
}

pub(crate) fn in_namespace(wanted: Option<&str>, namespace: &str) -> bool {
    wanted.is_none_or(|wanted| wanted.is_empty() || wanted == namespace)
}

/// The conditions that are left for the request itself; everything without a block.
pub(crate) fn route_match(block: Option<&HttpMatchRequest>) -> route_v3::RouteMatch {
    use route_v3::route_match::PathSpecifier;
    let any_path = PathSpecifier::Prefix("/".to_owned());
    let Some(block) = block else {
        return route_v3::RouteMatch { path_specifier: Some(any_path), ..Default::default() };
    };
    let path = match &block.uri {
        Some(StringMatch::Exact(path)) => PathSpecifier::Path(path.clone()),
        Some(StringMatch::Prefix(prefix)) => PathSpecifier::Prefix(prefix.clone()),
        Some(StringMatch::Regex(regex)) => PathSpecifier::SafeRegex(wire::regex_matcher(regex)),
        Some(StringMatch::Present) | None => any_path,
    };
    let mut headers: Vec<route_v3::HeaderMatcher> = block.headers.iter().map(|(name, condition)| header(name, condition)).collect();
    headers.extend(block.without_headers.iter().map(|(name, condition)| {
        let mut matcher = header(name, condition);
        matcher.invert_match = true;
        // A header that is not there has no forbidden value; without this the block would never match.
        matcher.treat_missing_header_as_empty = !is_presence(condition);
        matcher
    }));
    headers.sort_by(|a, b| a.name.cmp(&b.name));
    let pseudo = [(":method", &block.method), (":authority", &block.authority), (":scheme", &block.scheme)];
    headers.extend(pseudo.iter().filter_map(|(name, condition)| Some(header(name, condition.as_ref()?))));
    route_v3::RouteMatch {
        path_specifier: Some(path),
        case_sensitive: Some(!block.ignore_uri_case),
        headers,
        query_parameters: block.query_params.iter().map(|(name, condition)| query_parameter(name, condition)).collect(),
        ..Default::default()
    }
}

/// `*` is no regex, but was taken to mean "present" once, and still is.
fn is_presence(condition: &StringMatch) -> bool {
    match condition {
        StringMatch::Present => true,
        StringMatch::Regex(regex) => regex == "*",
        _ => false,
    }
}

/// A condition on a text; presence has none.
pub(crate) fn string_matcher(condition: &StringMatch) -> Option<matcher_v3::StringMatcher> {
    match condition {
        _ if is_presence(condition) => None,
        StringMatch::Exact(text) => Some(wire::exact(text)),
        StringMatch::Prefix(text) => Some(wire::prefix(text)),
        StringMatch::Regex(text) => Some(wire::regex(text)),
        StringMatch::Present => None,
    }
}

fn header(name: &str, condition: &StringMatch) -> route_v3::HeaderMatcher {
    use route_v3::header_matcher::HeaderMatchSpecifier;
    route_v3::HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(
            string_matcher(condition).map_or(HeaderMatchSpecifier::PresentMatch(true), HeaderMatchSpecifier::StringMatch),
        ),
        ..Default::default()
    }
}

fn query_parameter(name: &str, condition: &StringMatch) -> route_v3::QueryParameterMatcher {
    use route_v3::query_parameter_matcher::QueryParameterMatchSpecifier;
    route_v3::QueryParameterMatcher {
        name: name.to_owned(),
        query_parameter_match_specifier: Some(
            string_matcher(condition).map_or(QueryParameterMatchSpecifier::PresentMatch(true), QueryParameterMatchSpecifier::StringMatch),
        ),
    }
}

/// Whether a route takes every request, so that none after it is reached.
pub(crate) fn is_catch_all(route: &route_v3::Route) -> bool {
    use route_v3::route_match::PathSpecifier;
    let Some(matching) = &route.r#match else { return false };
    let every_path = match &matching.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => prefix == "/",
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex == ".*",
        _ => false,
    };
    every_path && matching.headers.is_empty() && matching.query_parameters.is_empty() && matching.dynamic_metadata.is_empty()
}
