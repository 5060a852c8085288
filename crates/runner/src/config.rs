//! What a mesh is started with; travels from the process outside to the one inside as JSON.
use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::pod::inject::DataPlane;

/// A file's content with the name that messages give it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceText {
    pub file: String,
    pub text: String,
}

/// A host port that leads to a port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// On 127.0.0.1; 0 lets the kernel choose.
    pub host_port: u16,
    pub namespace: String,
    pub service: String,
    /// The service's port.
    pub port: u16,
}

/// A text that is not `[HOSTPORT:][NAMESPACE/]SERVICE:PORT`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not of the form HOSTPORT:[NAMESPACE/]SERVICE:PORT")]
pub struct InvalidPublish(String);

impl std::str::FromStr for Publish {
    type Err = InvalidPublish;
    fn from_str(text: &str) -> Result<Self, InvalidPublish> {
        let bad = || InvalidPublish(text.to_owned());
        let (host, rest) = text.split_once(':').ok_or_else(bad)?;
        let (target, port) = rest.rsplit_once(':').ok_or_else(bad)?;
        let (namespace, service) = target.split_once('/').unwrap_or(("default", target));
        if service.is_empty() || namespace.is_empty() {
            return Err(bad());
        }
        Ok(Self {
            host_port: host.parse().map_err(|_| bad())?,
            namespace: namespace.to_owned(),
            service: service.to_owned(),
            port: port.parse().map_err(|_| bad())?,
        })
    }
}

/// The mesh as `lateen up` is told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpConfig {
    /// Tells meshes of one user apart.
    pub name: String,
    pub data_plane: DataPlane,
    /// Run the control plane (and with it give pods sidecars); without, plain processes with names and addresses.
    pub control_plane: bool,
    /// Run `istio-ingressgateway`.
    pub ingress_gateway: bool,
    /// Whether pods in namespace `default` get a sidecar without a label.
    pub inject_default: bool,
    pub trust_domain: String,
    pub publish: Vec<Publish>,
    /// What stands for an image: its name, and the command.
    pub images: BTreeMap<String, Vec<String>>,
    /// Give pods and services IPv6 addresses too; Kubernetes' default is IPv4 alone.
    pub dual_stack: bool,
    /// The Envoy binary for `--data-plane envoy`; found on the PATH when absent.
    pub envoy_path: Option<String>,
    pub sources: Vec<SourceText>,
    /// Print what happens.
    pub quiet: bool,
}

impl Default for UpConfig {
    fn default() -> Self {
        Self {
            name: "default".into(),
            data_plane: DataPlane::Lateen,
            control_plane: true,
            ingress_gateway: true,
            inject_default: true,
            trust_domain: "cluster.local".into(),
            publish: Vec::new(),
            images: BTreeMap::new(),
            dual_stack: false,
            envoy_path: None,
            sources: Vec::new(),
            quiet: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn published_ports_read_as_they_are_written() {
        let p: Publish = "8080:istio-system/istio-ingressgateway:80".parse().unwrap();
        assert_eq!((p.host_port, p.namespace.as_str(), p.service.as_str(), p.port), (8080, "istio-system", "istio-ingressgateway", 80));
        assert_eq!("9000:web:80".parse::<Publish>().unwrap().namespace, "default");
        for bad in ["80", "x:a:1", "1:a:b", "1:/a:1", "1::1"] {
            assert!(bad.parse::<Publish>().is_err(), "{bad}");
        }
    }
}
