//! The world: all configuration of the mesh, resolved and indexed, immutable once built.
//!
//! Resources, running pods and mesh settings go in; services with endpoints, routes in the order in which they are
//! tried, merged policies come out. What is shared is behind `Arc`, so a world is cheap to keep and to compare.
pub mod authentication;
mod delegates;
pub mod destination_rules;
pub mod gateways;
pub mod hosts;
pub mod mesh;
mod part;
pub mod protocol;
mod registry;
pub mod services;
pub mod virtual_services;
pub mod workloads;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use lateen_model::kinds::{self, Secret};
use lateen_model::{Diagnostic, MeshConfig, ObjectMeta, Resource, ResourceSet};

use crate::view::ProxyView;
use authentication::PeerPolicies;
use destination_rules::{DestinationRules, Rule};
use gateways::Gateways;
use mesh::Mesh;
use part::Part;
use services::{Registry, Service, ServicePort};
use virtual_services::VirtualServices;
use workloads::Workload;

/// What is known beside configuration: what runs, and on which addresses.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// Running pods, beside those that the resources describe with a `status.podIP`.
    pub workloads: Vec<Workload>,
    /// Cluster addresses of services that do not write their own, by namespace and name.
    pub cluster_ips: BTreeMap<(String, String), Vec<IpAddr>>,
}

/// A port of a proxy's own workload, and the service that declares it.
#[derive(Clone, Debug)]
pub struct ServiceTarget {
    pub service: Arc<Service>,
    pub port: ServicePort,
    /// The port that the workload listens on.
    pub target_port: u16,
}

/// An immutable snapshot of everything translation reads.
#[derive(Clone, Debug, Default)]
pub struct World {
    pub mesh: Arc<Mesh>,
    /// The oldest first.
    services: Vec<Arc<Service>>,
    by_host: HashMap<String, Vec<Arc<Service>>>,
    pub virtual_services: Arc<VirtualServices>,
    pub destination_rules: Arc<DestinationRules>,
    pub gateways: Arc<Gateways>,
    pub peers: Arc<PeerPolicies>,
    secrets: BTreeMap<(String, String), Arc<Resource<Secret>>>,
    /// What could not be taken over, or only in part.
    pub diagnostics: Vec<Diagnostic>,
    parts: Parts,
}

/// The indexes with what they were made from, for the next world.
#[derive(Clone, Debug, Default)]
struct Parts {
    virtual_services: Part<kinds::VirtualService, VirtualServices>,
    destination_rules: Part<kinds::DestinationRule, DestinationRules>,
    gateways: Part<kinds::Gateway, Gateways>,
    peers: Part<kinds::PeerAuthentication, PeerPolicies>,
}

/// Sorts the older resource first, then by name and namespace. Files carry no times, so names decide there.
pub(crate) fn age(meta: &ObjectMeta) -> (&Option<String>, &str, &str) {
    (&meta.creation_timestamp, &meta.name, &meta.namespace)
}

/// Pods that are reported as running, then those that resources describe; sorted, so that equal input gives equal worlds.
fn all_workloads(resources: &ResourceSet, live: &Live) -> Vec<Workload> {
    let mut workloads = live.workloads.clone();
    let known: std::collections::HashSet<(String, String)> =
        workloads.iter().map(|workload| (workload.namespace.clone(), workload.name.clone())).collect();
    let described = resources.pods().filter_map(|pod| Workload::from_pod(pod));
    workloads.extend(described.filter(|workload| !known.contains(&(workload.namespace.clone(), workload.name.clone()))));
    workloads.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
    workloads
}

impl World {
    /// Builds the world of a set of resources, under the mesh configuration that they hold in `istio-system`.
    pub fn build(resources: &ResourceSet, live: &Live) -> Self {
        let (config, diagnostics) = MeshConfig::of(resources, lateen_model::mesh_config::DEFAULT_ROOT_NAMESPACE);
        let mut world = Self::build_with(resources, live, Mesh::from(&config));
        world.diagnostics.splice(0..0, diagnostics);
        world
    }

    /// Builds the world of a set of resources under the given mesh settings.
    pub fn build_with(resources: &ResourceSet, live: &Live, mesh: Mesh) -> Self {
        Self::make(None, resources, live, mesh)
    }

    /// The world after a change: as [`Self::build_with`], but what did not change is shared with this one, down to the
    /// single service. A service (or index) that is the same `Arc` in both is the same.
    #[must_use]
    pub fn rebuild(&self, resources: &ResourceSet, live: &Live, mesh: Mesh) -> Self {
        Self::make(Some(self), resources, live, mesh)
    }

    fn make(before: Option<&Self>, resources: &ResourceSet, live: &Live, mesh: Mesh) -> Self {
        let mut diagnostics = Vec::new();
        let workloads = all_workloads(resources, live);
        let input = registry::Input { resources, workloads: &workloads, cluster_ips: &live.cluster_ips, mesh: &mesh };
        let mut services = registry::build(&input, &mut diagnostics);
        let mut by_host: HashMap<String, Vec<Arc<Service>>> = HashMap::new();
        for service in &mut services {
            let known = before.and_then(|before| before.by_host.get(&service.host)).into_iter().flatten();
            if let Some(same) = known.into_iter().find(|known| ***known == **service) {
                *service = Arc::clone(same);
            }
            by_host.entry(service.host.clone()).or_default().push(Arc::clone(service));
        }
        // Names and defaults in all indexes depend on the mesh.
        let kept = before.filter(|before| *before.mesh == mesh);
        let parts = Parts {
            virtual_services: Part::make(kept.map(|b| &b.parts.virtual_services), resources.virtual_services(), |found| {
                VirtualServices::build(resources, &mesh, found)
            }),
            destination_rules: Part::make(kept.map(|b| &b.parts.destination_rules), resources.destination_rules(), |found| {
                DestinationRules::build(resources, &mesh, found)
            }),
            gateways: Part::make(kept.map(|b| &b.parts.gateways), resources.gateways(), |found| Gateways::build(resources, found)),
            peers: Part::make(kept.map(|b| &b.parts.peers), resources.peer_authentications(), |_| {
                PeerPolicies::build(resources, &mesh.root_namespace)
            }),
        };
        diagnostics.extend_from_slice(parts.virtual_services.diagnostics());
        diagnostics.extend_from_slice(parts.destination_rules.diagnostics());
        diagnostics.extend_from_slice(parts.gateways.diagnostics());
        let secrets = resources.secrets().map(|s| ((s.namespace().to_owned(), s.name().to_owned()), Arc::clone(s))).collect();
        Self {
            mesh: kept.map_or_else(|| Arc::new(mesh), |before| Arc::clone(&before.mesh)),
            services,
            by_host,
            virtual_services: Arc::clone(parts.virtual_services.value()),
            destination_rules: Arc::clone(parts.destination_rules.value()),
            gateways: Arc::clone(parts.gateways.value()),
            peers: Arc::clone(parts.peers.value()),
            secrets,
            diagnostics,
            parts,
        }
    }

    /// All services, the oldest first.
    pub fn services(&self) -> &[Arc<Service>] {
        &self.services
    }

    /// The service that clients of `namespace` mean by `host`: their own namespace's, else Kubernetes', else the oldest.
    pub fn service(&self, namespace: &str, host: &str) -> Option<&Arc<Service>> {
        let candidates = self.by_host.get(host)?;
        candidates.iter().filter(|service| service.visibility.includes(namespace)).min_by_key(|service| {
            // min_by_key takes the first of equals, and the list is the oldest first.
            (service.namespace != namespace, service.registry != Registry::Kubernetes)
        })
    }

    /// The services that clients of `namespace` see, one a host, the oldest first.
    pub fn visible_services<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Arc<Service>> {
        self.services
            .iter()
            .filter(move |service| self.service(namespace, &service.host).is_some_and(|chosen| Arc::ptr_eq(chosen, service)))
    }

    /// The rule that clients of `namespace` obey for a service.
    pub fn rule(&self, namespace: &str, service: &Service) -> Option<&Arc<Rule>> {
        self.destination_rules.find(namespace, service)
    }

    /// The ports of a proxy's own workload that services declare, by the oldest service first.
    pub fn targets(&self, view: &ProxyView) -> Vec<ServiceTarget> {
        let own: Vec<String> = view.addresses.iter().map(ToString::to_string).collect();
        let mut targets = Vec::new();
        for service in &self.services {
            for endpoint in service.endpoints.iter() {
                let mine = endpoint.addresses.iter().any(|address| own.contains(address));
                if mine && let Some(port) = service.port(endpoint.service_port).filter(|port| port.protocol != protocol::Protocol::Udp) {
                    targets.push(ServiceTarget { service: Arc::clone(service), port: port.clone(), target_port: endpoint.port });
                }
            }
        }
        targets
    }

    /// A secret by namespace and name.
    pub fn secret(&self, namespace: &str, name: &str) -> Option<&Arc<Resource<Secret>>> {
        self.secrets.get(&(namespace.to_owned(), name.to_owned()))
    }
}
