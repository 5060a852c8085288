//! ServiceEntry: a service that Kubernetes does not know (`istio.io/api/networking/v1alpha3/service_entry.proto`).
use std::collections::BTreeMap;

use lateen_core::Labels;

message! {
    pub struct ServiceEntry "ServiceEntry" {
        hosts: Vec<String> = honoured,
        /// IP addresses or CIDR blocks.
        addresses: Vec<String> = honoured,
        ports: Vec<ServiceEntryPort> = honoured,
        location: Location = honoured,
        resolution: Resolution = partly("DYNAMIC_DNS is refused"),
        endpoints: Vec<WorkloadEntry> = honoured,
        /// Pods of the same namespace; excludes `endpoints`.
        workload_selector: Option<LabelsSelector> = honoured,
        export_to: Vec<String> = honoured,
        /// Checked on the server's certificate.
        subject_alt_names: Vec<String> = honoured,
    }
}

message! {
    pub struct ServiceEntryPort "ServicePort" {
        number: u16 = honoured,
        /// Upper or lower case; sniffed when absent.
        protocol: Option<String> = honoured,
        name: String = honoured,
        /// The port of the endpoints; `number` when absent.
        target_port: Option<u16> = honoured,
    }
}

enumeration! {
    pub enum Location {
        /// No mutual TLS, no PeerAuthentication.
        MeshExternal = "MESH_EXTERNAL",
        MeshInternal = "MESH_INTERNAL",
    }
}

enumeration! {
    pub enum Resolution {
        /// The address the caller connected to.
        None = "NONE",
        Static = "STATIC",
        /// All addresses that DNS gives.
        Dns = "DNS",
        /// One address that DNS gives, at the time of connecting.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        DynamicDns = "DYNAMIC_DNS",
    }
}

message! {
    /// An endpoint: a machine, a name (with DNS resolution) or a `unix://` path.
    pub struct WorkloadEntry "WorkloadEntry" {
        address: Option<String> = partly("unix:// is refused"),
        /// Port name of the service to port of this endpoint.
        ports: BTreeMap<String, u16> = honoured,
        labels: Labels = honoured,
        network: Option<String> = warned("has no effect yet: one network is assumed"),
        locality: Option<String> = warned("has no effect yet: endpoints are not chosen by locality"),
        weight: Option<std::num::NonZeroU32> = honoured,
        service_account: Option<String> = honoured,
    }
}

message! {
    /// `istio.networking.v1alpha3.WorkloadSelector`, which calls its labels `labels`.
    pub struct LabelsSelector "WorkloadSelector" {
        labels: Labels = honoured,
    }
}
