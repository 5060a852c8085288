//! The shells of both sides over an in-memory pipe.
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode};
use lateen_http2::shell::{Accepted, Failure, Piece, Sender, Server, Stream, connect};
use lateen_http2::{Config, Reason, RequestHead};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::{LocalSet, spawn_local};

fn post() -> RequestHead {
    RequestHead {
        method: Method::POST,
        scheme: Bytes::from_static(b"http"),
        authority: Bytes::from_static(b"a"),
        path: Bytes::from_static(b"/"),
        ..RequestHead::default()
    }
}

/// Sends back what comes in, as it comes in.
async fn echo(accepted: Accepted) {
    let mut stream = accepted.stream;
    stream.send_response(StatusCode::OK, &HeaderMap::new(), false);
    while let Some(Ok(Piece::Data(data))) = poll_fn(|cx| stream.poll_piece(cx)).await {
        stream.send_data(data);
        if poll_fn(|cx| stream.poll_room(cx)).await.is_err() {
            return;
        }
    }
    stream.send_end(Some(Box::new(HeaderMap::from_iter([("x-end".parse().unwrap(), "yes".parse().unwrap())]))));
    let _ = poll_fn(|cx| stream.poll_room(cx)).await;
}

async fn serve(io: impl AsyncRead + AsyncWrite + Unpin) {
    let mut server = Server::new(io, Config::default(), BytesMut::new());
    while let Some(accepted) = poll_fn(|cx| server.poll_accept(cx)).await {
        spawn_local(echo(accepted));
    }
}

fn pair() -> Sender {
    let (a, b) = tokio::io::duplex(10_000);
    spawn_local(serve(b));
    let (sender, driver) = connect(a, Config { stream_window: 70_000, connection_window: 200_000, ..Config::default() });
    spawn_local(driver);
    sender
}

/// Reads the whole answer.
async fn collect(stream: &mut Stream) -> Result<(usize, bool), Failure> {
    let head = poll_fn(|cx| stream.poll_response(cx)).await?;
    assert_eq!(head.status, 200);
    let (mut size, mut trailers) = (0, false);
    while let Some(piece) = poll_fn(|cx| stream.poll_piece(cx)).await {
        match piece? {
            Piece::Data(data) => size += data.len(),
            Piece::Trailers(t) => trailers = t["x-end"] == "yes",
        }
    }
    Ok((size, trailers))
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, async {
        tokio::time::timeout(std::time::Duration::from_secs(20), test).await.expect("the exchange hangs");
    });
}

#[test]
fn bodies_larger_than_every_window_pass_both_ways_at_once_on_many_streams() {
    run(async {
        let sender = pair();
        let one = |n: usize| {
            let sender = sender.clone();
            async move {
                let stream = std::rc::Rc::new(std::cell::RefCell::new(sender.send(post().as_ref(), false).unwrap()));
                let writer = std::rc::Rc::clone(&stream);
                spawn_local(async move {
                    for _ in 0..n {
                        writer.borrow_mut().send_data(Bytes::from(vec![1; 50_000]));
                        poll_fn(|cx| writer.borrow_mut().poll_room(cx)).await.unwrap();
                    }
                    writer.borrow_mut().send_end(None);
                });
                let head = poll_fn(|cx| stream.borrow_mut().poll_response(cx)).await.unwrap();
                assert_eq!(head.status, 200);
                let mut size = 0;
                while let Some(piece) = poll_fn(|cx| stream.borrow_mut().poll_piece(cx)).await {
                    size += if let Piece::Data(data) = piece.unwrap() { data.len() } else { 0 };
                }
                assert_eq!(size, n * 50_000);
            }
        };
        let all: Vec<_> = (1..20).map(|n| spawn_local(one(n))).collect();
        for task in all {
            task.await.unwrap();
        }
        assert_eq!(sender.open_streams(), 0);
    });
}

/// Heads ask for no room: so many at once are more than a connection wants to have waiting while it reads.
#[test]
fn what_arrives_while_too_much_waits_to_be_written_is_read_once_it_is_written() {
    run(async {
        let (a, mut b) = tokio::io::duplex(8 << 20);
        let (sender, driver) = connect(a, Config::default());
        spawn_local(driver);
        tokio::task::yield_now().await;
        let value = http::HeaderValue::from_bytes(&vec![b'x'; 20_000]).unwrap();
        let head = || RequestHead { headers: HeaderMap::from_iter([("x-token".parse().unwrap(), value.clone())]), ..post() };
        let streams: Vec<Stream> = (0..100).map(|_| sender.send(head().as_ref(), true).unwrap()).collect();
        // SETTINGS_ENABLE_CONNECT_PROTOCOL = 1, and nothing after it.
        tokio::io::AsyncWriteExt::write_all(&mut b, &[0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0, 1]).await.unwrap();
        assert!(poll_fn(|cx| sender.poll_extended_connect(cx)).await);
        drop(streams);
    });
}

#[test]
fn who_waits_for_room_is_remembered_once_however_often_it_asks() {
    run(async {
        let (a, b) = tokio::io::duplex(1000);
        let (sender, driver) = connect(a, Config::default());
        let mut driver = Box::pin(driver);
        let mut stream = sender.send(post().as_ref(), false).unwrap();
        for _ in 0..1000 {
            stream.send_data(Bytes::from(vec![1; 60]));
        }
        let value = http::HeaderValue::from_bytes(&vec![b'x'; 20_000]).unwrap();
        let head = RequestHead { headers: HeaderMap::from_iter([("x-token".parse().unwrap(), value)]), ..post() };
        let streams: Vec<Stream> = (0..20).map(|_| sender.send(head.as_ref(), true).unwrap()).collect();
        let mut cx = Context::from_waker(std::task::Waker::noop());
        for _ in 0..1000 {
            assert!(stream.poll_room(&mut cx).is_pending());
            let _ = Future::poll(driver.as_mut(), &mut cx);
        }
        assert_eq!(sender.waiting_for_room(), 1);
        drop((streams, b));
    });
}

#[test]
fn a_dropped_handle_resets_its_stream_and_no_other() {
    run(async {
        let sender = pair();
        let mut kept = sender.send(post().as_ref(), false).unwrap();
        let dropped = sender.send(post().as_ref(), false).unwrap();
        drop(dropped);
        kept.send_data(Bytes::from_static(b"hello"));
        kept.send_end(None);
        assert_eq!(collect(&mut kept).await, Ok((5, true)));
        drop(kept);
        assert_eq!(sender.open_streams(), 0);
    });
}

#[test]
fn when_the_connection_ends_waiting_streams_fail_and_new_ones_are_refused() {
    run(async {
        let (a, b) = tokio::io::duplex(10_000);
        let (sender, driver) = connect(a, Config::default());
        spawn_local(driver);
        let mut stream = sender.send(post().as_ref(), true).unwrap();
        drop(b);
        assert_eq!(poll_fn(|cx| stream.poll_response(cx)).await.unwrap_err(), Failure::Closed);
        assert!(sender.send(post().as_ref(), true).is_err() && sender.is_closed());
    });
}

#[test]
fn a_request_with_too_large_a_head_leaves_nothing_behind_once_it_is_answered() {
    run(async {
        let (a, b) = tokio::io::duplex(10_000);
        let (sender, driver) = connect(a, Config::default());
        spawn_local(driver);
        let mut server = Server::new(b, Config { max_header_bytes: 100, ..Config::default() }, BytesMut::new());
        let mut head = post();
        head.headers.insert("x-large", "x".repeat(200).parse().unwrap());
        let mut stream = sender.send(head.as_ref(), false).unwrap();
        let mut accepted = poll_fn(|cx| server.poll_accept(cx)).await.unwrap();
        assert!(accepted.head.is_none() && !accepted.end);
        accepted.stream.send_response(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, &HeaderMap::new(), true);
        drop(accepted);
        assert_eq!(server.open_streams(), 0);
        server.go_away(Reason::NO_ERROR);
        assert!(poll_fn(|cx| server.poll_accept(cx)).await.is_none());
        assert_eq!(poll_fn(|cx| stream.poll_response(cx)).await.unwrap().status, 431);
    });
}

#[test]
fn a_server_that_goes_away_lets_open_streams_finish() {
    run(async {
        let (a, b) = tokio::io::duplex(10_000);
        let (sender, driver) = connect(a, Config::default());
        let client = spawn_local(driver);
        let mut server = Server::new(b, Config::default(), BytesMut::new());
        let mut stream = sender.send(post().as_ref(), false).unwrap();
        let accepted = poll_fn(|cx| server.poll_accept(cx)).await.unwrap();
        server.go_away(Reason::NO_ERROR);
        spawn_local(echo(accepted));
        let served = spawn_local(async move { poll_fn(|cx| server.poll_accept(cx)).await.is_none() });
        tokio::task::yield_now().await;
        stream.send_data(Bytes::from_static(b"last"));
        stream.send_end(None);
        assert_eq!(collect(&mut stream).await, Ok((4, true)));
        drop(stream);
        assert!(served.await.unwrap(), "the server ends when its last stream has");
        client.await.unwrap();
    });
}

/// As TLS does: takes all that is written into a buffer of its own, and sends it on when it is flushed, which it cannot at once.
struct Holding {
    io: tokio::io::DuplexStream,
    held: Vec<u8>,
    /// Flushes to come that find no room.
    full: usize,
}

impl AsyncRead for Holding {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Holding {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        self.held.extend_from_slice(data);
        self.full = 2;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.full > 0 {
            self.full -= 1;
            let waker = cx.waker().clone();
            spawn_local(async move {
                tokio::task::yield_now().await;
                waker.wake();
            });
            return Poll::Pending;
        }
        let Self { io, held, .. } = &mut *self;
        while !held.is_empty() {
            let written = std::task::ready!(Pin::new(&mut *io).poll_write(cx, held))?;
            held.drain(..written);
        }
        Pin::new(io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[test]
fn what_the_byte_stream_could_not_send_at_once_is_sent_later_although_nobody_says_more() {
    run(async {
        let (a, b) = tokio::io::duplex(100_000);
        spawn_local(serve(Holding { io: b, held: Vec::new(), full: 0 }));
        let (sender, driver) = connect(a, Config::default());
        spawn_local(driver);
        let mut stream = sender.send(post().as_ref(), false).unwrap();
        stream.send_data(Bytes::from_static(b"hello"));
        stream.send_end(None);
        assert_eq!(collect(&mut stream).await.unwrap(), (5, true));
    });
}
