//! The mesh-wide settings that translation depends on, with Istio's defaults filled in.
use std::time::Duration;

use lateen_model::kinds::destination_rule::TcpKeepalive;
use lateen_model::kinds::virtual_service::HttpRetry;
use lateen_model::mesh_config::{AccessLogEncoding, NormalizationType, OutboundMode};
use lateen_model::{ExportTo, Host, MeshConfig};

/// What happens to calls of hosts outside the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum OutboundPolicy {
    AllowAny,
    RegistryOnly,
}

/// What is done to a request's path before it is matched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PathNormalization {
    None,
    /// Dot segments removed, backslashes turned.
    Base,
    MergeSlashes,
    /// `%2F` and `%5C` decoded first.
    DecodeAndMergeSlashes,
}

/// Where access logs go and how they look.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AccessLog {
    /// `/dev/stdout` or a path.
    pub file: String,
    /// Empty means Istio's default line or object.
    pub format: String,
    pub json: bool,
}

/// The mesh configuration as translation uses it.
#[derive(Clone, Debug, PartialEq)]
pub struct Mesh {
    /// The DNS suffix of the cluster, `cluster.local`.
    pub domain: String,
    pub root_namespace: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub outbound: OutboundPolicy,
    pub auto_mtls: bool,
    /// Nothing means no access logs.
    pub access_log: Option<AccessLog>,
    /// Whether connections that no filter chain takes go unreported.
    pub disable_listener_log: bool,
    pub connect_timeout: Duration,
    /// How long listeners wait for the first bytes; zero means as long as it takes.
    pub protocol_detection_timeout: Duration,
    pub path_normalization: PathNormalization,
    /// Whether declared HTTP ports are spoken to in HTTP/2.
    pub h2_upgrade: bool,
    pub tcp_keepalive: Option<TcpKeepalive>,
    pub default_service_export_to: ExportTo,
    pub default_virtual_service_export_to: ExportTo,
    pub default_destination_rule_export_to: ExportTo,
    pub dns_refresh_rate: Duration,
    /// What routes without `retries` do instead of Istio's built-in default.
    pub default_http_retry: Option<HttpRetry>,
    /// Whether inbound traffic goes to the pod's own address rather than to localhost.
    pub inbound_passthrough: bool,
    pub outbound_port: u16,
    pub inbound_port: u16,
}

impl Default for Mesh {
    fn default() -> Self {
        Self::from(&MeshConfig::default())
    }
}

impl From<&MeshConfig> for Mesh {
    fn from(config: &MeshConfig) -> Self {
        Self {
            domain: config.domain.clone(),
            root_namespace: config.root_namespace.clone(),
            trust_domain: config.trust_domain.clone(),
            trust_domain_aliases: config.trust_domain_aliases.clone(),
            outbound: match config.outbound_mode {
                OutboundMode::RegistryOnly => OutboundPolicy::RegistryOnly,
                OutboundMode::AllowAny | OutboundMode::AllowAnyDynamicDns => OutboundPolicy::AllowAny,
            },
            auto_mtls: config.enable_auto_mtls,
            access_log: config.access_log_file.clone().filter(|file| !file.is_empty()).map(|file| AccessLog {
                file,
                format: config.access_log_format.clone().unwrap_or_default(),
                json: config.access_log_encoding == AccessLogEncoding::Json,
            }),
            disable_listener_log: false,
            connect_timeout: config.connect_timeout,
            protocol_detection_timeout: config.protocol_detection_timeout,
            path_normalization: match config.path_normalization {
                NormalizationType::None => PathNormalization::None,
                NormalizationType::Default | NormalizationType::Base => PathNormalization::Base,
                NormalizationType::MergeSlashes => PathNormalization::MergeSlashes,
                NormalizationType::DecodeAndMergeSlashes => PathNormalization::DecodeAndMergeSlashes,
            },
            h2_upgrade: config.h2_upgrade,
            tcp_keepalive: config.tcp_keepalive.clone(),
            default_service_export_to: config.default_service_export_to.clone(),
            default_virtual_service_export_to: config.default_virtual_service_export_to.clone(),
            default_destination_rule_export_to: config.default_destination_rule_export_to.clone(),
            dns_refresh_rate: config.dns_refresh_rate,
            default_http_retry: config.default_http_retry_policy.clone(),
            inbound_passthrough: true,
            outbound_port: 15001,
            inbound_port: 15006,
        }
    }
}

impl Mesh {
    /// `name` in full: a short name is completed with the namespace of whoever wrote it.
    pub fn qualify(&self, name: &str, namespace: &str) -> String {
        Host::resolve(name, namespace, &self.domain).as_str().to_owned()
    }

    /// How long a listener waits for the first bytes where it can go on without knowing them.
    ///
    /// Istio's default is for ever, so that a server that speaks first on an undeclared port hangs with its client.
    /// Where the chain for bytes leads to the same place as the one for requests, five seconds cost nothing more
    /// than the routing of a connection that stayed silent that long.
    pub fn detection_timeout(&self) -> Duration {
        if self.protocol_detection_timeout.is_zero() { Duration::from_secs(5) } else { self.protocol_detection_timeout }
    }

    /// The identity of a service account of this mesh.
    pub fn identity(&self, namespace: &str, service_account: &str) -> String {
        format!("spiffe://{}/ns/{namespace}/sa/{service_account}", self.trust_domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_names_are_completed() {
        let mesh = Mesh::default();
        assert_eq!(mesh.qualify("reviews", "books"), "reviews.books.svc.cluster.local");
        assert_eq!(mesh.qualify("reviews.other", "books"), "reviews.other");
        assert_eq!(mesh.qualify("*", "books"), "*");
        assert_eq!(mesh.qualify("::1", "books"), "::1");
        assert_eq!(mesh.qualify("Example.COM", "books"), "example.com");
    }
}
