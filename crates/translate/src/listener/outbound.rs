//! The outbound side of a sidecar: a listener for every port or address its workload may call.
//!
//! Captured connections arrive on one real port; Envoy hands each to the listener of the address it was going to,
//! else to the listener of that port on any address, else the catch-all. None of these binds a port of its own.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::filters::{self, Class, HttpOptions, Routes};
use super::{Built, RAW, access_log, plaintext_http, tcp};
use crate::cluster::service_provenance;
use crate::names::{self, MESH_GATEWAY};
use crate::provenance::Provenance;
use crate::route::matching::Caller;
use crate::view::{Interception, ProxyView};
use crate::wire::{self, core_v3, listener_v3, parse_cidr};
use crate::world::protocol::{ListenerProtocol, Protocol, listener_of};
use crate::world::services::{Registry, Resolution, Service, ServicePort};
use crate::world::virtual_services::VirtualService;
use crate::world::{World, hosts};

/// One chain, before it is known whether it is the listener's only one.
struct Chain {
    sni: Vec<String>,
    cidrs: Vec<String>,
    http: bool,
    /// Whether only connections that were found to be HTTP take it.
    detected: bool,
    metadata: Option<core_v3::Metadata>,
    content: Content,
}

enum Content {
    /// The name of the routes.
    Http(String, Protocol),
    Tcp(Vec<listener_v3::Filter>),
}

/// What is known of a listener's protocol while services are added to it.
#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Http,
    Tcp(Protocol),
    Mixed,
}

struct Entry {
    bind: String,
    extra: Vec<String>,
    port: u16,
    state: State,
    chains: Vec<Chain>,
    provenance: Vec<Provenance>,
}

struct Builder<'a> {
    world: &'a World,
    view: &'a ProxyView,
    rules: Vec<&'a Arc<VirtualService>>,
    entries: BTreeMap<(String, u16), Entry>,
}

/// A service's port, to be served on an address.
struct Request<'a> {
    service: &'a Arc<Service>,
    port: &'a ServicePort,
    bind: String,
    extra: Vec<String>,
    cidrs: Vec<String>,
}

/// All listeners of outbound traffic but the one that is really bound.
pub(crate) fn build(world: &World, view: &ProxyView) -> Vec<Built> {
    let rules = world.virtual_services.bound(MESH_GATEWAY, &view.namespace);
    let mut builder = Builder { world, view, rules, entries: BTreeMap::new() };
    for service in world.visible_services(&view.namespace) {
        if service.resolution == Resolution::Alias {
            continue;
        }
        for port in &service.ports {
            builder.add_port(service, port);
        }
    }
    let entries = std::mem::take(&mut builder.entries);
    entries.into_values().map(|entry| builder.finish(entry)).collect()
}

/// The listener that captured connections arrive on.
pub(crate) fn virtual_listener(world: &World, view: &ProxyView) -> Built {
    let mesh = &world.mesh;
    let wildcards = view.ip_mode().wildcards();
    let refuse_own_port = listener_v3::FilterChain {
        name: names::VIRTUAL_OUTBOUND_BLACKHOLE.to_owned(),
        filter_chain_match: Some(listener_v3::FilterChainMatch {
            destination_port: Some(u32::from(mesh.outbound_port)),
            ..Default::default()
        }),
        filters: filters::black_hole_chain(view, Class::SidecarOutbound),
        ..Default::default()
    };
    let rest = listener_v3::FilterChain {
        name: names::VIRTUAL_OUTBOUND_CATCHALL_TCP.to_owned(),
        filters: tcp::catch_all(world, view),
        ..Default::default()
    };
    let listener = listener_v3::Listener {
        name: names::VIRTUAL_OUTBOUND.to_owned(),
        address: Some(wire::address(wildcards[0], u32::from(mesh.outbound_port))),
        additional_addresses: super::additional_addresses(&wildcards[1..], mesh.outbound_port),
        use_original_dst: Some(true),
        filter_chains: vec![refuse_own_port, rest],
        transparent: (view.interception == Interception::Tproxy).then_some(true),
        traffic_direction: core_v3::TrafficDirection::Outbound as i32,
        access_log: access_log::unmatched(mesh),
        max_connections_to_accept_per_socket_event: Some(1),
        ..Default::default()
    };
    Built { listener, provenance: Vec::new() }
}

impl<'a> Builder<'a> {
    fn add_port(&mut self, service: &'a Arc<Service>, port: &'a ServicePort) {
        let Some(kind) = listener_of(port.protocol) else { return };
        let any = self.view.wildcard();
        // The sidecar's own real ports: a listener on any address there would stand in their way.
        let reserved = [self.world.mesh.outbound_port, self.world.mesh.inbound_port, 15021, 15090];
        if kind == ListenerProtocol::Http && reserved.contains(&port.number) {
            return;
        }
        // On any address of one family means on any of the other, too.
        let families: Vec<String> = self.view.ip_mode().wildcards()[1..].iter().map(|address| (*address).to_owned()).collect();
        let request = |bind: String, cidrs: Vec<String>| {
            let extra = if bind == any { families.clone() } else { Vec::new() };
            Request { service, port, bind, extra, cidrs }
        };
        if kind == ListenerProtocol::Http {
            self.add(kind, request(any.to_owned(), Vec::new()));
            return;
        }
        if service.resolution == Resolution::Passthrough && service.addresses.is_empty() {
            let own: Vec<String> = self.view.addresses.iter().map(ToString::to_string).collect();
            let endpoints: Vec<_> = service.endpoints_of(port).collect();
            if service.registry == Registry::ServiceEntry && endpoints.is_empty() && !service.has_selector {
                self.add(kind, request(any.to_owned(), Vec::new()));
                return;
            }
            // Bytes carry no name: each pod's address has a listener, but the workload's own, which it calls directly.
            for endpoint in endpoints {
                let ip = endpoint.address().parse::<std::net::IpAddr>().is_ok();
                if ip && !own.iter().any(|address| address == endpoint.address()) {
                    self.add(kind, request(endpoint.address().to_owned(), Vec::new()));
                }
            }
            return;
        }
        let (ranges, addresses): (Vec<String>, Vec<String>) = service.addresses.iter().cloned().partition(|address| is_range(address));
        if !ranges.is_empty() {
            self.add(kind, request(any.to_owned(), ranges));
        }
        for address in &addresses {
            self.add(kind, request(plain_address(address), Vec::new()));
        }
        if service.addresses.is_empty() {
            self.add(kind, request(any.to_owned(), Vec::new()));
        }
    }

    fn add(&mut self, kind: ListenerProtocol, request: Request<'a>) {
        let any = self.view.wildcard();
        let key = (request.bind.clone(), request.port.number);
        let on_any = request.bind == any;
        let state = self.entries.get(&key).map(|entry| entry.state);
        let speaks_first = |protocol| matches!(protocol, Protocol::Mongo | Protocol::Mysql);
        if let Some(State::Tcp(known)) = state
            && (speaks_first(known) || speaks_first(request.port.protocol))
            && known != request.port.protocol
        {
            return;
        }
        let (chains, new_state) = match (kind, state) {
            // The virtual hosts of all HTTP services of a port come with one set of routes.
            (ListenerProtocol::Http, Some(State::Http | State::Mixed)) => return,
            (ListenerProtocol::Http, Some(State::Tcp(_)) | None) => {
                (self.http_chain(&request, on_any), if on_any { State::Mixed } else { State::Http })
            }
            (ListenerProtocol::Tcp, Some(State::Tcp(known))) => (self.tcp_chains(&request), State::Tcp(known)),
            (ListenerProtocol::Tcp, Some(State::Http | State::Mixed)) => (self.tcp_chains(&request), State::Mixed),
            (ListenerProtocol::Tcp, None) => (self.tcp_chains(&request), State::Tcp(request.port.protocol)),
            (ListenerProtocol::Auto, Some(State::Mixed)) => (self.tcp_chains(&request), State::Mixed),
            (ListenerProtocol::Auto, _) => {
                let mut chains = self.tcp_chains(&request);
                chains.extend(self.http_chain(&request, true));
                (chains, State::Mixed)
            }
        };
        let provenance = self.provenance(&request);
        let entry = self.entries.entry(key).or_insert_with(|| Entry {
            bind: request.bind,
            extra: request.extra,
            port: request.port.number,
            state: new_state,
            chains: Vec::new(),
            provenance: Vec::new(),
        });
        entry.state = new_state;
        entry.provenance.extend(provenance);
        for chain in chains {
            // Envoy refuses two chains that match alike; the older service keeps the place.
            if !entry.chains.iter().any(|known| conflict(known, &chain)) {
                entry.chains.push(chain);
            }
        }
    }

    fn provenance(&self, request: &Request<'_>) -> Vec<Provenance> {
        let rules = self.rules_for(&request.service.host).filter(|rule| !rule.spec.tcp.is_empty() || !rule.spec.tls.is_empty());
        let mut provenance = vec![service_provenance(request.service)];
        provenance.extend(rules.flat_map(|rule| rule.provenance.iter().cloned()));
        provenance
    }

    fn rules_for(&self, host: &str) -> impl Iterator<Item = &&'a Arc<VirtualService>> {
        self.rules.iter().filter(move |rule| rule.spec.hosts.iter().any(|pattern| hosts::covers(pattern, host)))
    }

    fn http_chain(&self, request: &Request<'_>, detected: bool) -> Vec<Chain> {
        let shared = request.bind == self.view.wildcard() || listener_of(request.port.protocol) == Some(ListenerProtocol::Http);
        let routes = if shared { request.port.number.to_string() } else { names::domain(&request.service.host, request.port.number) };
        vec![Chain {
            sni: Vec::new(),
            cidrs: Vec::new(),
            http: true,
            detected,
            metadata: None,
            content: Content::Http(routes, request.port.protocol),
        }]
    }

    fn caller(&self, port: u16) -> Caller<'_> {
        Caller { labels: &self.view.labels, namespace: &self.view.namespace, gateway: MESH_GATEWAY, port }
    }

    fn tcp_chains(&self, request: &Request<'_>) -> Vec<Chain> {
        if request.port.protocol.is_tls() { self.tls_rules(request) } else { self.tcp_rules(request) }
    }

    fn chain(
        &self,
        request: &Request<'_>,
        sni: Vec<String>,
        cidrs: Vec<String>,
        rule: &VirtualService,
        to: &[lateen_model::kinds::virtual_service::RouteDestination],
    ) -> Option<Chain> {
        let origin = rule.origin()?;
        // A range that cannot be read would otherwise leave a chain that takes everything.
        if !cidrs.is_empty() && !cidrs.iter().any(|range| parse_cidr(range).is_some()) {
            return None;
        }
        Some(Chain {
            sni,
            cidrs,
            http: false,
            detected: false,
            metadata: Some(origin.metadata()),
            content: Content::Tcp(tcp::to_destinations(self.world, self.view, Class::SidecarOutbound, origin, to, request.port.number)),
        })
    }

    fn tls_rules(&self, request: &Request<'_>) -> Vec<Chain> {
        let caller = self.caller(request.port.number);
        let mut handled: Vec<(&[String], &[String])> = Vec::new();
        let mut chains = Vec::new();
        for rule in self.rules_for(&request.service.host) {
            for route in rule.spec.tls.iter().filter(|route| !route.route.is_empty()) {
                for block in route.r#match.iter().filter(|block| tcp::tls_applies(block, caller)) {
                    let condition = (&block.sni_hosts[..], &block.destination_subnets[..]);
                    if handled.contains(&condition) {
                        continue;
                    }
                    handled.push(condition);
                    let cidrs = if block.destination_subnets.is_empty() { &request.cidrs } else { &block.destination_subnets };
                    chains.extend(self.chain(request, block.sni_hosts.clone(), cidrs.clone(), rule, &route.route));
                }
            }
        }
        if chains.is_empty() {
            // Without an address of its own, the name in the hello is all that tells services apart.
            let by_name = !request.cidrs.is_empty() || (request.bind == self.view.wildcard() && request.service.addresses.is_empty());
            let sni = if by_name {
                std::iter::once(&request.service.host).chain(&request.service.aliases).cloned().collect()
            } else {
                Vec::new()
            };
            chains.push(self.own_chain(request, sni));
        }
        chains
    }

    fn tcp_rules(&self, request: &Request<'_>) -> Vec<Chain> {
        let caller = self.caller(request.port.number);
        let mut chains = Vec::new();
        for rule in self.rules_for(&request.service.host) {
            for route in rule.spec.tcp.iter().filter(|route| !route.route.is_empty()) {
                let applying: Vec<_> = route.r#match.iter().filter(|block| tcp::l4_applies(block, caller)).collect();
                let everything = route.r#match.is_empty() || applying.iter().any(|block| block.destination_subnets.is_empty());
                if everything {
                    chains.extend(self.chain(request, Vec::new(), request.cidrs.clone(), rule, &route.route));
                    return chains;
                }
                let subnets: Vec<String> = applying.iter().flat_map(|block| block.destination_subnets.iter().cloned()).collect();
                if !subnets.is_empty() {
                    chains.extend(self.chain(request, Vec::new(), subnets, rule, &route.route));
                }
            }
        }
        chains.push(self.own_chain(request, Vec::new()));
        chains
    }

    /// The chain to the service itself, where no rule says otherwise.
    fn own_chain(&self, request: &Request<'_>, sni: Vec<String>) -> Chain {
        let cluster = names::outbound(request.port.number, "", &request.service.host);
        let rule = self.world.rule(&self.view.namespace, request.service);
        Chain {
            sni,
            cidrs: request.cidrs.clone(),
            http: false,
            detected: false,
            metadata: None,
            content: Content::Tcp(tcp::to_cluster(self.world, self.view, Class::SidecarOutbound, &cluster, "", rule)),
        }
    }

    fn finish(&self, entry: Entry) -> Built {
        let name = names::listener(&entry.bind, entry.port);
        let needs_tls = entry.chains.iter().any(|chain| !chain.sni.is_empty());
        let needs_http = entry.chains.iter().any(|chain| chain.detected);
        let extra: Vec<&str> = entry.extra.iter().map(String::as_str).collect();
        // Without an inspector there is nothing to wait for. On a port that services share, what stays silent cannot
        // be told from a client that connects ahead of its first request, so the mesh's own setting holds.
        let timeout = match (needs_http, entry.bind == self.view.wildcard()) {
            (false, _) => Duration::ZERO,
            (true, true) => self.world.mesh.protocol_detection_timeout,
            (true, false) => self.world.mesh.detection_timeout(),
        };
        let mut listener = listener_v3::Listener {
            address: Some(wire::address(&entry.bind, u32::from(entry.port))),
            additional_addresses: super::additional_addresses(&extra, entry.port),
            traffic_direction: core_v3::TrafficDirection::Outbound as i32,
            continue_on_listener_filters_timeout: true,
            bind_to_port: Some(false),
            listener_filters_timeout: Some(wire::duration(timeout)),
            ..Default::default()
        };
        listener.listener_filters.extend(needs_tls.then(filters::tls_inspector));
        listener.listener_filters.extend(needs_http.then(filters::http_inspector));
        for chain in entry.chains {
            let matching = self.chain_match(&chain);
            let built = listener_v3::FilterChain {
                filter_chain_match: matching.clone(),
                metadata: chain.metadata,
                filters: match chain.content {
                    Content::Tcp(filters) => filters,
                    Content::Http(routes, protocol) => filters::http_chain(
                        &self.world.mesh,
                        self.view,
                        HttpOptions {
                            class: Class::SidecarOutbound,
                            stat_prefix: names::stat_prefix(&format!("outbound_{name}")),
                            routes: Routes::Rds(routes),
                            protocol,
                            trusted_hops: 0,
                        },
                    ),
                },
                ..Default::default()
            };
            if matching.is_some() {
                listener.filter_chains.push(built);
            } else {
                // As the default it also takes what fits another chain only in part.
                listener.default_filter_chain = Some(built);
            }
        }
        match listener.default_filter_chain.take() {
            Some(only) if listener.filter_chains.is_empty() => listener.filter_chains.push(only),
            Some(default) => listener.default_filter_chain = Some(default),
            None => {
                listener.default_filter_chain = Some(listener_v3::FilterChain {
                    name: names::PASSTHROUGH_CHAIN.to_owned(),
                    filter_chain_match: Some(listener_v3::FilterChainMatch::default()),
                    filters: tcp::catch_all(self.world, self.view),
                    ..Default::default()
                });
            }
        }
        listener.name = name;
        Built { listener, provenance: entry.provenance }
    }

    /// Nothing for a chain that takes everything.
    fn chain_match(&self, chain: &Chain) -> Option<listener_v3::FilterChainMatch> {
        let mut matching = listener_v3::FilterChainMatch::default();
        if !chain.sni.iter().any(|name| name == "*") {
            matching.server_names.clone_from(&chain.sni);
            matching.server_names.sort();
        }
        let mut cidrs = chain.cidrs.clone();
        cidrs.sort();
        matching.prefix_ranges = cidrs.iter().filter(|range| !is_unspecified(range)).filter_map(|range| wire::cidr(range)).collect();
        if chain.detected {
            matching.application_protocols = plaintext_http(self.view.http10);
            matching.transport_protocol = RAW.to_owned();
        }
        (matching != listener_v3::FilterChainMatch::default()).then_some(matching)
    }
}

/// Whether it is more than one address.
fn is_range(address: &str) -> bool {
    parse_cidr(address).is_some_and(|(network, length)| length < if network.is_ipv4() { 32 } else { 128 })
}

/// `10.0.0.1/32` is the address `10.0.0.1`.
fn plain_address(address: &str) -> String {
    address.split('/').next().unwrap_or(address).to_owned()
}

fn is_unspecified(range: &str) -> bool {
    parse_cidr(range).is_some_and(|(network, _)| network.is_unspecified())
}

/// Whether two chains match the same connections.
fn conflict(a: &Chain, b: &Chain) -> bool {
    let names = |chain: &Chain| -> Vec<String> {
        let mut names: Vec<String> = chain.sni.iter().filter(|name| *name != "*").cloned().collect();
        names.sort();
        names
    };
    let ranges = |chain: &Chain| {
        let mut ranges: Vec<_> = chain.cidrs.iter().filter(|range| !is_unspecified(range)).filter_map(|range| parse_cidr(range)).collect();
        ranges.sort();
        ranges
    };
    a.http == b.http && a.detected == b.detected && names(a) == names(b) && ranges(a) == ranges(b)
}
