//! Connections that mean harm before their first request: stalled handshakes, forged PROXY headers, no descriptors left.
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use crate::support::*;

/// A listener that needs TLS, with these extra listener fields.
fn tls_listener(chain: &str, listener: &str) -> (tempfile::TempDir, Proxy) {
    let folder = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["a".to_owned()]).unwrap().self_signed(&key).unwrap();
    std::fs::write(folder.path().join("crt"), certificate.pem()).unwrap();
    std::fs::write(folder.path().join("key"), key.serialize_pem()).unwrap();
    let path = folder.path().display();
    let tls = format!(
        "    -\n      transport_socket:\n        name: tls\n        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, common_tls_context: {{tls_certificates: [{{certificate_chain: {{filename: {path}/crt}}, private_key: {{filename: {path}/key}}}}]}}}}\n{chain}      filters:\n"
    );
    let upstream = Upstream::ok("x");
    let yaml = Config::to(&[upstream.port()]).yaml();
    let yaml = yaml.replace("    filter_chains:\n", &format!("{listener}    filter_chains:\n")).replace("    - filters:\n", &tls);
    (folder, start(&yaml))
}

fn ends_within(mut stream: TcpStream, limit: Duration) {
    stream.set_read_timeout(Some(limit)).unwrap();
    let start = Instant::now();
    let mut rest = Vec::new();
    // A reset is as good an end as a close; only silence is none.
    let end = stream.read_to_end(&mut rest);
    assert!(start.elapsed() < limit, "still open after {limit:?}: {end:?}");
}

#[test]
fn a_handshake_that_stalls_is_given_up() {
    let (_folder, proxy) = tls_listener("      transport_socket_connect_timeout: 0.3s\n", "");
    ends_within(proxy.connect(), WAIT);
    let mut stream = proxy.connect();
    // A record that promises more than ever comes.
    stream.write_all(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03").unwrap();
    ends_within(stream, WAIT);
}

#[test]
fn an_inspection_that_stalls_is_given_up() {
    let inspectors = "    listener_filters:\n    - {name: envoy.filters.listener.tls_inspector, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector}}\n    listener_filters_timeout: 0.3s\n";
    let (_folder, proxy) = tls_listener("", inspectors);
    ends_within(proxy.connect(), WAIT);
    let mut stream = proxy.connect();
    stream.write_all(b"\x16\x03\x01").unwrap();
    ends_within(stream, WAIT);
    eventually(|| proxy.worker.connections() == 0);
}

fn v2(command: u8, family: u8, body: &[u8]) -> Vec<u8> {
    let mut out = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
    out.extend_from_slice(&[command, family]);
    out.extend_from_slice(&(body.len() as u16).to_be_bytes());
    out.extend_from_slice(body);
    out
}

#[test]
fn proxy_headers_are_taken_as_specified_or_end_the_connection() {
    let upstream = Upstream::ok("x");
    let filter = "    listener_filters:\n    - {name: envoy.filters.listener.proxy_protocol, typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol}}\n    listener_filters_timeout: 0.5s\n";
    let mut config = Config::to(&[upstream.port()]);
    config.hcm = "use_remote_address: true".to_owned();
    let proxy = start(&config.yaml().replace("    filter_chains:\n", &format!("{filter}    filter_chains:\n")));
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let addresses = [192, 0, 2, 7, 10, 0, 0, 1, 0, 9, 0, 80];
    let tlv = |tlv: &[u8]| [&addresses[..], tlv].concat();
    let good = [
        (v2(0x21, 0x11, &addresses), "192.0.2.7"),
        // A TLV that is not UTF-8, and one cut short: addresses come before them and hold.
        (v2(0x21, 0x11, &tlv(&[0x02, 0, 2, 0xff, 0xfe])), "192.0.2.7"),
        (v2(0x21, 0x11, &tlv(&[0xea, 0xff, 0xff, 1])), "192.0.2.7"),
        // LOCAL: the addresses of the connection itself, whatever the body says.
        (v2(0x20, 0x11, &addresses), "127.0.0.1"),
        (v2(0x20, 0x00, &[]), "127.0.0.1"),
        (b"PROXY UNKNOWN\r\n".to_vec(), "127.0.0.1"),
    ];
    for (header, source) in good {
        let mut stream = proxy.connect();
        stream.write_all(&[&header[..], request].concat()).unwrap();
        assert_eq!(Answer::read(&mut stream).status, 200, "{}", header.escape_ascii());
        let seen = upstream.seen().pop().unwrap();
        assert!(seen.contains(&format!("x-forwarded-for: {source}\r\n")), "{} gave {seen}", header.escape_ascii());
    }
    let served = upstream.seen().len();
    for header in [
        v2(0x11, 0x11, &addresses),
        v2(0x2f, 0x11, &addresses),
        v2(0x21, 0x77, &addresses),
        v2(0x21, 0x11, &addresses[..11]),
        v2(0x21, 0x21, &addresses),
        v2(0x21, 0x11, &[0; 60_000]),
        b"PROXY TCP4 \xff\xff 1.1.1.1 1 2\r\n".to_vec(),
        b"PROXY TCP4 ::1 ::1 1 2\r\n".to_vec(),
        b"PROXY TCP4 1.1.1.1 1.1.1.1 1 99999\r\n".to_vec(),
        [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat(),
        // It promises more than ever comes.
        v2(0x21, 0x11, &addresses)[..20].to_vec(),
    ] {
        let mut stream = proxy.connect();
        let _ = stream.write_all(&[&header[..], request].concat()[..if header.len() == 20 { 20 } else { header.len() + request.len() }]);
        ends_within(stream, WAIT);
    }
    assert_eq!(upstream.seen().len(), served);
    assert_eq!(proxy.worker.connections(), 0);
}

/// Set in the process in which there are to be too few descriptors: the limit holds for all tests of a process.
const ALONE: &str = "LATEEN_TEST_FEW_DESCRIPTORS";

#[test]
fn without_descriptors_connections_wait_and_are_served_once_there_are_some() {
    if std::env::var_os(ALONE).is_some() {
        return few_descriptors();
    }
    let name = "hostile_connections::without_descriptors_connections_wait_and_are_served_once_there_are_some";
    let output = Command::new(std::env::current_exe().unwrap()).args(["--exact", name]).env(ALONE, "1").output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    // It is told once, and not every time that it is tried again.
    let told = "listener l cannot accept connections for now: Too many open files";
    assert_eq!(text.matches(told).count(), 1, "{text}");
}

fn few_descriptors() {
    // Past what the test harness holds back.
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_max_level(tracing::Level::ERROR).with_ansi(false).init();
    let proxy = Config::to(&[]).routes("- {match: {prefix: /}, direct_response: {status: 204}}").start();
    let mut kept: Vec<TcpStream> = (0..10).map(|_| proxy.connect()).collect();
    eventually(|| proxy.worker.connections() == 10);
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // The callers live in this process too: each connection takes one for it, and one more when it is accepted.
    nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, used + 5, used + 5).unwrap();
    while let Ok(stream) = TcpStream::connect(proxy.address) {
        kept.push(stream);
    }
    assert!(TcpListener::bind("127.0.0.1:0").is_err(), "there are descriptors left");
    std::thread::sleep(Duration::from_millis(300));
    // An open connection is served on, and those that wait are accepted when others have ended.
    let mut last = kept.pop().unwrap();
    kept[0].set_read_timeout(Some(WAIT)).unwrap();
    kept[0].write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut kept[0]).status, 204);
    drop(kept);
    last.set_read_timeout(Some(WAIT)).unwrap();
    last.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert_eq!(Answer::read(&mut last).status, 204);
    for _ in 0..3 {
        assert_eq!(proxy.get("/").status, 204);
    }
}
