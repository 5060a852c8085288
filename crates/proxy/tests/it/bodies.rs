//! Filters that look at bodies or change them.
use std::io::{Read, Write};
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::time::Duration;

use crate::support::*;

const BUFFER: &str = r#"- name: envoy.filters.http.buffer
  typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.http.buffer.v3.Buffer, max_request_bytes: 100000}"#;

fn compressor(name: &str, library: &str, more: &str) -> String {
    format!(
        r#"- name: {name}
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.compressor.v3.Compressor
    compressor_library: {{name: lib, typed_config: {{"@type": type.googleapis.com/envoy.extensions.compression.{library}}}}}
{more}"#
    )
}

fn decompressor(library: &str) -> String {
    format!(
        r#"- name: de
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.decompressor.v3.Decompressor
    decompressor_library: {{name: lib, typed_config: {{"@type": type.googleapis.com/envoy.extensions.compression.{library}}}}}"#
    )
}

const LIBRARIES: [(&str, &str, &str); 3] = [
    ("gzip", "gzip.compressor.v3.Gzip", "gzip.decompressor.v3.Gzip"),
    ("br", "brotli.compressor.v3.Brotli", "brotli.decompressor.v3.Brotli"),
    ("zstd", "zstd.compressor.v3.Zstd", "zstd.decompressor.v3.Zstd"),
];

#[test]
fn a_buffered_request_goes_on_only_when_it_is_complete_and_then_with_its_length() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.filters = BUFFER.to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(upstream.seen().len(), 0);
    stream.write_all(b"2\r\nde\r\n0\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut stream).status, 200);
    let seen = &upstream.seen()[0];
    assert!(seen.contains("content-length: 5\r\n") && seen.ends_with("abcde") && !seen.contains("transfer-encoding"), "{seen}");
}

#[test]
fn a_request_beyond_the_buffer_is_too_large_however_it_comes() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.filters = BUFFER.to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10000000\r\n\r\n").unwrap();
    // The answer comes long before the body is there.
    let _ = stream.write_all(&vec![b'x'; 300_000]);
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, answer.body.as_str()), (413, "Payload Too Large"));
    assert_eq!(answer.header("connection"), Some("close"));
    assert_eq!(proxy.stat("http.t.downstream_rq_too_large"), 1);
    assert!(upstream.seen().is_empty());
}

#[test]
fn a_buffered_request_that_stops_coming_is_answered_with_408() {
    let upstream = Upstream::ok("x");
    let mut config = Config::to(&[upstream.port()]);
    config.filters = BUFFER.to_owned();
    config.hcm = "stream_idle_timeout: 0.3s".to_owned();
    let proxy = config.start();
    let answer = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc");
    assert_eq!((answer.status, answer.body.as_str()), (408, "stream timeout"));
}

#[test]
fn what_is_compressed_on_one_proxy_is_decompressed_on_the_next() {
    for (coding, compress, decompress) in LIBRARIES {
        // Not so regular that it would pass for a bomb.
        let body: String = (0..90_000u32).map(|i| format!("{:09} ", i.wrapping_mul(2_654_435_761) % 1_000_000)).collect();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        let upstream = Upstream::start(move |_, _, stream| stream.write_all(answer.as_bytes()).is_ok());
        let mut config = Config::to(&[upstream.port()]);
        config.filters = compressor("co", compress, "    request_direction_config: {}");
        let far = config.start();
        let mut config = Config::to(&[far.address.port()]);
        config.filters = decompressor(decompress);
        let near = config.start();
        let answer = near.get("/");
        assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{coding}");
        assert!(answer.body.contains("000435761 ") && answer.body.len() >= 900_000, "{coding} {}", answer.body.len());
        let name = if coding == "br" { "brotli" } else { coding };
        assert_eq!(far.stat(&format!("http.t.compressor.lib.{name}.compressed")), 1, "{coding}");
        assert_eq!(far.stat(&format!("http.t.compressor.lib.{name}.total_uncompressed_bytes")), 900_000, "{coding}");
        let compressed = far.stat(&format!("http.t.compressor.lib.{name}.total_compressed_bytes"));
        assert!(compressed > 0 && compressed < 600_000, "{coding} {compressed}");
        assert_eq!(near.stat(&format!("http.t.decompressor.lib.{name}.response.total_uncompressed_bytes")), 900_000, "{coding}");
        assert_eq!(near.stat(&format!("http.t.decompressor.lib.{name}.response.total_compressed_bytes")), compressed, "{coding}");
    }
}

#[test]
fn a_compressed_stream_can_be_read_piece_by_piece() {
    let (more, wait) = mpsc::channel::<()>();
    let wait = std::sync::Mutex::new(wait);
    let upstream = Upstream::start(move |_, _, stream| {
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n");
        let _ = wait.lock().unwrap().recv_timeout(WAIT);
        stream.write_all(b"6\r\nsecond\r\n0\r\n\r\n").is_ok()
    });
    let mut config = Config::to(&[upstream.port()]);
    config.filters = compressor("co", "gzip.compressor.v3.Gzip", "");
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\naccept-encoding: gzip\r\n\r\n").unwrap();
    // Head, chunk head and the flushed first piece come before the second one is sent.
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    while !(seen.windows(4).any(|w| w == b"\r\n\r\n") && seen.windows(4).any(|w| w == [0, 0, 0xff, 0xff])) {
        let n = stream.read(&mut buffer).expect("the first piece");
        assert!(n > 0);
        seen.extend_from_slice(&buffer[..n]);
    }
    more.send(()).unwrap();
    while !seen.ends_with(b"0\r\n\r\n") {
        let n = stream.read(&mut buffer).expect("the rest");
        assert!(n > 0);
        seen.extend_from_slice(&buffer[..n]);
    }
}

#[test]
fn a_bomb_and_nonsense_are_refused() {
    for (coding, compress, decompress) in LIBRARIES {
        // The bomb is made by a compressor of our own.
        let upstream = Upstream::start(|_, _, stream| {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n", 20 << 20);
            stream.write_all(head.as_bytes()).is_ok() && (0..20).all(|_| stream.write_all(&vec![0; 1 << 20]).is_ok())
        });
        let mut config = Config::to(&[upstream.port()]);
        config.filters = compressor("co", compress, "");
        let far = config.start();
        let mut config = Config::to(&[far.address.port()]);
        config.filters = decompressor(decompress);
        let near = config.start();
        let mut stream = near.connect();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
        let mut seen = Vec::new();
        let _ = stream.read_to_end(&mut seen);
        assert!(seen.len() < 10 << 20 && !seen.ends_with(b"0\r\n\r\n"), "{coding} {}", seen.len());
        let upstream = Upstream::ok("x");
        let mut config = Config::to(&[upstream.port()]);
        config.filters = format!("{BUFFER}\n{}", decompressor(decompress));
        let proxy = config.start();
        let answer =
            proxy.call(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-encoding: {coding}\r\ncontent-length: 12\r\n\r\nno such thing"));
        assert_eq!(answer.status, 400, "{coding}");
    }
}

/// Counts the bytes that come to it, and the requests that end.
fn counting_upstream() -> (u16, Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let (bytes, ends) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (count, ended) = (bytes.clone(), ends.clone());
    let port = tcp_server(move |mut stream| {
        let (mut buffer, mut last) = (vec![0; 1 << 16], Vec::new());
        while let Ok(n @ 1..) = stream.read(&mut buffer) {
            count.fetch_add(n, SeqCst);
            last.extend_from_slice(&buffer[..n]);
            last.drain(..last.len().saturating_sub(5));
            if last.ends_with(b"0\r\n\r\n") {
                ended.fetch_add(1, SeqCst);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
            }
        }
    });
    (port, bytes, ends)
}

#[test]
fn a_bomb_in_a_request_is_refused_and_reaches_no_upstream_whole() {
    const SIZE: usize = 20 << 20;
    for (coding, compress, decompress) in LIBRARIES {
        for buffer in ["", BUFFER] {
            let (port, bytes, ends) = counting_upstream();
            let mut config = Config::to(&[port]);
            config.filters = format!("{buffer}\n{}", decompressor(decompress));
            let near = config.start();
            // The bomb is made by a compressor of our own.
            let mut config = Config::to(&[near.address.port()]);
            config.filters = compressor("co", compress, "    request_direction_config: {}");
            let far = config.start();
            let mut stream = far.connect();
            let head = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {SIZE}\r\n\r\n");
            stream.write_all(head.as_bytes()).unwrap();
            // It may be refused while it is still coming.
            let mut reading = stream.try_clone().unwrap();
            let answer = std::thread::spawn(move || Answer::read(&mut reading));
            let _ = (0..SIZE >> 20).try_for_each(|_| stream.write_all(&vec![0; 1 << 20]));
            let answer = answer.join().unwrap();
            assert_eq!(answer.status, 400, "{coding} {answer:?}");
            eventually(|| near.stat("http.t.downstream_rq_active") == 0);
            let name = if coding == "br" { "brotli" } else { coding };
            let made = near.stat(&format!("http.t.decompressor.lib.{name}.request.total_uncompressed_bytes"));
            assert!(made < SIZE as u64 / 2, "{coding}: {made} bytes were made of it");
            // An upstream that saw some of it saw no end.
            let (seen, ends) = (bytes.load(SeqCst), ends.load(SeqCst));
            assert_eq!(ends, 0, "{coding}: it went on as if it were whole");
            assert!(seen < SIZE / 2, "{coding}: {seen} bytes went on");
        }
    }
}

#[test]
fn a_response_is_slowed_down_to_its_rate_and_arrives_whole() {
    let upstream = Upstream::ok("0123456789".repeat(2_000).leak());
    let mut config = Config::to(&[upstream.port()]);
    config.filters = r#"- name: envoy.filters.http.fault
  typed_config:
    "@type": type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault
    response_rate_limit: {fixed_limit: {limit_kbps: 40}, percentage: {numerator: 100}}"#
        .to_owned();
    let proxy = config.start();
    let start = std::time::Instant::now();
    let answer = proxy.get("/");
    // 20 000 bytes at 40 KiB a second take half a second, the first slice less.
    assert_eq!(answer.body.len(), 20_000);
    assert!(start.elapsed() >= Duration::from_millis(350), "{:?}", start.elapsed());
    assert_eq!(proxy.stat("http.t.fault.response_rl_injected"), 1);
    eventually(|| proxy.stat("http.t.fault.active_faults") == 0);
}

#[test]
fn what_was_compressed_is_repeated_and_mirrored_as_it_was_compressed() {
    let (tell, told) = mpsc::channel();
    let tell = std::sync::Mutex::new(tell);
    let copy = Upstream::start(move |_, request, stream| {
        let _ = tell.lock().unwrap().send(request.to_owned());
        write_ok(stream, "")
    });
    let upstream = Upstream::start(|n, _, stream| if n == 1 { write_status(stream, 503) } else { write_ok(stream, "ok") });
    let route = "- match: {prefix: /}\n  route:\n    cluster: c\n    retry_policy: {retry_on: 5xx, num_retries: 1}\n    request_mirror_policies: [{cluster: copy}]";
    let mut config = Config::to(&[upstream.port()]).routes(route).cluster(cluster("copy", &[copy.port()], ""));
    config.filters = compressor("co", "gzip.compressor.v3.Gzip", "    request_direction_config: {}");
    let proxy = config.start();
    let body = "a body that is repeated and mirrored ".repeat(20);
    let request = format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(proxy.call(&request).body, "ok");
    let seen = upstream.seen();
    // Small pieces are repeated as one: how long chunks are does not count.
    let is_data = |line: &&str| usize::from_str_radix(line, 16).is_err();
    let body_of = |request: &str| request.split_once("\r\n\r\n").map(|(_, body)| body.split("\r\n").filter(is_data).collect::<String>());
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|r| r.contains("content-encoding: gzip") && !body_of(r).unwrap().contains("repeated")), "{seen:?}");
    assert_eq!(body_of(&seen[0]), body_of(&seen[1]));
    assert_eq!(body_of(&told.recv_timeout(WAIT).unwrap()), body_of(&seen[0]));
}
