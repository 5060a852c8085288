//! A worker by itself. One whose code panics ends the connection at hand, and serves everybody else.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_snapshot::cluster::Discovery;
use lateen_snapshot::compile::Compiler;
use lateen_snapshot::dns::cache::{HostKey, Load};
use lateen_telemetry::istio::{Config as IstioConfig, IstioMetrics, PeerMetadata};
use lateen_telemetry::stats::TagStyle;

use super::*;

const YAML: &str = r#"
static_resources:
  listeners:
  - name: l
    address: {socket_address: {address: 127.0.0.1, port_value: 0}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          http_filters: [{name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}]
          route_config: {name: r, virtual_hosts: [{name: v, domains: ["*"], routes: [{match: {prefix: /}, direct_response: {status: 204}}]}]}
"#;

fn started() -> (WorkerHandle, Arc<Registry>, SocketAddr) {
    started_with(snapshot(YAML))
}

fn snapshot(yaml: &str) -> Arc<Snapshot> {
    let mut compiler = Compiler::new();
    compiler.add_static(lateen_snapshot::bootstrap::parse(yaml, "test").unwrap().resources, Instant::now()).unwrap();
    compiler.snapshot()
}

fn started_with(snapshot: Arc<Snapshot>) -> (WorkerHandle, Arc<Registry>, SocketAddr) {
    let (registry, shards) = Registry::new(1, TagStyle::Envoy);
    let (_, istio) = IstioMetrics::new(IstioConfig::new(PeerMetadata::default()), 1);
    let worker = WorkerHandle::spawn(WorkerConfig {
        index: 0,
        pin: None,
        shard: shards.into_iter().next().unwrap(),
        registry: registry.clone(),
        istio: istio.into_iter().next().unwrap(),
        logs: Arc::default(),
        upstream_mark: None,
        node: Arc::default(),
        overload: Overload::new(Default::default()),
        epoch: Instant::now(),
        wishes: Default::default(),
        peers: Default::default(),
        drain: Default::default(),
    })
    .unwrap();
    worker.publish(snapshot);
    let deadline = Instant::now() + Duration::from_secs(5);
    while worker.bound().is_empty() {
        assert!(Instant::now() < deadline, "no listener");
        std::thread::sleep(Duration::from_millis(5));
    }
    let address = worker.bound()[0].1;
    (worker, registry, address)
}

/// The first bytes of what comes back; none when the connection just ends.
fn get(stream: &mut TcpStream, path: &str) -> String {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut bytes = [0; 512];
    let n = stream.read(&mut bytes).unwrap_or(0);
    String::from_utf8_lossy(&bytes[..n]).into_owned()
}

fn panics(registry: &Registry) -> String {
    format!("{:?}", registry.scrape(false, &|name| name == "server.panics").first().map(|s| &s.value))
}

#[test]
fn a_panic_ends_its_own_connection_and_is_counted() {
    let (worker, registry, address) = started();
    let mut other = TcpStream::connect(address).unwrap();
    assert!(get(&mut other, "/").starts_with("HTTP/1.1 204"));
    for _ in 0..3 {
        assert_eq!(get(&mut TcpStream::connect(address).unwrap(), "/injected-panic"), "");
    }
    assert!(get(&mut other, "/").starts_with("HTTP/1.1 204"));
    assert!(get(&mut TcpStream::connect(address).unwrap(), "/").starts_with("HTTP/1.1 204"));
    assert!(panics(&registry).contains('3'), "{}", panics(&registry));
    drop(other);
    let deadline = Instant::now() + Duration::from_secs(5);
    while worker.connections() > 0 {
        assert!(Instant::now() < deadline, "connections that panicked are still counted");
        std::thread::sleep(Duration::from_millis(5));
    }
    assert_eq!(*worker.died().borrow(), None);
}

#[test]
fn a_panic_in_a_stream_ends_it_and_no_other_of_its_connection() {
    let (_worker, registry, address) = started();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut sender: h2::client::SendRequest<bytes::Bytes> = sender.ready().await.unwrap();
        let mut call = |path: &str| {
            let request = ::http::Request::get(format!("http://a{path}")).body(()).unwrap();
            sender.send_request(request, true).unwrap().0
        };
        for _ in 0..3 {
            let (broken, fine) = (call("/injected-panic"), call("/"));
            assert!(broken.await.unwrap_err().is_reset());
            assert_eq!(fine.await.unwrap().status(), 204);
        }
    });
    assert!(panics(&registry).contains('3'), "{}", panics(&registry));
}

#[test]
fn a_worker_that_is_interrupted_serves_on_and_one_that_is_again_and_again_dies_and_says_why() {
    let (worker, registry, address) = started();
    let mut other = TcpStream::connect(address).unwrap();
    worker.break_down();
    assert!(get(&mut other, "/").starts_with("HTTP/1.1 204"));
    assert!(get(&mut TcpStream::connect(address).unwrap(), "/").starts_with("HTTP/1.1 204"));
    assert!(panics(&registry).contains('1') && worker.died().borrow().is_none(), "{}", panics(&registry));
    let mut died = worker.died();
    for _ in 0..10 {
        worker.break_down();
    }
    let deadline = Instant::now() + Duration::from_secs(5);
    while !died.has_changed().unwrap_or(true) {
        assert!(Instant::now() < deadline, "nobody heard");
        std::thread::sleep(Duration::from_millis(5));
    }
    let why = died.borrow_and_update().clone().unwrap();
    assert!(why.contains("handle.rs:") && why.contains("injected"), "{why}");
}

/// A forward proxy whose cache has this name, where a host has this address. The only request that may wait for a name does.
fn forward_proxy(port: u16, cache: &str, host: &str, address: &str) -> (Arc<Snapshot>, Load) {
    let cache = format!("dns_cache_config: {{name: {cache}, dns_cache_circuit_breaker: {{max_pending_requests: 1}}}}");
    let snapshot = snapshot(&format!(
        r#"
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: hcm
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: t
          http_filters:
          - {{name: f, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig, {cache}}}}}
          - {{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}
          route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, route: {{cluster: c}}}}]}}]}}
  clusters:
  - {{name: c, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: c, typed_config: {{"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}}}}}}}
"#
    ));
    let Discovery::DynamicForwardProxy(cache) = &snapshot.cluster_named("c").unwrap().1.config.discovery else { panic!("another kind") };
    drop(cache.load(HostKey::of(host, 80).unwrap()));
    cache.get(host).unwrap().resolved(&[address.parse().unwrap()]);
    let waits = cache.load(HostKey::of("b.test", 80).unwrap());
    (snapshot, waits)
}

/// Answers every connection with this text.
fn answering(at: (&str, u16), text: &'static str) -> u16 {
    let listener = std::net::TcpListener::bind(at).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 1024]);
            let _ = write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{text}", text.len());
        }
    });
    port
}

#[test]
fn a_name_is_remembered_as_long_as_its_cache_and_asks_for_no_place_there() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let upstream = answering(("127.0.0.2", 0), "first");
    answering(("127.0.0.3", upstream), "second");
    let name = format!("a.test:{upstream}");
    let (first, _waits) = forward_proxy(port, "first", &name, "127.0.0.2");
    let (worker, _, address) = started_with(first);
    let ask = || {
        let mut text = String::new();
        let Ok(mut stream) = TcpStream::connect(address) else { return text };
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        write!(stream, "GET / HTTP/1.1\r\nhost: {name}\r\nconnection: close\r\n\r\n").unwrap();
        let _ = stream.read_to_string(&mut text);
        text
    };
    for _ in 0..2 {
        let answer = ask();
        assert!(answer.ends_with("first"), "{answer}");
    }
    let (second, _waits_too) = forward_proxy(port, "second", &name, "127.0.0.3");
    worker.publish(Arc::new(Snapshot { version: 2, ..Snapshot::clone(&second) }));
    let deadline = Instant::now() + Duration::from_secs(5);
    while !ask().ends_with("second") {
        assert!(Instant::now() < deadline, "{}", ask());
        std::thread::sleep(Duration::from_millis(5));
    }
}
