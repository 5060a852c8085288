//! Running pods: the addresses behind services.
use std::net::IpAddr;

use lateen_core::Labels;
use lateen_model::Resource;
use lateen_model::kinds::Pod;
use lateen_model::schema::IntOrString;

/// The label that says a sidecar terminates mutual TLS in front of the pod.
const TLS_MODE: &str = "security.istio.io/tlsMode";

/// A pod that runs, or is about to.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Workload {
    /// The pod's name.
    pub name: String,
    pub namespace: String,
    pub labels: Labels,
    pub service_account: String,
    /// In the order of `status.podIPs`; without one it serves nothing.
    pub addresses: Vec<IpAddr>,
    pub ready: bool,
    /// A sidecar terminates mutual TLS in front of it.
    pub mutual_tls: bool,
    /// Names of container ports, for services whose `targetPort` is a name.
    pub named_ports: Vec<(String, u16)>,
    /// The Deployment's name, or the pod's own.
    pub workload: String,
    pub node_name: String,
    /// `region/zone/subzone`.
    pub locality: String,
    pub network: String,
}

impl Workload {
    /// A Pod resource that has been given an address.
    pub fn from_pod(pod: &Resource<Pod>) -> Option<Self> {
        let raw = pod.raw();
        let status = raw.get("status")?;
        let listed = status.get("podIPs").and_then(|ips| ips.as_array()).into_iter().flatten().filter_map(|entry| entry.get("ip"));
        let mut addresses: Vec<IpAddr> = listed.chain(status.get("podIP")).filter_map(|ip| ip.as_str()?.parse().ok()).collect();
        let mut seen = std::collections::BTreeSet::new();
        addresses.retain(|address| seen.insert(*address));
        if addresses.is_empty() || matches!(status.get("phase").and_then(|phase| phase.as_str()), Some("Succeeded" | "Failed")) {
            return None;
        }
        let conditions = status.get("conditions").and_then(|conditions| conditions.as_array());
        let ready = conditions
            .into_iter()
            .flatten()
            .any(|condition| condition.get("type") == Some(&"Ready".into()) && condition.get("status") == Some(&"True".into()));
        let node_name = raw.pointer("/spec/nodeName").and_then(|name| name.as_str()).unwrap_or_default().to_owned();
        let named_ports = pod.spec.containers.iter().flat_map(|container| &container.ports);
        Some(Self {
            name: pod.name().to_owned(),
            namespace: pod.namespace().to_owned(),
            labels: pod.meta.labels.clone(),
            service_account: pod.spec.service_account().to_owned(),
            addresses,
            ready,
            mutual_tls: pod.meta.labels.get(TLS_MODE).is_some_and(|mode| mode == "istio"),
            named_ports: named_ports.filter_map(|port| Some((port.name.clone()?, port.container_port))).collect(),
            workload: pod.name().to_owned(),
            node_name,
            locality: pod.meta.labels.get("istio-locality").map(|text| text.replace('.', "/")).unwrap_or_default(),
            network: pod.meta.labels.get("topology.istio.io/network").cloned().unwrap_or_default(),
        })
    }

    /// The number of the port a service sends to; `None` when the pod has no port of that name.
    pub fn target_port(&self, target: Option<&IntOrString>, service_port: u16) -> Option<u16> {
        match target {
            None => Some(service_port),
            Some(IntOrString::Int(number)) => u16::try_from(*number).ok().filter(|number| *number > 0),
            Some(IntOrString::String(name)) => match name.parse() {
                Ok(number) => Some(number),
                Err(_) => self.named_ports.iter().find(|(known, _)| known == name).map(|(_, number)| *number),
            },
        }
    }
}
