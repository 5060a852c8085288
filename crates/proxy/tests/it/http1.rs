//! HTTP/1 framing and connection handling, both sides.
use std::io::{Read, Write};
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::support::*;

#[test]
fn a_request_goes_through_and_connections_are_kept_on_both_sides() {
    let upstream = Upstream::ok("hello");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut stream = proxy.connect();
    for _ in 0..3 {
        stream.write_all(b"GET /x?y=1 HTTP/1.1\r\nHost: shop\r\nX-Some: Thing\r\n\r\n").unwrap();
        let answer = Answer::read(&mut stream);
        assert_eq!((answer.status, answer.body.as_str()), (200, "hello"));
        assert_eq!(answer.header("server"), Some("envoy"));
        assert!(answer.header("date").is_some() && answer.header("x-envoy-upstream-service-time").is_some());
    }
    assert_eq!(upstream.connections.load(SeqCst), 1);
    let seen = &upstream.seen()[0];
    assert!(seen.starts_with("GET /x?y=1 HTTP/1.1\r\nhost: shop\r\n"), "{seen}");
    assert!(
        seen.contains("x-some: Thing\r\n") && seen.contains("x-request-id: ") && seen.contains("x-forwarded-proto: http\r\n"),
        "{seen}"
    );
    eventually(|| proxy.stat("http.t.downstream_rq_2xx") == 3);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_200"), 3);
}

#[test]
fn bodies_pass_with_length_and_in_chunks_with_trailers_both_ways() {
    let upstream = Upstream::start(|_, request, stream| {
        if request.contains("POST /chunked") {
            stream
                .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-end\r\n\r\n3\r\nabc\r\n0\r\nx-end: yes\r\n\r\n")
                .is_ok()
        } else {
            write_ok(stream, &"z".repeat(300_000))
        }
    });
    let proxy = Config::to(&[upstream.port()]).start();
    let big = "q".repeat(500_000);
    let answer = proxy.call(&format!("POST /big HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{big}", big.len()));
    assert_eq!(answer.body.len(), 300_000);
    assert!(upstream.seen()[0].ends_with(&big));
    let answer = proxy.call("POST /chunked HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n4\r\nwxyz\r\n0\r\nx-up: 1\r\n\r\n");
    assert!(answer.body.contains("abc") && answer.body.contains("x-end: yes"), "{answer:?}");
    assert!(upstream.seen()[1].contains("wxyz") && upstream.seen()[1].contains("x-up: 1"));
}

#[test]
fn smuggling_attempts_are_refused_with_400_and_the_connection_ends() {
    let upstream = Upstream::ok("no");
    let proxy = Config::to(&[upstream.port()]).start();
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n",
        "get / HTTP/1.1\r\nhost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 0x5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5, 5\r\n\r\nabcde",
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked, identity\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: xchunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a\r\nbad name: x\r\n\r\n",
        "GET / HTTP/1.1\r\nhost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nhost: a b\r\n\r\n",
        "GET nowhere HTTP/1.1\r\nhost: a\r\n\r\n",
        "\u{1}\u{2}\u{3}\r\n\r\n",
    ] {
        let mut stream = proxy.connect();
        stream.write_all(head.as_bytes()).unwrap();
        let answer = Answer::read(&mut stream);
        assert_eq!(answer.status, 400, "{head:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{head:?}");
        let mut rest = Vec::new();
        assert_eq!(stream.read_to_end(&mut rest).unwrap_or(0), 0, "{head:?}");
    }
    assert!(upstream.seen().is_empty());
}

#[test]
fn malformed_chunks_end_the_connection_and_reach_no_upstream_as_a_request() {
    let upstream = Upstream::ok("no");
    let proxy = Config::to(&[upstream.port()]).start();
    for body in [
        "0x5\r\nabcde\r\n0\r\n\r\n",
        "fffffffffffffffff\r\n",
        "5\nabcde\r\n0\r\n\r\n",
        "5;a\nb\r\nabcde\r\n0\r\n\r\n",
        "5\r\nabcdeXX0\r\n\r\n",
        "\r\n",
    ] {
        let mut stream = proxy.connect();
        write!(stream, "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{body}").unwrap();
        let answer = Answer::try_read(&mut stream);
        assert!(answer.as_ref().is_none_or(|a| a.status == 400), "{body:?} gave {answer:?}");
        assert_eq!(stream.read(&mut [0; 16]).unwrap_or(0), 0);
    }
    assert!(upstream.seen().is_empty(), "{:?}", upstream.seen());
}

#[test]
fn too_large_heads_are_431() {
    let upstream = Upstream::ok("no");
    let proxy = Config::to(&[upstream.port()]).start();
    let many: String = (0..101).map(|i| format!("x-{i}: 1\r\n")).collect();
    assert_eq!(proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n")).status, 431);
    let long = "v".repeat(70_000);
    assert_eq!(proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {long}\r\n\r\n")).status, 431);
    let fits = "v".repeat(50_000);
    assert_eq!(proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-long: {fits}\r\n\r\n")).status, 200);
}

#[test]
fn head_204_and_304_have_no_body_and_keep_the_connection() {
    let upstream = Upstream::start(|_, request, stream| {
        let head: &[u8] = if request.starts_with("HEAD") {
            b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n"
        } else if request.contains("/304") {
            b"HTTP/1.1 304 Not Modified\r\ncontent-length: 99\r\n\r\n"
        } else {
            b"HTTP/1.1 204 No Content\r\n\r\n"
        };
        stream.write_all(head).is_ok()
    });
    let proxy = Config::to(&[upstream.port()]).start();
    let mut stream = proxy.connect();
    for (method, path, status) in [("HEAD", "/", 200), ("GET", "/204", 204), ("GET", "/304", 304), ("GET", "/204", 204)] {
        write!(stream, "{method} {path} HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            assert_eq!(stream.read(&mut byte).unwrap(), 1);
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        assert!(head.starts_with(&format!("HTTP/1.1 {status} ")), "{head}");
        assert_eq!(head.contains("content-length: 1234"), method == "HEAD");
    }
}

#[test]
fn http_10_is_426_unless_accepted() {
    let upstream = Upstream::ok("old");
    let request = "GET / HTTP/1.0\r\n\r\n";
    assert_eq!(Config::to(&[upstream.port()]).start().call(request).status, 426);
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "http_protocol_options: {accept_http_10: true}".to_owned();
    let answer = config.start().call("GET / HTTP/1.0\r\nhost: a\r\n\r\n");
    assert_eq!((answer.status, answer.body.as_str()), (200, "old"));
    assert_eq!(answer.header("connection"), Some("close"));
}

#[test]
fn expect_100_continue_is_answered_before_the_body() {
    let upstream = Upstream::ok("got it");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\nexpect: 100-continue\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 100);
    stream.write_all(b"abc").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
    assert!(!upstream.seen()[0].contains("expect"));
}

#[test]
fn a_websocket_passes_bytes_both_ways_once_switched_and_none_before() {
    let upstream = Upstream::start(|_, request, stream| {
        assert!(request.contains("upgrade: websocket") && request.contains("connection: upgrade"), "{request}");
        std::thread::sleep(Duration::from_millis(100));
        stream.set_nonblocking(true).unwrap();
        assert!(stream.peek(&mut [0; 1]).is_err(), "bytes came before the switch");
        stream.set_nonblocking(false).unwrap();
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nhi").unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
        false
    });
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "upgrade_configs: [{upgrade_type: websocket}]".to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: Upgrade\r\n\r\nearly").unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, answer.header("upgrade")), (101, Some("websocket")));
    let mut bytes = [0; 7];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hiearly");
    assert_eq!(stream.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn an_upgrade_that_is_not_enabled_is_403_and_connect_is_refused() {
    let upstream = Upstream::ok("no");
    let proxy = Config::to(&[upstream.port()]).start();
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    assert_eq!(answer.status, 403);
    assert!(matches!(proxy.call("CONNECT a:80 HTTP/1.1\r\nhost: a:80\r\n\r\n").status, 403 | 404));
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_local_reply_to_an_unread_body_leaves_nothing_to_smuggle() {
    let upstream = Upstream::ok("no");
    let proxy =
        Config::to(&[upstream.port()]).routes("- {match: {prefix: /}, direct_response: {status: 418, body: {inline_string: tea}}}").start();
    let mut stream = proxy.connect();
    // The body holds what would be a request, had the connection gone on after the head.
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nGET /evil HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, answer.body.as_str(), answer.header("connection")), (418, "tea", Some("close")));
    assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0);
    // With all of the body there, the connection goes on after it.
    let mut stream = proxy.connect();
    for _ in 0..2 {
        stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\nbody").unwrap();
        assert_eq!(Answer::read(&mut stream).status, 418);
    }
}

#[test]
fn pipelined_requests_are_answered_in_order() {
    let upstream = Upstream::start(|_, request, stream| write_ok(stream, request.split(' ').nth(1).unwrap()));
    let proxy = Config::to(&[upstream.port()]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).body, "/1");
    assert_eq!(Answer::read(&mut stream).body, "/2");
}

#[test]
fn a_slow_head_times_out_and_an_idle_connection_closes() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "request_headers_timeout: 0.2s\ncommon_http_protocol_options: {idle_timeout: 0.4s}".to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 408);
    let mut stream = proxy.connect();
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_drain_closes_after_the_next_response_and_stops_listening() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).header("connection"), None);
    proxy.worker.drain();
    eventually(|| std::net::TcpStream::connect(proxy.address).is_err());
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).header("connection"), Some("close"));
    assert_eq!(stream.read(&mut [0; 1]).unwrap(), 0);
    eventually(|| proxy.worker.connections() == 0);
}
