//! Authorization and rate limit services on the gRPC library for Python, which nobody here wrote.
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use crate::grpc::HTTP2;
use crate::support::*;

/// Messages by hand: an authorizer that knows ann, and a service that counts to two.
const SERVER: &str = r#"
import grpc, sys, threading
from concurrent import futures

seen = 0

def check(request, context):
    if b"x-who\x12\x03ann" in request:
        return b"\x0a\x00\x1a\x0f\x12\x0d\x0a\x0b\x0a\x06x-user\x12\x01A"
    return b"\x0a\x02\x08\x07\x12\x09\x0a\x03\x08\x91\x03\x1a\x02no"

def limit(request, context):
    global seen
    seen += 1
    return b"\x08\x01" if seen <= 2 else b"\x08\x02"

def service(name, method, answer):
    return grpc.method_handlers_generic_handler(name, {method: grpc.unary_unary_rpc_method_handler(answer)})

server = grpc.server(futures.ThreadPoolExecutor(max_workers=2))
server.add_generic_rpc_handlers((
    service("envoy.service.auth.v3.Authorization", "Check", check),
    service("envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit", limit),
))
print(server.add_insecure_port("127.0.0.1:0"), flush=True)
server.start()
sys.stdin.read()
"#;

/// Ends with the test.
struct Peer(Child, u16);

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn peer() -> Option<Peer> {
    let Ok(python) = std::env::var("LATEEN_TEST_PYTHON") else {
        eprintln!("skipped: LATEEN_TEST_PYTHON is not set (`cargo xtask test` sets it), so there is no gRPC library to try");
        return None;
    };
    let mut child = Command::new(python).args(["-c", SERVER]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Some(Peer(child, line.trim().parse().unwrap()))
}

#[test]
fn a_python_server_authorizes_and_counts() {
    let Some(peer) = peer() else { return };
    let upstream = Upstream::ok("fine");
    let mut config = Config::to(&[upstream.port()]).cluster(cluster("peer", &[peer.1], HTTP2));
    config.routes =
        "- {match: {prefix: /}, route: {cluster: c, rate_limits: [{actions: [{generic_key: {descriptor_value: x}}]}]}}".to_owned();
    let filter = |name: &str, kind: &str, more: &str| {
        format!("- name: {name}\n  typed_config: {{\"@type\": type.googleapis.com/envoy.extensions.filters.http.{kind}, {more}}}\n")
    };
    let service = "{envoy_grpc: {cluster_name: peer}, timeout: 5s}";
    config.filters = [
        filter("authz", "ext_authz.v3.ExtAuthz", &format!("transport_api_version: V3, grpc_service: {service}")),
        filter(
            "limit",
            "ratelimit.v3.RateLimit",
            &format!("domain: d, timeout: 5s, rate_limit_service: {{transport_api_version: V3, grpc_service: {service}}}"),
        ),
    ]
    .concat();
    let proxy = config.start();
    let ask = |who: &str| proxy.call(&format!("GET / HTTP/1.1\r\nhost: a\r\nx-who: {who}\r\n\r\n"));
    let refused = ask("ben");
    assert_eq!((refused.status, refused.body.as_str()), (401, "no"));
    let statuses: Vec<u16> = (0..3).map(|_| ask("ann").status).collect();
    assert_eq!(statuses, [200, 200, 429]);
    assert!(upstream.seen()[0].contains("x-user: A\r\n"), "{:?}", upstream.seen());
}
