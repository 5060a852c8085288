//! Deployment and Pod: the processes of the mesh.
use std::collections::BTreeMap;
use std::num::NonZeroU32;

use lateen_core::Labels;

use super::common::LabelSelector;
use super::service::TransportProtocol;
use crate::schema::IntOrString;

message! {
    pub struct Deployment "DeploymentSpec" tolerant {
        /// 1 when absent; 0 runs none.
        replicas: Option<u32> = honoured,
        selector: LabelSelector = honoured,
        template: PodTemplate = honoured,
    }
}

impl Deployment {
    /// How many pods to run.
    pub fn replicas(&self) -> u32 {
        self.replicas.unwrap_or(1)
    }
}

message! {
    pub struct PodTemplate "PodTemplateSpec" tolerant {
        metadata: PodTemplateMetadata = honoured,
        spec: PodSpec = honoured,
    }
}

message! {
    pub struct PodTemplateMetadata "ObjectMeta" tolerant {
        labels: Labels = honoured,
        annotations: BTreeMap<String, String> = honoured,
    }
}

/// The spec of a Pod that stands alone.
pub type Pod = PodSpec;

message! {
    pub struct PodSpec "PodSpec" tolerant {
        containers: Vec<Container> = honoured,
        init_containers: Vec<Container> = honoured,
        /// `default` when absent.
        service_account_name: Option<String> = honoured,
        /// The old spelling.
        service_account: Option<String> = honoured,
        host_network: bool = honoured,
        hostname: Option<String> = honoured,
        subdomain: Option<String> = honoured,
        restart_policy: Option<String> = honoured,
        /// 30 when absent.
        termination_grace_period_seconds: Option<u32> = honoured,
        volumes: Vec<serde_json::Value> = honoured,
    }
}

impl PodSpec {
    /// The service account that the pod's identity carries.
    pub fn service_account(&self) -> &str {
        self.service_account_name.as_deref().or(self.service_account.as_deref()).unwrap_or("default")
    }
}

message! {
    pub struct Container "Container" tolerant {
        name: String = honoured,
        image: Option<String> = honoured,
        /// Replaces the image's entry point.
        command: Vec<String> = honoured,
        args: Vec<String> = honoured,
        env: Vec<EnvVar> = honoured,
        ports: Vec<ContainerPort> = honoured,
        working_dir: Option<String> = honoured,
        readiness_probe: Option<Probe> = honoured,
        liveness_probe: Option<Probe> = honoured,
        startup_probe: Option<Probe> = honoured,
    }
}

message! {
    pub struct EnvVar "EnvVar" tolerant {
        name: String = honoured,
        value: Option<String> = honoured,
        value_from: Option<EnvVarSource> = honoured,
    }
}

message! {
    pub struct EnvVarSource "EnvVarSource" tolerant {
        field_ref: Option<ObjectFieldSelector> = honoured,
        config_map_key_ref: Option<KeySelector> = honoured,
        secret_key_ref: Option<KeySelector> = honoured,
    }
}

message! {
    pub struct ObjectFieldSelector "ObjectFieldSelector" tolerant {
        /// Such as `metadata.name`, `status.podIP`, `metadata.labels['app']`.
        field_path: String = honoured,
    }
}

message! {
    pub struct KeySelector "KeySelector" tolerant {
        name: String = honoured,
        key: String = honoured,
        optional: bool = honoured,
    }
}

message! {
    pub struct ContainerPort "ContainerPort" tolerant {
        name: Option<String> = honoured,
        container_port: u16 = honoured,
        protocol: TransportProtocol = honoured,
    }
}

message! {
    pub struct Probe "Probe" tolerant {
        http_get: Option<HttpGetAction> = honoured,
        tcp_socket: Option<TcpSocketAction> = honoured,
        exec: Option<ExecAction> = honoured,
        grpc: Option<GrpcAction> = honoured,
        initial_delay_seconds: Option<u32> = honoured,
        /// 1 when absent.
        timeout_seconds: Option<NonZeroU32> = honoured,
        /// 10 when absent.
        period_seconds: Option<NonZeroU32> = honoured,
        success_threshold: Option<NonZeroU32> = honoured,
        /// 3 when absent.
        failure_threshold: Option<NonZeroU32> = honoured,
    }
    oneof [http_get, tcp_socket, exec, grpc]
}

message! {
    pub struct HttpGetAction "HTTPGetAction" tolerant {
        path: Option<String> = honoured,
        port: Option<IntOrString> = honoured,
        host: Option<String> = honoured,
        scheme: ProbeScheme = honoured,
        http_headers: Vec<ProbeHeader> = honoured,
    }
}

enumeration! {
    pub enum ProbeScheme {
        Http = "HTTP",
        Https = "HTTPS",
    }
}

message! {
    pub struct ProbeHeader "HTTPHeader" {
        name: String = honoured,
        value: String = honoured,
    }
}

message! {
    pub struct TcpSocketAction "TCPSocketAction" tolerant {
        port: Option<IntOrString> = honoured,
        host: Option<String> = honoured,
    }
}

message! {
    pub struct ExecAction "ExecAction" tolerant {
        command: Vec<String> = honoured,
    }
}

message! {
    pub struct GrpcAction "GRPCAction" tolerant {
        port: u16 = honoured,
        service: Option<String> = honoured,
    }
}
