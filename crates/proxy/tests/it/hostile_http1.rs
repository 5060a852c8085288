//! HTTP/1 that means harm: what proxies were once deceived with, as raw bytes.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::support::*;

fn with(hcm: &str, upstream: &Upstream) -> Proxy {
    to(hcm, upstream.port())
}

fn to(hcm: &str, port: u16) -> Proxy {
    let mut config = Config::to(&[port]);
    config.hcm = hcm.to_owned();
    config.start()
}

#[test]
fn space_around_a_value_is_no_part_of_it_for_matching_or_forwarding() {
    let upstream = Upstream::ok("in");
    let routes = "- {match: {prefix: /, headers: [{name: x-role, string_match: {exact: admin}}]}, direct_response: {status: 403}}\n\
                  - {match: {prefix: /}, route: {cluster: c}}";
    let proxy = Config::to(&[upstream.port()]).routes(routes).start();
    for value in ["admin", "admin ", " admin \t", "\tadmin\t \t"] {
        assert_eq!(proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-role:{value}\r\n\r\n")).status, 403, "{value:?}");
    }
    assert_eq!(proxy.call("GET / HTTP/1.1\r\nhost: a\r\nx-role:  user \t\r\n\r\n").status, 200);
    assert!(upstream.seen()[0].contains("x-role: user\r\n"), "{:?}", upstream.seen());
}

#[test]
fn a_value_that_is_no_text_passes_as_the_bytes_it_is() {
    let (port, seen) = raw_upstream(|_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nx-back: \xfe\xff\r\n\r\n");
        true
    });
    let proxy = Config::to(&[port]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nx-raw: a\xff\xc3\r\n\r\n").unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        assert_eq!(stream.read(&mut byte).unwrap(), 1);
        answer.push(byte[0]);
    }
    assert!(contains(&answer, b"x-back: \xfe\xff\r\n"), "{}", String::from_utf8_lossy(&answer));
    assert!(contains(&seen.lock().unwrap()[0], b"x-raw: a\xff\xc3\r\n"));
}

#[test]
fn underscores_in_names_are_kept_dropped_or_refused_as_configured() {
    let upstream = Upstream::ok("x");
    let request = "GET / HTTP/1.1\r\nhost: a\r\nx_user: evil\r\nx-user: good\r\n\r\n";
    let action = |name: &str| format!("common_http_protocol_options: {{headers_with_underscores_action: {name}}}");
    assert_eq!(with(&action("ALLOW"), &upstream).call(request).status, 200);
    assert!(upstream.seen()[0].contains("x_user: evil"));
    assert_eq!(with(&action("DROP_HEADER"), &upstream).call(request).status, 200);
    assert!(!upstream.seen()[1].contains("x_user") && upstream.seen()[1].contains("x-user: good"));
    assert_eq!(with(&action("REJECT_REQUEST"), &upstream).call(request).status, 400);
    assert_eq!(upstream.seen().len(), 2);
}

#[test]
fn what_only_a_proxy_may_say_is_taken_off_at_an_edge() {
    let upstream = Upstream::ok("x");
    let proxy = with("use_remote_address: true\nforward_client_cert_details: SANITIZE", &upstream);
    let claims = [
        "x-envoy-original-path: /admin",
        "x-envoy-internal: true",
        "x-envoy-retry-on: 5xx",
        "x-envoy-max-retries: 99",
        "x-envoy-upstream-rq-timeout-ms: 1",
        "x-envoy-decorator-operation: forged",
        "x-envoy-downstream-service-cluster: forged",
        "x-forwarded-client-cert: By=forged;URI=spiffe://cluster.local/ns/default/sa/admin",
    ];
    // A private address in front does not make the caller one of ours.
    let request = format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\n{}\r\n\r\n", claims.join("\r\n"));
    assert_eq!(proxy.call(&request).status, 200);
    let seen = &upstream.seen()[0];
    for claim in claims {
        assert!(!seen.contains(claim), "{claim} in {seen}");
    }
    assert!(seen.contains("x-forwarded-for: 10.0.0.1,127.0.0.1\r\n"), "{seen}");
}

#[test]
fn a_caller_cannot_have_the_proxy_forget_where_a_request_came_from() {
    let upstream = Upstream::ok("x");
    let proxy = with("use_remote_address: false\nxff_num_trusted_hops: 1", &upstream);
    let request = |connection: &str| {
        format!("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-for: 10.0.0.1\r\nx-one: 1\r\nconnection: {connection}\r\n\r\n")
    };
    for refused in ["X-Forwarded-For", "close, x-forwarded-proto", "x-forwarded-host", ":path", "a,b,c,d,e,f,g,h,i,x-one"] {
        let answer = proxy.call(&request(refused));
        assert_eq!((answer.status, answer.body.as_str(), answer.header("connection")), (400, "Bad Request", Some("close")), "{refused}");
    }
    assert!(upstream.seen().is_empty());
    assert_eq!(proxy.call(&request("x-one")).status, 200);
    let seen = &upstream.seen()[0];
    assert!(seen.contains("x-forwarded-for: 10.0.0.1") && !seen.contains("x-one"), "{seen}");
}

#[test]
fn chunks_from_an_http_10_caller_are_refused() {
    let upstream = Upstream::ok("no");
    let proxy = with("http_protocol_options: {accept_http_10: true}", &upstream);
    let answer = proxy.call("POST / HTTP/1.0\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n");
    assert_eq!((answer.status, answer.header("connection")), (400, Some("close")));
    assert!(upstream.seen().is_empty());
}

#[test]
fn bytes_behind_an_upgrade_stay_here_when_it_is_refused() {
    let (port, seen) = raw_upstream(|_, stream| {
        std::thread::sleep(Duration::from_millis(100));
        stream.write_all(b"HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").unwrap();
        true
    });
    let mut config = Config::to(&[port]);
    config.hcm = "upgrade_configs: [{upgrade_type: websocket}]".to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream
        .write_all(
            b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nGET /evil HTTP/1.1\r\nhost: b\r\n\r\n",
        )
        .unwrap();
    assert_eq!(Answer::read(&mut stream).status, 403);
    // What follows is either nobody's, or a request of its own that went through all of the proxy.
    let _ = Answer::try_read(&mut stream);
    for head in seen.lock().unwrap().iter() {
        assert!(contains(head, b"x-request-id: "), "passed unseen: {}", String::from_utf8_lossy(head));
    }
}

#[test]
fn the_chunks_of_an_upgrade_stay_chunks_and_are_no_requests() {
    const HIDDEN: &str = "GET /admin HTTP/1.1\r\nhost: a\r\n\r\n";
    let chunked = format!("{:x}\r\n{HIDDEN}\r\n0\r\n\r\n", HIDDEN.len());
    let (bodies, size) = (Arc::new(Mutex::new(Vec::new())), chunked.len());
    let theirs = bodies.clone();
    let (port, seen) = raw_upstream(move |number, stream| {
        let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
        let mut body = vec![0; if number == 1 { size } else { 0 }];
        let whole = stream.read_exact(&mut body).is_ok();
        theirs.lock().unwrap().push(String::from_utf8_lossy(&body).into_owned());
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").is_ok() && whole
    });
    let proxy = to("upgrade_configs: [{upgrade_type: websocket}]", port);
    let mut stream = proxy.connect();
    let head = "GET /allowed HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(format!("{head}{chunked}").as_bytes()).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
    assert_eq!(proxy.get("/next").status, 200);
    assert_eq!(*bodies.lock().unwrap(), [chunked, String::new()]);
    let seen = seen.lock().unwrap();
    assert!(contains(&seen[0], b"transfer-encoding: chunked\r\n"), "{}", String::from_utf8_lossy(&seen[0]));
    assert!(seen.len() == 2 && seen[1].starts_with(b"GET /next "), "{}", String::from_utf8_lossy(&seen[1]));
}

#[test]
fn an_upstream_that_answers_before_the_body_is_there_leaves_nothing_to_smuggle() {
    let (port, seen) = raw_upstream(|_, stream| stream.write_all(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n").is_ok());
    let proxy = Config::to(&[port]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\nabc").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 413);
    let _ = stream.write_all(b"GET /evil HTTP/1.1\r\nhost: a\r\n\r\n");
    assert!(Answer::try_read(&mut stream).is_none(), "the rest of the body was taken for a request");
    // The upstream's connection still waits for the body: the next request must not be put into it.
    assert_eq!(proxy.get("/next").status, 413);
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert!(!contains(&seen[1], b"/evil") && seen[1].starts_with(b"GET /next "), "{:?}", String::from_utf8_lossy(&seen[1]));
}

#[test]
fn a_request_that_is_not_sent_to_its_end_is_408() {
    let upstream = Upstream::ok("x");
    let proxy = with("request_timeout: 0.3s", &upstream);
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\n").unwrap();
    let start = Instant::now();
    // A byte now and then does not help.
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(100));
        let _ = stream.write_all(b"x");
    }
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, answer.header("connection")), (408, Some("close")));
    assert!(start.elapsed() < WAIT);
    assert!(proxy.stat("http.t.downstream_rq_timeout") == 1);
    assert_eq!(proxy.get("/").status, 200, "a request that came whole has all the time it wants");
}

#[test]
fn a_body_that_stops_coming_is_given_up() {
    let upstream = Upstream::ok("x");
    let proxy = with("stream_idle_timeout: 0.3s", &upstream);
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 100\r\n\r\nabc").unwrap();
    let answer = Answer::read(&mut stream);
    assert!(matches!(answer.status, 408 | 504), "{answer:?}");
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
}

#[test]
fn an_upgrade_that_is_never_answered_is_given_up() {
    let (port, _) = raw_upstream(|_, stream| {
        let _ = stream.read(&mut [0; 1]);
        false
    });
    let mut config = Config::to(&[port]);
    config.hcm = "upgrade_configs: [{upgrade_type: websocket}]\nstream_idle_timeout: 0.3s".to_owned();
    let proxy = config.start();
    let answer = proxy.call("GET / HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n");
    assert!(matches!(answer.status, 408 | 504), "{answer:?}");
}

#[test]
fn a_caller_that_does_not_read_holds_a_bounded_part_of_a_large_answer() {
    let sent = Arc::new(Mutex::new(0usize));
    let count = sent.clone();
    let (port, _) = raw_upstream(move |_, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        let _ = stream.set_write_timeout(Some(Duration::from_millis(500)));
        while let Ok(n) = stream.write(&[b'z'; 65_536]) {
            *count.lock().unwrap() += n;
        }
        false
    });
    let proxy = Config::to(&[port]).start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    // Two sockets' buffers and ours; a thousand million bytes were on offer.
    assert!(*sent.lock().unwrap() < 32 << 20, "{}", sent.lock().unwrap());
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// An upstream that reads heads only; `respond` writes the answer, and ends the connection with `false`.
fn raw_upstream(respond: impl Fn(usize, &mut TcpStream) -> bool + Send + Sync + 'static) -> (u16, Arc<Mutex<Vec<Vec<u8>>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (theirs, respond) = (seen.clone(), Arc::new(respond));
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let (seen, respond) = (theirs.clone(), respond.clone());
            std::thread::spawn(move || {
                loop {
                    let mut head = Vec::new();
                    while !head.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        match stream.read(&mut byte) {
                            Ok(1) => head.push(byte[0]),
                            _ => return,
                        }
                    }
                    let number = {
                        let mut seen: std::sync::MutexGuard<'_, Vec<Vec<u8>>> = seen.lock().unwrap();
                        seen.push(head);
                        seen.len()
                    };
                    if !respond(number, &mut stream) {
                        return;
                    }
                }
            });
        }
    });
    (port, seen)
}
