//! The routes of a gateway's servers: the VirtualServices that claim their hosts.
use std::collections::BTreeMap;

use super::matching::{Caller, is_catch_all};
use super::sidecar::Built;
use super::{Lookup, MAX_DIRECT_BODY, routes_of};
use crate::names;
use crate::view::ProxyView;
use crate::wire::route_v3;
use crate::world::World;
use crate::world::gateways::{MergedGateway, Server};
use crate::world::hosts;

/// The route configuration `name`; empty when no server has it any more, so that draining listeners keep working.
pub(crate) fn build(world: &World, view: &ProxyView, merged: &MergedGateway, name: &str) -> Built {
    use route_v3::virtual_host::TlsRequirementType;
    let mut config = route_v3::RouteConfiguration {
        name: name.to_owned(),
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(MAX_DIRECT_BODY),
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    let mut provenance = Vec::new();
    let Some(servers) = merged.by_route.get(name) else { return Built { config, provenance } };
    let mut by_host: BTreeMap<String, route_v3::VirtualHost> = BTreeMap::new();
    for server in servers {
        provenance.push(server.provenance.clone());
        let redirects = server.redirects_to_https();
        let caller = Caller { labels: &view.labels, namespace: &view.namespace, gateway: &server.gateway, port: server.port };
        for rule in world.virtual_services.bound(&server.gateway, &view.namespace) {
            let claimed = intersections(server, &rule.namespace, &rule.spec.hosts);
            if claimed.is_empty() {
                continue;
            }
            let lookup = Lookup { world, namespace: &view.namespace };
            let routes = routes_of(rule, caller, &lookup, &world.mesh, server.spec.tls.is_some());
            if routes.is_empty() {
                continue;
            }
            provenance.extend(rule.provenance.iter().cloned());
            for host in claimed {
                let vhost = by_host.entry(host.clone()).or_insert_with(|| virtual_host(&host, server.port));
                vhost.routes.extend(routes.iter().cloned());
                if redirects {
                    vhost.require_tls = TlsRequirementType::All as i32;
                }
            }
        }
        if redirects {
            // Even hosts that no rule claims are sent to https.
            for host in server.sni_hosts() {
                let vhost = by_host.entry(host.clone()).or_insert_with(|| virtual_host(&host, server.port));
                vhost.require_tls = TlsRequirementType::All as i32;
            }
        }
    }
    provenance.sort();
    provenance.dedup();
    config.virtual_hosts = by_host.into_values().map(sorted).collect();
    if config.virtual_hosts.is_empty() {
        let port = servers.first().map_or(0, |server| server.port);
        let name = names::domain("blackhole", port);
        config.virtual_hosts.push(route_v3::VirtualHost { name, domains: vec!["*".to_owned()], ..Default::default() });
    }
    Built { config, provenance }
}

fn virtual_host(host: &str, port: u16) -> route_v3::VirtualHost {
    route_v3::VirtualHost {
        name: names::domain(host, port),
        domains: vec![host.to_owned()],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// Where several VirtualServices share a host, one's catch-all must not hide the others' routes.
fn sorted(mut vhost: route_v3::VirtualHost) -> route_v3::VirtualHost {
    let (catch_all, mut routes): (Vec<_>, Vec<_>) = std::mem::take(&mut vhost.routes).into_iter().partition(is_catch_all);
    routes.extend(catch_all);
    vhost.routes = routes;
    vhost
}

/// The hosts that the server offers to a namespace and the rule claims: the narrower of each pair.
fn intersections(server: &Server, namespace: &str, claimed: &[String]) -> Vec<String> {
    let mut found = Vec::new();
    for offered in server.hosts_for(namespace) {
        for host in claimed {
            if let Some(common) = hosts::intersection(offered, host)
                && !found.iter().any(|known| known == common)
            {
                found.push(common.to_owned());
            }
        }
    }
    found
}
