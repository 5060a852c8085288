//! Builds services and their endpoints from Kubernetes Services, ServiceEntries and running pods.
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_core::{Labels, selects};
use lateen_model::kinds::service::{ServiceType, TransportProtocol};
use lateen_model::kinds::service_entry::{Location, Resolution as EntryResolution, WorkloadEntry};
use lateen_model::kinds::{Service as KubeService, ServiceEntry};
use lateen_model::{Diagnostic, ExportTo, Resource, ResourceSet, Severity};

use super::mesh::Mesh;
use super::protocol::Protocol;
use super::services::{Endpoint, Health, Registry, Resolution, Service, ServicePort};
use super::workloads::Workload;

const EXPORT_TO: &str = "networking.istio.io/exportTo";
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// What a registry is built from.
pub(crate) struct Input<'a> {
    pub(crate) resources: &'a ResourceSet,
    pub(crate) workloads: &'a [Workload],
    pub(crate) cluster_ips: &'a BTreeMap<(String, String), Vec<IpAddr>>,
    pub(crate) mesh: &'a Mesh,
}

/// All services: the oldest first, then by name and namespace, as conflicts are settled.
pub(crate) fn build(input: &Input<'_>, diagnostics: &mut Vec<Diagnostic>) -> Vec<Arc<Service>> {
    let mut by_namespace: HashMap<&str, Vec<&Workload>> = HashMap::new();
    for workload in input.workloads {
        by_namespace.entry(workload.namespace.as_str()).or_default().push(workload);
    }
    let pods = |namespace: &str| by_namespace.get(namespace).map_or(&[][..], Vec::as_slice);
    let mut services: Vec<(Option<String>, Service)> = Vec::new();
    for resource in input.resources.services() {
        let ips = input.cluster_ips.get(&(resource.namespace().to_owned(), resource.name().to_owned()));
        let service = from_kubernetes(resource, input.mesh, ips.map_or(&[], Vec::as_slice), pods(resource.namespace()), diagnostics);
        services.push((resource.meta.creation_timestamp.clone(), service));
    }
    let known: HashMap<String, usize> = services.iter().enumerate().map(|(at, (_, service))| (service.host.clone(), at)).collect();
    for resource in input.resources.service_entries() {
        for service in from_entry(resource, input.mesh, pods(resource.namespace()), diagnostics) {
            // An entry for a host that Kubernetes has only adds to what is known of it.
            if let Some((_, kube)) = known.get(&service.host).and_then(|at| services.get_mut(*at)) {
                kube.subject_alt_names.extend(service.subject_alt_names);
                continue;
            }
            services.push((resource.meta.creation_timestamp.clone(), service));
        }
    }
    link_aliases(&mut services);
    services.sort_by(|(at_a, a), (at_b, b)| (at_a, &a.name, &a.namespace, &a.host).cmp(&(at_b, &b.name, &b.namespace, &b.host)));
    services.into_iter().map(|(_, service)| Arc::new(service)).collect()
}

/// An ExternalName is another host of the service it names.
fn link_aliases(services: &mut [(Option<String>, Service)]) {
    let aliases: Vec<(String, String)> =
        services.iter().filter_map(|(_, service)| Some((service.external_name.clone()?, service.host.clone()))).collect();
    for (target, alias) in aliases {
        if let Some((_, service)) = services.iter_mut().find(|(_, service)| service.host == target && service.external_name.is_none()) {
            service.aliases.push(alias);
        }
    }
}

fn from_kubernetes(
    resource: &Arc<Resource<KubeService>>,
    mesh: &Mesh,
    given_ips: &[IpAddr],
    pods: &[&Workload],
    diagnostics: &mut Vec<Diagnostic>,
) -> Service {
    let (spec, namespace) = (&resource.spec, resource.namespace());
    let external_name = (spec.r#type == ServiceType::ExternalName).then(|| spec.external_name.clone().unwrap_or_default());
    let resolution = match (&external_name, spec.is_headless()) {
        (Some(_), _) => Resolution::Alias,
        (None, true) => Resolution::Passthrough,
        (None, false) => Resolution::Endpoints,
    };
    let ports: Vec<ServicePort> = spec.ports.iter().map(kubernetes_port).collect();
    let mut endpoints = Vec::new();
    if external_name.is_none() && !spec.selector.is_empty() {
        for pod in pods.iter().filter(|pod| selects(&spec.selector, &pod.labels)) {
            for (port, declared) in spec.ports.iter().zip(&ports) {
                match pod.target_port(port.target_port.as_ref(), port.port) {
                    Some(number) => endpoints.extend(pod_endpoint(pod, number, declared.number)),
                    None => diagnostics.push(unnamed_port(resource, pod, port.target_port.as_ref())),
                }
            }
        }
    }
    Service {
        host: mesh.qualify(resource.name(), namespace),
        name: resource.name().to_owned(),
        namespace: namespace.to_owned(),
        registry: Registry::Kubernetes,
        resolution,
        addresses: cluster_addresses(spec, given_ips),
        ports,
        mesh_external: false,
        visibility: annotated_visibility(resource, mesh),
        subject_alt_names: Vec::new(),
        external_name: external_name.map(|name| mesh.qualify(&name, namespace)),
        aliases: Vec::new(),
        labels: resource.meta.labels.clone(),
        publish_not_ready: spec.publish_not_ready_addresses,
        node_local: false,
        has_selector: !spec.selector.is_empty(),
        origin: resource.origin.clone(),
        endpoints: endpoints.into(),
    }
}

fn kubernetes_port(port: &lateen_model::kinds::service::ServicePort) -> ServicePort {
    // SCTP is proxied as little as UDP.
    let protocol = if port.protocol == TransportProtocol::Sctp { Protocol::Udp } else { port.protocol_of() };
    ServicePort { number: port.port, protocol, name: port.name.clone().unwrap_or_default() }
}

fn cluster_addresses(spec: &KubeService, given: &[IpAddr]) -> Vec<String> {
    if spec.is_headless() {
        return Vec::new();
    }
    let written = spec.cluster_ips.iter().chain(&spec.cluster_ip).filter(|ip| ip.parse::<IpAddr>().is_ok()).cloned();
    let mut addresses: Vec<String> = written.chain(given.iter().map(ToString::to_string)).collect();
    let mut seen = std::collections::BTreeSet::new();
    addresses.retain(|address| seen.insert(address.clone()));
    addresses
}

fn annotated_visibility(resource: &Resource<KubeService>, mesh: &Mesh) -> ExportTo {
    let entries: Vec<String> = resource
        .meta
        .annotations
        .get(EXPORT_TO)
        .map(|text| text.split(',').map(|entry| entry.trim().to_owned()).filter(|entry| !entry.is_empty()).collect())
        .unwrap_or_default();
    ExportTo::parse(&entries, resource.namespace(), &mesh.default_service_export_to)
}

fn unnamed_port(resource: &Resource<KubeService>, pod: &Workload, target: Option<&lateen_model::schema::IntOrString>) -> Diagnostic {
    let text = format!("pod {}/{} has no port for targetPort {target:?}; it gets no traffic there", pod.namespace, pod.name);
    resource.report(Severity::Warning, "spec.ports", text).with_suggestion("give a container port that name, or write the number")
}

fn pod_endpoint(pod: &Workload, port: u16, service_port: u16) -> Option<Arc<Endpoint>> {
    if pod.addresses.is_empty() {
        return None;
    }
    Some(Arc::new(Endpoint {
        addresses: pod.addresses.iter().map(ToString::to_string).collect(),
        port,
        service_port,
        labels: pod.labels.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
        workload: pod.workload.clone(),
        mutual_tls: pod.mutual_tls,
        health: if pod.ready { Health::Healthy } else { Health::Unhealthy },
        weight: 1,
        locality: pod.locality.clone(),
        network: pod.network.clone(),
        node_name: pod.node_name.clone(),
        pod: pod.name.clone(),
    }))
}

fn from_entry(resource: &Arc<Resource<ServiceEntry>>, mesh: &Mesh, pods: &[&Workload], diagnostics: &mut Vec<Diagnostic>) -> Vec<Service> {
    let spec = &resource.spec;
    let resolution = match spec.resolution {
        EntryResolution::None => Resolution::Passthrough,
        EntryResolution::Static => Resolution::Endpoints,
        EntryResolution::Dns => Resolution::Dns,
        EntryResolution::DnsRoundRobin => Resolution::DnsRoundRobin,
        EntryResolution::DynamicDns => {
            let text = "DYNAMIC_DNS is not supported yet; the entry is left out";
            diagnostics.push(resource.report(Severity::Error, "spec.resolution", text).with_suggestion("use NONE or DNS"));
            return Vec::new();
        }
    };
    let ports: Vec<ServicePort> = spec
        .ports
        .iter()
        .map(|port| ServicePort {
            number: port.number,
            name: port.name.clone(),
            protocol: Protocol::from_name(port.protocol.as_deref().unwrap_or_default()).unwrap_or(Protocol::Auto),
        })
        .collect();
    let service = |host: &str| Service {
        host: host.to_ascii_lowercase(),
        name: host.to_ascii_lowercase(),
        namespace: resource.namespace().to_owned(),
        registry: Registry::ServiceEntry,
        resolution,
        addresses: spec.addresses.clone(),
        ports: ports.clone(),
        mesh_external: spec.location == Location::MeshExternal,
        visibility: ExportTo::parse(&spec.export_to, resource.namespace(), &mesh.default_service_export_to),
        subject_alt_names: spec.subject_alt_names.clone(),
        external_name: None,
        aliases: Vec::new(),
        labels: resource.meta.labels.clone(),
        publish_not_ready: false,
        node_local: false,
        has_selector: spec.workload_selector.is_some(),
        origin: resource.origin.clone(),
        endpoints: entry_endpoints(resource, host, resolution, pods).into(),
    };
    spec.hosts.iter().map(|host| service(host)).collect()
}

fn entry_endpoints(resource: &Resource<ServiceEntry>, host: &str, resolution: Resolution, pods: &[&Workload]) -> Vec<Arc<Endpoint>> {
    let spec = &resource.spec;
    if let Some(selector) = &spec.workload_selector {
        let selected = pods.iter().filter(|pod| selects(&selector.labels, &pod.labels));
        return selected
            .flat_map(|pod| spec.ports.iter().filter_map(|port| pod_endpoint(pod, port.target_port.unwrap_or(port.number), port.number)))
            .collect();
    }
    // A DNS entry without endpoints means the host itself.
    let own = WorkloadEntry { address: Some(host.to_owned()), ..WorkloadEntry::default() };
    let by_name = matches!(resolution, Resolution::Dns | Resolution::DnsRoundRobin);
    let entries = if spec.endpoints.is_empty() && by_name { std::slice::from_ref(&own) } else { &spec.endpoints };
    let mut endpoints = Vec::new();
    for entry in entries {
        let Some(address) = entry.address.as_deref().filter(|address| !address.is_empty()) else { continue };
        for port in &spec.ports {
            let number = entry.ports.get(&port.name).copied().or(port.target_port).unwrap_or(port.number);
            endpoints.push(Arc::new(Endpoint {
                addresses: vec![address.to_owned()],
                port: if address.starts_with("unix://") { 0 } else { number },
                service_port: port.number,
                labels: entry.labels.clone(),
                namespace: resource.namespace().to_owned(),
                service_account: entry.service_account.clone().unwrap_or_default(),
                workload: resource.name().to_owned(),
                mutual_tls: entry_mutual_tls(&entry.labels, entry.service_account.as_deref()),
                health: Health::Healthy,
                weight: entry.weight.map_or(1, std::num::NonZeroU32::get),
                locality: entry.locality.clone().unwrap_or_default(),
                network: entry.network.clone().unwrap_or_default(),
                node_name: String::new(),
                pod: String::new(),
            }));
        }
    }
    endpoints
}

/// A machine says by its label, or by having an identity, that it terminates mutual TLS.
fn entry_mutual_tls(labels: &Labels, service_account: Option<&str>) -> bool {
    match labels.get(TLS_MODE) {
        Some(mode) => mode == "istio",
        None => service_account.is_some_and(|account| !account.is_empty()),
    }
}
