//! The routes of a sidecar's outbound listeners: one configuration a port, or one a service where HTTP was found out.
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use super::matching::Caller;
use super::{Lookup, MAX_DIRECT_BODY, action, default_route, domains, hash_of, named_route, routes_of};
use crate::names::{self, ALLOW_ANY, BLOCK_ALL, MESH_GATEWAY};
use crate::provenance::Provenance;
use crate::view::ProxyView;
use crate::wire::route_v3;
use crate::world::mesh::OutboundPolicy;
use crate::world::protocol::may_be_http;
use crate::world::services::{Resolution, Service};
use crate::world::virtual_services::{VirtualService, VirtualServices};
use crate::world::{World, hosts};

/// A route configuration and what shaped it.
pub(crate) struct Built {
    pub(crate) config: route_v3::RouteConfiguration,
    pub(crate) provenance: Vec<Provenance>,
}

/// `80` is shared by all services of the port; `host:80` is of one service whose protocol was not declared.
pub(crate) fn build<'a>(world: &'a World, view: &'a ProxyView, name: &'a str) -> Option<Built> {
    let (host, port) = match name.rsplit_once(':') {
        Some((host, port)) => (Some(host), port.parse().ok()?),
        None => (None, name.parse::<u16>().ok()?),
    };
    let mut table = Table::new(world, view, port, host);
    table.fill();
    let mut virtual_hosts = table.virtual_hosts;
    if let Some(host) = host {
        virtual_hosts.retain(|vhost| vhost.domains.iter().any(|domain| domain == host));
        if let [only] = &mut virtual_hosts[..] {
            // The listener stands on the service's own address, so whatever the Host header says, it is meant.
            only.domains = vec!["*".to_owned()];
        }
    }
    virtual_hosts.sort_by(|a, b| a.name.cmp(&b.name));
    // A rule for `*` takes its place: Envoy takes a domain only once.
    if host.is_none() && !virtual_hosts.iter().any(|vhost| vhost.domains.iter().any(|domain| domain == "*")) {
        virtual_hosts.push(catch_all(world.mesh.outbound));
    }
    let config = route_v3::RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts,
        validate_clusters: Some(false),
        max_direct_response_body_size_bytes: Some(MAX_DIRECT_BODY),
        ignore_port_in_host_matching: true,
        ..Default::default()
    };
    Some(Built { config, provenance: table.provenance })
}

/// What is done with hosts that nobody declared.
fn catch_all(policy: OutboundPolicy) -> route_v3::VirtualHost {
    let (name, route) = match policy {
        OutboundPolicy::AllowAny => {
            let mut forward = action::timeouts(None);
            forward.cluster_specifier = Some(route_v3::route_action::ClusterSpecifier::Cluster(names::PASSTHROUGH.to_owned()));
            (ALLOW_ANY, named_route(ALLOW_ANY, forward, None))
        }
        OutboundPolicy::RegistryOnly => {
            let refuse = route_v3::DirectResponseAction { status: 502, ..Default::default() };
            let route = route_v3::Route {
                name: BLOCK_ALL.to_owned(),
                r#match: Some(super::matching::route_match(None)),
                action: Some(route_v3::route::Action::DirectResponse(refuse)),
                ..Default::default()
            };
            (BLOCK_ALL, route)
        }
    };
    route_v3::VirtualHost {
        name: name.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
        include_request_attempt_count: true,
        ..Default::default()
    }
}

/// The virtual hosts of one port, in the making.
struct Table<'a> {
    world: &'a World,
    view: &'a ProxyView,
    port: u16,
    /// Whether it is of all services of the port.
    shared: bool,
    /// The services that have the port and may speak HTTP on it, by host.
    services: BTreeMap<&'a str, &'a Arc<Service>>,
    /// Those among them that stand for many hosts.
    wildcards: Vec<&'a str>,
    virtual_hosts: Vec<route_v3::VirtualHost>,
    names: HashSet<String>,
    domains: HashSet<String>,
    provenance: Vec<Provenance>,
}

impl<'a> Table<'a> {
    /// With a host, only of that service: with many undeclared ports, all of them for each would take for ever.
    fn new(world: &'a World, view: &'a ProxyView, port: u16, host: Option<&'a str>) -> Self {
        let all = |service: &&Arc<Service>| service.port(port).is_some();
        let services: BTreeMap<&str, &Arc<Service>> = match host {
            Some(host) => {
                world.service(&view.namespace, host).filter(all).map(|service| (service.host.as_str(), service)).into_iter().collect()
            }
            None => world.visible_services(&view.namespace).filter(all).map(|service| (service.host.as_str(), service)).collect(),
        };
        Self {
            shared: host.is_none(),
            world,
            view,
            port,
            wildcards: services.keys().copied().filter(|host| hosts::is_wildcard(host)).collect(),
            services,
            virtual_hosts: Vec::new(),
            names: HashSet::new(),
            domains: HashSet::new(),
            provenance: Vec::new(),
        }
    }

    fn fill(&mut self) {
        let bound = self.world.virtual_services.bound(MESH_GATEWAY, &self.view.namespace);
        let narrowest = VirtualServices::most_specific_wildcard(&bound, self.services.values().copied());
        // Hosts outside the registry get a virtual host on port 80 only, where nothing else could tell their port.
        let relevant = bound.iter().filter(|vs| (self.shared && self.port == 80) || self.claims_a_service(vs));
        let mut routed: HashSet<String> = HashSet::new();
        let mut pending = Vec::new();
        for virtual_service in relevant {
            let (services, others) = self.split_hosts(virtual_service, &narrowest);
            let Some(vhosts) = self.rules(virtual_service, &services, &others) else { continue };
            routed.extend(services.iter().map(|service| service.host.clone()));
            pending.push(vhosts);
        }
        let known: HashSet<String> = self.services.keys().map(|host| (*host).to_owned()).collect();
        for Pending { services, others, routes, provenance } in pending {
            self.provenance.extend(provenance);
            for host in others {
                self.add(&host, vec![names::bracketed(&host)], &[], &routes, &known);
            }
            for service in services {
                let (all, short) = domains::of_service(&service, self.view);
                self.add(&service.host, all, &short, &routes, &known);
            }
        }
        let plain: Vec<Arc<Service>> =
            self.services.values().filter(|service| !routed.contains(service.host.as_str())).map(|service| Arc::clone(service)).collect();
        for service in plain {
            let http = service.port(self.port).is_some_and(|port| may_be_http(port.protocol));
            if service.resolution != Resolution::Alias && http {
                let (all, short) = domains::of_service(&service, self.view);
                let route = self.plain_route(&service);
                self.add(&service.host, all, &short, &[route], &known);
            }
        }
    }

    fn claims_a_service(&self, virtual_service: &VirtualService) -> bool {
        virtual_service.spec.hosts.iter().any(|host| {
            self.services.contains_key(host.as_str())
                || (hosts::is_wildcard(host) && self.services.keys().any(|service| hosts::covers(host, service)))
                || self.wildcards.iter().any(|service| hosts::covers(service, host))
        })
    }

    /// The hosts of a rule that are services of this port, and the others.
    fn split_hosts(&self, rule: &Arc<VirtualService>, narrowest: &HashMap<&str, &Arc<VirtualService>>) -> (Vec<Arc<Service>>, Vec<String>) {
        let (mut services, mut others) = (Vec::new(), Vec::new());
        for host in rule.spec.hosts.iter().filter(|host| !hosts::is_wildcard(host)) {
            match self.services.get(host.as_str()) {
                Some(service) => services.push(Arc::clone(service)),
                None => others.push(host.clone()),
            }
        }
        for host in rule.spec.hosts.iter().filter(|host| hosts::is_wildcard(host)) {
            let covered: Vec<_> = self.services.iter().filter(|(service, _)| hosts::covers(host, service)).collect();
            if covered.is_empty() {
                others.push(host.clone());
            }
            let owned = covered.into_iter().filter(|(service, _)| narrowest.get(*service).is_some_and(|owner| Arc::ptr_eq(owner, rule)));
            services.extend(owned.map(|(_, service)| Arc::clone(service)));
        }
        (services, others)
    }

    /// The virtual hosts that a rule makes on this port; nothing when none of its routes applies to this proxy.
    fn rules(&self, rule: &Arc<VirtualService>, services: &[Arc<Service>], others: &[String]) -> Option<Pending> {
        let caller = Caller { labels: &self.view.labels, namespace: &self.view.namespace, gateway: MESH_GATEWAY, port: self.port };
        let lookup = Lookup { world: self.world, namespace: &self.view.namespace };
        let routes = routes_of(rule, caller, &lookup, &self.world.mesh, false);
        if routes.is_empty() {
            return None;
        }
        let http: Vec<Arc<Service>> = services
            .iter()
            .filter(|service| service.port(self.port).is_some_and(|port| may_be_http(port.protocol)))
            .map(Arc::clone)
            .collect();
        if http.is_empty() && self.port != 80 {
            return None;
        }
        Some(Pending { services: http, others: others.to_vec(), routes, provenance: rule.provenance.clone() })
    }

    fn plain_route(&mut self, service: &Service) -> route_v3::Route {
        let cluster = names::outbound(self.port, "", &service.host);
        let mut route = default_route(cluster, names::trace_operation(&service.host, self.port));
        let rule = self.world.rule(&self.view.namespace, service);
        let hash = rule.and_then(|rule| hash_of(rule, "", Some(self.port))).as_ref().and_then(action::hash_policy);
        if let (Some(rule), true) = (rule, hash.is_some()) {
            self.provenance.extend(rule.provenance.iter().cloned());
        }
        if let Some(route_v3::route::Action::Route(forward)) = &mut route.action {
            forward.retry_policy = action::retry_policy(self.world.mesh.default_http_retry.as_ref(), false);
            forward.hash_policy.extend(hash);
        }
        route
    }

    /// Adds a virtual host, with those of its domains that no earlier one has: Envoy takes a domain only once.
    fn add(&mut self, host: &str, mut all: Vec<String>, short: &[String], routes: &[route_v3::Route], known: &HashSet<String>) {
        let name = names::domain(host, self.port);
        if !self.names.insert(name.clone()) {
            return;
        }
        // An abbreviation must not take what is another service's full name.
        all.retain(|domain| !(short.contains(domain) && known.contains(domain)) && self.domains.insert(domain.to_ascii_lowercase()));
        if all.is_empty() {
            return;
        }
        self.virtual_hosts.push(route_v3::VirtualHost {
            name,
            domains: all,
            routes: routes.to_vec(),
            include_request_attempt_count: true,
            ..Default::default()
        });
    }
}

struct Pending {
    services: Vec<Arc<Service>>,
    others: Vec<String>,
    routes: Vec<route_v3::Route>,
    provenance: Vec<Provenance>,
}
