//! When the time for an answer begins: with the end of the request, whatever the request waits for by then.
use std::io::Write;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::Request;

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::http2::{connect, runtime};
use crate::support::*;

/// Half a second for all but `/slow`.
const ROUTES: &str =
    "- {match: {prefix: /slow}, route: {cluster: c, timeout: 0s}}\n- {match: {prefix: /}, route: {cluster: c, timeout: 0.5s}}";

/// An upstream to which there is one connection, and it is busy for ever; and the caller that keeps it so.
fn busy(hcm: &str) -> (Upstream, Proxy, std::net::TcpStream) {
    let upstream = Upstream::start(|_, _, _| {
        loop {
            std::thread::sleep(WAIT);
        }
    });
    let mut config = Config::to(&[]).routes(ROUTES);
    config.clusters = vec![cluster("c", &[upstream.port()], "circuit_breakers: {thresholds: [{max_connections: 1}]}")];
    config.hcm = hcm.to_owned();
    let proxy = config.start();
    let mut first = proxy.connect();
    first.write_all(b"GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    eventually(|| upstream.seen().len() == 1);
    (upstream, proxy, first)
}

#[test]
fn a_request_that_waits_for_a_connection_has_its_time_once_it_is_complete() {
    let (_upstream, proxy, _first) = busy("request_timeout: 0.2s");
    for body in ["5\r\n\r\nhello".to_owned(), format!("100000\r\n\r\n{}", "x".repeat(100_000))] {
        let start = Instant::now();
        let answer = proxy.call(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {body}"));
        assert_eq!((answer.status, answer.body.as_str()), (504, "upstream request timeout"));
        assert!(start.elapsed() >= Duration::from_millis(450), "{:?}", start.elapsed());
    }
    // Who has not sent all is itself the late one.
    assert_eq!(proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhell").status, 408);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_timeout"), 2);
}

#[test]
fn a_call_that_is_given_up_while_it_waits_for_a_connection_frees_its_place() {
    let (upstream, proxy, _first) = busy("");
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let (response, mut send) = sender.send_request(Request::post("http://shop/slow").body(()).unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(b"some"), false).unwrap();
        tokio::task::block_in_place(|| eventually(|| proxy.stat("cluster.c.upstream_rq_pending_active") == 1));
        send.send_reset(h2::Reason::CANCEL);
        tokio::task::block_in_place(|| eventually(|| proxy.stat("cluster.c.upstream_rq_pending_active") == 0));
        assert!(response.await.is_err());
    });
    assert_eq!(upstream.seen().len(), 1);
}

/// Takes requests and neither reads nor answers them.
async fn silent_server() -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut connection = h2::server::handshake(stream).await.unwrap();
                let mut held = Vec::new();
                while let Some(Ok(request)) = connection.accept().await {
                    held.push(request);
                }
            });
        }
    });
    port
}

#[test]
fn a_request_that_its_upstream_does_not_read_has_its_time_once_it_is_complete() {
    let runtime = runtime();
    let port = runtime.block_on(silent_server());
    let retried =
        "- {match: {prefix: /try}, route: {cluster: c, timeout: 0s, retry_policy: {retry_on: connect-failure, per_try_timeout: 0.5s}}}";
    let mut config = Config::to(&[]).routes(&format!("{retried}\n{ROUTES}"));
    config.clusters = vec![cluster("c", &[port], HTTP2)];
    let proxy = config.start();
    let body = "x".repeat(250_000);
    for path in ["/", "/try"] {
        let answer = proxy.call(&format!("POST {path} HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len()));
        assert_eq!(answer.status, 504, "{path}");
    }
    assert_eq!((proxy.stat("cluster.c.upstream_rq_timeout"), proxy.stat("cluster.c.upstream_rq_per_try_timeout")), (1, 1));
}

#[test]
fn a_response_that_began_before_the_end_of_its_request_has_its_time_from_there() {
    let server = GrpcServer::start(|_| Reply::Silence);
    let mut config = Config::to(&[]).routes(ROUTES);
    config.clusters = vec![cluster("c", &[server.port()], HTTP2)];
    let proxy = config.start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let (response, mut send) = sender.send_request(Request::post("http://shop/").body(()).unwrap(), false).unwrap();
        let mut body = response.await.unwrap().into_body();
        // What is still being asked has no time.
        tokio::time::sleep(Duration::from_millis(700)).await;
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01x"), true).unwrap();
        let end = tokio::time::timeout(WAIT, body.data()).await.expect("an end");
        assert!(end.unwrap().is_err());
    });
    eventually(|| proxy.stat("cluster.c.upstream_rq_timeout") == 1);
}
