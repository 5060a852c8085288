//! Connections upstream: PROXY protocol headers, other addresses of a host, hosts by the caller's address.
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, mpsc};

use lateen_balance::host::FAILED_OUTLIER;

use crate::support::*;

const PROXIED: &str = "transport_socket:\n  name: p\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport\n    config: {version: V1}\n    transport_socket: {name: raw, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}";

/// An HTTP server that tells each connection's PROXY line.
fn proxied_server() -> (u16, mpsc::Receiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let tell = tell.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut line = String::new();
                reader.read_line(&mut line).unwrap();
                tell.send(line).unwrap();
                loop {
                    let mut line = String::new();
                    match reader.read_line(&mut line) {
                        Ok(n) if n > 0 => {}
                        _ => return,
                    }
                    if line == "\r\n" && !write_ok(&mut stream, "ok") {
                        return;
                    }
                }
            });
        }
    });
    (port, lines)
}

#[test]
fn http_connections_upstream_tell_the_callers_address_and_are_not_shared_between_callers() {
    let (port, lines) = proxied_server();
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[port], PROXIED)];
    let proxy = config.start();
    for _ in 0..2 {
        let mut caller = proxy.connect();
        let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\n", caller.local_addr().unwrap().port(), proxy.address.port());
        for _ in 0..2 {
            caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            assert_eq!(Answer::read(&mut caller).status, 200);
        }
        assert_eq!(lines.recv_timeout(WAIT).unwrap(), expected);
    }
    assert!(lines.try_recv().is_err(), "a caller's second request uses the connection of the first");
}

#[test]
fn a_tree_of_matchers_chooses_the_transport_socket_of_each_host() {
    const INPUTS: &str = "type.googleapis.com/envoy.extensions.matching.common_inputs.transport_socket.v3";
    let (one, with_line) = proxied_server();
    let (other, without) = proxied_server();
    let at = |port: u16, kind: &str| {
        format!(
            "{{metadata: {{filter_metadata: {{envoy.lb: {{kind: {kind}}}}}}}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"
        )
    };
    let mut config = Config::to(&[]);
    config.clusters = vec![format!(
        "- name: c\n  type: STATIC\n  connect_timeout: 5s\n  transport_socket_matches:\n  - name: line\n    {}\n  transport_socket_matcher: {{matcher_tree: {{input: \
         {{name: i, typed_config: {{\"@type\": {INPUTS}.EndpointMetadataInput, path: [{{key: kind}}]}}}}, exact_match_map: {{map: {{proxied: {{action: \
         {{name: a, typed_config: {{\"@type\": {INPUTS}.TransportSocketNameAction, name: line}}}}}}}}}}}}}}\n  \
         load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{}, {}]}}]}}",
        PROXIED.replace('\n', "\n    "),
        at(one, "proxied"),
        at(other, "plain")
    )];
    let proxy = config.start();
    for _ in 0..2 {
        assert_eq!(proxy.get("/").status, 200);
    }
    assert!(with_line.recv_timeout(WAIT).unwrap().starts_with("PROXY TCP4 "));
    assert_eq!(without.recv_timeout(WAIT).unwrap(), "GET / HTTP/1.1\r\n");
}

#[test]
fn another_address_of_a_host_is_used_when_the_first_cannot_be_reached() {
    let upstream = Upstream::ok("second");
    let at = |port: u16| format!("{{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}");
    let mut config = Config::to(&[]);
    config.clusters = vec![format!(
        "- name: c\n  type: STATIC\n  connect_timeout: 5s\n  load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: \
         {{address: {}, additional_addresses: [{{address: {}}}]}}}}]}}]}}",
        at(dead_port()),
        at(upstream.port())
    )];
    let answer = config.start().get("/");
    assert_eq!((answer.status, answer.body.as_str()), (200, "second"));
}

/// Answers every connection with its name.
fn named(name: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            stream.unwrap().write_all(name.as_bytes()).unwrap();
        }
    });
    port
}

#[test]
fn a_tcp_caller_always_meets_the_same_host_when_its_address_is_hashed() {
    let ports: Vec<u16> = ["a", "b", "c", "d"].into_iter().map(named).collect();
    let yaml = format!(
        "node: {{id: t, cluster: t}}\nstatic_resources:\n  listeners:\n  - name: l\n    \
         address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n    filter_chains:\n    - filters:\n      \
         - name: tcp\n        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy, \
         stat_prefix: t, cluster: c, hash_policy: [{{source_ip: {{}}}}]}}\n  clusters:\n{}\n",
        cluster("c", &ports, "lb_policy: MAGLEV").lines().map(|l| format!("  {l}\n")).collect::<String>()
    );
    let proxy = start(&yaml);
    let ask = |from: [u8; 4]| {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&std::net::SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&proxy.address.into()).unwrap();
        let mut stream: TcpStream = socket.into();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        let mut name = String::new();
        stream.read_to_string(&mut name).unwrap();
        name
    };
    let answers: Vec<String> = (1..=40).map(|last| ask([127, 0, 7, last])).collect();
    for (last, answer) in (1..=40).zip(&answers) {
        assert_eq!(&ask([127, 0, 7, last]), answer);
    }
    let mut different = answers;
    different.sort();
    different.dedup();
    assert!(different.len() > 1, "forty addresses would not all meet one host");
}

#[test]
fn connections_from_before_a_host_failed_are_not_used_again() {
    let upstream = Upstream::ok("ok");
    let text = Config::to(&[upstream.port()]).yaml();
    let snapshot = snapshot(&text, 1);
    let proxy = start_with(&text, Arc::clone(&snapshot));
    proxy.get("/");
    let open = || (proxy.stat("cluster.c.upstream_cx_total"), proxy.stat("cluster.c.upstream_cx_active"));
    assert_eq!(open(), (1, 1));
    let (_, cluster) = snapshot.cluster_named("c").unwrap();
    cluster.hosts.hosts().next().unwrap().set_flag(FAILED_OUTLIER, true);
    eventually(|| open() == (1, 0));
    // Nobody else is there, so that the failed host is asked all the same, over a connection that stays.
    proxy.get("/");
    std::thread::sleep(std::time::Duration::from_millis(1500));
    assert_eq!(open(), (2, 1));
}

#[test]
fn heads_of_responses_may_be_as_large_as_the_cluster_says() {
    let with = |count: usize, bytes: usize| {
        move |_: usize, _: &str, stream: &mut TcpStream| {
            let mut head = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n".to_owned();
            (2..count).for_each(|i| head.push_str(&format!("x{i}: v\r\n")));
            let rest = bytes.saturating_sub(head.len() + "long: \r\n\r\n".len());
            head.push_str(&format!("long: {}\r\n\r\nok", "v".repeat(rest)));
            stream.write_all(head.as_bytes()).is_ok()
        }
    };
    // Headers, bytes of the head, what the cluster allows, and the answer.
    let cases = [
        (100, 0, "", 200),
        (101, 0, "", 502),
        (10, 0, "max_headers_count: 9", 502),
        (1000, 0, "max_headers_count: 1000", 200),
        (1001, 0, "max_headers_count: 1000", 502),
        (2, 80 << 10, "", 200),
        (2, (80 << 10) + 1, "", 502),
        (2, 5000, "max_response_headers_kb: 4", 502),
        (2, 2 << 20, "max_response_headers_kb: 2048", 200),
    ];
    for (count, bytes, allowed, expected) in cases {
        let upstream = Upstream::start(with(count, bytes));
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", &[upstream.port()], &format!("common_http_protocol_options: {{{allowed}}}"))];
        let answer = config.start().get("/");
        assert_eq!(answer.status, expected, "{count} headers, {bytes} bytes, {allowed}");
    }
}
