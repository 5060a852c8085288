//! Retries: conditions, limits, bodies, hosts.
use std::io::Write;

use crate::support::*;

pub(crate) fn with_policy(ports: &[u16], policy: &str) -> Proxy {
    Config::to(ports).routes(&format!("- {{match: {{prefix: /}}, route: {{cluster: c, timeout: 0s, retry_policy: {policy}}}}}")).start()
}

#[test]
fn retries_hide_a_failure_and_repeat_the_body() {
    let upstream = Upstream::start(|n, _, stream| if n < 3 { write_status(stream, 503) } else { write_ok(stream, "third") });
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 2}");
    let answer = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!((answer.status, answer.body.as_str()), (200, "third"));
    assert_eq!(upstream.seen().len(), 3);
    assert!(upstream.seen().iter().all(|r| r.ends_with("hello")));
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 2);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_success"), 1);
}

#[test]
fn retries_end_at_their_number_and_only_start_on_their_conditions() {
    let upstream = Upstream::start(|_, _, stream| write_status(stream, 500));
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 1}");
    assert_eq!(proxy.get("/").status, 500);
    assert_eq!(upstream.seen().len(), 2);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_limit_exceeded"), 1);
    let upstream = Upstream::start(|_, _, stream| write_status(stream, 500));
    let proxy = with_policy(&[upstream.port()], "{retry_on: \"gateway-error,connect-failure\", num_retries: 3}");
    assert_eq!(proxy.get("/").status, 500);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_retry_avoids_the_host_that_failed() {
    let (bad, good) = (Upstream::start(|_, _, stream| write_status(stream, 503)), Upstream::ok("good"));
    let policy = "{retry_on: retriable-status-codes, retriable_status_codes: [503], num_retries: 1, host_selection_retry_max_attempts: 5, \
                  retry_host_predicate: [{name: envoy.retry_host_predicates.previous_hosts, typed_config: \
                  {\"@type\": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate}}]}";
    let proxy = with_policy(&[bad.port(), good.port()], policy);
    for _ in 0..20 {
        assert_eq!(proxy.get("/").body, "good");
    }
}

/// One host in each of two priorities; a second try goes to the other.
fn over_priorities(first: u16, second: u16) -> Config {
    let policy = "{retry_on: 5xx, num_retries: 1, retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {\"@type\": \
                  type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}}";
    let mut config = Config::to(&[]).routes(&format!("- {{match: {{prefix: /}}, route: {{cluster: c, retry_policy: {policy}}}}}"));
    let level = |priority: usize, port: u16| {
        format!(
            "{{priority: {priority}, lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}]}}"
        )
    };
    let endpoints = [level(0, first), level(1, second)].join(", ");
    config.clusters = vec![format!("- name: c\n  type: STATIC\n  load_assignment: {{cluster_name: c, endpoints: [{endpoints}]}}")];
    config
}

#[test]
fn a_retry_goes_past_the_priorities_that_failed() {
    let (bad, good) = (Upstream::start(|_, _, stream| write_status(stream, 503)), Upstream::ok("good"));
    let proxy = over_priorities(bad.port(), good.port()).start();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").body, "good");
    }
    assert_eq!(bad.seen().len(), 10, "the first try goes where it always goes");
}

#[test]
fn connect_failures_are_retried_and_a_reply_says_that_they_were() {
    let proxy = with_policy(&[dead_port()], "{retry_on: connect-failure, num_retries: 2}");
    let answer = proxy.get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("retried and the latest reset reason: remote connection failure"), "{}", answer.body);
    assert_eq!(proxy.stat("cluster.c.upstream_cx_connect_fail"), 3);
}

#[test]
fn a_try_without_a_connection_is_not_reported_with_that_of_the_try_before() {
    let answering = Upstream::start(|_, _, stream| write_status(stream, 503));
    let dead = dead_port();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut config = over_priorities(answering.port(), dead);
    config.hcm = format!(
        "access_log: [{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: {}, log_format: {{text_format_source: {{inline_string: \
         \"%UPSTREAM_HOST% %UPSTREAM_LOCAL_ADDRESS% %UPSTREAM_PROTOCOL% %UPSTREAM_REQUEST_ATTEMPT_COUNT%\\n\"}}}}}}}}]",
        log.display()
    );
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 503);
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    eventually(|| read().ends_with('\n'));
    assert_eq!(read(), format!("127.0.0.1:{dead} - - 2\n"));
}

#[test]
fn a_body_beyond_the_buffer_is_not_repeated() {
    let upstream = Upstream::start(|n, _, stream| if n == 1 { write_status(stream, 503) } else { write_ok(stream, "") });
    let proxy = with_policy(&[upstream.port()], "{retry_on: 5xx, num_retries: 2}");
    let body = "b".repeat(100_000);
    let answer = proxy.call(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
    assert_eq!(answer.status, 503);
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn a_grpc_status_in_the_head_is_a_condition() {
    let upstream = Upstream::start(|n, _, stream| {
        use std::io::Write;
        let status = if n == 1 { 14 } else { 0 };
        stream
            .write_all(
                format!("HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ngrpc-status: {status}\r\ncontent-length: 0\r\n\r\n")
                    .as_bytes(),
            )
            .is_ok()
    });
    let proxy = with_policy(&[upstream.port()], "{retry_on: \"unavailable,cancelled\", num_retries: 2}");
    let answer = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n");
    assert_eq!(answer.header("grpc-status"), Some("0"));
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn only_requests_that_the_policy_names_are_tried_again() {
    let upstream = Upstream::start(|_, _, stream| write_status(stream, 503));
    let proxy = with_policy(
        &[upstream.port()],
        "{retry_on: 5xx, num_retries: 1, retriable_request_headers: [{name: x-again, present_match: true}]}",
    );
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(upstream.seen().len(), 1);
    proxy.call("GET / HTTP/1.1\r\nhost: a\r\nx-again: yes\r\n\r\n");
    assert_eq!(upstream.seen().len(), 3);
}

#[test]
fn a_server_says_how_long_to_wait() {
    let respond = |n, _: &str, stream: &mut std::net::TcpStream| match n {
        1 => stream.write_all(b"HTTP/1.1 503 X\r\nretry-after: 1\r\ncontent-length: 0\r\n\r\n").is_ok(),
        _ => write_ok(stream, "later"),
    };
    let upstream = Upstream::start(respond);
    let policy = "{retry_on: 5xx, num_retries: 1, rate_limited_retry_back_off: {reset_headers: [{name: retry-after, format: SECONDS}]}}";
    let proxy = with_policy(&[upstream.port()], policy);
    let began = std::time::Instant::now();
    std::thread::scope(|scope| {
        let caller = scope.spawn(|| proxy.get("/"));
        eventually(|| proxy.stat("cluster.c.upstream_rq_total") == 1);
        // Meanwhile nobody waits for the host, and its connection is free.
        eventually(|| proxy.stat("cluster.c.upstream_rq_active") == 0);
        assert_eq!(proxy.stat("http.t.downstream_rq_active"), 1);
        assert_eq!(caller.join().unwrap().body, "later");
    });
    assert_eq!(upstream.connections.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(began.elapsed() >= std::time::Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_backoff_ratelimited"), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_backoff_exponential"), 0);
}

#[test]
fn a_budget_of_nothing_allows_no_retry() {
    let upstream = Upstream::start(|_, _, stream| write_status(stream, 503));
    let mut config = Config::to(&[]).routes("- {match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx, num_retries: 3}}}");
    let budget = "circuit_breakers: {thresholds: [{retry_budget: {budget_percent: {value: 0}, min_retry_concurrency: 0}}]}";
    config.clusters = vec![cluster("c", &[upstream.port()], budget)];
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 503);
    assert_eq!(upstream.seen().len(), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_overflow"), 1);
}

pub(crate) const HEDGED: &str = "- {match: {prefix: /}, route: {cluster: c, timeout: 4s, hedge_policy: {hedge_on_per_try_timeout: true}, \
                      retry_policy: {retry_on: 5xx, num_retries: 1, per_try_timeout: 0.2s, retry_back_off: {base_interval: 0.005s}}}}";

/// An upstream that takes so many milliseconds for each request in turn, and answers with the status in `answers`.
pub(crate) fn slow(answers: &'static [(u64, u16)]) -> Upstream {
    Upstream::start(move |n, _, stream| {
        let (millis, status) = answers.get(n - 1).copied().unwrap_or((0, 200));
        std::thread::sleep(std::time::Duration::from_millis(millis));
        let body = n.to_string();
        stream.write_all(format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes()).is_ok()
    })
}

#[test]
fn a_slow_try_goes_on_beside_its_repetition_and_the_first_good_answer_wins() {
    for (answers, winner) in [
        (&[(3_000, 200), (0, 200)][..], "2"),
        (&[(700, 200), (3_000, 200)], "1"),
        (&[(700, 503), (1_200, 200)], "2"),
        (&[(1_200, 200), (0, 503)], "1"),
        (&[(1_200, 503), (0, 503)], "1"),
    ] {
        let upstream = slow(answers);
        let proxy = Config::to(&[upstream.port()]).routes(HEDGED).start();
        let answer = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
        assert_eq!(answer.body, winner, "{answers:?}");
        assert_eq!(upstream.seen().len(), 2, "{answers:?}");
        assert!(upstream.seen().iter().all(|r| r.ends_with("hello")));
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry"), 1);
        eventually(|| proxy.stat("cluster.c.upstream_rq_active") == 0);
    }
}

#[test]
fn a_stranger_does_not_ask_for_tries_beside_each_other() {
    let upstream = slow(&[(600, 200), (0, 503)]);
    let proxy = Config::to(&[upstream.port()]).routes(&HEDGED.replace("hedge_policy: {hedge_on_per_try_timeout: true}, ", "")).start();
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\nx-envoy-hedge-on-per-try-timeout: true\r\n\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (503, "2"), "the first try is over when its time is");
}

#[test]
fn without_retries_left_a_slow_try_is_waited_for() {
    let upstream = slow(&[(800, 200)]);
    let routes = HEDGED.replace("num_retries: 1", "num_retries: 0");
    let proxy = Config::to(&[upstream.port()]).routes(&routes).start();
    assert_eq!(proxy.get("/").body, "1");
    let upstream = slow(&[(3_000, 200)]);
    let routes = routes.replace("timeout: 4s", "timeout: 0.6s");
    let proxy = Config::to(&[upstream.port()]).routes(&routes).start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
}

#[test]
fn the_limit_of_a_try_starts_when_the_request_is_complete() {
    let upstream = Upstream::ok("done");
    let routes =
        "- {match: {prefix: /}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: connect-failure, per_try_timeout: 0.3s}}}";
    let proxy = Config::to(&[upstream.port()]).routes(routes).start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhel").unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    stream.write_all(b"lo").unwrap();
    assert_eq!(Answer::read(&mut stream).body, "done");
}

#[test]
fn an_upstream_is_told_that_the_try_before_was_too_slow() {
    let upstream = slow(&[(1_500, 200), (0, 503)]);
    let mut config = Config::to(&[upstream.port()]).routes(
        "- {match: {prefix: /}, route: {cluster: c, timeout: 0s, \
         retry_policy: {retry_on: 5xx, num_retries: 2, per_try_timeout: 0.3s, retry_back_off: {base_interval: 0.005s}}}}",
    );
    config.virtual_host = "include_is_timeout_retry_header: true".to_owned();
    let proxy = config.start();
    assert_eq!(proxy.get("/").body, "3");
    let told: Vec<_> =
        upstream.seen().iter().map(|r| r.lines().find_map(|l| l.strip_prefix("x-envoy-is-timeout-retry: ").map(str::to_owned))).collect();
    assert_eq!(told, [None, Some("true".to_owned()), Some("false".to_owned())]);
}

#[test]
fn a_caller_may_ask_for_silence_instead_of_a_timeout() {
    let upstream = slow(&[(2_000, 200)]);
    let mut config = Config::to(&[upstream.port()]).routes("- {match: {prefix: /}, route: {cluster: c, timeout: 0.3s}}");
    config.hcm =
        "internal_address_config: {cidr_ranges: [{address_prefix: 127.0.0.0, prefix_len: 8}]}\nuse_remote_address: true".to_owned();
    let proxy = config.start();
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\nx-envoy-upstream-rq-timeout-alt-response: 1\r\n\r\n");
    assert_eq!(answer.status, 204);
    assert!(!upstream.seen()[0].contains("alt-response"));
}

/// Two hosts that fail, both labelled, and one that does not, in this order.
fn labelled(bad: [u16; 2], good: u16, label: &str, policy: &str) -> Proxy {
    let mut config = Config::to(&[]).routes(&format!(
        "- {{match: {{prefix: /}}, route: {{cluster: c, retry_policy: {{retry_on: 5xx, num_retries: 1, host_selection_retry_max_attempts: 5{policy}}}}}}}"
    ));
    let endpoint = |port: u16, label: &str| {
        let labels = format!("metadata: {{filter_metadata: {{envoy.lb: {{{label}}}}}}}");
        format!("{{{labels}, endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}")
    };
    let endpoints = [endpoint(bad[0], label), endpoint(bad[1], label), endpoint(good, "other: 1")].join(", ");
    config.clusters =
        vec![format!("- name: c\n  type: STATIC\n  load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{endpoints}]}}]}}")];
    config.start()
}

#[test]
fn retries_go_past_canaries_and_hosts_with_certain_metadata() {
    let predicate = |name: &str, message: &str, more: &str| {
        format!(
            ", retry_host_predicate: [{{name: envoy.retry_host_predicates.{name}, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.retry.host.{name}.v3.{message}{more}}}}}]"
        )
    };
    let canaries = predicate("omit_canary_hosts", "OmitCanaryHostsPredicate", "");
    let old = predicate("omit_host_metadata", "OmitHostMetadataConfig", ", metadata_match: {filter_metadata: {envoy.lb: {stage: old}}}");
    for (label, policy, hides) in [
        ("canary: true", &canaries, true),
        ("canary: false", &canaries, false),
        ("stage: [new, old]", &old, true),
        ("stage: new", &old, false),
    ] {
        let bad = [0; 2].map(|_| Upstream::start(|_, _, stream| write_status(stream, 503)));
        let good = Upstream::ok("good");
        let proxy = labelled([bad[0].port(), bad[1].port()], good.port(), label, policy);
        let answers: Vec<u16> = (0..12).map(|_| proxy.get("/").status).collect();
        assert_eq!(answers.iter().all(|status| *status == 200), hides, "{label}: {answers:?}");
        assert!(bad.iter().any(|b| !b.seen().is_empty()), "first tries go anywhere");
    }
}

#[test]
fn a_retry_goes_past_the_members_of_an_aggregate_that_failed() {
    let (bad, good) = (Upstream::start(|_, _, stream| write_status(stream, 503)), Upstream::ok("good"));
    let policy = "{retry_on: 5xx, num_retries: 1, retry_priority: {name: envoy.retry_priorities.previous_priorities, typed_config: {\"@type\": \
                  type.googleapis.com/envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig, update_frequency: 1}}}";
    let mut config = Config::to(&[]).routes(&format!("- {{match: {{prefix: /}}, route: {{cluster: c, retry_policy: {policy}}}}}"));
    config.clusters = vec![
        "- {name: c, lb_policy: CLUSTER_PROVIDED, cluster_type: {name: envoy.clusters.aggregate, typed_config: {'@type': \
         type.googleapis.com/envoy.extensions.clusters.aggregate.v3.ClusterConfig, clusters: [first, second]}}}"
            .to_owned(),
        cluster("first", &[bad.port()], ""),
        cluster("second", &[good.port()], ""),
    ];
    let proxy = config.start();
    for _ in 0..10 {
        assert_eq!(proxy.get("/").body, "good");
    }
    assert_eq!(bad.seen().len(), 10, "the first try goes where it always goes");
    let codes = |name: &str| ["2xx", "5xx"].map(|class| proxy.stat(&format!("cluster.{name}.upstream_rq_{class}")));
    assert_eq!([codes("c"), codes("first"), codes("second")], [[10, 0], [0, 0], [0, 0]], "responses are those of the route's cluster");
}

#[test]
fn a_budget_with_an_interval_counts_requests_that_are_over() {
    let upstream = Upstream::start(
        |_, request, stream| {
            if request.starts_with("GET /bad") { write_status(stream, 503) } else { write_ok(stream, "fine") }
        },
    );
    // A fifth of five is one, of one none.
    for (interval, tries) in [("10s", 2), ("0s", 1)] {
        let mut config =
            Config::to(&[]).routes("- {match: {prefix: /}, route: {cluster: c, retry_policy: {retry_on: 5xx, num_retries: 1}}}");
        let budget = format!("budget_percent: {{value: 20.5}}, min_retry_concurrency: 0, budget_interval: {interval}");
        config.clusters =
            vec![cluster("c", &[upstream.port()], &format!("circuit_breakers: {{thresholds: [{{retry_budget: {{{budget}}}}}]}}"))];
        let proxy = config.start();
        (0..4).for_each(|_| assert_eq!(proxy.get("/").status, 200));
        assert_eq!(proxy.get("/bad").status, 503);
        assert_eq!(proxy.stat("cluster.c.upstream_rq_total"), 4 + tries, "{interval}");
        assert_eq!(proxy.stat("cluster.c.upstream_rq_retry_overflow"), 2 - tries, "{interval}");
    }
}

#[test]
fn responses_and_failures_count_once_for_a_request_and_late_ends_count_as_late() {
    let upstream = Upstream::start(|n, request, stream| match (request.split(' ').nth(1), n) {
        (Some("/late"), _) => {
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf");
            std::thread::sleep(std::time::Duration::from_millis(600));
            false
        }
        (_, 1) => write_status(stream, 503),
        _ => write_ok(stream, "fine"),
    });
    let retry = "retry_policy: {retry_on: 5xx, num_retries: 1}";
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("dead", &[dead_port()], "")).routes(&format!(
        "- {{match: {{prefix: /late}}, route: {{cluster: c, timeout: 0.2s}}}}\n- {{match: {{prefix: /dead}}, route: {{cluster: dead, {retry}}}}}\n\
         - {{match: {{prefix: /none}}, route: {{cluster: none}}}}\n- {{match: {{prefix: /}}, route: {{cluster: c, {retry}}}}}"
    ));
    config.clusters.push("- {name: none, type: STATIC, load_assignment: {cluster_name: none}}".to_owned());
    let proxy = config.start();
    assert_eq!(["/", "/dead", "/none"].map(|path| proxy.get(path).status), [200, 503, 503]);
    let codes = |name: &str| ["2xx", "5xx"].map(|class| proxy.stat(&format!("cluster.{name}.upstream_rq_{class}")));
    assert_eq!([codes("c"), codes("dead"), codes("none")], [[1, 0], [0, 1], [0, 1]]);
    let mut stream = proxy.connect();
    stream.write_all(b"GET /late HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let mut all = Vec::new();
    let _ = std::io::Read::read_to_end(&mut stream, &mut all);
    assert!(all.ends_with(b"half"), "{}", String::from_utf8_lossy(&all));
    assert_eq!((codes("c"), proxy.stat("cluster.c.upstream_rq_timeout")), ([2, 0], 1));
}

#[test]
fn a_limit_that_comes_while_a_retry_waits_is_told_as_what_it_is() {
    let back_off = "num_retries: 3, retry_on: 5xx, retry_back_off: {base_interval: 1000s, max_interval: 1000s}";
    let counted = |limits: &str, more: &str, body: &str| {
        let upstream = Upstream::start(|_, _, stream| {
            std::thread::sleep(std::time::Duration::from_millis(200));
            write_status(stream, 503)
        });
        let route = format!("- {{match: {{prefix: /}}, route: {{cluster: c, {limits}, retry_policy: {{{back_off}{more}}}}}}}");
        let proxy = Config::to(&[upstream.port()]).routes(&route).start();
        let answer = proxy.get("/");
        assert_eq!((answer.status, answer.body.as_str()), (504, body));
        assert_eq!(upstream.seen().len(), 1);
        ["timeout", "504", "retry"].map(|n| proxy.stat(&format!("cluster.c.upstream_rq_{n}")))
    };
    // Nothing was asked of the upstream any more.
    assert_eq!(counted("timeout: 0.5s", "", "upstream request timeout"), [0; 3]);
    let stream = "timeout: 60s, max_stream_duration: {max_stream_duration: 0.5s}";
    assert_eq!(counted(stream, "", "downstream duration timeout"), [0; 3]);
    let hedged = "timeout: 0.15s, hedge_policy: {hedge_on_per_try_timeout: true}";
    assert_eq!(counted(hedged, ", per_try_timeout: 0.05s", "upstream request timeout"), [1, 1, 0]);
}
