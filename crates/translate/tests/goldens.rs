//! Whole proxies, as reviewed: everything that a small mesh generates, in Envoy's JSON.
//!
//! A difference here is a difference on the wire of every mesh. Read it before accepting it.
mod common;

use lateen_proto::json::Codec;
use lateen_translate::{Generator, Live, Message, ProxyView, World, type_url};
use serde_json::{Map, Value};

use common::{all, client, gateway, pod, resources, stock};

const MESH: &str = r"
apiVersion: v1
kind: Service
metadata: {name: shop, namespace: books}
spec:
  clusterIP: 10.96.0.10
  selector: {app: shop}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: shop, namespace: books}
spec:
  hosts: [shop, shop.example.com]
  gateways: [mesh, entry]
  http:
    - name: canary
      match: [{headers: {x-canary: {exact: 'true'}}}]
      route: [{destination: {host: shop, subset: v2}}]
    - route:
        - {destination: {host: shop, subset: v1}, weight: 90}
        - {destination: {host: shop, subset: v2}, weight: 10}
      timeout: 2s
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: shop, namespace: books}
spec:
  host: shop
  trafficPolicy:
    outlierDetection: {consecutive5xxErrors: 3}
  subsets:
    - {name: v1, labels: {version: v1}}
    - {name: v2, labels: {version: v2}}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: entry, namespace: books}
spec:
  selector: {istio: ingressgateway}
  servers:
    - port: {number: 80, name: http, protocol: HTTP}
      hosts: [shop.example.com]
    - port: {number: 443, name: https, protocol: HTTPS}
      hosts: [shop.example.com]
      tls: {mode: SIMPLE, credentialName: shop-cert}
";

fn world() -> World {
    let workloads = vec![
        pod("client", &[("app", "client")], "10.0.0.1"),
        pod("shop-v1", &[("app", "shop"), ("version", "v1")], "10.0.0.2"),
        pod("shop-v2", &[("app", "shop"), ("version", "v2")], "10.0.0.3"),
    ];
    World::build(&resources(MESH), &Live { workloads, ..Live::default() })
}

/// Objects with their keys in order, as maps have none on the wire.
fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().map(|(key, value)| (key, sorted(value))).collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect::<Map<_, _>>())
        }
        Value::Array(list) => Value::Array(list.into_iter().map(sorted).collect()),
        other => other,
    }
}

fn render(view: &ProxyView, types: &[&str]) -> String {
    let (codec, world) = (Codec::new(), world());
    let mut out = String::new();
    for generated in types.iter().flat_map(|url| all(&world, view, url)) {
        let json = match &generated.message {
            Message::Cluster(message) => codec.write(&**message),
            Message::Endpoints(message) => codec.write(&**message),
            Message::Listener(message) => codec.write(&**message),
            Message::Routes(message) => codec.write(&**message),
            Message::Secret(message) => codec.write(&**message),
        };
        let from: Vec<String> =
            generated.provenance.iter().map(|p| format!("{} {}/{} {}", p.kind, p.namespace, p.name, p.place())).collect();
        out += &format!("=== {} <- {}\n{:#}\n", generated.name, from.join(", "), sorted(json.unwrap()));
    }
    out
}

#[test]
fn a_calling_sidecar_of_our_own() {
    insta::assert_snapshot!("client_clusters", render(&client(), &[type_url::CLUSTER, type_url::ENDPOINTS]));
    insta::assert_snapshot!("client_listeners", render(&client(), &[type_url::LISTENER]));
    insta::assert_snapshot!("client_routes", render(&client(), &[type_url::ROUTES]));
}

#[test]
fn a_serving_stock_envoy() {
    let view = stock("shop-v1", "10.0.0.2", &[("app", "shop"), ("version", "v1")]);
    let inbound = |url| -> String {
        let all = render(&view, &[url]);
        let wanted = all
            .split("=== ")
            .filter(|part| part.starts_with("inbound|") || part.starts_with("virtualInbound") || part.starts_with("Inbound"));
        wanted.collect()
    };
    insta::assert_snapshot!("stock_inbound_clusters", inbound(type_url::CLUSTER));
    insta::assert_snapshot!("stock_inbound_listener", inbound(type_url::LISTENER));
}

#[test]
fn a_gateway() {
    insta::assert_snapshot!("gateway_listeners", render(&gateway(), &[type_url::LISTENER]));
    insta::assert_snapshot!("gateway_routes", render(&gateway(), &[type_url::ROUTES]));
}

#[test]
fn a_grpc_library() {
    let view = ProxyView { generator: Generator::Grpc, ..client() };
    insta::assert_snapshot!("grpc", render(&view, &[type_url::LISTENER, type_url::ROUTES, type_url::CLUSTER]));
}
