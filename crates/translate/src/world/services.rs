//! Services as proxies see them: Kubernetes Services and ServiceEntries in one form, with their endpoints.
use std::sync::Arc;

use lateen_core::Labels;
use lateen_model::{ExportTo, Origin};

use super::protocol::Protocol;

/// Where a service was declared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Registry {
    Kubernetes,
    ServiceEntry,
}

/// How the address behind a name is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Resolution {
    /// The control plane lists the endpoints.
    Endpoints,
    /// The proxy asks DNS and uses all answers.
    Dns,
    /// The proxy asks DNS and uses one answer at a time.
    DnsRoundRobin,
    /// The caller chose the address already.
    Passthrough,
    /// Another name for another service: an ExternalName.
    Alias,
}

/// A port of a service. Selected endpoints find their own target port by its name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServicePort {
    pub number: u16,
    pub name: String,
    pub protocol: Protocol,
}

/// A service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    pub host: String,
    pub name: String,
    pub namespace: String,
    pub registry: Registry,
    pub resolution: Resolution,
    /// Virtual addresses, possibly ranges; empty for headless services and entries without addresses.
    pub addresses: Vec<String>,
    pub ports: Vec<ServicePort>,
    pub mesh_external: bool,
    pub visibility: ExportTo,
    /// Names that the server's certificate must carry, from a ServiceEntry.
    pub subject_alt_names: Vec<String>,
    /// Names its endpoints, for [`Resolution::Alias`] the host it stands for.
    pub external_name: Option<String>,
    /// Other hosts that mean this service.
    pub aliases: Vec<String>,
    pub labels: Labels,
    /// Whether pods that are not ready take part.
    pub publish_not_ready: bool,
    /// Whether only endpoints of the caller's node serve.
    pub node_local: bool,
    /// Whether endpoints were meant to be selected by labels.
    pub has_selector: bool,
    pub origin: Origin,
    /// For ExternalName and decorated services the endpoints live elsewhere.
    pub endpoints: Arc<[Arc<Endpoint>]>,
}

impl Service {
    pub fn port(&self, number: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|port| port.number == number)
    }

    /// The address a listener for the service stands on: its first one of the proxy's families, else `any`.
    pub fn listen_address(&self, any: &'static str) -> &str {
        let v6 = any == "::";
        self.addresses
            .iter()
            .find(|address| address.contains(':') == v6)
            .or_else(|| self.addresses.first().filter(|address| address.contains('/')))
            .map_or(any, String::as_str)
    }

    /// The addresses beside the first that a dual-stack proxy listens on too.
    pub fn extra_addresses(&self, first: &str) -> impl Iterator<Item = &String> {
        self.addresses.iter().filter(move |address| *address != first)
    }

    /// The endpoints behind a port.
    pub fn endpoints_of<'a>(&'a self, port: &'a ServicePort) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.endpoints.iter().filter(move |endpoint| endpoint.service_port == port.number)
    }

    pub fn is_headless(&self) -> bool {
        self.registry == Registry::Kubernetes && self.resolution == Resolution::Passthrough
    }

    /// Whether `host` starts with `*`.
    pub fn is_wildcard(&self) -> bool {
        self.host.starts_with('*')
    }
}

/// How an endpoint fares, as far as the control plane knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Health {
    Healthy,
    Unhealthy,
}

/// One address and port behind one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// An IP address, a DNS name (for [`Resolution::Dns`]), or `unix://path`; first is the one dialled first.
    pub addresses: Vec<String>,
    pub port: u16,
    /// The number of the service port it serves.
    pub service_port: u16,
    pub labels: Labels,
    pub namespace: String,
    pub service_account: String,
    pub workload: String,
    /// A sidecar terminates mutual TLS in front of it.
    pub mutual_tls: bool,
    pub health: Health,
    /// Share of the load relative to its siblings; 1 unless given.
    pub weight: u32,
    /// `region/zone/subzone`.
    pub locality: String,
    pub network: String,
    pub node_name: String,
    /// The pod behind it, where there is one.
    pub pod: String,
}

impl Endpoint {
    pub fn address(&self) -> &str {
        self.addresses.first().map_or("", String::as_str)
    }
}
