//! How long connections to upstreams live: HTTP/2 ones that nobody uses any more are closed, and made ones are for whoever waits.
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use lateen_http2::{Config as H2Config, Connection, Event};

use crate::grpc::HTTP2;
use crate::http2::{connect, runtime};
use crate::support::*;
use crate::tls::Mesh;

/// An HTTP/2 upstream that counts its connections. It answers `/slow` after half a second.
struct Server {
    address: SocketAddr,
    open: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
    _runtime: tokio::runtime::Runtime,
}

impl Server {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let (open, made) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, ever) = (open.clone(), made.clone());
        runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                now.fetch_add(1, SeqCst);
                ever.fetch_add(1, SeqCst);
                let now = now.clone();
                tokio::spawn(async move {
                    serve(stream).await;
                    now.fetch_sub(1, SeqCst);
                });
            }
        });
        Self { address, open, made, _runtime: runtime }
    }

    fn open(&self) -> usize {
        self.open.load(SeqCst)
    }
}

/// Until the peer closes the connection.
async fn serve(stream: tokio::net::TcpStream) {
    let mut connection = h2::server::handshake(stream).await.unwrap();
    while let Some(Ok((request, mut respond))) = connection.accept().await {
        tokio::spawn(async move {
            if request.uri().path() == "/slow" {
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            let _ = body.send_data(Bytes::from_static(b"two"), true);
        });
    }
}

fn to(ports: &[u16], more: &str) -> Config {
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", ports, &format!("{HTTP2}\n{more}"))];
    config
}

/// [`to`] with fields of `common_http_protocol_options`.
fn with_common(server: &Server, common: &str) -> Proxy {
    let mut config = to(&[server.address.port()], "");
    config.clusters[0] = config.clusters[0]
        .replace("    explicit_http_config", &format!("    common_http_protocol_options: {{{common}}}\n      explicit_http_config"));
    config.start()
}

fn all_gone(server: &Server, proxy: &Proxy) {
    eventually(|| server.open() == 0);
    eventually(|| proxy.stat("cluster.c.upstream_cx_active") == 0);
}

#[test]
fn a_shared_connection_ends_with_its_last_request() {
    let server = Server::start();
    let proxy = with_common(&server, "max_requests_per_connection: 1");
    for _ in 0..5 {
        assert_eq!(proxy.get("/").status, 200);
    }
    assert_eq!((server.made.load(SeqCst), proxy.stat("cluster.c.upstream_cx_max_requests")), (5, 5));
    all_gone(&server, &proxy);
}

#[test]
fn a_shared_connection_ends_when_it_is_idle_for_too_long_or_too_old() {
    for (common, idle) in [("idle_timeout: 0.2s", 1), ("max_connection_duration: 0.2s", 0)] {
        let server = Server::start();
        let proxy = with_common(&server, common);
        assert_eq!(proxy.get("/").status, 200);
        assert_eq!(server.open(), 1);
        all_gone(&server, &proxy);
        assert_eq!(proxy.stat("cluster.c.upstream_cx_idle_timeout"), idle);
        assert_eq!(["local", "remote"].map(|by| proxy.stat(&format!("cluster.c.upstream_cx_destroy_{by}"))), [1, 0]);
    }
}

#[test]
fn a_shared_connection_to_a_host_that_leaves_ends_when_it_carries_nothing_more() {
    let (server, other) = (Server::start(), Server::start());
    let proxy = to(&[server.address.port()], "").start();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| proxy.get("/slow"));
        eventually(|| server.open() == 1);
        std::thread::sleep(Duration::from_millis(100));
        publish(&proxy.worker, snapshot(&to(&[other.address.port()], "").yaml(), 2));
        assert_eq!(proxy.get("/").status, 200);
        assert_eq!((server.open(), other.open()), (1, 1));
        assert_eq!(slow.join().unwrap().status, 200);
    });
    eventually(|| server.open() == 0);
    // The whole cluster leaves.
    let mut none = to(&[], "");
    none.clusters.clear();
    publish(&proxy.worker, snapshot(&none.yaml(), 3));
    all_gone(&other, &proxy);
}

/// Connections to that port that are neither closed nor about to be.
fn established(port: u16) -> usize {
    let peer = format!("0100007F:{port:04X}");
    let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
    table.lines().filter(|l| l.split_whitespace().nth(2) == Some(&peer) && l.split_whitespace().nth(3) == Some("01")).count()
}

#[test]
fn a_peer_that_does_not_read_keeps_no_connection() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let route = "- {match: {prefix: /}, route: {cluster: c, idle_timeout: 0.3s}}";
    let proxy = to(&[port], "").routes(route).start();
    let mut caller = proxy.connect();
    let size = 64 << 20;
    caller.write_all(format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {size}\r\n\r\n").as_bytes()).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    // As much as may be on a stream, and on the connection.
    stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\xff\0\0").unwrap();
    let _ = stream.read(&mut [0; 24]).unwrap();
    caller.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let _ = caller.write_all(&vec![b'x'; size]);
    eventually(|| proxy.stat("cluster.c.upstream_rq_active") == 0);
    assert_eq!(established(port), 1);
    let server = Server::start();
    publish(&proxy.worker, snapshot(&to(&[server.address.port()], "").yaml(), 2));
    eventually(|| established(port) == 0);
}

#[test]
fn a_peer_that_names_no_limit_of_streams_takes_all_over_one_connection() {
    let server = Server::start();
    let proxy = to(&[server.address.port()], "").start();
    runtime().block_on(async {
        let mut sender = connect(proxy.address).await;
        let mut get = || sender.send_request(http::Request::get("http://a/slow").body(()).unwrap(), true).unwrap().0;
        let all: Vec<_> = (0..150).map(|_| get()).collect();
        for response in all {
            assert_eq!(response.await.unwrap().status(), 200);
        }
    });
    assert_eq!(server.made.load(SeqCst), 1);
}

/// Reads until so many requests have come; or what came in a moment, where that is less.
fn requests(stream: &mut TcpStream, codec: &mut Connection, bytes: &mut BytesMut, seen: &mut usize, wanted: usize) -> usize {
    let deadline = Instant::now() + WAIT;
    while *seen < wanted && Instant::now() < deadline {
        let mut buffer = [0; 4096];
        let Ok(n @ 1..) = stream.read(&mut buffer) else { break };
        bytes.extend_from_slice(&buffer[..n]);
        let mut events = Vec::new();
        codec.receive(bytes, &mut events).unwrap();
        *seen += events.iter().filter(|e| matches!(e, Event::Request { .. })).count();
    }
    *seen
}

#[test]
fn a_peer_that_takes_more_streams_than_before_gets_those_that_wait() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = to(&[listener.local_addr().unwrap().port()], "circuit_breakers: {thresholds: [{max_connections: 1}]}").start();
    let mut callers: Vec<_> = (0..2).map(|_| proxy.connect()).collect();
    callers[0].write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    // Its greeting is ours.
    let mut codec = Connection::server(H2Config::default());
    let (mut bytes, mut seen) = (BytesMut::new(), 0);
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x01").unwrap();
    assert_eq!(requests(&mut stream, &mut codec, &mut bytes, &mut seen, 1), 1);
    std::thread::sleep(Duration::from_millis(200));
    callers[1].write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    eventually(|| proxy.stat("cluster.c.upstream_rq_pending_active") == 1);
    stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x02").unwrap();
    assert_eq!(requests(&mut stream, &mut codec, &mut bytes, &mut seen, 2), 2);
}

/// What a TLS handshake takes behind [`Slow`].
const HANDSHAKE: Duration = Duration::from_millis(600);

/// Stands before a server and passes nothing on for a while.
struct Slow {
    port: u16,
    open: Arc<AtomicUsize>,
    made: Arc<AtomicUsize>,
}

impl Slow {
    fn before(server: SocketAddr) -> Self {
        let (open, made) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (now, ever) = (open.clone(), made.clone());
        let port = tcp_server(move |stream| {
            now.fetch_add(1, SeqCst);
            ever.fetch_add(1, SeqCst);
            std::thread::sleep(HANDSHAKE);
            let server = TcpStream::connect(server).unwrap();
            let (mut from, mut to) = (stream.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut &server, &mut &stream);
            });
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
            now.fetch_sub(1, SeqCst);
        });
        Self { port, open, made }
    }
}

/// Answers to so many requests at once, and how long all took.
fn at_once(proxy: &Proxy, count: usize) -> (Vec<Answer>, Duration) {
    let begin = Instant::now();
    let answers = std::thread::scope(|scope| {
        let all: Vec<_> = (0..count).map(|_| scope.spawn(|| proxy.get("/"))).collect();
        all.into_iter().map(|one| one.join().unwrap()).collect()
    });
    (answers, begin.elapsed())
}

#[test]
fn a_connection_that_fails_fails_all_who_wait_for_it_at_once() {
    // Takes connections, and says nothing.
    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Mesh::new().client(silent.local_addr().unwrap().port(), "server", HTTP2, "h2");
    let (answers, took) = at_once(&proxy, 4);
    for answer in answers {
        assert_eq!(answer.status, 503);
        assert!(answer.body.contains("connection timeout"), "{}", answer.body);
    }
    assert!(took < Duration::from_millis(1_900), "{took:?}");
    let names = ["cx_total", "cx_connect_timeout", "rq_pending_failure_eject", "cx_active", "rq_pending_active"];
    assert_eq!(names.map(|n| proxy.stat(&format!("cluster.c.upstream_{n}"))), [1, 1, 4, 0, 0]);
}

#[test]
fn a_connection_comes_about_though_its_request_is_over_before() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    for (options, alpn) in [("", "http/1.1"), (HTTP2, "h2")] {
        let slow = Slow::before(server.address);
        let proxy = mesh.client(slow.port, "server", options, alpn);
        let mut caller = proxy.connect();
        caller.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        eventually(|| slow.made.load(SeqCst) == 1);
        drop(caller);
        eventually(|| proxy.stat("cluster.c.upstream_rq_pending_active") == 0);
        assert_eq!(proxy.stat("cluster.c.upstream_cx_active"), 1);
        for _ in 0..2 {
            assert_eq!(proxy.get("/").body, "x");
        }
        assert_eq!(slow.made.load(SeqCst), 1);
    }
}

#[test]
fn as_many_connections_are_made_at_once_as_those_who_wait_need() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    let limited = HTTP2.replace(
        "    explicit_http_config",
        "    common_http_protocol_options: {max_requests_per_connection: 2}\n    explicit_http_config",
    );
    for (options, alpn, expected) in [("", "http/1.1", 5), (HTTP2, "h2", 1), (&limited, "h2", 3)] {
        let slow = Slow::before(server.address);
        let proxy = mesh.client(slow.port, "server", options, alpn);
        let (answers, took) = at_once(&proxy, 5);
        assert!(answers.iter().all(|a| a.body == "x"));
        assert!(took < 2 * HANDSHAKE, "{took:?}");
        assert_eq!(slow.made.load(SeqCst), expected);
    }
}

#[test]
fn where_alpn_settles_the_version_one_connection_is_made_until_the_peer_turns_out_to_speak_http1() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let auto = HTTP2.replace("explicit_http_config: {http2_protocol_options: {}}", "auto_config: {}");
    // Those who find out that one connection is not enough make theirs at the same time.
    for (offered, expected, handshakes) in [("h2, http/1.1", 1, 1), ("http/1.1", 5, 2)] {
        let server = mesh.server_offering(upstream.port(), offered);
        let slow = Slow::before(server.address);
        let proxy = mesh.client(slow.port, "server", &auto, "h2, http/1.1");
        let (answers, took) = at_once(&proxy, 5);
        assert!(answers.iter().all(|a| a.body == "x"), "{offered}: {answers:?}");
        assert!(took < (handshakes + 1) * HANDSHAKE, "{offered}: {took:?}");
        assert_eq!(slow.made.load(SeqCst), expected, "{offered}");
    }
}

#[test]
fn a_connection_to_a_host_that_leaves_meanwhile_serves_only_whom_it_was_made_for() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    for (options, alpn) in [("", "http/1.1"), (HTTP2, "h2")] {
        let slow = Slow::before(server.address);
        let proxy = mesh.client(slow.port, "server", options, alpn);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| proxy.get("/"));
            eventually(|| slow.made.load(SeqCst) == 1);
            publish(&proxy.worker, snapshot(&mesh.client_config(&[dead_port()], "server", options, alpn).yaml(), 2));
            assert_eq!(waits.join().unwrap().body, "x");
        });
        eventually(|| (slow.open.load(SeqCst), proxy.stat("cluster.c.upstream_cx_active")) == (0, 0));
        assert_eq!(slow.made.load(SeqCst), 1);
    }
}
