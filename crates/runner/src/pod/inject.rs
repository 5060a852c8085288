//! The sidecar: whether a pod gets one, and the container that Istio's webhook would add.
use lateen_core::Labels;

use super::plan::{ContainerPlan, PodPlan, Refused, Role, SELF, Value};
use super::probe::{Check, Probe};
use crate::nft::capture::{Capture, SIDECAR_MARK};

/// The container's name, as in Istio.
pub const PROXY_CONTAINER: &str = "istio-proxy";
const READY_PORT: u16 = 15021;
/// The sidecar finds its token and the mesh's root here, as in Istio.
pub const TOKEN_PATH: &str = "/var/run/secrets/tokens/istio-token";
pub const ROOT_CERT_PATH: &str = "/var/run/secrets/istio/root-cert.pem";

/// Which program is the proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DataPlane {
    #[default]
    Lateen,
    Envoy,
}

/// What every sidecar of the mesh is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub data_plane: DataPlane,
    pub trust_domain: String,
    pub domain: String,
    /// `host:port` of the control plane.
    pub discovery_address: String,
    /// Whether pods of the namespace `default` get a sidecar when it has no label either way.
    pub inject_default: bool,
    pub envoy_path: Option<String>,
}

/// What a pod's proxy is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Injected {
    None,
    Sidecar,
    /// The pod is a proxy and nothing else.
    Gateway,
}

const INJECT: &str = "sidecar.istio.io/inject";

fn truth(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "y" | "yes" | "on" | "1" => Some(true),
        "false" | "n" | "no" | "off" | "0" => Some(false),
        _ => None,
    }
}

/// Istio's decision: the pod's label beats its annotation, both beat the namespace's label; gateways are told by their template.
pub fn decide(
    namespace: &str,
    namespace_labels: &Labels,
    plan_labels: &Labels,
    annotations: &Labels,
    auto_image: bool,
    inject_default: bool,
) -> Injected {
    let own = plan_labels.get(INJECT).and_then(|v| truth(v)).or_else(|| annotations.get(INJECT).and_then(|v| truth(v)));
    let of_namespace = match namespace_labels.get("istio-injection").map(String::as_str) {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => namespace_labels.contains_key("istio.io/rev") || namespace == "default" && inject_default,
    };
    let gateway = auto_image || annotations.get("inject.istio.io/templates").is_some_and(|t| t.split(',').any(|t| t.trim() == "gateway"));
    match (own.unwrap_or(of_namespace), gateway) {
        (false, _) => Injected::None,
        (true, true) => Injected::Gateway,
        (true, false) => Injected::Sidecar,
    }
}

/// The workload that a pod belongs to, for telemetry.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    pub namespace: &'a str,
    /// The Deployment's name, or the pod's own.
    pub workload: &'a str,
    pub kind: &'a str,
}

/// Adds the proxy to a plan.
///
/// # Errors
/// When an annotation cannot be read.
pub fn inject(plan: &mut PodPlan, injected: Injected, owner: Owner<'_>, settings: &Settings) -> Result<(), Refused> {
    if injected == Injected::None {
        return Ok(());
    }
    if injected == Injected::Sidecar {
        let mode = plan.annotations.get("sidecar.istio.io/interceptionMode").map(String::as_str);
        if mode != Some("NONE") {
            let capture = Capture::from_annotations(|name| plan.annotations.get(name).map(String::as_str));
            plan.capture = Some(capture.map_err(|e| Refused::Other(e.to_string()))?);
        }
    }
    label(plan, owner.workload, injected);
    let proxies = sidecar_command(plan, injected, owner, settings);
    // A gateway's manifest has a container of that name with image `auto`: the injected one takes its place and keeps its ports.
    let mut ports = Vec::new();
    plan.containers.retain_mut(|c| {
        let replaced = c.name == PROXY_CONTAINER || c.image == "auto";
        if replaced {
            ports.append(&mut c.ports);
        }
        !replaced
    });
    for (at, mut proxy) in proxies.into_iter().enumerate() {
        if proxy.name == PROXY_CONTAINER {
            proxy.ports.append(&mut ports);
        }
        plan.containers.insert(at, proxy);
    }
    Ok(())
}

fn label(plan: &mut PodPlan, workload: &str, injected: Injected) {
    let first = |names: &[&str]| names.iter().find_map(|n| plan.labels.get(*n).cloned());
    let name = first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or_else(|| workload.to_owned());
    let revision =
        first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]).unwrap_or_else(|| "latest".into());
    plan.labels.insert("service.istio.io/canonical-name".into(), name);
    plan.labels.insert("service.istio.io/canonical-revision".into(), revision);
    if injected == Injected::Sidecar {
        plan.labels.insert("security.istio.io/tlsMode".into(), "istio".into());
    }
}

/// The containers that make a pod's proxy: one for Lateen's own; the agent and Envoy in one (the agent starts Envoy) otherwise.
pub fn sidecar_command(plan: &PodPlan, injected: Injected, owner: Owner<'_>, settings: &Settings) -> Vec<ContainerPlan> {
    let role = if injected == Injected::Gateway { "router" } else { "sidecar" };
    let program = match settings.data_plane {
        DataPlane::Lateen => "proxy",
        DataPlane::Envoy => "agent",
    };
    let domain = format!("$(POD_NAMESPACE).svc.{}", settings.domain);
    let argv = [SELF, program, role, "--domain", &domain].map(str::to_owned).to_vec();
    vec![ContainerPlan {
        name: PROXY_CONTAINER.into(),
        image: "auto".into(),
        role: Role::Proxy,
        argv,
        env: environment(plan, owner, settings),
        cwd: Some("/".into()),
        ports: vec![(Some("http-envoy-prom".into()), 15090)],
        readiness: Probe {
            period: std::time::Duration::from_secs(15),
            timeout: std::time::Duration::from_secs(3),
            failure_threshold: 4,
            ..Probe::of(Check::Http { port: READY_PORT, path: "/healthz/ready".into(), host: None, headers: Vec::new() })
        },
        liveness: None,
        startup: None,
    }]
}

/// ProxyConfig as JSON: what holds for the mesh, with what the pod's annotation says on top.
fn proxy_config(plan: &PodPlan, settings: &Settings) -> String {
    // One worker each: a mesh on one machine has more proxies than cores.
    let mut config = serde_json::json!({"discoveryAddress": settings.discovery_address, "concurrency": 1});
    if let (Some(config), Some(serde_json::Value::Object(own))) = (config.as_object_mut(), own_config(plan)) {
        config.extend(own);
    }
    config.to_string()
}

/// The pod's annotation `proxy.istio.io/config`, YAML or JSON.
fn own_config(plan: &PodPlan) -> Option<serde_json::Value> {
    let text = plan.annotations.get("proxy.istio.io/config")?;
    let documents = lateen_model::yaml::read(text.as_bytes(), &lateen_model::yaml::Limits::default()).ok()?;
    Some(documents.into_iter().next()?.ok()?.root.to_json())
}

/// `proxyMetadata` of that annotation: variables for the proxy's environment, such as SECRET_TTL.
fn proxy_metadata(plan: &PodPlan) -> Vec<(String, Value)> {
    let config = own_config(plan).unwrap_or_default();
    let variables = config["proxyMetadata"].as_object().cloned().unwrap_or_default();
    variables.into_iter().filter_map(|(name, value)| Some((name, Value::Text(value.as_str()?.to_owned())))).collect()
}

fn environment(plan: &PodPlan, owner: Owner<'_>, settings: &Settings) -> Vec<(String, Value)> {
    let text = |name: &str, value: String| (name.to_owned(), Value::Text(value));
    let field = |name: &str, path: &str| (name.to_owned(), Value::Field(path.to_owned()));
    let ports: Vec<_> = plan.containers.iter().flat_map(|c| &c.ports).collect();
    let pod_ports: Vec<_> = ports
        .iter()
        .map(|(name, port)| match name {
            Some(name) => serde_json::json!({"name": name, "containerPort": port, "protocol": "TCP"}),
            None => serde_json::json!({"containerPort": port, "protocol": "TCP"}),
        })
        .collect();
    let apps: Vec<&str> = plan.containers.iter().filter(|c| c.role == Role::App && c.image != "auto").map(|c| c.name.as_str()).collect();
    let kind = owner.kind.to_ascii_lowercase();
    let mut env = vec![
        field("POD_NAME", "metadata.name"),
        field("POD_NAMESPACE", "metadata.namespace"),
        field("INSTANCE_IP", "status.podIP"),
        field("INSTANCE_IPS", "status.podIPs"),
        field("SERVICE_ACCOUNT", "spec.serviceAccountName"),
        field("HOST_IP", "status.hostIP"),
        text("PROXY_CONFIG", proxy_config(plan, settings)),
        text("CA_ADDR", settings.discovery_address.clone()),
        text("PILOT_CERT_PROVIDER", "istiod".into()),
        text("TRUST_DOMAIN", settings.trust_domain.clone()),
        text("ISTIO_META_POD_PORTS", serde_json::Value::from(pod_ports).to_string()),
        text("ISTIO_META_APP_CONTAINERS", apps.join(",")),
        text("ISTIO_META_CLUSTER_ID", "Kubernetes".into()),
        field("ISTIO_META_NODE_NAME", "spec.nodeName"),
        text("ISTIO_META_INTERCEPTION_MODE", if plan.capture.is_some() { "REDIRECT" } else { "NONE" }.into()),
        text("ISTIO_META_WORKLOAD_NAME", owner.workload.to_owned()),
        text("ISTIO_META_OWNER", format!("kubernetes://apis/apps/v1/namespaces/{}/{kind}s/{}", owner.namespace, owner.workload)),
        text("ISTIO_META_MESH_ID", settings.trust_domain.clone()),
        // Without Kubernetes' downward volume, as JSON what Istio's agent reads from /etc/istio/pod.
        text("ISTIO_METAJSON_LABELS", serde_json::to_string(&plan.labels).unwrap_or_default()),
        text("ISTIO_METAJSON_ANNOTATIONS", serde_json::to_string(&plan.annotations).unwrap_or_default()),
        text("LATEEN_SOCKET_MARK", SIDECAR_MARK.to_string()),
        text("JWT_TOKEN_PATH", TOKEN_PATH.into()),
        text("XDS_ROOT_CA", ROOT_CERT_PATH.into()),
    ];
    env.extend(proxy_metadata(plan));
    if let Some(path) = &settings.envoy_path {
        env.push(text("LATEEN_ENVOY", path.clone()));
    }
    env
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn the_pods_label_beats_its_annotation_and_both_beat_the_namespace() {
        let on = labels(&[("istio-injection", "enabled")]);
        let none = Labels::new();
        let yes = labels(&[(INJECT, "true")]);
        let no = labels(&[(INJECT, "false")]);
        let decide = |ns: &str, of: &Labels, l: &Labels, a: &Labels| decide(ns, of, l, a, false, true);
        assert_eq!(decide("shop", &on, &none, &none), Injected::Sidecar);
        assert_eq!(decide("shop", &none, &none, &none), Injected::None);
        assert_eq!(decide("default", &none, &none, &none), Injected::Sidecar);
        assert_eq!(decide("default", &labels(&[("istio-injection", "disabled")]), &none, &none), Injected::None);
        assert_eq!(decide("shop", &on, &none, &no), Injected::None);
        assert_eq!(decide("shop", &on, &yes, &no), Injected::Sidecar);
        assert_eq!(decide("shop", &none, &yes, &labels(&[("inject.istio.io/templates", "gateway")])), Injected::Gateway);
    }
}
