//! What belongs to a try: interim responses, limits of its own, and what its time and its end count in.
use std::io::{Read, Write};
use std::time::Duration;

use lateen_telemetry::stats::Value;

use crate::retries::{HEDGED, slow, with_policy};
use crate::support::*;

#[test]
fn nothing_is_tried_again_once_the_caller_was_told_something() {
    let upstream = Upstream::start(|_, request, stream| {
        stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").unwrap();
        // A connection that ends here is no reason either, though the request could be repeated.
        !request.starts_with("GET /cut") && write_status(stream, 503)
    });
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 2}");
    for (nth, path) in ["/", "/cut"].into_iter().enumerate() {
        let mut stream = proxy.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, 103);
        assert_eq!(Answer::read(&mut stream).status, 503);
        assert_eq!(upstream.seen().len(), nth + 1);
    }
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 0);
    // What began and broke off was no response of the cluster's.
    assert_eq!(["1xx", "5xx"].map(|class| proxy.stat(&format!("cluster.c.upstream_rq_{class}"))), [2, 1]);
}

#[test]
fn a_try_that_tells_the_caller_something_leaves_no_slower_one_behind() {
    let upstream = Upstream::start(|n, _, stream| {
        if n == 2 {
            stream.write_all(b"HTTP/1.1 103 Early Hints\r\n\r\n").unwrap();
        }
        std::thread::sleep(Duration::from_millis(900));
        write_ok(stream, if n == 1 { "slow" } else { "told" })
    });
    let proxy = Config::to(&[upstream.port()]).routes(HEDGED).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 103);
    assert_eq!(Answer::read(&mut stream).body, "told");
}

#[test]
fn a_try_may_be_silent_while_the_caller_sends() {
    let upstream = slow(&[(0, 200), (1_500, 200)]);
    let routes =
        "- {match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: connect-failure, per_try_idle_timeout: 0.3s}}}";
    let proxy = Config::to(&[upstream.port()]).routes(routes).start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel").unwrap();
    std::thread::sleep(Duration::from_millis(700));
    stream.write_all(b"lo").unwrap();
    assert_eq!(Answer::read(&mut stream).body, "1");
    assert_eq!(proxy.get("/").status, 504);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_per_try_idle_timeout"), 1);
}

#[test]
fn a_silent_try_too_goes_on_beside_its_repetition() {
    let upstream = slow(&[(700, 200), (3_000, 200)]);
    let proxy = Config::to(&[upstream.port()]).routes(&HEDGED.replace("per_try_timeout: 0.2s", "per_try_idle_timeout: 0.2s")).start();
    assert_eq!(proxy.get("/").body, "1");
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_per_try_idle_timeout"), 0);
}

#[test]
fn the_service_time_is_that_of_all_tries_and_none_of_the_callers() {
    let upstream = slow(&[(400, 503), (0, 200)]);
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 1, retry_back_off: {base_interval: 0.005s}}");
    let took = |answer: &Answer| answer.header("x-envoy-upstream-service-time").unwrap().parse::<u64>().unwrap();
    assert!(took(&proxy.get("/")) >= 400);
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel").unwrap();
    std::thread::sleep(Duration::from_millis(700));
    stream.write_all(b"lo").unwrap();
    assert!(took(&Answer::read(&mut stream)) < 500);
}

#[test]
fn a_retry_succeeds_with_whatever_is_not_tried_again() {
    for (answers, success, exceeded) in [(&[(0, 503), (0, 404)][..], 1, 0), (&[(0, 503), (0, 409)], 0, 1), (&[(0, 404)], 0, 0)] {
        let upstream = slow(answers);
        let proxy = with_policy(&[upstream.port()], "{retry_on: \"gateway-error,retriable-4xx\", num_retries: 1}");
        assert_eq!(u64::from(proxy.get("/").status), u64::from(answers.last().unwrap().1));
        assert_eq!(
            ["success", "limit_exceeded"].map(|n| proxy.stat(&format!("cluster.c.upstream_rq_retry_{n}"))),
            [success, exceeded],
            "{answers:?}"
        );
    }
    let upstream = slow(&[(0, 503), (0, 500)]);
    let proxy = with_policy(&[upstream.port()], "{retry_on: gateway-error, num_retries: 1}");
    assert_eq!(proxy.get("/").status, 500);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_success"), 1);
}

/// How often a histogram was written, and the sum of it in microseconds.
fn recorded(proxy: &Proxy, name: &str) -> (u64, u64) {
    match proxy.registry.scrape(false, &|n| n == name).first().map(|sample| sample.value.clone()) {
        Some(Value::Histogram(histogram)) => (histogram.count(), histogram.sum),
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn the_time_of_a_request_ends_with_its_response_and_counts_once() {
    let upstream = Upstream::start(|n, request, stream| {
        if n == 1 {
            return write_status(stream, 503);
        }
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nha").unwrap();
        std::thread::sleep(Duration::from_millis(400));
        // The other ends before its time, and has none.
        !request.starts_with("GET /cut") && stream.write_all(b"lf").is_ok()
    });
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 1, retry_back_off: {base_interval: 0.005s}}");
    assert_eq!(proxy.get("/").body, "half");
    let mut stream = proxy.connect();
    stream.write_all(b"GET /cut HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let _ = stream.read_to_end(&mut Vec::new());
    let (times, micros) = recorded(&proxy, "cluster.c.upstream_rq_time");
    assert_eq!(times, 1);
    assert!(micros >= 400_000, "{micros}");
}

/// [destroyed, by us, by the peer, with a request, by us, by the peer]
fn destroyed(proxy: &Proxy, cluster: &str) -> [u64; 6] {
    let kinds = ["", "_local", "_remote", "_with_active_rq", "_local_with_active_rq", "_remote_with_active_rq"];
    kinds.map(|kind| proxy.stat(&format!("cluster.{cluster}.upstream_cx_destroy{kind}")))
}

#[test]
fn the_end_of_a_connection_counts_by_who_ended_it_and_what_it_carried() {
    let upstream = Upstream::start(|_, request, stream| match request.split(' ').nth(1).unwrap() {
        "/last" => stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 0\r\n\r\n").is_ok(),
        "/until-it-ends" => stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nall").is_err(),
        "/half" => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").is_err(),
        "/nonsense" => stream.write_all(b"nonsense\r\n\r\n").is_ok(),
        "/late" => {
            std::thread::sleep(Duration::from_millis(600));
            false
        }
        "/then-leaves" => !write_ok(stream, ""),
        _ => false,
    });
    for (path, expected) in [
        ("/last", [1, 1, 0, 0, 0, 0]),
        ("/until-it-ends", [1, 0, 1, 0, 0, 0]),
        ("/half", [1, 0, 1, 1, 0, 1]),
        ("/nonsense", [1, 1, 0, 1, 1, 0]),
        ("/late", [1, 1, 0, 1, 1, 0]),
        ("/then-leaves", [1, 0, 1, 0, 0, 0]),
        ("/nothing", [1, 0, 1, 1, 0, 1]),
    ] {
        let proxy = Config::to(&[upstream.port()]).routes("- {match: {prefix: /}, route: {cluster: c, timeout: 0.3s}}").start();
        let mut stream = proxy.connect();
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").as_bytes()).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
        eventually(|| destroyed(&proxy, "c")[0] == 1);
        assert_eq!(destroyed(&proxy, "c"), expected, "{path}");
    }
    let proxy = Config::to(&[dead_port()]).start();
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(destroyed(&proxy, "c"), [1, 0, 1, 0, 0, 0]);
}

#[test]
fn the_connections_of_a_tcp_proxy_end_in_the_same_counters() {
    let tcp = |port| start(&connections("", &tcp_proxy("cluster: c"), &cluster("c", &[port], "")));
    let proxy = tcp(dead_port());
    let _ = proxy.connect().read(&mut [0; 1]);
    eventually(|| destroyed(&proxy, "c") == [1, 0, 1, 0, 0, 0]);
    // The host ends first, and the caller then: it is we who close the connection.
    let proxy = tcp(tcp_server(|mut stream| {
        let _ = stream.write_all(b"bye");
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }));
    let mut stream = proxy.connect();
    stream.read_to_end(&mut Vec::new()).unwrap();
    drop(stream);
    eventually(|| destroyed(&proxy, "c") == [1, 1, 0, 1, 1, 0]);
    // The caller ends first, and the host closes.
    let proxy = tcp(tcp_echo());
    let mut stream = proxy.connect();
    stream.write_all(b"x").unwrap();
    half_close(&stream);
    stream.read_to_end(&mut Vec::new()).unwrap();
    eventually(|| destroyed(&proxy, "c") == [1, 0, 1, 1, 0, 1]);
}
