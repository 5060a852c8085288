//! A client and a server of this crate joined by two byte strings: the protocol without a network.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use lateen_http2::{Config, Connection, Event, Reason, Refused, RequestHead};
use proptest::prelude::*;

fn drain(connection: &mut Connection) -> BytesMut {
    let mut bytes = BytesMut::new();
    while !connection.output().is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = connection.output().slices(&mut slices);
        let written: usize = slices[..filled].iter().map(|s| s.len()).sum();
        slices[..filled].iter().for_each(|s| bytes.extend_from_slice(s));
        connection.written(written);
    }
    bytes
}

struct Pair {
    client: Connection,
    server: Connection,
    at_client: Vec<Event>,
    at_server: Vec<Event>,
}

impl Pair {
    fn new(config: Config) -> Self {
        let (client, server) = (Connection::client(config.clone()), Connection::server(config));
        let mut pair = Self { client, server, at_client: Vec::new(), at_server: Vec::new() };
        pair.exchange();
        pair
    }

    /// Carries bytes both ways until nobody has anything to say.
    fn exchange(&mut self) {
        while !(self.client.output().is_empty() && self.server.output().is_empty()) {
            let mut bytes = drain(&mut self.client);
            self.server.receive(&mut bytes, &mut self.at_server).unwrap();
            let mut bytes = drain(&mut self.server);
            self.client.receive(&mut bytes, &mut self.at_client).unwrap();
        }
    }

    fn last_request(&self) -> (u32, RequestHead) {
        let request = |e: &Event| match e {
            Event::Request { id, head, .. } => Some((*id, (**head).clone())),
            _ => None,
        };
        self.at_server.iter().rev().find_map(request).unwrap()
    }
}

fn get(path: &'static str) -> RequestHead {
    RequestHead {
        method: Method::GET,
        scheme: Bytes::from_static(b"http"),
        authority: Bytes::from_static(b"reviews:9080"),
        path: Bytes::from_static(path.as_bytes()),
        ..RequestHead::default()
    }
}

fn header(name: &'static str, value: &'static str) -> HeaderMap {
    [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect()
}

#[test]
fn a_request_is_answered_with_body_and_trailers_and_leaves_nothing_behind() {
    let mut pair = Pair::new(Config::default());
    let id = pair.client.send_request(RequestHead { headers: header("x-a", "1"), ..get("/r/0?x=1") }.as_ref(), true).unwrap();
    pair.exchange();
    let (seen, head) = pair.last_request();
    assert_eq!((seen, &head.path[..], &head.authority[..]), (id, &b"/r/0?x=1"[..], &b"reviews:9080"[..]));
    assert_eq!(head.headers["x-a"], "1");
    pair.server.send_response(id, StatusCode::OK, &header("content-type", "application/grpc"), false);
    assert!(pair.server.send_data(id, &mut Bytes::from_static(b"hello"), false));
    pair.server.send_trailers(id, &header("grpc-status", "0"));
    pair.exchange();
    let tail = pair.at_client.split_off(pair.at_client.len() - 3);
    assert!(matches!(&tail[0], Event::Response { status, end: false, .. } if *status == StatusCode::OK));
    assert!(matches!(&tail[1], Event::Data { data, end: false, .. } if data == "hello"));
    assert!(matches!(&tail[2], Event::Trailers { headers, .. } if headers["grpc-status"] == "0"));
    assert_eq!((pair.client.open_streams(), pair.server.open_streams()), (0, 0));
}

#[test]
fn a_large_body_stops_at_the_window_and_goes_on_when_it_is_read() {
    let mut pair = Pair::new(Config { stream_window: 65_535, connection_window: 65_535, ..Config::default() });
    let id = pair.client.send_request(get("/").as_ref(), true).unwrap();
    pair.exchange();
    pair.server.send_response(id, StatusCode::OK, &HeaderMap::new(), false);
    let mut body = Bytes::from(vec![7; 200_000]);
    let (mut received, mut stops) = (0, 0);
    while !pair.server.send_data(id, &mut body, true) {
        stops += 1;
        assert!(stops < 20, "the window never opened");
        pair.at_client.clear();
        pair.at_server.clear();
        pair.exchange();
        let read = body_bytes(&pair.at_client);
        received += read;
        assert!(read <= 65_535, "more than the window was in flight");
        pair.client.release(id, read);
        pair.exchange();
        assert!(pair.at_server.iter().any(|e| matches!(e, Event::Capacity { .. })));
    }
    pair.at_client.clear();
    pair.exchange();
    assert_eq!(received + body_bytes(&pair.at_client), 200_000);
    assert!(stops >= 3);
}

fn body_bytes(events: &[Event]) -> usize {
    events.iter().map(|e| if let Event::Data { data, .. } = e { data.len() } else { 0 }).sum()
}

/// A caller who asks for much and reads none of it must not have us keep more than the window: that a response is complete
/// changes nothing about where it lies.
#[test]
fn what_nobody_took_of_complete_responses_counts_against_the_connections_window() {
    let mut pair = Pair::new(Config { stream_window: 65_535, connection_window: 100_000, ..Config::default() });
    let ids: Vec<u32> = (0..3).map(|_| pair.client.send_request(get("/").as_ref(), true).unwrap()).collect();
    pair.exchange();
    let mut bodies: Vec<Bytes> = ids.iter().map(|_| Bytes::from(vec![7; 60_000])).collect();
    for (id, body) in ids.iter().zip(&mut bodies) {
        pair.server.send_response(*id, StatusCode::OK, &HeaderMap::new(), false);
        pair.server.send_data(*id, body, true);
        pair.exchange();
    }
    assert!(body_bytes(&pair.at_client) <= 100_000, "{} bytes lie at the client", body_bytes(&pair.at_client));
    assert!(bodies[0].is_empty() && !bodies[2].is_empty());
    // The first is over at both ends; taking it lets others go on, and nothing is given back twice.
    pair.client.release(ids[0], 60_000);
    pair.client.discard(ids[0]);
    for _ in 0..8 {
        pair.exchange();
        for (id, body) in ids.iter().zip(&mut bodies) {
            pair.server.send_data(*id, body, true);
        }
    }
    assert!(body_bytes(&pair.at_client) <= 160_000 && bodies[1].is_empty());
    ids.iter().for_each(|id| pair.client.discard(*id));
    pair.exchange();
    pair.server.send_data(ids[2], &mut bodies[2], true);
    pair.exchange();
    assert_eq!(body_bytes(&pair.at_client), 180_000);
}

#[test]
fn a_stream_has_so_many_informational_responses_and_no_more() {
    let mut pair = Pair::new(Config::default());
    let id = pair.client.send_request(get("/").as_ref(), true).unwrap();
    pair.exchange();
    for _ in 0..100 {
        pair.server.send_response(id, StatusCode::EARLY_HINTS, &header("link", "</style.css>"), false);
        pair.exchange();
    }
    let count = pair.at_client.iter().filter(|e| matches!(e, Event::Informational { .. })).count();
    assert!((10..=100).contains(&count), "{count} heads");
    let ended = |e: &Event| matches!(e, Event::Reset { reason, .. } if *reason == Reason::ENHANCE_YOUR_CALM);
    assert!(pair.at_client.iter().any(ended));
    // Others go on.
    let id = pair.client.send_request(get("/").as_ref(), true).unwrap();
    pair.exchange();
    assert_eq!(pair.last_request().0, id);
}

#[test]
fn streams_beyond_the_limit_are_refused_before_they_are_sent() {
    let mut pair = Pair::new(Config { max_concurrent_streams: 2, ..Config::default() });
    let first = pair.client.send_request(get("/").as_ref(), true).unwrap();
    pair.client.send_request(get("/").as_ref(), true).unwrap();
    assert_eq!(pair.client.send_request(get("/").as_ref(), true), Err(Refused::Full));
    pair.exchange();
    pair.server.send_response(first, StatusCode::NO_CONTENT, &HeaderMap::new(), true);
    pair.exchange();
    assert!(pair.client.send_request(get("/").as_ref(), true).is_ok());
}

#[test]
fn a_peer_that_has_not_said_how_many_streams_it_takes_takes_any_number() {
    let mut client = Connection::client(Config::default());
    for _ in 0..1_000 {
        assert!(client.send_request(get("/").as_ref(), true).is_ok());
    }
}

#[test]
fn calls_that_are_given_up_after_more_than_a_whole_second_are_no_flood() {
    for (lasts, flood) in [(2_000, false), (1_999, true), (1_000, true)] {
        let mut pair = Pair::new(Config::default());
        let mut millis = u32::MAX - 5_000;
        for _ in 0..1_000 {
            let Ok(id) = pair.client.send_request(get("/").as_ref(), true) else { break };
            pair.exchange();
            millis = millis.wrapping_add(lasts);
            pair.server.set_moment(millis);
            pair.client.reset(id, Reason::CANCEL);
            let mut bytes = drain(&mut pair.client);
            if pair.server.receive(&mut bytes, &mut pair.at_server).is_err() {
                break;
            }
        }
        assert_eq!(pair.server.is_broken(), flood, "after {lasts} ms");
    }
}

#[test]
fn going_away_finishes_what_is_open_and_refuses_what_came_too_late() {
    let mut pair = Pair::new(Config::default());
    let open = pair.client.send_request(get("/").as_ref(), true).unwrap();
    pair.exchange();
    let late = pair.client.send_request(get("/late").as_ref(), true).unwrap();
    pair.server.go_away(Reason::NO_ERROR);
    let mut bytes = drain(&mut pair.server);
    pair.client.receive(&mut bytes, &mut pair.at_client).unwrap();
    assert!(pair.at_client.iter().any(|e| matches!(e, Event::Reset { id, reason: Reason::REFUSED_STREAM } if *id == late)));
    assert_eq!(pair.client.can_open(), Err(Refused::Closing));
    pair.server.send_response(open, StatusCode::OK, &HeaderMap::new(), true);
    pair.exchange();
    assert!(pair.client.is_finished() && pair.server.is_finished());
}

/// Sends raw frames to a server that has been greeted; the reason it died of, if it did.
fn attack(frames: impl FnOnce(&mut BytesMut)) -> Option<Reason> {
    let mut server = Connection::server(Config::default());
    let mut bytes = drain(&mut Connection::client(Config::default()));
    frames(&mut bytes);
    server.receive(&mut bytes, &mut Vec::new()).err().map(|e| e.reason)
}

fn frame(out: &mut BytesMut, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// GET / with an authority.
const BLOCK: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

#[test]
fn floods_end_the_connection() {
    let calm = Some(Reason::ENHANCE_YOUR_CALM);
    let ids = || (1..).step_by(2);
    assert_eq!(attack(|b| (0..1100).for_each(|_| frame(b, 6, 0, 0, &[0; 8]))), calm, "PING");
    assert_eq!(attack(|b| (0..1100).for_each(|_| frame(b, 4, 0, 0, &[]))), calm, "SETTINGS");
    assert_eq!(attack(|b| (0..200).for_each(|_| frame(b, 2, 0, 1, &[0; 5]))), calm, "PRIORITY");
    assert_eq!(attack(|b| (0..200).for_each(|_| frame(b, 8, 0, 0, &[0, 0, 0, 1]))), calm, "WINDOW_UPDATE");
    let rapid = |b: &mut BytesMut| {
        ids().take(1200).for_each(|id| {
            frame(b, 1, 5, id, &BLOCK);
            frame(b, 3, 0, id, &[0, 0, 0, 8]);
        });
    };
    assert_eq!(attack(rapid), calm, "rapid reset");
    let provoked = |b: &mut BytesMut| {
        ids().take(1200).for_each(|id| {
            frame(b, 1, 4, id, &BLOCK);
            frame(b, 8, 0, id, &[0, 0, 0, 0]);
        });
    };
    assert_eq!(attack(provoked), calm, "resets provoked from the server");
    let empty = |b: &mut BytesMut| {
        frame(b, 1, 4, 1, &BLOCK);
        (0..20).for_each(|_| frame(b, 0, 0, 1, &[]));
    };
    assert_eq!(attack(empty), calm, "empty DATA");
    let endless = |b: &mut BytesMut| {
        frame(b, 1, 0, 1, &BLOCK);
        (0..100).for_each(|_| frame(b, 9, 0, 1, &[]));
    };
    assert_eq!(attack(endless), calm, "CONTINUATION");
}

#[test]
fn honest_traffic_is_no_flood() {
    let mut pair = Pair::new(Config::default());
    for _ in 0..5000 {
        let id = pair.client.send_request(get("/").as_ref(), true).unwrap();
        pair.exchange();
        pair.server.send_response(id, StatusCode::OK, &header("server", "x"), false);
        pair.server.send_data(id, &mut Bytes::from_static(&[1; 1000]), true);
        pair.exchange();
        pair.client.release(id, 1000);
        pair.at_client.clear();
        pair.at_server.clear();
    }
}

#[test]
fn breaches_of_the_protocol_are_named() {
    let protocol = Some(Reason::PROTOCOL_ERROR);
    assert_eq!(
        attack(|b| {
            b.clear();
            b.extend_from_slice(b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n")
        }),
        protocol
    );
    assert_eq!(attack(|b| frame(b, 0, 0, 1, b"x")), protocol, "DATA on an idle stream");
    assert_eq!(attack(|b| frame(b, 1, 5, 2, &BLOCK)), protocol, "even stream");
    assert_eq!(attack(|b| frame(b, 5, 4, 1, &[0; 4])), protocol, "push");
    assert_eq!(attack(|b| frame(b, 9, 4, 1, &[])), protocol, "CONTINUATION alone");
    assert_eq!(
        attack(|b| {
            frame(b, 1, 0, 1, &BLOCK);
            frame(b, 6, 0, 0, &[0; 8])
        }),
        protocol,
        "interrupted block"
    );
    assert_eq!(attack(|b| frame(b, 1, 5, 1, &[0xff, 0xff, 0xff, 0x7f])), Some(Reason::COMPRESSION_ERROR));
    assert_eq!(attack(|b| frame(b, 8, 0, 0, &[0x7f, 0xff, 0xff, 0xff])), Some(Reason::FLOW_CONTROL_ERROR));
    assert_eq!(attack(|b| frame(b, 4, 0, 0, &[0; 5])), Some(Reason::FRAME_SIZE_ERROR));
}

#[test]
fn a_malformed_request_costs_its_stream_only() {
    let mut server = Connection::server(Config::default());
    let mut bytes = drain(&mut Connection::client(Config::default()));
    let conflicting_host = [&BLOCK[..], &[0x00, 4], b"host", &[1, b'b']].concat();
    let connection_header = [&BLOCK[..], &[0x00, 10], b"connection", &[1, b'x']].concat();
    let wrong_length = [&BLOCK[..], &[0x00, 14], b"content-length", &[1, b'3']].concat();
    frame(&mut bytes, 1, 5, 1, &conflicting_host);
    frame(&mut bytes, 1, 5, 3, &connection_header);
    frame(&mut bytes, 1, 4, 5, &wrong_length);
    frame(&mut bytes, 0, 1, 5, b"four");
    frame(&mut bytes, 1, 5, 7, &[0x82, 0x86]);
    frame(&mut bytes, 1, 5, 9, &BLOCK);
    let mut events = Vec::new();
    server.receive(&mut bytes, &mut events).unwrap();
    let requests: Vec<u32> = events.iter().filter_map(|e| if let Event::Request { id, .. } = e { Some(*id) } else { None }).collect();
    assert_eq!(requests, [5, 9]);
    assert!(events.iter().any(|e| matches!(e, Event::Reset { id: 5, reason: Reason::PROTOCOL_ERROR })));
    assert_eq!(server.open_streams(), 1);
}

proptest! {
    #[test]
    fn any_bytes_are_survived(garbage in prop::collection::vec(any::<u8>(), 0..600), kinds in prop::collection::vec((0u8..11, any::<u8>(), 0u32..8, prop::collection::vec(any::<u8>(), 0..40)), 0..30)) {
        for mut connection in [Connection::server(Config::default()), Connection::client(Config::default())] {
            let _ = connection.send_request(get("/").as_ref(), false);
            let mut bytes = drain(&mut Connection::client(Config::default()));
            for (kind, flags, id, payload) in &kinds {
                frame(&mut bytes, *kind, *flags, *id, payload);
            }
            bytes.extend_from_slice(&garbage);
            let _ = connection.receive(&mut bytes, &mut Vec::new());
            let _ = drain(&mut connection);
        }
    }
}
