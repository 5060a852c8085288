//! Names of clusters and of requests, resolved by a whole process that asks a DNS server of the test's own.
use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_proxy::main_thread::Process;

use crate::support::*;
use crate::tls::Mesh;

/// What the server says to each name: addresses and their time to live. Other names do not exist; with `None` it fails.
type Zone = HashMap<&'static str, Option<(Vec<Ipv4Addr>, u32)>>;

struct Dns {
    port: u16,
    zone: Arc<Mutex<Zone>>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Dns {
    fn start(names: &[(&'static str, &[u8], u32)]) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let (zone, asked) = (Arc::new(Mutex::new(Zone::new())), Arc::new(Mutex::new(Vec::new())));
        let dns = Self { port: socket.local_addr().unwrap().port(), zone: Arc::clone(&zone), asked: Arc::clone(&asked) };
        for (name, hosts, ttl) in names {
            dns.set(name, hosts, *ttl);
        }
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&answer(&buffer[..length], &zone, &asked), from);
            }
        });
        dns
    }

    /// The addresses 127.0.0.x of a name.
    fn set(&self, name: &'static str, hosts: &[u8], ttl: u32) {
        let addresses = hosts.iter().map(|h| Ipv4Addr::new(127, 0, 0, *h)).collect();
        self.zone.lock().unwrap().insert(name, Some((addresses, ttl)));
    }

    fn fail(&self, name: &'static str) {
        self.zone.lock().unwrap().insert(name, None);
    }

    fn asked(&self, name: &str) -> usize {
        self.asked.lock().unwrap().iter().filter(|n| *n == name).count()
    }

    /// As resolver configuration.
    fn resolver(&self) -> String {
        format!(
            "typed_dns_resolver_config: {{name: cares, typed_config: {{'@type': type.googleapis.com/envoy.extensions.network.dns_resolver.cares.v3.CaresDnsResolverConfig, \
             resolvers: [{{socket_address: {{address: 127.0.0.1, port_value: {}}}}}], dns_resolver_options: {{no_default_search_domain: true}}}}}}",
            self.port
        )
    }
}

fn answer(question: &[u8], zone: &Mutex<Zone>, asked: &Mutex<Vec<String>>) -> Vec<u8> {
    let (mut at, mut labels) = (12, Vec::new());
    while question[at] != 0 {
        let length = usize::from(question[at]);
        labels.push(String::from_utf8_lossy(&question[at + 1..=at + length]).into_owned());
        at += 1 + length;
    }
    let name = labels.join(".");
    asked.lock().unwrap().push(name.clone());
    let mut bytes = question[..at + 5].to_vec();
    bytes[2] = 0x81;
    bytes[6..12].copy_from_slice(&[0; 6]);
    let (code, addresses, ttl) = match zone.lock().unwrap().get(name.as_str()) {
        None => (3, Vec::new(), 0),
        Some(None) => (2, Vec::new(), 0),
        Some(Some((addresses, ttl))) => (0, addresses.clone(), *ttl),
    };
    bytes[3] = 0x80 | code;
    if question[at + 2] == 1 {
        bytes[7] = addresses.len() as u8;
        for address in addresses {
            bytes.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1]);
            bytes.extend_from_slice(&ttl.to_be_bytes());
            bytes.extend_from_slice(&[0, 4]);
            bytes.extend_from_slice(&address.octets());
        }
    }
    bytes
}

/// A whole process with one listener.
struct Whole {
    process: Process,
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Whole {
    fn start(yaml: &str) -> Self {
        let port = free_port();
        let yaml = yaml.replace("port_value: 0", &format!("port_value: {port}"));
        let (runtime, process) = whole_process(&yaml, |options| options.drain_time = WAIT);
        assert!(runtime.block_on(process.ready(WAIT)));
        Self { process, address: ([127, 0, 0, 1], port).into(), _runtime: runtime }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }

    fn get(&self, host: &str, path: &str, headers: &str) -> Answer {
        let mut stream = self.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n{headers}\r\n").as_bytes()).unwrap();
        Answer::read(&mut stream)
    }

    fn hosts(&self, cluster: &str) -> Vec<String> {
        let snapshot = self.process.main.snapshot();
        let hosts = snapshot.cluster_named(cluster).map(|(_, c)| c.hosts.hosts().map(|h| h.address.to_string()).collect());
        hosts.unwrap_or_default()
    }

    fn stat(&self, name: &str) -> u64 {
        stat(&self.process.main.registry, name)
    }
}

fn by_name(dns: &Dns, name: &str, fields: &str) -> String {
    format!(
        "- name: c\n  type: STRICT_DNS\n  connect_timeout: 1s\n  {}\n{}  load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: {name}, port_value: 9}}}}}}}}]}}]}}",
        dns.resolver(),
        fields.lines().map(|l| format!("  {l}\n")).collect::<String>(),
    )
}

#[test]
fn a_name_is_asked_for_again_when_its_time_to_live_is_over_and_failures_change_nothing() {
    let dns = Dns::start(&[("shop.test", &[1, 2], 1)]);
    let fields =
        "dns_refresh_rate: 3600s\nrespect_dns_ttl: true\ndns_lookup_family: V4_ONLY\ndns_failure_refresh_rate: {base_interval: 0.02s}";
    let mut config = Config::to(&[]);
    config.clusters = vec![by_name(&dns, "shop.test", fields)];
    let whole = Whole::start(&config.yaml());
    assert_eq!(whole.hosts("c"), ["127.0.0.1:9", "127.0.0.2:9"]);
    dns.set("shop.test", &[3], 1);
    eventually(|| whole.hosts("c") == ["127.0.0.3:9"]);
    dns.fail("shop.test");
    let before = dns.asked("shop.test");
    // It is asked for again soon, as failures have a rate of their own.
    eventually(|| dns.asked("shop.test") > before + 3);
    assert_eq!(whole.hosts("c"), ["127.0.0.3:9"]);
    dns.set("shop.test", &[], 1);
    eventually(|| whole.hosts("c").is_empty());
}

#[test]
fn a_name_without_an_answer_holds_no_listener_up() {
    let dns = Dns::start(&[]);
    dns.fail("down.test");
    let mut config = Config::to(&[]);
    config.clusters = vec![by_name(&dns, "down.test", "dns_lookup_family: V4_ONLY")];
    let whole = Whole::start(&config.yaml());
    assert_eq!(whole.get("a", "/", "").status, 503);
}

const HTTP_FILTER: &str = "envoy.extensions.filters.http.dynamic_forward_proxy.v3";

/// All requests go where they say; `/to` to the host of a route, `/by` to that of a header.
fn forward_proxy(dns: &Dns, cache: &str) -> Config {
    let cache = format!("dns_cache_config: {{name: names, dns_lookup_family: V4_ONLY, {}, {cache}}}", dns.resolver());
    let mut config = Config::to(&[]);
    config.filters = format!("- {{name: dfp, typed_config: {{'@type': type.googleapis.com/{HTTP_FILTER}.FilterConfig, {cache}}}}}");
    config.clusters = vec![format!(
        "- {{name: c, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: envoy.clusters.dynamic_forward_proxy, typed_config: \
         {{'@type': type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}}}}}}}"
    )];
    config
}

#[test]
fn requests_go_to_the_hosts_they_name() {
    let (one, two) = (Upstream::ok("one"), Upstream::ok("two"));
    let dns = Dns::start(&[("one.test", &[1], 60), ("two.test", &[1], 60)]);
    let per_route = |what: &str| {
        format!(
            "route: {{cluster: c}}, typed_per_filter_config: {{dfp: {{'@type': type.googleapis.com/{HTTP_FILTER}.PerRouteConfig, {what}}}}}"
        )
    };
    let config = forward_proxy(&dns, "max_hosts: 100").routes(&format!(
        "- {{match: {{prefix: /to}}, {}}}\n- {{match: {{prefix: /by}}, {}}}\n- {{match: {{prefix: /}}, route: {{cluster: c}}}}",
        per_route(&format!("host_rewrite_literal: 'two.test:{}'", two.port())),
        per_route("host_rewrite_header: x-host")
    ));
    let whole = Whole::start(&config.yaml());
    let (first, second) = (format!("one.test:{}", one.port()), format!("Two.test:{}", two.port()));
    assert_eq!(whole.get(&first, "/", "").body, "one");
    assert_eq!(whole.get(&second, "/", "").body, "two");
    assert_eq!(whole.get(&first, "/", "").body, "one");
    assert_eq!(whole.get("whatever", "/to", "").body, "two");
    assert_eq!(whole.get("whatever", "/by", &format!("x-host: {first}\r\n")).body, "one");
    assert!(one.seen()[0].contains(&format!("host: {first}\r\n")), "{:?}", one.seen());
    assert!(two.seen()[1].contains(&format!("host: two.test:{}\r\n", two.port())), "{:?}", two.seen());
    assert_eq!((dns.asked("one.test"), dns.asked("two.test")), (1, 1), "one lookup serves all requests");
    assert_eq!(whole.get(&format!("127.0.0.1:{}", one.port()), "/", "").body, "one");
    assert!(one.connections.load(SeqCst) >= 2, "names share no connections");
    eventually(|| whole.stat("dns_cache.names.num_hosts") == 3);
    assert_eq!(whole.stat("dns_cache.names.dns_query_success"), 3);
}

#[test]
fn a_cluster_resolves_names_that_no_filter_asked_for() {
    let upstream = Upstream::ok("one");
    let dns = Dns::start(&[("one.test", &[1], 60)]);
    let mut config = forward_proxy(&dns, "max_hosts: 2, dns_failure_refresh_rate: {base_interval: 3600s}");
    config.filters.clear();
    let whole = Whole::start(&config.yaml());
    let host = format!("one.test:{}", upstream.port());
    assert_eq!(whole.get(&host, "/", "").body, "one");
    assert_eq!(whole.get(&host, "/", "").body, "one");
    assert_eq!(dns.asked("one.test"), 1);
    for name in ["gone.test", "full.test"] {
        let answer = whole.get(name, "/", "");
        assert_eq!((answer.status, answer.body.as_str()), (503, "no healthy upstream"), "{name}");
    }
    assert_eq!((dns.asked("gone.test"), dns.asked("full.test")), (1, 0), "the cache holds two");
}

#[test]
fn a_name_that_cannot_be_resolved_is_told() {
    let dns = Dns::start(&[]);
    dns.fail("broken.test");
    let whole = Whole::start(&forward_proxy(&dns, "max_hosts: 2, dns_failure_refresh_rate: {base_interval: 3600s}").yaml());
    for name in ["gone.test", "gone.test", "broken.test"] {
        let answer = whole.get(name, "/", "");
        assert_eq!((answer.status, answer.body.as_str()), (503, "DNS resolution failure"), "{name}");
    }
    assert_eq!(dns.asked("gone.test"), 1);
    let answer = whole.get("third.test", "/", "");
    assert_eq!((answer.status, answer.body.as_str()), (503, "DNS cache overflow"));
    assert_eq!(whole.get("gone.test", "/", "").body, "DNS resolution failure");
    eventually(|| whole.stat("dns_cache.names.host_overflow") == 1);
}

#[test]
fn a_caller_that_leaves_before_its_body_is_all_there_waits_for_no_name() {
    // It never answers.
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let dns = Dns { port: socket.local_addr().unwrap().port(), zone: Arc::default(), asked: Arc::default() };
    let whole = Whole::start(&forward_proxy(&dns, "dns_query_timeout: 60s").yaml());
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap().block_on(async {
        let stream = tokio::net::TcpStream::connect(whole.address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let request = http::Request::post("http://silent.test/").body(()).unwrap();
        let (response, mut send) = sender.ready().await.unwrap().send_request(request, false).unwrap();
        send.send_data(bytes::Bytes::from_static(b"some"), false).unwrap();
        tokio::task::block_in_place(|| eventually(|| whole.stat("http.t.downstream_rq_active") == 1));
        send.send_reset(h2::Reason::CANCEL);
        tokio::task::block_in_place(|| eventually(|| whole.stat("http.t.downstream_rq_active") == 0));
        assert!(response.await.is_err());
    });
    assert_eq!(whole.stat("http.t.downstream_rq_5xx"), 0);
}

#[test]
fn a_forgotten_failure_is_asked_for_by_the_next_request() {
    let upstream = Upstream::ok("x");
    let dns = Dns::start(&[]);
    dns.fail("late.test");
    let whole = Whole::start(&forward_proxy(&dns, "disable_dns_refresh_on_failure: true").yaml());
    let host = format!("late.test:{}", upstream.port());
    assert_eq!(whole.get(&host, "/", "").status, 503);
    dns.set("late.test", &[1], 60);
    eventually(|| whole.get(&host, "/", "").status == 200);
}

#[test]
fn hosts_that_nobody_uses_are_forgotten() {
    let upstream = Upstream::ok("x");
    let dns = Dns::start(&[("a.test", &[1], 1)]);
    let whole = Whole::start(&forward_proxy(&dns, "host_ttl: 0.5s, dns_min_refresh_rate: 1s").yaml());
    let host = format!("a.test:{}", upstream.port());
    assert_eq!(whole.get(&host, "/", "").status, 200);
    eventually(|| whole.stat("dns_cache.names.host_removed") == 1);
    assert_eq!(whole.get(&host, "/", "").status, 200);
    assert!(dns.asked("a.test") >= 2);
}

#[test]
fn refused_addresses_are_no_addresses() {
    let dns = Dns::start(&[("inside.test", &[1], 60)]);
    let filter = "resolved_address_filter: {ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}";
    let whole = Whole::start(&forward_proxy(&dns, filter).yaml());
    assert_eq!(whole.get("inside.test", "/", "").status, 503);
    assert_eq!(whole.get("127.0.0.1", "/", "").status, 503);
}

#[test]
fn names_at_one_address_share_no_tls_connection_whatever_settles_their_server_name() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    let dns = Dns::start(&[("a.test", &[1], 60), ("b.test", &[1], 60)]);
    for (at, name) in [(0, "auto_host_sni: true"), (1, "sni: fixed.test"), (2, "sni: fixed.test, auto_host_sni: true")] {
        let mut config = forward_proxy(&dns, "max_hosts: 100");
        let cluster = config.clusters[0].replace("dns_cache_config:", "allow_insecure_cluster_options: true, dns_cache_config:");
        let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: \
             {'@type': type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, explicit_http_config: {http_protocol_options: {}}}}";
        let transport = mesh.transport("server", name, "http/1.1");
        config.clusters = vec![format!("{}, {options}, {transport}}}", &cluster[..cluster.len() - 1])];
        let whole = Whole::start(&config.yaml());
        for host in ["a.test", "b.test", "a.test", "b.test"] {
            assert_eq!(whole.get(&format!("{host}:{}", server.address.port()), "/", "").body, "x");
        }
        assert_eq!(server.stat("http.t.downstream_cx_ssl_total"), 2 * (at + 1), "{name}");
    }
}

#[test]
fn tls_connections_go_to_the_host_in_their_sni() {
    let upstream = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = upstream.local_addr().unwrap().port();
    let dns = Dns::start(&[("tls.test", &[1], 60)]);
    let cache = format!("dns_cache_config: {{name: names, dns_lookup_family: V4_ONLY, {}}}", dns.resolver());
    let whole = Whole::start(&format!(
        r#"
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    listener_filters: [{{name: tls, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]
    filter_chains:
    - filters:
      - {{name: names, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.sni_dynamic_forward_proxy.v3.FilterConfig, port_value: {port}, {cache}}}}}
      - {{name: tcp, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, stat_prefix: t, cluster: c}}}}
  clusters:
  - {{name: c, connect_timeout: 1s, lb_policy: CLUSTER_PROVIDED, cluster_type: {{name: x, typed_config: {{"@type": type.googleapis.com/envoy.extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig, {cache}}}}}}}
"#
    ));
    let hello = |name: &str| {
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
        let mut bytes = Vec::new();
        rustls::ClientConnection::new(Arc::new(config), name).unwrap().write_tls(&mut bytes).unwrap();
        bytes
    };
    let sent = hello("tls.test");
    let mut stream = whole.connect();
    stream.write_all(&sent).unwrap();
    let (mut arrived, _) = upstream.accept().unwrap();
    arrived.set_read_timeout(Some(WAIT)).unwrap();
    let mut bytes = vec![0; sent.len()];
    arrived.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes, sent);
    // Of a name that does not resolve nothing comes of the connection.
    let mut stream = whole.connect();
    stream.write_all(&hello("gone.test")).unwrap();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    upstream.set_nonblocking(true).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(upstream.accept().is_err());
}
