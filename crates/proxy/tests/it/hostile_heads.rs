//! Heads without end: they are answered or their connection ends, after no more than the limit has been read of them.
use std::io::{Read, Write};
use std::time::Duration;

use crate::support::*;

/// What a caller would send if it were let, and what the kernel may hold of it beside what was read.
const ON_OFFER: usize = 64 << 20;
const IN_BUFFERS: usize = 24 << 20;

/// Sends `first`, and then `again` until nobody takes it; back comes what was answered, and how much was taken.
fn pour(proxy: &Proxy, first: &[u8], again: &[u8]) -> (Vec<u8>, usize) {
    let mut stream = proxy.connect();
    let mut reading = stream.try_clone().unwrap();
    let reader = std::thread::spawn(move || {
        let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
        while let Ok(n @ 1..) = reading.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..n]);
        }
        answer
    });
    stream.set_write_timeout(Some(Duration::from_secs(2))).unwrap();
    let (mut taken, mut next) = (0, first);
    while taken < ON_OFFER && stream.write_all(next).is_ok() {
        taken += next.len();
        next = again;
    }
    (reader.join().unwrap(), taken)
}

#[test]
fn of_an_http1_head_no_more_is_read_than_it_may_have() {
    let upstream = Upstream::ok("x");
    // Lines, and one name, value or target without an end.
    for again in [b"x: y\r\n".repeat(1000), vec![b'a'; 8192]] {
        for first in ["GET / HTTP/1.1\r\nhost: a\r\n", "GET / HTTP/1.1\r\nhost: a\r\nx-b: ", "GET / HTTP/1.1\r\nhost: a\r\nx-", "GET /"] {
            // What still comes is thrown away for a while, so that the answer arrives; else it is not read at all.
            for waits in [true, false] {
                let mut config = Config::to(&[upstream.port()]);
                config.hcm = format!("delayed_close_timeout: {}", if waits { "1s" } else { "0s" });
                let proxy = config.start();
                let (answer, taken) = pour(&proxy, first.as_bytes(), &again);
                let answer = String::from_utf8_lossy(&answer).into_owned();
                // A line that ends within what should be a name or a target is no request at all.
                let refused = if again.contains(&b'\n') { ["HTTP/1.1 431 ", "HTTP/1.1 400 "] } else { ["HTTP/1.1 431 "; 2] };
                let lost = !waits && answer.is_empty();
                assert!(lost || refused.iter().any(|r| answer.starts_with(r)), "{first:?}: {answer:?}");
                assert!(waits || taken < IN_BUFFERS, "{first:?}: {taken} bytes were taken");
                assert_eq!(proxy.get("/").status, 200);
            }
        }
    }
    let ours = |request: &String| request.starts_with("GET / HTTP/1.1\r\nhost: a\r\nx-forwarded-proto");
    assert!(upstream.seen().iter().all(ours), "{:?}", upstream.seen());
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The kinds of the frames that came.
fn kinds(mut bytes: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [a, b, c, kind, ..] = *bytes {
        kinds.push(kind);
        let length = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
        bytes = bytes.get(9 + length..).unwrap_or_default();
    }
    kinds
}

#[test]
fn of_an_http2_head_no_more_is_read_than_it_may_have() {
    let upstream = Upstream::ok("x");
    let preface = [b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".as_slice(), &frame(4, 0, 0, &[])].concat();
    // GET http /, authority `a`; and a header that the table keeps, with a value of 100 bytes.
    let begin = [&[0x82, 0x86, 0x84, 0x41, 0x01, b'a', 0x40, 1, b'x', 100][..], &[b'c'; 100]].concat();
    // `y: zzz…` as a literal that no table keeps.
    let literal = [&[0x00, 1, b'y', 100][..], &[b'z'; 100]].concat();
    for (what, again) in [
        ("pieces of literals", frame(9, 0, 1, &literal.repeat(150))),
        ("small pieces", frame(9, 0, 1, &literal).repeat(10)),
        ("empty pieces", frame(9, 0, 1, &[]).repeat(1000)),
        // A byte stands for 100.
        ("repetitions", frame(9, 0, 1, &[0xbe; 16_000])),
    ] {
        // As with HTTP/1: either what still comes is thrown away for a while, or it is not read.
        for waits in [true, false] {
            let mut config = Config::to(&[upstream.port()]);
            config.hcm = format!("delayed_close_timeout: {}", if waits { "1s" } else { "0s" });
            let proxy = config.start();
            let (answer, taken) = pour(&proxy, &[&preface[..], &frame(1, 1, 1, &begin)].concat(), &again);
            // A GOAWAY has the last words: eight bytes, and a reason that may be longer.
            assert!(!waits || kinds(&answer).contains(&7), "{what}: {answer:?}");
            assert!(waits || taken < IN_BUFFERS, "{what}: {taken} bytes were taken");
            assert_eq!(proxy.get("/").status, 200, "{what}");
        }
    }
    assert!(upstream.seen().iter().all(|r| !r.contains("zzz")), "{:?}", upstream.seen());
}
