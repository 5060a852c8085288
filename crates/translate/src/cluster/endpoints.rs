//! The endpoints of a cluster, as one proxy sees them.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_core::{Labels, selects};
use lateen_model::kinds::destination_rule::{ClientTlsMode, Subset};

use super::policy::PortPolicy;
use crate::names;
use crate::provenance::{ISTIO, Provenance};
use crate::view::{Generator, ProxyView};
use crate::wire::{self, core_v3, endpoint_v3, object, string};
use crate::world::World;
use crate::world::authentication::PeerMode;
use crate::world::destination_rules::Rule;
use crate::world::services::{Endpoint, Health, Resolution, Service, ServicePort};

/// All that decides a cluster's endpoints.
#[derive(Clone, Copy)]
pub(crate) struct EndpointsInput<'a> {
    world: &'a World,
    service: &'a Service,
    port: &'a ServicePort,
    rule: Option<&'a Arc<Rule>>,
    cluster_id: &'a str,
    node_name: &'a str,
    dual_stack: bool,
    /// Only endpoints that take mutual TLS: what comes is the caller's, and nobody here could tell.
    mutual_tls_only: bool,
}

impl<'a> EndpointsInput<'a> {
    pub(crate) fn of(
        world: &'a World,
        view: &'a ProxyView,
        service: &'a Service,
        port: &'a ServicePort,
        rule: Option<&'a Arc<Rule>>,
        mutual_tls_only: bool,
    ) -> Self {
        Self {
            world,
            service,
            port,
            rule,
            cluster_id: &view.cluster_id,
            node_name: &view.node_name,
            // gRPC libraries take one address an endpoint.
            dual_stack: view.generator == Generator::Envoy && view.ip_mode() == crate::view::IpMode::Dual,
            mutual_tls_only,
        }
    }
}

/// What an EDS cluster's endpoints are, and what shaped them.
pub(crate) struct Built {
    pub(crate) assignment: endpoint_v3::ClusterLoadAssignment,
    pub(crate) provenance: Vec<Provenance>,
}

/// The endpoints of the named cluster; empty ones for a cluster that should exist but has none, nothing for a name
/// that is no cluster's.
pub(crate) fn build(world: &World, view: &ProxyView, cluster: &str) -> Option<Built> {
    let name = names::parse_outbound(cluster)?;
    let mut assignment = endpoint_v3::ClusterLoadAssignment { cluster_name: cluster.to_owned(), ..Default::default() };
    let empty = |assignment| Some(Built { assignment, provenance: Vec::new() });
    let Some(service) = world.service(&view.namespace, name.host) else { return empty(assignment) };
    let Some(port) = service.port(name.port) else { return empty(assignment) };
    if matches!(service.resolution, Resolution::Dns | Resolution::DnsRoundRobin) {
        return None;
    }
    let rule = world.rule(&view.namespace, service);
    let subset = rule.and_then(|rule| rule.spec.subsets.iter().find(|subset| subset.name == name.subset));
    if !name.subset.is_empty() && subset.is_none() {
        return empty(assignment);
    }
    let mutual_tls_only = cluster.starts_with("outbound_.");
    assignment.endpoints = localities(&EndpointsInput::of(world, view, service, port, rule, mutual_tls_only), subset);
    let mut provenance = vec![super::service_provenance(service)];
    if subset.is_some() {
        provenance.extend(rule.map(|rule| rule.provenance.clone()).into_iter().flatten());
    }
    Some(Built { assignment, provenance })
}

/// A cluster of one endpoint.
pub(crate) fn single(cluster: &str, address: core_v3::Address) -> endpoint_v3::ClusterLoadAssignment {
    let endpoint = endpoint_v3::LbEndpoint { host_identifier: Some(host(address, Vec::new())), ..Default::default() };
    endpoint_v3::ClusterLoadAssignment {
        cluster_name: cluster.to_owned(),
        endpoints: vec![endpoint_v3::LocalityLbEndpoints { lb_endpoints: vec![endpoint], ..Default::default() }],
        ..Default::default()
    }
}

/// The endpoints that serve, by locality.
pub(crate) fn localities(input: &EndpointsInput<'_>, subset: Option<&Subset>) -> Vec<endpoint_v3::LocalityLbEndpoints> {
    let none = Labels::new();
    let labels = subset.map_or(&none, |subset| &subset.labels);
    let mode = rule_mode(input, subset);
    let by_name = matches!(input.service.resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let mut localities: BTreeMap<&str, Vec<endpoint_v3::LbEndpoint>> = BTreeMap::new();
    for endpoint in input.service.endpoints_of(input.port) {
        let usable = endpoint.health == Health::Healthy || input.service.publish_not_ready;
        let near = !input.service.node_local || endpoint.node_name == input.node_name;
        let is_name = !endpoint.address().starts_with("unix://") && endpoint.address().parse::<std::net::IpAddr>().is_err();
        if input.mutual_tls_only && !takes_mutual_tls(input, endpoint, None) {
            continue;
        }
        if usable && near && selects(labels, &endpoint.labels) && (by_name || !is_name) {
            localities.entry(endpoint.locality.as_str()).or_default().push(lb_endpoint(input, endpoint, mode));
        }
    }
    localities
        .into_iter()
        .map(|(locality, lb_endpoints)| endpoint_v3::LocalityLbEndpoints {
            locality: Some(parse_locality(locality)),
            load_balancing_weight: Some(total_weight(&lb_endpoints)),
            lb_endpoints,
            ..Default::default()
        })
        .collect()
}

fn total_weight(endpoints: &[endpoint_v3::LbEndpoint]) -> u32 {
    endpoints.iter().filter_map(|endpoint| endpoint.load_balancing_weight).fold(0, u32::saturating_add)
}

fn parse_locality(text: &str) -> core_v3::Locality {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    core_v3::Locality {
        region: parts.next().unwrap_or_default(),
        zone: parts.next().unwrap_or_default(),
        sub_zone: parts.next().unwrap_or_default(),
    }
}

/// The TLS mode that a rule sets for the port or subset, which beats what the endpoint says of itself.
fn rule_mode(input: &EndpointsInput<'_>, subset: Option<&Subset>) -> Option<ClientTlsMode> {
    let (own, _) = PortPolicy::of(input.rule.and_then(|rule| rule.spec.traffic_policy.as_ref()), input.port.number);
    let policy = own.overridden_by(subset.and_then(|subset| subset.traffic_policy.as_ref()), input.port.number);
    policy.tls.map(|tls| tls.mode)
}

fn takes_mutual_tls(input: &EndpointsInput<'_>, endpoint: &Endpoint, mode: Option<ClientTlsMode>) -> bool {
    match mode {
        Some(mode) => mode == ClientTlsMode::IstioMutual,
        None => {
            endpoint.mutual_tls
                && input.world.peers.workload(&endpoint.namespace, &endpoint.labels).port(endpoint.port) != PeerMode::Disable
        }
    }
}

fn host(address: core_v3::Address, more: Vec<core_v3::Address>) -> endpoint_v3::lb_endpoint::HostIdentifier {
    let additional = more.into_iter().map(|address| endpoint_v3::endpoint::AdditionalAddress { address: Some(address) });
    endpoint_v3::lb_endpoint::HostIdentifier::Endpoint(endpoint_v3::Endpoint {
        address: Some(address),
        additional_addresses: additional.collect(),
        ..Default::default()
    })
}

fn lb_endpoint(input: &EndpointsInput<'_>, endpoint: &Endpoint, mode: Option<ClientTlsMode>) -> endpoint_v3::LbEndpoint {
    let port = u32::from(endpoint.port);
    let more = if input.dual_stack { endpoint.addresses.get(1..).unwrap_or_default() } else { &[] };
    let mut metadata = vec![(ISTIO.to_owned(), object([("workload", string(workload_entry(input, endpoint)))]))];
    if takes_mutual_tls(input, endpoint, mode) {
        metadata.push(("envoy.transport_socket_match".to_owned(), object([("tlsMode", string("istio"))])));
    }
    let health = match endpoint.health {
        Health::Healthy => core_v3::HealthStatus::Healthy,
        Health::Unhealthy => core_v3::HealthStatus::Unhealthy,
    };
    endpoint_v3::LbEndpoint {
        health_status: health as i32,
        load_balancing_weight: Some(endpoint.weight.max(1)),
        metadata: Some(core_v3::Metadata { filter_metadata: wire::ordered_map(metadata), ..Default::default() }),
        host_identifier: Some(host(
            wire::address(endpoint.address(), port),
            more.iter().map(|address| wire::address(address, port)).collect(),
        )),
    }
}

/// `workload;namespace;canonical service;canonical revision;cluster`, for metrics of peers that do not tell themselves.
fn workload_entry(input: &EndpointsInput<'_>, endpoint: &Endpoint) -> String {
    let label = |names: &[&str]| names.iter().find_map(|name| endpoint.labels.get(*name)).map(String::as_str);
    let service = label(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or(&endpoint.workload);
    let revision = label(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]).unwrap_or("latest");
    let revision = if revision == "latest" { "" } else { revision };
    format!("{};{};{service};{revision};{}", endpoint.workload, endpoint.namespace, input.cluster_id)
}
