//! External processing over gRPC.
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};

use lateen_proto::Duration;
use lateen_proto::envoy::config::core::v3::{HeaderValue, HeaderValueOption};
use lateen_proto::envoy::extensions::filters::http::ext_proc::v3 as config_proto;
use lateen_proto::envoy::service::ext_proc::v3::{
    self as proto, body_mutation::Mutation, processing_request::Request, processing_response::Response as Answer,
};
use prost::Message;

use crate::grpc::{GrpcServer, HTTP2, Reply};
use crate::support::*;

pub(crate) fn config(upstream: u16, processor: u16, mode: &str, more: &str) -> Config {
    let mut config = Config::to(&[upstream]).cluster(cluster("proc", &[processor], HTTP2));
    config.filters = format!(
        "- name: envoy.filters.http.ext_proc\n  typed_config:\n    \
         \"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExternalProcessor\n    \
         grpc_service: {{envoy_grpc: {{cluster_name: proc}}}}\n    message_timeout: 3s\n    processing_mode: {{{mode}}}\n{more}"
    );
    config
}

pub(crate) type Seen = Arc<Mutex<Vec<Request>>>;

/// A processor that answers as the closure says, by default with nothing to change.
pub(crate) fn processor(answer: impl Fn(usize, &Request) -> Option<Answer> + Send + Sync + 'static) -> (GrpcServer, Seen) {
    let seen = Seen::default();
    let theirs = seen.clone();
    let server = GrpcServer::start(move |message| {
        let request = proto::ProcessingRequest::decode(message).unwrap().request.unwrap();
        let number = {
            let mut seen = theirs.lock().unwrap();
            seen.push(request.clone());
            seen.len()
        };
        let response = answer(number, &request).unwrap_or_else(|| plain(&request));
        Reply::of(&proto::ProcessingResponse { response: Some(response), ..Default::default() })
    });
    (server, seen)
}

pub(crate) fn plain(request: &Request) -> Answer {
    match request {
        Request::RequestHeaders(_) => Answer::RequestHeaders(proto::HeadersResponse::default()),
        Request::ResponseHeaders(_) => Answer::ResponseHeaders(proto::HeadersResponse::default()),
        Request::RequestBody(_) => Answer::RequestBody(proto::BodyResponse::default()),
        Request::ResponseBody(_) => Answer::ResponseBody(proto::BodyResponse::default()),
        Request::RequestTrailers(_) => Answer::RequestTrailers(proto::TrailersResponse::default()),
        Request::ResponseTrailers(_) => Answer::ResponseTrailers(proto::TrailersResponse::default()),
    }
}

pub(crate) fn set(pairs: &[(&str, &str)], remove: &[&str]) -> Option<proto::HeaderMutation> {
    let option = |(key, value): &(&str, &str)| HeaderValueOption {
        header: Some(HeaderValue { key: (*key).to_owned(), raw_value: value.as_bytes().to_vec().into(), ..Default::default() }),
        ..Default::default()
    };
    Some(proto::HeaderMutation {
        set_headers: pairs.iter().map(option).collect(),
        remove_headers: remove.iter().map(|n| (*n).to_owned()).collect(),
    })
}

pub(crate) fn common(headers: Option<proto::HeaderMutation>, body: Option<&str>) -> Option<proto::CommonResponse> {
    let body = body.map(|text| proto::BodyMutation { mutation: Some(Mutation::Body(text.as_bytes().to_vec().into())) });
    Some(proto::CommonResponse { header_mutation: headers, body_mutation: body, ..Default::default() })
}

/// What a processor saw, in short: `H` and `h` for heads, `B` and `b` with the bytes for bodies, `T` and `t` for trailers; `!` ends.
pub(crate) fn told(seen: &Seen) -> Vec<String> {
    let end = |end: bool| if end { "!" } else { "" };
    let text = |body: &proto::HttpBody| format!("{}{}", String::from_utf8_lossy(&body.body), end(body.end_of_stream));
    let one = |request: &Request| match request {
        Request::RequestHeaders(h) => format!("H{}", end(h.end_of_stream)),
        Request::ResponseHeaders(h) => format!("h{}", end(h.end_of_stream)),
        Request::RequestBody(b) => format!("B{}", text(b)),
        Request::ResponseBody(b) => format!("b{}", text(b)),
        Request::RequestTrailers(_) => "T".to_owned(),
        Request::ResponseTrailers(_) => "t".to_owned(),
    };
    seen.lock().unwrap().iter().map(one).collect()
}

pub(crate) fn stat(proxy: &Proxy, name: &str) -> u64 {
    proxy.stat(&format!("http.t.ext_proc.{name}"))
}

pub(crate) fn post(proxy: &Proxy, body: &str) -> crate::support::Answer {
    proxy.call(&format!("POST /p HTTP/1.1\r\nhost: shop\r\nx-old: 1\r\ncontent-length: {}\r\n\r\n{body}", body.len()))
}

#[test]
fn a_processor_sees_both_heads_and_changes_what_it_may() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = processor(|_, request| match request {
        Request::RequestHeaders(_) => {
            let headers =
                set(&[("x-new", "1"), (":path", "/other?x"), ("host", "evil"), ("x-envoy-a", "1"), ("content-length", "7")], &["x-old"]);
            Some(Answer::RequestHeaders(proto::HeadersResponse { response: common(headers, None) }))
        }
        Request::ResponseHeaders(_) => {
            let headers = set(&[("x-seen", "yes"), (":status", "202")], &[]);
            Some(Answer::ResponseHeaders(proto::HeadersResponse { response: common(headers, None) }))
        }
        _ => None,
    });
    let proxy = config(upstream.port(), server.port(), "", "").start();
    let answer = post(&proxy, "abc");
    assert_eq!((answer.status, answer.header("x-seen"), answer.body.as_str()), (202, Some("yes"), "fine"));
    let sent = upstream.seen()[0].clone();
    assert!(sent.starts_with("POST /other?x HTTP/1.1\r\nhost: shop\r\n") && sent.ends_with("abc"), "{sent}");
    assert!(sent.contains("x-new: 1\r\n") && !sent.contains("x-old") && !sent.contains("x-envoy-a:"), "{sent}");
    assert_eq!(told(&seen), ["H", "h"]);
    let Request::RequestHeaders(head) = &seen.lock().unwrap()[0] else { panic!() };
    let headers = &head.headers.as_ref().unwrap().headers;
    let of = |name: &str| headers.iter().find(|h| h.key == name).map(|h| h.raw_value.to_vec());
    assert_eq!((of(":method"), of("x-old"), of(":path")), (Some(b"POST".to_vec()), Some(b"1".to_vec()), Some(b"/p".to_vec())));
    assert_eq!((stat(&proxy, "rejected_header_mutations"), stat(&proxy, "stream_msgs_received")), (2, 2));
    eventually(|| stat(&proxy, "streams_closed") == 1);
}

#[test]
fn bodies_are_seen_whole_where_they_are_buffered() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = processor(|_, request| match request {
        Request::RequestBody(_) => {
            Some(Answer::RequestBody(proto::BodyResponse { response: common(set(&[("x-body", "1")], &[]), Some("changed!")) }))
        }
        Request::ResponseBody(_) => {
            Some(Answer::ResponseBody(proto::BodyResponse { response: common(set(&[("x-body", "2")], &[]), Some("other")) }))
        }
        _ => None,
    });
    let mode = "request_body_mode: BUFFERED, response_body_mode: BUFFERED";
    let proxy = config(upstream.port(), server.port(), mode, "").start();
    let answer = post(&proxy, "abc");
    assert_eq!((answer.status, answer.header("x-body"), answer.body.as_str()), (200, Some("2"), "other"));
    let sent = upstream.seen()[0].clone();
    assert!(sent.contains("x-body: 1\r\n") && sent.contains("content-length: 8\r\n") && sent.ends_with("changed!"), "{sent}");
    assert_eq!(told(&seen), ["H", "Babc!", "h", "bfine!"]);
    let get = proxy.get("/");
    assert_eq!((get.status, get.body.as_str()), (200, "other"));
    assert_eq!(told(&seen)[4..], ["H!", "h", "bfine!"]);
    let large = "x".repeat(1 << 21);
    assert_eq!(post(&proxy, &large).status, 413);
    // No limit to Envoy.
    let mut config = config(upstream.port(), server.port(), mode, "");
    config.listener = "per_connection_buffer_limit_bytes: 0".to_owned();
    assert_eq!(post(&config.start(), &large).status, 200);
}

#[test]
fn bodies_are_seen_piece_by_piece_where_they_stream() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = processor(|_, request| match request {
        Request::RequestBody(b) => {
            let upper = String::from_utf8_lossy(&b.body).to_uppercase();
            Some(Answer::RequestBody(proto::BodyResponse { response: common(None, Some(&upper)) }))
        }
        Request::ResponseBody(b) if !b.body.is_empty() => {
            Some(Answer::ResponseBody(proto::BodyResponse { response: common(None, Some("longer than before")) }))
        }
        _ => None,
    });
    let mode = "request_header_mode: SKIP, response_header_mode: SKIP, request_body_mode: STREAMED, response_body_mode: STREAMED";
    let proxy = config(upstream.port(), server.port(), mode, "").start();
    let answer = proxy.call("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
    assert!(answer.status == 200 && answer.body.contains("longer than before"), "{answer:?}");
    let sent: String = upstream.seen()[0].split("\r\n\r\n").nth(1).unwrap().chars().filter(char::is_ascii_uppercase).collect();
    assert_eq!(sent, "ABCDE");
    let seen = told(&seen);
    assert!(
        seen.iter().any(|s| s.starts_with('B') && s.ends_with('!')) && seen.iter().any(|s| s.starts_with('b') && s.ends_with('!')),
        "{seen:?}"
    );
}

#[test]
fn a_processor_may_answer_itself_or_put_another_body_in_its_place() {
    let upstream = Upstream::ok("fine");
    let (server, _) = processor(|_, request| match request {
        Request::RequestHeaders(h) if h.end_of_stream => Some(Answer::ImmediateResponse(proto::ImmediateResponse {
            status: Some(lateen_proto::envoy::r#type::v3::HttpStatus { code: 418 }),
            headers: set(&[("x-why", "tea")], &[]),
            body: b"short and stout".to_vec().into(),
            details: "a teapot".to_owned(),
            ..Default::default()
        })),
        Request::RequestHeaders(_) => {
            let mut replaced = common(None, Some("instead")).unwrap();
            replaced.status = proto::common_response::ResponseStatus::ContinueAndReplace as i32;
            Some(Answer::RequestHeaders(proto::HeadersResponse { response: Some(replaced) }))
        }
        _ => None,
    });
    let proxy = config(upstream.port(), server.port(), "request_body_mode: STREAMED", "").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.header("x-why"), answer.body.as_str()), (418, Some("tea"), "short and stout"));
    assert_eq!(post(&proxy, "abc").status, 200);
    assert!(upstream.seen()[0].contains("instead") && !upstream.seen()[0].contains("abc"));
}

#[test]
fn a_processor_that_fails_ends_the_exchange_unless_failures_are_let_through() {
    let upstream = Upstream::ok("fine");
    let failing = GrpcServer::start(|_| Reply::Status(13));
    let silent = GrpcServer::start(|_| Reply::Silence);
    let short = |mut config: Config| {
        config.filters = config.filters.replace("message_timeout: 3s", "message_timeout: 0.2s");
        config.start()
    };
    assert_eq!(config(upstream.port(), failing.port(), "", "").start().get("/").status, 500);
    assert_eq!(config(upstream.port(), dead_port(), "", "    status_on_error: {code: 503}\n").start().get("/").status, 503);
    let late = short(config(upstream.port(), silent.port(), "", ""));
    assert_eq!((late.get("/").status, stat(&late, "message_timeouts")), (504, 1));
    assert!(upstream.seen().is_empty());
    for port in [failing.port(), silent.port(), dead_port()] {
        let open = short(config(upstream.port(), port, "", "    failure_mode_allow: true\n"));
        assert_eq!((open.get("/").status, stat(&open, "failure_mode_allowed")), (200, 1));
    }
}

#[test]
fn modes_change_by_route_and_by_the_processors_word() {
    let upstream = Upstream::ok("fine");
    let seen = Seen::default();
    let theirs = seen.clone();
    let server = GrpcServer::start(move |message| {
        let request = proto::ProcessingRequest::decode(message).unwrap().request.unwrap();
        theirs.lock().unwrap().push(request.clone());
        let mode = config_proto::ProcessingMode { request_body_mode: 2, response_header_mode: 2, ..Default::default() };
        let mode_override = matches!(request, Request::RequestHeaders(_)).then_some(mode);
        Reply::of(&proto::ProcessingResponse { response: Some(plain(&request)), mode_override, ..Default::default() })
    });
    let per_route = "\"@type\": type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute";
    let mut config = config(upstream.port(), server.port(), "", "    allow_mode_override: true\n");
    config.routes = format!(
        "- {{match: {{prefix: /off}}, route: {{cluster: c}}, typed_per_filter_config: {{envoy.filters.http.ext_proc: {{{per_route}, disabled: true}}}}}}\n\
         - {{match: {{prefix: /response}}, route: {{cluster: c}}, typed_per_filter_config: {{envoy.filters.http.ext_proc: {{{per_route}, \
         overrides: {{processing_mode: {{request_header_mode: SKIP}}}}}}}}}}\n- {{match: {{prefix: /}}, route: {{cluster: c}}}}"
    );
    let proxy = config.start();
    assert_eq!((proxy.get("/off").status, proxy.get("/response").status), (200, 200));
    assert_eq!(told(&seen), ["h"]);
    assert_eq!(post(&proxy, "abc").status, 200);
    assert_eq!(told(&seen)[1..], ["H", "Babc!"]);
}

#[test]
fn a_processor_may_ask_for_more_time_and_one_that_only_looks_on_is_not_waited_for() {
    let upstream = Upstream::ok("fine");
    let asked = Arc::new(Mutex::new(0));
    let theirs = asked.clone();
    let slow = GrpcServer::start(move |_| {
        *theirs.lock().unwrap() += 1;
        let override_message_timeout = Some(Duration { seconds: 1, nanos: 0 });
        Reply::of(&proto::ProcessingResponse { override_message_timeout, ..Default::default() })
    });
    let mut limited = config(upstream.port(), slow.port(), "response_header_mode: SKIP", "    max_message_timeout: 2s\n");
    limited.filters = limited.filters.replace("message_timeout: 3s", "message_timeout: 0.2s");
    let proxy = limited.start();
    let before = std::time::Instant::now();
    assert_eq!(proxy.get("/").status, 504);
    assert!(before.elapsed() >= std::time::Duration::from_millis(900), "{:?}", before.elapsed());
    assert_eq!(stat(&proxy, "override_message_timeout_received"), 1);
    let seen = Seen::default();
    let theirs = seen.clone();
    let watcher = GrpcServer::start(move |message| {
        let message = proto::ProcessingRequest::decode(message).unwrap();
        assert!(message.observability_mode);
        theirs.lock().unwrap().push(message.request.unwrap());
        Reply::Nothing
    });
    let mode = "request_body_mode: STREAMED, response_body_mode: STREAMED";
    let proxy = config(upstream.port(), watcher.port(), mode, "    observability_mode: true\n").start();
    let answer = post(&proxy, "abc");
    assert_eq!((answer.status, answer.body.contains("fine")), (200, true));
    eventually(|| told(&seen).iter().any(|s| s.starts_with("bfine")));
}

/// Looks on at all of an exchange.
const WATCHES: &str = "request_body_mode: STREAMED, response_body_mode: STREAMED";

#[test]
fn one_that_looks_on_and_ends_the_conversation_lets_the_exchange_go_on() {
    let upstream = Upstream::ok("fine");
    for (status, told) in [(0, "streams_closed"), (14, "streams_failed")] {
        // It reads nothing after the head, so that much waits to be sent to it when it has seen enough.
        let enough = GrpcServer::start(move |_| {
            std::thread::sleep(std::time::Duration::from_millis(700));
            Reply::Ended(status)
        });
        let proxy = config(upstream.port(), enough.port(), WATCHES, "    observability_mode: true\n").start();
        assert_eq!(post(&proxy, &"x".repeat(2 << 20)).status, 200);
        assert_eq!(stat(&proxy, told), 1);
    }
}

#[test]
fn one_that_looks_on_and_is_stuck_holds_back_no_response() {
    let early = tcp_server(|mut stream| {
        read_head(&mut stream);
        std::thread::sleep(std::time::Duration::from_millis(500));
        stream.write_all(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n").unwrap();
        std::thread::sleep(2 * WAIT);
    });
    let stuck = tcp_server(|stream| {
        std::thread::sleep(2 * WAIT);
        drop(stream);
    });
    let proxy = config(early, stuck, WATCHES, "    observability_mode: true\n").start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3000000\r\n\r\n").unwrap();
    stream.set_write_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    // As much as is taken.
    let _ = stream.write_all(&[b'x'; 2_000_000]);
    assert_eq!(crate::support::Answer::read(&mut stream).status, 413);
}

#[test]
fn a_processor_may_answer_in_the_place_of_a_reply_of_the_proxys() {
    let (server, _) = processor(|_, request| {
        let answer = proto::ImmediateResponse {
            status: Some(lateen_proto::envoy::r#type::v3::HttpStatus { code: 418 }),
            body: b"theirs".to_vec().into(),
            ..Default::default()
        };
        matches!(request, Request::ResponseHeaders(_)).then_some(Answer::ImmediateResponse(answer))
    });
    let config = config(dead_port(), server.port(), "request_header_mode: SKIP", "");
    let proxy = config.routes("- {match: {prefix: /}, direct_response: {status: 404, body: {inline_string: ours}}}").start();
    let answer = proxy.get("/");
    assert_eq!((answer.status, answer.body.as_str()), (418, "theirs"));
}

#[test]
fn a_filter_that_the_first_route_switches_on_stays_on_when_the_route_changes() {
    let upstream = Upstream::ok("fine");
    let (server, _) = processor(|_, request| {
        let common = proto::CommonResponse { clear_route_cache: true, ..common(set(&[("x-to", "open")], &[]), None).unwrap() };
        let answer = Answer::RequestHeaders(proto::HeadersResponse { response: Some(common) });
        matches!(request, Request::RequestHeaders(_)).then_some(answer)
    });
    let rules = "{rules: {action: DENY, policies: {all: {permissions: [{any: true}], principals: [{any: true}]}}}}";
    let kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3";
    let guarded = format!("typed_per_filter_config: {{rbac: {{\"@type\": {kind}.RBACPerRoute, rbac: {rules}}}}}");
    let mut config = config(upstream.port(), server.port(), "response_header_mode: SKIP", "").routes(&format!(
        "- {{match: {{prefix: /, headers: [{{name: x-to, string_match: {{exact: open}}}}]}}, route: {{cluster: c}}}}\n\
         - {{match: {{prefix: /guarded}}, route: {{cluster: c}}, {guarded}}}\n- {{match: {{prefix: /}}, route: {{cluster: c}}}}"
    ));
    let own = rules.replacen('{', &format!("{{\"@type\": {kind}.RBAC, "), 1);
    config.filters.push_str(&format!("\n- {{name: rbac, disabled: true, typed_config: {own}}}"));
    let proxy = config.start();
    assert_eq!((proxy.get("/guarded").status, proxy.get("/").status), (403, 200));
}

#[test]
fn both_heads_of_an_upgrade_are_seen_and_changed_and_then_it_works() {
    let upstream = tcp_server(|mut stream| {
        let head = read_head(&mut stream);
        assert!(head.contains("x-asked: 1\r\n"), "{head}");
        stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\nhi").unwrap();
        let mut bytes = [0; 100];
        while let Ok(n @ 1..) = stream.read(&mut bytes) {
            stream.write_all(&bytes[..n]).unwrap();
        }
    });
    let (server, seen) = processor(|_, request| match request {
        Request::RequestHeaders(_) => {
            Some(Answer::RequestHeaders(proto::HeadersResponse { response: common(set(&[("x-asked", "1")], &[]), None) }))
        }
        Request::ResponseHeaders(_) => {
            Some(Answer::ResponseHeaders(proto::HeadersResponse { response: common(set(&[("x-answered", "1")], &[]), None) }))
        }
        Request::ResponseBody(b) => {
            let upper = String::from_utf8_lossy(&b.body).to_uppercase();
            Some(Answer::ResponseBody(proto::BodyResponse { response: common(None, Some(&upper)) }))
        }
        _ => None,
    });
    let streamed = "request_body_mode: STREAMED, response_body_mode: STREAMED";
    for (mode, shown) in [("", false), (streamed, true), ("request_body_mode: BUFFERED, response_body_mode: BUFFERED", false)] {
        seen.lock().unwrap().clear();
        let mut config = config(upstream, server.port(), mode, "");
        config.hcm = "upgrade_configs: [{upgrade_type: websocket}]".to_owned();
        let proxy = config.start();
        let mut stream = proxy.connect();
        stream.write_all(b"GET /chat HTTP/1.1\r\nhost: a\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\nearly").unwrap();
        let head = read_head(&mut stream);
        assert!(head.starts_with("HTTP/1.1 101 ") && head.contains("x-answered: 1\r\n"), "{mode}: {head}");
        stream.write_all(b" late").unwrap();
        let mut bytes = [0; 12];
        stream.read_exact(&mut bytes).unwrap();
        let expected = if shown { b"HIEARLY LATE" } else { b"hiearly late" };
        assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(expected), "{mode}");
        let told = told(&seen);
        assert_eq!(told[..2], ["H", "h"], "{mode}");
        let data: String = told.iter().filter_map(|t| t.strip_prefix('B')).collect();
        assert_eq!(data, if shown { "early late" } else { "" }, "{mode}");
        drop(stream);
        eventually(|| stat(&proxy, "streams_closed") == 1);
    }
}

const STREAMED: &str = "request_header_mode: SKIP, response_header_mode: SKIP, request_body_mode: STREAMED";

#[test]
fn streamed_pieces_do_not_wait_for_the_answers_to_those_before() {
    let upstream = Upstream::ok("fine");
    let framed = |text: &str| {
        let answer = Answer::RequestBody(proto::BodyResponse { response: common(None, Some(text)) });
        let message = proto::ProcessingResponse { response: Some(answer), ..Default::default() }.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    };
    // It answers only when it has all three.
    let bodies = Arc::new(Mutex::new(Vec::new()));
    let theirs = bodies.clone();
    let server = GrpcServer::start(move |message| {
        let Some(Request::RequestBody(body)) = proto::ProcessingRequest::decode(message).unwrap().request else { return Reply::Nothing };
        let mut bodies = theirs.lock().unwrap();
        bodies.push(body);
        match bodies.last() {
            Some(last) if last.end_of_stream => {
                Reply::Raw(bodies.iter().enumerate().flat_map(|(n, _)| framed(&format!("<{n}>"))).collect())
            }
            _ => Reply::Nothing,
        }
    });
    let proxy = config(upstream.port(), server.port(), STREAMED, "").start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
    eventually(|| bodies.lock().unwrap().len() == 1);
    stream.write_all(b"2\r\nde\r\n").unwrap();
    eventually(|| bodies.lock().unwrap().len() == 2);
    stream.write_all(b"0\r\n\r\n").unwrap();
    assert_eq!(crate::support::Answer::read(&mut stream).status, 200);
    let pieces: Vec<_> = bodies.lock().unwrap().iter().map(|b| (String::from_utf8(b.body.to_vec()).unwrap(), b.end_of_stream)).collect();
    assert_eq!(pieces, [("abc".to_owned(), false), ("de".to_owned(), false), (String::new(), true)]);
    let sent = upstream.seen()[0].clone();
    let at = |text: &str| sent.find(text).unwrap_or_else(|| panic!("no {text} in {sent}"));
    assert!(at("<0>") < at("<1>") && at("<1>") < at("<2>") && !sent.contains("abc"), "{sent}");
}

#[test]
fn a_processor_that_does_not_answer_is_sent_no_more_than_the_buffers_limit() {
    let upstream = Upstream::ok("fine");
    let got = Arc::new(Mutex::new(0));
    let theirs = got.clone();
    let server = GrpcServer::start(move |message| {
        if let Some(Request::RequestBody(body)) = proto::ProcessingRequest::decode(message).unwrap().request {
            *theirs.lock().unwrap() += body.body.len();
        }
        Reply::Nothing
    });
    let mut config = config(upstream.port(), server.port(), STREAMED, "");
    config.listener = "per_connection_buffer_limit_bytes: 50000".to_owned();
    let proxy = config.start();
    assert_eq!(post(&proxy, &"x".repeat(2 << 20)).status, 504);
    let got = *got.lock().unwrap();
    assert!((50_000..300_000).contains(&got), "{got}");
    assert_eq!(stat(&proxy, "message_timeouts"), 1);
}

#[test]
fn attributes_are_told_with_the_first_message_about_a_request_and_about_a_response() {
    let upstream = Upstream::ok("fine");
    let told = Arc::new(Mutex::new(Vec::new()));
    let theirs = told.clone();
    let server = GrpcServer::start(move |message| {
        let message = proto::ProcessingRequest::decode(message).unwrap();
        theirs.lock().unwrap().push(message.attributes);
        Reply::of(&proto::ProcessingResponse { response: Some(plain(&message.request.unwrap())), ..Default::default() })
    });
    let attributes = "    request_attributes: [request.path, destination.port, connection.mtls, request.time, upstream.port, no.such]\n    \
                      response_attributes: [response.code, upstream.port, \"response.headers['content-length']\"]\n";
    let proxy = config(upstream.port(), server.port(), "request_body_mode: BUFFERED", attributes).start();
    assert_eq!(post(&proxy, "abc").status, 200);
    let told = told.lock().unwrap();
    let names: Vec<_> =
        told.iter().map(|a| a.get("envoy.filters.http.ext_proc").map(|s| s.fields.keys().cloned().collect::<Vec<_>>())).collect();
    let request = ["connection.mtls", "destination.port", "request.path", "request.time"].map(str::to_owned).to_vec();
    let response = ["response.code", "response.headers['content-length']", "upstream.port"].map(str::to_owned).to_vec();
    assert_eq!(names, [Some(request), None, Some(response)]);
    assert!(told[2].values().any(|s| format!("{s:?}").contains("StringValue(\"4\")")), "{told:?}");
    let value = |of: usize, name: &str| format!("{:?}", told[of]["envoy.filters.http.ext_proc"].fields[name].kind.as_ref().unwrap());
    assert_eq!(value(0, "destination.port"), format!("NumberValue({:?})", f64::from(proxy.address.port())));
    assert_eq!(value(2, "upstream.port"), format!("NumberValue({:?})", f64::from(upstream.port())));
    assert_eq!((value(0, "connection.mtls"), value(0, "request.path")), ("BoolValue(false)".to_owned(), "StringValue(\"/p\")".to_owned()));
    assert!(value(0, "request.time").ends_with("+00:00\")"), "{}", value(0, "request.time"));
}
