//! VirtualService: hosts, gateways, TLS and TCP routes; HTTP routes are next door.
use super::checker::Checker;
use super::{http_route, text, unreachable};
use crate::kinds::virtual_service::{Destination, L4MatchAttributes, RouteDestination, TlsMatchAttributes};
use crate::kinds::{VirtualService, virtual_service::TlsRoute};
use crate::names::{Host, MESH_GATEWAY};
use crate::resource::Resource;
use crate::schema::path::join;

pub(super) fn check(resource: &Resource<VirtualService>, check: &mut Checker<'_>) {
    let rule = &resource.spec;
    if rule.hosts.is_empty() {
        delegate(rule, check);
    }
    text::gateway_names(check, "spec.gateways", &rule.gateways);
    hosts(rule, check);
    if rule.http.is_empty() && rule.tls.is_empty() && rule.tcp.is_empty() {
        check.error("spec", "http, tls or tcp is required");
    }
    let for_gateways = !rule.gateways.is_empty() && !rule.gateways.iter().any(|name| name == MESH_GATEWAY);
    for (index, route) in rule.http.iter().enumerate() {
        let path = format!("spec.http[{index}]");
        http_route::check(route, &path, rule.hosts.is_empty(), check);
        if !for_gateways {
            refuse_claims(route, &path, check);
        }
    }
    for (index, route) in rule.tls.iter().enumerate() {
        tls_route(rule, route, &format!("spec.tls[{index}]"), check);
    }
    for (index, route) in rule.tcp.iter().enumerate() {
        let path = format!("spec.tcp[{index}]");
        for (index, found) in route.r#match.iter().enumerate() {
            l4_match(found, &format!("{path}.match[{index}]"), check);
        }
        destinations(&route.route, &path, check);
    }
    text::export_to(check, &rule.export_to, resource.namespace(), false);
    unreachable::check(rule, check);
}

fn delegate(rule: &VirtualService, check: &mut Checker<'_>) {
    let without_hosts = "a VirtualService without hosts is a delegate and cannot have";
    for (field, present) in [("gateways", !rule.gateways.is_empty()), ("tls", !rule.tls.is_empty()), ("tcp", !rule.tcp.is_empty())] {
        if present {
            check.error_with(&format!("spec.{field}"), format!("{without_hosts} {field}"), "give it hosts, or take this away");
        }
    }
}

fn hosts(rule: &VirtualService, check: &mut Checker<'_>) {
    let for_mesh = rule.gateways.is_empty() || rule.gateways.iter().any(|name| name == MESH_GATEWAY);
    let mut good = Vec::new();
    for (index, host) in rule.hosts.iter().enumerate() {
        let path = format!("spec.hosts[{index}]");
        let automatic = !for_mesh && host.starts_with("outbound_");
        if text::is_ip(host) || automatic {
            continue;
        }
        if for_mesh && host == "*" {
            check.error_with(&path, "the host `*` is not allowed for sidecars", "name the hosts, or name gateways other than mesh");
            continue;
        }
        match text::wildcard_host(host) {
            Ok(()) => good.push((path, Host::new(host))),
            Err(problem) => check.error(&path, problem),
        }
    }
    for (index, (path, host)) in good.iter().enumerate() {
        if let Some((_, other)) = good[..index].iter().find(|(_, other)| other.overlaps(host)) {
            check.error(path, format!("the host {host} is covered by the host {other} of the same resource"));
        }
    }
}

/// Claims of tokens are known to gateways only.
fn refuse_claims(route: &crate::kinds::virtual_service::HttpRoute, path: &str, check: &mut Checker<'_>) {
    for (index, found) in route.r#match.iter().enumerate() {
        for (field, names) in [("headers", &found.headers), ("withoutHeaders", &found.without_headers)] {
            for name in names.keys().filter(|name| text::is_claim(name)) {
                let at = join(&format!("{path}.match[{index}].{field}"), name);
                check.error(&at, "routing by token claims works at gateways only, and this rule holds for sidecars");
            }
        }
    }
}

fn tls_route(rule: &VirtualService, route: &TlsRoute, path: &str, check: &mut Checker<'_>) {
    if route.r#match.is_empty() {
        check.error_with(path, "match is required", "give at least one sniHosts");
    }
    for (index, found) in route.r#match.iter().enumerate() {
        tls_match(rule, found, &format!("{path}.match[{index}]"), check);
    }
    destinations(&route.route, path, check);
}

fn tls_match(rule: &VirtualService, found: &TlsMatchAttributes, path: &str, check: &mut Checker<'_>) {
    if found.sni_hosts.is_empty() {
        check.error(path, "sniHosts is required");
    }
    for (index, sni) in found.sni_hosts.iter().enumerate() {
        let at = format!("{path}.sniHosts[{index}]");
        if text::is_ip(sni) {
            check.warning(&at, "clients do not send addresses as server names; this will not match");
            continue;
        }
        if sni.starts_with("outbound_") {
            continue;
        }
        if let Err(problem) = text::wildcard_host(sni) {
            check.error(&at, problem);
            continue;
        }
        let host = Host::new(sni);
        if !rule.hosts.iter().any(|known| Host::new(known).contains(&host)) {
            check.error(&at, format!("{sni:?} is not covered by the hosts of the VirtualService ({})", rule.hosts.join(", ")));
        }
    }
    subnets(&found.destination_subnets, path, check);
    text::labels(check, &join(path, "sourceLabels"), &found.source_labels);
    text::gateway_names(check, &join(path, "gateways"), &found.gateways);
}

fn l4_match(found: &L4MatchAttributes, path: &str, check: &mut Checker<'_>) {
    subnets(&found.destination_subnets, path, check);
    text::labels(check, &join(path, "sourceLabels"), &found.source_labels);
    text::gateway_names(check, &join(path, "gateways"), &found.gateways);
}

fn subnets(subnets: &[String], path: &str, check: &mut Checker<'_>) {
    for (index, subnet) in subnets.iter().enumerate() {
        check.expect(&format!("{path}.destinationSubnets[{index}]"), text::subnet(subnet));
    }
}

fn destinations(routes: &[RouteDestination], path: &str, check: &mut Checker<'_>) {
    if routes.is_empty() {
        check.error(path, "route is required");
    }
    for (index, route) in routes.iter().enumerate() {
        destination(&route.destination, &format!("{path}.route[{index}].destination"), check);
    }
    weights(routes.iter().map(|route| route.weight), path, check);
}

/// Several destinations share by weight, so some weight must be there.
pub(super) fn weights(weights: impl ExactSizeIterator<Item = u32>, path: &str, check: &mut Checker<'_>) {
    let several = weights.len() > 1;
    let sum: u64 = weights.map(u64::from).sum();
    if several && sum == 0 {
        check.error_with(&join(path, "route"), "the weights of the destinations add up to 0", "give each destination a weight");
    }
    if sum > u64::from(u32::MAX) {
        check.error(&join(path, "route"), "the weights of the destinations add up to more than 4294967295");
    }
}

pub(super) fn destination(destination: &Destination, path: &str, check: &mut Checker<'_>) {
    let host = destination.host.as_str();
    let at = join(path, "host");
    if host.is_empty() {
        check.error(path, "host is required");
    } else if host == "*" {
        check.error(&at, "a destination cannot be `*`");
    } else if !text::is_ip(host) {
        check.expect(&at, text::wildcard_host(host));
    }
    if destination.subset.as_deref().is_some_and(|subset| !text::is_label(subset)) {
        check.error(&join(path, "subset"), "this is no subset name: letters, digits and inner hyphens");
    }
    if let Some(port) = &destination.port {
        check.expect(&join(path, "port"), text::port(port.number));
    }
}
