//! Gateways: those that VirtualServices name exist and take their hosts (IST0101, IST0132), their secrets exist
//! (IST0101), and no two of them claim the same host and port (IST0145).
use std::collections::BTreeSet;
use std::sync::Arc;

use super::index::Index;
use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::{Gateway, VirtualService};
use crate::names::{GatewayHost, GatewayRef, Host};
use crate::resource::Resource;
use lateen_core::similar::nearest;

pub(super) fn check(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    for rule in index.resources.virtual_services() {
        for (number, written) in rule.spec.gateways.iter().enumerate() {
            let path = format!("spec.gateways[{number}]");
            if let GatewayRef::Named { namespace, name } = GatewayRef::parse(written, rule.namespace()) {
                match index.resources.gateway(&namespace, &name) {
                    Some(gateway) => found.extend(hosts_fit(rule, gateway, &path)),
                    None => found.push(missing(index, rule, &namespace, &name, &path)),
                }
            }
        }
        in_matches(index, rule, found);
    }
    for gateway in index.resources.gateways() {
        secrets(index, gateway, found);
    }
    conflicts(index, found);
}

fn missing(index: &Index<'_>, rule: &Resource<VirtualService>, namespace: &str, name: &str, path: &str) -> Diagnostic {
    let diagnostic = rule.report(Severity::Warning, path, format!("there is no Gateway {namespace}/{name}")).with_code("IST0101");
    if let Some(other) = index.resources.gateways().find(|gateway| gateway.name() == name) {
        return diagnostic.with_suggestion(format!("write {}/{name}", other.namespace()));
    }
    let names: Vec<&str> =
        index.resources.gateways().filter(|gateway| gateway.namespace() == namespace).map(|gateway| gateway.name()).collect();
    match nearest(name, names) {
        Some(near) => diagnostic.with_suggestion(format!("did you mean \"{near}\"?")),
        None => diagnostic,
    }
}

/// Gateways named in matches must be among those of the rule.
fn in_matches(index: &Index<'_>, rule: &Resource<VirtualService>, found: &mut Vec<Diagnostic>) {
    let attached = GatewayRef::parse_all(&rule.spec.gateways, rule.namespace());
    for (i, route) in rule.spec.http.iter().enumerate() {
        for (j, matcher) in route.r#match.iter().enumerate() {
            for (k, written) in matcher.gateways.iter().enumerate() {
                let gateway = GatewayRef::parse(written, rule.namespace());
                let path = format!("spec.http[{i}].match[{j}].gateways[{k}]");
                match &gateway {
                    GatewayRef::Named { namespace, name } if index.resources.gateway(namespace, name).is_none() => {
                        found.push(missing(index, rule, namespace, name, &path));
                    }
                    _ if !attached.contains(&gateway) => {
                        let message = format!("never matches: {gateway} is not among spec.gateways");
                        found.push(rule.report(Severity::Warning, &path, message));
                    }
                    _ => {}
                }
            }
        }
    }
}

fn hosts_fit(rule: &Resource<VirtualService>, gateway: &Resource<Gateway>, path: &str) -> Option<Diagnostic> {
    let servers = gateway.spec.servers.iter().flat_map(|server| &server.hosts);
    let hosts: Vec<GatewayHost> = servers.map(|host| GatewayHost::parse(host, gateway.namespace())).collect();
    let admitted: Vec<&Host> = hosts.iter().filter(|host| host.admits(rule.namespace())).map(|host| &host.host).collect();
    let own: Vec<Host> = rule.spec.hosts.iter().map(|host| Host::new(host)).collect();
    if own.iter().any(|host| admitted.iter().any(|admitted| admitted.overlaps(host))) {
        return None;
    }
    let listed = admitted.iter().map(|host| host.as_str()).collect::<BTreeSet<_>>().into_iter().collect::<Vec<_>>().join(", ");
    let takes = if listed.is_empty() { "no hosts from this namespace".to_owned() } else { format!("the hosts {listed}") };
    let message = format!(
        "none of the hosts {} is taken by Gateway {}/{}, which takes {takes}",
        rule.spec.hosts.join(", "),
        gateway.namespace(),
        gateway.name()
    );
    Some(rule.report(Severity::Warning, path, message).with_code("IST0132"))
}

/// Secrets stand in the namespace of the gateway's pods; when no pod is known, in that of the Gateway.
fn secrets(index: &Index<'_>, gateway: &Arc<Resource<Gateway>>, found: &mut Vec<Diagnostic>) {
    let selected = index.workloads.iter().filter(|workload| lateen_core::selects(&gateway.spec.selector, &workload.labels));
    let mut namespaces: BTreeSet<&str> = selected.map(|workload| workload.namespace.as_str()).collect();
    if namespaces.is_empty() || gateway.spec.selector.is_empty() {
        namespaces = BTreeSet::from([gateway.namespace()]);
    }
    for (number, server) in gateway.spec.servers.iter().enumerate() {
        let Some(tls) = &server.tls else { continue };
        let names = tls.credential_name.iter().chain(&tls.credential_names).chain(&tls.ca_cert_credential_name);
        for name in names.filter(|name| !name.contains("://")) {
            if !namespaces.iter().any(|namespace| index.resources.secret(namespace, name).is_some()) {
                let listed = namespaces.iter().copied().collect::<Vec<_>>().join(", ");
                let message = format!("there is no Secret {name:?} in namespace {listed}, where the gateway runs");
                let path = format!("spec.servers[{number}].tls.credentialName");
                found.push(gateway.report(Severity::Warning, &path, message).with_code("IST0101"));
            }
        }
    }
}

fn conflicts(index: &Index<'_>, found: &mut Vec<Diagnostic>) {
    let gateways: Vec<&Arc<Resource<Gateway>>> = index.resources.gateways().collect();
    // The comparison of all with all is for advice only.
    if gateways.len() > 500 {
        return;
    }
    for (position, second) in gateways.iter().enumerate() {
        for first in gateways[..position].iter().filter(|first| first.spec.selector == second.spec.selector) {
            found.extend(conflict(first, second));
        }
    }
}

fn conflict(first: &Resource<Gateway>, second: &Resource<Gateway>) -> Option<Diagnostic> {
    let port = |server: &crate::kinds::gateway::Server| server.port.as_ref().map(|port| port.number);
    let hosts = |gateway: &Resource<Gateway>, hosts: &[String]| -> Vec<Host> {
        hosts.iter().map(|host| GatewayHost::parse(host, gateway.namespace()).host).collect()
    };
    for (number, server) in second.spec.servers.iter().enumerate() {
        for other in first.spec.servers.iter().filter(|other| port(other) == port(server) && other.bind == server.bind) {
            let others = hosts(first, &other.hosts);
            // Plain HTTP servers of one port share their routes; two holders of one encrypted host do not.
            let shared = hosts(second, &server.hosts).into_iter().find(|host| others.contains(host));
            if let Some(host) = shared {
                let place = format!("Gateway {}/{}", first.namespace(), first.name());
                let message =
                    format!("{place} has the same selector and takes the host {host} on port {} already", port(server).unwrap_or_default());
                let path = format!("spec.servers[{number}]");
                return Some(second.report(Severity::Warning, &path, message).with_code("IST0145"));
            }
        }
    }
    None
}
