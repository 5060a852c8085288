//! Route configurations: which cluster a request goes to and what happens to it on the way.
pub(crate) mod action;
pub(crate) mod domains;
pub(crate) mod gateway;
pub(crate) mod matching;
pub(crate) mod sidecar;

use std::collections::HashMap;

use lateen_model::kinds::destination_rule::ConsistentHashLb;
use lateen_model::kinds::virtual_service::{Destination, HttpMatchRequest, HttpRoute};

use crate::names;
use crate::provenance::Provenance;
use crate::wire::{self, Any, any, route_v3};
use crate::world::World;
use crate::world::destination_rules::Rule;
use crate::world::mesh::Mesh;
use crate::world::services::Service;
use crate::world::virtual_services::{VirtualService, does_nothing};
use action::{Destinations, HeaderChanges};
use matching::Caller;

/// The largest body of a direct response that is accepted, as Istio's validation has it; Envoy's default is 4 KiB.
pub(crate) const MAX_DIRECT_BODY: u32 = 1 << 20;

/// Looks destinations up as proxies of one namespace see them.
pub(crate) struct Lookup<'a> {
    pub(crate) world: &'a World,
    pub(crate) namespace: &'a str,
}

impl Destinations for Lookup<'_> {
    fn service(&self, host: &str) -> Option<&Service> {
        self.world.service(self.namespace, host).map(AsRef::as_ref)
    }

    fn hash(&self, destination: &Destination) -> Option<ConsistentHashLb> {
        let owner = self.service(&destination.host).map_or("", |service| service.namespace.as_str());
        let rule = self.world.destination_rules.find_host(self.namespace, &destination.host, owner)?;
        hash_of(rule, destination.subset.as_deref().unwrap_or_default(), destination.port.as_ref().map(|port| port.number))
    }
}

/// The hash of a destination: of the subset's port, the subset, the rule's port, or the rule.
fn hash_of(rule: &Rule, subset: &str, port: Option<u16>) -> Option<ConsistentHashLb> {
    use lateen_model::kinds::destination_rule::{LoadBalancerSettings, TrafficPolicy};
    let of = |lb: Option<&LoadBalancerSettings>| lb.and_then(|lb| lb.consistent_hash.clone());
    let whole = |policy: Option<&TrafficPolicy>| policy.and_then(|policy| of(policy.load_balancer.as_ref()));
    let at_port = |policy: Option<&TrafficPolicy>| {
        let settings = &policy?.port_level_settings;
        let own = settings.iter().find(|own| port.is_some() && own.port.as_ref().map(|selector| selector.number) == port)?;
        of(own.load_balancer.as_ref())
    };
    let policy = rule.spec.traffic_policy.as_ref();
    let narrowed = rule.spec.subsets.iter().find(|known| known.name == subset).and_then(|known| known.traffic_policy.as_ref());
    at_port(narrowed).or_else(|| whole(narrowed)).or_else(|| at_port(policy)).or_else(|| whole(policy))
}

/// The routes of a VirtualService for one caller, up to the first that takes everything.
pub(crate) fn routes_of(
    service: &VirtualService,
    caller: Caller<'_>,
    destinations: &dyn Destinations,
    mesh: &Mesh,
    tls: bool,
) -> Vec<route_v3::Route> {
    let mut routes = Vec::new();
    for http in service.spec.http.iter().filter(|http| !does_nothing(http)) {
        if http.r#match.is_empty() {
            routes.extend(translate(service, http, None, caller, destinations, mesh, tls));
            return routes;
        }
        for block in http.r#match.iter().filter(|block| matching::applies(block, caller)) {
            let Some(route) = translate(service, http, Some(block), caller, destinations, mesh, tls) else { continue };
            let last = matching::is_catch_all(&route);
            routes.push(route);
            if last {
                return routes;
            }
        }
    }
    routes
}

fn translate(
    service: &VirtualService,
    http: &HttpRoute,
    block: Option<&HttpMatchRequest>,
    caller: Caller<'_>,
    destinations: &dyn Destinations,
    mesh: &Mesh,
    tls: bool,
) -> Option<route_v3::Route> {
    use route_v3::route::Action;
    let matching = matching::route_match(block);
    let mut changes = HeaderChanges::of(http.headers.as_ref());
    let action = if let Some(redirect) = &http.redirect {
        Action::Redirect(action::redirect(redirect, caller.port, tls)?)
    } else if let Some(response) = &http.direct_response {
        Action::DirectResponse(action::direct_response(response))
    } else {
        let forward = action::forward(http, destinations, caller.port, mesh.default_http_retry.as_ref(), &mut changes);
        Action::Route(Box::new(forward))
    };
    let decorator = route_v3::Decorator { operation: operation(&matching, &action, &service.name, caller.port), propagate: None };
    let name = match (http.name.as_deref().unwrap_or_default(), block.and_then(|block| block.name.as_deref()).unwrap_or_default()) {
        (route, "") => route.to_owned(),
        (route, block) => format!("{route}.{block}"),
    };
    Some(route_v3::Route {
        name,
        r#match: Some(matching),
        action: Some(action),
        metadata: service.origin().map(Provenance::route_metadata),
        decorator: Some(decorator),
        request_headers_to_add: changes.request_add,
        request_headers_to_remove: changes.request_remove,
        response_headers_to_add: changes.response_add,
        response_headers_to_remove: changes.response_remove,
        typed_per_filter_config: filter_settings(http),
        ..Default::default()
    })
}

fn filter_settings(http: &HttpRoute) -> HashMap<String, Any> {
    use crate::listener::filters::{CORS, FAULT};
    let fault = http.fault.as_ref().and_then(action::fault).map(|fault| (FAULT.to_owned(), any(&fault)));
    let cors = http.cors_policy.as_ref().map(|cors| (CORS.to_owned(), any(&action::cors(cors))));
    wire::ordered_map(fault.into_iter().chain(cors).collect())
}

/// What traces call the route: where it goes if that is one place, else the rule's own name, with the path matched.
fn operation(matching: &route_v3::RouteMatch, action: &route_v3::route::Action, rule: &str, port: u16) -> String {
    use route_v3::route_action::ClusterSpecifier;
    use route_v3::route_match::PathSpecifier;
    let path = match &matching.path_specifier {
        Some(PathSpecifier::Prefix(prefix)) => format!("{prefix}*"),
        Some(PathSpecifier::Path(path)) => path.clone(),
        Some(PathSpecifier::SafeRegex(regex)) => regex.regex.clone(),
        _ => "/*".to_owned(),
    };
    if let route_v3::route::Action::Route(forward) = action
        && let Some(ClusterSpecifier::Cluster(cluster)) = &forward.cluster_specifier
        && let Some(to) = names::parse_outbound(cluster)
    {
        return format!("{}:{}{path}", to.host, to.port);
    }
    format!("{rule}:{port}{path}")
}

/// The route of a service that no VirtualService has rules for.
pub(crate) fn default_route(cluster: String, operation: String) -> route_v3::Route {
    let mut action = action::timeouts(None);
    action.cluster_specifier = Some(route_v3::route_action::ClusterSpecifier::Cluster(cluster));
    named_route("default", action, Some(operation))
}

pub(crate) fn named_route(name: &str, action: route_v3::RouteAction, operation: Option<String>) -> route_v3::Route {
    route_v3::Route {
        name: name.to_owned(),
        r#match: Some(matching::route_match(None)),
        action: Some(route_v3::route::Action::Route(Box::new(action))),
        decorator: operation.map(|operation| route_v3::Decorator { operation, propagate: None }),
        ..Default::default()
    }
}

/// The inline routes of an inbound chain: everything to the workload, for as long as it takes.
pub(crate) fn inbound_config(cluster: &str, host: &str, service_port: u16, grpc: bool) -> route_v3::RouteConfiguration {
    let no_timeout = Some(wire::zero());
    let action = route_v3::RouteAction {
        cluster_specifier: Some(route_v3::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        timeout: no_timeout,
        max_stream_duration: Some(route_v3::route_action::MaxStreamDuration {
            max_stream_duration: no_timeout,
            grpc_timeout_header_max: no_timeout,
            ..Default::default()
        }),
        // A request that never reached the application can be sent again whatever it does; streams are left alone.
        retry_policy: (!grpc).then(|| route_v3::RetryPolicy {
            retry_on: "reset-before-request".to_owned(),
            num_retries: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    };
    route_v3::RouteConfiguration {
        name: cluster.to_owned(),
        virtual_hosts: vec![route_v3::VirtualHost {
            name: format!("inbound|http|{service_port}"),
            domains: vec!["*".to_owned()],
            routes: vec![named_route("default", action, Some(names::trace_operation(host, service_port)))],
            ..Default::default()
        }],
        validate_clusters: Some(false),
        ..Default::default()
    }
}
