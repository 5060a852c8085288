//! What a listener does with a connection before its filters have it: limits, gates by port, state for the TCP proxy.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use lateen_proxy::Wishes;
use lateen_snapshot::bootstrap::overload::Action;
use lateen_snapshot::compile::{Compiler, Update};

use crate::support::*;

fn named(text: &'static str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let _ = stream.unwrap().write_all(text.as_bytes());
        }
    });
    port
}

#[test]
fn workers_get_equally_many_connections_where_the_listener_says_so() {
    for (field, expected) in [("", [6, 0]), ("    connection_balance_config: {exact_balance: {}}", [3, 3])] {
        let upstream = Upstream::ok("x");
        let yaml = Config::to(&[upstream.port()]).yaml().replace("    filter_chains:", &format!("{field}\n    filter_chains:"));
        let workers = start_workers(2, &yaml, &snapshot(&yaml, 1), &Wishes::default());
        // Each worker has a port of its own here: the kernel cannot spread these.
        let mut streams: Vec<TcpStream> = (0..6).map(|_| workers[0].connect()).collect();
        for stream in &mut streams {
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            assert_eq!(Answer::read(stream).status, 200);
        }
        let open = || [0, 1].map(|index: usize| workers[index].worker.connections());
        assert_eq!(open(), expected, "{field}");
        drop(streams);
        eventually(|| open() == [0, 0]);
    }
}

#[test]
fn connections_count_on_when_their_listener_changes() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let upstream = Upstream::start(move |_, _, stream| {
        let _ = released.lock().unwrap().recv();
        write_ok(stream, "late")
    });
    let balance = "    connection_balance_config: {exact_balance: {}}\n    filter_chains:";
    let yaml = Config::to(&[upstream.port()]).yaml().replace("    filter_chains:", balance);
    let mut compiler = Compiler::new();
    let mut apply = |yaml: &str| {
        for body in lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap().resources {
            let name = if body.type_url.ends_with("Listener") { "l" } else { "c" };
            let (type_url, name) = (body.type_url.clone(), name.to_owned());
            let update = Update { name, version: String::new(), body };
            assert_eq!(compiler.apply(&type_url, vec![update], &[], Instant::now()), []);
        }
        compiler.snapshot()
    };
    let workers = start_workers(2, &yaml, &apply(&yaml), &Wishes::default());
    let ask = || {
        let mut stream = workers[0].connect();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        stream
    };
    let open = || [0, 1].map(|index: usize| workers[index].worker.connections());
    let mut streams: Vec<TcpStream> = (0..3).map(|_| ask()).collect();
    eventually(|| open() == [2, 1] && upstream.seen().len() == 3);
    let changed = apply(&yaml.replace("stat_prefix: t", "stat_prefix: t\n          use_remote_address: true"));
    workers.iter().for_each(|proxy| publish(&proxy.worker, changed.clone()));
    streams.push(ask());
    eventually(|| open().iter().sum::<u64>() == 4);
    assert_eq!(open(), [2, 2]);
    (0..4).for_each(|_| release.send(()).unwrap());
    streams.iter_mut().for_each(|stream| assert_eq!(Answer::read(stream).body, "late"));
}

#[test]
fn a_listener_that_goes_takes_all_that_is_in_its_queue() {
    let yaml = Config::to(&[dead_port()]).routes("- {match: {prefix: /}, direct_response: {status: 200}}").yaml();
    let yaml = yaml.replace("    filter_chains:", "    tcp_backlog_size: 1024\n    filter_chains:");
    let proxy = start(&yaml);
    proxy.overload.set(Action::StopAcceptingConnections, 1.0);
    // One is still accepted by a loop that was waiting for it.
    let mut callers = Vec::new();
    for _ in 0..300 {
        let mut stream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        callers.push(stream);
    }
    assert!(proxy.worker.connections() < 2);
    let without = yaml.split("  listeners:").next().unwrap().to_owned() + "  clusters:" + yaml.split("  clusters:").nth(1).unwrap();
    publish(&proxy.worker, snapshot(&without, 2));
    let answered = callers.iter_mut().filter_map(Answer::try_read).filter(|answer| answer.status == 200).count();
    assert_eq!(answered, callers.len());
}

/// A TCP proxy to cluster `a` behind further network filters, of a listener with further fields.
fn yaml(listener: &str, filters: &str, clusters: &[(&str, u16)]) -> String {
    let clusters: String = clusters.iter().map(|(name, port)| cluster(name, &[*port], "") + "\n").collect();
    connections(listener, &format!("{filters}\n{}", tcp_proxy("cluster: a")), &clusters)
}

fn said(proxy: &Proxy) -> String {
    let mut all = String::new();
    let _ = proxy.connect().read_to_string(&mut all);
    all
}

const BUCKET: &str = "stat_prefix: x, token_bucket: {max_tokens: 2, tokens_per_fill: 1, fill_interval: 3600s}";

#[test]
fn connections_beyond_a_limit_are_closed_at_once() {
    let port = named("a");
    let network = format!(
        r#"- {{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit, {BUCKET}}}}}"#
    );
    let listener = format!(
        r#"listener_filters: [{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.local_ratelimit.v3.LocalRateLimit, {BUCKET}}}}}]"#
    );
    for (listener, filter, stat) in
        [("", network.as_str(), "local_rate_limit.x.rate_limited"), (listener.as_str(), "", "listener_local_ratelimit.x.rate_limited")]
    {
        let proxy = start(&yaml(listener, filter, &[("a", port)]));
        assert_eq!([said(&proxy), said(&proxy), said(&proxy), said(&proxy)], ["a", "a", "", ""]);
        eventually(|| proxy.stat(stat) == 2);
        assert_eq!(proxy.stat("cluster.a.upstream_cx_total"), 2);
    }
}

#[test]
fn a_limit_that_is_switched_off_limits_nothing() {
    let off = format!(
        r#"- {{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.local_ratelimit.v3.LocalRateLimit, {BUCKET}, runtime_enabled: {{default_value: false, runtime_key: k}}}}}}"#
    );
    let proxy = start(&yaml("", &off, &[("a", named("a"))]));
    assert_eq!([said(&proxy), said(&proxy), said(&proxy)], ["a", "a", "a"]);
}

fn state(key: &str, value: &str) -> String {
    format!(
        r#"- name: s
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.network.set_filter_state.v3.Config
    on_new_connection: [{{object_key: {key}, format_string: {{text_format_source: {{inline_string: "{value}"}}}}}}]"#
    )
}

#[test]
fn state_of_the_connection_names_its_cluster_and_its_idle_time() {
    let (a, b) = (named("a"), named("b"));
    let clusters = [("a", a), ("of-127.0.0.1", b)];
    let by_address = state("envoy.tcp_proxy.cluster", "of-%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%");
    assert_eq!(said(&start(&yaml("", &by_address, &clusters))), "b");
    let unknown = start(&yaml("", &state("envoy.tcp_proxy.cluster", "nowhere"), &clusters));
    assert_eq!(said(&unknown), "");
    eventually(|| unknown.stat("tcp.t.downstream_cx_no_route") == 1);
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let clusters = [("a", silent.local_addr().unwrap().port())];
    let proxy = start(&yaml("", &state("envoy.tcp_proxy.per_connection_idle_timeout_ms", "200"), &clusters));
    let since = Instant::now();
    assert_eq!(said(&proxy), "");
    assert!(since.elapsed() >= Duration::from_millis(200) && proxy.stat("tcp.t.idle_timeout") == 1, "{:?}", since.elapsed());
}

#[test]
fn an_inspector_may_be_off_at_some_ports() {
    let proxied = |gate: &str| {
        format!(
            r#"listener_filters: [{{name: p, filter_disabled: {gate}, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}}}]"#
        )
    };
    let port = named("a");
    let talk = |gate: &str| {
        let proxy = start(&yaml(&proxied(gate), "", &[("a", port)]));
        let mut stream = proxy.connect();
        stream.write_all(b"hello, no header").unwrap();
        let mut all = String::new();
        let _ = stream.read_to_string(&mut all);
        all
    };
    assert_eq!(talk("{destination_port_range: {start: 1, end: 65536}}"), "a", "no header is asked for");
    assert_eq!(talk("{destination_port_range: {start: 1, end: 2}}"), "");
    let both = "{and_match: {rules: [{any_match: true}, {not_match: {destination_port_range: {start: 1, end: 2}}}]}}";
    assert_eq!(talk(both), "a");
}

#[test]
fn a_connection_is_watched_for_its_end_as_long_as_is_said() {
    let upstream = Upstream::ok("bye");
    for (timeout, ends) in [("0.2s", 200), ("2s", 2000)] {
        let mut config = Config::to(&[upstream.port()]);
        config.hcm = format!("delayed_close_timeout: {timeout}");
        let proxy = config.start();
        let mut stream: TcpStream = proxy.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").unwrap();
        assert_eq!(Answer::read(&mut stream).status, 200);
        // The caller keeps its side open.
        let since = Instant::now();
        eventually(|| proxy.worker.connections() == 0);
        let took = since.elapsed().as_millis();
        assert!(took + 100 >= ends && took < ends + 1500, "{timeout}: {took} ms");
    }
}

/// A ClientHello that asks for this name.
fn hello(name: &str) -> Vec<u8> {
    let provider = lateen_identity::tls::provider().clone();
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = builder.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let name = rustls_pki_types::ServerName::try_from(name.to_owned()).unwrap();
    let mut connection = rustls::ClientConnection::new(std::sync::Arc::new(config), name).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

#[test]
fn the_name_that_a_caller_asks_for_is_its_cluster() {
    let listener = r#"listener_filters: [{name: t, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]"#;
    let filter = r#"- {name: s, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.sni_cluster.v3.SniCluster}}"#;
    let proxy = start(&yaml(listener, filter, &[("a", named("a")), ("db.example", named("b"))]));
    let talk = |first: &[u8]| {
        let mut stream = proxy.connect();
        stream.write_all(first).unwrap();
        let mut all = String::new();
        let _ = stream.read_to_string(&mut all);
        all
    };
    assert_eq!(talk(&hello("db.example")), "b");
    assert_eq!(talk(b"no TLS at all"), "a", "without a name the configured cluster serves");
    assert_eq!(talk(&hello("other.example")), "");
    eventually(|| proxy.stat("tcp.t.downstream_cx_no_route") == 1);
}

#[test]
fn listeners_whose_ports_the_kernel_chooses_have_a_socket_each() {
    let says = |name: &str| {
        format!(
            r#"
  - name: {name}
    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}
    additional_addresses: [{{address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}}}]
    filter_chains:
    - filters:
      - name: d
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config
          response: {{inline_string: {name}}}"#
        )
    };
    let proxy = start(&format!("static_resources:\n  listeners:{}{}", says("one"), says("two")));
    let bound = proxy.worker.bound();
    assert_eq!(bound.len(), 4, "{bound:?}");
    for (name, address) in bound {
        let mut said = String::new();
        TcpStream::connect(address).unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(said, *name);
    }
}

#[test]
fn an_ipv6_listener_takes_ipv4_only_where_it_is_told_to() {
    let upstream = Upstream::ok("x");
    let listening = |address: &str| Config::to(&[upstream.port()]).yaml().replace("{address: 127.0.0.1, port_value: 0}", address);
    for (compatible, expected) in [(false, None), (true, Some(200))] {
        let proxy = start(&listening(&format!("{{address: '::', port_value: 0, ipv4_compat: {compatible}}}")));
        let ask = |ip: &str| {
            let mut stream = TcpStream::connect((ip, proxy.address.port())).ok()?;
            stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
            Some(Answer::read(&mut stream).status)
        };
        assert_eq!((ask("::1"), ask("127.0.0.1")), (Some(200), expected));
    }
}

#[test]
fn what_a_listener_takes_changes_with_its_configuration_and_each_address_says_it_itself() {
    let upstream = Upstream::ok("x");
    let port = free_port();
    let listening = |more: &str| {
        let yaml = Config::to(&[upstream.port()]).yaml();
        yaml.replace("{address: 127.0.0.1, port_value: 0}}", &format!("{{address: '::', port_value: {port}}}}}\n    {more}"))
    };
    let yaml = listening("");
    let proxy = start(&yaml);
    let over_ipv4 = || TcpStream::connect(("127.0.0.1", port)).is_ok();
    assert!(!over_ipv4());
    publish(&proxy.worker, snapshot(&yaml.replace("'::',", "'::', ipv4_compat: true,"), 2));
    eventually(over_ipv4);
    publish(&proxy.worker, snapshot(&yaml, 3));
    eventually(|| !over_ipv4());
    let additional = format!("additional_addresses: [{{address: {{socket_address: {{address: 0.0.0.0, port_value: {port}}}}}}}]");
    publish(&proxy.worker, snapshot(&listening(&additional), 4));
    eventually(over_ipv4);
    assert!(TcpStream::connect(("::1", port)).is_ok());
}

#[test]
fn a_listeners_log_has_every_connection_however_it_ends() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let listener = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: {}, log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %BYTES_RECEIVED% %UPSTREAM_CLUSTER%;\"}}}}}}}}]\n\
         listener_filters: [{{name: t, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}}}]",
        path.display()
    );
    let log = || std::fs::read_to_string(&path).unwrap_or_default();
    let proxy = start(&connections(&listener, &tcp_proxy("cluster: c"), &cluster("c", &[tcp_echo()], "")));
    let mut stream = proxy.connect();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    drop(stream);
    eventually(|| log() == "- 5 c;");
    // It leaves before its chain is chosen.
    drop(proxy.connect());
    eventually(|| log() == "- 5 c;- 0 -;");
    let answer = "- {name: d, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.direct_response.v3.Config, response: {inline_string: bye}}}";
    let proxy = start(&connections(&listener, answer, &cluster("c", &[dead_port()], "")));
    let mut stream = proxy.connect();
    stream.write_all(b"hello").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    eventually(|| log() == "- 5 c;- 0 -;- 0 -;");
}

#[test]
fn a_limit_of_connections_counts_those_of_all_workers() {
    let limit = "- {name: l, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 1}}";
    let yaml = connections("", &format!("{limit}\n{}", tcp_proxy("cluster: c")), &cluster("c", &[tcp_echo()], ""));
    let workers = start_workers(2, &yaml, &snapshot(&yaml, 1), &Wishes::default());
    let greets = |proxy: &Proxy| {
        let mut stream = proxy.connect();
        let _ = stream.write_all(b"x");
        matches!(stream.read(&mut [0]), Ok(1)).then_some(stream)
    };
    let open = greets(&workers[0]).expect("the first is let in");
    assert!(greets(&workers[1]).is_none());
    assert_eq!(workers[0].stat("connection_limit.l.limited_connections"), 1);
    drop(open);
    eventually(|| workers[0].stat("connection_limit.l.active_connections") == 0);
    assert!(greets(&workers[1]).is_some());
}
