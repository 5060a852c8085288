//! The gRPC library of others (PyPI `grpcio`) takes what is generated for it, and splits its calls as the rule says.
mod common;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use lateen_translate::{Generator, Live, Names, ProxyView, World, generate, type_url};
use serde_json::{Map, Value};

use common::{client, pod, resources};

fn rules(port: u16) -> String {
    format!(
        r"
apiVersion: v1
kind: Service
metadata: {{name: echo, namespace: books}}
spec: {{clusterIP: 10.1.1.1, selector: {{app: echo}}, ports: [{{name: grpc, port: 7070, targetPort: {port}}}]}}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {{name: echo, namespace: books}}
spec:
  hosts: [echo]
  http:
    - match: [{{headers: {{x-version: {{exact: two}}}}}}]
      corsPolicy: {{allowMethods: [GET]}}
      route: [{{destination: {{host: echo, subset: v2}}}}]
    - timeout: 10s
      route:
        - {{destination: {{host: echo, subset: v1}}, weight: 75}}
        - {{destination: {{host: echo, subset: v2}}, weight: 25}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {{name: echo, namespace: books}}
spec:
  host: echo
  trafficPolicy: {{connectionPool: {{http: {{http2MaxRequests: 100}}}}, outlierDetection: {{consecutive5xxErrors: 3}}}}
  subsets: [{{name: v1, labels: {{version: v1}}, trafficPolicy: {{loadBalancer: {{consistentHash: {{httpHeaderName: x-user}}}}}}}}, {{name: v2, labels: {{version: v2}}, trafficPolicy: {{loadBalancer: {{simple: LEAST_REQUEST}}}}}}]
"
    )
}

fn available() -> bool {
    let found = Command::new("python3").args(["-c", "import grpc"]).output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: python3 has no grpcio (pip install grpcio)");
    }
    found
}

/// What the library says after `calls` calls: counts by server, and resources it refused.
fn ask(calls: u32, header: &[&str]) -> Value {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let workloads =
        vec![pod("a", &[("app", "echo"), ("version", "v1")], "127.0.0.1"), pod("b", &[("app", "echo"), ("version", "v2")], "127.0.0.2")];
    let world = World::build(&resources(&rules(port)), &Live { workloads, ..Live::default() });
    let view = ProxyView { generator: Generator::Grpc, ..client() };
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let of_type = |url: &&str| -> (String, Value) {
        let all = generate(&world, &view, url, Names::All).into_iter();
        ((*url).to_owned(), Value::Object(all.map(|g| (g.name.clone(), hex(g.message.encode().value).into())).collect::<Map<_, _>>()))
    };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("resources.json");
    std::fs::write(&file, Value::Object(type_url::ALL.iter().map(of_type).collect()).to_string()).unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/grpc_peer.py");
    let output = Command::new("python3")
        .arg(script)
        .arg(&file)
        .args(["echo.books.svc.cluster.local:7070", &port.to_string(), &calls.to_string()])
        .args(header)
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn calls_split_by_weight_and_follow_headers() {
    if !available() {
        return;
    }
    let said = ask(1000, &[]);
    assert_eq!(said["refused"], Value::Array(Vec::new()), "{said}");
    let v2 = said["counts"]["v2"].as_u64().unwrap_or_default();
    // 250 expected of 1000; five standard deviations are 68.
    assert!((182..=318).contains(&v2), "{said}");
    let said = ask(20, &["x-version=two"]);
    assert_eq!(said["counts"], serde_json::json!({"v2": 20}), "{said}");
}
