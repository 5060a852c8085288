//! Updates of a listener: which connections stay, which are asked to leave, and how.
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lateen_proxy::DrainTime;
use lateen_snapshot::Snapshot;
use lateen_snapshot::bootstrap::overload::Action;
use lateen_snapshot::compile::{Compiler, Update};

use crate::support::*;

const AT_ONCE: DrainTime = DrainTime { over: Duration::ZERO, gradually: true };

/// A chain for callers from 127.0.0.`from` that answers with this text.
fn chain(from: u8, text: &str) -> String {
    format!(
        r#"- filter_chain_match: {{source_prefix_ranges: [{{address_prefix: 127.0.0.{from}, prefix_len: 32}}]}}
  filters: [{}]"#,
        manager(&format!(
            r#"route_config: {{name: r, virtual_hosts: [{{name: v, domains: ["*"], routes: [{{match: {{prefix: /}}, direct_response: {{status: 200, body: {{inline_string: {text}}}}}}}]}}]}}"#
        ))
    )
}

fn manager(fields: &str) -> String {
    format!(
        r#"{{name: h, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager, stat_prefix: t, {fields}, http_filters: [{{name: r, typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}}}]}}}}"#
    )
}

fn yaml(fields: &str, chains: &[String]) -> String {
    let chains: String = chains.iter().flat_map(|c| c.lines()).map(|line| format!("    {line}\n")).collect();
    format!(
        "node: {{id: t, cluster: t}}\nstatic_resources:\n  listeners:\n  - name: l\n    address: {{socket_address: {{address: 127.0.0.1, port_value: 0}}}}\n{fields}    filter_chains:\n{chains}"
    )
}

/// One configuration after the other, as discovery gives them.
#[derive(Default)]
struct Discovered {
    compiler: Compiler,
    version: u64,
}

impl Discovered {
    fn next(&mut self, yaml: &str) -> Arc<Snapshot> {
        for body in lateen_snapshot::bootstrap::parse(yaml, "test.yaml").unwrap().resources {
            let name = if body.type_url.ends_with("Listener") { "l" } else { "c" }.to_owned();
            let type_url = body.type_url.clone();
            assert_eq!(self.compiler.apply(&type_url, vec![Update { name, version: String::new(), body }], &[], Instant::now()), []);
        }
        self.snapshot()
    }

    fn snapshot(&mut self) -> Arc<Snapshot> {
        self.version += 1;
        let mut snapshot = Snapshot::clone(&self.compiler.snapshot());
        snapshot.version = self.version;
        Arc::new(snapshot)
    }
}

/// A proxy whose listener changes.
struct Changing {
    proxy: Proxy,
    discovered: Discovered,
}

impl Changing {
    fn start(yaml: &str, drain: DrainTime) -> Self {
        let mut discovered = Discovered::default();
        let proxy = start_leaving(yaml, &discovered.next(yaml), drain);
        Self { proxy, discovered }
    }

    fn change(&mut self, yaml: &str) {
        publish(&self.proxy.worker, self.discovered.next(yaml));
    }

    fn connect(&self, from: u8) -> TcpStream {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from((Ipv4Addr::new(127, 0, 0, from), 0)).into()).unwrap();
        socket.connect(&self.proxy.address.into()).unwrap();
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream
    }
}

fn ask(stream: &mut TcpStream) -> Answer {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    Answer::read(stream)
}

fn is_told(answer: &Answer) -> bool {
    answer.header("connection") == Some("close")
}

#[test]
fn connections_of_other_chains_stay_when_a_chain_changes_comes_or_goes() {
    let mut changing = Changing::start(&yaml("", &[chain(1, "a"), chain(2, "b")]), AT_ONCE);
    let (mut a, mut b) = (changing.connect(1), changing.connect(2));
    assert_eq!((ask(&mut a).body, ask(&mut b).body), ("a".to_owned(), "b".to_owned()));
    changing.change(&yaml("", &[chain(3, "c"), chain(2, "changed"), chain(1, "a")]));
    let answer = ask(&mut b);
    assert!(is_told(&answer) && answer.body == "b", "{answer:?}");
    assert!(!is_told(&ask(&mut a)));
    let (mut b, mut c) = (changing.connect(2), changing.connect(3));
    assert_eq!((ask(&mut b).body, ask(&mut c).body), ("changed".to_owned(), "c".to_owned()));
    changing.change(&yaml("", &[chain(2, "changed"), chain(1, "a")]));
    assert!(is_told(&ask(&mut c)));
    assert!(!is_told(&ask(&mut a)) && !is_told(&ask(&mut b)));
    // Back again it is another one, and those of the first are not for it.
    changing.change(&yaml("", &[chain(3, "c"), chain(2, "changed"), chain(1, "a")]));
    assert!(!is_told(&ask(&mut changing.connect(3))) && !is_told(&ask(&mut a)) && !is_told(&ask(&mut b)));
}

#[test]
fn a_chain_that_stays_counts_on() {
    let limited = chain(1, "a").replace(
        "  filters: [",
        r#"  filters: [{name: l, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.network.connection_limit.v3.ConnectionLimit, stat_prefix: l, max_connections: 1}}, "#,
    );
    let mut changing = Changing::start(&yaml("", std::slice::from_ref(&limited)), AT_ONCE);
    let mut one = changing.connect(1);
    assert_eq!(ask(&mut one).body, "a");
    changing.change(&yaml("", &[chain(2, "b"), limited]));
    let mut two = changing.connect(1);
    let _ = two.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(Answer::try_read(&mut two).is_none(), "one is open");
    let counted = ["connection_limit.l.limited_connections", "connection_limit.l.active_connections"].map(|name| changing.proxy.stat(name));
    assert_eq!((counted, changing.proxy.stat("listener.127.0.0.1_0.downstream_cx_overflow")), ([1, 1], 0));
    assert!(!is_told(&ask(&mut one)));
}

#[test]
fn every_connection_is_asked_to_leave_a_listener_that_changes_itself_or_goes() {
    for gone in [false, true] {
        let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), AT_ONCE);
        let mut stream = changing.connect(1);
        ask(&mut stream);
        if gone {
            let name = "type.googleapis.com/envoy.config.listener.v3.Listener";
            changing.discovered.compiler.apply(name, Vec::new(), &["l".to_owned()], Instant::now());
            publish(&changing.proxy.worker, changing.discovered.snapshot());
        } else {
            changing.change(&yaml("    listener_filters_timeout: 3s\n", &[chain(1, "a")]));
        }
        assert!(is_told(&ask(&mut stream)));
        assert!(gone || !is_told(&ask(&mut changing.connect(1))));
    }
}

#[test]
fn routes_that_change_are_no_change_of_their_listener() {
    let chain = format!("- filters: [{}]", manager("rds: {route_config_name: l, config_source: {ads: {}}}"));
    let routes = |body: &str| -> Update {
        let text = format!(
            r#"{{"name": "l", "virtual_hosts": [{{"name": "v", "domains": ["*"], "routes": [{{"match": {{"prefix": "/"}}, "direct_response": {{"status": 200, "body": {{"inline_string": "{body}"}}}}}}]}}]}}"#
        );
        let text = serde_json::from_str::<serde_json::Value>(&text).unwrap();
        let message: lateen_proto::envoy::config::route::v3::RouteConfiguration =
            lateen_proto::json::Codec::new().read(&(&text).into()).unwrap();
        Update { name: "l".to_owned(), version: String::new(), body: lateen_proto::any::pack(&message) }
    };
    let mut discovered = Discovered::default();
    let take = |discovered: &mut Discovered, body: &str| {
        let name = "type.googleapis.com/envoy.config.route.v3.RouteConfiguration";
        assert_eq!(discovered.compiler.apply(name, vec![routes(body)], &[], Instant::now()), []);
        discovered.snapshot()
    };
    let yaml = yaml("", &[chain]);
    discovered.next(&yaml);
    let proxy = start_leaving(&yaml, &take(&mut discovered, "one"), AT_ONCE);
    let mut stream = proxy.connect();
    assert_eq!(ask(&mut stream).body, "one");
    publish(&proxy.worker, take(&mut discovered, "two"));
    let answer = ask(&mut stream);
    assert!(answer.body == "two" && !is_told(&answer), "{answer:?}");
}

#[test]
fn connections_are_asked_over_the_drain_time() {
    let drain = DrainTime { over: Duration::from_secs(3600), gradually: true };
    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), drain);
    let mut streams: Vec<TcpStream> = (0..20).map(|_| changing.connect(1)).collect();
    streams.iter_mut().for_each(|stream| drop(ask(stream)));
    changing.change(&yaml("", &[chain(1, "changed")]));
    assert!(!streams.iter_mut().any(|stream| is_told(&ask(stream))));

    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), DrainTime { gradually: false, ..drain });
    let mut stream = changing.connect(1);
    ask(&mut stream);
    changing.change(&yaml("", &[chain(1, "changed")]));
    assert!(is_told(&ask(&mut stream)));

    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), DrainTime { over: Duration::from_secs(1), ..drain });
    let mut stream = changing.connect(1);
    ask(&mut stream);
    changing.change(&yaml("", &[chain(1, "changed")]));
    // The worker looks once a second.
    std::thread::sleep(Duration::from_millis(2200));
    assert!(is_told(&ask(&mut stream)), "the time is over");
}

#[test]
fn a_connection_that_was_idle_for_long_is_not_closed_under_its_next_request() {
    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), AT_ONCE);
    let (mut busy, mut idle) = (changing.connect(1), changing.connect(1));
    ask(&mut busy);
    ask(&mut idle);
    std::thread::sleep(Duration::from_millis(5200));
    changing.change(&yaml("", &[chain(1, "changed")]));
    std::thread::sleep(Duration::from_millis(300));
    assert!(is_told(&ask(&mut busy)));
    let since = Instant::now();
    idle.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert!(since.elapsed() > Duration::from_secs(4), "{:?}", since.elapsed());
}

#[test]
fn a_connection_whose_chain_is_not_chosen_yet_gets_the_newest() {
    let inspector = "    listener_filters: [{name: t, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}]\n";
    let mut changing = Changing::start(&yaml(inspector, &[chain(1, "a")]), AT_ONCE);
    let mut stream = changing.connect(1);
    stream.write_all(b"GE").unwrap();
    eventually(|| changing.proxy.stat("listener.127.0.0.1_0.downstream_pre_cx_active") == 1);
    assert_eq!(changing.proxy.stat("listener.127.0.0.1_0.downstream_cx_total"), 0);
    changing.change(&yaml(inspector, &[chain(1, "changed")]));
    stream.write_all(b"T / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let answer = Answer::read(&mut stream);
    assert!(answer.body == "changed" && !is_told(&answer), "{answer:?}");
    assert_eq!(changing.proxy.stat("listener.127.0.0.1_0.downstream_cx_active"), 1);
}

#[test]
fn tcp_connections_of_a_chain_that_changes_are_closed_when_its_time_is_over() {
    let port = tcp_echo();
    let chain = |from: u8, more: &str| {
        format!(
            "- filter_chain_match: {{source_prefix_ranges: [{{address_prefix: 127.0.0.{from}, prefix_len: 32}}]}}\n  filters:\n  {}",
            tcp_proxy(&format!("cluster: c{more}"))
        )
    };
    let yaml = |chains: &[String]| with_cluster(port, &yaml("", chains));
    let waits = ", upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 1024";
    let chains = [chain(1, ""), chain(2, ""), chain(3, waits)];
    let mut changing = Changing::start(&yaml(&chains), DrainTime { over: Duration::from_secs(2), gradually: true });
    let (mut stays, mut goes, mut silent) = (changing.connect(1), changing.connect(2), changing.connect(3));
    let talk = |stream: &mut TcpStream| {
        stream.write_all(b"hello").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
    };
    talk(&mut stays);
    talk(&mut goes);
    eventually(|| changing.proxy.stat("tcp.t.downstream_cx_total") == 3);
    let attempts = ", max_connect_attempts: 2";
    changing.change(&yaml(&[chain(1, ""), chain(2, attempts)]));
    let since = Instant::now();
    talk(&mut goes);
    assert_eq!((goes.read(&mut [0]).unwrap(), silent.read(&mut [0]).unwrap()), (0, 0));
    assert!(since.elapsed() > Duration::from_millis(1500), "{:?}", since.elapsed());
    talk(&mut stays);
    // It came to a chain that two versions had, of which the last accepted nobody.
    changing.change(&yaml(&[chain(1, attempts), chain(2, attempts)]));
    assert_eq!(stays.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_connection_that_comes_late_to_a_chain_of_before_is_closed_when_its_time_is_over() {
    let port = tcp_echo();
    let inspector = "    listener_filters: [{name: t, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}]\n";
    let yaml = |fields: &str, more: &str| {
        let chain = format!("- filters:\n  {}", tcp_proxy(&format!("cluster: c{more}")));
        with_cluster(port, &yaml(&format!("{inspector}{fields}"), &[chain]))
    };
    let mut changing = Changing::start(&yaml("", ""), DrainTime { over: Duration::from_secs(3), gradually: true });
    let mut stream = changing.connect(1);
    // As TLS begins.
    stream.write_all(b"\x16").unwrap();
    eventually(|| changing.proxy.stat("listener.127.0.0.1_0.downstream_pre_cx_active") == 1);
    // Chains alone, and then the listener itself.
    changing.change(&yaml("", ", max_connect_attempts: 2"));
    changing.change(&yaml("    listener_filters_timeout: 20s\n", ", max_connect_attempts: 2"));
    // The worker looks once a second whom it still has to ask.
    std::thread::sleep(Duration::from_millis(1300));
    stream.write_all(b"hello").unwrap();
    let mut back = [0; 6];
    stream.read_exact(&mut back).unwrap();
    assert_eq!(&back, b"\x16hello");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

fn with_cluster(port: u16, yaml: &str) -> String {
    let clusters: String = cluster("c", &[port], "").lines().map(|line| format!("  {line}\n")).collect();
    format!("{yaml}  clusters:\n{clusters}")
}

#[test]
fn socket_options_that_change_are_those_of_another_socket_with_the_same_port() {
    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), AT_ONCE);
    let mss = |stream: &TcpStream| socket2::SockRef::from(stream).tcp_mss().unwrap();
    let mut before = changing.connect(1);
    assert!(mss(&before) > 1000);
    let bound = changing.proxy.worker.bound();
    // TCP_MAXSEG
    changing.change(&yaml("    socket_options: [{level: 6, name: 2, int_value: 600}]\n", &[chain(1, "b")]));
    assert_eq!((changing.proxy.worker.bound(), changing.proxy.worker.problems()), (bound, Vec::new()));
    for _ in 0..8 {
        let mut after = changing.connect(1);
        assert!(mss(&after) <= 600, "{}", mss(&after));
        assert_eq!(ask(&mut after).body, "b");
    }
    assert_eq!(Some(ask(&mut before).status), Some(200));
}

#[test]
fn what_waits_in_a_socket_that_is_replaced_is_served() {
    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), AT_ONCE);
    changing.proxy.overload.set(Action::StopAcceptingConnections, 1.0);
    let mut waiting: Vec<TcpStream> = (0..20).map(|_| changing.connect(1)).collect();
    changing.change(&yaml("    freebind: true\n", &[chain(1, "a")]));
    assert!(waiting.iter_mut().all(|stream| ask(stream).body == "a"));
    changing.proxy.overload.set(Action::StopAcceptingConnections, 0.0);
    assert_eq!(ask(&mut changing.connect(1)).body, "a");
}

#[test]
fn options_that_cannot_be_set_leave_the_socket_before_in_place() {
    let mut changing = Changing::start(&yaml("", &[chain(1, "a")]), AT_ONCE);
    changing.change(&yaml("    socket_options: [{level: 6, name: 9999, int_value: 1}]\n", &[chain(1, "b")]));
    assert_eq!(changing.proxy.worker.problems().len(), 1);
    assert_eq!(ask(&mut changing.connect(1)).body, "b");
    changing.change(&yaml("", &[chain(1, "c")]));
    assert_eq!((changing.proxy.worker.problems().len(), ask(&mut changing.connect(1)).body), (0, "c".to_owned()));
}

#[test]
fn a_longer_queue_is_one_of_the_same_socket() {
    let backlog = |size: u32| yaml(&format!("    tcp_backlog_size: {size}\n"), &[chain(1, "a")]);
    let mut changing = Changing::start(&backlog(1), AT_ONCE);
    changing.proxy.overload.set(Action::StopAcceptingConnections, 1.0);
    let fill = |changing: &Changing| -> std::io::Result<Vec<TcpStream>> {
        (0..10).map(|_| TcpStream::connect_timeout(&changing.proxy.address, Duration::from_millis(400))).collect()
    };
    assert!(fill(&changing).is_err());
    changing.change(&backlog(1024));
    fill(&changing).unwrap();
}
