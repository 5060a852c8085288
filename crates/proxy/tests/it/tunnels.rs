//! CONNECT and upgrades over every pair of HTTP versions: what goes through, what is refused, and how tunnels end.
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::Bytes;
use h2::ext::Protocol;
use h2::{Reason, RecvStream, SendStream};
use http::{Method, Request, Response, StatusCode};

use crate::support::*;

const H2_UPSTREAM: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}";
const TERMINATE: &str = "{upgrade_type: CONNECT, connect_config: {allow_post: true}}";
const UPGRADES: &str =
    "upgrade_configs: [{upgrade_type: CONNECT}, {upgrade_type: websocket}]\nhttp2_protocol_options: {allow_connect: true}";
const CONNECT: &[u8] = b"CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n\r\n";
const WEBSOCKET: &[u8] = b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: WebSocket\r\nconnection: Upgrade\r\n\r\n";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn terminating(port: u16, more: &str) -> Config {
    let mut config = Config::to(&[port]).routes(&format!(
        "- {{match: {{connect_matcher: {{}}}}, route: {{cluster: c, timeout: 0s, upgrade_configs: [{TERMINATE}]{more}}}}}\n\
         - {{match: {{prefix: /}}, route: {{cluster: c, timeout: 0s, upgrade_configs: [{TERMINATE}]}}}}"
    ));
    config.hcm = UPGRADES.to_owned();
    config
}

fn forwarding(port: u16, http2: bool) -> Config {
    let mut config = Config::to(&[port]).routes(
        "- {match: {connect_matcher: {}}, route: {cluster: c, timeout: 0s}}\n- {match: {prefix: /}, route: {cluster: c, timeout: 0s}}",
    );
    config.clusters = vec![cluster("c", &[port], if http2 { H2_UPSTREAM } else { "" })];
    config.hcm = UPGRADES.to_owned();
    config
}

/// Sends, then reads as much as is expected.
fn exchange(stream: &mut TcpStream, send: &[u8], expect: &[u8]) {
    stream.write_all(send).unwrap();
    let mut bytes = vec![0; expect.len()];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expect));
}

fn rest(stream: &mut TcpStream) -> String {
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    all
}

/// A stream of an HTTP/2 connection that asks for a tunnel or an upgrade.
struct Tunnel {
    send: SendStream<Bytes>,
    status: StatusCode,
    body: RecvStream,
}

impl Tunnel {
    async fn open(address: SocketAddr, protocol: Option<&'static str>, early: &'static str) -> Result<Self, h2::Error> {
        let stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move {
            let _ = connection.await;
        });
        let mut sender = sender.ready().await?;
        let mut request = Request::new(());
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = http::Version::HTTP_2;
        *request.uri_mut() = if protocol.is_some() { "http://shop/chat" } else { "shop:443" }.parse().unwrap();
        if let Some(protocol) = protocol {
            while !sender.is_extended_connect_protocol_enabled() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            request.extensions_mut().insert(Protocol::from_static(protocol));
        }
        let (response, mut send) = sender.send_request(request, false)?;
        if !early.is_empty() {
            send.send_data(early.into(), false)?;
        }
        let (parts, body) = response.await?.into_parts();
        Ok(Self { send, status: parts.status, body })
    }

    fn send(&mut self, bytes: &'static str, end: bool) {
        self.send.send_data(bytes.into(), end).unwrap();
    }

    async fn read(&mut self, expect: &str) {
        let mut seen = Vec::new();
        while seen.len() < expect.len() {
            let data = self.body.data().await.expect("more bytes").unwrap();
            let _ = self.body.flow_control().release_capacity(data.len());
            seen.extend_from_slice(&data);
        }
        assert_eq!(String::from_utf8_lossy(&seen), expect);
    }

    /// How the other side ends it: `None` when it does so in order.
    async fn ended(&mut self) -> Option<Reason> {
        loop {
            match tokio::time::timeout(WAIT, self.body.data()).await.expect("an end") {
                None => return None,
                Some(Ok(_)) => {}
                Some(Err(e)) => return e.reason(),
            }
        }
    }
}

/// An HTTP/2 upstream that answers 200 to any CONNECT, says hi and echoes; it tells the requests that it saw.
async fn http2_upstream(extended: bool) -> (u16, mpsc::Receiver<String>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, (tell, seen)) = (listener.local_addr().unwrap().port(), mpsc::channel());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut builder = h2::server::Builder::new();
                if extended {
                    builder.enable_connect_protocol();
                }
                let mut connection = builder.handshake::<_, Bytes>(stream).await.unwrap();
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let protocol = request.extensions().get::<Protocol>().map(|p| p.as_str().to_owned());
                    let has_upgrade = request.headers().contains_key("upgrade");
                    let path = request.uri().path().to_owned();
                    tell.send(format!("{} {path} {protocol:?} {has_upgrade}", request.method())).unwrap();
                    tokio::spawn(async move {
                        let mut body = request.into_body();
                        let mut send = respond.send_response(Response::new(()), false).unwrap();
                        send.send_data("hi".into(), false).unwrap();
                        while let Some(Ok(data)) = body.data().await {
                            let _ = body.flow_control().release_capacity(data.len());
                            send.send_data(data, false).unwrap();
                        }
                        let _ = send.send_data("<end>".into(), true);
                    });
                }
            });
        }
    });
    (port, seen)
}

/// An HTTP/1 upstream that sees nothing behind the head until it has answered; then it says hi and echoes.
fn http1_upstream(answer: &'static str) -> (u16, mpsc::Receiver<String>) {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        tell.send(read_head(&mut stream)).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        assert!(stream.read(&mut [0; 1]).is_err(), "bytes came before the answer");
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(format!("HTTP/1.1 {answer}\r\n\r\nhi").as_bytes()).unwrap();
        let mut bytes = [0; 4096];
        while let Ok(n) = stream.read(&mut bytes) {
            if n == 0 {
                break;
            }
            let _ = stream.write_all(&bytes[..n]);
        }
        let _ = stream.write_all(b"<end>");
    });
    (port, seen)
}

#[test]
fn a_tunnel_ends_at_a_tcp_server_and_each_side_may_end_first() {
    let proxy = terminating(tcp_echo(), "").start();
    let mut stream = proxy.connect();
    stream.write_all(&[CONNECT, b"early"].concat()).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK\r\n"));
    exchange(&mut stream, b"", b"early");
    exchange(&mut stream, b" more", b" more");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "<end>", "what comes after the caller's end still arrives");
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "early").await.unwrap();
        assert_eq!(tunnel.status, StatusCode::OK);
        tunnel.read("early").await;
        tunnel.send("more", true);
        tunnel.read("more<end>").await;
        assert_eq!(tunnel.ended().await, None);
    });
    eventually(|| proxy.stat("cluster.c.upstream_cx_active") == 0);
    assert_eq!(proxy.stat("http.t.downstream_cx_upgrades_total"), 2);
    eventually(|| proxy.stat("http.t.downstream_cx_upgrades_active") == 0);
}

#[test]
fn what_a_caller_sends_after_the_servers_end_still_arrives() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        tell.send(rest(&mut stream)).unwrap();
    });
    let proxy = terminating(port, "").start();
    let mut stream = proxy.connect();
    stream.write_all(CONNECT).unwrap();
    read_head(&mut stream);
    assert_eq!(rest(&mut stream), "bye");
    std::thread::sleep(Duration::from_millis(100));
    stream.write_all(b"late").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(seen.recv_timeout(WAIT).unwrap(), "late");
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "").await.unwrap();
        assert_eq!(tunnel.ended().await, None);
        tunnel.send("late", true);
        tokio::task::block_in_place(|| assert_eq!(seen.recv_timeout(WAIT).unwrap(), "late"));
    });
}

#[test]
fn a_post_may_be_a_tunnel_and_a_get_is_a_request() {
    let proxy = terminating(tcp_echo(), "").start();
    let answer = proxy.call("POST /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello");
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("hello") && answer.body.contains("<end>"), "{answer:?}");
    let answer = proxy.get("/x");
    assert_eq!(answer.status, 502, "the echo of a request is no response");
}

#[test]
fn the_server_hears_of_the_caller_before_the_bytes() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        let mut bytes = [0; 300];
        let mut all = Vec::new();
        while !all.ends_with(b"early") {
            let n = stream.read(&mut bytes).unwrap();
            all.extend_from_slice(&bytes[..n]);
        }
        tell.send(String::from_utf8(all).unwrap()).unwrap();
    });
    let route = "{upgrade_type: CONNECT, connect_config: {proxy_protocol_config: {version: V1}}}";
    let config =
        terminating(port, "").routes(&format!("- {{match: {{connect_matcher: {{}}}}, route: {{cluster: c, upgrade_configs: [{route}]}}}}"));
    let proxy = config.start();
    let mut stream = proxy.connect();
    let own = stream.local_addr().unwrap();
    stream.write_all(&[CONNECT, b"early"].concat()).unwrap();
    let expected = format!("PROXY TCP4 127.0.0.1 127.0.0.1 {} {}\r\nearly", own.port(), proxy.address.port());
    assert_eq!(seen.recv_timeout(WAIT).unwrap(), expected);
}

#[test]
fn a_tunnel_to_nowhere_is_503_and_its_bytes_are_no_request() {
    let proxy = terminating(dead_port(), "").start();
    let mut stream = proxy.connect();
    stream.write_all(&[CONNECT, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 503);
    assert!(Answer::try_read(&mut stream).is_none(), "the bytes behind a refused tunnel were read as a request");
    assert_eq!(proxy.stat("http.t.downstream_rq_total"), 1);
}

#[test]
fn a_silent_tunnel_ends_after_its_idle_time() {
    let proxy = terminating(tcp_echo(), ", idle_timeout: 0.3s").start();
    let mut stream = proxy.connect();
    stream.write_all(CONNECT).unwrap();
    read_head(&mut stream);
    exchange(&mut stream, b"x", b"x");
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "x").await.unwrap();
        tunnel.read("x").await;
        assert_eq!(tunnel.ended().await, Some(Reason::INTERNAL_ERROR));
    });
    assert_eq!(proxy.stat("http.t.downstream_rq_idle_timeout"), 2);
}

#[test]
fn a_broken_tunnel_is_told_from_one_that_ended() {
    let port = tcp_server(|stream| {
        let socket = socket2::SockRef::from(&stream);
        (&stream).read_exact(&mut [0; 1]).unwrap();
        socket.set_linger(Some(Duration::ZERO)).unwrap();
    });
    let proxy = terminating(port, "").start();
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "x").await.unwrap();
        assert_eq!(tunnel.ended().await, Some(Reason::CONNECT_ERROR));
    });
}

#[test]
fn a_caller_that_resets_its_stream_ends_the_tunnel() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        let mut all = Vec::new();
        let _ = stream.read_to_end(&mut all);
        tell.send(all.len()).unwrap();
    });
    let proxy = terminating(port, "").start();
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "xyz").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        tunnel.send.send_reset(Reason::CANCEL);
        tokio::task::block_in_place(|| assert_eq!(seen.recv_timeout(WAIT).unwrap(), 3));
    });
    eventually(|| proxy.stat("http.t.downstream_cx_upgrades_active") == 0);
}

#[test]
fn a_tunnel_goes_on_to_another_proxy_and_nothing_before_its_answer() {
    let (port, seen) = http1_upstream("200 OK\r\ncontent-length: 5");
    let proxy = forwarding(port, false).start();
    let mut stream = proxy.connect();
    stream.write_all(&[CONNECT, b"early"].concat()).unwrap();
    let answer = read_head(&mut stream);
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && !answer.contains("content-length"), "{answer}");
    exchange(&mut stream, b"", b"hiearly");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "<end>");
    let told = seen.recv_timeout(WAIT).unwrap();
    assert!(told.starts_with("CONNECT shop:443 HTTP/1.1\r\nhost: shop:443\r\n"), "{told}");
    runtime().block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "early").await.unwrap();
        tunnel.read("hiearly").await;
        tunnel.send("", true);
        tunnel.read("<end>").await;
        assert_eq!(tunnel.ended().await, None);
    });
}

#[test]
fn a_refused_tunnel_is_an_answer_like_any_other() {
    let upstream = Upstream::start(|_, _, stream| write_status(stream, 407));
    let proxy = forwarding(upstream.port(), false).start();
    let mut stream = proxy.connect();
    stream.write_all(&[CONNECT, b"GET /smuggled HTTP/1.1\r\nhost: a\r\n\r\n"].concat()).unwrap();
    assert_eq!(Answer::read(&mut stream).status, 407);
    assert!(Answer::try_read(&mut stream).is_none());
    assert_eq!(upstream.seen().len(), 1, "{:?}", upstream.seen());
}

#[test]
fn tunnels_go_on_over_http2() {
    let runtime = runtime();
    let (port, seen) = runtime.block_on(http2_upstream(false));
    let proxy = forwarding(port, true).start();
    let mut stream = proxy.connect();
    stream.write_all(&[CONNECT, b"early"].concat()).unwrap();
    assert!(read_head(&mut stream).starts_with("HTTP/1.1 200 OK\r\n"));
    exchange(&mut stream, b"", b"hiearly");
    stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(rest(&mut stream), "<end>");
    runtime.block_on(async {
        let mut tunnel = Tunnel::open(proxy.address, None, "early").await.unwrap();
        tunnel.read("hiearly").await;
        tunnel.send("", true);
        tunnel.read("<end>").await;
        assert_eq!(tunnel.ended().await, None);
    });
    for _ in 0..2 {
        assert_eq!(seen.recv_timeout(WAIT).unwrap(), "CONNECT  None false");
    }
    assert_eq!(proxy.stat("cluster.c.upstream_cx_http2_total"), 1);
}

#[test]
fn a_websocket_crosses_every_pair_of_versions() {
    let runtime = runtime();
    let (port1, seen1) = http1_upstream("101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade");
    let (port2, seen2) = runtime.block_on(http2_upstream(true));
    for (port, http2) in [(port1, false), (port2, true)] {
        let proxy = forwarding(port, http2).start();
        let mut stream = proxy.connect();
        stream.write_all(&[WEBSOCKET, b"early"].concat()).unwrap();
        let answer = read_head(&mut stream);
        let answer = answer.to_ascii_lowercase();
        assert!(answer.starts_with("http/1.1 101 ") && answer.contains("upgrade: websocket\r\nconnection: upgrade"), "{answer}");
        exchange(&mut stream, b"", b"hiearly");
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(rest(&mut stream), "<end>");
        runtime.block_on(async {
            let mut tunnel = Tunnel::open(proxy.address, Some("websocket"), "early").await.unwrap();
            assert_eq!(tunnel.status, StatusCode::OK);
            tunnel.read("hiearly").await;
            tunnel.send("", true);
            tunnel.read("<end>").await;
            assert_eq!(tunnel.ended().await, None);
        });
    }
    for upgrade in ["upgrade: WebSocket", "upgrade: websocket"] {
        let told = seen1.recv_timeout(WAIT).unwrap();
        assert!(told.starts_with("GET /chat HTTP/1.1\r\n") && told.contains(upgrade) && told.contains("connection: upgrade"), "{told}");
        assert_eq!(seen2.recv_timeout(WAIT).unwrap(), r#"CONNECT /chat Some("websocket") false"#);
    }
}

#[test]
fn extended_connect_is_only_for_those_who_announced_it() {
    let runtime = runtime();
    let (port, seen) = runtime.block_on(http2_upstream(false));
    let proxy = forwarding(port, true).start();
    let answer = proxy.call(std::str::from_utf8(WEBSOCKET).unwrap());
    assert_eq!(answer.status, 502);
    assert!(seen.try_recv().is_err(), "an upstream that does not take it was asked");
    let mut config = forwarding(port, true);
    config.hcm = "upgrade_configs: [{upgrade_type: websocket}]".to_owned();
    let proxy = config.start();
    // Without waiting for the word of the proxy, which never comes.
    let mut stream = proxy.connect();
    let frame = |kind: u8, flags: u8, id: u8, payload: &[u8]| [&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, id], payload].concat();
    let field = |name: &str, value: &str| [&[0, name.len() as u8], name.as_bytes(), &[value.len() as u8], value.as_bytes()].concat();
    let fields = [(":method", "CONNECT"), (":scheme", "http"), (":path", "/"), (":authority", "a"), (":protocol", "websocket")]
        .map(|(n, v)| field(n, v));
    let hello = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(), frame(4, 0, 0, &[]), frame(1, 4, 1, &fields.concat())].concat();
    stream.write_all(&hello).unwrap();
    let reset = frame(3, 0, 1, &[0, 0, 0, 1]);
    let mut bytes = Vec::new();
    while !bytes.windows(reset.len()).any(|w| w == reset) {
        let mut piece = [0; 1024];
        let n = stream.read(&mut piece).unwrap();
        assert!(n > 0, "no reset among {bytes:?}");
        bytes.extend_from_slice(&piece[..n]);
    }
}

#[test]
fn an_upgrade_may_have_filters_of_its_own_and_a_route_the_last_word() {
    let upstream = Upstream::ok("plain");
    let mut config = Config::to(&[upstream.port()]).routes(
        "- {match: {prefix: /off}, route: {cluster: c, upgrade_configs: [{upgrade_type: websocket, enabled: false}]}}\n\
         - {match: {prefix: /upgrade, headers: [{name: upgrade, string_match: {exact: other}}]}, route: {cluster: c}}\n\
         - {match: {prefix: /}, route: {cluster: c, upgrade_configs: [{upgrade_type: other}]}}",
    );
    config.hcm = r#"upgrade_configs:
- upgrade_type: websocket
  filters:
  - {name: f, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault, abort: {http_status: 418, percentage: {numerator: 100}}}}
  - {name: r, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
- {upgrade_type: other, enabled: false}"#
        .to_owned();
    let proxy = config.start();
    let upgrade = |path: &str, name: &str| {
        proxy.call(&format!("GET {path} HTTP/1.1\r\nhost: a\r\nupgrade: {name}\r\nconnection: upgrade\r\n\r\n")).status
    };
    assert_eq!(upgrade("/", "websocket"), 418, "its own filters answer");
    assert_eq!(upgrade("/off", "websocket"), 403, "the route says no");
    assert_eq!(upgrade("/", "other"), 200, "the route says yes");
    assert_eq!(upgrade("/upgrade", "other"), 403, "the route that matched by the header says nothing");
    assert_eq!(proxy.get("/").status, 200, "other requests pass the usual filters");
}

#[test]
fn a_connect_with_a_body_or_without_a_port_is_no_request() {
    let proxy = terminating(tcp_echo(), "").start();
    for request in [
        "CONNECT a:80 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
        "CONNECT a:80 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
        "CONNECT a HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT :80 HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT /x HTTP/1.1\r\nhost: a\r\n\r\n",
        "CONNECT http://a/ HTTP/1.1\r\nhost: a\r\n\r\n",
    ] {
        assert_eq!(proxy.call(request).status, 400, "{request}");
    }
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 0);
}
