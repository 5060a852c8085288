//! External processing of bodies in full duplex, and of bodies that are shown before their heads are answered.
use std::io::{Read, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lateen_proto::envoy::service::ext_proc::v3::{
    self as proto, StreamedBodyResponse, body_mutation::Mutation, processing_request::Request, processing_response::Response as Answer,
};
use prost::Message;

use crate::ext_proc::{Seen, common, config, plain, post, processor, set, stat, told};
use crate::grpc::{GrpcServer, Reply};
use crate::support::*;

const REQUEST: &str = "response_header_mode: SKIP, request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND";
const RESPONSE: &str = "request_header_mode: SKIP, response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND";

fn piece(body: &[u8], end_of_stream: bool) -> Option<proto::CommonResponse> {
    let piece = StreamedBodyResponse { body: body.to_vec().into(), end_of_stream, ..Default::default() };
    let body_mutation = Some(proto::BodyMutation { mutation: Some(Mutation::StreamedResponse(piece)) });
    Some(proto::CommonResponse { body_mutation, ..Default::default() })
}

fn request_piece(body: &[u8], end: bool) -> Answer {
    Answer::RequestBody(proto::BodyResponse { response: piece(body, end) })
}

fn response_piece(body: &[u8], end: bool) -> Answer {
    Answer::ResponseBody(proto::BodyResponse { response: piece(body, end) })
}

fn headers(of: fn(proto::HeadersResponse) -> Answer, pairs: &[(&str, &str)]) -> Answer {
    of(proto::HeadersResponse { response: common(set(pairs, &[]), None) })
}

/// A processor that gives any number of answers to each message.
fn several(answers: impl Fn(&Request) -> Vec<Answer> + Send + Sync + 'static) -> (GrpcServer, Seen) {
    let seen = Seen::default();
    let theirs = seen.clone();
    let framed = |answer| {
        let message = proto::ProcessingResponse { response: Some(answer), ..Default::default() }.encode_to_vec();
        [&[0][..], &(message.len() as u32).to_be_bytes(), &message].concat()
    };
    let server = GrpcServer::start(move |message| {
        let request = proto::ProcessingRequest::decode(message).unwrap().request.unwrap();
        theirs.lock().unwrap().push(request.clone());
        let all = answers(&request);
        if all.is_empty() { Reply::Nothing } else { Reply::Raw(all.into_iter().map(framed).collect::<Vec<_>>().concat()) }
    });
    (server, seen)
}

/// One that gives back what it gets.
fn echo(request: &Request) -> Option<Answer> {
    match request {
        Request::RequestBody(b) => Some(request_piece(&b.body, b.end_of_stream)),
        Request::ResponseBody(b) => Some(response_piece(&b.body, b.end_of_stream)),
        _ => None,
    }
}

fn shown(seen: &Seen) -> usize {
    seen.lock().unwrap().iter().map(|r| if let Request::RequestBody(b) = r { b.body.len() } else { 0 }).sum()
}

#[test]
fn a_head_may_be_answered_once_all_of_the_body_was_seen() {
    let upstream = Upstream::ok("fine");
    let collected = Arc::new(Mutex::new(Vec::new()));
    let theirs = collected.clone();
    let (server, seen) = several(move |request| match request {
        Request::RequestBody(b) => {
            let mut all = theirs.lock().unwrap();
            all.extend_from_slice(&b.body);
            if !b.end_of_stream {
                return Vec::new();
            }
            let head = headers(Answer::RequestHeaders, &[("x-length", &all.len().to_string())]);
            vec![head, request_piece(b"<", false), request_piece(&all[..3], false), request_piece(b">", true)]
        }
        _ => Vec::new(),
    });
    let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
    // More than any buffer here has room for.
    let body = format!("abc{}", "x".repeat(3 << 20));
    let answer = post(&proxy, &body);
    assert_eq!((answer.status, answer.body.as_str()), (200, "fine"));
    let sent = upstream.seen()[0].clone();
    assert!(sent.contains(&format!("x-length: {}\r\n", body.len())) && !sent.contains("content-length"), "{sent}");
    let data: String = sent.split("\r\n\r\n").nth(1).unwrap().chars().filter(|c| "<abcx>".contains(*c)).collect();
    assert_eq!(data, "<abc>", "{sent}");
    assert_eq!((shown(&seen), told(&seen)[0].as_str()), (body.len(), "H"));
    assert_eq!(stat(&proxy, "message_timeouts"), 0);
    // Where there is no body the head is answered by itself.
    let (plainly, _) = processor(|_, _| None);
    assert_eq!(config(upstream.port(), plainly.port(), REQUEST, "").start().get("/").status, 200);
}

#[test]
fn a_response_goes_on_in_the_pieces_of_the_processor() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = several(|request| match request {
        Request::ResponseHeaders(_) => Vec::new(),
        Request::ResponseBody(b) if b.end_of_stream => {
            let head = headers(Answer::ResponseHeaders, &[("x-late", "yes")]);
            vec![
                head,
                response_piece(b"not ", false),
                response_piece(b"", false),
                response_piece(b"so ", false),
                response_piece(&b.body, true),
            ]
        }
        _ => Vec::new(),
    });
    let proxy = config(upstream.port(), server.port(), RESPONSE, "").start();
    for _ in 0..2 {
        let answer = proxy.get("/");
        assert_eq!((answer.status, answer.header("x-late"), answer.header("content-length")), (200, Some("yes"), None));
        let data: String = answer.body.chars().filter(char::is_ascii_lowercase).collect();
        assert!(data == "notsofine" || data == "notso", "{answer:?}");
    }
    assert_eq!(told(&seen)[0], "h");
    eventually(|| stat(&proxy, "streams_closed") == 2);
}

#[test]
fn both_directions_go_through_one_conversation() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = processor(|_, request| echo(request));
    let mode = "request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND, \
                response_body_mode: FULL_DUPLEX_STREAMED, response_trailer_mode: SEND";
    let proxy = config(upstream.port(), server.port(), mode, "").start();
    let answer = post(&proxy, &"y".repeat(100_000));
    assert!(answer.status == 200 && answer.body.contains("fine"), "{answer:?}");
    assert_eq!(upstream.seen()[0].matches('y').count(), 100_000);
    assert_eq!(shown(&seen), 100_000);
    assert_eq!(stat(&proxy, "streams_started"), 1);
}

#[test]
fn trailers_end_a_body_in_full_duplex() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = processor(|_, request| match request {
        Request::RequestTrailers(_) => {
            Some(Answer::RequestTrailers(proto::TrailersResponse { header_mutation: set(&[("x-more", "1")], &[]) }))
        }
        other => echo(other),
    });
    let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
    let request = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nx-t: 1\r\n\r\n";
    assert_eq!(proxy.call(request).status, 200);
    let sent = upstream.seen()[0].clone();
    assert!(sent.contains("abc") && sent.contains("x-t: 1\r\n") && sent.contains("x-more: 1\r\n"), "{sent}");
    assert_eq!(told(&seen), ["H", "Babc", "T"]);
}

#[test]
fn a_processor_that_ends_a_body_early_cuts_it_short() {
    let upstream = Upstream::ok("fine");
    let (server, _) = processor(|_, request| match request {
        Request::RequestBody(_) => Some(request_piece(b"enough", true)),
        _ => None,
    });
    let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n").unwrap();
    let answer = crate::support::Answer::read(&mut stream);
    assert_eq!(answer.status, 200);
    assert!(upstream.seen()[0].contains("enough") && !upstream.seen()[0].contains("abc"));
}

#[test]
fn answers_that_are_none_in_full_duplex_fail_the_exchange() {
    let upstream = Upstream::ok("fine");
    let wrong: [fn(&Request) -> Vec<Answer>; 4] = [
        // A piece of the other form, before and after the head.
        |r| if let Request::RequestBody(_) = r { vec![plain(r)] } else { vec![plain(r)] },
        |r| if let Request::RequestBody(_) = r { vec![plain(r)] } else { vec![] },
        // Trailers that were not shown, and a piece before the head.
        |r| if let Request::RequestBody(_) = r { vec![Answer::RequestTrailers(Default::default())] } else { vec![plain(r)] },
        |r| if let Request::RequestHeaders(_) = r { vec![request_piece(b"a", true)] } else { vec![] },
    ];
    for (n, answers) in wrong.into_iter().enumerate() {
        let (server, _) = several(answers);
        let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
        assert_eq!((post(&proxy, "abc").status, stat(&proxy, "spurious_msgs_received")), (500, 1), "{n}");
    }
    // The other way round: a piece of this form where bodies are streamed otherwise.
    let (server, _) = processor(|_, request| echo(request));
    let proxy = config(upstream.port(), server.port(), "request_body_mode: STREAMED", "").start();
    assert_ne!(post(&proxy, "abc").status, 200);
    assert_eq!(stat(&proxy, "spurious_msgs_received"), 1);
}

#[test]
fn a_processor_that_goes_away_with_a_part_of_a_body_fails_the_exchange() {
    let upstream = Upstream::ok("fine");
    for status in [0, 13] {
        let server = GrpcServer::start(move |message| match proto::ProcessingRequest::decode(message).unwrap().request.unwrap() {
            Request::RequestBody(_) => Reply::Status(status),
            request => Reply::of(&proto::ProcessingResponse { response: Some(plain(&request)), ..Default::default() }),
        });
        let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
        assert_eq!(post(&proxy, "abc").status, 500, "{status}");
    }
    // One that wants nothing of the body has nothing of it.
    let server = GrpcServer::start(|_| Reply::Status(0));
    let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 3\r\n\r\n").unwrap();
    eventually(|| stat(&proxy, "streams_closed") == 1);
    stream.write_all(b"abc").unwrap();
    assert_eq!(crate::support::Answer::read(&mut stream).status, 200);
    assert!(upstream.seen().last().unwrap().contains("abc"));
}

/// How much of an endless body is taken before the caller is made to wait.
fn taken(proxy: &Proxy) -> usize {
    let mut stream = proxy.connect();
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000000000\r\n\r\n").unwrap();
    let piece = vec![b'x'; 1 << 16];
    let mut taken = 0;
    while taken < 60 << 20 {
        match stream.write(&piece) {
            Ok(n) => taken += n,
            Err(_) => break,
        }
    }
    taken
}

#[test]
fn a_slow_processor_and_a_slow_upstream_slow_the_caller() {
    let upstream = Upstream::ok("fine");
    // It reads nothing after the head.
    let silent = GrpcServer::start(|_| Reply::Silence);
    assert!(taken(&config(upstream.port(), silent.port(), REQUEST, "").start()) < 20 << 20);
    let stuck = tcp_server(|stream| {
        std::thread::sleep(Duration::from_secs(5));
        drop(stream);
    });
    let (server, seen) = processor(|_, request| echo(request));
    let proxy = config(stuck, server.port(), REQUEST, "").start();
    assert!(taken(&proxy) < 20 << 20);
    assert!((1..20 << 20).contains(&shown(&seen)));
    // It makes much of little.
    let (server, _) = several(|request| match request {
        Request::RequestBody(_) => (0..500).map(|_| request_piece(&[b'x'; 1 << 16], false)).collect(),
        _ => vec![plain(request)],
    });
    let proxy = config(stuck, server.port(), REQUEST, "").start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").unwrap();
    eventually(|| stat(&proxy, "stream_msgs_received") > 2);
    std::thread::sleep(Duration::from_millis(500));
    let received = stat(&proxy, "stream_msgs_received");
    assert!(received < 200, "{received}");
}

#[test]
fn answers_that_an_upstream_does_not_take_keep_those_about_its_response_not_away() {
    let early = tcp_server(|mut stream| {
        read_head(&mut stream);
        std::thread::sleep(Duration::from_secs(1));
        stream.write_all(b"HTTP/1.1 413 X\r\ncontent-length: 0\r\n\r\n").unwrap();
        std::thread::sleep(2 * WAIT);
    });
    // More than an upstream's socket and one buffer hold.
    let (server, _) = several(|request| match request {
        Request::RequestBody(_) => (0..500).map(|_| request_piece(&[b'x'; 1 << 16], false)).collect(),
        _ => vec![plain(request)],
    });
    let mut config = config(early, server.port(), "request_body_mode: FULL_DUPLEX_STREAMED, request_trailer_mode: SEND", "");
    config.listener = format!("per_connection_buffer_limit_bytes: {}", 16 << 20);
    let proxy = config.start();
    let mut stream = proxy.connect();
    stream.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nabc").unwrap();
    assert_eq!(crate::support::Answer::read(&mut stream).status, 413);
}

#[test]
fn how_long_an_exchange_may_be_idle_limits_a_processor_in_full_duplex() {
    let upstream = Upstream::ok("fine");
    let silent = GrpcServer::start(|_| Reply::Nothing);
    let mut requests = config(upstream.port(), silent.port(), REQUEST, "");
    requests.filters = requests.filters.replace("message_timeout: 3s", "message_timeout: 0.1s");
    requests.hcm = "stream_idle_timeout: 0.5s".to_owned();
    let proxy = requests.start();
    let before = std::time::Instant::now();
    let status = post(&proxy, "abc").status;
    assert!(matches!(status, 408 | 504) && before.elapsed() >= Duration::from_millis(400), "{status}");
    let status = proxy.get("/").status;
    assert!(matches!(status, 408 | 504), "{status}");
    let mut responses = config(upstream.port(), silent.port(), RESPONSE, "");
    responses.hcm = "stream_idle_timeout: 0.5s".to_owned();
    let status = responses.start().get("/").status;
    assert!(matches!(status, 408 | 504), "{status}");
}

#[test]
fn streamed_bodies_may_be_shown_before_their_heads_are_answered() {
    let upstream = Upstream::ok("fine");
    let (server, seen) = several(|request| match request {
        Request::RequestBody(b) if b.end_of_stream => {
            let answer = Answer::RequestBody(proto::BodyResponse { response: common(None, Some("other")) });
            vec![headers(Answer::RequestHeaders, &[("x-late", "1")]), answer]
        }
        Request::ResponseBody(b) if b.end_of_stream => {
            vec![headers(Answer::ResponseHeaders, &[("x-late", "2")]), plain(request)]
        }
        _ => Vec::new(),
    });
    let mode = "request_body_mode: STREAMED, response_body_mode: STREAMED";
    let proxy = config(upstream.port(), server.port(), mode, "    send_body_without_waiting_for_header_response: true\n").start();
    let answer = post(&proxy, "abc");
    assert_eq!((answer.status, answer.header("x-late")), (200, Some("2")), "{answer:?}");
    let sent = upstream.seen()[0].clone();
    assert!(sent.contains("x-late: 1\r\n") && sent.contains("other") && !sent.contains("abc"), "{sent}");
    assert_eq!(told(&seen), ["H", "Babc!", "h", "bfine!"]);
}

#[test]
fn a_processor_in_full_duplex_may_answer_itself_or_put_another_body_in_its_place() {
    let upstream = Upstream::ok("fine");
    let (server, _) = several(|request| match request {
        Request::RequestBody(b) if b.body.starts_with(b"no") => {
            let status = Some(lateen_proto::envoy::r#type::v3::HttpStatus { code: 403 });
            vec![Answer::ImmediateResponse(proto::ImmediateResponse { status, ..Default::default() })]
        }
        Request::RequestBody(_) => {
            let mut replaced = common(None, Some("instead")).unwrap();
            replaced.status = proto::common_response::ResponseStatus::ContinueAndReplace as i32;
            vec![Answer::RequestHeaders(proto::HeadersResponse { response: Some(replaced) })]
        }
        _ => Vec::new(),
    });
    let proxy = config(upstream.port(), server.port(), REQUEST, "").start();
    assert_eq!(post(&proxy, "no").status, 403);
    assert_eq!(post(&proxy, "yes").status, 200);
    let sent = upstream.seen()[0].clone();
    assert!(sent.contains("instead") && !sent.contains("yes"), "{sent}");
    let mut big = proxy.connect();
    big.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 6\r\n\r\nyes").unwrap();
    std::thread::sleep(Duration::from_millis(50));
    big.write_all(b"yes").unwrap();
    assert_eq!(crate::support::Answer::read(&mut big).status, 200);
    let mut rest = Vec::new();
    big.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let _ = big.read_to_end(&mut rest);
    assert_eq!(rest, b"");
}
