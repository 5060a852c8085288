//! Active health checks of the main thread against peers of the test's own.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering::SeqCst};

use bytes::Bytes;
use http::{HeaderMap, Response};
use lateen_balance::host::{DEGRADED_ACTIVE_HC, EXCLUDED_VIA_IMMEDIATE_HC_FAIL, FAILED_ACTIVE_HC};
use lateen_proxy::main_thread::{Main, Process};

use crate::support::*;

const OFTEN: &str = "timeout: 2s, interval: 0.02s, no_traffic_interval: 0.02s";

/// A proxy of one cluster `c` with one health check, and the runtime that it lives in.
pub(crate) struct Checked {
    process: Process,
    _runtime: tokio::runtime::Runtime,
}

impl Checked {
    pub(crate) fn start(endpoint: &str, check: &str) -> Self {
        let yaml = format!(
            "node: {{id: t, cluster: t}}\nstatic_resources:\n  clusters:\n  - name: c\n    type: STATIC\n    connect_timeout: 1s\n    \
             health_checks: [{{{OFTEN}, {check}}}]\n    \
             load_assignment: {{cluster_name: c, endpoints: [{{lb_endpoints: [{{endpoint: {{{endpoint}}}}}]}}]}}\n"
        );
        Self::with(&yaml)
    }

    /// Of a bootstrap of one's own, with a cluster `c`.
    pub(crate) fn with(yaml: &str) -> Self {
        let (runtime, process) = whole_process(yaml, |options| options.drain_time = WAIT);
        Self { process, _runtime: runtime }
    }

    fn main(&self) -> &Arc<Main> {
        &self.process.main
    }

    pub(crate) fn flags(&self) -> u32 {
        let snapshot = self.main().snapshot();
        let (_, cluster) = snapshot.cluster_named("c").unwrap();
        cluster.hosts.hosts().next().unwrap().flags()
    }

    fn is_failed(&self) -> bool {
        self.flags() & FAILED_ACTIVE_HC != 0
    }

    pub(crate) fn stat(&self, name: &str) -> u64 {
        stat(&self.main().registry, name)
    }
}

pub(crate) fn at(port: u16) -> String {
    format!("address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}")
}

/// An HTTP peer whose status can be changed; status 0 closes without an answer.
pub(crate) fn http_peer(headers: &'static str) -> (Upstream, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(200));
    let theirs = status.clone();
    let peer = Upstream::start(move |_, _, stream| match theirs.load(SeqCst) {
        0 => false,
        status => stream.write_all(format!("HTTP/1.1 {status} X\r\n{headers}content-length: 0\r\n\r\n").as_bytes()).is_ok(),
    });
    (peer, status)
}

#[test]
fn an_http_check_asks_what_it_is_told_and_its_answers_decide() {
    let (peer, status) = http_peer("");
    let checked = Checked::start(
        &at(peer.port()),
        "unhealthy_threshold: 1, healthy_threshold: 2, http_health_check: {path: /ready, host: shop, method: HEAD, \
         expected_statuses: [{start: 200, end: 205}], \
         request_headers_to_add: [{header: {key: x-check, value: yes}}]}",
    );
    eventually(|| !checked.is_failed());
    let request = peer.seen()[0].clone();
    assert!(request.starts_with("HEAD /ready HTTP/1.1\r\n"), "{request}");
    for header in ["host: shop\r\n", "user-agent: Envoy/HC\r\n", "x-check: yes\r\n"] {
        assert!(request.contains(header), "{request}");
    }
    eventually(|| checked.stat("cluster.c.membership_healthy") == 1 && checked.stat("cluster.c.health_check.healthy") == 1);
    status.store(503, SeqCst);
    eventually(|| checked.is_failed());
    eventually(|| checked.stat("cluster.c.membership_healthy") == 0);
    assert_eq!(checked.stat("cluster.c.membership_total"), 1);
    assert!(checked.stat("cluster.c.health_check.failure") > 0);
    assert_eq!(checked.stat("cluster.c.health_check.network_failure"), 0);
    status.store(204, SeqCst);
    eventually(|| !checked.is_failed());
}

#[test]
fn statuses_to_retry_and_silence_take_the_threshold() {
    let (peer, status) = http_peer("");
    let check =
        "unhealthy_threshold: 1000, healthy_threshold: 1, http_health_check: {path: /, retriable_statuses: [{start: 429, end: 430}]}";
    let checked = Checked::start(&at(peer.port()), check);
    eventually(|| !checked.is_failed());
    for silent in [429, 0] {
        status.store(silent, SeqCst);
        let failures = checked.stat("cluster.c.health_check.failure");
        eventually(|| checked.stat("cluster.c.health_check.failure") > failures + 3);
        assert!(!checked.is_failed(), "{silent}");
        assert_eq!(checked.stat("cluster.c.health_check.network_failure") > 0, silent == 0, "an answer is no failure of the network");
    }
    status.store(500, SeqCst);
    eventually(|| checked.is_failed());
}

#[test]
fn a_host_may_say_that_it_is_degraded() {
    let (peer, _) = http_peer("x-envoy-degraded: 1\r\n");
    let checked = Checked::start(&at(peer.port()), "http_health_check: {path: /}");
    eventually(|| checked.flags() == DEGRADED_ACTIVE_HC);
    eventually(|| checked.stat("cluster.c.membership_degraded") == 1);
}

#[test]
fn a_failed_check_may_say_that_its_host_is_not_to_be_counted() {
    let (peer, status) = http_peer("x-envoy-immediate-health-check-fail: true\r\n");
    let checked = Checked::start(&at(peer.port()), "unhealthy_threshold: 2, healthy_threshold: 1, http_health_check: {path: /}");
    eventually(|| checked.flags() == 0);
    status.store(503, SeqCst);
    eventually(|| checked.flags() == FAILED_ACTIVE_HC | EXCLUDED_VIA_IMMEDIATE_HC_FAIL);
    status.store(200, SeqCst);
    eventually(|| checked.flags() == 0);
}

#[test]
fn an_endpoint_may_be_checked_elsewhere_or_not_at_all() {
    let (peer, _) = http_peer("");
    let elsewhere = format!("{}, health_check_config: {{port_value: {}, hostname: own}}", at(dead_port()), peer.port());
    let checked = Checked::start(&elsewhere, "http_health_check: {path: /, host: general}");
    eventually(|| !checked.is_failed());
    assert!(peer.seen()[0].contains("host: own\r\n"));
    let never = format!("{}, health_check_config: {{disable_active_health_check: true}}", at(dead_port()));
    assert!(!Checked::start(&never, "http_health_check: {path: /}").is_failed());
}

#[test]
fn a_check_of_its_own_port_leaves_the_hosts_alone() {
    let (peer, _) = http_peer("");
    let checked = Checked::start(&at(dead_port()), &format!("alt_port: {}, http_health_check: {{path: /}}", peer.port()));
    eventually(|| !checked.is_failed());
}

/// Answers `+OK re` and `ady` after `PING` came, in two pieces.
fn tcp_peer() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut asked = [0; 4];
            if stream.read_exact(&mut asked).is_ok() && &asked == b"PING" {
                let _ = stream.write_all(b"+OK re").and_then(|()| stream.flush()).and_then(|()| stream.write_all(b"ady"));
            }
        }
    });
    address
}

#[test]
fn a_tcp_check_sends_and_waits_for_what_it_expects() {
    let port = tcp_peer().port();
    let hex = |text: &str| text.bytes().map(|b| format!("{b:02x}")).collect::<String>();
    let check = |answer: &str| format!("tcp_health_check: {{send: {{text: '{}'}}, receive: [{{text: '{}'}}]}}", hex("PING"), hex(answer));
    let good = Checked::start(&at(port), &check("ready"));
    eventually(|| !good.is_failed());
    let bad = Checked::start(&at(port), &check("never"));
    eventually(|| bad.stat("cluster.c.health_check.network_failure") > 2);
    assert!(bad.is_failed());
}

/// `grpc.health.v1.Health/Check`: services named `good` serve.
async fn grpc_peer() -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    tokio::spawn(async move {
                        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                        assert_eq!(request.headers()["content-type"], "application/grpc");
                        let mut body = request.into_body();
                        let mut message = Vec::new();
                        while let Some(Ok(data)) = body.data().await {
                            message.extend_from_slice(&data);
                        }
                        let serving = if message == b"\0\0\0\0\x06\x0a\x04good" { 1 } else { 2 };
                        let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
                        let mut send = respond.send_response(response, false).unwrap();
                        send.send_data(Bytes::from(vec![0, 0, 0, 0, 2, 8, serving]), false).unwrap();
                        let mut trailers = HeaderMap::new();
                        trailers.insert("grpc-status", "0".parse().unwrap());
                        send.send_trailers(trailers).unwrap();
                    });
                }
            });
        }
    });
    address
}

#[test]
fn a_grpc_check_asks_for_its_service() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let port = runtime.block_on(grpc_peer()).port();
    let good = Checked::start(&at(port), "grpc_health_check: {service_name: good}");
    eventually(|| !good.is_failed());
    let bad = Checked::start(&at(port), "grpc_health_check: {service_name: evil}");
    eventually(|| bad.stat("cluster.c.health_check.failure") > 2);
    assert!(bad.is_failed());
    assert_eq!(bad.stat("cluster.c.health_check.network_failure"), 0);
}

#[test]
fn an_http2_check_speaks_http2() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let port = runtime.block_on(async {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        respond.send_response(Response::new(()), true).unwrap();
                    }
                });
            }
        });
        port
    });
    let checked = Checked::start(&at(port), "http_health_check: {path: /, codec_client_type: HTTP2}");
    eventually(|| !checked.is_failed());
}

/// A peer that answers with a body, and says where it belongs.
fn talking_peer(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Upstream {
    Upstream::start(move |_, request, stream| {
        let body = answer(request);
        stream
            .write_all(
                format!(
                    "HTTP/1.1 200 OK\r\nx-envoy-upstream-healthchecked-cluster: shop-v1\r\ncontent-length: {}\r\n\r\n{body}",
                    body.len()
                )
                .as_bytes(),
            )
            .is_ok()
    })
}

#[test]
fn an_http_check_may_send_a_body_and_expect_another() {
    // "ping", and "po" and "ng" with anything between.
    let check = "http_health_check: {path: /, method: POST, send: {text: \"70696e67\"}, receive: [{text: \"706f\"}, {text: \"6e67\"}]}";
    let peer = talking_peer(|request| if request.ends_with("\r\n\r\nping") { "well: po..ng" } else { "what?" }.to_owned());
    let checked = Checked::start(&at(peer.port()), check);
    eventually(|| !checked.is_failed());
    let answers = ["ng po".to_owned(), format!("{}pong", "x".repeat(1021))];
    for answer in answers {
        let peer = talking_peer(move |_| answer.clone());
        let checked = Checked::start(&at(peer.port()), check);
        eventually(|| checked.stat("cluster.c.health_check.failure") > 2);
        assert!(checked.is_failed());
    }
    let larger = check.replace("method: POST", "method: POST, response_buffer_size: 0");
    let peer = talking_peer(|_| format!("{}pong", "x".repeat(100_000)));
    let checked = Checked::start(&at(peer.port()), &larger);
    eventually(|| !checked.is_failed());
}

#[test]
fn a_long_answer_is_as_good_and_a_host_of_another_cluster_is_not() {
    let peer = talking_peer(|_| "x".repeat(100_000));
    for (matcher, fails) in [("{prefix: shop}", false), ("{exact: shop}", true)] {
        let checked = Checked::start(&at(peer.port()), &format!("http_health_check: {{path: /, service_name_matcher: {matcher}}}"));
        eventually(|| checked.stat("cluster.c.health_check.attempt") > 3);
        assert_eq!(checked.is_failed(), fails, "{matcher}");
    }
}

#[test]
fn a_tcp_check_may_begin_with_a_proxy_header() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut bytes = [0; 19];
            if stream.read_exact(&mut bytes).is_ok() && &bytes == b"PROXY UNKNOWN\r\nping" {
                let _ = stream.write_all(b"pong");
            }
        }
    });
    let check = "tcp_health_check: {proxy_protocol_config: {version: V1}, send: {text: \"70696e67\"}, receive: [{text: \"706f6e67\"}]}";
    let checked = Checked::start(&at(port), check);
    eventually(|| !checked.is_failed());
}
