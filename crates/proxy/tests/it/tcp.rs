//! The TCP proxy and the inspection of first bytes.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use lateen_balance::host::FAILED_ACTIVE_HC;

use crate::support::*;

fn yaml(port: u16, listener: &str) -> String {
    connections(listener, &tcp_proxy("cluster: c"), &cluster("c", &[port], ""))
}

fn server(serve: impl Fn(TcpStream) + Send + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            serve(stream.unwrap());
        }
    });
    port
}

#[test]
fn bytes_go_both_ways_and_each_side_may_close_first() {
    let port = server(|mut stream| {
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
        stream.write_all(format!("{} bytes", all.len()).as_bytes()).unwrap();
    });
    let proxy = start(&yaml(port, ""));
    let mut stream = proxy.connect();
    stream.write_all(&vec![7; 3_000_000]).unwrap();
    half_close(&stream);
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "3000000 bytes");
    eventually(|| proxy.stat("tcp.t.downstream_cx_rx_bytes_total") == 3_000_000);
}

#[test]
fn a_large_transfer_arrives_whole_and_in_order_however_slowly_it_is_read() {
    // Enough of it to be moved inside the kernel; back to the caller, who stops reading now and then.
    let port = server(|mut stream| {
        std::thread::spawn(move || {
            let mut piece = vec![0; 100_000];
            loop {
                let n = stream.read(&mut piece).unwrap();
                if n == 0 || stream.write_all(&piece[..n]).is_err() {
                    return;
                }
            }
        });
    });
    let proxy = start(&yaml(port, ""));
    let mut stream = proxy.connect();
    let mut writer = stream.try_clone().unwrap();
    let numbers: Vec<u8> = (0..8_000_000u32).flat_map(u32::to_le_bytes).collect();
    let sent = numbers.clone();
    let sending = std::thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        half_close(&writer);
    });
    let (mut received, mut piece) = (Vec::new(), vec![0; 1 << 20]);
    loop {
        let n = stream.read(&mut piece).unwrap();
        if n == 0 {
            break;
        }
        received.extend_from_slice(&piece[..n]);
        if received.len() % 7 == 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    sending.join().unwrap();
    assert!(received == numbers, "{} bytes came back of {}", received.len(), numbers.len());
    eventually(|| proxy.stat("tcp.t.downstream_cx_tx_bytes_total") == numbers.len() as u64);
}

#[test]
fn a_server_that_speaks_first_is_not_kept_waiting() {
    let port = server(|mut stream| stream.write_all(b"220 mail ready\r\n").unwrap());
    let inspectors = r#"listener_filters:
- {name: envoy.filters.listener.tls_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}
- {name: envoy.filters.listener.http_inspector, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.http_inspector.v3.HttpInspector}}
listener_filters_timeout: 0.2s
continue_on_listener_filters_timeout: true"#;
    let proxy = start(&yaml(port, inspectors));
    let mut stream = proxy.connect();
    let mut answer = [0; 16];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"220 mail ready\r\n");
}

#[test]
fn a_dead_upstream_closes_the_connection() {
    let proxy = start(&yaml(dead_port(), ""));
    let mut stream = proxy.connect();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0);
    eventually(|| proxy.stat("cluster.c.upstream_cx_connect_fail") == 1);
}

#[test]
fn a_proxy_header_is_taken_off_before_the_bytes_behind_it() {
    let port = server(|mut stream| {
        let mut first = [0; 5];
        stream.read_exact(&mut first).unwrap();
        stream.write_all(&first).unwrap();
    });
    let filter = r#"listener_filters:
- {name: envoy.filters.listener.proxy_protocol, typed_config: {"@type": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}"#;
    let proxy = start(&yaml(port, filter));
    let mut stream = proxy.connect();
    stream.write_all(b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\nhello").unwrap();
    let mut answer = [0; 5];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    assert_eq!(stream.read(&mut [0; 1]).unwrap_or(0), 0, "a connection without the header is refused");
    std::thread::sleep(Duration::from_millis(1));
}

#[test]
fn a_host_that_fails_ends_its_connections_where_that_is_wanted() {
    for wanted in [true, false] {
        let more = format!("close_connections_on_host_health_failure: {wanted}");
        let text = connections("", &tcp_proxy("cluster: c"), &cluster("c", &[tcp_echo()], &more));
        let snapshot = snapshot(&text, 1);
        let (_, cluster) = snapshot.cluster_named("c").unwrap();
        let host = Arc::clone(cluster.hosts.hosts().next().unwrap());
        let proxy = start_with(&text, Arc::clone(&snapshot));
        let mut before = proxy.connect();
        echo(&mut before);
        host.set_flag(FAILED_ACTIVE_HC, true);
        // Nobody else is there, so that the failed host is asked all the same.
        let mut after = proxy.connect();
        echo(&mut after);
        before.set_read_timeout(Some(if wanted { WAIT } else { Duration::from_millis(2500) })).unwrap();
        assert_eq!(matches!(before.read(&mut [0]), Ok(0)), wanted);
        echo(&mut after);
    }
}

fn echo(stream: &mut TcpStream) {
    stream.write_all(b"a").unwrap();
    stream.read_exact(&mut [0]).unwrap();
}
