//! Destinations of VirtualServices: host, port and subset exist (IST0101, IST0112).
use super::index::{Index, KnownHost};
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::VirtualService;
use crate::kinds::virtual_service::Destination;
use crate::names::is_short;
use crate::resource::Resource;
use crate::schema::path::join;
use lateen_core::similar::nearest;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    for rule in index.resources.virtual_services() {
        for (path, destination) in destinations(&rule.spec) {
            let at = join(&path, "host");
            let known = index.hosts(&destination.host, rule.namespace());
            let visible: Vec<&KnownHost> = known.iter().copied().filter(|host| host.export_to.includes(rule.namespace())).collect();
            if visible.is_empty() {
                // Nothing more can be said about a host that is not there.
                found.push(unknown_host(index, rule, destination, &at, &known));
                continue;
            }
            ports(rule, destination, &path, &visible, found);
            if let Some(subset) = &destination.subset {
                found.extend(unknown_subset(index, rule, destination, subset, &join(&path, "subset")));
            }
        }
    }
}

/// Every destination with its path.
fn destinations(rule: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (i, route) in rule.http.iter().enumerate() {
        let path = format!("spec.http[{i}]");
        all.extend(route.route.iter().enumerate().map(|(j, target)| (format!("{path}.route[{j}].destination"), &target.destination)));
        all.extend(route.mirror.iter().map(|mirror| (join(&path, "mirror"), mirror)));
        all.extend(route.mirrors.iter().enumerate().map(|(j, mirror)| (format!("{path}.mirrors[{j}].destination"), &mirror.destination)));
    }
    let tls = rule.tls.iter().map(|route| &route.route).enumerate().map(|(i, routes)| (format!("spec.tls[{i}]"), routes));
    let tcp = rule.tcp.iter().map(|route| &route.route).enumerate().map(|(i, routes)| (format!("spec.tcp[{i}]"), routes));
    for (path, routes) in tls.chain(tcp) {
        all.extend(routes.iter().enumerate().map(|(j, target)| (format!("{path}.route[{j}].destination"), &target.destination)));
    }
    all
}

fn unknown_host(
    index: &Index<'_>,
    rule: &Resource<VirtualService>,
    destination: &Destination,
    path: &str,
    known: &[&KnownHost],
) -> Diagnostic {
    let host = destination.host.as_str();
    let report = |message: String| rule.report(Severity::Warning, path, message).with_code("IST0101");
    if let Some(hidden) = known.first() {
        let message = format!("the host {host:?} is not exported from namespace {} to {}", hidden.namespace, rule.namespace());
        return report(message);
    }
    let message = format!("no Service or ServiceEntry defines the host {host:?}");
    match suggested_host(index, host, rule.namespace()) {
        Some(suggestion) => report(message).with_suggestion(suggestion),
        None => report(message),
    }
}

/// A full name for `reviews.books`, another namespace for a short name, or the nearest spelling.
fn suggested_host(index: &Index<'_>, host: &str, namespace: &str) -> Option<String> {
    let full = format!("{host}.svc.{}", index.mesh.domain);
    if !is_short(host) && index.host_names().any(|known| known == full) {
        return Some(format!("write {full}"));
    }
    let short = |known: &str| known.split('.').next().unwrap_or_default().to_owned();
    if is_short(host) {
        let mut elsewhere: Vec<&str> = index.host_names().filter(|known| short(known) == host).collect();
        elsewhere.sort_unstable();
        if let Some(known) = elsewhere.first() {
            return Some(format!("a short name means namespace {namespace}; write {known}"));
        }
        let mine = format!(".{namespace}.svc.{}", index.mesh.domain);
        let names: Vec<String> = index.host_names().filter(|known| known.ends_with(&mine)).map(short).collect();
        return nearest(host, names.iter().map(String::as_str)).map(|near| format!("did you mean \"{near}\"?"));
    }
    nearest(host, index.host_names()).map(|near| format!("did you mean \"{near}\"?"))
}

fn ports(rule: &Resource<VirtualService>, destination: &Destination, path: &str, known: &[&KnownHost], found: &mut Vec<Diagnostic>) {
    let mut ports: Vec<u16> = known.iter().flat_map(|host| host.ports.iter().copied()).collect();
    ports.sort_unstable();
    ports.dedup();
    let listed = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
    let host = &destination.host;
    match &destination.port {
        None if ports.len() > 1 => {
            let message = format!("{host:?} has the ports {listed}; without port the one the caller used is taken");
            found.push(rule.report(Severity::Warning, path, message).with_code("IST0112").with_suggestion("add port with number"));
        }
        // Without listed ports a ServiceEntry or headless Service takes any.
        Some(port) if !ports.is_empty() && !ports.contains(&port.number) => {
            let message = format!("{host:?} has no port {}; it has {listed}", port.number);
            found.push(rule.report(Severity::Warning, &join(&join(path, "port"), "number"), message).with_code("IST0101"));
        }
        _ => {}
    }
}

fn unknown_subset(
    index: &Index<'_>,
    rule: &Resource<VirtualService>,
    destination: &Destination,
    subset: &str,
    path: &str,
) -> Option<Diagnostic> {
    let rules = index.rules_for(&destination.host, rule.namespace());
    let subsets: Vec<&str> = rules.iter().flat_map(|rule| rule.spec.subsets.iter().map(|subset| subset.name.as_str())).collect();
    if subsets.contains(&subset) {
        return None;
    }
    let host = &destination.host;
    let report = |message: String| Some(rule.report(Severity::Warning, path, message).with_code("IST0101"));
    let Some(first) = rules.first() else {
        return report(format!("no DestinationRule for {host:?} defines the subset {subset:?}; requests to it will get 503"));
    };
    let listed = if subsets.is_empty() { "no subsets".to_owned() } else { format!("the subsets {}", subsets.join(", ")) };
    let message = format!(
        "the subset {subset:?} of {host:?} is not defined; DestinationRule {}/{} has {listed}; requests to it will get 503",
        first.namespace(),
        first.name()
    );
    let near = nearest(subset, subsets.iter().copied());
    report(message).map(|diagnostic| match near {
        Some(near) => diagnostic.with_suggestion(format!("did you mean \"{near}\"?")),
        None => diagnostic,
    })
}
