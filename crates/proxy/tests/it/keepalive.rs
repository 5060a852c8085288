//! PINGs of HTTP/2 connections: peers that answer them stay, and those that do not are left.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode};
use lateen_http2::{Config as H2Config, Connection, Event, RequestHead};

use crate::support::*;

const HEADERS: u8 = 1;
const PING: u8 = 6;

fn keepalive(fields: &str) -> String {
    format!(
        "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {{http2_protocol_options: {{connection_keepalive: {{{fields}}}}}}}"
    )
}

fn write_output(connection: &mut Connection, stream: &mut TcpStream) {
    while !connection.output().is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = connection.output().slices(&mut slices);
        let bytes = slices[..filled].iter().flat_map(|s| s.to_vec()).collect::<Vec<_>>();
        let _ = stream.write_all(&bytes);
        connection.written(bytes.len());
    }
}

/// One end of a connection by hand: what frames came, and no answer to a PING where it is deaf.
struct Peer {
    stream: TcpStream,
    codec: Connection,
    bytes: BytesMut,
    kinds: Arc<Mutex<Vec<u8>>>,
    deaf: bool,
    closed: bool,
}

impl Peer {
    fn new(stream: TcpStream, codec: Connection, deaf: bool) -> Self {
        stream.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        Self { stream, codec, bytes: BytesMut::new(), kinds: Arc::default(), deaf, closed: false }
    }

    /// The next events; none after a moment in which nothing came.
    fn turn(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        write_output(&mut self.codec, &mut self.stream);
        let mut buffer = [0; 4096];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(n) => self.bytes.extend_from_slice(&buffer[..n]),
            Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {}
            Err(_) => self.closed = true,
        }
        if self.bytes.starts_with(b"PRI ") && self.bytes.len() >= 24 {
            let mut preface = self.bytes.split_to(24);
            self.codec.receive(&mut preface, &mut events).unwrap();
        }
        while self.bytes.len() >= 9 && !self.bytes.starts_with(b"PRI ") {
            let size = 9 + u32::from_be_bytes([0, self.bytes[0], self.bytes[1], self.bytes[2]]) as usize;
            if self.bytes.len() < size {
                break;
            }
            let mut frame = self.bytes.split_to(size);
            let kind = frame[3];
            self.kinds.lock().unwrap().push(kind);
            if !(self.deaf && kind == PING) {
                let _ = self.codec.receive(&mut frame, &mut events);
            }
        }
        write_output(&mut self.codec, &mut self.stream);
        events
    }
}

/// An upstream that answers each request after `delay`, and the frames it has seen.
fn upstream(deaf: bool, delay: Duration) -> (u16, Arc<Mutex<Vec<u8>>>) {
    let kinds = Arc::new(Mutex::new(Vec::new()));
    let seen = kinds.clone();
    let port = tcp_server(move |stream| {
        let mut peer = Peer::new(stream, Connection::server(H2Config::default()), deaf);
        peer.kinds = seen.clone();
        let mut due = Vec::new();
        while !peer.closed {
            let asked = peer.turn();
            due.extend(
                asked.iter().filter_map(|e| if let Event::Request { id, .. } = e { Some((*id, Instant::now() + delay)) } else { None }),
            );
            let (now, later) = due.into_iter().partition(|(_, at)| *at <= Instant::now());
            due = later;
            for (id, _) in now {
                peer.codec.send_response(id, StatusCode::OK, &HeaderMap::new(), true);
            }
        }
    });
    (port, kinds)
}

fn proxy_to(port: u16, fields: &str) -> Proxy {
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[port], &keepalive(fields))];
    config.start()
}

#[test]
fn an_upstream_that_answers_no_ping_is_left_and_one_that_does_may_take_its_time() {
    let (alive, kinds) = upstream(false, Duration::from_millis(900));
    let proxy = proxy_to(alive, "interval: 0.1s, timeout: 0.3s");
    assert_eq!(proxy.get("/").status, 200);
    assert!(kinds.lock().unwrap().iter().filter(|kind| **kind == PING).count() >= 3);
    assert_eq!(proxy.stat("cluster.c.http2.keepalive_timeout"), 0);

    let (deaf, _) = upstream(true, Duration::from_secs(60));
    let proxy = proxy_to(deaf, "interval: 0.1s, timeout: 0.3s");
    let answer = proxy.get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("connection termination"), "{answer:?}");
    assert_eq!(proxy.stat("cluster.c.http2.keepalive_timeout"), 1);
    eventually(|| proxy.stat("cluster.c.upstream_cx_active") == 0);
}

#[test]
fn a_stream_on_a_connection_that_was_silent_comes_after_a_ping() {
    let (port, kinds) = upstream(false, Duration::ZERO);
    let proxy = proxy_to(port, "timeout: 2s, connection_idle_interval: 0.3s");
    assert_eq!((proxy.get("/").status, proxy.get("/").status), (200, 200));
    assert!(!kinds.lock().unwrap().contains(&PING));
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(proxy.get("/").status, 200);
    let kinds = kinds.lock().unwrap();
    let ping = kinds.iter().position(|kind| *kind == PING).unwrap();
    assert_eq!((kinds.iter().filter(|kind| **kind == HEADERS).count(), kinds[ping + 1]), (3, HEADERS), "{kinds:?}");
    assert_eq!(proxy.stat("cluster.c.upstream_cx_total"), 1);
}

#[test]
fn a_caller_that_answers_no_ping_is_left_and_one_that_does_stays() {
    let upstream = Upstream::start(|_, _, stream| {
        std::thread::sleep(Duration::from_millis(900));
        write_ok(stream, "late")
    });
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "http2_protocol_options: {connection_keepalive: {interval: 0.1s, interval_jitter: {value: 0}, timeout: 0.3s}}".to_owned();
    let proxy = config.start();
    let answered = |deaf| {
        let mut peer = Peer::new(proxy.connect(), Connection::client(H2Config::default()), deaf);
        let head =
            RequestHead { method: Method::GET, scheme: "http".into(), authority: "a".into(), path: "/".into(), ..Default::default() };
        peer.codec.send_request(head.as_ref(), true).unwrap();
        let deadline = Instant::now() + WAIT;
        while !peer.closed && Instant::now() < deadline {
            if peer.turn().iter().any(|e| matches!(e, Event::Response { .. })) {
                return true;
            }
        }
        assert!(peer.closed);
        false
    };
    assert!(answered(false));
    assert_eq!(proxy.stat("http2.keepalive_timeout"), 0);
    assert!(!answered(true));
    assert_eq!(proxy.stat("http2.keepalive_timeout"), 1);
}
