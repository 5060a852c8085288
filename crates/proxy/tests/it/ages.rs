//! Callers' connections that last long or say nothing: when they are told, and when they are closed.
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::support::*;

fn with(hcm: &str) -> Proxy {
    let mut config = Config::to(&[dead_port()]).routes("- {match: {prefix: /}, direct_response: {status: 200}}");
    config.hcm = hcm.to_owned();
    config.start()
}

/// Asks; whether the answer says that it is the last.
fn is_told(stream: &mut TcpStream) -> bool {
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    Answer::read(stream).header("connection") == Some("close")
}

fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

/// Closed connections, by why.
fn closed(proxy: &Proxy) -> [u64; 4] {
    ["max_duration_reached", "idle_timeout", "drain_close", "destroy_local"].map(|why| proxy.stat(&format!("http.t.downstream_cx_{why}")))
}

#[test]
fn an_old_connection_is_told_with_its_next_answer() {
    let proxy = with("common_http_protocol_options: {max_connection_duration: 0.3s}\ndrain_timeout: 4s");
    let mut stream = proxy.connect();
    assert!(!is_told(&mut stream));
    std::thread::sleep(Duration::from_millis(400));
    assert!(is_told(&mut stream) && is_closed(&mut stream));
    assert_eq!(closed(&proxy), [1, 0, 0, 0]);
}

#[test]
fn an_old_connection_that_asks_no_more_is_closed_after_the_drain_timeout_unless_it_is_to_be_told() {
    for (safe, closes) in [(false, true), (true, false)] {
        let fields = format!("drain_timeout: 0.3s\nhttp1_safe_max_connection_duration: {safe}");
        let proxy = with(&format!("common_http_protocol_options: {{max_connection_duration: 0.3s}}\n{fields}"));
        let mut stream = proxy.connect();
        let since = Instant::now();
        assert!(!is_told(&mut stream));
        if closes {
            assert!(is_closed(&mut stream) && since.elapsed() > Duration::from_millis(550), "{:?}", since.elapsed());
        } else {
            std::thread::sleep(Duration::from_millis(900));
            assert!(is_told(&mut stream) && is_closed(&mut stream));
        }
        assert_eq!(closed(&proxy), [1, 0, 0, u64::from(closes)], "{safe}");
    }
}

#[test]
fn a_connection_that_never_said_a_byte_has_its_time_too() {
    for (fields, closed_by) in [("max_connection_duration: 0.3s", [1, 0, 0, 1]), ("idle_timeout: 0.3s", [0, 1, 0, 1])] {
        let proxy = with(&format!("common_http_protocol_options: {{{fields}}}\ndrain_timeout: 60s"));
        assert!(is_closed(&mut proxy.connect()));
        assert_eq!(closed(&proxy), closed_by, "{fields}");
    }
    let proxy = with("");
    let mut stream = proxy.connect();
    eventually(|| proxy.stat("http.t.downstream_cx_active") == 1);
    stream.set_read_timeout(Some(WAIT * 2)).unwrap();
    proxy.worker.drain();
    assert!(is_closed(&mut stream));
    assert_eq!(closed(&proxy), [0, 0, 1, 1]);
}

#[test]
fn what_begins_like_http2_has_no_longer_than_any_other_head() {
    let proxy = with("request_headers_timeout: 0.3s");
    let mut stream = proxy.connect();
    let since = Instant::now();
    stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    for byte in b"PRI * HTTP/2.0\r\n\r" {
        let _ = stream.write_all(&[*byte]);
        if is_closed(&mut stream) {
            break;
        }
    }
    assert!(since.elapsed() < Duration::from_secs(1), "{:?}", since.elapsed());
    assert_eq!((proxy.stat("http.t.downstream_rq_header_timeout"), closed(&proxy)), (1, [0, 0, 0, 1]));
}

#[test]
fn an_old_connection_of_http2_is_told_to_leave_and_counts_as_old() {
    let proxy = with("common_http_protocol_options: {max_connection_duration: 0.3s}\ndrain_timeout: 0.2s");
    let mut stream = proxy.connect();
    // The preface, and SETTINGS without any.
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    // GOAWAY, which names the last stream of all that may come, and then the last that came.
    let goaway = |last: [u8; 4]| [&[0, 0, 8, 7, 0, 0, 0, 0, 0][..], &last, &[0; 4]].concat();
    let told = [goaway([0x7f, 0xff, 0xff, 0xff]), goaway([0; 4])].concat();
    assert!(all.ends_with(&told), "{all:x?}");
    assert_eq!(closed(&proxy), [1, 0, 0, 0]);
}
