//! Delegates: they exist, are made to be delegates, are visible, and do not go round in a circle.
use super::index::Index;
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::VirtualService;
use crate::names::ExportTo;
use crate::resource::Resource;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    for rule in index.resources.virtual_services() {
        for (number, route) in rule.spec.http.iter().enumerate() {
            let Some(delegate) = &route.delegate else { continue };
            let Some(name) = &delegate.name else { continue };
            let namespace = delegate.namespace.as_deref().unwrap_or(rule.namespace());
            let path = format!("spec.http[{number}].delegate");
            found.extend(problem(index, rule, namespace, name).map(|(code, message)| {
                let diagnostic = rule.report(Severity::Warning, &path, format!("{message}; this route is left out"));
                if code { diagnostic.with_code("IST0101") } else { diagnostic }
            }));
        }
    }
}

/// What is wrong with a delegate, and whether it is that it does not exist.
fn problem(index: &Index<'_>, rule: &Resource<VirtualService>, namespace: &str, name: &str) -> Option<(bool, String)> {
    let Some(target) = index.resources.virtual_service(namespace, name) else {
        return Some((true, format!("there is no VirtualService {namespace}/{name} to delegate to")));
    };
    if let Some(circle) = circle(index, rule, target) {
        return Some((false, format!("delegates in a circle: {circle}")));
    }
    if !target.spec.hosts.is_empty() {
        return Some((false, format!("VirtualService {namespace}/{name} has hosts, so it is no delegate")));
    }
    let exported = ExportTo::parse(&target.spec.export_to, namespace, &index.mesh.default_virtual_service_export_to);
    if !exported.includes(rule.namespace()) {
        return Some((false, format!("VirtualService {namespace}/{name} is not exported to namespace {}", rule.namespace())));
    }
    None
}

/// The way back to the rule, when following delegates leads there.
fn circle(index: &Index<'_>, rule: &Resource<VirtualService>, target: &Resource<VirtualService>) -> Option<String> {
    let name = |rule: &Resource<VirtualService>| format!("{}/{}", rule.namespace(), rule.name());
    let mut way: Vec<(&Resource<VirtualService>, Vec<String>)> = vec![(target, vec![name(rule), name(target)])];
    let mut seen = Vec::new();
    while let Some((here, path)) = way.pop() {
        if here.name() == rule.name() && here.namespace() == rule.namespace() {
            return Some(path.join(" -> "));
        }
        if seen.contains(&name(here)) {
            continue;
        }
        seen.push(name(here));
        for delegate in here.spec.http.iter().filter_map(|route| route.delegate.as_ref()) {
            let namespace = delegate.namespace.as_deref().unwrap_or(here.namespace());
            if let Some(next) = delegate.name.as_deref().and_then(|name| index.resources.virtual_service(namespace, name)) {
                let mut longer = path.clone();
                longer.push(name(next));
                way.push((next, longer));
            }
        }
    }
    None
}
