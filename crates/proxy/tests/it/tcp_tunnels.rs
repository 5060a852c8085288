//! The TCP proxy beyond plain bytes: tunnels over HTTP, pairs of proxies, late dials, ends by time and drain, log lines.
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use lateen_snapshot::bootstrap::overload::Action;

use crate::support::*;

const H2_UPSTREAM: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}";

/// A TCP proxy with further fields, and its cluster `c`.
fn tcp(cluster: &str, fields: &str) -> String {
    connections("", &tcp_proxy(&format!("cluster: c, {fields}")), cluster)
}

/// The far proxy of a pair: it takes tunnels and ends them at `port`.
fn far(port: u16) -> Proxy {
    let mut config = Config::to(&[port]).routes(
        "- {match: {connect_matcher: {}}, route: {cluster: c, timeout: 0s, upgrade_configs: [{upgrade_type: CONNECT, connect_config: {}}]}}",
    );
    config.hcm = "http2_protocol_options: {allow_connect: true}".to_owned();
    config.start()
}

fn near(far: &Proxy, http2: bool) -> Proxy {
    let cluster = cluster("c", &[far.address.port()], if http2 { H2_UPSTREAM } else { "" });
    start(&tcp(&cluster, "tunneling_config: {hostname: \"db:5432\"}"))
}

#[test]
fn a_pair_of_proxies_carries_tcp_in_http() {
    let echo = tcp_echo();
    for http2 in [true, false] {
        let far = far(echo);
        let near = near(&far, http2);
        let mut stream = near.connect();
        let mut writer = stream.try_clone().unwrap();
        let sent: Vec<u8> = (0..1_000_000u32).flat_map(u32::to_le_bytes).collect();
        let bytes = sent.clone();
        let sending = std::thread::spawn(move || {
            writer.write_all(&bytes).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        sending.join().unwrap();
        assert!(received.starts_with(&sent) && received.ends_with(b"<end>"), "{} bytes came back of {}", received.len(), sent.len());
        eventually(|| near.stat("tcp.t.downstream_cx_rx_bytes_total") == 4_000_000);
        eventually(|| near.stat("cluster.c.upstream_rq_active") == 0);
        assert_eq!(near.stat("cluster.c.upstream_cx_http2_total"), u64::from(http2));
    }
}

#[test]
fn tunnels_share_a_connection_and_the_server_may_end_first() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        stream.write_all(b"bye").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        tell.send(all).unwrap();
    });
    let far = far(port);
    let near = near(&far, true);
    for _ in 0..3 {
        let mut stream = near.connect();
        let mut all = String::new();
        stream.read_to_string(&mut all).unwrap();
        assert_eq!(all, "bye");
        stream.write_all(b"late").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(seen.recv_timeout(WAIT).unwrap(), "late");
    }
    assert_eq!(near.stat("cluster.c.upstream_cx_total"), 1);
    eventually(|| near.stat("tcp.t.downstream_cx_total") == 3 && near.stat("cluster.c.upstream_rq_active") == 0);
}

#[test]
fn nothing_goes_up_before_the_tunnel_is_open() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        let head = read_head(&mut stream);
        stream.set_read_timeout(Some(Duration::from_millis(150))).unwrap();
        let early = stream.read(&mut [0; 1]).is_ok();
        stream.set_read_timeout(Some(WAIT)).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nhi").unwrap();
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        tell.send((head, early, bytes)).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let tunnel =
        r#"tunneling_config: {hostname: "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%:1", headers_to_add: [{header: {key: x-a, value: b}}]}"#;
    let proxy = start(&tcp(&cluster("c", &[port], ""), tunnel));
    let mut stream = proxy.connect();
    stream.write_all(b"early").unwrap();
    let mut all = [0; 7];
    stream.read_exact(&mut all).unwrap();
    assert_eq!(&all, b"hiearly");
    let (head, early, bytes) = seen.recv_timeout(WAIT).unwrap();
    assert_eq!(head, "CONNECT 127.0.0.1:1 HTTP/1.1\r\nhost: 127.0.0.1:1\r\nx-a: b\r\n\r\n");
    assert!(!early, "bytes came before the answer");
    assert_eq!(&bytes, b"early");
}

#[test]
fn a_caller_that_leaves_before_its_tunnel_is_open_waits_no_longer() {
    let port = tcp_server(|mut stream| {
        read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhello").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let one = "circuit_breakers: {thresholds: [{max_connections: 1}]}";
    let proxy = start(&tcp(&cluster("c", &[port], one), "tunneling_config: {hostname: \"db:1\"}"));
    let greeted = |stream: &mut TcpStream| {
        let mut hello = [0; 5];
        stream.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");
    };
    let waiting = || proxy.stat("cluster.c.upstream_rq_pending_active");
    let mut first = proxy.connect();
    greeted(&mut first);
    for (said, resets) in [("", true), ("", false), ("something", false)] {
        let mut stream = proxy.connect();
        stream.write_all(said.as_bytes()).unwrap();
        eventually(|| waiting() == 1);
        if resets {
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        }
        drop(stream);
        eventually(|| waiting() == 0 && proxy.worker.connections() == 1);
    }
    assert_eq!(proxy.stat("cluster.c.upstream_rq_cancelled"), 3);
    // Within the time that a connection may take, one that ended its side may be there for what the server says.
    let mut second = proxy.connect();
    second.shutdown(Shutdown::Write).unwrap();
    eventually(|| waiting() == 1);
    drop(first);
    greeted(&mut second);
}

#[test]
fn a_tunnel_that_does_not_open_ends_with_the_idle_timeout() {
    let port = tcp_server(|mut stream| {
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let one = "circuit_breakers: {thresholds: [{max_connections: 1}]}";
    let proxy = start(&tcp(&cluster("c", &[port], one), "idle_timeout: 0.3s, tunneling_config: {hostname: \"db:1\"}"));
    // One waits for the answer, and one for a connection.
    let mut callers = [proxy.connect(), proxy.connect()];
    for stream in &mut callers {
        assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    }
    eventually(|| proxy.worker.connections() == 0);
    assert_eq!(proxy.stat("tcp.t.idle_timeout"), 2);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_pending_active"), 0);
}

#[test]
fn a_refused_tunnel_is_tried_again_and_then_given_up() {
    let upstream = Upstream::start(|number, _, stream| match number {
        1 | 2 => write_status(stream, 503),
        3 => {
            stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nwelcome").unwrap();
            false
        }
        _ => write_status(stream, 403),
    });
    let fields = "max_connect_attempts: 3, backoff_options: {base_interval: 0.02s}, tunneling_config: {hostname: \"db:1\"}";
    let proxy = start(&tcp(&cluster("c", &[upstream.port()], ""), fields));
    let mut all = String::new();
    proxy.connect().read_to_string(&mut all).unwrap();
    assert_eq!(all, "welcome");
    assert_eq!(proxy.connect().read(&mut [0; 1]).unwrap_or(0), 0);
    eventually(|| proxy.stat("cluster.c.upstream_cx_connect_attempts_exceeded") == 1);
    assert_eq!(upstream.seen().len(), 6);
}

#[test]
fn a_post_carries_the_bytes_in_chunks() {
    let (tell, seen) = mpsc::channel();
    let port = tcp_server(move |mut stream| {
        let head = read_head(&mut stream);
        stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n").unwrap();
        let mut bytes = [0; 10];
        stream.read_exact(&mut bytes).unwrap();
        tell.send((head, bytes)).unwrap();
        stream.write_all(b"0\r\n\r\n").unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let proxy = start(&tcp(&cluster("c", &[port], ""), "tunneling_config: {hostname: \"db:1\", use_post: true, post_path: /p}"));
    let mut stream = proxy.connect();
    stream.write_all(b"hello").unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "hi");
    let (head, bytes) = seen.recv_timeout(WAIT).unwrap();
    assert_eq!(head, "POST /p HTTP/1.1\r\nhost: db:1\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(&bytes, b"5\r\nhello\r\n");
}

#[test]
fn a_host_may_be_dialled_only_when_the_caller_speaks() {
    let dialled = Arc::new(AtomicUsize::new(0));
    let count = dialled.clone();
    let port = tcp_server(move |mut stream| {
        count.fetch_add(1, SeqCst);
        let mut bytes = [0; 5];
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let fields = "upstream_connect_mode: ON_DOWNSTREAM_DATA, max_early_data_bytes: 1024";
    let proxy = start(&tcp(&cluster("c", &[port], ""), fields));
    let mut stream = proxy.connect();
    let silent = proxy.connect();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(dialled.load(SeqCst), 0);
    stream.write_all(b"hello").unwrap();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert_eq!(all, "hello");
    drop((silent, stream));
    eventually(|| proxy.worker.connections() == 0);
    assert_eq!(dialled.load(SeqCst), 1, "a caller that says nothing costs no connection");
    eventually(|| proxy.stat("tcp.t.downstream_cx_rx_bytes_total") == 5);
}

#[test]
fn a_connection_ends_with_its_time_and_not_before() {
    let fields = "max_downstream_connection_duration: 0.3s, max_downstream_connection_duration_jitter_percentage: {value: 100}";
    let proxy = start(&tcp(&cluster("c", &[tcp_echo()], ""), fields));
    let started = Instant::now();
    let mut stream = proxy.connect();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    assert!(started.elapsed() >= Duration::from_millis(300), "{:?}", started.elapsed());
    assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    assert_eq!(proxy.stat("tcp.t.max_downstream_connection_duration"), 1);
}

#[test]
fn a_drain_ends_connections_that_move_bytes_where_it_is_asked_for() {
    for (fields, ends) in [("check_drain_close: true", true), ("check_drain_close: false", false)] {
        let proxy = start(&tcp(&cluster("c", &[tcp_echo()], ""), fields));
        let mut stream = proxy.connect();
        let mut byte = [0; 1];
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut byte).unwrap();
        // Which is of HTTP alone.
        proxy.overload.set(Action::DisableKeepalive, 1.0);
        stream.write_all(b"a").unwrap();
        stream.read_exact(&mut byte).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(stream.read(&mut byte).is_err());
        stream.set_read_timeout(Some(WAIT)).unwrap();
        proxy.worker.drain();
        std::thread::sleep(Duration::from_millis(50));
        stream.write_all(b"b").unwrap();
        stream.read_exact(&mut byte).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(if ends { 5000 } else { 200 }))).unwrap();
        let end = stream.read(&mut byte);
        assert_eq!(matches!(end, Ok(0)), ends, "{fields}: {end:?}");
    }
}

#[test]
fn a_connection_is_logged_when_it_opens_and_now_and_then() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let fields = format!(
        "access_log_options: {{flush_access_log_on_start: true, flush_access_log_on_connected: true, access_log_flush_interval: 0.1s}}, \
         access_log: [{{name: f, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, \
         path: {}, log_format: {{text_format_source: {{inline_string: \"%UPSTREAM_HOST% %BYTES_RECEIVED%;\"}}}}}}}}]",
        path.display()
    );
    let port = tcp_echo();
    let proxy = start(&tcp(&cluster("c", &[port], ""), &fields));
    let mut stream = proxy.connect();
    stream.write_all(b"hello").unwrap();
    stream.read_exact(&mut [0; 5]).unwrap();
    std::thread::sleep(Duration::from_millis(250));
    drop(stream);
    eventually(|| proxy.worker.connections() == 0);
    let opened = format!("- 0;127.0.0.1:{port} 0;127.0.0.1:{port} 5;");
    eventually(|| std::fs::read_to_string(&path).unwrap_or_default().matches(';').count() >= 4);
    let log = std::fs::read_to_string(&path).unwrap();
    assert!(log.starts_with(&opened), "{log}");
}

#[test]
fn a_tunnel_is_a_request_of_its_cluster_while_it_is_opened_and_open() {
    let server = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(300));
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\nhi");
        let _ = stream.read_to_end(&mut Vec::new());
        false
    });
    let one = "circuit_breakers: {thresholds: [{max_requests: 1}]}";
    let proxy = start(&tcp(&cluster("c", &[server.port()], one), "tunneling_config: {hostname: \"db:1\"}"));
    let mut first = proxy.connect();
    eventually(|| proxy.stat("cluster.c.upstream_rq_active") == 1);
    assert_eq!(proxy.connect().read(&mut [0; 1]).unwrap_or(0), 0);
    first.read_exact(&mut [0; 2]).unwrap();
    assert_eq!(proxy.connect().read(&mut [0; 1]).unwrap_or(0), 0);
    let stat = |name: &str| proxy.stat(&format!("cluster.c.upstream_rq_{name}"));
    assert_eq!(["pending_overflow", "total", "active"].map(stat), [2, 1, 1]);
    drop(first);
    eventually(|| stat("active") == 0);
    proxy.connect().read_exact(&mut [0; 2]).unwrap();
}
