//! What the tests share: worlds from YAML, views, and resources by name.
#![allow(dead_code, unreachable_pub)] // Each test binary uses its own part.
use std::net::IpAddr;

use lateen_model::{Limits, ResourceSet, parse};
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::core::v3::{Extension, Node};
use lateen_proto::envoy::config::endpoint::v3::ClusterLoadAssignment;
use lateen_proto::envoy::config::listener::v3::Listener;
use lateen_proto::envoy::config::route::v3::{Route, RouteAction, RouteConfiguration, VirtualHost, route::Action};
use lateen_translate::{Generated, Live, Message, Names, ProxyView, Workload, World, generate, type_url};
use prost_types::value::Kind;
use prost_types::{Struct, Value};

/// Three services of one namespace, and their pods.
pub const BOOKS: &str = r"
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: books}
spec:
  clusterIP: 10.96.0.10
  selector: {app: reviews}
  ports: [{name: http, port: 9080, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: ratings, namespace: books}
spec:
  clusterIP: 10.96.0.11
  selector: {app: ratings}
  ports: [{name: grpc, port: 7070}, {name: tcp-admin, port: 7071}]
---
apiVersion: v1
kind: Service
metadata: {name: plain, namespace: books}
spec:
  clusterIP: 10.96.0.12
  selector: {app: plain}
  ports: [{port: 5000}]
";

pub fn resources(yaml: &str) -> ResourceSet {
    let parsed = parse("test.yaml", yaml.as_bytes(), &Limits::default());
    let errors: Vec<String> = parsed.diagnostics.iter().filter(|d| d.is_error()).map(ToString::to_string).collect();
    assert!(errors.is_empty(), "{errors:#?}");
    parsed.resources.into_iter().collect()
}

pub fn pod(name: &str, labels: &[(&str, &str)], ip: &str) -> Workload {
    Workload {
        name: name.to_owned(),
        namespace: "books".to_owned(),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        service_account: labels.first().map_or("default", |(_, app)| app).to_owned(),
        addresses: vec![ip.parse().unwrap()],
        ready: true,
        mutual_tls: true,
        named_ports: Vec::new(),
        workload: name.to_owned(),
        node_name: String::new(),
        locality: String::new(),
        network: String::new(),
    }
}

pub fn live() -> Live {
    Live {
        workloads: vec![
            pod("client", &[("app", "client")], "10.0.0.1"),
            pod("reviews-v1", &[("app", "reviews"), ("version", "v1")], "10.0.0.2"),
            pod("reviews-v2", &[("app", "reviews"), ("version", "v2")], "10.0.0.3"),
            pod("ratings", &[("app", "ratings")], "10.0.0.4"),
            pod("plain", &[("app", "plain")], "10.0.0.5"),
        ],
        ..Live::default()
    }
}

/// The world of `BOOKS` and whatever is added to it.
pub fn books(more: &str) -> World {
    World::build(&resources(&format!("{BOOKS}\n---\n{more}")), &live())
}

fn text(value: &str) -> Value {
    Value { kind: Some(Kind::StringValue(value.to_owned())) }
}

pub fn node(kind: &str, name: &str, ip: &str, labels: &[(&str, &str)], lateen: bool) -> Node {
    let labels = Struct { fields: labels.iter().map(|(k, v)| ((*k).to_owned(), text(v))).collect() };
    let stock = ["envoy.filters.http.router"];
    let ours = ["envoy.filters.http.router", "istio.alpn", "istio.stats", "istio.metadata_exchange"];
    let names: &[&str] = if lateen { &ours } else { &stock };
    Node {
        id: format!("{kind}~{ip}~{name}.books~books.svc.cluster.local"),
        metadata: Some(Struct { fields: [("LABELS".to_owned(), Value { kind: Some(Kind::StructValue(labels)) })].into() }),
        extensions: names.iter().map(|name| Extension { name: (*name).to_owned(), ..Default::default() }).collect(),
        ..Default::default()
    }
}

/// A sidecar of our own kind beside the pod `client`.
pub fn client() -> ProxyView {
    ProxyView::from_node(&node("sidecar", "client", "10.0.0.1", &[("app", "client")], true)).unwrap()
}

/// The same, when it is a stock Envoy.
pub fn stock(name: &str, ip: &str, labels: &[(&str, &str)]) -> ProxyView {
    ProxyView::from_node(&node("sidecar", name, ip, labels, false)).unwrap()
}

pub fn gateway() -> ProxyView {
    let mut view = ProxyView::from_node(&node("router", "gateway", "10.0.0.9", &[("istio", "ingressgateway")], false)).unwrap();
    view.addresses = vec!["10.0.0.9".parse::<IpAddr>().unwrap()];
    view
}

pub fn all(world: &World, view: &ProxyView, url: &str) -> Vec<Generated> {
    generate(world, view, url, Names::All)
}

pub fn cluster(world: &World, view: &ProxyView, name: &str) -> Cluster {
    match all(world, view, type_url::CLUSTER).into_iter().find(|generated| generated.name == name).map(|generated| generated.message) {
        Some(Message::Cluster(cluster)) => *cluster,
        other => panic!("no cluster {name}: {other:?}"),
    }
}

pub fn listener(world: &World, view: &ProxyView, name: &str) -> Listener {
    match all(world, view, type_url::LISTENER).into_iter().find(|generated| generated.name == name).map(|generated| generated.message) {
        Some(Message::Listener(listener)) => *listener,
        other => panic!("no listener {name}: {other:?}"),
    }
}

pub fn listener_names(world: &World, view: &ProxyView) -> Vec<String> {
    all(world, view, type_url::LISTENER).into_iter().map(|generated| generated.name).collect()
}

pub fn endpoints(world: &World, view: &ProxyView, name: &str) -> ClusterLoadAssignment {
    let names = [name.to_owned()];
    match generate(world, view, type_url::ENDPOINTS, Names::Only(&names)).pop().map(|generated| generated.message) {
        Some(Message::Endpoints(assignment)) => *assignment,
        other => panic!("no endpoints {name}: {other:?}"),
    }
}

pub fn addresses(assignment: &ClusterLoadAssignment) -> Vec<String> {
    use lateen_proto::envoy::config::core::v3::address::Address;
    use lateen_proto::envoy::config::core::v3::socket_address::PortSpecifier;
    use lateen_proto::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
    let all = assignment.endpoints.iter().flat_map(|locality| &locality.lb_endpoints);
    all.map(|endpoint| {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
        match endpoint.address.as_ref().and_then(|address| address.address.as_ref()) {
            Some(Address::SocketAddress(socket)) => match socket.port_specifier {
                Some(PortSpecifier::PortValue(port)) => format!("{}:{port}", socket.address),
                _ => panic!("{socket:?}"),
            },
            other => panic!("{other:?}"),
        }
    })
    .collect()
}

pub fn routes(world: &World, view: &ProxyView, name: &str) -> RouteConfiguration {
    let names = [name.to_owned()];
    match generate(world, view, type_url::ROUTES, Names::Only(&names)).pop().map(|generated| generated.message) {
        Some(Message::Routes(config)) => *config,
        other => panic!("no routes {name}: {other:?}"),
    }
}

pub fn virtual_host(config: &RouteConfiguration, name: &str) -> VirtualHost {
    let known: Vec<&String> = config.virtual_hosts.iter().map(|vhost| &vhost.name).collect();
    config.virtual_hosts.iter().find(|vhost| vhost.name == name).unwrap_or_else(|| panic!("no {name} in {known:?}")).clone()
}

/// The routes of the service `reviews` under one VirtualService for it.
pub fn reviews_routes(http: &str) -> Vec<Route> {
    let indented: String = http.lines().map(|line| format!("  {line}\n")).collect();
    let rule = format!(
        "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: r, namespace: books}}\nspec:\n  hosts: [reviews]\n  http:\n{indented}"
    );
    let world = books(&rule);
    virtual_host(&routes(&world, &client(), "9080"), "reviews.books.svc.cluster.local:9080").routes
}

pub fn forward(route: &Route) -> RouteAction {
    match &route.action {
        Some(Action::Route(action)) => (**action).clone(),
        other => panic!("does not forward: {other:?}"),
    }
}
