//! What can be referred to: hosts with their ports and visibility, workloads with their labels.
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use lateen_core::Labels;

use crate::kinds::DestinationRule;
use crate::mesh_config::MeshConfig;
use crate::names::{EXPORT_TO_ANNOTATION, ExportTo, Host, service_fqdn};
use crate::resource::Resource;
use crate::set::ResourceSet;

/// Hosts that a misspelt one is compared with.
const MAX_SUGGESTED_FROM: usize = 2_000;

pub(super) struct Index<'a> {
    pub(super) resources: &'a ResourceSet,
    pub(super) mesh: &'a MeshConfig,
    plain: HashMap<String, Vec<KnownHost>>,
    wildcards: Vec<(Host, KnownHost)>,
    pub(super) workloads: Vec<Workload>,
    rules: HashMap<Host, Vec<Arc<Resource<DestinationRule>>>>,
}

/// A host that a Service or ServiceEntry defines.
#[derive(Clone, Debug)]
pub(super) struct KnownHost {
    pub(super) namespace: String,
    pub(super) export_to: ExportTo,
    pub(super) ports: Vec<u16>,
    /// The labels of its workloads; `None` when its endpoints are not pods.
    pub(super) selector: Option<Labels>,
}

/// Pods that a Deployment or Pod gives.
#[derive(Clone, Debug)]
pub(super) struct Workload {
    pub(super) namespace: String,
    pub(super) labels: Labels,
}

impl<'a> Index<'a> {
    pub(super) fn new(resources: &'a ResourceSet, mesh: &'a MeshConfig) -> Self {
        let mut index =
            Self { resources, mesh, plain: HashMap::new(), wildcards: Vec::new(), workloads: Vec::new(), rules: HashMap::new() };
        index.add_services();
        index.add_service_entries();
        index.add_workloads();
        for rule in resources.destination_rules() {
            let host = Host::resolve(&rule.spec.host, rule.namespace(), &mesh.domain);
            index.rules.entry(host).or_default().push(Arc::clone(rule));
        }
        index
    }

    fn add_services(&mut self) {
        for service in self.resources.services() {
            let annotation = service.meta.annotations.get(EXPORT_TO_ANNOTATION);
            let list: Vec<&str> = annotation.map(|list| list.split(',').map(str::trim).collect()).unwrap_or_default();
            let known = KnownHost {
                namespace: service.namespace().to_owned(),
                export_to: ExportTo::parse(&list, service.namespace(), &self.mesh.default_service_export_to),
                ports: service.spec.ports.iter().map(|port| port.port).collect(),
                selector: (!service.spec.selector.is_empty()).then(|| service.spec.selector.clone()),
            };
            self.plain.entry(service_fqdn(service.name(), service.namespace(), &self.mesh.domain)).or_default().push(known);
        }
    }

    fn add_service_entries(&mut self) {
        for entry in self.resources.service_entries() {
            let known = KnownHost {
                namespace: entry.namespace().to_owned(),
                export_to: ExportTo::parse(&entry.spec.export_to, entry.namespace(), &self.mesh.default_service_export_to),
                ports: entry.spec.ports.iter().map(|port| port.number).collect(),
                selector: entry.spec.workload_selector.as_ref().map(|selector| selector.labels.clone()),
            };
            for host in &entry.spec.hosts {
                // A ServiceEntry's host is taken as it is written, a short one too.
                let host = Host::new(host);
                if host.is_wildcard() {
                    self.wildcards.push((host, known.clone()));
                } else {
                    self.plain.entry(host.as_str().to_owned()).or_default().push(known.clone());
                }
            }
        }
    }

    fn add_workloads(&mut self) {
        for deployment in self.resources.deployments() {
            let (namespace, labels) = (deployment.namespace().to_owned(), deployment.spec.template.metadata.labels.clone());
            self.workloads.push(Workload { namespace, labels });
        }
        for pod in self.resources.pods() {
            self.workloads.push(Workload { namespace: pod.namespace().to_owned(), labels: pod.meta.labels.clone() });
        }
    }

    /// Everything that defines a host, wildcards included.
    pub(super) fn hosts(&self, written: &str, namespace: &str) -> Vec<&KnownHost> {
        let host = Host::resolve(written, namespace, &self.mesh.domain);
        let exact = [host.as_str(), written].into_iter().find_map(|name| self.plain.get(name));
        match exact {
            Some(known) => known.iter().collect(),
            // A wildcard rule is about the hosts it covers.
            None if host.is_wildcard() => {
                let covered = self.plain.iter().filter(|(name, _)| host.contains(&Host::new(name))).flat_map(|(_, known)| known);
                covered.chain(self.wildcards.iter().filter(|(known, _)| known.overlaps(&host)).map(|(_, known)| known)).collect()
            }
            None => self.wildcards.iter().filter(|(known, _)| known.contains(&host)).map(|(_, known)| known).collect(),
        }
    }

    /// Known hosts without wildcards, for suggestions: enough of them that a search stays cheap.
    pub(super) fn host_names(&self) -> impl Iterator<Item = &str> {
        self.plain.keys().take(MAX_SUGGESTED_FROM).map(String::as_str)
    }

    /// The DestinationRules for a host as it is written in a rule of a namespace; wildcard rules included.
    pub(super) fn rules_for(&self, written: &str, namespace: &str) -> Vec<&Arc<Resource<DestinationRule>>> {
        let host = Host::resolve(written, namespace, &self.mesh.domain);
        let wildcards = self.rules.iter().filter(|(known, _)| known.is_wildcard() && known.contains(&host) && **known != host);
        self.rules.get(&host).into_iter().flatten().chain(wildcards.flat_map(|(_, rules)| rules)).collect()
    }

    /// Whether some workload of a namespace (of any, when `None`) has the labels.
    pub(super) fn selects_any(&self, namespace: Option<&str>, labels: &BTreeMap<String, String>) -> bool {
        self.workloads
            .iter()
            .filter(|workload| namespace.is_none_or(|namespace| workload.namespace == namespace))
            .any(|workload| lateen_core::selects(labels, &workload.labels))
    }
}
