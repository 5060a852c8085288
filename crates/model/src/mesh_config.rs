//! MeshConfig: what holds for the whole mesh (`istio.io/api/mesh/v1alpha1/config.proto`), read from the key `mesh` of
//! the ConfigMap `istio` in the root namespace.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::diagnostic::{Diagnostic, Severity};
use crate::kinds::ConfigMap;
use crate::kinds::destination_rule::{ClientTlsSettings, H2UpgradePolicy, TcpKeepalive};
use crate::kinds::virtual_service::HttpRetry;
use crate::names::{DEFAULT_DOMAIN, ExportTo};
use crate::resource::Resource;
use crate::schema::{Context, Decode};
use crate::set::ResourceSet;
use crate::yaml::{Limits, Position, read};

/// The namespace of mesh-wide rules unless the mesh says otherwise.
pub const DEFAULT_ROOT_NAMESPACE: &str = "istio-system";

const PORTS: &str = "has no effect: Lateen's proxies use Istio's standard ports";
const RUNNER: &str = "has no effect yet: every proxy runs with Lateen's own settings";
const TELEMETRY: &str = "has no effect yet: telemetry providers are not configurable";

message! {
    /// MeshConfig as it is written.
    pub struct MeshConfigFields "MeshConfig" {
        outbound_traffic_policy: Option<OutboundTrafficPolicy> = honoured,
        inbound_traffic_policy: Option<serde_json::Value> = warned("has no effect yet: applications are reached at the address of their pod"),
        enable_auto_mtls: Option<bool> = honoured,
        trust_domain: Option<String> = honoured,
        trust_domain_aliases: Vec<String> = honoured,
        root_namespace: Option<String> = honoured,
        access_log_file: Option<String> = honoured,
        access_log_encoding: AccessLogEncoding = honoured,
        access_log_format: Option<String> = honoured,
        default_config: Option<ProxyConfigFields> = honoured,
        connect_timeout: Option<Duration> = honoured,
        tcp_keepalive: Option<TcpKeepalive> = honoured,
        protocol_detection_timeout: Option<Duration> = honoured,
        default_http_retry_policy: Option<HttpRetry> = honoured,
        default_inbound_http_retry_policy: Option<HttpRetry> = warned("has no effect yet: the server's side does not retry"),
        path_normalization: Option<PathNormalization> = honoured,
        h2_upgrade_policy: H2UpgradePolicy = honoured,
        default_service_export_to: Vec<String> = honoured,
        default_virtual_service_export_to: Vec<String> = honoured,
        default_destination_rule_export_to: Vec<String> = honoured,
        dns_refresh_rate: Option<Duration> = honoured,
        enable_prometheus_merge: Option<bool> = warned("has no effect yet: metrics of applications are not merged"),
        enable_tracing: Option<bool> = warned("has no effect yet: no spans are sent"),
        locality_lb_setting: Option<serde_json::Value> = warned("has no effect yet: endpoints have no localities"),
        zone_aware_lb_setting: Option<serde_json::Value> = warned("has no effect yet: endpoints have no localities"),
        proxy_listen_port: Option<u16> = warned(PORTS),
        proxy_inbound_listen_port: Option<u16> = warned(PORTS),
        proxy_http_port: Option<u16> = warned("has no effect yet: there is no HTTP proxy port"),
        hbone_idle_timeout: Option<Duration> = warned("has no effect: Lateen has no HBONE yet"),
        ingress_class: Option<String> = warned("has no effect: Ingress is not read"),
        ingress_service: Option<String> = warned("has no effect: Ingress is not read"),
        ingress_selector: Option<String> = warned("has no effect: Ingress is not read"),
        ingress_controller_mode: Option<String> = warned("has no effect: Ingress is not read"),
        enable_envoy_access_log_service: bool = warned(TELEMETRY),
        disable_envoy_listener_log: bool = warned("has no effect yet: listeners log as Istio's do"),
        config_sources: Vec<serde_json::Value> = warned("has no effect: configuration comes from the paths given to Lateen"),
        ca_certificates: Vec<serde_json::Value> = warned("has no effect yet: only the mesh's own roots are trusted"),
        inbound_cluster_stat_name: Option<String> = warned("has no effect yet: clusters have their standard names in statistics"),
        outbound_cluster_stat_name: Option<String> = warned("has no effect yet: clusters have their standard names in statistics"),
        certificates: Vec<serde_json::Value> = warned("has no effect, as in Istio"),
        service_settings: Vec<serde_json::Value> = warned("has no effect: one cluster is assumed"),
        service_scope_configs: Vec<serde_json::Value> = warned("has no effect: one cluster is assumed"),
        verify_certificate_at_client: Option<bool> = warned("has no effect, as in Istio"),
        ca: Option<serde_json::Value> = warned("has no effect: Lateen is its own certificate authority"),
        extension_providers: Vec<serde_json::Value> = warned(TELEMETRY),
        default_providers: Option<serde_json::Value> = warned(TELEMETRY),
        discovery_selectors: Vec<serde_json::Value> = warned("has no effect yet: all namespaces are read"),
        mesh_mtls as "meshMTLS": Option<serde_json::Value> = warned("has no effect yet: TLS 1.2 and 1.3 with safe suites are used"),
        tls_defaults: Option<serde_json::Value> = warned("has no effect yet: TLS 1.2 and 1.3 with safe suites are used"),
        default_traffic_policy: Option<serde_json::Value> = warned("has no effect yet: write DestinationRules"),
        service_entry_visibility: Option<serde_json::Value> = warned("has no effect yet: exportTo decides"),
    }
}

message! {
    pub struct OutboundTrafficPolicy "MeshConfig.OutboundTrafficPolicy" {
        /// REGISTRY_ONLY when the block is written without it.
        mode: OutboundMode = partly("ALLOW_ANY_DYNAMIC_DNS is taken for ALLOW_ANY"),
        tls: Option<ClientTlsSettings> = warned("has no effect yet: it belongs to ALLOW_ANY_DYNAMIC_DNS"),
    }
}

enumeration! {
    /// What becomes of traffic to hosts that no service or ServiceEntry names.
    pub enum OutboundMode {
        RegistryOnly = "REGISTRY_ONLY",
        AllowAny = "ALLOW_ANY",
        /// Handled as `ALLOW_ANY`.
        AllowAnyDynamicDns = "ALLOW_ANY_DYNAMIC_DNS",
    }
}

enumeration! {
    pub enum AccessLogEncoding {
        Text = "TEXT",
        Json = "JSON",
    }
}

message! {
    pub struct PathNormalization "MeshConfig.ProxyPathNormalization" {
        normalization: NormalizationType = honoured,
    }
}

enumeration! {
    pub enum NormalizationType {
        /// The same as `BASE`.
        Default = "DEFAULT",
        None = "NONE",
        /// Dot segments resolved, backslash to slash.
        Base = "BASE",
        MergeSlashes = "MERGE_SLASHES",
        DecodeAndMergeSlashes = "DECODE_AND_MERGE_SLASHES",
    }
}

enumeration! {
    pub enum InterceptionMode {
        Redirect = "REDIRECT",
        Tproxy = "TPROXY",
        None = "NONE",
    }
}

message! {
    /// ProxyConfig as it is written, in `defaultConfig` or in the annotation `proxy.istio.io/config`.
    pub struct ProxyConfigFields "ProxyConfig" {
        discovery_address: Option<String> = warned("has no effect: Lateen tells its proxies where the control plane is"),
        concurrency: Option<i32> = warned(RUNNER),
        drain_duration: Option<Duration> = warned(RUNNER),
        termination_drain_duration: Option<Duration> = warned(RUNNER),
        hold_application_until_proxy_starts: Option<bool> = warned(RUNNER),
        proxy_metadata: BTreeMap<String, String> = warned(RUNNER),
        interception_mode: InterceptionMode = warned(RUNNER),
        proxy_admin_port: Option<u16> = warned(PORTS),
        status_port: Option<u16> = warned(PORTS),
        mesh_id: Option<String> = warned(RUNNER),
        tracing: Option<serde_json::Value> = warned("has no effect yet: no spans are sent"),
        tracing_service_name: Option<String> = warned("has no effect yet: no spans are sent"),
        service_cluster: Option<String> = warned("has no effect yet"),
        image: Option<serde_json::Value> = warned("has no effect: Lateen is its own proxy"),
        binary_path: Option<String> = warned("has no effect: Lateen is its own proxy"),
        config_path: Option<String> = warned("has no effect: Lateen is its own proxy"),
        custom_config_file: Option<String> = warned("has no effect: use `lateen proxy -c`"),
        proxy_bootstrap_template_path: Option<String> = warned("has no effect: use `lateen proxy -c`"),
        discovery_refresh_delay: Option<Duration> = warned("has no effect, as in Istio"),
        zipkin_address: Option<String> = warned("has no effect yet: no spans are sent"),
        statsd_udp_address: Option<String> = warned(TELEMETRY),
        envoy_metrics_service_address: Option<String> = warned("has no effect, as in Istio"),
        envoy_metrics_service: Option<serde_json::Value> = warned(TELEMETRY),
        envoy_access_log_service: Option<serde_json::Value> = warned(TELEMETRY),
        availability_zone: Option<String> = warned("has no effect, as in Istio"),
        control_plane_auth_policy: Option<String> = warned("has no effect: proxies always authenticate"),
        stat_name_length: Option<i32> = warned("has no effect, as in Istio"),
        sds: Option<serde_json::Value> = warned("has no effect, as in Istio"),
        runtime_values: BTreeMap<String, String> = warned("has no effect: Lateen has no runtime flags"),
        extra_stat_tags: Vec<String> = warned(TELEMETRY),
        gateway_topology: Option<serde_json::Value> = warned("has no effect yet: no proxy in front of a gateway is trusted"),
        readiness_probe: Option<serde_json::Value> = warned("has no effect yet"),
        proxy_stats_matcher: Option<serde_json::Value> = warned("has no effect: all statistics are kept"),
        ca_certificates_pem: Vec<String> = warned("has no effect yet: only the mesh's own roots are trusted"),
        private_key_provider: Option<serde_json::Value> = warned("has no effect yet"),
        proxy_headers: Option<serde_json::Value> = warned("has no effect yet"),
        file_flush_interval: Option<Duration> = warned("has no effect yet"),
        file_flush_min_size_kb as "fileFlushMinSizeKb": Option<u32> = warned("has no effect yet"),
        stats_compression: Option<bool> = warned("has no effect yet"),
        connection_settings: Option<serde_json::Value> = warned("has no effect yet"),
    }
    oneof [service_cluster, tracing_service_name]
}

/// MeshConfig with Istio's defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct MeshConfig {
    /// The DNS suffix of services; not part of Istio's message.
    pub domain: String,
    pub trust_domain: String,
    pub trust_domain_aliases: Vec<String>,
    pub root_namespace: String,
    pub outbound_mode: OutboundMode,
    pub enable_auto_mtls: bool,
    pub connect_timeout: Duration,
    pub tcp_keepalive: Option<TcpKeepalive>,
    /// How long sniffing waits for the first bytes; zero waits without end.
    pub protocol_detection_timeout: Duration,
    /// A file, usually `/dev/stdout`; `None` logs nothing.
    pub access_log_file: Option<String>,
    pub access_log_encoding: AccessLogEncoding,
    /// `None` is Istio's default format.
    pub access_log_format: Option<String>,
    /// `None` is Istio's default: two retries on connection failures and the like.
    pub default_http_retry_policy: Option<HttpRetry>,
    pub path_normalization: NormalizationType,
    pub h2_upgrade: bool,
    pub default_service_export_to: ExportTo,
    pub default_virtual_service_export_to: ExportTo,
    pub default_destination_rule_export_to: ExportTo,
    /// How soon a failed look-up of a name is tried again.
    pub dns_refresh_rate: Duration,
    pub proxy: ProxyConfig,
}

/// ProxyConfig with Istio's defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub struct ProxyConfig {
    pub discovery_address: String,
    /// Worker threads; 0 is one a core, `None` lets the runner choose.
    pub concurrency: Option<u32>,
    pub drain_duration: Duration,
    pub termination_drain_duration: Duration,
    pub hold_application_until_proxy_starts: bool,
    pub proxy_metadata: BTreeMap<String, String>,
    pub interception_mode: InterceptionMode,
    /// The trust domain when absent.
    pub mesh_id: Option<String>,
}

impl Default for MeshConfig {
    fn default() -> Self {
        Self::from_fields(MeshConfigFields::default())
    }
}

impl MeshConfig {
    fn from_fields(fields: MeshConfigFields) -> Self {
        let export = |list: &[String]| ExportTo::parse(list, DEFAULT_ROOT_NAMESPACE, &ExportTo::All);
        let normalization = match fields.path_normalization.unwrap_or_default().normalization {
            NormalizationType::Default => NormalizationType::Base,
            other => other,
        };
        Self {
            domain: DEFAULT_DOMAIN.to_owned(),
            trust_domain: fields.trust_domain.unwrap_or_else(|| DEFAULT_DOMAIN.to_owned()),
            trust_domain_aliases: fields.trust_domain_aliases,
            root_namespace: fields.root_namespace.unwrap_or_else(|| DEFAULT_ROOT_NAMESPACE.to_owned()),
            outbound_mode: fields.outbound_traffic_policy.map_or(OutboundMode::AllowAny, |policy| policy.mode),
            enable_auto_mtls: fields.enable_auto_mtls.unwrap_or(true),
            connect_timeout: fields.connect_timeout.unwrap_or(Duration::from_secs(10)),
            tcp_keepalive: fields.tcp_keepalive,
            protocol_detection_timeout: fields.protocol_detection_timeout.unwrap_or_default(),
            access_log_file: fields.access_log_file,
            access_log_encoding: fields.access_log_encoding,
            access_log_format: fields.access_log_format,
            default_http_retry_policy: fields.default_http_retry_policy,
            path_normalization: normalization,
            h2_upgrade: fields.h2_upgrade_policy == H2UpgradePolicy::Upgrade,
            default_service_export_to: export(&fields.default_service_export_to),
            default_virtual_service_export_to: export(&fields.default_virtual_service_export_to),
            default_destination_rule_export_to: export(&fields.default_destination_rule_export_to),
            dns_refresh_rate: fields.dns_refresh_rate.unwrap_or(Duration::from_secs(60)),
            proxy: ProxyConfig::from_fields(fields.default_config.unwrap_or_default()),
        }
    }

    /// The configuration in force: of the ConfigMap `istio` in `root_namespace`, or the defaults. A ConfigMap with
    /// errors counts as far as it can be read, and the messages say what was left out.
    pub fn of(resources: &ResourceSet, root_namespace: &str) -> (Self, Vec<Diagnostic>) {
        match resources.config_map(root_namespace, "istio") {
            Some(config_map) => Self::from_config_map(config_map),
            None => (Self { root_namespace: root_namespace.to_owned(), ..Self::default() }, Vec::new()),
        }
    }

    /// Reads the key `mesh`.
    pub fn from_config_map(config_map: &Resource<ConfigMap>) -> (Self, Vec<Diagnostic>) {
        let Some(text) = config_map.spec.data.get("mesh") else {
            let warning = config_map.report(Severity::Warning, "data", "has no key \"mesh\"; the defaults hold");
            return (Self::default(), vec![warning]);
        };
        let (mesh, mut diagnostics) = Self::parse(&config_map.origin.file, text);
        // The text is usually a block: its first line follows the key, and is indented by two more.
        let start = config_map.origin.at("data.mesh");
        for diagnostic in &mut diagnostics {
            diagnostic.line += start.line;
            diagnostic.column += start.column + 1;
            diagnostic.resource = Some(config_map.id());
            diagnostic.field_path = match diagnostic.field_path.as_str() {
                "" => "data.mesh".to_owned(),
                path => format!("data.mesh.{path}"),
            };
        }
        (mesh, diagnostics)
    }

    /// Reads the text of a MeshConfig; the same rules for mistakes as for resources.
    pub fn parse(file: &Arc<str>, text: &str) -> (Self, Vec<Diagnostic>) {
        let (fields, diagnostics) = parse_message::<MeshConfigFields>(file, text, "MeshConfig", &MeshConfigFields::MESSAGE);
        (Self::from_fields(fields), diagnostics)
    }
}

impl Default for ProxyConfig {
    fn default() -> Self {
        Self::from_fields(ProxyConfigFields::default())
    }
}

impl ProxyConfig {
    fn from_fields(fields: ProxyConfigFields) -> Self {
        Self {
            discovery_address: fields.discovery_address.unwrap_or_else(|| "istiod.istio-system.svc:15012".to_owned()),
            concurrency: fields.concurrency.and_then(|workers| u32::try_from(workers).ok()),
            drain_duration: fields.drain_duration.unwrap_or(Duration::from_secs(45)),
            termination_drain_duration: fields.termination_drain_duration.unwrap_or(Duration::from_secs(5)),
            hold_application_until_proxy_starts: fields.hold_application_until_proxy_starts.unwrap_or(false),
            proxy_metadata: fields.proxy_metadata,
            interception_mode: fields.interception_mode,
            mesh_id: fields.mesh_id,
        }
    }

    /// This configuration with what the text of an annotation `proxy.istio.io/config` changes.
    pub fn overlaid(&self, file: &Arc<str>, text: &str) -> (Self, Vec<Diagnostic>) {
        let (fields, diagnostics) = parse_message::<ProxyConfigFields>(file, text, "ProxyConfig", &ProxyConfigFields::MESSAGE);
        let own = self.clone();
        let mut proxy_metadata = own.proxy_metadata;
        proxy_metadata.extend(fields.proxy_metadata);
        let overlaid = Self {
            discovery_address: fields.discovery_address.unwrap_or(own.discovery_address),
            concurrency: fields.concurrency.map_or(own.concurrency, |workers| u32::try_from(workers).ok()),
            drain_duration: fields.drain_duration.unwrap_or(own.drain_duration),
            termination_drain_duration: fields.termination_drain_duration.unwrap_or(own.termination_drain_duration),
            hold_application_until_proxy_starts: fields
                .hold_application_until_proxy_starts
                .unwrap_or(own.hold_application_until_proxy_starts),
            proxy_metadata,
            interception_mode: match fields.interception_mode {
                InterceptionMode::Redirect => own.interception_mode,
                other => other,
            },
            mesh_id: fields.mesh_id.or(own.mesh_id),
        };
        (overlaid, diagnostics)
    }
}

fn parse_message<T: Decode + Default>(
    file: &Arc<str>,
    text: &str,
    kind: &str,
    message: &'static crate::schema::Message,
) -> (T, Vec<Diagnostic>) {
    let id = crate::diagnostic::ResourceId { kind: kind.to_owned(), namespace: String::new(), name: String::new() };
    let mut diagnostics = Vec::new();
    let mut report =
        |at: Position, text: String| diagnostics.push(Diagnostic::new(Severity::Error, file, at, text).with_resource(id.clone()));
    let mut value = None;
    match read(text.as_bytes(), &Limits::default()) {
        Ok(documents) => {
            for document in documents {
                match document {
                    Ok(document) if value.is_none() => {
                        for error in &document.errors {
                            report(error.at, error.message.clone());
                        }
                        value = Some(document.root);
                    }
                    Ok(document) => report(document.root.at, "a second document; one is wanted".to_owned()),
                    Err(error) => report(error.at, error.message),
                }
            }
        }
        Err(error) => report(error.at, error.message),
    }
    let Some(node) = value else { return (T::default(), diagnostics) };
    let mut cx = Context::new(file, id, "", message);
    let decoded = T::decode(&node, &mut cx).unwrap_or_default();
    diagnostics.extend(cx.finish().0);
    (decoded, diagnostics)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> (MeshConfig, Vec<String>) {
        let (mesh, diagnostics) = MeshConfig::parse(&Arc::from("mesh.yaml"), text);
        (mesh, diagnostics.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn defaults_are_istios() {
        let (mesh, diagnostics) = parse("{}");
        assert_eq!((mesh, diagnostics), (MeshConfig::default(), Vec::new()));
        let mesh = MeshConfig::default();
        assert_eq!(mesh.outbound_mode, OutboundMode::AllowAny);
        assert_eq!(mesh.path_normalization, NormalizationType::Base);
        assert!(mesh.enable_auto_mtls);
        assert_eq!(mesh.connect_timeout, Duration::from_secs(10));
    }

    #[test]
    fn an_outbound_block_without_a_mode_is_registry_only() {
        assert_eq!(parse("outboundTrafficPolicy: {}").0.outbound_mode, OutboundMode::RegistryOnly);
        assert_eq!(parse("outboundTrafficPolicy:\n  mode: ALLOW_ANY").0.outbound_mode, OutboundMode::AllowAny);
    }

    #[test]
    fn mistakes_are_told_and_the_rest_holds() {
        let (mesh, diagnostics) = parse("trustDomain: td\nrootNamespce: x\nconnectTimeout: 5\n");
        assert_eq!(mesh.trust_domain, "td");
        assert_eq!(
            diagnostics,
            [
                "mesh.yaml:2:1: error: MeshConfig: rootNamespce: unknown field; did you mean \"rootNamespace\"?",
                "mesh.yaml:3:17: error: MeshConfig: connectTimeout: wants a duration such as 500ms, 5s or 1h30m, not the number `5`; write 5s if seconds are meant",
            ]
        );
    }

    #[test]
    fn an_annotation_changes_only_what_it_names() {
        let base = ProxyConfig { concurrency: Some(2), ..ProxyConfig::default() };
        let (changed, diagnostics) = base.overlaid(&Arc::from("pod"), "terminationDrainDuration: 1s\nproxyMetadata:\n  A: b\n");
        assert!(!diagnostics.iter().any(Diagnostic::is_error));
        assert_eq!(changed.concurrency, Some(2));
        assert_eq!(changed.termination_drain_duration, Duration::from_secs(1));
        assert_eq!(changed.proxy_metadata["A"], "b");
    }
}
