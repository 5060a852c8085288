//! HTTP/2 that means harm: frames written by hand on a real connection, while others are served.
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use lateen_http2::{Config as H2Config, Connection, Event, Reason, RequestHead};

use crate::support::*;

/// What a [`Caller`] takes altogether; it gives nothing back.
const CONNECTION_WINDOW: usize = 1 << 20;

/// GET http /, authority `a`.
const BLOCK: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

fn literal(name: &[u8], value: &[u8]) -> Vec<u8> {
    let mut block = BLOCK.to_vec();
    block.extend_from_slice(&[0x00, name.len() as u8]);
    block.extend_from_slice(name);
    block.push(value.len() as u8);
    block.extend_from_slice(value);
    block
}

fn drain(connection: &mut Connection) -> Vec<u8> {
    let mut bytes = Vec::new();
    while !connection.output().is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = connection.output().slices(&mut slices);
        let written: usize = slices[..filled].iter().map(|s| s.len()).sum();
        slices[..filled].iter().for_each(|s| bytes.extend_from_slice(s));
        connection.written(written);
    }
    bytes
}

/// A caller whose frames are its own, and whose reader is the codec.
struct Caller {
    stream: TcpStream,
    codec: Connection,
    /// What has come of a frame that is not whole yet.
    bytes: BytesMut,
    events: Vec<Event>,
    closed: bool,
}

impl Caller {
    fn new(address: SocketAddr) -> Self {
        Self::on(TcpStream::connect(address).unwrap())
    }

    /// For whom next to nothing can be under way.
    fn narrow(address: SocketAddr) -> Self {
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.set_recv_buffer_size(16 << 10).unwrap();
        socket.connect(&address.into()).unwrap();
        Self::on(socket.into())
    }

    fn on(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let hello = drain(&mut Connection::client(H2Config::default()));
        // It does not hear of windows that are opened by hand, and is not to miss them.
        let mut codec = Connection::client(H2Config { stream_window: 1 << 30, connection_window: 1 << 30, ..H2Config::default() });
        drop(drain(&mut codec));
        let mut caller = Self { stream, codec, bytes: BytesMut::new(), events: Vec::new(), closed: false };
        caller.stream.write_all(&hello).unwrap();
        caller
    }

    /// Makes the codec expect an answer on the next stream, and sends `block` as its head instead of the codec's.
    fn open(&mut self, block: &[u8], flags: u8) -> u32 {
        let head =
            RequestHead { method: Method::GET, scheme: "http".into(), authority: "a".into(), path: "/".into(), ..Default::default() };
        let id = self.codec.send_request(head.as_ref(), flags & 1 != 0).unwrap();
        drop(drain(&mut self.codec));
        let mut bytes = Vec::new();
        frame(&mut bytes, 1, flags, id, block);
        self.stream.write_all(&bytes).unwrap();
        id
    }

    fn read(&mut self) {
        let mut buffer = [0; 16 * 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => self.closed = true,
            Ok(n) => {
                self.bytes.extend_from_slice(&buffer[..n]);
                let _ = self.codec.receive(&mut self.bytes, &mut self.events);
                let _ = self.stream.write_all(&drain(&mut self.codec));
            }
            Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(_) => self.closed = true,
        }
    }

    fn until(&mut self, what: &str, found: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + WAIT;
        while !found(self) {
            assert!(!self.closed && Instant::now() < deadline, "{what}: closed {}, {:?}", self.closed, self.events);
            self.read();
        }
    }

    fn status(&self, stream: u32) -> Option<u16> {
        self.events.iter().find_map(|e| match e {
            Event::Response { id, status, .. } if *id == stream => Some(status.as_u16()),
            _ => None,
        })
    }

    fn body(&self, stream: u32) -> usize {
        self.data().filter(|(id, _)| *id == stream).map(|(_, size)| size).sum()
    }

    /// Of all streams together.
    fn bytes(&self) -> usize {
        self.data().map(|(_, size)| size).sum()
    }

    fn data(&self) -> impl Iterator<Item = (u32, usize)> {
        self.events.iter().filter_map(|e| if let Event::Data { id, data, .. } = e { Some((*id, data.len())) } else { None })
    }

    fn was_reset(&self, stream: u32) -> bool {
        self.events.iter().any(|e| matches!(e, Event::Reset { id, .. } if *id == stream))
    }

    fn sent_away(&self) -> Option<Reason> {
        self.events.iter().find_map(|e| if let Event::GoAway { reason, .. } = e { Some(*reason) } else { None })
    }
}

#[test]
fn what_http1_could_not_carry_costs_its_stream_and_reaches_no_upstream() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let bad = [
        literal(b"x", b"a\r\nevil: 1"),
        literal(b"x", b"a\nb"),
        literal(b"x", b"a\0b"),
        literal(b"connection", b"close"),
        literal(b"transfer-encoding", b"chunked"),
        literal(b"host", b"other"),
        literal(b"a b", b"x"),
        literal(b"UPPER", b"x"),
    ];
    for block in bad {
        let id = caller.open(&block, 5);
        caller.until("a refusal", |c| c.was_reset(id) || c.status(id).is_some());
        assert!(caller.was_reset(id) || caller.status(id) == Some(400), "{block:?}");
        // The codec forgets the stream, so that the next number is right.
        caller = Caller::new(proxy.address);
    }
    let id = caller.open(&BLOCK, 5);
    caller.until("an answer", |c| c.status(id) == Some(200));
    assert_eq!(upstream.seen().len(), 1);
}

#[test]
fn cookie_crumbs_count_in_full_however_small_they_were_encoded() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let mut block = BLOCK.to_vec();
    // `cookie` with incremental indexing and a value of 100 bytes, then one byte for each repetition.
    block.extend_from_slice(&[0x60, 100]);
    block.extend_from_slice(&[b'c'; 100]);
    block.extend(std::iter::repeat_n(0xbe, 4000));
    let id = caller.open(&block, 5);
    caller.until("a refusal", |c| c.status(id).is_some() || c.was_reset(id) || c.sent_away().is_some());
    assert!(caller.status(id).is_none_or(|s| s == 431), "{:?}", caller.events);
    assert!(upstream.seen().is_empty());
}

#[test]
fn what_is_no_request_is_counted_and_logged_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("log");
    let mut config = Config::to(&[dead_port()]);
    config.hcm = format!(
        "max_request_headers_kb: 1\naccess_log: [{{name: f, typed_config: {{\"@type\": \
         type.googleapis.com/envoy.extensions.access_loggers.file.v3.FileAccessLog, path: {}, log_format: {{text_format_source: \
         {{inline_string: \"%PROTOCOL% %RESPONSE_CODE% %RESPONSE_FLAGS% %RESPONSE_CODE_DETAILS%;\"}}}}}}}}]",
        path.display()
    );
    let proxy = config.start();
    let mut caller = Caller::new(proxy.address);
    let large: Vec<u8> = (0..10).flat_map(|n| literal(format!("x{n}").as_bytes(), &[b'a'; 120]).split_off(BLOCK.len())).collect();
    let expected = [
        ([&BLOCK[..], &large].concat(), 431, "HTTP/2 431 DPE http2.too_many_headers;"),
        // No authority at all, and some that are none.
        (BLOCK[..3].to_vec(), 400, "HTTP/2 400 - missing_host_header;"),
        ([&BLOCK[..3], b"\x41\x03a@b"].concat(), 400, "HTTP/2 400 DPE http2.invalid.header.field;"),
        ([&BLOCK[..3], b"\x41\x03a/b"].concat(), 400, "HTTP/2 400 DPE http2.invalid.header.field;"),
        ([&BLOCK[..3], b"\x41\x03a,b"].concat(), 400, "HTTP/2 400 DPE http2.invalid.header.field;"),
        ([&BLOCK[..3], b"\x41\x03a\\b"].concat(), 400, "HTTP/2 400 DPE http2.invalid.header.field;"),
    ];
    let mut log = String::new();
    for (block, status, line) in expected {
        let id = caller.open(&block, 5);
        caller.until("an answer", |c| c.status(id).is_some() || c.was_reset(id));
        assert_eq!(caller.status(id), Some(status), "{line}");
        log.push_str(line);
    }
    eventually(|| std::fs::read_to_string(&path).unwrap_or_default() == log);
    let stat = |name: &str| proxy.stat(&format!("http.t.{name}"));
    assert_eq!((stat("downstream_rq_total"), stat("downstream_rq_http2_total"), stat("downstream_rq_4xx")), (6, 6, 6));
    assert_eq!((stat("downstream_rq_active"), stat("downstream_cx_protocol_error")), (0, 6));
}

#[test]
fn rapid_resets_end_their_connection_before_the_upstream_is_hit_by_each() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let mut bytes = Vec::new();
    for id in (1..20_000).step_by(2) {
        frame(&mut bytes, 1, 5, id, &BLOCK);
        frame(&mut bytes, 3, 0, id, &[0, 0, 0, 8]);
    }
    let _ = caller.stream.write_all(&bytes);
    let deadline = Instant::now() + WAIT;
    while caller.sent_away().is_none() && !caller.closed && Instant::now() < deadline {
        caller.read();
    }
    assert!(caller.closed || caller.sent_away() == Some(Reason::ENHANCE_YOUR_CALM), "{:?}", caller.sent_away());
    assert!(upstream.seen().len() < 2000, "{}", upstream.seen().len());
    // What the flood had under way may fill the cluster's limits for a moment.
    eventually(|| proxy.get("/").status == 200);
}

#[test]
fn a_flood_from_a_caller_that_does_not_read_ends_and_disturbs_nobody() {
    let upstream = Upstream::ok("x");
    let proxy = Config::to(&[upstream.port()]).start();
    for kind in ["ping", "settings"] {
        let mut caller = Caller::new(proxy.address);
        let mut bytes = Vec::new();
        for _ in 0..10_000 {
            match kind {
                "ping" => frame(&mut bytes, 6, 0, 0, &[0; 8]),
                _ => frame(&mut bytes, 4, 0, 0, &[]),
            }
        }
        caller.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let deadline = Instant::now() + WAIT;
        let mut ended = false;
        while !ended && Instant::now() < deadline {
            ended = caller.stream.write_all(&bytes).is_err();
            assert_eq!(proxy.get("/").status, 200, "another connection, during {kind}");
        }
        assert!(ended, "{kind} goes on for ever");
        // The connection is given up although its last words cannot be written.
        eventually(|| proxy.stat("http.t.downstream_cx_http2_active") == 0);
        drop(caller);
    }
}

#[test]
fn a_broken_connection_is_dropped_although_its_last_words_cannot_be_written() {
    let upstream = Upstream::start(|_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while stream.write_all(&[b'z'; 65_536]).is_ok() {}
        false
    });
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let mut bytes = Vec::new();
    // Windows as large as they get, an answer that fills all buffers, and a reader that is asleep.
    frame(&mut bytes, 4, 0, 0, &[0, 4, 0x7f, 0xff, 0xff, 0xff]);
    frame(&mut bytes, 8, 0, 0, &[0x7f, 0, 0, 0]);
    caller.stream.write_all(&bytes).unwrap();
    for _ in 0..4 {
        caller.open(&BLOCK, 5);
    }
    std::thread::sleep(Duration::from_millis(1500));
    let mut bytes = Vec::new();
    (0..3000).for_each(|_| frame(&mut bytes, 6, 0, 0, &[0; 8]));
    let _ = caller.stream.write_all(&bytes);
    eventually(|| proxy.stat("http.t.downstream_cx_http2_active") == 0);
    assert_eq!(proxy.stat("http.t.downstream_cx_protocol_error"), 1);
    drop(caller);
}

#[test]
fn streams_without_a_window_hold_bounded_memory_and_time_out() {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let upstream = Upstream::start(move |_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while let Ok(n) = stream.write(&[b'z'; 65_536]) {
            count.fetch_add(n, SeqCst);
        }
        false
    });
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "stream_idle_timeout: 1s".to_owned();
    let proxy = config.start();
    let mut caller = Caller::new(proxy.address);
    let mut bytes = Vec::new();
    // SETTINGS_INITIAL_WINDOW_SIZE = 0.
    frame(&mut bytes, 4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    caller.stream.write_all(&bytes).unwrap();
    let ids: Vec<u32> = (0..10).map(|_| caller.open(&BLOCK, 5)).collect();
    caller.until("responses", |c| ids.iter().all(|id| c.status(*id) == Some(200)));
    // What the sockets to and from the upstream hold, and a little of ours, for each.
    assert!(sent.load(SeqCst) < 10 * (16 << 20), "{}", sent.load(SeqCst));
    // One byte at a time keeps none of them alive.
    let mut drip = Vec::new();
    frame(&mut drip, 8, 0, ids[0], &[0, 0, 0, 1]);
    caller.stream.write_all(&drip).unwrap();
    caller.until("resets", |c| ids.iter().all(|id| c.was_reset(*id)));
}

/// Sends as much as is taken, and counts it; on `/short` little.
fn endless() -> (Upstream, Arc<AtomicUsize>) {
    let sent = Arc::new(AtomicUsize::new(0));
    let count = sent.clone();
    let upstream = Upstream::start(move |_, request, stream| {
        if !request.starts_with("GET / ") {
            return write_ok(stream, "short");
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\n");
        while let Ok(n) = stream.write(&[b'z'; 4096]) {
            count.fetch_add(n, SeqCst);
        }
        false
    });
    (upstream, sent)
}

/// How much the upstream has sent when it cannot send more.
fn stuck_at(sent: &AtomicUsize) -> usize {
    let mut before = 0;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        match sent.load(SeqCst) {
            now if now == before && now > 0 => return now,
            now => before = now,
        }
    }
}

#[test]
fn a_window_opened_a_byte_at_a_time_costs_a_frame_each_and_holds_nobody_up() {
    const BYTES: usize = 2000;
    let (upstream, sent) = endless();
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let mut bytes = Vec::new();
    frame(&mut bytes, 4, 0, 0, &[0, 4, 0, 0, 0, 0]);
    caller.stream.write_all(&bytes).unwrap();
    let slow = caller.open(&BLOCK, 5);
    caller.until("a response", |c| c.status(slow) == Some(200));
    let taken = stuck_at(&sent);
    caller.events.clear();
    for n in 1..=BYTES {
        let mut drip = Vec::new();
        frame(&mut drip, 8, 0, slow, &[0, 0, 0, 1]);
        caller.stream.write_all(&drip).unwrap();
        caller.until("a byte", |c| c.body(slow) == n);
        if n % 500 == 0 {
            // Another connection, and another stream of this one.
            assert_eq!(proxy.get("/short").body, "short");
            let mut block = BLOCK.to_vec();
            block[2] = 0x04;
            block.splice(3..3, *b"\x06/short");
            let other = caller.open(&block, 5);
            let mut window = Vec::new();
            frame(&mut window, 8, 0, other, &[0, 0, 0, 100]);
            caller.stream.write_all(&window).unwrap();
            caller.until("the other stream", |c| c.body(other) == 5);
        }
    }
    assert!(caller.sent_away().is_none() && !caller.was_reset(slow));
    // No more than what was given out, and what a socket's buffer is filled up by at once.
    assert!(sent.load(SeqCst) < taken + (1 << 20), "{taken} {}", sent.load(SeqCst));
}

#[test]
fn a_flood_of_one_byte_windows_ends_its_connection() {
    let (upstream, sent) = endless();
    let proxy = Config::to(&[upstream.port()]).start();
    // For the stream alone, and for all streams of the connection.
    for whole in [false, true] {
        let before = sent.load(SeqCst);
        let mut caller = Caller::new(proxy.address);
        let mut bytes = Vec::new();
        if !whole {
            frame(&mut bytes, 4, 0, 0, &[0, 4, 0, 0, 0, 0]);
        }
        caller.stream.write_all(&bytes).unwrap();
        let ids: Vec<u32> = (0..8).map(|_| caller.open(&BLOCK, 5)).collect();
        let window = if whole { CONNECTION_WINDOW } else { 0 };
        caller.until("responses", |c| ids.iter().all(|id| c.status(*id) == Some(200)) && c.bytes() == window);
        let mut bytes = Vec::new();
        (0..20_000).for_each(|_| frame(&mut bytes, 8, 0, if whole { 0 } else { ids[0] }, &[0, 0, 0, 1]));
        caller.stream.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        let _ = caller.stream.write_all(&bytes);
        let deadline = Instant::now() + WAIT;
        while caller.sent_away().is_none() && !caller.closed && Instant::now() < deadline {
            caller.read();
        }
        assert!(caller.closed || caller.sent_away() == Some(Reason::ENHANCE_YOUR_CALM), "{:?}", caller.sent_away());
        eventually(|| proxy.stat("http.t.downstream_cx_http2_active") == 0);
        eventually(|| proxy.stat("cluster.c.upstream_rq_active") == 0);
        // What the sockets to and from the upstream hold, for each stream.
        assert!(sent.load(SeqCst) - before < 8 * (16 << 20), "{}", sent.load(SeqCst) - before);
        assert_eq!(proxy.get("/short").body, "short");
    }
}

#[test]
fn a_connections_window_opened_a_byte_at_a_time_for_many_streams_holds_no_other_connection_up() {
    let (upstream, _sent) = endless();
    let proxy = Config::to(&[upstream.port()]).start();
    let mut caller = Caller::new(proxy.address);
    let ids: Vec<u32> = (0..100).map(|_| caller.open(&BLOCK, 5)).collect();
    caller.until("the whole window", |c| c.bytes() == CONNECTION_WINDOW && ids.iter().all(|id| c.status(*id) == Some(200)));
    caller.events.clear();
    for n in 1..=500 {
        let mut drip = Vec::new();
        frame(&mut drip, 8, 0, 0, &[0, 0, 0, 1]);
        caller.stream.write_all(&drip).unwrap();
        caller.until("a byte", |c| c.bytes() == n);
        if n % 100 == 0 {
            assert_eq!(proxy.get("/short").body, "short");
        }
    }
    assert!(caller.sent_away().is_none());
}

#[test]
fn an_upstream_that_goes_away_and_then_allows_no_streams_is_dialled_anew() {
    let connections = Arc::new(AtomicUsize::new(0));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let count = connections.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { return };
            count.fetch_add(1, SeqCst);
            std::thread::spawn(move || answer_once_and_go_away(stream));
        }
    });
    let h2 = "typed_extension_protocol_options:\n  envoy.extensions.upstreams.http.v3.HttpProtocolOptions:\n    \"@type\": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions\n    explicit_http_config: {http2_protocol_options: {}}";
    let mut config = Config::to(&[]);
    config.clusters = vec![cluster("c", &[port], h2)];
    let proxy = config.start();
    for n in 1..=3 {
        assert_eq!(proxy.get("/").status, 204);
        eventually(|| connections.load(SeqCst) >= n);
    }
}

/// Answers the first request, then says GOAWAY and SETTINGS with MAX_CONCURRENT_STREAMS = 0, and stays open.
fn answer_once_and_go_away(mut stream: TcpStream) {
    let mut server = Connection::server(H2Config::default());
    let (mut events, mut buffer) = (Vec::new(), [0; 4096]);
    loop {
        if stream.write_all(&drain(&mut server)).is_err() {
            return;
        }
        let Ok(n @ 1..) = stream.read(&mut buffer) else { return };
        if server.receive(&mut BytesMut::from(&buffer[..n]), &mut events).is_err() {
            return;
        }
        for event in std::mem::take(&mut events) {
            let Event::Request { id, .. } = event else { continue };
            server.send_response(id, StatusCode::NO_CONTENT, &HeaderMap::new(), true);
            server.go_away(Reason::NO_ERROR);
            let mut bytes = drain(&mut server);
            frame(&mut bytes, 4, 0, 0, &[0, 3, 0, 0, 0, 0]);
            let _ = stream.write_all(&bytes);
        }
    }
}

#[test]
fn an_upstream_that_sends_nonsense_is_503_and_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let said = Arc::new(Mutex::new(Vec::new()));
    let theirs = said.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(&theirs.lock().unwrap());
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let proxy = Config::to(&[port]).start();
    for answer in [
        &b"\x16\x03\x01\x00\x00"[..],
        b"HTTP/1.1 99999 No\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: +5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        b"SSH-2.0-x\r\n",
        b"",
    ] {
        *said.lock().unwrap() = answer.to_vec();
        let status = proxy.get("/").status;
        assert!(matches!(status, 502 | 503), "{} gave {status}", Bytes::copy_from_slice(answer).escape_ascii());
    }
}

#[test]
fn a_connection_ends_though_its_caller_reads_nothing() {
    let upstream = Upstream::ok(Box::leak("x".repeat(32 << 20).into_boxed_str()));
    let mut config = Config::to(&[upstream.port()]);
    config.hcm =
        "stream_idle_timeout: 0.3s\ncommon_http_protocol_options: {idle_timeout: 0.2s}\ndrain_timeout: 0.1s\ndelayed_close_timeout: 0.2s"
            .to_owned();
    let proxy = config.start();
    let mut caller = Caller::new(proxy.address);
    // As much as may be on a stream, and on the connection.
    caller.stream.write_all(b"\0\0\x06\x04\0\0\0\0\0\0\x04\x7f\xff\xff\xff\0\0\x04\x08\0\0\0\0\0\x7f\xe0\0\0").unwrap();
    caller.open(&BLOCK, 5);
    eventually(|| proxy.stat("http.t.downstream_rq_total") == 1);
    eventually(|| proxy.stat("http.t.downstream_cx_active") == 0);
}

/// A proxy whose connections end with their first request, and whose kernel takes so many bytes of an answer before they are read.
fn short_connections(upstream: &Upstream, delayed_close: &str, send_buffer: usize) -> Proxy {
    let mut config = Config::to(&[upstream.port()]);
    config.listener = format!("socket_options: [{{level: 1, name: 7, int_value: {send_buffer}}}]\n");
    config.hcm = format!(
        "common_http_protocol_options: {{max_requests_per_connection: 1}}\ndrain_timeout: 0s\ndelayed_close_timeout: {delayed_close}"
    );
    config.start()
}

#[test]
fn an_ending_connection_is_kept_while_its_caller_reads_however_slowly() {
    const BODY: usize = 240 << 10;
    let upstream = Upstream::ok(Box::leak("x".repeat(BODY).into_boxed_str()));
    let proxy = short_connections(&upstream, "1s", 4096);
    let mut caller = Caller::narrow(proxy.address);
    let id = caller.open(&BLOCK, 5);
    let begun = Instant::now();
    while !caller.closed {
        if caller.body(id) < BODY {
            // It reads 16 KiB, and then is busy with something else.
            std::thread::sleep(Duration::from_millis(150));
        }
        caller.read();
    }
    assert_eq!(caller.body(id), BODY);
    assert!(begun.elapsed() > Duration::from_secs(2), "{:?} is no test", begun.elapsed());
}

#[test]
fn what_a_caller_still_says_costs_it_nothing_of_the_last_answer() {
    const BODY: usize = 150 << 10;
    let upstream = Upstream::ok(Box::leak("x".repeat(BODY).into_boxed_str()));
    let proxy = short_connections(&upstream, "10s", 400 << 10);
    let mut caller = Caller::narrow(proxy.address);
    let id = caller.open(&BLOCK, 5);
    eventually(|| proxy.stat("http.t.downstream_rq_2xx") == 1);
    let mut ping = Vec::new();
    frame(&mut ping, 6, 0, 0, &[7; 8]);
    while !caller.closed {
        let _ = caller.stream.write_all(&ping);
        caller.read();
    }
    assert_eq!(caller.body(id), BODY);
}
