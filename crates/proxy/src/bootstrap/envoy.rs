//! The bootstrap of a stock Envoy as sidecar under our control plane, as Istio's agent would render it.
use lateen_proto::json::Codec;
use serde_json::{Value, json};

use super::sidecar::{node, socket, xds_cluster};
use super::{ControlPlane, Environment};

/// Which statistics Envoy keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StatsChoice {
    /// Istio's default selection.
    #[default]
    Istio,
    All,
}

/// What the bootstrap depends on.
#[derive(Clone, Debug)]
pub struct EnvoyBootstrap {
    pub control_plane: ControlPlane,
    /// The socket of the local secret service.
    pub secrets: String,
    pub admin_port: u16,
    /// `/stats/prometheus` for scrapers; Istio's is 15090.
    pub stats_port: u16,
    /// `/healthz/ready`; Istio's is 15021.
    pub health_port: u16,
    pub stats: StatsChoice,
    /// A file that holds the token for the control plane's `authorization` header; Envoy reads it once.
    pub authorization: Option<String>,
}

impl EnvoyBootstrap {
    /// The bootstrap as JSON, which Envoy reads as it reads YAML.
    pub fn render(&self, environment: &Environment) -> Value {
        let api_type = if environment.delta { "DELTA_GRPC" } else { "GRPC" };
        let mut service = json!({"envoy_grpc": {"cluster_name": "xds-grpc"}});
        if let (Some(token), Some(fields)) = (&self.authorization, service.as_object_mut()) {
            fields.insert("initial_metadata".to_owned(), json!([{"key": "authorization", "value": format!("Bearer {token}")}]));
        }
        // The node as its own message, so that both data planes name themselves alike; Envoy fills in its own extensions.
        let mut node = node(environment);
        node.extensions.clear();
        node.user_agent_name.clear();
        node.user_agent_version_type = None;
        node.client_features.clear();
        let mut bootstrap = json!({
            "node": Codec::new().write(&node).unwrap_or_default(),
            "admin": {"access_log": [], "address": socket("127.0.0.1", self.admin_port)},
            "layered_runtime": {"layers": [
                {"name": "deprecation", "static_layer": {"re2.max_program_size.error_level": 32768}},
                {"name": "admin", "admin_layer": {}},
            ]},
            "dynamic_resources": {
                "ads_config": {"api_type": api_type, "transport_api_version": "V3", "set_node_on_first_message_only": true, "grpc_services": [service]},
                "cds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
                "lds_config": {"ads": {}, "initial_fetch_timeout": "0s", "resource_api_version": "V3"},
            },
            "static_resources": {
                "clusters": [xds_cluster(&self.control_plane), self.secret_cluster(), self.admin_cluster()],
                "listeners": [
                    self.relay(self.stats_port, "prometheus", "/stats/prometheus", "/stats/prometheus"),
                    self.relay(self.health_port, "health", "/healthz/ready", "/ready"),
                ],
            },
        });
        if let (StatsChoice::Istio, Some(fields)) = (self.stats, bootstrap.as_object_mut()) {
            fields.insert("stats_config".to_owned(), stats_config());
        }
        bootstrap
    }

    fn secret_cluster(&self) -> Value {
        json!({
            "name": "sds-grpc",
            "type": "STATIC",
            "connect_timeout": "1s",
            "typed_extension_protocol_options": {
                "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                    "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
                    "explicit_http_config": {"http2_protocol_options": {}},
                },
            },
            "load_assignment": {"cluster_name": "sds-grpc", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": self.secrets}}}}]}]},
        })
    }

    fn admin_cluster(&self) -> Value {
        json!({
            "name": "prometheus_stats",
            "type": "STATIC",
            "connect_timeout": "0.25s",
            "load_assignment": {"cluster_name": "prometheus_stats", "endpoints": [{"lb_endpoints": [{"endpoint": {"address": socket("127.0.0.1", self.admin_port)}}]}]},
        })
    }

    /// A listener that shows one admin page to the pod's network.
    fn relay(&self, port: u16, name: &str, path: &str, page: &str) -> Value {
        json!({
            "name": name,
            "address": socket("0.0.0.0", port),
            "filter_chains": [{"filters": [{
                "name": "envoy.filters.network.http_connection_manager",
                "typed_config": {
                    "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                    "stat_prefix": name,
                    "codec_type": "AUTO",
                    "route_config": {"name": name, "virtual_hosts": [{"name": "backend", "domains": ["*"], "routes": [
                        {"match": {"path": path}, "route": {"cluster": "prometheus_stats", "prefix_rewrite": page}},
                    ]}]},
                    "http_filters": [{
                        "name": "envoy.filters.http.router",
                        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
                    }],
                },
            }]}],
        })
    }
}

/// Istio's `proxyStatsMatcher` as it is without annotations.
fn stats_config() -> Value {
    let prefixes = ["reporter=", "cluster_manager", "listener_manager", "server", "cluster.xds-grpc", "wasm", "component", "istio"];
    let patterns: Vec<Value> = prefixes
        .iter()
        .map(|p| json!({"prefix": p}))
        .chain([json!({"safe_regex": {"regex": r"http\..*\.rbac\..*"}}), json!({"suffix": "downstream_cx_active"})])
        .collect();
    json!({"use_all_default_tags": false, "stats_matcher": {"inclusion_list": {"patterns": patterns}}})
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::Role;

    #[test]
    fn what_is_written_for_envoy_is_a_bootstrap_that_we_accept_as_well() {
        let variables = [("POD_NAME", "a"), ("POD_NAMESPACE", "shop"), ("INSTANCE_IP", "10.1.2.3")];
        let environment = Environment::read(Role::Sidecar, variables.map(|(k, v)| (k.to_owned(), v.to_owned()))).unwrap();
        let bootstrap = EnvoyBootstrap {
            control_plane: ControlPlane::Plaintext { host: "istiod.istio-system.svc".into(), port: 15010 },
            secrets: "/run/sds.sock".into(),
            admin_port: 15000,
            stats_port: 15090,
            health_port: 15021,
            stats: StatsChoice::Istio,
            authorization: None,
        };
        let text = bootstrap.render(&environment).to_string();
        let read = lateen_snapshot::bootstrap::parse(&text, "envoy.json").unwrap();
        assert_eq!(read.node.id, "sidecar~10.1.2.3~a.shop~shop.svc.cluster.local");
        let mut compiler = lateen_snapshot::compile::Compiler::new();
        compiler.add_static(read.resources, std::time::Instant::now()).unwrap();
        assert_eq!(compiler.snapshot().listeners.len(), 2);
    }
}
