//! The TCP proxy where one side ends before the other: what has arrived is delivered all the same.
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use lateen_http2::{Config as H2Config, Connection, Event, StreamId};

use crate::support::*;

/// More than the sockets on the way hold.
const MUCH: usize = 16 << 20;

/// A window for all of it.
const H2_UPSTREAM: &str = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {initial_stream_window_size: 33554432, initial_connection_window_size: 33554432}}";

/// A caller that takes little at once.
fn slow(address: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(WAIT)).unwrap();
    stream
}

/// What comes until the end, and whether it was one.
fn all(stream: &mut TcpStream) -> (Vec<u8>, bool) {
    let mut all = Vec::new();
    let end = stream.read_to_end(&mut all);
    (all, end.is_ok())
}

/// The end of a tunnel, spoken by hand.
struct Server {
    stream: TcpStream,
    codec: Connection,
}

impl Server {
    fn flush(&mut self) {
        while !self.codec.output().is_empty() {
            let mut slices = [std::io::IoSlice::new(&[]); 8];
            let filled = self.codec.output().slices(&mut slices);
            let written = self.stream.write_vectored(&slices[..filled]).unwrap();
            self.codec.written(written);
        }
    }

    fn until<T>(&mut self, found: impl Fn(&Event) -> Option<T>) -> T {
        let (mut buffer, mut bytes) = ([0; 4096], BytesMut::new());
        loop {
            self.flush();
            let n = self.stream.read(&mut buffer).unwrap();
            assert!(n > 0, "the proxy ended first");
            bytes.extend_from_slice(&buffer[..n]);
            let mut events = Vec::new();
            self.codec.receive(&mut bytes, &mut events).unwrap();
            if let Some(found) = events.iter().find_map(&found) {
                return found;
            }
        }
    }

    /// Takes a tunnel.
    fn open(stream: TcpStream) -> (Self, StreamId) {
        let mut server = Self { stream, codec: Connection::server(H2Config::default()) };
        let id = server.until(|e| if let Event::Request { id, .. } = e { Some(*id) } else { None });
        server.codec.send_response(id, StatusCode::OK, &HeaderMap::new(), false);
        (server, id)
    }

    fn send_all(&mut self, id: StreamId) {
        let mut data = Bytes::from(vec![b'z'; MUCH]);
        while !self.codec.send_data(id, &mut data, true) {
            self.until(|e| matches!(e, Event::Capacity { .. }).then_some(()));
        }
        self.flush();
    }
}

/// A proxy that logs its response flags, before a server that does `serve`.
fn tunnel(folder: &tempfile::TempDir, serve: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> Proxy {
    let port = tcp_server(serve);
    let fields = format!(
        "cluster: c, tunneling_config: {{hostname: \"db:1\"}}, access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
         log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS%;\"}}}}}}}}]",
        folder.path().join("log").display()
    );
    start(&connections("", &tcp_proxy(&fields), &cluster("c", &[port], H2_UPSTREAM)))
}

#[test]
fn a_connection_that_rules_deny_is_logged_with_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "- {name: r, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.network.rbac.v3.RBAC, stat_prefix: r, \
                 rules: {action: DENY, policies: {\"no one\": {permissions: [{any: true}], principals: [{any: true}]}}}}}";
    let fields = format!(
        "cluster: c, access_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, \
         log_format: {{text_format_source: {{inline_string: \"%RESPONSE_FLAGS% %CONNECTION_TERMINATION_DETAILS%;\"}}}}}}}}]",
        folder.path().join("log").display()
    );
    let filters = format!("{rules}\n{}", tcp_proxy(&fields));
    let proxy = start(&connections("", &filters, &cluster("c", &[dead_port()], "")));
    // It may be reset.
    let _ = proxy.connect().read_to_end(&mut Vec::new());
    assert_eq!(logged(&folder), "- rbac_access_denied_matched_policy[no_one];");
}

fn logged(folder: &tempfile::TempDir) -> String {
    let read = || std::fs::read_to_string(folder.path().join("log")).unwrap_or_default();
    eventually(|| !read().is_empty());
    read()
}

#[test]
fn a_server_that_has_said_all_and_resets_the_stream_takes_nothing_back() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, done) = mpsc::channel();
    let proxy = tunnel(&folder, move |stream| {
        let (mut server, id) = Server::open(stream);
        server.send_all(id);
        // RST_STREAM, NO_ERROR.
        let mut frame = vec![0, 0, 4, 3, 0];
        frame.extend_from_slice(&id.to_be_bytes());
        frame.extend_from_slice(&[0; 4]);
        server.stream.write_all(&frame).unwrap();
        tell.send(()).unwrap();
        let _ = server.stream.read_to_end(&mut Vec::new());
    });
    let mut stream = slow(proxy.address);
    done.recv_timeout(WAIT).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // It is still listened to, for as long as it is sent something.
    stream.write_all(&[b'a'; 100_000]).unwrap();
    let (all, whole) = all(&mut stream);
    assert_eq!((all.len(), whole), (MUCH, true));
    drop(stream);
    assert_eq!(logged(&folder), "-;");
}

#[test]
fn a_stream_that_is_over_needs_its_connection_no_more() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, done) = mpsc::channel();
    let proxy = tunnel(&folder, move |stream| {
        let (mut server, id) = Server::open(stream);
        server.until(|e| matches!(e, Event::Data { end: true, .. }).then_some(()));
        server.send_all(id);
        server.stream.shutdown(Shutdown::Write).unwrap();
        tell.send(()).unwrap();
        let _ = server.stream.read_to_end(&mut Vec::new());
    });
    let mut stream = slow(proxy.address);
    stream.write_all(b"all").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    done.recv_timeout(WAIT).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let (all, whole) = all(&mut stream);
    assert_eq!((all.len(), whole), (MUCH, true));
    drop(stream);
    assert_eq!(logged(&folder), "-;");
}

#[test]
fn a_stream_that_is_cut_loses_nothing_that_came_before() {
    let folder = tempfile::tempdir().unwrap();
    let (tell, done) = mpsc::channel();
    let proxy = tunnel(&folder, move |stream| {
        let (mut server, id) = Server::open(stream);
        let mut data = Bytes::from(vec![b'z'; MUCH]);
        while !server.codec.send_data(id, &mut data, false) || !data.is_empty() {
            server.until(|e| matches!(e, Event::Capacity { .. }).then_some(()));
        }
        server.flush();
        server.stream.shutdown(Shutdown::Write).unwrap();
        tell.send(()).unwrap();
        let _ = server.stream.read_to_end(&mut Vec::new());
    });
    let mut stream = slow(proxy.address);
    done.recv_timeout(WAIT).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(all(&mut stream).0.len(), MUCH);
    assert_eq!(logged(&folder), "UC;");
}

#[test]
fn a_server_that_takes_no_more_has_still_said_what_it_said() {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    // Next to nothing is under way when it ends.
    socket.set_send_buffer_size(4096).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(8).unwrap();
    let listener = TcpListener::from(socket);
    let port = listener.local_addr().unwrap().port();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut sent = 0;
        loop {
            match stream.write(&[b'z'; 4096]) {
                Ok(n) => sent += n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => break,
                Err(e) => panic!("{e}"),
            }
        }
        // With bytes that it has not read: that is a reset.
        drop(stream);
        tell.send(sent).unwrap();
    });
    let proxy = start(&connections("", &tcp_proxy("cluster: c"), &cluster("c", &[port], "")));
    let mut stream = slow(proxy.address);
    stream.write_all(b"x").unwrap();
    let sent = told.recv_timeout(WAIT * 4).unwrap();
    // The proxy hears of it when it has something for the server.
    for _ in 0..3 {
        stream.write_all(b"y").unwrap();
        std::thread::sleep(Duration::from_millis(50));
    }
    let got = all(&mut stream).0.len();
    assert!(got + (64 << 10) >= sent, "{got} of {sent}");
    eventually(|| proxy.worker.connections() == 0);
}
