//! Service: a name, a cluster address and the pods behind it.
use lateen_core::Labels;

use crate::schema::IntOrString;

message! {
    pub struct Service "ServiceSpec" tolerant {
        r#type: ServiceType = honoured,
        /// `None` makes the service headless; absent lets Lateen choose.
        cluster_ip as "clusterIP": Option<String> = honoured,
        cluster_ips as "clusterIPs": Vec<String> = honoured,
        ports: Vec<ServicePort> = honoured,
        selector: Labels = honoured,
        /// Of the type ExternalName.
        external_name: Option<String> = honoured,
        publish_not_ready_addresses: bool = honoured,
    }
}

enumeration! {
    pub enum ServiceType {
        ClusterIp = "ClusterIP",
        NodePort = "NodePort",
        LoadBalancer = "LoadBalancer",
        ExternalName = "ExternalName",
    }
}

message! {
    pub struct ServicePort "ServicePort" tolerant {
        name: Option<String> = honoured,
        port: u16 = honoured,
        /// A port of the pod by number or name; `port` when absent.
        target_port: Option<IntOrString> = honoured,
        protocol: TransportProtocol = honoured,
        /// Beats the port's name in telling the protocol.
        app_protocol: Option<String> = honoured,
        node_port: Option<u16> = partly("no port of the machine is opened for it"),
    }
}

enumeration! {
    pub enum TransportProtocol {
        Tcp = "TCP",
        Udp = "UDP",
        Sctp = "SCTP",
    }
}

impl Service {
    /// Whether the service has no cluster address of its own.
    pub fn is_headless(&self) -> bool {
        self.cluster_ip.as_deref() == Some("None")
    }
}
