//! Which peers a workload lets in, as its PeerAuthentications say.
use std::collections::BTreeMap;
use std::sync::Arc;

use lateen_core::{Labels, selects};
use lateen_model::kinds::PeerAuthentication;
use lateen_model::kinds::peer_authentication::MutualTlsMode;
use lateen_model::{Resource, ResourceSet};

use crate::provenance::Provenance;

/// What is asked of a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerMode {
    /// Plaintext only.
    Disable,
    /// Either.
    Permissive,
    /// Mutual TLS only.
    Strict,
}

impl PeerMode {
    fn of(mode: MutualTlsMode) -> Option<Self> {
        match mode {
            MutualTlsMode::Unset => None,
            MutualTlsMode::Disable => Some(Self::Disable),
            MutualTlsMode::Permissive => Some(Self::Permissive),
            MutualTlsMode::Strict => Some(Self::Strict),
        }
    }
}

/// The modes of one workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkloadPeers {
    pub mode: PeerMode,
    /// By the workload's own port, where it differs from `mode`.
    pub ports: BTreeMap<u16, PeerMode>,
    /// The policies behind it.
    pub provenance: Vec<Provenance>,
}

impl WorkloadPeers {
    pub fn port(&self, port: u16) -> PeerMode {
        self.ports.get(&port).copied().unwrap_or(self.mode)
    }
}

/// All PeerAuthentications, by scope.
#[derive(Clone, Debug, Default)]
pub struct PeerPolicies {
    mesh: Option<Arc<Resource<PeerAuthentication>>>,
    namespaces: BTreeMap<String, Arc<Resource<PeerAuthentication>>>,
    /// Those with a selector, the oldest first.
    workloads: BTreeMap<String, Vec<Arc<Resource<PeerAuthentication>>>>,
}

fn mode_of(resource: &Resource<PeerAuthentication>) -> Option<PeerMode> {
    resource.spec.mtls.as_ref().and_then(|mtls| PeerMode::of(mtls.mode))
}

fn selector_of(resource: &Resource<PeerAuthentication>) -> Option<&Labels> {
    resource.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

impl PeerPolicies {
    pub(crate) fn build(resources: &ResourceSet, root_namespace: &str) -> Self {
        let mut all: Vec<_> = resources.peer_authentications().cloned().collect();
        all.sort_by(|a, b| super::age(&a.meta).cmp(&super::age(&b.meta)));
        let mut policies = Self::default();
        for resource in all {
            let namespace = resource.namespace().to_owned();
            if selector_of(&resource).is_some() {
                // With a selector in the root namespace it would read as mesh-wide; Istio ignores it.
                if namespace != root_namespace {
                    policies.workloads.entry(namespace).or_default().push(resource);
                }
            } else if namespace == root_namespace {
                policies.mesh.get_or_insert(resource);
            } else {
                policies.namespaces.entry(namespace).or_insert(resource);
            }
        }
        policies
    }

    /// The mode of a namespace or the mesh; nothing when neither is set.
    pub fn namespace(&self, namespace: &str) -> Option<PeerMode> {
        let mesh = self.mesh.as_ref().map(|policy| mode_of(policy).unwrap_or(PeerMode::Permissive));
        match self.namespaces.get(namespace) {
            Some(policy) => Some(mode_of(policy).or(mesh).unwrap_or(PeerMode::Permissive)),
            None => mesh,
        }
    }

    /// The modes of a workload: its own policy's, else its namespace's, else the mesh's, else PERMISSIVE.
    pub fn workload(&self, namespace: &str, labels: &Labels) -> WorkloadPeers {
        let inherited = self.namespace(namespace).unwrap_or(PeerMode::Permissive);
        let own = self
            .workloads
            .get(namespace)
            .and_then(|policies| policies.iter().find(|policy| selector_of(policy).is_some_and(|selector| selects(selector, labels))));
        let mode = own.and_then(|policy| mode_of(policy)).unwrap_or(inherited);
        let ports = own
            .map(|policy| policy.spec.port_level_mtls.iter().map(|(port, mtls)| (*port, PeerMode::of(mtls.mode).unwrap_or(mode))).collect())
            .unwrap_or_default();
        let provenance =
            [own, self.namespaces.get(namespace), self.mesh.as_ref()].into_iter().flatten().map(|p| Provenance::of(p)).collect();
        WorkloadPeers { mode, ports, provenance }
    }
}
