//! What routes do: matches, weights, rewrites, redirects, header changes, local replies and their texts.
use std::time::Duration;

use crate::support::*;

#[test]
fn no_route_is_404_and_an_unknown_cluster_503() {
    let proxy = Config::to(&[1]).routes("- {match: {prefix: /known}, route: {cluster: nowhere}}").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.body.as_str()), (404, ""));
    assert_eq!(proxy.get("/known").status, 503);
    eventually(|| proxy.stat("http.t.no_route") == 1 && proxy.stat("http.t.no_cluster") == 1);
}

#[test]
fn a_route_may_ask_how_long_a_body_is() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()])
        .routes(
            "- {match: {prefix: /, headers: [{name: content-length, range_match: {start: 4, end: 100}}]}, direct_response: {status: 403}}\n\
             - {match: {prefix: /, headers: [{name: content-length, string_match: {exact: '0'}}]}, direct_response: {status: 404}}\n\
             - {match: {prefix: /}, route: {cluster: c}, request_headers_to_add: [{header: {key: x-length, value: '%REQ(CONTENT-LENGTH)%'}}]}",
        )
        .start();
    let post = |body: &str| proxy.call(&format!("POST / HTTP/1.1\r\nhost: a\r\n{body}")).status;
    assert_eq!(post("content-length: 4\r\n\r\nbody"), 403);
    assert_eq!(post("content-length: 0\r\n\r\n"), 404);
    assert_eq!(post("transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"), 200);
    assert_eq!(post("content-length: 3\r\n\r\nbod"), 200);
    assert!(upstream.seen()[1].contains("x-length: 3\r\n"), "{:?}", upstream.seen());
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn each_503_names_its_cause() {
    let proxy = Config::to(&[dead_port()])
        .cluster(cluster("empty", &[], ""))
        .routes("- {match: {prefix: /empty}, route: {cluster: empty}}\n- {match: {prefix: /}, route: {cluster: c}}")
        .start();
    let answer = proxy.get("/empty");
    assert_eq!((answer.status, answer.body.as_str()), (503, "no healthy upstream"));
    assert_eq!(answer.header("content-type"), Some("text/plain"));
    let answer = proxy.get("/");
    assert_eq!(answer.status, 503);
    assert_eq!(
        answer.body,
        "upstream connect error or disconnect/reset before headers. reset reason: remote connection failure, \
         transport failure reason: delayed connect error: Connection refused"
    );
    let answer = proxy.call("POST /empty HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\n\r\n");
    assert_eq!(
        (answer.status, answer.header("grpc-status"), answer.header("grpc-message")),
        (200, Some("14"), Some("no healthy upstream"))
    );
}

#[test]
fn a_connection_that_dies_before_the_response_is_503_and_after_it_is_cut_off() {
    let upstream = Upstream::start(|_, request, stream| {
        use std::io::Write;
        if request.contains("/half") {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc");
        }
        false
    });
    let proxy = Config::to(&[upstream.port()]).start();
    let answer = proxy.get("/");
    assert_eq!(
        (answer.status, answer.body.as_str()),
        (503, "upstream connect error or disconnect/reset before headers. reset reason: connection termination")
    );
    let mut stream = proxy.connect();
    std::io::Write::write_all(&mut stream, b"GET /half HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert!(Answer::try_read(&mut stream).is_none(), "the body must not look complete");
}

#[test]
fn timeouts_are_504_by_route_and_by_try() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(600));
        write_ok(stream, "late")
    });
    let proxy = Config::to(&[upstream.port()])
        .routes(
            "- {match: {prefix: /try}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: connect-failure, per_try_timeout: 0.1s}}}\n\
             - {match: {prefix: /}, route: {cluster: c, timeout: 0.1s}}",
        )
        .start();
    for path in ["/", "/try"] {
        let answer = proxy.get(path);
        assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"), "{path}");
    }
    assert!(upstream.seen()[0].contains("x-envoy-expected-rq-timeout-ms: 100"));
}

#[test]
fn weights_split_within_statistical_bounds() {
    let (a, b) = (Upstream::ok("a"), Upstream::ok("b"));
    let proxy = Config::to(&[a.port()])
        .cluster(cluster("d", &[b.port()], ""))
        .routes("- {match: {prefix: /}, route: {weighted_clusters: {clusters: [{name: c, weight: 90}, {name: d, weight: 10}]}}}")
        .start();
    let mut stream = proxy.connect();
    let mut first = 0;
    for _ in 0..1000 {
        std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        first += u32::from(Answer::read(&mut stream).body == "a");
    }
    assert!((860..=940).contains(&first), "{first} of 1000 for 90%");
}

#[test]
fn rewrites_redirects_and_header_changes() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()])
        .routes(
            r#"- match: {prefix: /old/}
  route: {cluster: c, prefix_rewrite: /new/, host_rewrite_literal: other.example}
  request_headers_to_add: [{header: {key: x-added, value: "%REQ(:METHOD)%-v"}, append_action: OVERWRITE_IF_EXISTS_OR_ADD}]
  request_headers_to_remove: [x-secret]
  response_headers_to_add: [{header: {key: x-resp, value: "1"}}]
- match: {prefix: /moved}
  redirect: {host_redirect: there.example, path_redirect: /here, response_code: FOUND}
- match: {prefix: /tea}
  direct_response: {status: 418, body: {inline_string: short and stout}}"#,
        )
        .start();
    let answer = proxy.call("GET /old/a?b HTTP/1.1\r\nhost: a\r\nx-secret: 1\r\n\r\n");
    assert_eq!(answer.header("x-resp"), Some("1"));
    let seen = &upstream.seen()[0];
    assert!(seen.starts_with("GET /new/a?b HTTP/1.1\r\nhost: other.example\r\n"), "{seen}");
    assert!(seen.contains("x-added: GET-v") && seen.contains("x-envoy-original-path: /old/a?b") && !seen.contains("x-secret"), "{seen}");
    let answer = proxy.get("/moved");
    assert_eq!((answer.status, answer.header("location")), (302, Some("http://there.example/here")));
    let answer = proxy.get("/tea");
    assert_eq!((answer.status, answer.body.as_str()), (418, "short and stout"));
}

#[test]
fn circuit_breakers_overflow_with_a_503_that_says_so() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(400));
        write_ok(stream, "x")
    });
    let limits = "circuit_breakers: {thresholds: [{max_connections: 1, max_pending_requests: 1}]}";
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[upstream.port()], limits)];
    let proxy = std::sync::Arc::new(config.start());
    let calls: Vec<_> = (0..4)
        .map(|_| {
            let proxy = proxy.clone();
            let call = std::thread::spawn(move || proxy.get("/"));
            std::thread::sleep(Duration::from_millis(40));
            call
        })
        .collect();
    let answers: Vec<Answer> = calls.into_iter().map(|c| c.join().unwrap()).collect();
    let refused: Vec<&Answer> = answers.iter().filter(|a| a.status == 503).collect();
    assert_eq!(refused.len(), 2, "one runs, one waits: {answers:?}");
    for answer in refused {
        assert_eq!(answer.body, "upstream connect error or disconnect/reset before headers. reset reason: overflow");
        assert_eq!(answer.header("x-envoy-overloaded"), Some("true"));
    }
    assert_eq!(proxy.stat("cluster.c.upstream_rq_pending_overflow"), 2);
}

#[test]
fn mirrors_get_copies_and_cost_the_caller_nothing() {
    let (main, shadow) = (Upstream::ok("main"), Upstream::start(|_, _, _| false));
    let proxy = Config::to(&[main.port()])
        .cluster(cluster("s", &[shadow.port()], ""))
        .routes(
            "- match: {prefix: /}\n  route:\n    cluster: c\n    request_mirror_policies: [{cluster: s, runtime_fraction: {default_value: {numerator: 100, denominator: HUNDRED}}}]",
        )
        .start();
    let answer = proxy.call("POST /p HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody");
    assert_eq!(answer.body, "main");
    eventually(|| shadow.seen().len() == 1);
    assert!(shadow.seen()[0].starts_with("POST /p HTTP/1.1") && shadow.seen()[0].contains("body"), "{:?}", shadow.seen());
}

#[test]
fn a_stale_pooled_connection_costs_no_request() {
    let upstream = Upstream::start(|_, _, stream| {
        write_ok(stream, "once");
        false
    });
    let proxy = Config::to(&[upstream.port()]).start();
    for _ in 0..20 {
        assert_eq!(proxy.get("/").status, 200);
    }
}

#[test]
fn a_rewrite_that_comes_to_nothing_is_none() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()])
        .routes(
            r#"- {match: {prefix: /path}, route: {cluster: c, regex_rewrite: {pattern: {regex: ".*"}, substitution: ""}}}
- {match: {prefix: /header}, route: {cluster: c, host_rewrite_header: x-host}}
- {match: {prefix: /regex}, route: {cluster: c, host_rewrite_path_regex: {pattern: {regex: ".*"}, substitution: ""}}}
- {match: {prefix: /literal}, route: {cluster: c, host_rewrite_literal: ""}}
- match: {prefix: /weighted}
  route: {host_rewrite_literal: other, weighted_clusters: {clusters: [{name: c, weight: 1, host_rewrite_literal: ""}]}}"#,
        )
        .start();
    for (path, host) in [("/path?q", "a"), ("/header", "a"), ("/regex", "a"), ("/literal", "a"), ("/weighted", "other")] {
        assert_eq!(proxy.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nx-host: \r\n\r\n")).status, 200);
        let seen = upstream.seen().pop().unwrap();
        assert!(seen.starts_with(&format!("GET {path} HTTP/1.1\r\n")) && seen.contains(&format!("host: {host}\r\n")), "{seen}");
        assert!(!seen.contains("x-envoy-original-path"), "{seen}");
    }
}

#[test]
fn a_rewritten_path_tells_the_old_one_even_if_it_is_the_same() {
    let upstream = Upstream::ok("x");
    Config::to(&[upstream.port()]).routes("- {match: {prefix: /}, route: {cluster: c, prefix_rewrite: /}}").start().get("/a?q");
    assert!(upstream.seen()[0].contains("x-envoy-original-path: /a?q\r\n"), "{:?}", upstream.seen());
}
