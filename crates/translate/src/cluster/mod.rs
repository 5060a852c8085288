//! Clusters: one for every port and subset a proxy can call, and one for every port of its own workload.
pub(crate) mod endpoints;
pub(crate) mod policy;
mod secured;
pub(crate) mod tls;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use lateen_model::kinds::destination_rule::Subset;

use crate::listener::filters::tcp_metadata_exchange;
use crate::names;
use crate::provenance::{Provenance, annotate};
use crate::view::{Capabilities, IpMode, ProxyKind, ProxyView};
use crate::wire::{self, cluster_v3, core_v3, endpoint_v3, http_v3, list, object, string};
use crate::world::destination_rules::Rule;
use crate::world::mesh::Mesh;
use crate::world::protocol::Protocol;
use crate::world::services::{Resolution, Service, ServicePort};
use crate::world::{ServiceTarget, World};
use cluster_v3::cluster::DiscoveryType;
use endpoints::EndpointsInput;
use policy::{Draft, PortPolicy};

/// All that decides how a service's port is called: what a cluster is generated from, and nothing else.
pub(crate) struct ClusterInput<'a> {
    pub(crate) mesh: &'a Mesh,
    pub(crate) service: &'a Service,
    pub(crate) port: &'a ServicePort,
    pub(crate) rule: Option<&'a Arc<Rule>>,
    pub(crate) kind: ProxyKind,
    pub(crate) ip_mode: IpMode,
    pub(crate) capabilities: Capabilities,
    /// Whether peers of the service's namespace take mutual TLS, as far as can be told without looking at each.
    pub(crate) mutual_tls: bool,
    /// Who may answer for the service, sorted.
    pub(crate) identities: Vec<String>,
    /// Whether the callers' own mutual TLS goes through unopened, as behind an AUTO_PASSTHROUGH server.
    pub(crate) tls_inside: bool,
    /// For clusters whose endpoints stand in them.
    pub(crate) endpoints: EndpointsInput<'a>,
}

/// A cluster and what shaped it.
pub(crate) struct Built {
    pub(crate) cluster: cluster_v3::Cluster,
    pub(crate) provenance: Vec<Provenance>,
}

impl Built {
    fn of(cluster: cluster_v3::Cluster) -> Self {
        Self { cluster, provenance: Vec::new() }
    }
}

/// Every cluster of a proxy.
pub(crate) fn build(world: &World, view: &ProxyView) -> Vec<Built> {
    let mut clusters = Vec::new();
    for service in world.visible_services(&view.namespace) {
        for port in &service.ports {
            clusters.extend(outbound(world, view, service, port, false));
        }
    }
    if view.kind == ProxyKind::Router && world.merged_gateway(view).passes_any_service() {
        for service in world.visible_services(&view.namespace).filter(|service| !service.mesh_external) {
            clusters.extend(service.ports.iter().flat_map(|port| outbound(world, view, service, port, true)));
        }
    }
    clusters.push(Built::of(black_hole(&world.mesh)));
    if view.kind == ProxyKind::Sidecar {
        clusters.push(Built::of(passthrough(&world.mesh, view.capabilities)));
        clusters.extend(inbound(world, view));
        clusters.push(Built::of(inbound_passthrough(&world.mesh, view.ip_mode())));
    }
    let mut seen = BTreeSet::new();
    clusters.retain(|built| seen.insert(built.cluster.name.clone()));
    clusters
}

/// The clusters of one port of a service: the port's own and one a subset.
pub(crate) fn outbound(world: &World, view: &ProxyView, service: &Service, port: &ServicePort, tls_inside: bool) -> Vec<Built> {
    if service.resolution == Resolution::Alias || port.protocol == Protocol::Udp {
        return Vec::new();
    }
    let rule = world.rule(&view.namespace, service);
    let input = ClusterInput {
        mesh: &world.mesh,
        service,
        port,
        rule,
        kind: view.kind,
        ip_mode: view.ip_mode(),
        capabilities: view.capabilities,
        mutual_tls: secured::peers_take_mutual_tls(world, service),
        identities: secured::identities(&world.mesh, service),
        tls_inside,
        endpoints: EndpointsInput::of(world, view, service, port, rule, tls_inside),
    };
    let mut clusters: Vec<Built> = cluster(&input, None).into_iter().collect();
    for subset in rule.map(|rule| &rule.spec.subsets).into_iter().flatten() {
        clusters.extend(cluster(&input, Some(subset)));
    }
    clusters
}

/// One cluster. Nothing when it would have to list endpoints and there are none: Envoy would not start with it.
pub(crate) fn cluster(input: &ClusterInput<'_>, subset: Option<&Subset>) -> Option<Built> {
    let (service, port) = (input.service, input.port);
    let subset_name = subset.map_or("", |subset| subset.name.as_str());
    let named = if input.tls_inside { names::outbound_sni } else { names::outbound };
    let name = named(port.number, subset_name, &service.host);
    let (own, _) = PortPolicy::of(input.rule.and_then(|rule| rule.spec.traffic_policy.as_ref()), port.number);
    let policy = own.overridden_by(subset.and_then(|subset| subset.traffic_policy.as_ref()), port.number);
    let mut draft = Draft::new(&name, discovery(service, input.kind));
    if matches!(draft.kind(), Some(DiscoveryType::StrictDns | DiscoveryType::LogicalDns)) {
        apply_dns(&mut draft.cluster, input);
        let localities = endpoints::localities(&input.endpoints, subset);
        if localities.is_empty() {
            return None;
        }
        draft.cluster.load_assignment =
            Some(endpoint_v3::ClusterLoadAssignment { cluster_name: name.clone(), endpoints: localities, ..Default::default() });
    }
    if port.protocol.is_http2() {
        draft.force_http2();
    } else if port.protocol == Protocol::Auto && input.kind == ProxyKind::Sidecar {
        // Not for gateways: their clients negotiate the version with them, not with the service behind.
        draft.follow_client_protocol();
    }
    policy::apply_outbound(&mut draft, input.mesh, &policy, port.protocol);
    if !input.tls_inside {
        secured::apply(&mut draft, input, subset_name, policy.tls.as_ref());
    }
    if draft.kind() == Some(DiscoveryType::Eds) {
        draft.cluster.eds_cluster_config =
            Some(cluster_v3::cluster::EdsClusterConfig { eds_config: Some(wire::ads()), service_name: name.clone() });
    }
    exchange_metadata(&mut draft.cluster, input.capabilities);
    describe(&mut draft.cluster, input, subset_name, &policy);
    let mut provenance = vec![service_provenance(service)];
    provenance.extend(input.rule.map(|rule| rule.provenance.clone()).into_iter().flatten());
    Some(Built { cluster: draft.build(), provenance })
}

pub(crate) fn service_provenance(service: &Service) -> Provenance {
    let kind = match service.registry {
        crate::world::services::Registry::Kubernetes => "Service",
        crate::world::services::Registry::ServiceEntry => "ServiceEntry",
    };
    Provenance::new(kind, &service.namespace, &service.name, &service.origin)
}

fn discovery(service: &Service, kind: ProxyKind) -> DiscoveryType {
    match service.resolution {
        Resolution::Dns => DiscoveryType::StrictDns,
        Resolution::DnsRoundRobin => DiscoveryType::LogicalDns,
        // A gateway's callers chose the gateway's address, so there is none to pass on to.
        Resolution::Passthrough if kind == ProxyKind::Sidecar => DiscoveryType::OriginalDst,
        _ => DiscoveryType::Eds,
    }
}

fn apply_dns(cluster: &mut cluster_v3::Cluster, input: &ClusterInput<'_>) {
    use cluster_v3::cluster::DnsLookupFamily;
    cluster.dns_lookup_family = match input.ip_mode {
        IpMode::V4 => DnsLookupFamily::V4Only,
        IpMode::V6 => DnsLookupFamily::V6Only,
        IpMode::Dual => DnsLookupFamily::All,
    } as i32;
    #[allow(deprecated)] // Their successor needs another cluster type, which old Envoys do not have.
    {
        cluster.dns_refresh_rate = Some(wire::duration(input.mesh.dns_refresh_rate));
        cluster.dns_jitter = Some(wire::duration(Duration::from_millis(100)));
        cluster.respect_dns_ttl = true;
    }
}

fn exchange_metadata(cluster: &mut cluster_v3::Cluster, can: Capabilities) {
    if can.metadata_exchange {
        cluster.filters.push(cluster_v3::Filter {
            name: "istio.metadata_exchange".to_owned(),
            typed_config: Some(tcp_metadata_exchange()),
            ..Default::default()
        });
    }
}

fn service_entry(service: &Service) -> wire::Value {
    let fields = object([
        ("host", string(service.host.as_str())),
        ("name", string(service.name.as_str())),
        ("namespace", string(service.namespace.as_str())),
    ]);
    wire::Value { kind: Some(prost_types::value::Kind::StructValue(fields)) }
}

/// Metadata that telemetry, tools and the ALPN filter read.
fn describe(cluster: &mut cluster_v3::Cluster, input: &ClusterInput<'_>, subset: &str, policy: &PortPolicy) {
    use lateen_model::kinds::destination_rule::ClientTlsMode;
    annotate(&mut cluster.metadata, [("services", list(vec![service_entry(input.service)]))]);
    if input.service.mesh_external {
        annotate(&mut cluster.metadata, [("external", wire::boolean(true))]);
    }
    if let Some(first) = input.rule.and_then(|rule| rule.provenance.first()) {
        annotate(&mut cluster.metadata, first.fields());
        if !subset.is_empty() {
            annotate(&mut cluster.metadata, [("subset", string(subset))]);
        }
        // Towards servers outside the mesh, Istio's own ALPN names would be noise.
        if matches!(policy.tls.as_ref().map(|tls| tls.mode), Some(ClientTlsMode::Simple | ClientTlsMode::Mutual)) {
            annotate(&mut cluster.metadata, [("alpn_override", string("false"))]);
        }
    }
}

fn black_hole(mesh: &Mesh) -> cluster_v3::Cluster {
    let mut draft = Draft::new(names::BLACK_HOLE, DiscoveryType::Static);
    draft.cluster.connect_timeout = Some(wire::duration(mesh.connect_timeout));
    draft.cluster.common_lb_config = None;
    draft.build()
}

fn passthrough(mesh: &Mesh, can: Capabilities) -> cluster_v3::Cluster {
    let mut cluster = original_dst(names::PASSTHROUGH, mesh);
    exchange_metadata(&mut cluster, can);
    cluster
}

fn original_dst(name: &str, mesh: &Mesh) -> cluster_v3::Cluster {
    let mut draft = Draft::new(name, DiscoveryType::OriginalDst);
    draft.cluster.lb_policy = cluster_v3::cluster::LbPolicy::ClusterProvided as i32;
    draft.cluster.common_lb_config = None;
    draft.http = Some(http_v3::HttpProtocolOptions {
        common_http_protocol_options: Some(core_v3::HttpProtocolOptions {
            idle_timeout: Some(wire::duration(Duration::from_secs(300))),
            ..Default::default()
        }),
        upstream_protocol_options: Some(policy::follow_client()),
        ..Default::default()
    });
    policy::apply_connection_pool(&mut draft, mesh, None);
    draft.build()
}

/// The source address that capture rules let through to the workload itself.
fn bind_to_workload(mode: IpMode) -> core_v3::BindConfig {
    let mut sources = mode.passthrough_sources().iter().map(|source| wire::socket_address(*source, 0));
    core_v3::BindConfig {
        source_address: sources.next(),
        extra_source_addresses: sources
            .map(|address| core_v3::ExtraSourceAddress { address: Some(address), ..Default::default() })
            .collect(),
        ..Default::default()
    }
}

fn inbound_passthrough(mesh: &Mesh, mode: IpMode) -> cluster_v3::Cluster {
    let mut cluster = original_dst(names::INBOUND_PASSTHROUGH, mesh);
    cluster.upstream_bind_config = Some(bind_to_workload(mode));
    cluster
}

/// One cluster for every port of the workload that a service declares; the oldest service decides its settings.
fn inbound(world: &World, view: &ProxyView) -> Vec<Built> {
    if view.interception == crate::view::Interception::None {
        return Vec::new();
    }
    let mut by_port: BTreeMap<u16, Vec<ServiceTarget>> = BTreeMap::new();
    for target in world.targets(view) {
        by_port.entry(target.target_port).or_default().push(target);
    }
    by_port.into_iter().filter_map(|(port, targets)| inbound_cluster(world, view, port, &targets)).collect()
}

fn inbound_cluster(world: &World, view: &ProxyView, port: u16, targets: &[ServiceTarget]) -> Option<Built> {
    let first = targets.first()?;
    let name = names::inbound(port);
    let to_pod = world.mesh.inbound_passthrough;
    let mut draft = Draft::new(&name, if to_pod { DiscoveryType::OriginalDst } else { DiscoveryType::Static });
    if first.port.protocol.is_http2() {
        draft.force_http2();
    } else if first.port.protocol == Protocol::Auto {
        draft.follow_client_protocol();
    }
    let rule = world.rule(&view.namespace, &first.service);
    let (own, _) = PortPolicy::of(rule.and_then(|rule| rule.spec.traffic_policy.as_ref()), first.port.number);
    // The limits a rule sets for callers hold at the receiver too, which must have room for as much.
    policy::apply_connection_pool(&mut draft, &world.mesh, own.connection_pool.as_ref());
    if to_pod {
        draft.cluster.lb_policy = cluster_v3::cluster::LbPolicy::ClusterProvided as i32;
        // Ten years: the workload's address never changes, and forgetting it would only cut idle connections.
        draft.cluster.cleanup_interval = Some(wire::duration(Duration::from_secs(315_360_000)));
        draft.cluster.upstream_bind_config = Some(bind_to_workload(view.ip_mode()));
    } else {
        let address = wire::address(view.ip_mode().localhosts()[0], u32::from(port));
        draft.cluster.load_assignment = Some(endpoints::single(&name, address));
    }
    let mut listed = BTreeSet::new();
    let services = targets
        .iter()
        .filter(|target| target.port.number == first.port.number && listed.insert(target.service.host.as_str()))
        .map(|target| service_entry(&target.service))
        .collect();
    annotate(&mut draft.cluster.metadata, [("services", list(services))]);
    let mut provenance = vec![service_provenance(&first.service)];
    if let Some(rule) = rule.filter(|rule| rule.spec.traffic_policy.is_some()) {
        annotate(&mut draft.cluster.metadata, rule.provenance.first().map(Provenance::fields).into_iter().flatten());
        provenance.extend(rule.provenance.iter().cloned());
    }
    Some(Built { cluster: draft.build(), provenance })
}

/// A cluster whose endpoints come by EDS and which knows nothing else: what gRPC libraries ask for.
pub(crate) fn bare_eds(name: &str) -> cluster_v3::Cluster {
    let mut draft = Draft::new(name, DiscoveryType::Eds);
    draft.cluster.common_lb_config = None;
    draft.cluster.eds_cluster_config =
        Some(cluster_v3::cluster::EdsClusterConfig { eds_config: Some(wire::ads_with_default_wait()), service_name: name.to_owned() });
    draft.build()
}
