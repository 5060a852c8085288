//! The readers of bytes from outside, as functions of bytes alone: for the fuzzer, and built for it only.
use lateen_snapshot::http::NameCase;
use std::task::{Context, Poll, Waker};

use tokio::net::UnixStream;

use crate::http::h1::{H1Client, H1Server, HeadLimits};
use crate::http::message::{Frame, Request};
use crate::io::{Io, Raw, Socket, Wire};
pub use crate::listener::verdict::{hello, http_version, proxy_header};

/// A wire whose bytes come from the caller; its socket stays silent.
fn wire() -> (Wire, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (Wire::new(Io::Plain(Socket::new(Raw::Unix(ours)))), theirs)
}

fn within<T>(run: impl FnOnce() -> T) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    }
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let made = run();
            // The sockets of the run are only let go of when their driver has had its turn.
            tokio::task::yield_now().await;
            made
        })
    })
}

/// What a server makes of the bytes, when they come in pieces of this size: requests with their bodies, then the end.
pub fn requests(data: &[u8], piece: usize) -> Vec<String> {
    within(|| {
        let (wire, _theirs) = wire();
        let mut server = H1Server::new(
            wire,
            HeadLimits {
                bytes: 64 * 1024,
                count: 20,
                accept_http_10: true,
                allow_chunked_length: true,
                names: NameCase::Kept { words: true, reason: true },
            },
            false,
        );
        let (mut seen, mut body) = (Vec::new(), None::<Vec<u8>>);
        let mut parts = data.chunks(piece);
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            let pending = match &mut body {
                None => match server.poll_request(cx) {
                    Poll::Ready(Ok(request)) => {
                        seen.push(told(&request));
                        body = Some(Vec::new());
                        false
                    }
                    Poll::Ready(Err(end)) => {
                        seen.push(format!("{end:?}"));
                        return seen;
                    }
                    Poll::Pending => true,
                },
                Some(bytes) => match server.poll_frame(cx) {
                    Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                        bytes.extend_from_slice(&data);
                        false
                    }
                    Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                        seen.push(format!("{trailers:?}"));
                        false
                    }
                    Poll::Ready(Some(Err(error))) => {
                        seen.push(format!("{} {error:?}", bytes.escape_ascii()));
                        return seen;
                    }
                    Poll::Ready(None) => {
                        seen.push(bytes.escape_ascii().to_string());
                        body = None;
                        if !server.next() {
                            return seen;
                        }
                        false
                    }
                    Poll::Pending => true,
                },
            };
            if pending {
                match parts.next() {
                    Some(part) => server.wire.input.extend_from_slice(part),
                    None if server.wire.eof => return seen,
                    None => server.wire.eof = true,
                }
            }
        }
    })
}

fn told(request: &Request) -> String {
    format!(
        "{} {} {} {} {:?} {:?} {:?} {:?}",
        request.method,
        request.scheme,
        &*request.authority,
        &*request.path,
        request.headers,
        request.version,
        request.length,
        request.upgrade.as_deref()
    )
}

/// What a client makes of the bytes: heads and body of one response, to a HEAD request or another.
pub fn responses(data: &[u8], piece: usize, head: bool) -> Vec<String> {
    within(|| {
        let (wire, _theirs) = wire();
        let names = NameCase::Kept { words: true, reason: true };
        let mut client =
            H1Client::new(wire, HeadLimits { bytes: 64 * 1024, count: 200, accept_http_10: true, allow_chunked_length: false, names });
        client.expect_response(head);
        let (mut seen, mut body) = (Vec::new(), None::<Vec<u8>>);
        let mut parts = data.chunks(piece);
        let cx = &mut Context::from_waker(Waker::noop());
        loop {
            let pending = match &mut body {
                None => match client.poll_response(cx) {
                    Poll::Ready(Ok(response)) => {
                        seen.push(format!("{} {:?} {:?}", response.status, response.headers, response.length));
                        let last = !response.status.is_informational() || response.upgrade.is_some();
                        body = last.then(Vec::new);
                        false
                    }
                    Poll::Ready(Err(error)) => {
                        seen.push(format!("{error:?}"));
                        return seen;
                    }
                    Poll::Pending => true,
                },
                Some(bytes) => match client.poll_frame(cx) {
                    Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                        bytes.extend_from_slice(&data);
                        false
                    }
                    Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                        seen.push(format!("{trailers:?}"));
                        false
                    }
                    Poll::Ready(end) => {
                        seen.push(format!("{} {end:?}", bytes.escape_ascii()));
                        return seen;
                    }
                    Poll::Pending => true,
                },
            };
            if pending {
                match parts.next() {
                    Some(part) => client.wire.input.extend_from_slice(part),
                    None if client.wire.eof => return seen,
                    None => client.wire.eof = true,
                }
            }
        }
    })
}
