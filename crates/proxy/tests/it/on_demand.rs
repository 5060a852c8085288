//! Requests and connections for clusters that nobody has told of yet.
use std::io::{Read, Write};
use std::time::{Duration, Instant};

use lateen_proxy::Wishes;
use lateen_snapshot::compile::{Update, Wish};

use crate::support::*;

const CLUSTER: &str = "type.googleapis.com/envoy.config.cluster.v3.Cluster";

fn config(timeout: &str) -> Config {
    let mut config = Config::to(&[]).routes(
        "- {match: {prefix: /named}, route: {cluster: late}}\n\
         - {match: {prefix: /off}, route: {cluster: late}, typed_per_filter_config: {envoy.filters.http.on_demand: \
           {\"@type\": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.PerRouteConfig}}}\n\
         - {match: {prefix: /}, route: {cluster_header: x-cluster}}",
    );
    config.clusters.clear();
    config.filters = format!(
        "- name: envoy.filters.http.on_demand\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.on_demand.v3.OnDemand\n    \
         odcds: {{source: {{ads: {{}}}}, timeout: {timeout}}}"
    );
    config
}

/// The cluster as a discovery service sends it.
fn update(port: u16) -> Vec<Update> {
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("late", &[port], "")];
    let resources = lateen_snapshot::bootstrap::parse(&config.yaml(), "test.yaml").unwrap().resources;
    let body = resources.into_iter().find(|r| r.type_url == CLUSTER).unwrap();
    vec![Update { name: "late".to_owned(), version: String::new(), body }]
}

#[test]
fn a_request_waits_for_its_cluster_by_route_or_by_header() {
    let upstream = Upstream::ok("there");
    for request in ["GET /named HTTP/1.1\r\nhost: a\r\n\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx-cluster: late\r\n\r\n"] {
        let yaml = config("4s").yaml();
        let mut compiler = compiler(&yaml);
        let (wishes, mut asked) = Wishes::channel();
        let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
        std::thread::scope(|scope| {
            let call = scope.spawn(|| proxy.call(request));
            let wish = asked.blocking_recv().unwrap();
            assert_eq!(wish.wish, Wish::Cluster("late".into()));
            assert!(compiler.apply(CLUSTER, update(upstream.port()), &[], Instant::now()).is_empty());
            let snapshot = compiler.snapshot();
            // The answer may be there before the worker has the cluster.
            wish.answer.send(snapshot.version).unwrap();
            proxy.worker.publish(snapshot);
            assert_eq!(call.join().unwrap().body, "there");
        });
        assert_eq!(proxy.call(request).body, "there");
        assert!(asked.try_recv().is_err(), "what is there is not asked for");
    }
}

#[test]
fn a_cluster_that_does_not_come_is_waited_for_only_so_long() {
    let yaml = config("0.5s").yaml();
    let (wishes, mut asked) = Wishes::channel();
    let proxy = start_asking(&yaml, compiler(&yaml).snapshot(), wishes);
    let began = Instant::now();
    assert_eq!(proxy.get("/named").status, 503);
    assert!(began.elapsed() >= Duration::from_millis(450), "{:?}", began.elapsed());
    assert!(asked.try_recv().is_ok());
    assert_eq!(proxy.get("/off").status, 503);
    assert!(asked.try_recv().is_err(), "the route does not wait");
    std::thread::scope(|scope| {
        let began = Instant::now();
        let call = scope.spawn(|| proxy.get("/named"));
        // There is no such cluster.
        drop(asked.blocking_recv().unwrap().answer);
        assert_eq!(call.join().unwrap().status, 503);
        assert!(began.elapsed() < Duration::from_millis(450), "{:?}", began.elapsed());
    });
}

fn tcp_config(timeout: &str) -> String {
    connections("", &tcp_proxy(&format!("cluster: late, on_demand: {{odcds_config: {{ads: {{}}}}, timeout: {timeout}}}")), "")
}

#[test]
fn a_connection_waits_for_its_cluster() {
    let yaml = tcp_config("4s");
    let mut compiler = compiler(&yaml);
    let (wishes, mut asked) = Wishes::channel();
    let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
    let mut stream = proxy.connect();
    stream.write_all(b"early").unwrap();
    let wish = asked.blocking_recv().unwrap();
    assert_eq!(wish.wish, Wish::Cluster("late".into()));
    assert!(compiler.apply(CLUSTER, update(tcp_echo()), &[], Instant::now()).is_empty());
    let snapshot = compiler.snapshot();
    wish.answer.send(snapshot.version).unwrap();
    proxy.worker.publish(snapshot);
    half_close(&stream);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "early<end>");
    assert_eq!((proxy.stat("tcp.t.on_demand_cluster_attempt"), proxy.stat("tcp.t.on_demand_cluster_success")), (1, 1));
}

#[test]
fn a_connection_whose_caller_leaves_waits_no_longer() {
    let yaml = tcp_config("60s");
    let (wishes, mut asked) = Wishes::channel();
    let proxy = start_asking(&yaml, compiler(&yaml).snapshot(), wishes);
    for said in ["", "something"] {
        let mut stream = proxy.connect();
        stream.write_all(said.as_bytes()).unwrap();
        let wish = asked.blocking_recv().unwrap();
        eventually(|| proxy.worker.connections() == 1);
        // What was said may be all that is to be said: only a reset tells that nobody waits for an answer.
        if !said.is_empty() {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        eventually(|| proxy.worker.connections() == 0 && wish.answer.is_closed());
    }
    assert_eq!((proxy.stat("tcp.t.on_demand_cluster_attempt"), proxy.stat("tcp.t.on_demand_cluster_timeout")), (2, 0));
    assert_eq!(proxy.stat("tcp.t.downstream_cx_no_route"), 0);
}

#[test]
fn what_a_caller_says_before_its_cluster_is_there_arrives_whole() {
    let yaml = tcp_config("20s");
    let mut compiler = compiler(&yaml);
    let (wishes, mut asked) = Wishes::channel();
    let proxy = start_asking(&yaml, compiler.snapshot(), wishes);
    let mut stream = proxy.connect();
    let mut writer = stream.try_clone().unwrap();
    let sent: Vec<u8> = (0..300_000u32).flat_map(u32::to_le_bytes).collect();
    let bytes = sent.clone();
    let sending = std::thread::spawn(move || {
        writer.write_all(&bytes).unwrap();
        half_close(&writer);
    });
    let wish = asked.blocking_recv().unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(compiler.apply(CLUSTER, update(tcp_echo()), &[], Instant::now()).is_empty());
    let snapshot = compiler.snapshot();
    wish.answer.send(snapshot.version).unwrap();
    proxy.worker.publish(snapshot);
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    sending.join().unwrap();
    assert!(received.strip_suffix(b"<end>") == Some(sent.as_slice()), "{} bytes came back of {}", received.len(), sent.len());
}

#[test]
fn a_connection_whose_cluster_does_not_come_is_closed() {
    let yaml = tcp_config("0.3s");
    let (wishes, mut asked) = Wishes::channel();
    let proxy = start_asking(&yaml, compiler(&yaml).snapshot(), wishes);
    let began = Instant::now();
    assert_eq!(proxy.connect().read(&mut [0]).unwrap(), 0);
    assert!(began.elapsed() >= Duration::from_millis(250), "{:?}", began.elapsed());
    drop(asked.blocking_recv().unwrap());
    let mut stream = proxy.connect();
    let began = Instant::now();
    // There is no such cluster.
    drop(asked.blocking_recv().unwrap().answer);
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert!(began.elapsed() < Duration::from_millis(250), "{:?}", began.elapsed());
    let stat = |name: &str| proxy.stat(&format!("tcp.t.{name}"));
    assert_eq!((stat("on_demand_cluster_attempt"), stat("on_demand_cluster_timeout"), stat("on_demand_cluster_missing")), (2, 1, 1));
    assert_eq!(stat("downstream_cx_no_route"), 2);
}
