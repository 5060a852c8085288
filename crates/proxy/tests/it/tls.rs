//! Mutual TLS between two proxies, and who is refused.
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};

use crate::http2::H2_UPSTREAM;
use crate::support::*;

pub(crate) struct Mesh {
    folder: tempfile::TempDir,
}

impl Mesh {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ca_key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(params, ca_key);
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        write("ca.crt", &ca.pem());
        for name in ["client", "server"] {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            let uri = format!("spiffe://cluster.local/ns/default/sa/{name}");
            params.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
            params.distinguished_name = rcgen::DistinguishedName::new();
            write(&format!("{name}.crt"), &params.signed_by(&key, &issuer).unwrap().pem());
            write(&format!("{name}.key"), &key.serialize_pem());
        }
        Self { folder }
    }

    fn common(&self, who: &str, peer: &str, alpn: &str) -> String {
        let path = self.folder.path().display();
        format!(
            "common_tls_context: {{alpn_protocols: [{alpn}], tls_certificates: [{{certificate_chain: {{filename: {path}/{who}.crt}}, private_key: {{filename: {path}/{who}.key}}}}], \
             validation_context: {{trusted_ca: {{filename: {path}/ca.crt}}, match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"spiffe://cluster.local/ns/default/sa/{peer}\"}}}}]}}}}"
        )
    }

    pub(crate) fn server(&self, upstream: u16) -> Proxy {
        self.server_offering(upstream, "h2, http/1.1")
    }

    pub(crate) fn server_offering(&self, upstream: u16, alpn: &str) -> Proxy {
        let tls = format!(
            "      transport_socket:\n        name: tls\n        typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext, require_client_certificate: true, {}}}\n",
            self.common("server", "client", alpn)
        );
        let mut config = Config::to(&[upstream]);
        config.hcm = "forward_client_cert_details: APPEND_FORWARD\nset_current_client_cert_details: {subject: true, dns: true, uri: true}"
            .to_owned();
        start(
            &config
                .yaml()
                .replace("    - filters:\n", "    - filters:\n@@")
                .replace("    - filters:\n@@", &format!("    -\n{tls}      filters:\n")),
        )
    }

    pub(crate) fn client(&self, server: u16, expected: &str, options: &str, alpn: &str) -> Proxy {
        self.client_config(&[server], expected, options, alpn).start()
    }

    /// The transport socket of a cluster whose hosts are to be `expected`; `name` is what settles the server name.
    pub(crate) fn transport(&self, expected: &str, name: &str, alpn: &str) -> String {
        format!(
            "transport_socket: {{name: tls, typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext, {name}, {}}}}}",
            self.common("client", expected, alpn)
        )
    }

    pub(crate) fn client_config(&self, servers: &[u16], expected: &str, options: &str, alpn: &str) -> Config {
        let tls = format!("{}\n{options}", self.transport(expected, "sni: outbound_.80_._.a", alpn));
        let mut config = Config::to(&[]);
        config.hcm = "forward_client_cert_details: ALWAYS_FORWARD_ONLY".to_owned();
        config.clusters = vec![cluster("c", servers, &tls)];
        config
    }
}

#[test]
fn a_pair_speaks_mutual_tls_and_tells_who_called() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("secret"));
    let server = mesh.server(upstream.port());
    // The last has no protocol in common with the server: Istio's own callers offer that for mirrored requests.
    for (options, alpn) in [("", "http/1.1"), (H2_UPSTREAM, "h2"), ("", "istio")] {
        let client = mesh.client(server.address.port(), "server", options, alpn);
        for _ in 0..3 {
            assert_eq!(client.get("/").body, "secret");
        }
    }
    let seen = upstream.seen();
    assert_eq!(seen.len(), 9);
    assert!(seen.iter().all(|r| r.contains("URI=spiffe://cluster.local/ns/default/sa/client") && r.contains("Hash=")), "{}", seen[0]);
    assert!(seen.iter().all(|r| r.contains("By=spiffe://cluster.local/ns/default/sa/server;")), "{}", seen[0]);
    assert_eq!(server.stat("http.t.downstream_cx_ssl_total"), 3);
    assert_eq!(server.stat("http.t.downstream_cx_http2_total"), 1);
}

#[test]
fn all_that_earlier_proxies_told_of_certificates_goes_on_with_ones_own() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    let client = mesh.client(server.address.port(), "server", "", "http/1.1");
    for (sent, list) in [
        ("", ""),
        ("x-forwarded-client-cert: Hash=1\r\n", "Hash=1,"),
        (
            "x-forwarded-client-cert: Hash=1\r\nx-forwarded-client-cert: Hash=2,Hash=3\r\nx-forwarded-client-cert: Hash=4\r\n",
            "Hash=1,Hash=2,Hash=3,Hash=4,",
        ),
    ] {
        assert_eq!(client.call(&format!("GET / HTTP/1.1\r\nhost: a\r\n{sent}\r\n")).status, 200);
        let seen = upstream.seen().pop().unwrap();
        let lines: Vec<&str> = seen.lines().filter(|line| line.starts_with("x-forwarded-client-cert: ")).collect();
        let expected = format!("x-forwarded-client-cert: {list}By=spiffe://cluster.local/ns/default/sa/server;Hash=");
        assert!(matches!(lines[..], [line] if line.starts_with(&expected)), "{lines:?}");
    }
}

#[test]
fn a_server_of_another_name_and_a_plaintext_caller_are_refused() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("secret"));
    let server = mesh.server(upstream.port());
    let client = mesh.client(server.address.port(), "somebody-else", "", "http/1.1");
    let answer = client.get("/");
    assert_eq!(answer.status, 503);
    assert!(answer.body.contains("remote connection failure") && answer.body.contains("TLS error"), "{}", answer.body);
    let mut stream = server.connect();
    std::io::Write::write_all(&mut stream, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    assert!(Answer::try_read(&mut stream).is_none());
    assert!(upstream.seen().is_empty());
}

/// Both ends of each connection count what they read and write, and not what TLS makes of it.
#[test]
fn the_bytes_of_http_connections_count_on_both_sides_as_the_applications() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("secret"));
    let plain = Config::to(&[upstream.port()]).start();
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    assert_eq!(plain.call(request).body, "secret");
    assert_eq!(plain.stat("http.t.downstream_cx_rx_bytes_total"), request.len() as u64);
    assert_eq!(plain.stat("cluster.c.upstream_cx_tx_bytes_total"), upstream.seen()[0].len() as u64);
    assert_eq!(plain.stat("cluster.c.upstream_cx_rx_bytes_total"), "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret".len() as u64);
    eventually(|| plain.stat("http.t.downstream_cx_tx_bytes_total") > 100);
    let server = mesh.server(upstream.port());
    let mut clients = Vec::new();
    // What comes before the protocol is known, for want of a word from ALPN, counts too.
    for (options, alpn) in [("", "http/1.1"), ("", "istio"), (H2_UPSTREAM, "h2"), (H2_UPSTREAM, "istio")] {
        clients.push(mesh.client(server.address.port(), "server", options, alpn));
        let last = &clients[clients.len() - 1];
        assert_eq!(last.get("/").body, "secret");
        assert!(last.stat("cluster.c.upstream_cx_tx_bytes_total") > 100 && last.stat("cluster.c.upstream_cx_rx_bytes_total") > 50);
        let sum = |name: &str| clients.iter().map(|client| client.stat(name)).sum::<u64>();
        eventually(|| sum("cluster.c.upstream_cx_tx_bytes_total") == server.stat("http.t.downstream_cx_rx_bytes_total"));
        eventually(|| sum("cluster.c.upstream_cx_rx_bytes_total") == server.stat("http.t.downstream_cx_tx_bytes_total"));
    }
}

#[test]
fn the_server_name_is_what_the_request_asked_for_though_its_host_becomes_the_endpoints() {
    let (mesh, upstream) = (Mesh::new(), Upstream::ok("x"));
    let server = mesh.server(upstream.port());
    let options = "typed_extension_protocol_options: {envoy.extensions.upstreams.http.v3.HttpProtocolOptions: {'@type': \
                   type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions, \
                   upstream_http_protocol_options: {auto_sni: true}, explicit_http_config: {http_protocol_options: {}}}}";
    let mut config = mesh.client_config(&[server.address.port()], "server", options, "http/1.1");
    config = config.routes("- {match: {prefix: /}, route: {cluster: c, auto_host_rewrite: true}}");
    config.clusters[0] = config.clusters[0].replace("{endpoint: {", "{endpoint: {hostname: own.test, ");
    let proxy = config.start();
    for host in ["a.test", "b.test", "a.test"] {
        assert_eq!(proxy.call(&format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n")).body, "x");
    }
    assert!(upstream.seen().iter().all(|r| r.contains("host: own.test\r\n")), "{:?}", upstream.seen());
    assert_eq!(server.stat("http.t.downstream_cx_ssl_total"), 2, "a connection for each name that was asked for");
}
