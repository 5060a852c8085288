//! Responses whose head a filter holds back until their body is there: limits of time go on, and the caller is told.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use crate::support::*;

const CALL: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-type: application/grpc\r\ncontent-length: 10\r\n\r\n12345hello";
const HEAD: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 6\r\n\r\n";
const ROUTE: &str = "- {match: {prefix: /}, route: {cluster: c, timeout: LIMIT}}";

/// Says `first` and waits until the proxy hangs up, which is counted.
fn stalling(first: &'static [u8]) -> (Upstream, Arc<AtomicUsize>) {
    let let_go = Arc::new(AtomicUsize::new(0));
    let count = let_go.clone();
    let upstream = Upstream::start(move |_, _, stream: &mut TcpStream| {
        stream.write_all(first).unwrap();
        stream.set_read_timeout(Some(2 * WAIT)).unwrap();
        // The end, or a reset.
        if !matches!(stream.read(&mut [0; 64]), Ok(1..)) {
            count.fetch_add(1, SeqCst);
        }
        false
    });
    (upstream, let_go)
}

/// Lets 1 KiB of a response through in a second.
const THROTTLE: &str = "\n- name: slow\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.filters.http.bandwidth_limit.v3.BandwidthLimit\n    \
                        stat_prefix: slow\n    enable_mode: RESPONSE\n    limit_kbps: 1";

/// A proxy that makes a gRPC message of the whole body, and the file where it logs.
fn bridge(upstream: &Upstream, route_limit: &str, hcm: &str) -> (Proxy, tempfile::TempDir) {
    bridge_and(upstream, route_limit, hcm, "")
}

/// The same behind another filter, which sees responses first.
fn bridge_and(upstream: &Upstream, route_limit: &str, hcm: &str, other: &str) -> (Proxy, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::to(&[upstream.port()]).routes(&ROUTE.replace("LIMIT", route_limit));
    config.hcm = format!(
        "{hcm}\naccess_log:\n- name: f\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog\n    \
         path: {}\n    log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%\\n\"}}}}",
        folder.path().join("log").display()
    );
    config.filters = "- name: bridge\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.FilterConfig\n    \
                      content_type: application/x-protobuf\n    withhold_grpc_frames: true"
        .to_owned()
        + other;
    (config.start(), folder)
}

/// What the caller and the log are told: gRPC's status and message, flags and details.
fn told(proxy: &Proxy, folder: &tempfile::TempDir) -> (String, String, String) {
    let since = Instant::now();
    let answer = proxy.call(CALL);
    assert!(since.elapsed() < Duration::from_secs(3), "{:?}", since.elapsed());
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/grpc")), "{answer:?}");
    let field = |name| answer.header(name).unwrap_or_default().to_owned();
    let log = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    eventually(|| log().ends_with('\n'));
    (field("grpc-status"), field("grpc-message"), log().trim_end().to_owned())
}

fn is_over(proxy: &Proxy, let_go: &AtomicUsize) {
    eventually(|| let_go.load(SeqCst) == 1);
    eventually(|| proxy.stat("cluster.c.upstream_cx_active") == 0 && proxy.stat("cluster.c.upstream_rq_active") == 0);
    assert_eq!(proxy.stat("http.t.rq_reset_after_downstream_response_started"), 1);
}

#[test]
fn a_route_limits_a_response_that_is_held_back() {
    // Whether nothing comes after the head, or not enough.
    for first in [HEAD, b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ntransfer-encoding: chunked\r\n\r\n3\r\nans\r\n"] {
        let (upstream, let_go) = stalling(first);
        let (proxy, folder) = bridge(&upstream, "0.4s", "");
        let (status, message, log) = told(&proxy, &folder);
        assert_eq!((status.as_str(), message.as_str(), log.as_str()), ("14", "upstream request timeout", "UT response_timeout"));
        assert_eq!(proxy.stat("cluster.c.upstream_rq_timeout"), 1);
        is_over(&proxy, &let_go);
    }
}

#[test]
fn a_response_that_is_held_back_is_watched_while_a_filter_before_takes_its_time() {
    let mut first = b"HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\ncontent-length: 30000\r\n\r\n".to_vec();
    first.resize(20_000, b'x');
    let (upstream, let_go) = stalling(first.leak());
    let (proxy, folder) = bridge_and(&upstream, "0.4s", "", THROTTLE);
    let (status, message, log) = told(&proxy, &folder);
    assert_eq!((status.as_str(), message.as_str(), log.as_str()), ("14", "upstream request timeout", "UT response_timeout"));
    is_over(&proxy, &let_go);
}

#[test]
fn a_response_that_is_held_back_may_not_be_silent_for_longer_than_any_other() {
    let (upstream, let_go) = stalling(HEAD);
    let (proxy, folder) = bridge(&upstream, "0s", "stream_idle_timeout: 0.4s");
    let (status, message, log) = told(&proxy, &folder);
    assert_eq!((status.as_str(), message.as_str(), log.as_str()), ("14", "stream timeout", "SI stream_idle_timeout"));
    assert_eq!(proxy.stat("http.t.downstream_rq_idle_timeout"), 1);
    is_over(&proxy, &let_go);
}

#[test]
fn a_response_that_breaks_while_it_is_held_back_is_an_error_that_the_caller_can_read() {
    let upstream = Upstream::start(|_, _, stream| {
        stream.write_all(HEAD).unwrap();
        false
    });
    let (proxy, folder) = bridge(&upstream, "0s", "");
    let (status, message, log) = told(&proxy, &folder);
    assert_eq!(status, "14");
    assert!(message.contains("reset reason: protocol error"), "{message}");
    assert!(log.starts_with("UPE upstream_reset_after_response_started{protocol_error"), "{log}");
}

#[test]
fn bytes_that_trickle_in_keep_a_response_that_is_held_back_alive() {
    let upstream = Upstream::start(|_, _, stream| {
        stream.write_all(HEAD).unwrap();
        b"answer".iter().all(|byte| {
            std::thread::sleep(Duration::from_millis(150));
            stream.write_all(&[*byte]).is_ok()
        })
    });
    let (proxy, _folder) = bridge(&upstream, "0s", "stream_idle_timeout: 0.6s");
    let answer = proxy.call(CALL);
    assert_eq!((answer.status, answer.body.as_str()), (200, "\0\0\0\0\u{6}answer"), "{answer:?}");
}
