//! Istio's metrics and its exchange of workload metadata.
use std::io::{Read, Write};

use lateen_proxy::PeerMetadata;
use lateen_telemetry::stats::Value;

use crate::support::*;
use crate::tls::Mesh;

const STATS: &str = "- {name: istio.stats, typed_config: {\"@type\": type.googleapis.com/stats.PluginConfig}}\n";
const REVIEWS: &str = "metadata: {filter_metadata: {istio: {workload: \"reviews-v1;shop;reviews;v1;Kubernetes\"}}}, ";

fn exchange(fields: &str) -> String {
    format!(
        "- {{name: istio.peer_metadata, typed_config: {{\"@type\": type.googleapis.com/io.istio.http.peer_metadata.Config, {fields}}}}}\n"
    )
}

/// A cluster with Istio's metadata, of itself and of its one endpoint.
fn of_mesh(name: &str, port: u16, istio: &str, endpoint: &str) -> String {
    format!(
        "- name: {name}\n  type: STATIC\n  connect_timeout: 1s\n  metadata: {{filter_metadata: {{istio: {{{istio}}}}}}}\n  load_assignment: \
         {{cluster_name: {name}, endpoints: [{{lb_endpoints: [{{{endpoint}endpoint: {{address: {{socket_address: {{address: 127.0.0.1, \
         port_value: {port}}}}}}}}}]}}]}}"
    )
}

fn reporting(port: u16, cluster: &str) -> Config {
    let mut config = Config::to(&[port]);
    config.filters = STATS.to_owned();
    config.clusters = vec![cluster.to_owned()];
    config
}

/// The series of a family: these labels of each, and its count.
fn series<const N: usize>(proxy: &Proxy, family: &str, labels: [&str; N]) -> Vec<([String; N], u64)> {
    let name = format!("istiocustom.{family}.");
    let samples = proxy.registry.scrape(false, &|n| n.starts_with(&name));
    let all = samples.iter().map(|sample| {
        let of = |label: &str| sample.labels.iter().find(|(key, _)| key == label).map(|(_, value)| value.clone()).unwrap_or_default();
        let Value::Counter(count) = sample.value else { panic!("{} counts", sample.name) };
        (labels.map(of), count)
    });
    all.collect()
}

/// The labels of the one series that counts requests.
fn request<const N: usize>(proxy: &Proxy, labels: [&str; N]) -> [String; N] {
    eventually(|| !series(proxy, "istio_requests_total", labels).is_empty());
    let mut all = series(proxy, "istio_requests_total", labels);
    assert_eq!(all.len(), 1, "{all:?}");
    all.remove(0).0
}

#[test]
fn workload_metadata_stays_in_the_mesh_where_that_is_asked_for() {
    let upstream = Upstream::ok("x");
    let sent_to = |skip: bool| {
        let port = upstream.port();
        let (name, routes): (_, Vec<String>) = (
            ["inside", "outside", "PassthroughCluster", "mute"],
            ["inside", "outside", "PassthroughCluster", "mute"]
                .map(|c| format!("- {{match: {{prefix: /{c}}}, route: {{cluster: {c}}}}}"))
                .into(),
        );
        let mut config = Config::to(&[port]).routes(&routes.join("\n"));
        config.filters = exchange(&format!("upstream_propagation: [{{istio_headers: {{skip_external_clusters: {skip}}}}}]"));
        config.clusters = ["external: false", "external: true", "", "disable_mx: true"]
            .iter()
            .zip(name)
            .map(|(istio, name)| of_mesh(name, port, istio, ""))
            .collect();
        let proxy = config.start();
        name.map(|name| {
            assert_eq!(proxy.get(&format!("/{name}")).status, 200);
            let seen = upstream.seen().pop().unwrap();
            let told = ["x-envoy-peer-metadata: ", "x-envoy-peer-metadata-id: "].map(|header| seen.contains(header));
            assert_eq!(told[0], told[1], "{seen}");
            told[0]
        })
    };
    assert_eq!(sent_to(true), [true, false, false, false]);
    assert_eq!(sent_to(false), [true, true, true, false]);
}

#[test]
fn a_request_that_failed_names_the_workload_it_was_for() {
    let labels = ["reporter", "destination_workload", "destination_workload_namespace", "destination_canonical_revision", "response_flags"];
    let proxy = reporting(0, &of_mesh("c", dead_port(), "", REVIEWS)).start();
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(request(&proxy, labels), ["source", "reviews-v1", "shop", "v1", "UF"]);

    let closing = Upstream::start(|_, _, _| false);
    let proxy = reporting(0, &of_mesh("c", closing.port(), "", REVIEWS)).start();
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(request(&proxy, labels), ["source", "reviews-v1", "shop", "v1", "UC"]);
}

#[test]
fn what_a_response_tells_of_its_workload_counts_only_if_it_can_be_read() {
    let named = PeerMetadata { workload: "ratings-v2".to_owned(), ..PeerMetadata::default() }.encode();
    for (header, workload) in [(named, "ratings-v2"), ("%%%".to_owned(), "reviews-v1")] {
        let upstream = Upstream::start(move |_, _, stream| {
            write!(stream, "HTTP/1.1 200 OK\r\nx-envoy-peer-metadata: {header}\r\ncontent-length: 0\r\n\r\n").is_ok()
        });
        let mut config = reporting(0, &of_mesh("c", upstream.port(), "", REVIEWS));
        config.filters = exchange("upstream_discovery: [{istio_headers: {}}]") + STATS;
        let proxy = config.start();
        let answer = proxy.get("/");
        assert!(answer.status == 200 && answer.header("x-envoy-peer-metadata").is_none(), "{}", answer.head);
        assert_eq!(request(&proxy, ["destination_workload"]), [workload]);
    }
}

#[test]
fn what_a_caller_says_of_itself_does_not_name_the_workload_that_its_request_was_for() {
    let forged = PeerMetadata { workload: "forged".to_owned(), ..PeerMetadata::default() }.encode();
    // The second has no endpoint whose metadata would count instead.
    for (cluster, workload) in [(of_mesh("c", dead_port(), "", REVIEWS), "reviews-v1"), ("- {name: c, type: STATIC}".to_owned(), "unknown")]
    {
        let mut config = reporting(0, &cluster);
        config.filters = exchange("downstream_discovery: [{istio_headers: {}}]") + STATS;
        let proxy = config.start();
        let answer =
            proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-envoy-peer-metadata-id: f\r\nx-envoy-peer-metadata: {forged}\r\n\r\n"));
        assert_eq!(answer.status, 503);
        assert_eq!(request(&proxy, ["reporter", "destination_workload"]), ["source", workload]);
    }
}

#[test]
fn a_caller_reports_the_certificate_that_it_showed_to_the_host() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    let mut config = mesh.client_config(&[server.address.port()], "server", "", "http/1.1");
    config.filters = STATS.to_owned();
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 200);
    let [source, destination, security] = request(&proxy, ["source_principal", "destination_principal", "connection_security_policy"]);
    assert_eq!(source, "spiffe://cluster.local/ns/default/sa/client");
    assert_eq!(destination, "spiffe://cluster.local/ns/default/sa/server");
    assert_eq!(security, "unknown");
}

#[test]
fn bytes_of_an_open_connection_are_counted_as_they_move() {
    let filters = format!("{STATS}{}", tcp_proxy("cluster: c"));
    let proxy = start(&connections("", &filters, &cluster("c", &[tcp_echo()], "")));
    let counts = || {
        let istio = |family| series(&proxy, family, []).iter().map(|(_, count)| count).sum::<u64>();
        let [received, sent] = ["istio_tcp_received_bytes_total", "istio_tcp_sent_bytes_total"].map(istio);
        let names = ["tcp.t.downstream_cx_rx_bytes_total", "cluster.c.upstream_cx_tx_bytes_total", "cluster.c.upstream_cx_rx_bytes_total"];
        let [down, up, back] = names.map(|name| proxy.stat(name));
        [received, sent, down, up, back, proxy.stat("tcp.t.downstream_cx_tx_bytes_total")]
    };
    let mut stream = proxy.connect();
    let mut total = 0;
    // The last goes by way of the kernel alone.
    for size in [1000, 50_000, 4_000_000] {
        let mut writer = stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || writer.write_all(&vec![7; size]).unwrap());
        stream.read_exact(&mut vec![0; size]).unwrap();
        sending.join().unwrap();
        total += size as u64;
        eventually(|| counts() == [total; 6]);
        assert_eq!(series(&proxy, "istio_tcp_connections_closed_total", [])[0].1, 0);
    }
    half_close(&stream);
    let mut end = String::new();
    stream.read_to_string(&mut end).unwrap();
    assert_eq!(end, "<end>");
    eventually(|| series(&proxy, "istio_tcp_connections_closed_total", [])[0].1 == 1);
    let (received, sent) = (total, total + end.len() as u64);
    assert_eq!(counts(), [received, sent, received, received, sent, sent]);
}

#[test]
fn messages_of_grpc_calls_are_counted_with_the_workloads() {
    let upstream = Upstream::start(|_, _, stream| {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: 0\r\ncontent-length: 6\r\n\r\n";
        stream.write_all(head.as_bytes()).is_ok() && stream.write_all(b"\0\0\0\0\x01x").is_ok()
    });
    let counted = |emits: bool| {
        let mut config = reporting(0, &of_mesh("c", upstream.port(), "", REVIEWS));
        config.filters = format!(
            "- {{name: g, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_stats.v3.FilterConfig, \
             emit_filter_state: {emits}}}}}\n{STATS}"
        );
        let proxy = config.start();
        let body = "\0\0\0\0\x02ab\0\0\0\0\x01c";
        let head = format!("POST /a.B/C HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: {}\r\n", body.len());
        assert_eq!(proxy.call(&format!("{head}\r\n{body}")).status, 200);
        assert_eq!(request(&proxy, ["request_protocol"]), ["grpc"]);
        ["istio_request_messages_total", "istio_response_messages_total"]
            .map(|family| series(&proxy, family, ["destination_workload", "request_protocol"]))
    };
    let labels = || ["reviews-v1".to_owned(), String::new()];
    assert_eq!(counted(true), [vec![(labels(), 2)], vec![(labels(), 1)]]);
    assert_eq!(counted(false), [vec![], vec![]]);
}

#[test]
fn traffic_that_no_service_takes_is_reported_by_istios_names() {
    let labels = ["destination_service", "destination_service_name"];
    let upstream = Upstream::ok("x");
    let blocked = Config::to(&[]).routes("- {name: block_all, match: {prefix: /}, direct_response: {status: 502}}");
    let proxy = Config { filters: STATS.to_owned(), ..blocked }.start();
    assert_eq!(proxy.get("/").status, 502);
    assert_eq!(request(&proxy, labels), ["a", "BlackHoleCluster"]);

    for name in ["PassthroughCluster", "InboundPassthroughCluster", "InboundPassthroughClusterIpv4", "InboundPassthroughClusterIpv6"] {
        let routes = format!("- {{match: {{prefix: /}}, route: {{cluster: {name}}}}}");
        let proxy = reporting(0, &of_mesh(name, upstream.port(), "", "")).routes(&routes).start();
        assert_eq!(proxy.get("/").status, 200);
        assert_eq!(request(&proxy, labels), ["a", name]);
    }

    let routes = "- {name: allow_any, match: {prefix: /}, route: {cluster: egress}}";
    let service = "services: [{host: egress.shop, namespace: shop}]";
    let proxy = reporting(0, &of_mesh("egress", upstream.port(), service, "")).routes(routes).start();
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(request(&proxy, labels), ["a", "PassthroughCluster"]);

    let proxy = reporting(0, &of_mesh("c", upstream.port(), service, "")).start();
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(request(&proxy, labels), ["egress.shop", "egress"]);
}
