//! Kinds by name: those Lateen reads, those it knows and does not support yet, and everything else.
use std::fmt;
use std::str::FromStr;

/// A kind that Lateen reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    Namespace,
    ServiceAccount,
    ConfigMap,
    Secret,
    Service,
    Deployment,
    Pod,
    Gateway,
    VirtualService,
    DestinationRule,
    ServiceEntry,
    PeerAuthentication,
}

const NETWORKING: &str = "networking.istio.io";
const SECURITY: &str = "security.istio.io";

impl Kind {
    /// In the order in which one is of use to the next.
    pub const ALL: [Self; 12] = [
        Self::Namespace,
        Self::ServiceAccount,
        Self::ConfigMap,
        Self::Secret,
        Self::Service,
        Self::Deployment,
        Self::Pod,
        Self::Gateway,
        Self::VirtualService,
        Self::DestinationRule,
        Self::ServiceEntry,
        Self::PeerAuthentication,
    ];

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::ServiceAccount => "ServiceAccount",
            Self::ConfigMap => "ConfigMap",
            Self::Secret => "Secret",
            Self::Service => "Service",
            Self::Deployment => "Deployment",
            Self::Pod => "Pod",
            Self::Gateway => "Gateway",
            Self::VirtualService => "VirtualService",
            Self::DestinationRule => "DestinationRule",
            Self::ServiceEntry => "ServiceEntry",
            Self::PeerAuthentication => "PeerAuthentication",
        }
    }

    /// The API group; empty for the core of Kubernetes.
    pub const fn group(self) -> &'static str {
        match self {
            Self::Namespace | Self::ServiceAccount | Self::ConfigMap | Self::Secret | Self::Service | Self::Pod => "",
            Self::Deployment => "apps",
            Self::Gateway | Self::VirtualService | Self::DestinationRule | Self::ServiceEntry => NETWORKING,
            Self::PeerAuthentication => SECURITY,
        }
    }

    /// The accepted versions, the current one first.
    pub const fn versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::ServiceAccount | Self::ConfigMap | Self::Secret | Self::Service | Self::Pod | Self::Deployment => {
                &["v1"]
            }
            Self::Gateway | Self::VirtualService | Self::DestinationRule | Self::ServiceEntry => &["v1", "v1beta1", "v1alpha3"],
            Self::PeerAuthentication => &["v1", "v1beta1"],
        }
    }

    /// The current `apiVersion`.
    pub fn api_version(self) -> String {
        match self.group() {
            "" => self.versions()[0].to_owned(),
            group => format!("{group}/{}", self.versions()[0]),
        }
    }

    /// The lower-case plural, as `lateen get` takes it.
    pub const fn plural(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces",
            Self::ServiceAccount => "serviceaccounts",
            Self::ConfigMap => "configmaps",
            Self::Secret => "secrets",
            Self::Service => "services",
            Self::Deployment => "deployments",
            Self::Pod => "pods",
            Self::Gateway => "gateways",
            Self::VirtualService => "virtualservices",
            Self::DestinationRule => "destinationrules",
            Self::ServiceEntry => "serviceentries",
            Self::PeerAuthentication => "peerauthentications",
        }
    }

    /// The short name that kubectl takes.
    pub const fn short_name(self) -> &'static str {
        match self {
            Self::Namespace => "ns",
            Self::ServiceAccount => "sa",
            Self::ConfigMap => "cm",
            Self::Secret => "secret",
            Self::Service => "svc",
            Self::Deployment => "deploy",
            Self::Pod => "po",
            Self::Gateway => "gw",
            Self::VirtualService => "vs",
            Self::DestinationRule => "dr",
            Self::ServiceEntry => "se",
            Self::PeerAuthentication => "pa",
        }
    }

    /// Whether its resources live in a namespace.
    pub const fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace)
    }

    /// Whether it is one of Istio's.
    pub const fn is_istio(self) -> bool {
        matches!(self, Self::Gateway | Self::VirtualService | Self::DestinationRule | Self::ServiceEntry | Self::PeerAuthentication)
    }

    /// Whether its fields stand at the top of the document instead of under `spec`.
    pub const fn has_fields_at_top(self) -> bool {
        matches!(self, Self::ServiceAccount | Self::ConfigMap | Self::Secret)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A name that is no kind.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a kind that Lateen reads; the kinds are: {list}", list = Kind::ALL.map(Kind::plural).join(", "))]
pub struct UnknownKind(pub String);

/// Reads a kind as people type it: `VirtualService`, `virtualservices`, `virtualservice`, `vs`.
impl FromStr for Kind {
    type Err = UnknownKind;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let lower = text.to_ascii_lowercase();
        Self::ALL
            .into_iter()
            .find(|kind| lower == kind.plural() || lower == kind.short_name() || lower == kind.as_str().to_ascii_lowercase())
            .ok_or_else(|| UnknownKind(text.to_owned()))
    }
}

/// What is known about an `apiVersion` and `kind`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Support {
    Read(Kind),
    /// A group or version that Kubernetes has retired, whose shape is still the current one.
    ReadOld(Kind),
    /// The kind is read, but not in this version.
    WrongVersion {
        kind: Kind,
        suggestion: String,
    },
    /// A known kind without support; the note says what to do.
    NotYet(String),
    /// Nobody's kind, as far as is known here; perhaps with the name that was meant.
    Unknown {
        suggestion: Option<String>,
    },
}

/// Kinds known by name, with their group (`*` for any) and what to say beyond "not supported yet".
const NOT_SUPPORTED: &[(&str, &[&str], &str)] = &[
    ("networking.istio.io", &["WorkloadEntry", "WorkloadGroup", "Sidecar", "EnvoyFilter", "ProxyConfig"], ""),
    ("security.istio.io", &["AuthorizationPolicy", "RequestAuthentication"], "it protects nothing until it is"),
    ("telemetry.istio.io", &["Telemetry"], ""),
    ("extensions.istio.io", &["WasmPlugin", "TrafficExtension"], ""),
    ("install.istio.io", &["IstioOperator"], ""),
    ("authentication.istio.io", &["Policy", "MeshPolicy"], "Istio 1.6 removed it; write a PeerAuthentication"),
    (
        "rbac.istio.io",
        &["ServiceRole", "ServiceRoleBinding", "ClusterRbacConfig", "RbacConfig", "AuthorizationPolicy"],
        "Istio 1.6 removed it; its successor is AuthorizationPolicy",
    ),
    ("config.istio.io", &["*"], "Istio 1.8 removed Mixer"),
    (
        "gateway.networking.k8s.io",
        &[
            "GatewayClass",
            "Gateway",
            "HTTPRoute",
            "GRPCRoute",
            "TLSRoute",
            "TCPRoute",
            "UDPRoute",
            "ReferenceGrant",
            "BackendTLSPolicy",
            "ListenerSet",
        ],
        "write a VirtualService or a Gateway of networking.istio.io",
    ),
    ("gateway.networking.x-k8s.io", &["*"], ""),
    ("inference.networking.k8s.io", &["*"], ""),
    ("networking.k8s.io", &["Ingress", "IngressClass"], "write a Gateway and a VirtualService of networking.istio.io"),
    ("networking.k8s.io", &["NetworkPolicy"], "it protects nothing in Lateen"),
    ("extensions", &["Ingress"], "write a Gateway and a VirtualService of networking.istio.io"),
    ("apps", &["StatefulSet", "DaemonSet", "ReplicaSet", "ControllerRevision"], "write a Deployment to have its pods run"),
    ("batch", &["Job", "CronJob"], "write a Deployment to have its pods run"),
    (
        "",
        &[
            "ReplicationController",
            "Endpoints",
            "Node",
            "PersistentVolume",
            "PersistentVolumeClaim",
            "LimitRange",
            "ResourceQuota",
            "Event",
            "PodTemplate",
        ],
        "",
    ),
    ("discovery.k8s.io", &["EndpointSlice"], ""),
    ("rbac.authorization.k8s.io", &["Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding"], ""),
    ("policy", &["PodDisruptionBudget", "PodSecurityPolicy"], ""),
    ("autoscaling", &["HorizontalPodAutoscaler"], "replicas stay as the Deployment says"),
    ("apiextensions.k8s.io", &["CustomResourceDefinition"], ""),
    ("admissionregistration.k8s.io", &["*"], ""),
    ("multicluster.x-k8s.io", &["ServiceExport", "ServiceImport"], ""),
    ("storage.k8s.io", &["*"], ""),
    ("scheduling.k8s.io", &["*"], ""),
    ("coordination.k8s.io", &["*"], ""),
    ("cert-manager.io", &["*"], ""),
    ("certmanager.k8s.io", &["*"], ""),
    ("monitoring.coreos.com", &["*"], ""),
    ("route.openshift.io", &["*"], "write a Gateway and a VirtualService of networking.istio.io"),
    ("apps.openshift.io", &["DeploymentConfig"], "write a Deployment to have its pods run"),
    ("kustomize.config.k8s.io", &["*"], "build it with kustomize first"),
];

/// Tells what an `apiVersion` and `kind` are.
pub fn known_kind(api_version: &str, kind: &str) -> Support {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    // Before 2018 Deployments stood in other groups with the same shape.
    if kind == "Deployment" && matches!(api_version, "extensions/v1beta1" | "apps/v1beta1" | "apps/v1beta2") {
        return Support::ReadOld(Kind::Deployment);
    }
    if let Some(found) = Kind::ALL.into_iter().find(|known| known.as_str() == kind && known.group() == group) {
        if found.versions().contains(&version) {
            return Support::Read(found);
        }
        return Support::WrongVersion { kind: found, suggestion: format!("write apiVersion: {}", found.api_version()) };
    }
    let listed = NOT_SUPPORTED.iter().find(|(known, kinds, _)| *known == group && (kinds.contains(&kind) || kinds.contains(&"*")));
    if let Some((_, _, note)) = listed {
        return Support::NotYet((*note).to_owned());
    }
    let names = Kind::ALL.into_iter().map(Kind::as_str);
    if let Some(same) = Kind::ALL.into_iter().find(|known| known.as_str() == kind) {
        return Support::Unknown { suggestion: Some(format!("a {kind} has apiVersion: {}", same.api_version())) };
    }
    let all = names.chain(NOT_SUPPORTED.iter().flat_map(|(_, kinds, _)| kinds.iter().copied()).filter(|kind| *kind != "*"));
    let near = lateen_core::similar::nearest(kind, all);
    if near.is_none() && is_foreign(group) {
        return Support::NotYet(String::new());
    }
    Support::Unknown { suggestion: near.map(|near| format!("did you mean \"{near}\"?")) }
}

/// Whether a group belongs neither to Kubernetes nor to Istio: somebody's own resources, of no concern to a mesh.
fn is_foreign(group: &str) -> bool {
    group.contains('.') && !group.ends_with(".istio.io") && !group.ends_with(".k8s.io")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_told_apart_by_group_and_version() {
        assert_eq!(known_kind("networking.istio.io/v1alpha3", "Gateway"), Support::Read(Kind::Gateway));
        assert!(matches!(known_kind("gateway.networking.k8s.io/v1", "Gateway"), Support::NotYet(_)));
        assert!(matches!(known_kind("config.istio.io/v1alpha2", "denier"), Support::NotYet(_)));
        assert!(matches!(known_kind("networking.istio.io/v2", "VirtualService"), Support::WrongVersion { kind: Kind::VirtualService, .. }));
        assert_eq!(known_kind("extensions/v1beta1", "Deployment"), Support::ReadOld(Kind::Deployment));
        assert!(matches!(known_kind("argoproj.io/v1alpha1", "Application"), Support::NotYet(_)));
        assert_eq!(known_kind("networking.istio.io/v1", "Nonsense"), Support::Unknown { suggestion: None });
        let Support::Unknown { suggestion: Some(suggestion) } = known_kind("networking.istio.io/v1", "VirtualServise") else { panic!() };
        assert_eq!(suggestion, "did you mean \"VirtualService\"?");
        let Support::Unknown { suggestion: Some(suggestion) } = known_kind("v1", "VirtualService") else { panic!() };
        assert_eq!(suggestion, "a VirtualService has apiVersion: networking.istio.io/v1");
    }

    #[test]
    fn kinds_are_read_as_people_type_them() {
        for text in ["vs", "virtualservice", "VirtualServices", "VIRTUALSERVICE"] {
            assert_eq!(text.parse::<Kind>().unwrap(), Kind::VirtualService);
        }
        assert!("nothing".parse::<Kind>().unwrap_err().to_string().contains("virtualservices"));
    }
}
