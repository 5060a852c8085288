//! The inbound side of a sidecar: one listener, with chains for every port, protocol and degree of trust.
use std::collections::BTreeMap;

use super::filters::{self, Class, HttpOptions, Routes};
use super::{Built, RAW, TLS, access_log, plaintext_http};
use crate::cluster::{service_provenance, tls};
use crate::names;
use crate::provenance::Provenance;
use crate::route;
use crate::view::{Interception, ProxyView};
use crate::wire::{self, core_v3, listener_v3, tls_v3, type_v3};
use crate::world::authentication::PeerMode;
use crate::world::protocol::{ListenerProtocol, Protocol, listener_of};
use crate::world::{ServiceTarget, World};

/// ALPN names by which mesh peers say what is inside their TLS.
const MESH_HTTP: [&str; 3] = ["istio-http/1.0", "istio-http/1.1", "istio-h2"];
const MESH_TCP: [&str; 2] = ["istio-peer-exchange", "istio"];
pub(crate) const MESH_ANY: [&str; 5] = ["istio", "istio-peer-exchange", "istio-http/1.0", "istio-http/1.1", "istio-h2"];

/// One way a connection to a port may arrive.
struct Way {
    alpn: Alpn,
    tls_on_wire: bool,
    http: bool,
    /// Whether the chain opens the TLS; otherwise it passes it through.
    terminate: bool,
}

#[derive(Clone, Copy)]
enum Alpn {
    Any,
    MeshAny,
    MeshHttp,
    MeshTcp,
    PlainHttp,
}

const fn way(alpn: Alpn, tls_on_wire: bool, http: bool, terminate: bool) -> Way {
    Way { alpn, tls_on_wire, http, terminate }
}

/// The chains of a port, by what it speaks and what it asks of its clients.
///
/// PERMISSIVE tells mesh peers by their ALPN; any other TLS is the application's own. STRICT has no chain for
/// plaintext, so such connections are closed.
fn ways(protocol: ListenerProtocol, mode: PeerMode) -> Vec<Way> {
    use Alpn::{Any, MeshAny, MeshHttp, MeshTcp, PlainHttp};
    match (protocol, mode) {
        (ListenerProtocol::Http, PeerMode::Strict) => vec![way(Any, true, true, true)],
        (ListenerProtocol::Http, PeerMode::Permissive) => vec![way(MeshAny, true, true, true), way(Any, false, true, false)],
        (ListenerProtocol::Http, PeerMode::Disable) => vec![way(Any, false, true, false)],
        (ListenerProtocol::Auto, PeerMode::Strict) => vec![way(MeshHttp, true, true, true), way(Any, true, false, true)],
        (ListenerProtocol::Auto, PeerMode::Permissive) => vec![
            way(MeshHttp, true, true, true),
            way(PlainHttp, false, true, false),
            way(MeshTcp, true, false, true),
            way(Any, false, false, false),
            way(Any, true, false, false),
        ],
        (ListenerProtocol::Auto, PeerMode::Disable) => vec![way(PlainHttp, false, true, false), way(Any, false, false, false)],
        (ListenerProtocol::Tcp, PeerMode::Strict) => vec![way(Any, true, false, true)],
        (ListenerProtocol::Tcp, PeerMode::Permissive) => {
            vec![way(MeshAny, true, false, true), way(Any, true, false, false), way(Any, false, false, false)]
        }
        (ListenerProtocol::Tcp, PeerMode::Disable) => vec![way(Any, false, false, false)],
    }
}

/// A port of the workload, or all ports that no service declares (`port` 0).
struct Port<'a> {
    number: u16,
    service_port: u16,
    host: &'a str,
    protocol: Protocol,
    kind: ListenerProtocol,
    cluster: String,
    /// Of the chains that carry bytes and requests; they are named alike but for the catch-all.
    tcp_name: String,
    http_name: String,
    stat_prefix: String,
}

impl<'a> Port<'a> {
    fn declared(target: &'a ServiceTarget, wildcard: &str) -> Option<Self> {
        let name = names::listener(wildcard, target.target_port);
        Some(Self {
            number: target.target_port,
            service_port: target.port.number,
            host: &target.service.host,
            protocol: target.port.protocol,
            kind: listener_of(target.port.protocol)?,
            cluster: names::inbound(target.target_port),
            stat_prefix: names::stat_prefix(&format!("inbound_{name}")),
            tcp_name: name.clone(),
            http_name: name,
        })
    }

    fn undeclared(number: u16) -> Self {
        Self {
            number,
            service_port: 0,
            host: "",
            protocol: Protocol::Auto,
            kind: ListenerProtocol::Auto,
            cluster: names::INBOUND_PASSTHROUGH.to_owned(),
            tcp_name: names::VIRTUAL_INBOUND.to_owned(),
            http_name: names::VIRTUAL_INBOUND_CATCHALL_HTTP.to_owned(),
            stat_prefix: names::stat_prefix(names::INBOUND_PASSTHROUGH),
        }
    }
}

/// The listener that all captured inbound connections arrive on.
pub(crate) fn build(world: &World, view: &ProxyView) -> Built {
    let mesh = &world.mesh;
    let peers = world.peers.workload(&view.namespace, &view.labels);
    let wildcards = view.ip_mode().wildcards();
    let targets = world.targets(view);
    // One chain set a port: where services disagree, the oldest decides.
    let mut by_port: BTreeMap<u16, &ServiceTarget> = BTreeMap::new();
    for target in &targets {
        by_port.entry(target.target_port).or_insert(target);
    }
    let mut chains = vec![black_hole(world, view)];
    chains.extend(port_chains(world, view, &Port::undeclared(0), peers.mode));
    for (port, mode) in peers.ports.iter().filter(|(port, _)| !by_port.contains_key(port)) {
        chains.extend(port_chains(world, view, &Port::undeclared(*port), *mode));
    }
    let mut provenance: Vec<Provenance> = peers.provenance.clone();
    for target in by_port.values() {
        if let Some(port) = Port::declared(target, wildcards[0]) {
            chains.extend(port_chains(world, view, &port, peers.port(target.target_port)));
            provenance.push(service_provenance(&target.service));
        }
    }
    let listener = listener_v3::Listener {
        name: names::VIRTUAL_INBOUND.to_owned(),
        address: Some(wire::address(wildcards[0], u32::from(mesh.inbound_port))),
        additional_addresses: super::additional_addresses(&wildcards[1..], mesh.inbound_port),
        listener_filters: listener_filters(view, &chains),
        filter_chains: chains,
        listener_filters_timeout: Some(wire::duration(mesh.detection_timeout())),
        continue_on_listener_filters_timeout: true,
        transparent: (view.interception == Interception::Tproxy).then_some(true),
        traffic_direction: core_v3::TrafficDirection::Inbound as i32,
        access_log: access_log::unmatched(mesh),
        max_connections_to_accept_per_socket_event: Some(1),
        ..Default::default()
    };
    Built { listener, provenance }
}

/// A connection to the listener's own port would be sent to itself for ever.
fn black_hole(world: &World, view: &ProxyView) -> listener_v3::FilterChain {
    listener_v3::FilterChain {
        name: names::VIRTUAL_INBOUND_BLACKHOLE.to_owned(),
        filter_chain_match: Some(listener_v3::FilterChainMatch {
            destination_port: Some(u32::from(world.mesh.inbound_port)),
            ..Default::default()
        }),
        filters: filters::black_hole_chain(view, Class::SidecarInbound),
        ..Default::default()
    }
}

fn port_chains(world: &World, view: &ProxyView, port: &Port<'_>, mode: PeerMode) -> Vec<listener_v3::FilterChain> {
    ways(port.kind, mode).iter().map(|way| chain(world, view, port, way)).collect()
}

fn chain(world: &World, view: &ProxyView, port: &Port<'_>, way: &Way) -> listener_v3::FilterChain {
    let filters = if way.http {
        let grpc = matches!(port.protocol, Protocol::Grpc | Protocol::GrpcWeb);
        let routes = route::inbound_config(&port.cluster, port.host, port.service_port, grpc);
        let options = HttpOptions {
            class: Class::SidecarInbound,
            stat_prefix: port.stat_prefix.clone(),
            routes: Routes::Inline(Box::new(routes)),
            protocol: port.protocol,
            trusted_hops: 0,
        };
        filters::http_chain(&world.mesh, view, options)
    } else {
        filters::tcp_chain(&world.mesh, view, Class::SidecarInbound, filters::tcp_proxy_to(&port.cluster))
    };
    let context: Option<tls_v3::DownstreamTlsContext> = way.terminate.then(|| tls::mesh_server(&world.mesh, view.capabilities, !way.http));
    listener_v3::FilterChain {
        name: if way.http { port.http_name.clone() } else { port.tcp_name.clone() },
        filter_chain_match: Some(listener_v3::FilterChainMatch {
            destination_port: (port.number > 0).then(|| u32::from(port.number)),
            transport_protocol: if way.tls_on_wire { TLS } else { RAW }.to_owned(),
            application_protocols: application_protocols(way.alpn, view.http10),
            ..Default::default()
        }),
        filters,
        transport_socket: context.as_ref().map(tls::downstream_socket),
        ..Default::default()
    }
}

fn application_protocols(alpn: Alpn, http10: bool) -> Vec<String> {
    let list: &[&str] = match alpn {
        Alpn::Any => &[],
        Alpn::MeshAny => &MESH_ANY,
        Alpn::MeshHttp => &MESH_HTTP,
        Alpn::MeshTcp => &MESH_TCP,
        Alpn::PlainHttp => return plaintext_http(http10),
    };
    list.iter().map(|name| (*name).to_owned()).collect()
}

/// The inspectors that the chains need, kept off the ports where they are not needed.
///
/// An inspector waits for the client's first bytes; on a port of a server that speaks first it would wait for ever.
fn listener_filters(view: &ProxyView, chains: &[listener_v3::FilterChain]) -> Vec<listener_v3::ListenerFilter> {
    let mut needs: BTreeMap<u32, (bool, bool)> = BTreeMap::new();
    for matching in chains.iter().filter_map(|chain| chain.filter_chain_match.as_ref()) {
        let entry = needs.entry(matching.destination_port.unwrap_or(0)).or_default();
        entry.0 |= matching.transport_protocol == TLS;
        entry.1 |= matching.application_protocols.iter().any(|name| name == "http/1.1" || name == "h2c");
    }
    let mut list = vec![filters::original_dst()];
    if view.interception == Interception::Tproxy {
        list.push(filters::original_src());
    }
    let tls: Vec<(u32, bool)> = needs.iter().map(|(port, need)| (*port, need.0)).collect();
    let http: Vec<(u32, bool)> = needs.iter().map(|(port, need)| (*port, need.1)).collect();
    list.extend(inspector(filters::tls_inspector(), &tls));
    list.extend(inspector(filters::http_inspector(), &http));
    list
}

/// An inspector switched off where it is not needed; port 0 stands for the ports not listed.
fn inspector(mut filter: listener_v3::ListenerFilter, needs: &[(u32, bool)]) -> Option<listener_v3::ListenerFilter> {
    use listener_v3::listener_filter_chain_match_predicate::Rule;
    if !needs.iter().any(|(_, needed)| *needed) {
        return None;
    }
    let by_default = needs.iter().any(|(port, needed)| *port == 0 && *needed);
    let listed: Vec<u32> = needs.iter().filter(|(port, needed)| *port != 0 && *needed != by_default).map(|(port, _)| *port).collect();
    let ports = ports_predicate(&listed);
    filter.filter_disabled = match (by_default, ports) {
        (true, ports) => ports,
        (false, Some(ports)) => Some(listener_v3::ListenerFilterChainMatchPredicate { rule: Some(Rule::NotMatch(Box::new(ports))) }),
        (false, None) => None,
    };
    Some(filter)
}

fn ports_predicate(ports: &[u32]) -> Option<listener_v3::ListenerFilterChainMatchPredicate> {
    use listener_v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
    let mut rules: Vec<_> = ports
        .iter()
        .map(|port| {
            let start = i32::try_from(*port).unwrap_or_default();
            let range = type_v3::Int32Range { start, end: start + 1 };
            listener_v3::ListenerFilterChainMatchPredicate { rule: Some(Rule::DestinationPortRange(range)) }
        })
        .collect();
    match rules.len() {
        0 => None,
        1 => rules.pop(),
        _ => Some(listener_v3::ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }),
    }
}
