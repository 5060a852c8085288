//! The bootstrap of our own sidecar or gateway: no file, no other resources than the way to the control plane.
use lateen_proto::envoy::config::bootstrap::v3::Bootstrap as Proto;
use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::json::Codec;
use lateen_snapshot::bootstrap::{self, Bootstrap};
use lateen_snapshot::compile::Invalid;
use serde_json::{Value, json};

use super::Environment;

/// How the control plane is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlPlane {
    /// Without TLS: same machine only.
    Plaintext { host: String, port: u16 },
    /// With TLS, its certificate checked against these roots (a file) and name.
    Tls { host: String, port: u16, roots: String, server_name: String },
    /// A local agent's socket.
    Unix { path: String },
}

/// What this proxy can do, told to the control plane.
const EXTENSIONS: [(&str, &str); 22] = [
    ("envoy.filters.network.http_connection_manager", "envoy.filters.network"),
    ("envoy.filters.network.tcp_proxy", "envoy.filters.network"),
    ("envoy.filters.network.rbac", "envoy.filters.network"),
    ("envoy.filters.network.sni_cluster", "envoy.filters.network"),
    ("envoy.filters.network.direct_response", "envoy.filters.network"),
    ("envoy.filters.network.connection_limit", "envoy.filters.network"),
    ("istio.metadata_exchange", "envoy.filters.network"),
    ("envoy.filters.http.router", "envoy.filters.http"),
    ("envoy.filters.http.fault", "envoy.filters.http"),
    ("envoy.filters.http.cors", "envoy.filters.http"),
    ("envoy.filters.http.grpc_stats", "envoy.filters.http"),
    ("envoy.filters.http.rbac", "envoy.filters.http"),
    ("envoy.filters.http.peer_metadata", "envoy.filters.http"),
    ("istio.alpn", "envoy.filters.http"),
    ("istio.stats", "envoy.filters.http"),
    ("envoy.filters.listener.tls_inspector", "envoy.filters.listener"),
    ("envoy.filters.listener.http_inspector", "envoy.filters.listener"),
    ("envoy.filters.listener.original_dst", "envoy.filters.listener"),
    ("envoy.filters.listener.proxy_protocol", "envoy.filters.listener"),
    ("envoy.transport_sockets.tls", "envoy.transport_sockets.downstream"),
    ("envoy.transport_sockets.tls", "envoy.transport_sockets.upstream"),
    ("envoy.access_loggers.file", "envoy.access_loggers"),
];

/// The node: `sidecar~10.1.2.3~reviews-v1-abc.shop~shop.svc.cluster.local`.
pub fn node(environment: &Environment) -> core::Node {
    let Environment { role, ip, pod, namespace, domain, .. } = environment;
    let app = environment.metadata.get("LABELS").and_then(|l| l.get("app")).and_then(Value::as_str).unwrap_or("istio-proxy");
    core::Node {
        id: format!("{}~{ip}~{pod}.{namespace}~{namespace}.svc.{domain}", role.name()),
        cluster: format!("{app}.{namespace}"),
        metadata: Some(to_struct(&environment.metadata)),
        user_agent_name: "lateen".to_owned(),
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(env!("CARGO_PKG_VERSION").to_owned())),
        extensions: EXTENSIONS
            .iter()
            .map(|(name, category)| core::Extension {
                name: (*name).to_owned(),
                category: (*category).to_owned(),
                ..core::Extension::default()
            })
            .collect(),
        client_features: vec!["envoy.lb.does_not_support_overprovisioning".to_owned()],
        ..core::Node::default()
    }
}

fn to_struct(fields: &serde_json::Map<String, Value>) -> prost_types::Struct {
    prost_types::Struct { fields: fields.iter().map(|(k, v)| (k.clone(), to_value(v))).collect() }
}

fn to_value(value: &Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(b) => Kind::BoolValue(*b),
        Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        Value::String(s) => Kind::StringValue(s.clone()),
        Value::Array(items) => Kind::ListValue(prost_types::ListValue { values: items.iter().map(to_value).collect() }),
        Value::Object(fields) => Kind::StructValue(to_struct(fields)),
    };
    prost_types::Value { kind: Some(kind) }
}

/// The cluster through which the control plane is reached.
pub(super) fn xds_cluster(control_plane: &ControlPlane) -> Value {
    let endpoint =
        |address: Value| json!({"cluster_name": "xds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]});
    let (kind, assignment, transport) = match control_plane {
        ControlPlane::Unix { path } => ("STATIC", endpoint(json!({"pipe": {"path": path}})), None),
        ControlPlane::Plaintext { host, port } => (discovery_type(host), endpoint(socket(host, *port)), None),
        ControlPlane::Tls { host, port, roots, server_name } => {
            let tls = json!({
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
                    "sni": server_name,
                    "common_tls_context": {
                        "alpn_protocols": ["h2"],
                        "validation_context": {
                            "trusted_ca": {"filename": roots},
                            "match_typed_subject_alt_names": [{"san_type": "DNS", "matcher": {"exact": server_name}}],
                        },
                    },
                },
            });
            (discovery_type(host), endpoint(socket(host, *port)), Some(tls))
        }
    };
    let mut cluster = json!({
        "name": "xds-grpc",
        // Its figures have the label `cluster_name` by the last character, as all clusters' of Istio have.
        "alt_stat_name": "xds-grpc;",
        "type": kind,
        "connect_timeout": "1s",
        "dns_refresh_rate": "5s",
        "dns_failure_refresh_rate": {"base_interval": "1s", "max_interval": "5s"},
        "dns_lookup_family": "ALL",
        "load_assignment": assignment,
        "upstream_connection_options": {"tcp_keepalive": {"keepalive_time": 300}},
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            },
        },
        "circuit_breakers": {"thresholds": [
            {"max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000},
            {"priority": "HIGH", "max_connections": 100_000, "max_pending_requests": 100_000, "max_requests": 100_000},
        ]},
    });
    if let (Some(tls), Some(fields)) = (transport, cluster.as_object_mut()) {
        fields.insert("transport_socket".to_owned(), tls);
    }
    cluster
}

fn discovery_type(host: &str) -> &'static str {
    if host.parse::<std::net::IpAddr>().is_ok() { "STATIC" } else { "STRICT_DNS" }
}

pub(super) fn socket(host: &str, port: u16) -> Value {
    json!({"socket_address": {"address": host, "port_value": port}})
}

/// The bootstrap for running as Istio's agent and proxy in one process.
///
/// # Errors
/// When the way to the control plane cannot be used, for instance because the file of roots is missing.
pub fn agent_bootstrap(environment: &Environment, control_plane: &ControlPlane) -> Result<Bootstrap, Invalid> {
    let api_type = if environment.delta { "DELTA_GRPC" } else { "GRPC" };
    let json = json!({
        "admin": {"address": socket("127.0.0.1", environment.admin_port)},
        "static_resources": {"clusters": [xds_cluster(control_plane)]},
        "dynamic_resources": {
            "ads_config": {"api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true,
                           "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]},
            "cds_config": {"ads": {}, "resource_api_version": "V3"},
            "lds_config": {"ads": {}, "resource_api_version": "V3"},
        },
    });
    let mut proto: Proto = Codec::new().read(&(&json).into()).map_err(|e| Invalid { path: String::new(), reason: e.to_string() })?;
    proto.node = Some(node(environment));
    bootstrap::judge(proto)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Role;

    fn environment() -> Environment {
        let variables =
            [("POD_NAME", "a"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "10.1.2.3"), ("ISTIO_METAJSON_LABELS", r#"{"app":"x"}"#)];
        Environment::read(Role::Sidecar, variables.map(|(k, v)| (k.to_owned(), v.to_owned()))).unwrap()
    }

    #[test]
    fn the_node_is_named_as_istio_expects() {
        let node = node(&environment());
        assert_eq!((node.id.as_str(), node.cluster.as_str()), ("sidecar~10.1.2.3~a.shop~shop.svc.cluster.local", "x.shop"));
        assert!(node.extensions.iter().any(|e| e.name == "istio.stats"));
    }

    #[test]
    fn a_sidecar_starts_from_its_environment_alone() {
        let control_plane = ControlPlane::Plaintext { host: "127.0.0.1".into(), port: 15010 };
        let bootstrap = agent_bootstrap(&environment(), &control_plane).unwrap();
        assert_eq!(bootstrap.ads.unwrap().cluster, "xds-grpc");
        assert_eq!(bootstrap.resources.len(), 1);
        assert!(bootstrap.listeners.is_some() && bootstrap.clusters.is_some() && bootstrap.admin.is_some());
    }
}
