//! Global rate limits, counted by a service.
use std::sync::{Arc, Mutex};

use lateen_proto::Duration;
use lateen_proto::envoy::config::core::v3::HeaderValue;
use lateen_proto::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse, rate_limit_response as response};
use prost::Message;

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::*;

const ACTIONS: &str = "rate_limits: [{actions: [{source_cluster: {}}, {destination_cluster: {}}, {generic_key: {descriptor_value: x}}, \
                       {request_headers: {header_name: x-who, descriptor_key: who}}]}]";

fn config(upstream: u16, service: u16, more: &str) -> Config {
    let mut config = Config::to(&[upstream]).cluster(cluster("rls", &[service], HTTP2));
    config.routes = format!("- {{match: {{prefix: /}}, route: {{cluster: c, {ACTIONS}}}}}");
    config.filters = format!(
        "- name: envoy.filters.http.ratelimit\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit\n    domain: d\n    timeout: 2s\n    \
         rate_limit_service: {{transport_api_version: V3, grpc_service: {{envoy_grpc: {{cluster_name: rls}}}}}}\n{more}"
    );
    config
}

/// A service that lets the first `most` of each descriptor through, and what it was asked.
fn service(most: usize) -> (GrpcServer, Arc<Mutex<Vec<RateLimitRequest>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let theirs = asked.clone();
    let server = GrpcServer::start(move |message| {
        let mut asked = theirs.lock().unwrap();
        let question = RateLimitRequest::decode(message).unwrap();
        let seen = asked.iter().filter(|other: &&RateLimitRequest| other.descriptors == question.descriptors).count();
        asked.push(question);
        let code = if seen < most { response::Code::Ok } else { response::Code::OverLimit };
        let limit =
            response::RateLimit { requests_per_unit: most as u32, unit: response::rate_limit::Unit::Minute as i32, ..Default::default() };
        let pair = |key: &str, value: &str| HeaderValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() };
        Reply::of(&RateLimitResponse {
            overall_code: code as i32,
            statuses: vec![response::DescriptorStatus {
                code: code as i32,
                current_limit: Some(limit),
                limit_remaining: most.saturating_sub(seen + 1) as u32,
                duration_until_reset: Some(Duration { seconds: 30, nanos: 0 }),
                quota: None,
            }],
            response_headers_to_add: vec![pair("x-from", "service"), pair("Transfer-Encoding", "gzip")],
            request_headers_to_add: vec![pair("x-counted", "yes")],
            raw_body: b"slow down".to_vec().into(),
            ..Default::default()
        })
    });
    (server, asked)
}

fn ask(proxy: &Proxy, who: &str) -> Answer {
    proxy.call(&format!("GET /p HTTP/1.1\r\nhost: a\r\nx-who: {who}\r\n\r\n"))
}

fn stats(proxy: &Proxy, prefix: &str) -> [u64; 4] {
    ["ok", "over_limit", "error", "failure_mode_allowed"].map(|n| proxy.stat(&format!("cluster.c.{prefix}.{n}")))
}

#[test]
fn a_service_counts_and_what_is_over_its_limit_is_refused() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = service(1);
    let more = "    enable_x_ratelimit_headers: DRAFT_VERSION_03\n    enable_retry_after_header: true\n    rate_limited_as_resource_exhausted: true\n    \
                response_headers_to_add: [{header: {key: x-own, value: \"%PROTOCOL%\"}}]\n";
    let proxy = config(upstream.port(), server.port(), more).start();
    let first = ask(&proxy, "ann");
    let quota = |a: &Answer| ["limit", "remaining", "reset"].map(|n| a.header(&format!("x-ratelimit-{n}")).unwrap_or("?").to_owned());
    assert_eq!((first.status, first.header("x-from"), first.header("x-own")), (200, Some("service"), None));
    assert_eq!(quota(&first), ["1, 1;w=60", "0", "30"].map(str::to_owned));
    assert!(upstream.seen()[0].contains("x-counted: yes\r\n"));
    let refused = ask(&proxy, "ann");
    assert_eq!((refused.status, refused.body.as_str(), refused.header("x-envoy-ratelimited")), (429, "slow down", Some("true")));
    assert_eq!(
        (refused.header("x-from"), refused.header("x-own"), refused.header("retry-after")),
        (Some("service"), Some("HTTP/1.1"), Some("30"))
    );
    assert_eq!(ask(&proxy, "ben").status, 200);
    let grpc = "POST /p HTTP/1.1\r\nhost: a\r\nx-who: ann\r\ncontent-type: application/grpc\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(proxy.call(grpc).header("grpc-status"), Some("8"));
    assert_eq!((upstream.seen().len(), stats(&proxy, "ratelimit")), (2, [2, 2, 0, 0]));
    let asked = asked.lock().unwrap()[0].clone();
    let entries: Vec<_> = asked.descriptors[0].entries.iter().map(|e| format!("{}={}", e.key, e.value)).collect();
    assert_eq!(asked.domain, "d");
    assert_eq!(entries, ["source_cluster=", "destination_cluster=c", "generic_key=x", "who=ann"]);
    assert_eq!(proxy.get("/p").status, 200, "what has no descriptor is not counted");
    assert_eq!(server.heads.lock().unwrap()[0].0, "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit");
}

#[test]
fn the_service_is_told_for_how_much_a_request_counts() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = service(9);
    let limit = |name: &str, hits: &str| format!("{{actions: [{{generic_key: {{descriptor_value: {name}}}}}]{hits}}}");
    let limits = [
        limit("once", ""),
        limit("fixed", ", hits_addend: {number: 3}"),
        limit("free", ", hits_addend: {number: 0}"),
        limit("back", ", hits_addend: {number: 2, is_negative_hits: true}"),
        limit("asked", ", hits_addend: {format: \"%REQ(x-cost)%\"}"),
    ];
    let proxy = config(upstream.port(), server.port(), &format!("    rate_limits: [{}]\n", limits.join(", "))).start();
    for cost in ["x-cost: 7\r\n", "x-cost: much\r\n", ""] {
        assert_eq!(proxy.call(&format!("GET /p HTTP/1.1\r\nhost: a\r\n{cost}\r\n")).status, 200);
    }
    let hits = |question: &RateLimitRequest| {
        let told = question.descriptors.iter().map(|d| (d.entries[0].value.clone(), d.hits_addend, d.is_negative_hits));
        told.map(|(name, hits, negative)| format!("{name} {hits:?} {negative}")).collect::<Vec<_>>()
    };
    let asked: Vec<_> = asked.lock().unwrap().iter().map(hits).collect();
    let fixed = ["once None false", "fixed Some(3) false", "free Some(0) false", "back Some(2) true"];
    assert_eq!(asked[0][..4], fixed);
    assert_eq!(asked[0][4..], ["asked Some(7) false"]);
    assert_eq!(
        (&asked[1][..], &asked[2][..]),
        (&fixed.map(str::to_owned)[..], &fixed.map(str::to_owned)[..]),
        "what is no number counts nothing"
    );
}

#[test]
fn a_service_that_fails_lets_through_unless_it_must_not() {
    let upstream = Upstream::ok("fine");
    let failing = GrpcServer::start(|_| Reply::Status(14));
    let proxy = config(upstream.port(), failing.port(), "    stat_prefix: p\n").start();
    assert_eq!((ask(&proxy, "a").status, stats(&proxy, "ratelimit.p")), (200, [0, 0, 1, 1]));
    // One that adds more headers than a head may have makes no sense.
    let excessive = GrpcServer::start(|_| {
        let header = |i: usize| HeaderValue { key: format!("x-{i}"), value: "v".to_owned(), ..Default::default() };
        let request_headers_to_add = (0..30_000).map(header).collect();
        Reply::of(&RateLimitResponse { overall_code: response::Code::Ok as i32, request_headers_to_add, ..Default::default() })
    });
    let proxy = config(upstream.port(), excessive.port(), "").start();
    assert_eq!((ask(&proxy, "a").status, stats(&proxy, "ratelimit")), (200, [0, 0, 1, 1]));
    let silent = GrpcServer::start(|_| Reply::Silence);
    let mut slow = config(upstream.port(), silent.port(), "    failure_mode_deny: true\n    status_on_error: {code: 503}\n");
    slow.filters = slow.filters.replace("timeout: 2s", "timeout: 0.1s");
    let proxy = slow.start();
    assert_eq!((ask(&proxy, "a").status, stats(&proxy, "ratelimit")), (503, [0, 0, 1, 0]));
    let strict = config(upstream.port(), dead_port(), "    failure_mode_deny: true\n").start();
    assert_eq!(ask(&strict, "a").status, 500);
}

#[test]
fn limits_may_be_watched_without_being_enforced_and_concern_only_some_requests() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = service(0);
    let proxy = config(upstream.port(), server.port(), "    filter_enforced: {default_value: {numerator: 0}}\n").start();
    let watched = ask(&proxy, "a");
    assert_eq!((watched.status, watched.header("x-envoy-ratelimited")), (200, Some("true")));
    assert_eq!(stats(&proxy, "ratelimit"), [0, 1, 0, 0]);
    let internal = config(upstream.port(), server.port(), "    request_type: internal\n").start();
    assert_eq!(ask(&internal, "a").status, 200);
    let off = config(upstream.port(), server.port(), "    filter_enabled: {default_value: {numerator: 0}}\n").start();
    assert_eq!(ask(&off, "a").status, 200);
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn routes_have_their_own_domain_and_limits() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = service(9);
    let per_route = |more: &str| {
        format!(
            "typed_per_filter_config: {{envoy.filters.http.ratelimit: {{\"@type\": \
             type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimitPerRoute, {more}}}}}"
        )
    };
    let key = |value: &str| format!("[{{actions: [{{generic_key: {{descriptor_value: {value}}}}}]}}]");
    let mut config = config(upstream.port(), server.port(), "");
    config.virtual_host = format!("rate_limits: {}", key("host"));
    config.routes = format!(
        "- {{match: {{prefix: /own}}, route: {{cluster: c}}, {}}}\n- {{match: {{prefix: /both}}, route: {{cluster: c, rate_limits: {}}}, {}}}\n\
         - {{match: {{prefix: /ignores}}, route: {{cluster: c}}, {}}}\n- {{match: {{prefix: /}}, route: {{cluster: c}}}}",
        per_route(&format!("domain: other, rate_limits: {}", key("mine"))),
        key("route"),
        per_route("vh_rate_limits: INCLUDE"),
        per_route("override_option: IGNORE_POLICY"),
    );
    let proxy = config.start();
    for path in ["/own", "/both", "/ignores", "/"] {
        assert_eq!(proxy.get(path).status, 200);
    }
    let told = |q: &RateLimitRequest| {
        let values = q.descriptors.iter().map(|d| d.entries[0].value.as_str()).collect::<Vec<_>>().join("+");
        format!("{}:{values}", q.domain)
    };
    assert_eq!(asked.lock().unwrap().iter().map(told).collect::<Vec<_>>(), ["other:mine", "d:route+host", "d:host"]);
}

#[test]
fn callers_count_by_where_they_are_and_by_what_filters_wrote() {
    let upstream = Upstream::ok("x");
    let (server, asked) = service(9);
    let ranges = "ranges: [{address_prefix: 10.0.0.0, prefix_len: 8}, {address_prefix: 127.0.0.0, prefix_len: 8}]";
    let near = format!("{{remote_address_match: {{descriptor_value: near, address_matcher: {{{ranges}}}}}}}");
    let far = format!(
        "{{remote_address_match: {{descriptor_key: k, descriptor_value: far, address_matcher: {{{ranges}, invert_match: true}}}}}}"
    );
    let wrote = "{dynamic_metadata: {descriptor_key: user, metadata_key: {key: own, path: [{key: who}]}, default_value: nobody}}";
    let mut config = config(upstream.port(), server.port(), "");
    let set = "- name: meta\n  typed_config: {\"@type\": type.googleapis.com/envoy.extensions.filters.http.set_metadata.v3.Config, metadata: \
               [{metadata_namespace: own, value: {who: ann}}]}\n";
    config.filters.insert_str(0, set);
    config.routes = format!(
        "- {{match: {{prefix: /}}, route: {{cluster: c, rate_limits: [{{actions: [{near}]}}, {{actions: [{far}]}}, {{actions: [{wrote}]}}]}}}}"
    );
    assert_eq!(config.start().get("/").status, 200);
    let asked = asked.lock().unwrap();
    let entries: Vec<_> = asked[0].descriptors.iter().flat_map(|d| &d.entries).map(|e| format!("{}={}", e.key, e.value)).collect();
    assert_eq!(entries, ["remote_address_match=near", "user=ann"]);
}
