//! HTTP/2 frames through the real connection, both sides: what is held and said stays in proportion to what came.
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use lateen_http2::{Config, Connection, Event, PREFACE, RequestHead};

pub(crate) fn run(data: &[u8]) {
    side(Connection::server(config()), PREFACE, data, data.len().max(1));
    side(Connection::server(config()), PREFACE, data, 5);
    let mut client = Connection::client(config());
    let head = RequestHead { method: Method::GET, scheme: "http".into(), authority: "a".into(), path: "/".into(), ..Default::default() };
    for end in [true, false, true] {
        let _ = client.send_request(head.as_ref(), end);
    }
    side(client, b"", data, data.len().max(1));
}

fn config() -> Config {
    Config { max_concurrent_streams: 8, ..Config::default() }
}

fn side(mut connection: Connection, first: &[u8], data: &[u8], cut: usize) {
    let mut input = BytesMut::from(first);
    let mut events = Vec::new();
    for part in data.chunks(cut) {
        input.extend_from_slice(part);
        let alive = connection.receive(&mut input, &mut events).is_ok();
        for event in events.drain(..) {
            react(&mut connection, event);
        }
        assert!(connection.open_streams() <= 9, "more streams than allowed");
        // Every frame costs its sender nine bytes at least; no answer may cost us a hundred times that.
        assert!(connection.output().len() <= 4096 + 100 * (data.len() + 100), "{} bytes to say", connection.output().len());
        let length = connection.output().len();
        connection.written(length);
        if !alive {
            return;
        }
    }
}

/// What a server and a client would do.
fn react(connection: &mut Connection, event: Event) {
    match event {
        Event::Request { id, end, .. } => {
            connection.send_response(id, StatusCode::OK, &HeaderMap::new(), false);
            connection.send_data(id, &mut Bytes::from_static(b"hello"), end);
        }
        Event::Data { id, data, .. } => connection.release(id, data.len()),
        Event::Capacity { id } => {
            connection.send_data(id, &mut Bytes::from_static(b"more"), false);
        }
        Event::HeadersTooLarge { id, .. } => {
            connection.send_response(id, StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &HeaderMap::new(), true)
        }
        _ => {}
    }
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Kind, flags, stream, payload.
type Frame = (u8, u8, u32, &'static [u8]);

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    const REQUEST: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];
    const RESPONSE: [u8; 4] = [0x88, 0x5c, 0x01, b'5'];
    let frames: [&[Frame]; 6] = [
        &[(4, 0, 0, &[]), (1, 5, 1, &REQUEST), (1, 4, 3, &REQUEST), (0, 1, 3, b"body")],
        &[(4, 0, 0, &[0, 4, 0, 0, 0, 0]), (1, 0, 1, &REQUEST), (9, 4, 1, &[0x40, 1, b'x', 1, b'y']), (8, 0, 1, &[0, 0, 1, 0])],
        &[(4, 0, 0, &[0, 1, 0, 0, 0, 0, 0, 5, 0, 0, 0x40, 0]), (6, 0, 0, &[0; 8]), (2, 0, 1, &[0; 5]), (3, 0, 1, &[0, 0, 0, 8])],
        &[(4, 0, 0, &[]), (1, 4, 1, &RESPONSE), (0, 1, 1, b"hello"), (7, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0])],
        &[(4, 0, 0, &[]), (1, 0x2d, 1, &[2, 0, 0, 0, 0, 9, 0x82, 0x86, 0x84, 0, 0]), (0, 9, 3, &[3, b'x', 0, 0, 0])],
        &[(4, 0, 0, &[]), (4, 1, 0, &[]), (1, 5, 1, &[0x82, 0x87, 0x85, 0xbe, 0x3f, 0x01]), (0x20, 0, 0, b"unknown")],
    ];
    frames
        .map(|list| {
            let mut out = Vec::new();
            list.iter().for_each(|(kind, flags, id, payload)| frame(&mut out, *kind, *flags, *id, payload));
            out
        })
        .to_vec()
}
