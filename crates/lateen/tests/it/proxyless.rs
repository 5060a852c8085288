//! A gRPC client without a sidecar: the gRPC library itself speaks xDS with our control plane (`xds:///`).
use std::fs;

use anyhow::{Context as _, ensure};
use serde_json::Value;

use crate::exercises::exercises;
use crate::mesh::{Mesh, settles};
use crate::world::{routes, split, to};

exercises!("proxyless": grpc_finds_endpoints_and_follows_a_split);

const CLIENT: &str = r#"
import collections, json, sys, grpc
target, count = sys.argv[1], int(sys.argv[2])
request = b"\x0a\x05hello"

def version(reply):
    at = 0
    while at + 2 <= len(reply):
        tag, length = reply[at], reply[at + 1]
        if tag == 0x1a:
            return reply[at + 2:at + 2 + length].decode()
        at += 2 + length
    return "none"

with grpc.insecure_channel(target) as channel:
    call = channel.unary_unary("/lateen.app.Echo/Call", request_serializer=lambda b: b, response_deserializer=lambda b: b)
    seen = collections.Counter()
    for _ in range(count):
        try:
            seen[version(call(request, timeout=10))] += 1
        except grpc.RpcError as error:
            seen[f"{error.code()}: {error.details()}"] += 1
print(json.dumps(seen))
"#;

fn grpc_finds_endpoints_and_follows_a_split(mesh: &Mesh) {
    let Ok(python) = std::env::var("LATEEN_TEST_PYTHON") else {
        return eprintln!("skipped: LATEEN_TEST_PYTHON is not set (`cargo xtask test` sets it), so there is no gRPC library to try");
    };
    let address = mesh.pod_address("stranger", false);
    let bootstrap = serde_json::json!({
        "xds_servers": [{
            "server_uri": "istiod.istio-system.svc:15010",
            "channel_creds": [{"type": "insecure"}],
            "server_features": ["xds_v3"],
        }],
        "node": {
            "id": format!("sidecar~{address}~stranger.default~default.svc.cluster.local"),
            "metadata": {"GENERATOR": "grpc", "NAMESPACE": "default", "CLUSTER_ID": "Kubernetes"},
            "locality": {},
        },
    });
    let (client, settings) = (mesh.folder().join("client.py"), mesh.folder().join("bootstrap.json"));
    fs::write(&client, CLIENT).expect("a file");
    fs::write(&settings, bootstrap.to_string()).expect("a file");
    let call = |count: u32| -> anyhow::Result<Value> {
        let words = format!(
            "GRPC_XDS_BOOTSTRAP={} exec {python} {} xds:///recommendation.default.svc.cluster.local:9090 {count}",
            settings.display(),
            client.display()
        );
        let output = mesh.from("stranger").run("sh", &["-c", &words]);
        serde_json::from_str(&output.out).with_context(|| format!("{output:?}"))
    };
    settles("endpoints of both versions", || {
        let seen = call(40)?;
        check!(seen["v1"].as_u64() > Some(0) && seen["v2"].as_u64() > Some(0) && seen.as_object().is_some_and(|s| s.len() == 2), "{seen}")
    });
    mesh.apply(&split(80, 20));
    settles("the split", || {
        let seen = call(300)?;
        let (v1, v2) = (seen["v1"].as_u64().unwrap_or(0), seen["v2"].as_u64().unwrap_or(0));
        ensure!(v1 + v2 == 300, "{seen}");
        crate::report::Share { hits: v2, all: 300 }.ensure_near(0.2)
    });
    mesh.apply(&routes(&format!("{{{}}}", to("v2"))));
    settles("all to v2", || {
        let seen = call(40)?;
        check!(seen == serde_json::json!({"v2": 40}), "{seen}")
    });
}
