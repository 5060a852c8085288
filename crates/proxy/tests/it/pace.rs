//! Filters that slow traffic down or turn it away: bandwidth limits and admission control.
use std::io::Write;
use std::time::{Duration, Instant};

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::*;

fn bandwidth(upstream: &Upstream, more: &str) -> Config {
    let mut config = Config::to(&[upstream.port()]);
    config.filters = format!(
        "- name: bandwidth\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit\n    stat_prefix: bw\n{more}"
    );
    config
}

fn counted(proxy: &Proxy, name: &str) -> u64 {
    proxy.stat(&format!("bw.http_bandwidth_limit.{name}"))
}

fn post(bytes: usize) -> String {
    format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {bytes}\r\n\r\n{}", "x".repeat(bytes))
}

/// An upstream with a body of that many bytes.
fn filled(bytes: usize) -> Upstream {
    Upstream::start(move |_, _, stream| {
        let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {bytes}\r\n\r\n");
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(&vec![b'y'; bytes])).is_ok()
    })
}

#[test]
fn a_request_beyond_a_seconds_worth_takes_its_time() {
    let upstream = Upstream::ok("fine");
    let proxy = bandwidth(&upstream, "    enable_mode: REQUEST\n    limit_kbps: 10\n    fill_interval: 0.02s").start();
    let before = Instant::now();
    assert_eq!(proxy.call(&post(10 * 1024 + 4096)).status, 200);
    let took = before.elapsed();
    assert!(took > Duration::from_millis(330) && took < Duration::from_secs(3), "{took:?}");
    assert!(upstream.seen()[0].ends_with(&"x".repeat(10 * 1024 + 4096)));
    let names = ["request_enabled", "request_incoming_total_size", "request_allowed_total_size", "request_pending", "response_enabled"];
    assert_eq!(names.map(|n| counted(&proxy, n)), [1, 14336, 14336, 0, 0]);
    assert!(counted(&proxy, "request_enforced") > 3);
}

#[test]
fn a_response_draws_from_the_bucket_that_all_share() {
    let upstream = filled(6 * 1024);
    let proxy = bandwidth(&upstream, "    enable_mode: REQUEST_AND_RESPONSE\n    limit_kbps: 10").start();
    let before = Instant::now();
    // Two of them are more than a second's worth.
    assert_eq!((proxy.get("/").body.len(), proxy.get("/").body.len()), (6 * 1024, 6 * 1024));
    let took = before.elapsed();
    assert!(took > Duration::from_millis(150) && took < Duration::from_secs(3), "{took:?}");
    assert_eq!((counted(&proxy, "response_enabled"), counted(&proxy, "request_enabled")), (2, 2));
    assert_eq!(counted(&proxy, "response_allowed_total_size"), 12 * 1024);
}

#[test]
fn a_route_has_a_limit_of_its_own_and_a_filter_may_be_off() {
    let upstream = filled(30 * 1024);
    let mut config = bandwidth(&upstream, "");
    config.routes = "- match: {prefix: /slow}\n  route: {cluster: c}\n  typed_per_filter_config:\n    bandwidth: {\"@type\": \
         type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit, stat_prefix: bw, enable_mode: RESPONSE, \
         limit_kbps: 20}\n- {match: {prefix: /}, route: {cluster: c}}"
        .to_owned();
    let proxy = config.start();
    let timed = |path: &str| {
        let before = Instant::now();
        assert_eq!(proxy.get(path).body.len(), 30 * 1024);
        before.elapsed()
    };
    assert!(timed("/slow") > Duration::from_millis(400));
    assert!(timed("/") < Duration::from_millis(300));
    assert_eq!(counted(&proxy, "response_enabled"), 1);
}

#[test]
fn a_caller_is_told_what_a_limit_cost_it() {
    let upstream = Upstream::start(|_, _, stream| {
        let body = format!("{:x}\r\n{}\r\n0\r\n\r\n", 3000, "y".repeat(3000));
        write!(stream, "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}").is_ok()
    });
    let more = "    enable_mode: RESPONSE\n    limit_kbps: 2\n    enable_response_trailers: true\n    response_trailer_prefix: x-cost";
    let answer = bandwidth(&upstream, more).start().get("/");
    let told = |name: &str| answer.body.lines().find_map(|l| l.strip_prefix(&format!("x-cost-bandwidth-{name}-ms: "))?.parse::<u64>().ok());
    assert!(told("response-delay").is_some_and(|ms| ms >= 350), "{answer:?}");
    assert!(told("response-filter-delay").is_some_and(|ms| ms >= 350), "{answer:?}");
    assert_eq!(told("request-delay"), None);
}

fn admission(cluster_of: &[u16], more: &str) -> Config {
    let mut config = Config::to(cluster_of);
    config.filters = format!(
        "- name: admission\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.admission_control.v3.AdmissionControl\n{more}"
    );
    config
}

fn outcomes(proxy: &Proxy) -> [u64; 3] {
    ["rq_success", "rq_failure", "rq_rejected"].map(|n| proxy.stat(&format!("http.t.admission_control.{n}")))
}

#[test]
fn most_requests_are_refused_while_all_fail_and_none_while_they_succeed() {
    let failing = Upstream::start(|_, _, stream| stream.write_all(b"HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n").is_ok());
    let proxy = admission(&[failing.port()], "    success_criteria: {}").start();
    for _ in 0..200 {
        let answer = proxy.get("/");
        assert!(answer.status == 500 || (answer.status == 503 && answer.body.is_empty()), "{answer:?}");
    }
    let [success, failure, rejected] = outcomes(&proxy);
    assert_eq!((success, failure + rejected, failing.seen().len() as u64), (0, 200, failure));
    // One in five passes, and a few more at first.
    assert!((20..90).contains(&failure), "{failure}");
    let fine = Upstream::ok("x");
    let proxy = admission(&[fine.port()], "    success_criteria: {}").start();
    (0..50).for_each(|_| assert_eq!(proxy.get("/").status, 200));
    assert_eq!(outcomes(&proxy), [50, 0, 0]);
}

#[test]
fn what_counts_as_success_and_when_is_configured() {
    let teapot = Upstream::start(|_, _, stream| stream.write_all(b"HTTP/1.1 418 Tea\r\ncontent-length: 0\r\n\r\n").is_ok());
    let criteria = "    success_criteria: {http_criteria: {http_success_status: [{start: 200, end: 300}]}}\n";
    let count = |more: &str| {
        let proxy = admission(&[teapot.port()], &format!("{criteria}{more}")).start();
        (0..40).for_each(|_| drop(proxy.get("/")));
        outcomes(&proxy)
    };
    assert!(count("")[2] > 10);
    assert_eq!(count("    rps_threshold: {default_value: 1000, runtime_key: a}"), [0, 40, 0]);
    assert_eq!(count("    enabled: {default_value: false, runtime_key: a}"), [0, 0, 0]);
    assert_eq!(count("    max_rejection_probability: {default_value: {value: 0}, runtime_key: a}"), [0, 40, 0]);
}

#[test]
fn a_grpc_calls_status_counts_wherever_it_comes() {
    let server = GrpcServer::start(|message| match message {
        b"1" => Reply::Status(14),
        _ => Reply::Status(5),
    });
    let mut config =
        admission(&[server.port()], "    success_criteria: {}\n    max_rejection_probability: {default_value: {value: 0}, runtime_key: a}");
    config.clusters = vec![cluster("c", &[server.port()], HTTP2)];
    let proxy = config.start();
    let call = |message: &str| {
        let request = "POST /s/m HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\nte: trailers\r\ncontent-length: 6\r\n\r\n";
        proxy.call(&format!("{request}\0\0\0\0\u{1}{message}")).status
    };
    assert_eq!([call("1"), call("2"), call("2")], [200; 3]);
    eventually(|| outcomes(&proxy) == [2, 1, 0]);
}
