//! Heads that are read, and heads that are refused.
use bytes::BytesMut;
use http::HeaderName;
use lateen_snapshot::http::NameCase;

use super::*;
use crate::http::h1::Decoder;
use crate::http::message::{Hints, Length, Request};

const LIMITS: HeadLimits =
    HeadLimits { bytes: 60 * 1024, count: 100, accept_http_10: true, allow_chunked_length: false, names: NameCase::Lower };

fn read(head: &str) -> Result<Request, InvalidHead> {
    let mut whole = BytesMut::from(head);
    let read = |input: &mut BytesMut, scan: &mut HeadScan| request(input, scan, LIMITS, false).map(|read| read.map(|(r, _)| r));
    let at_once = read(&mut whole, &mut HeadScan::default()).map(|request| request.expect("a whole head"));
    // Byte by byte it is the same, whichever reader it was.
    let (mut input, mut scan) = (BytesMut::new(), HeadScan::default());
    for byte in head.bytes() {
        input.extend_from_slice(&[byte]);
        match read(&mut input, &mut scan) {
            Ok(None) => {}
            Ok(Some(slowly)) => {
                let at_once = at_once.as_ref().expect("what is understood in pieces is understood");
                assert_eq!((slowly.headers, slowly.hints, slowly.path), (at_once.headers.clone(), at_once.hints, at_once.path.clone()));
                break;
            }
            Err(e) => {
                assert_eq!(at_once.as_ref().err(), Some(&e));
                break;
            }
        }
    }
    at_once
}

#[test]
fn what_came_is_noted_unless_it_was_for_this_hop_alone() {
    let head = |more: &str| {
        format!("GET / HTTP/1.1\r\nHost: a\r\nX-Request-ID: 1\r\nX-Forwarded-For: 10.0.0.1\r\nx-envoy-max-retries: 1\r\n{more}\r\n")
    };
    let all = Hints { envoy: true, forwarded_for: true, request_id: true, ..Hints::default() };
    assert_eq!(read(&head("")).unwrap().hints, all);
    let request = read(&head("Connection: close, x-request-id\r\n")).unwrap();
    assert_eq!(request.hints, Hints { request_id: false, ..all });
    assert!(!request.headers.contains_key("x-request-id"));
}

#[test]
fn connection_drops_what_it_names_and_must_not_name_where_a_request_came_from() {
    let head = |connection: &str| format!("GET / HTTP/1.1\r\nHost: a\r\nX-Forwarded-For: 10.0.0.1\r\nX-9: 9\r\n{connection}\r\n");
    for refused in [
        "Connection: X-Forwarded-For\r\n",
        "Connection: close, x-forwarded-host\r\n",
        "Connection: close\r\nConnection: x-forwarded-proto\r\n",
        "Connection: :path\r\n",
        "Connection: a,b,c,d,e\r\nConnection: f,g,h,i,x-9\r\n",
        "Connection: close,close,close,close,close,close,close,close,close,close\r\n",
    ] {
        assert_eq!(read(&head(refused)).unwrap_err(), InvalidHead::Connection, "{refused}");
    }
    let request = read(&head("Connection: a,b,c,d,e,,\r\nConnection: f, g, h, x-9\r\n")).unwrap();
    assert!(!request.headers.contains_key("x-9") && request.headers.contains_key("x-forwarded-for"));
}

#[test]
fn what_an_upstream_calls_its_connections_goes_no_further_however_much_it_is() {
    let names: Vec<String> = (0..40).map(|n| format!("x-{n}")).collect();
    let fields: String = names.iter().map(|name| format!("{name}: 1\r\n")).collect();
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n{fields}x-kept: 1\r\nConnection: {}\r\n\r\n", names.join(", "));
    let read = response(&mut BytesMut::from(&*head), &mut HeadScan::default(), AnswerTo::Other, LIMITS);
    let (response, _) = read.unwrap().expect("a whole head");
    assert_eq!(response.headers.keys().map(HeaderName::as_str).collect::<Vec<_>>(), ["x-kept"]);
}

#[test]
fn more_headers_than_usual_are_read_as_well() {
    let many: String = (0..60).map(|n| format!("x-{n}: {n}\r\n")).collect();
    let request = read(&format!("GET /a HTTP/1.1\r\nhost: a\r\n{many}\r\n")).unwrap();
    assert_eq!((request.headers.len(), request.headers.get("x-59").map(|v| v.as_bytes())), (60, Some(&b"59"[..])));
    let more: String = (0..101).map(|n| format!("x-{n}: {n}\r\n")).collect();
    assert_eq!(read(&format!("GET /a HTTP/1.1\r\n{more}\r\n")).unwrap_err(), InvalidHead::TooMany);
}

#[test]
fn a_length_beside_chunks_is_refused_or_dropped_as_configured() {
    let head = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n";
    assert_eq!(read(head).unwrap_err(), InvalidHead::TwoLengths);
    let limits = HeadLimits { allow_chunked_length: true, ..LIMITS };
    let read = |head: &str| request(&mut BytesMut::from(head), &mut HeadScan::default(), limits, false);
    let (request, framing) = read(head).unwrap().unwrap();
    assert_eq!((request.length, request.headers.len()), (Length::Unknown, 0));
    assert!(matches!(framing.decoder, Decoder::Chunked(_)));
    // An old proxy on the way reads it by its length.
    assert_eq!(read(&head.replace("HTTP/1.1", "HTTP/1.0")).err(), Some(InvalidHead::TransferEncoding));
}
