//! Network filters that ask another server about a connection.
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use lateen_proto::envoy::service::auth::v3 as auth;
use lateen_proto::envoy::service::ratelimit::v3 as rls;
use prost::Message;

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::*;

fn proxy(upstream: &Upstream, service: u16, filter: &str, more: &str) -> Proxy {
    let config = Config::to(&[upstream.port()]).cluster(cluster("s", &[service], HTTP2));
    let filter = format!(
        "    - filters:\n      - name: asks\n        typed_config:\n          \
         \"@type\": type.googleapis.com/envoy.extensions.filters.network.{filter}\n          stat_prefix: p\n{more}"
    );
    start(&config.yaml().replacen("    - filters:\n", &filter, 1))
}

const SERVICE: &str = "{envoy_grpc: {cluster_name: s}, timeout: 0.5s}";

fn authorized(upstream: &Upstream, service: u16, more: &str) -> Proxy {
    let more = format!("          transport_api_version: V3\n          grpc_service: {SERVICE}\n{more}");
    proxy(upstream, service, "ext_authz.v3.ExtAuthz", &more)
}

fn limited(upstream: &Upstream, service: u16, more: &str) -> Proxy {
    let more = format!(
        "          domain: d\n          rate_limit_service: {{transport_api_version: V3, grpc_service: {SERVICE}}}\n          timeout: 0.5s\n          \
         descriptors: [{{entries: [{{key: fixed, value: v}}, {{key: from, value: \"%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%\"}}]}}]\n{more}"
    );
    proxy(upstream, service, "ratelimit.v3.RateLimit", &more)
}

/// The answer's first bytes; none where the connection is closed instead.
fn asked(proxy: &Proxy) -> String {
    let mut stream = proxy.connect();
    let _ = stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
    let mut text = Vec::new();
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).lines().next().unwrap_or_default().to_owned()
}

const SERVED: &str = "HTTP/1.1 200 OK";

#[test]
fn an_authorizer_says_which_connections_are_served() {
    let upstream = Upstream::ok("x");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let theirs = seen.clone();
    let server = GrpcServer::start(move |message| {
        let question = auth::CheckRequest::decode(message).unwrap();
        let mut seen = theirs.lock().unwrap();
        seen.push(question);
        let code = if seen.len() == 2 { 7 } else { 0 };
        Reply::of(&auth::CheckResponse {
            status: Some(lateen_proto::google::rpc::Status { code, ..Default::default() }),
            ..Default::default()
        })
    });
    let proxy = authorized(&upstream, server.port(), "");
    let stat = |name: &str| proxy.stat(&format!("ext_authz.p.{name}"));
    assert_eq!([asked(&proxy), asked(&proxy), asked(&proxy)], [SERVED, "", SERVED]);
    assert_eq!(["total", "ok", "denied", "cx_closed", "error", "active"].map(stat), [3, 2, 1, 1, 0, 0]);
    let question = format!("{:?}", seen.lock().unwrap()[0].attributes);
    assert!(question.contains("127.0.0.1") && question.contains(&proxy.address.port().to_string()), "{question}");
    assert_eq!(server.heads.lock().unwrap()[0].0, "/envoy.service.auth.v3.Authorization/Check");
}

#[test]
fn an_authorizer_that_fails_or_says_nothing_closes_connections_unless_failures_are_let_through() {
    let upstream = Upstream::ok("x");
    for server in [GrpcServer::start(|_| Reply::Status(13)), GrpcServer::start(|_| Reply::Silence)] {
        let strict = authorized(&upstream, server.port(), "");
        assert_eq!((asked(&strict).as_str(), strict.stat("ext_authz.p.error"), strict.stat("ext_authz.p.cx_closed")), ("", 1, 1));
        let open = authorized(&upstream, server.port(), "          failure_mode_allow: true\n");
        assert_eq!((asked(&open).as_str(), open.stat("ext_authz.p.failure_mode_allowed")), (SERVED, 1));
    }
}

#[test]
fn a_rate_limit_service_says_how_many_connections_there_may_be() {
    let upstream = Upstream::ok("x");
    let seen = Arc::new(Mutex::new(Vec::new()));
    let theirs = seen.clone();
    let server = GrpcServer::start(move |message| {
        let mut seen = theirs.lock().unwrap();
        seen.push(rls::RateLimitRequest::decode(message).unwrap());
        let over = seen.len() > 2;
        let overall_code = if over { rls::rate_limit_response::Code::OverLimit } else { rls::rate_limit_response::Code::Ok } as i32;
        Reply::of(&rls::RateLimitResponse { overall_code, ..Default::default() })
    });
    let proxy = limited(&upstream, server.port(), "");
    assert_eq!([asked(&proxy), asked(&proxy), asked(&proxy)], [SERVED, SERVED, ""]);
    let stat = |name: &str| proxy.stat(&format!("ratelimit.p.{name}"));
    assert_eq!(["total", "ok", "over_limit", "cx_closed", "active"].map(stat), [3, 2, 1, 1, 0]);
    let question = seen.lock().unwrap()[0].clone();
    let entries: Vec<_> = question.descriptors[0].entries.iter().map(|e| (e.key.as_str(), e.value.as_str())).collect();
    assert_eq!((question.domain.as_str(), entries), ("d", vec![("fixed", "v"), ("from", "127.0.0.1")]));
}

#[test]
fn a_rate_limit_service_that_fails_lets_connections_through_unless_they_are_denied() {
    let upstream = Upstream::ok("x");
    let failing = GrpcServer::start(|_| Reply::Status(13));
    let open = limited(&upstream, failing.port(), "");
    assert_eq!((asked(&open).as_str(), open.stat("ratelimit.p.failure_mode_allowed")), (SERVED, 1));
    let strict = limited(&upstream, failing.port(), "          failure_mode_deny: true\n");
    assert_eq!((asked(&strict).as_str(), strict.stat("ratelimit.p.cx_closed")), ("", 1));
}
