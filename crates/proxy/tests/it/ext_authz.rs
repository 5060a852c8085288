//! External authorization, over gRPC and over HTTP.
#![allow(deprecated, reason = "older fields of answers still count")]
use std::io::Write;
use std::sync::{Arc, Mutex};

use lateen_proto::Struct;
use lateen_proto::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction as Action};
use lateen_proto::envoy::service::auth::v3 as auth;
use lateen_proto::google::rpc::Status;
use prost::Message;

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::*;

const FILTER: &str = "- name: envoy.filters.http.ext_authz\n  typed_config:\n    \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthz\n    transport_api_version: V3\n";
const GRPC: &str = "    grpc_service: {envoy_grpc: {cluster_name: authz}, timeout: 2s}\n";
const HTTP: &str = "    http_service:\n      server_uri: {uri: \"http://authz\", cluster: authz, timeout: 2s}\n";

fn over_grpc(upstream: u16, authorizer: u16, more: &str) -> Config {
    let mut config = Config::to(&[upstream]).cluster(cluster("authz", &[authorizer], HTTP2));
    config.filters = format!("{FILTER}{GRPC}{more}");
    config
}

fn over_http(upstream: u16, authorizer: u16, more: &str) -> Config {
    let mut config = Config::to(&[upstream]).cluster(cluster("authz", &[authorizer], ""));
    config.filters = format!("{FILTER}{HTTP}{more}");
    config
}

type Asked = Arc<Mutex<Vec<auth::attribute_context::HttpRequest>>>;

/// An authorizer that gives this answer, and what it was asked.
fn authorizer(answer: auth::CheckResponse) -> (GrpcServer, Arc<Mutex<Vec<auth::AttributeContext>>>) {
    let asked = Arc::new(Mutex::new(Vec::new()));
    let theirs = asked.clone();
    let server = GrpcServer::start(move |message| {
        let question = auth::CheckRequest::decode(message).unwrap();
        theirs.lock().unwrap().push(question.attributes.unwrap());
        Reply::of(&answer)
    });
    (server, asked)
}

fn header(key: &str, value: &str, append: Option<bool>, action: Action) -> core::HeaderValueOption {
    let header = core::HeaderValue { key: key.to_owned(), value: value.to_owned(), ..Default::default() };
    core::HeaderValueOption { header: Some(header), append, append_action: action as i32, ..Default::default() }
}

fn allowed(ok: auth::OkHttpResponse) -> auth::CheckResponse {
    auth::CheckResponse {
        status: Some(Status::default()),
        http_response: Some(auth::check_response::HttpResponse::OkResponse(ok)),
        ..Default::default()
    }
}

fn denied(denied: auth::DeniedHttpResponse) -> auth::CheckResponse {
    auth::CheckResponse {
        status: Some(Status { code: 7, ..Default::default() }),
        http_response: Some(auth::check_response::HttpResponse::DeniedResponse(denied)),
        ..Default::default()
    }
}

fn stats(proxy: &Proxy, prefix: &str) -> [u64; 4] {
    ["ok", "denied", "error", "failure_mode_allowed"].map(|n| proxy.stat(&format!("{prefix}.ext_authz.{n}")))
}

#[test]
fn an_answer_with_more_headers_than_a_head_may_have_is_invalid() {
    let upstream = Upstream::ok("fine");
    let many = |count: usize| (0..count).map(|i| header(&format!("x-{i}"), "v", None, Action::AppendIfExistsOrAdd)).collect::<Vec<_>>();
    let request = |count| allowed(auth::OkHttpResponse { headers: many(count), ..Default::default() });
    let response = |count| allowed(auth::OkHttpResponse { response_headers_to_add: many(count), ..Default::default() });
    let sized = |bytes: usize, remove: &[&str]| {
        let headers = vec![header("x-large", &"v".repeat(bytes), None, Action::AppendIfExistsOrAdd)];
        allowed(auth::OkHttpResponse {
            headers,
            headers_to_remove: remove.iter().map(|name| name.to_string()).collect(),
            ..Default::default()
        })
    };
    let removing = |count: usize| {
        let headers_to_remove = (0..count).map(|i| format!("x-{i}")).collect();
        allowed(auth::OkHttpResponse { headers: many(count), headers_to_remove, ..Default::default() })
    };
    let refusal = |count| denied(auth::DeniedHttpResponse { headers: many(count), ..Default::default() });
    let cases = [
        (request(50), 200),
        (request(100), 500),
        (request(30_000), 500),
        // What counts is what goes on.
        (removing(100), 200),
        (sized(50 << 10, &[]), 200),
        (sized(60 << 10, &[]), 500),
        (sized(60 << 10, &["x-large"]), 200),
        (response(1001), 500),
        (refusal(50), 403),
        (refusal(30_000), 500),
    ];
    for (number, (answer, expected)) in cases.into_iter().enumerate() {
        let (server, _) = authorizer(answer);
        let proxy = over_grpc(upstream.port(), server.port(), "").start();
        assert_eq!(proxy.get("/").status, expected, "case {number}");
        assert_eq!(stats(&proxy, "http.t")[0], u64::from(expected == 200), "case {number}");
    }
}

#[test]
fn a_grpc_authorizer_hears_all_of_a_head_and_changes_it() {
    let upstream = Upstream::ok("fine");
    let said = prost_types_struct("user", "ann");
    let mut answer = allowed(auth::OkHttpResponse {
        headers: vec![
            header("x-user", "ann", Some(false), Action::AppendIfExistsOrAdd),
            header("x-both", "two", Some(true), Action::AppendIfExistsOrAdd),
            header("x-more", "two", None, Action::AppendIfExistsOrAdd),
            header("x-kept", "new", None, Action::AddIfAbsent),
            header("Content-Length", "99", Some(false), Action::AppendIfExistsOrAdd),
            header(":path", "/rewritten?b=1&a=2", Some(false), Action::AppendIfExistsOrAdd),
        ],
        headers_to_remove: vec!["authorization".to_owned(), "host".to_owned()],
        response_headers_to_add: vec![header("x-says", "authorizer", None, Action::AppendIfExistsOrAdd)],
        query_parameters_to_set: vec![core::QueryParameter { key: "c".to_owned(), value: "3".to_owned() }],
        query_parameters_to_remove: vec!["b".to_owned()],
        ..Default::default()
    });
    answer.dynamic_metadata = Some(said);
    let (server, asked) = authorizer(answer);
    let mut config = over_grpc(upstream.port(), server.port(), "    include_tls_session: true\n    clear_route_cache: true\n");
    config.routes = "- {match: {prefix: /rewritten}, route: {cluster: c}, request_headers_to_add: [{header: {key: x-meta, value: \
                     \"%DYNAMIC_METADATA(envoy.filters.http.ext_authz:user)%\"}}]}\n- {match: {prefix: /}, direct_response: {status: 418}}"
        .to_owned();
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream
        .write_all(
            b"GET /asked?q=1 HTTP/1.1\r\nhost: shop\r\nauthorization: Bearer t\r\nx-two: 1\r\nx-two: 2\r\nx-raw: a\xffb\r\n\
              x-both: one\r\nx-more: one\r\nx-kept: old\r\n\r\n",
        )
        .unwrap();
    let answer = Answer::read(&mut stream);
    assert_eq!((answer.status, answer.header("x-says")), (200, Some("authorizer")));
    let asked = asked.lock().unwrap()[0].clone();
    let http = asked.request.unwrap().http.unwrap();
    let of = |name: &str| http.headers.get(name).map(String::as_str);
    assert_eq!((http.method.as_str(), http.path.as_str(), http.host.as_str()), ("GET", "/asked?q=1", "shop"));
    assert_eq!((of("x-two"), of("x-raw"), of("authorization")), (Some("1,2"), Some("a!b"), Some("Bearer t")));
    assert_eq!((of(":authority"), of(":path")), (Some("shop"), Some("/asked?q=1")));
    assert!(asked.source.unwrap().address.is_some() && asked.tls_session.is_none());
    let seen = upstream.seen()[0].clone();
    assert!(seen.starts_with("GET /rewritten?a=2&c=3 HTTP/1.1\r\n"), "{seen}");
    for line in ["x-user: ann", "x-both: one,two", "x-more: two", "x-kept: new", "host: shop", "x-meta: ann"] {
        assert!(seen.contains(&format!("{line}\r\n")), "{line}: {seen}");
    }
    assert!(!seen.contains("authorization") && !seen.contains("content-length"), "{seen}");
    let (path, head) = server.heads.lock().unwrap()[0].clone();
    assert_eq!(path, "/envoy.service.auth.v3.Authorization/Check");
    assert_eq!(
        (&head["content-type"], &head["te"], &head["grpc-timeout"]),
        (&"application/grpc".parse().unwrap(), &"trailers".parse().unwrap(), &"2000m".parse().unwrap())
    );
    assert_eq!(head["x-envoy-expected-rq-timeout-ms"], "2000");
    assert_eq!(stats(&proxy, "http.t"), [1, 0, 0, 0]);
    assert_eq!(proxy.stat("cluster.authz.upstream_rq_total"), 1);
}

fn prost_types_struct(key: &str, text: &str) -> Struct {
    let kind = Some(prost_types::value::Kind::StringValue(text.to_owned()));
    Struct { fields: [(key.to_owned(), prost_types::Value { kind })].into() }
}

#[test]
fn a_grpc_authorizer_refuses_in_its_own_words() {
    let upstream = Upstream::ok("fine");
    let answer = denied(auth::DeniedHttpResponse {
        status: Some(lateen_proto::envoy::r#type::v3::HttpStatus { code: 401 }),
        headers: vec![
            header("www-authenticate", "Who", None, Action::AppendIfExistsOrAdd),
            header("set-cookie", "a=1", None, Action::AppendIfExistsOrAdd),
            header("set-cookie", "b=2", None, Action::AppendIfExistsOrAdd),
        ],
        body: "go away".to_owned(),
    });
    let (server, _) = authorizer(answer);
    let proxy = over_grpc(upstream.port(), server.port(), "    stat_prefix: waf\n    max_denied_response_body_bytes: 2\n").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.body.as_str(), answer.header("www-authenticate")), (401, "go", Some("Who")));
    assert!(answer.head.contains("set-cookie: a=1\r\nset-cookie: b=2\r\n"), "{}", answer.head);
    assert_eq!(upstream.seen().len(), 0);
    assert_eq!(proxy.stat("http.t.ext_authz.waf.denied"), 1);
    assert_eq!(proxy.stat("cluster.c.ext_authz.waf.denied"), 1);
    assert_eq!(proxy.stat("cluster.c.upstream_rq_401"), 1, "refusals are charged to the route's cluster");
}

#[test]
fn an_authorizer_that_fails_refuses_unless_failures_are_let_through() {
    let upstream = Upstream::ok("fine");
    let failing = GrpcServer::start(|_| Reply::Status(13));
    let garbled = GrpcServer::start(|_| Reply::Raw(b"\0\0\0\0\x02\xff\xff".to_vec()));
    for port in [failing.port(), garbled.port(), dead_port()] {
        let proxy = over_grpc(upstream.port(), port, "    status_on_error: {code: 503}\n").start();
        assert_eq!(proxy.get("/").status, 503);
        assert_eq!(stats(&proxy, "http.t"), [0, 0, 1, 0]);
    }
    assert_eq!(upstream.seen().len(), 0);
    let more = "    failure_mode_allow: true\n    failure_mode_allow_header_add: true\n";
    let proxy = over_grpc(upstream.port(), failing.port(), more).start();
    assert_eq!(proxy.get("/").status, 200);
    assert!(upstream.seen()[0].contains("x-envoy-auth-failure-mode-allowed: true\r\n"));
    assert_eq!(stats(&proxy, "cluster.c"), [0, 0, 1, 1]);
}

#[test]
fn an_authorizer_that_says_nothing_is_not_waited_for_and_a_caller_that_leaves_frees_it() {
    let upstream = Upstream::ok("fine");
    let silent = GrpcServer::start(|_| Reply::Silence);
    let mut config = over_grpc(upstream.port(), silent.port(), "");
    config.filters = config.filters.replace("timeout: 2s", "timeout: 0.2s");
    let proxy = config.start();
    assert_eq!(proxy.get("/").status, 403);
    assert_eq!(proxy.stat("cluster.authz.upstream_rq_timeout"), 1);
    let mut config = over_grpc(upstream.port(), silent.port(), "");
    config.filters = config.filters.replace("timeout: 2s", "timeout: 100s");
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    eventually(|| proxy.stat("cluster.authz.upstream_rq_active") == 1);
    drop(stream);
    eventually(|| proxy.stat("cluster.authz.upstream_rq_active") == 0);
}

#[test]
fn an_impossible_mutation_is_an_error_where_mutations_are_validated() {
    let upstream = Upstream::ok("fine");
    let ok = auth::OkHttpResponse { headers: vec![header("bad name", "x", None, Action::AppendIfExistsOrAdd)], ..Default::default() };
    let (server, _) = authorizer(allowed(ok));
    let proxy = over_grpc(upstream.port(), server.port(), "    validate_mutations: true\n").start();
    assert_eq!(proxy.get("/").status, 500);
    assert_eq!(proxy.stat("http.t.ext_authz.invalid"), 1);
    let proxy = over_grpc(upstream.port(), server.port(), "").start();
    assert_eq!(proxy.get("/").status, 200);
}

#[test]
fn routes_switch_authorization_off_and_tell_the_authorizer_more() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = authorizer(allowed(auth::OkHttpResponse::default()));
    let mut config = over_grpc(upstream.port(), server.port(), "");
    let per_route = "\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_authz.v3.ExtAuthzPerRoute";
    config.virtual_host = format!(
        "typed_per_filter_config:\n  envoy.filters.http.ext_authz: {{{per_route}, check_settings: {{context_extensions: {{a: host, b: host}}}}}}"
    );
    config.routes = format!(
        "- {{match: {{prefix: /off}}, route: {{cluster: c}}, typed_per_filter_config: {{envoy.filters.http.ext_authz: {{{per_route}, disabled: true}}}}}}\n\
         - {{match: {{prefix: /}}, route: {{cluster: c}}, typed_per_filter_config: {{envoy.filters.http.ext_authz: {{{per_route}, \
         check_settings: {{context_extensions: {{b: route}}}}}}}}}}"
    );
    let proxy = config.start();
    assert_eq!((proxy.get("/off").status, proxy.get("/on").status), (200, 200));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len(), 1);
    let of = |key: &str| asked[0].context_extensions.get(key).map(String::as_str);
    assert_eq!((of("a"), of("b")), (Some("host"), Some("route")));
}

#[test]
fn a_filter_that_is_off_lets_through_or_refuses() {
    let upstream = Upstream::ok("fine");
    let off = "    filter_enabled: {default_value: {numerator: 0}}\n";
    let proxy = over_grpc(upstream.port(), dead_port(), off).start();
    assert_eq!((proxy.get("/").status, proxy.stat("http.t.ext_authz.disabled")), (200, 1));
    let proxy = over_grpc(upstream.port(), dead_port(), &format!("{off}    deny_at_disable: {{default_value: true}}\n")).start();
    assert_eq!(proxy.get("/").status, 403);
    let wanted = "    filter_enabled_metadata: {filter: x, path: [{key: y}], value: {present_match: true}}\n";
    let proxy = over_grpc(upstream.port(), dead_port(), wanted).start();
    assert_eq!(proxy.get("/").status, 200, "no filter wrote that metadata");
}

fn bodies(asked: &Asked) -> Vec<(String, Vec<u8>, Option<String>)> {
    let one = |h: &auth::attribute_context::HttpRequest| {
        (h.body.clone(), h.raw_body.to_vec(), h.headers.get("x-envoy-auth-partial-body").cloned())
    };
    asked.lock().unwrap().iter().map(one).collect()
}

#[test]
fn an_authorizer_gets_the_body_that_the_upstream_gets_too() {
    let upstream = Upstream::ok("fine");
    let (server, asked) = authorizer(allowed(auth::OkHttpResponse::default()));
    let post = |proxy: &Proxy, body: &str| {
        proxy.call(&format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\n\r\n{body}", body.len())).status
    };
    let whole = over_grpc(upstream.port(), server.port(), "    with_request_body: {max_request_bytes: 5}\n").start();
    assert_eq!((post(&whole, "12345"), post(&whole, "123456")), (200, 413));
    let part = "    with_request_body: {max_request_bytes: 5, allow_partial_message: true, pack_as_bytes: true}\n";
    let part = over_grpc(upstream.port(), server.port(), part).start();
    assert_eq!((post(&part, "123456789"), post(&part, "")), (200, 200));
    let chunked = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
    assert_eq!(part.call(chunked).status, 200);
    let asked: Asked = Arc::new(Mutex::new(asked.lock().unwrap().iter().map(|a| a.request.clone().unwrap().http.unwrap()).collect()));
    let yes = |text: &str| Some(text.to_owned());
    let expected = [
        ("12345".to_owned(), vec![], yes("false")),
        (String::new(), b"12345".to_vec(), yes("true")),
        (String::new(), vec![], None),
        (String::new(), b"abcde".to_vec(), yes("true")),
    ];
    assert_eq!(bodies(&asked).iter().map(|b| (b.0.clone(), b.1.clone())).collect::<Vec<_>>(), expected.clone().map(|b| (b.0, b.1)));
    assert_eq!((bodies(&asked)[0].2.clone(), bodies(&asked)[1].2.clone()), (yes("false"), yes("true")));
    let seen = upstream.seen();
    assert!(seen[0].ends_with("\r\n\r\n12345") && seen[1].ends_with("\r\n\r\n123456789"), "{seen:?}");
    assert!(seen[3].contains("abc") && seen[3].contains("defg"), "{seen:?}");
}

#[test]
fn an_http_authorizer_sees_what_is_allowed_and_answers_by_its_status() {
    let upstream = Upstream::ok("fine");
    let authorizer = Upstream::start(|_, request, stream| {
        let answer = if request.contains("/check/yes") {
            "HTTP/1.1 200 OK\r\nx-user: ann\r\nx-list: two\r\nx-client: hello\r\nx-other: no\r\n\
             x-envoy-auth-headers-to-remove: authorization, x-gone\r\ncontent-length: 0\r\n\r\n"
        } else if request.contains("/check/broken") {
            "HTTP/1.1 500 Oops\r\ncontent-length: 0\r\n\r\n"
        } else {
            "HTTP/1.1 302 Found\r\nlocation: /login\r\nx-other: no\r\ncontent-type: text/html\r\ncontent-length: 5\r\n\r\nlogin"
        };
        stream.write_all(answer.as_bytes()).is_ok()
    });
    let more = "      path_prefix: /check\n      authorization_request:\n        allowed_headers: {patterns: [{exact: x-two}]}\n        \
                headers_to_add: [{key: x-added, value: \"%PROTOCOL%\"}]\n      authorization_response:\n        \
                allowed_upstream_headers: {patterns: [{exact: x-user}]}\n        \
                allowed_upstream_headers_to_append: {patterns: [{exact: x-list}]}\n        \
                allowed_client_headers: {patterns: [{prefix: x-c}]}\n        \
                allowed_client_headers_on_success: {patterns: [{exact: x-client}]}\n        \
                dynamic_metadata_from_headers: {patterns: [{exact: x-user}]}\n";
    let proxy = over_http(upstream.port(), authorizer.port(), more).start();
    let call = |path: &str| {
        proxy.call(&format!(
            "POST {path} HTTP/1.1\r\nhost: shop\r\nauthorization: t\r\nx-two: 1\r\nx-two: 2\r\nx-gone: y\r\nx-list: one\r\ncontent-length: 3\r\n\r\nabc"
        ))
    };
    let yes = call("/yes");
    assert_eq!((yes.status, yes.header("x-client"), yes.header("x-other")), (200, Some("hello"), None));
    let asked = authorizer.seen()[0].clone();
    assert!(asked.starts_with("POST /check/yes HTTP/1.1\r\nhost: shop\r\n"), "{asked}");
    for line in ["authorization: t", "x-two: 1,2", "x-added: HTTP/1.1", "content-length: 0", "x-envoy-expected-rq-timeout-ms: 2000"] {
        assert!(asked.contains(&format!("{line}\r\n")), "{line}: {asked}");
    }
    assert!(!asked.contains("x-gone") && !asked.contains("abc"), "{asked}");
    let seen = upstream.seen()[0].clone();
    assert!(seen.contains("x-user: ann\r\n") && seen.contains("x-list: one\r\nx-list: two\r\n") && seen.ends_with("abc"), "{seen}");
    assert!(!seen.contains("authorization") && !seen.contains("x-gone"), "{seen}");
    let no = call("/no");
    assert_eq!((no.status, no.body.as_str(), no.header("location"), no.header("x-other")), (302, "login", Some("/login"), None));
    assert_eq!(call("/broken").status, 403);
    assert_eq!(stats(&proxy, "http.t"), [1, 1, 1, 0]);
}

#[test]
fn an_http_authorizer_gets_the_body_where_asked_to() {
    let upstream = Upstream::ok("fine");
    let authorizer = Upstream::ok("");
    let mut config = over_http(upstream.port(), authorizer.port(), "    with_request_body: {max_request_bytes: 10}\n");
    config.filters = config.filters.replace("timeout: 2s", "timeout: 5s");
    let proxy = config.start();
    assert_eq!(proxy.call("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\nabc").status, 200);
    let asked = authorizer.seen()[0].clone();
    assert!(
        asked.contains("content-length: 3\r\n") && asked.ends_with("abc") && asked.contains("x-envoy-auth-partial-body: false"),
        "{asked}"
    );
    assert!(upstream.seen()[0].ends_with("abc"));
}
