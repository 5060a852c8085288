//! Delegation: a route of one VirtualService replaced by the routes of another.
use std::collections::{BTreeMap, HashMap};

use lateen_model::kinds::VirtualService as Spec;
use lateen_model::kinds::common::StringMatch;
use lateen_model::kinds::virtual_service::{HttpMatchRequest, HttpRoute};
use lateen_model::{Diagnostic, Resource, Severity};

use super::virtual_services::VirtualService;

/// Replaces every delegating route of `root` by the delegate's routes, narrowed to what the route matches.
///
/// A delegate that itself delegates is not followed, as in Istio, so a cycle cannot arise.
pub(crate) fn merge(
    root: &mut VirtualService,
    delegates: &HashMap<(String, String), VirtualService>,
    resource: &Resource<Spec>,
    diagnostics: &mut Vec<Diagnostic>,
) {
    let routes = std::mem::take(&mut root.spec.http);
    for (at, route) in routes.into_iter().enumerate() {
        let Some(delegate) = route.delegate.clone() else {
            root.spec.http.push(route);
            continue;
        };
        let path = format!("spec.http[{at}].delegate");
        let namespace = delegate.namespace.filter(|ns| !ns.is_empty()).unwrap_or_else(|| root.namespace.clone());
        let name = delegate.name.unwrap_or_default();
        let Some(found) = delegates.get(&(namespace.clone(), name.clone())) else {
            let text = format!("there is no VirtualService {namespace}/{name} without hosts to delegate to; the route is left out");
            diagnostics.push(resource.report(Severity::Error, &path, text).with_code("IST0101"));
            continue;
        };
        if !found.visibility.includes(&root.namespace) {
            let text = format!("VirtualService {namespace}/{name} is not exported to {}; the route is left out", root.namespace);
            diagnostics.push(resource.report(Severity::Error, &path, text).with_suggestion("add the namespace to its exportTo"));
            continue;
        }
        root.provenance.extend(found.provenance.iter().cloned());
        for sub in &found.spec.http {
            if sub.delegate.is_some() {
                let text = format!("a route of {namespace}/{name} delegates in turn, which is not supported; that route is left out");
                diagnostics.push(resource.report(Severity::Error, &path, text));
                continue;
            }
            match merge_route(&route, sub) {
                Some(merged) => root.spec.http.push(merged),
                None => {
                    let which = sub.name.as_deref().unwrap_or("without a name");
                    let text = format!("a route of {namespace}/{name} ({which}) can never match within this one; it is left out");
                    diagnostics.push(resource.report(Severity::Warning, &path, text));
                }
            }
        }
    }
}

/// The delegate's route with the root's conditions added and its settings as defaults.
fn merge_route(root: &HttpRoute, delegate: &HttpRoute) -> Option<HttpRoute> {
    let mut out = delegate.clone();
    out.r#match = merge_matches(&root.r#match, &delegate.r#match)?;
    out.name = join_names(root.name.as_ref(), delegate.name.as_ref());
    out.rewrite = out.rewrite.or_else(|| root.rewrite.clone());
    out.direct_response = out.direct_response.or_else(|| root.direct_response.clone());
    out.timeout = out.timeout.or(root.timeout);
    out.retries = out.retries.or_else(|| root.retries.clone());
    out.fault = out.fault.or_else(|| root.fault.clone());
    out.mirror = out.mirror.or_else(|| root.mirror.clone());
    out.mirror_percent = out.mirror_percent.or(root.mirror_percent);
    out.mirror_percentage = out.mirror_percentage.or(root.mirror_percentage);
    out.cors_policy = out.cors_policy.or_else(|| root.cors_policy.clone());
    out.headers = out.headers.or_else(|| root.headers.clone());
    if out.mirrors.is_empty() {
        out.mirrors.clone_from(&root.mirrors);
    }
    Some(out)
}

fn join_names(root: Option<&String>, own: Option<&String>) -> Option<String> {
    match (root, own) {
        (Some(root), Some(own)) if !root.is_empty() && !own.is_empty() => Some(format!("{root}-{own}")),
        (root, own) => own.filter(|own| !own.is_empty()).or(root).cloned(),
    }
}

/// Every block of the delegate, within each block of the root that it does not contradict; nothing if one fits nowhere.
fn merge_matches(root: &[HttpMatchRequest], delegate: &[HttpMatchRequest]) -> Option<Vec<HttpMatchRequest>> {
    if root.is_empty() {
        return Some(delegate.to_vec());
    }
    if delegate.is_empty() {
        return Some(root.to_vec());
    }
    let mut out = Vec::new();
    for sub in delegate {
        let before = out.len();
        out.extend(root.iter().filter(|outer| !contradict(outer, sub)).map(|outer| merge_match(outer, sub)));
        if out.len() == before {
            return None;
        }
    }
    Some(out)
}

fn merge_match(root: &HttpMatchRequest, delegate: &HttpMatchRequest) -> HttpMatchRequest {
    let mut out = delegate.clone();
    out.name = join_names(root.name.as_ref(), delegate.name.as_ref());
    out.uri = out.uri.or_else(|| root.uri.clone());
    out.scheme = out.scheme.or_else(|| root.scheme.clone());
    out.method = out.method.or_else(|| root.method.clone());
    out.authority = out.authority.or_else(|| root.authority.clone());
    out.headers = joined(&root.headers, &delegate.headers);
    out.without_headers = joined(&root.without_headers, &delegate.without_headers);
    out.query_params = joined(&root.query_params, &delegate.query_params);
    out.source_labels = joined(&root.source_labels, &delegate.source_labels);
    out.port = out.port.or(root.port);
    out.source_namespace = out.source_namespace.or_else(|| root.source_namespace.clone());
    if out.gateways.is_empty() {
        out.gateways.clone_from(&root.gateways);
    }
    out
}

fn joined<V: Clone>(root: &BTreeMap<String, V>, delegate: &BTreeMap<String, V>) -> BTreeMap<String, V> {
    root.iter().chain(delegate).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Whether no request satisfies both blocks, or it cannot be told that one does.
fn contradict(root: &HttpMatchRequest, sub: &HttpMatchRequest) -> bool {
    let pairs = [(&root.uri, &sub.uri), (&root.scheme, &sub.scheme), (&root.method, &sub.method), (&root.authority, &sub.authority)];
    let maps = [(&root.headers, &sub.headers), (&root.without_headers, &sub.without_headers), (&root.query_params, &sub.query_params)];
    pairs.iter().any(|(outer, inner)| outer.as_ref().zip(inner.as_ref()).is_some_and(|(outer, inner)| !within(outer, inner)))
        || maps.iter().any(|(outer, inner)| inner.iter().any(|(key, value)| outer.get(key).is_some_and(|outer| !within(outer, value))))
        || root.ignore_uri_case != sub.ignore_uri_case
        || root.port.zip(sub.port).is_some_and(|(outer, inner)| outer != inner)
        || root.source_namespace.as_ref().is_some_and(|outer| sub.source_namespace.as_ref() != Some(outer))
        || sub.source_labels.iter().any(|(key, value)| root.source_labels.get(key).is_some_and(|outer| outer != value))
        || (!root.gateways.is_empty() && sub.gateways.iter().any(|gateway| !root.gateways.contains(gateway)))
}

/// Whether every text that `inner` takes, `outer` takes too.
fn within(outer: &StringMatch, inner: &StringMatch) -> bool {
    match (outer, inner) {
        (StringMatch::Present, _) => true,
        (_, StringMatch::Present) => false,
        (StringMatch::Exact(outer), StringMatch::Exact(inner)) => outer == inner,
        (StringMatch::Prefix(outer), StringMatch::Exact(inner) | StringMatch::Prefix(inner)) => inner.starts_with(outer.as_str()),
        // What a regex takes cannot be compared.
        (StringMatch::Regex(_), _) | (_, StringMatch::Regex(_)) | (StringMatch::Exact(_), StringMatch::Prefix(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(matcher: StringMatch) -> HttpMatchRequest {
        HttpMatchRequest { uri: Some(matcher), ..Default::default() }
    }

    #[test]
    fn a_delegates_match_narrows_the_roots() {
        let root = [uri(StringMatch::Prefix("/api".into()))];
        let inside = [uri(StringMatch::Prefix("/api/v1".into()))];
        let merged = merge_matches(&root, &inside).unwrap();
        assert_eq!(merged[0].uri, Some(StringMatch::Prefix("/api/v1".into())));
        assert!(merge_matches(&root, &[uri(StringMatch::Exact("/other".into()))]).is_none());
        assert_eq!(merge_matches(&root, &[]).unwrap(), root);
        assert!(merge_matches(&[uri(StringMatch::Regex("/a.*".into()))], &[uri(StringMatch::Exact("/ab".into()))]).is_none());
    }
}
