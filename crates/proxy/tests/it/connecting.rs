//! How connections to hosts are made: on whose behalf, from where, how many, and when they end.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering::SeqCst;
use std::sync::mpsc;
use std::time::Duration;

use socket2::{Domain, Socket, Type};

use crate::support::*;

const PROXY_FILTER: &str = "type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol";
const ORIGINAL_SRC: &str = "type.googleapis.com/envoy.extensions.filters.listener.original_src.v3.OriginalSrc";
const SIGNATURE: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A version 2 header from 10.1.2.3:4 to 10.5.6.7:8 with these values behind.
fn header(tlvs: &[u8]) -> Vec<u8> {
    let mut bytes = SIGNATURE.to_vec();
    bytes.extend_from_slice(&[0x21, 0x11, 0, 12 + tlvs.len() as u8, 10, 1, 2, 3, 10, 5, 6, 7, 0, 4, 0, 8]);
    bytes.extend_from_slice(tlvs);
    bytes
}

/// Tells what came in front of each request, and answers it.
fn raw_upstream() -> (u16, mpsc::Receiver<(Vec<u8>, SocketAddr)>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let mut bytes = Vec::new();
            let mut byte = [0];
            // The signature itself holds blank lines.
            while bytes.len() < 20 || !bytes.ends_with(b"\r\n\r\n") {
                if stream.read(&mut byte).unwrap_or(0) == 0 {
                    break;
                }
                bytes.push(byte[0]);
            }
            let _ = tell.send((bytes, from));
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        }
    });
    (port, told)
}

fn with_listener(config: &Config, fields: &str) -> String {
    config.yaml().replace("    filter_chains:", &format!("    {fields}\n    filter_chains:"))
}

fn send(proxy: &Proxy, bytes: &[&[u8]]) -> Option<Answer> {
    let mut stream = proxy.connect();
    for piece in bytes {
        stream.write_all(piece).unwrap();
    }
    Answer::try_read(&mut stream)
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[test]
fn values_of_a_proxy_header_go_on_as_both_sides_say() {
    let (port, told) = raw_upstream();
    let mut config = Config::to(&[]);
    let transport = "transport_socket: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
                     config: {version: V2, pass_through_tlvs: {match_type: INCLUDE, tlv_type: [1, 2]}, added_tlvs: [{type: 2, value: YWRkZWQ=}]}, \
                     transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}";
    config.clusters = vec![cluster("c", &[port], transport)];
    let filter = format!(
        "listener_filters: [{{name: p, typed_config: {{'@type': {PROXY_FILTER}, pass_through_tlvs: {{match_type: INCLUDE_ALL}}}}}}]"
    );
    let proxy = start(&with_listener(&config, &filter));
    let answer = send(&proxy, &[&header(b"\x01\0\x02ok\x02\0\x01x\x03\0\x01y"), REQUEST]).unwrap();
    assert_eq!(answer.status, 200);
    let (seen, _) = told.recv_timeout(WAIT).unwrap();
    let expected = header(b"\x02\0\x05added\x01\0\x02ok");
    assert_eq!(seen[..expected.len()], expected[..], "{}", seen.escape_ascii());
}

#[test]
fn a_proxy_header_may_be_missing_where_the_listener_says_so() {
    let upstream = Upstream::ok("x");
    let filter = |more: &str| format!("listener_filters: [{{name: p, typed_config: {{'@type': {PROXY_FILTER}, {more}}}}}]");
    let proxy = start(&with_listener(&Config::to(&[upstream.port()]), &filter("allow_requests_without_proxy_protocol: true")));
    assert_eq!(send(&proxy, &[REQUEST]).unwrap().status, 200);
    assert_eq!(send(&proxy, &[&header(b""), REQUEST]).unwrap().status, 200);
    let proxy = start(&with_listener(&Config::to(&[upstream.port()]), &filter("disallowed_versions: [V2]")));
    assert!(send(&proxy, &[&header(b""), REQUEST]).is_none());
    assert_eq!(send(&proxy, &[b"PROXY TCP4 10.1.2.3 10.5.6.7 4 8\r\n", REQUEST]).unwrap().status, 200);
    assert!(send(&proxy, &[REQUEST]).is_none());
}

#[test]
fn values_of_a_proxy_header_are_known_of_a_connection_and_a_tcp_proxy_adds_its_own() {
    let (port, told) = raw_upstream();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let yaml = format!(
        r#"
static_resources:
  listeners:
  - name: l
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    listener_filters:
    - name: p
      typed_config:
        "@type": {PROXY_FILTER}
        pass_through_tlvs: {{}}
        rules:
        - {{tlv_type: 234, on_tlv_present: {{key: vpce}}}}
        - {{tlv_type: 5, on_tlv_present: {{metadata_namespace: mine, key: raw, value_string_encoding: BASE64}}}}
    filter_chains:
    - filters:
      - name: tcp
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy
          stat_prefix: t
          cluster: c
          proxy_protocol_tlvs: [{{type: 5, value: bmV3}}]
          proxy_protocol_tlv_merge_policy: OVERWRITE_BY_TYPE_IF_EXISTS_OR_ADD
          access_log:
          - name: file
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog
              path: "{}"
              log_format: {{text_format_source: {{inline_string: "%DYNAMIC_METADATA(envoy.filters.listener.proxy_protocol:vpce)% %DYNAMIC_METADATA(mine:raw)%\n"}}}}
  clusters:
{}
"#,
        log.display(),
        cluster("c", &[port], "transport_socket: {name: p, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.proxy_protocol.v3.ProxyProtocolUpstreamTransport, \
                               config: {version: V2, pass_through_tlvs: {}}, transport_socket: {name: raw, typed_config: {'@type': type.googleapis.com/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer}}}}")
            .lines()
            .map(|l| format!("  {l}\n"))
            .collect::<String>()
    );
    let proxy = start(&yaml);
    assert_eq!(send(&proxy, &[&header(b"\xea\0\x04vp\xffe\x05\0\x01\x00"), REQUEST]).unwrap().status, 200);
    let (seen, _) = told.recv_timeout(WAIT).unwrap();
    let expected = header(b"\x05\0\x03new\xea\0\x04vp\xffe");
    assert_eq!(seen[..expected.len()], expected[..], "{}", seen.escape_ascii());
    eventually(|| std::fs::read_to_string(&log).is_ok_and(|text| text == "vp!e AA==\n"));
}

/// Whether this process may pretend to be somebody else.
fn may_be_transparent() -> bool {
    Socket::new(Domain::IPV4, Type::STREAM, None).unwrap().set_ip_transparent_v4(true).is_ok()
}

#[test]
fn connections_come_from_the_callers_address_where_the_listener_says_so() {
    let (port, told) = raw_upstream();
    let filters = format!("listener_filters: [{{name: s, typed_config: {{'@type': {ORIGINAL_SRC}}}}}]");
    let proxy = start(&with_listener(&Config::to(&[port]), &filters));
    let call = |from: [u8; 4]| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((from, 0)).into()).unwrap();
        socket.connect(&proxy.address.into()).unwrap();
        let mut stream = TcpStream::from(socket);
        stream.write_all(REQUEST).unwrap();
        Answer::read(&mut stream).status
    };
    for last in [5, 6] {
        let status = call([127, 0, 0, last]);
        if may_be_transparent() {
            assert_eq!(status, 200);
            assert_eq!(told.recv_timeout(WAIT).unwrap().1.ip(), std::net::IpAddr::from([127, 0, 0, last]));
        } else {
            assert_eq!(status, 503, "without the privilege no connection comes from us instead");
        }
    }
}

/// Runs this test once more in a network namespace of its own, in which `10.9.0.0/16` comes back to it, though no
/// interface has such an address. `None` is a machine that does not allow it.
fn in_a_namespace(test: &str) -> Option<ExitStatus> {
    const ROUTES: &str = "ip link set lo up && ip rule add to 10.9.0.0/16 lookup 100 && \
                          ip route add local 10.9.0.0/16 dev lo table 100 || exit 77; exec \"$0\" --exact \"$1\" --nocapture";
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--net", "sh", "-c", ROUTES]).arg(std::env::current_exe().unwrap()).arg(test);
    let status = command.env(INSIDE, "1").stderr(Stdio::inherit()).status().ok()?;
    // 1 is unshare's own.
    (!matches!(status.code(), Some(1 | 77 | 126 | 127))).then_some(status)
}

const INSIDE: &str = "LATEEN_TEST_INSIDE_A_NAMESPACE";

#[test]
fn connections_come_from_an_address_that_a_proxy_header_tells() {
    if std::env::var_os(INSIDE).is_none() {
        match in_a_namespace("connecting::connections_come_from_an_address_that_a_proxy_header_tells") {
            Some(status) => assert!(status.success(), "{status}"),
            None => eprintln!("skipped: no network namespace can be made here with unshare and ip"),
        }
        return;
    }
    let (port, told) = raw_upstream();
    let original_src = |more: &str| format!("{{name: s, typed_config: {{'@type': {ORIGINAL_SRC}, {more}}}}}");
    let filters =
        format!("listener_filters: [{{name: p, typed_config: {{'@type': {PROXY_FILTER}}}}}, {}]", original_src("bind_port: true"));
    let proxy = start(&with_listener(&Config::to(&[port]), &filters));
    assert_eq!(send(&proxy, &[b"PROXY TCP4 10.9.0.5 10.5.6.7 4321 8\r\n", REQUEST]).unwrap().status, 200);
    assert_eq!(told.recv_timeout(WAIT).unwrap().1, "10.9.0.5:4321".parse().unwrap());
    // No host has an address of this caller's family.
    assert_eq!(send(&proxy, &[b"PROXY TCP6 2001:db8::1 2001:db8::2 1 2\r\n", REQUEST]).unwrap().status, 503);
    // Asked before the header is read, the caller is whoever connected.
    let filters = format!("listener_filters: [{}, {{name: p, typed_config: {{'@type': {PROXY_FILTER}}}}}]", original_src("mark: 7"));
    let proxy = start(&with_listener(&Config::to(&[port]), &filters));
    assert_eq!(send(&proxy, &[b"PROXY TCP4 10.9.0.5 10.5.6.7 4321 8\r\n", REQUEST]).unwrap().status, 200);
    assert!(told.recv_timeout(WAIT).unwrap().1.ip().is_loopback());
}

#[test]
fn hosts_are_dialled_from_the_clusters_own_address_with_its_options() {
    let (port, told) = raw_upstream();
    let from = |bind: &str| {
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", &[port], &format!("upstream_bind_config: {bind}"))];
        let proxy = config.start();
        let answer = proxy.get("/");
        if answer.status == 200 { Ok(told.recv_timeout(WAIT).unwrap().1) } else { Err(answer.body) }
    };
    assert_eq!(from("{source_address: {address: 127.0.0.7, port_value: 0}}").unwrap().ip().to_string(), "127.0.0.7");
    // The first of the host's family.
    let two = "{source_address: {address: '::1', port_value: 0}, extra_source_addresses: [{address: {address: 127.0.0.8, port_value: 0}}]}";
    assert_eq!(from(two).unwrap().ip().to_string(), "127.0.0.8");
    // 192.0.2.1 is nobody's. It may be bound to where that is allowed, though no connection comes of it.
    let foreign =
        |freebind: bool| from(&format!("{{freebind: {freebind}, source_address: {{address: 192.0.2.1, port_value: 0}}}}")).unwrap_err();
    let cannot_bind = "Cannot assign requested address";
    assert!(foreign(false).contains(cannot_bind), "{}", foreign(false));
    assert!(!foreign(true).contains(cannot_bind), "{}", foreign(true));
    // An option that fails, of the other family, and of datagrams: only the first counts.
    let option = |more: &str| {
        format!(
            "{{source_address: {{address: 127.0.0.1, port_value: 0}}, socket_options: [{{level: 99999, name: 1, int_value: 1{more}}}]}}"
        )
    };
    assert!(from(&option("")).is_err());
    assert!(from(&option(", ip_version: SOCKET_IP_VERSION_IPV6")).is_ok());
    assert!(from(&option(", type: {datagram: {}}")).is_ok());
    // SO_LINGER is no number.
    assert!(from("{socket_options: [{level: 1, name: 13, buf_value: AQAAAAEAAAA=}]}").is_ok());
    assert!(from("{socket_options: [{level: 1, name: 13, buf_value: AQ==}]}").is_err());
    let own = "{socket_options: [{level: 99999, name: 1, int_value: 1}], extra_source_addresses: [{address: {address: 127.0.0.8, port_value: 0}, socket_options: {socket_options: []}}]}";
    assert!(from(own).is_ok());
}

#[test]
fn an_original_destination_can_be_named_by_a_header_and_its_port_by_the_cluster() {
    let upstream = Upstream::ok("x");
    let start = |settings: &str| {
        let mut config = Config::to(&[]);
        config.clusters = vec![format!("- {{name: c, type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 1s, {settings}}}")];
        config.start()
    };
    let call = |proxy: &Proxy, header: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\n{header}\r\n")).status;
    let named = format!("x-envoy-original-dst-host: {}\r\n", upstream.address);
    let proxy = start("original_dst_lb_config: {use_http_header: true}");
    assert_eq!(call(&proxy, &named), 200);
    // Nobody says where else the connection wanted to go.
    assert_eq!(call(&proxy, ""), 503);
    assert_eq!(call(&proxy, "x-envoy-original-dst-host: nonsense\r\n"), 503);
    let proxy = start("original_dst_lb_config: {}");
    assert_eq!(call(&proxy, &named), 503);
    let typed = "cluster_type: {name: o, typed_config: {'@type': type.googleapis.com/envoy.extensions.clusters.original_dst.v3.OriginalDstCluster, use_http_header: true}}";
    let mut config = Config::to(&[]);
    config.clusters = vec![format!("- {{name: c, lb_policy: CLUSTER_PROVIDED, connect_timeout: 1s, {typed}}}")];
    assert_eq!(call(&config.start(), &named), 200);
    let more =
        format!("original_dst_lb_config: {{use_http_header: true, http_header_name: x-to, upstream_port_override: {}}}", upstream.port());
    let proxy = start(&more);
    assert_eq!(call(&proxy, "x-to: 127.0.0.1:1\r\n"), 200);
}

#[test]
fn every_callers_connection_can_have_connections_of_its_own() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[upstream.port()], "connection_pool_per_downstream_connection: true")];
    let proxy = config.start();
    let mut streams = [proxy.connect(), proxy.connect()];
    for _ in 0..2 {
        for stream in &mut streams {
            stream.write_all(REQUEST).unwrap();
            assert_eq!(Answer::read(stream).status, 200);
        }
    }
    assert_eq!(upstream.connections.load(SeqCst), 2);
}

#[test]
fn connections_are_made_ahead() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(300));
        write_ok(stream, "x")
    });
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[upstream.port()], "preconnect_policy: {per_upstream_preconnect_ratio: 2.0}")];
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 200);
    eventually(|| upstream.connections.load(SeqCst) == 2);
    assert_eq!(proxy.get("/").status, 200);
    assert_eq!(upstream.connections.load(SeqCst), 2, "the one made ahead is enough for one request at a time");
}

#[test]
fn connections_are_made_to_the_hosts_whose_turn_is_next() {
    let hosts: Vec<Upstream> = (0..4).map(|_| Upstream::ok("x")).collect();
    let ports: Vec<u16> = hosts.iter().map(Upstream::port).collect();
    let all = |of: fn(&Upstream) -> usize| hosts.iter().map(of).sum::<usize>();
    let start = |policy: &str| {
        let mut config = Config::to(&[]);
        config.clusters =
            vec![cluster("c", &ports, &format!("lb_policy: {policy}\npreconnect_policy: {{predictive_preconnect_ratio: 2.0}}"))];
        config.start()
    };
    let connections = |u: &Upstream| u.connections.load(SeqCst);
    let proxy = start("ROUND_ROBIN");
    assert_eq!(proxy.get("/").status, 200);
    // One for the request, and two for the next: the one that began counted before it had its own.
    eventually(|| all(connections) == 3);
    assert!(hosts.iter().all(|u| connections(u) <= 1));
    for _ in 0..7 {
        assert_eq!(proxy.get("/").status, 200);
    }
    // Every host was asked in its turn all the same, over one connection each.
    eventually(|| hosts.iter().all(|u| connections(u) == 1));
    assert!(hosts.iter().all(|u| u.seen.lock().unwrap().len() == 2));
    drop(proxy);
    let before = all(connections);
    let proxy = start("LEAST_REQUEST");
    assert_eq!(proxy.get("/").status, 200);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(all(connections), before + 1, "nobody knows whose turn is next");
}

#[test]
fn a_host_that_comes_can_end_the_connections_to_the_others() {
    let (one, other) = (Upstream::ok("x"), Upstream::ok("x"));
    let config = |ports: &[u16], closes: bool| {
        let mut config = Config::to(&[]);
        config.clusters = vec![cluster("c", ports, &format!("common_lb_config: {{close_connections_on_host_set_change: {closes}}}"))];
        config.yaml()
    };
    for (closes, connections) in [(false, 1), (true, 3)] {
        let proxy = start(&config(&[one.port()], closes));
        assert_eq!(proxy.get("/").status, 200);
        publish(&proxy.worker, snapshot(&config(&[one.port(), other.port()], closes), 2));
        for _ in 0..2 {
            assert_eq!(proxy.get("/").status, 200);
        }
        assert_eq!(one.connections.load(SeqCst), connections, "of both rounds together");
    }
}

#[test]
fn a_destination_that_was_forgotten_leaves_its_connections_to_no_other() {
    let once = Upstream::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
        false
    });
    let stays = Upstream::ok("x");
    let mut config = Config::to(&[]);
    let settings = "type: ORIGINAL_DST, lb_policy: CLUSTER_PROVIDED, connect_timeout: 1s, original_dst_lb_config: {use_http_header: true}";
    let idle = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
                type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, common_http_protocol_options: {idle_timeout: 0.2s}, \
                explicit_http_config: {http_protocol_options: {}}}}";
    config.clusters = vec![format!("- {{name: c, {settings}, {idle}}}")];
    let proxy = config.start();
    let call =
        |to: &Upstream| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-envoy-original-dst-host: {}\r\n\r\n", to.address)).status;
    assert_eq!(call(&once), 200);
    // Twice, whatever the phase: nothing goes there any more, and its place in memory is free.
    std::thread::sleep(Duration::from_millis(2_200));
    assert_eq!(call(&stays), 200);
    assert_eq!(proxy.stat("cluster.c.upstream_cx_active"), 1);
    eventually(|| proxy.stat("cluster.c.upstream_cx_active") == 0);
}
