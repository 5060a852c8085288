//! Streams that wait for the connection's window: who is told, in which order, and that nobody is forgotten.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode};
use lateen_http2::shell::{Server, Stream};
use lateen_http2::{Config, Connection, Event, PREFACE, Reason};
use proptest::prelude::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What both windows hold at first.
const FIRST: i64 = 65_535;
const WINDOW_UPDATE: u8 = 8;
/// GET / with an authority.
const BLOCK: [u8; 6] = [0x82, 0x86, 0x84, 0x41, 0x01, b'a'];

fn frame(out: &mut BytesMut, kind: u8, flags: u8, id: u32, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&id.to_be_bytes());
    out.extend_from_slice(payload);
}

/// Preface, SETTINGS and so many requests.
fn requests(streams: u32) -> BytesMut {
    let mut bytes = BytesMut::from(PREFACE);
    frame(&mut bytes, 4, 0, 0, &[]);
    (0..streams).for_each(|n| frame(&mut bytes, 1, 5, 2 * n + 1, &BLOCK));
    bytes
}

/// Writes all there is to write, and counts the bytes of bodies by stream.
fn drain(connection: &mut Connection) -> BTreeMap<u32, i64> {
    let mut bytes = Vec::new();
    while !connection.output().is_empty() {
        let mut slices = [std::io::IoSlice::new(&[]); 8];
        let filled = connection.output().slices(&mut slices);
        slices[..filled].iter().for_each(|s| bytes.extend_from_slice(s));
        let written = slices[..filled].iter().map(|s| s.len()).sum();
        connection.written(written);
    }
    let (mut sums, mut rest) = (BTreeMap::new(), &bytes[..]);
    while let [a, b, c, kind, _, s0, s1, s2, s3, after @ ..] = rest {
        let length = u32::from_be_bytes([0, *a, *b, *c]);
        if *kind == 0 {
            *sums.entry(u32::from_be_bytes([*s0, *s1, *s2, *s3])).or_default() += i64::from(length);
        }
        rest = &after[length as usize..];
    }
    sums
}

/// Streams of a server with something to send, and what both sides know of the windows.
struct Model {
    server: Connection,
    window: i64,
    initial: i64,
    /// Window and bytes left of each stream that is open.
    streams: BTreeMap<u32, (i64, Bytes)>,
    /// Told that they may go on, and not gone on.
    told: Vec<u32>,
}

impl Model {
    fn new(streams: u32, bytes: usize) -> Self {
        let mut server = Connection::server(Config::default());
        server.receive(&mut requests(streams), &mut Vec::new()).unwrap();
        let open = (0..streams).map(|n| (2 * n + 1, (FIRST, Bytes::from(vec![0; bytes])))).collect();
        let mut model = Self { server, window: FIRST, initial: FIRST, streams: open, told: Vec::new() };
        for id in (0..streams).map(|n| 2 * n + 1) {
            model.server.send_response(id, StatusCode::OK, &HeaderMap::new(), false);
        }
        drain(&mut model.server);
        model
    }

    fn receive(&mut self, kind: u8, id: u32, payload: &[u8]) -> usize {
        let (mut bytes, mut events) = (BytesMut::new(), Vec::new());
        frame(&mut bytes, kind, 0, id, payload);
        self.server.receive(&mut bytes, &mut events).unwrap();
        self.note(events)
    }

    fn next_turn(&mut self) -> usize {
        let mut events = Vec::new();
        self.server.next_turn(&mut events);
        self.note(events)
    }

    fn note(&mut self, events: Vec<Event>) -> usize {
        let told: Vec<u32> = events.iter().filter_map(|e| if let Event::Capacity { id } = e { Some(*id) } else { None }).collect();
        self.told.extend(&told);
        told.len()
    }

    fn open_window(&mut self, by: u32) -> usize {
        self.window += i64::from(by);
        self.receive(WINDOW_UPDATE, 0, &by.to_be_bytes())
    }

    /// The stream sends what it may; returns how much that was.
    fn send(&mut self, id: u32) -> i64 {
        let Some((_, data)) = self.streams.get_mut(&id) else { return 0 };
        self.server.send_data(id, data, false);
        let mut all = 0;
        for (id, bytes) in drain(&mut self.server) {
            all += bytes;
            self.window -= bytes;
            let (window, _) = self.streams.get_mut(&id).unwrap();
            *window -= bytes;
            assert!(*window >= 0 && self.window >= 0, "more than the windows allow");
        }
        all
    }

    fn forget(&mut self, id: u32, by_peer: bool) {
        if self.streams.remove(&id).is_none() {
        } else if by_peer {
            self.receive(3, id, &[0, 0, 0, 8]);
        } else {
            self.server.reset(id, Reason::CANCEL);
        }
        drain(&mut self.server);
    }

    /// As the shell does: everyone who was told goes on, and while the connection wants a turn there is one.
    fn settle(&mut self) {
        for turns in 0.. {
            assert!(turns < 1000, "turns without end");
            for id in std::mem::take(&mut self.told) {
                self.send(id);
            }
            if !self.server.owes_turn() && self.told.is_empty() {
                return;
            }
            self.next_turn();
        }
    }
}

/// Fills the connection's window by the first stream's body and lets the others wait for it.
fn crowded(streams: u32, bytes: usize) -> Model {
    let mut model = Model::new(streams, bytes);
    model.streams.get_mut(&1).unwrap().1 = Bytes::from(vec![0; FIRST as usize]);
    model.send(1);
    (1..streams).for_each(|n| assert_eq!(model.send(2 * n + 1), 0));
    model
}

#[test]
fn a_small_update_tells_as_many_as_it_lets_send_in_the_order_they_came() {
    let mut model = crowded(101, 10);
    for n in 0..100 {
        assert_eq!(model.open_window(10), 1);
        let told = std::mem::take(&mut model.told);
        assert_eq!((told[0], model.send(told[0])), (2 * n + 3, 10));
    }
    let mut model = crowded(101, 10);
    assert_eq!(model.open_window(35), 4, "three whole and a part");
    model.settle();
    assert_eq!(model.window, 0);
    assert_eq!(model.streams[&9].1.len(), 5);
    assert_eq!(model.open_window(10), 1);
    assert_eq!(model.told, [11], "who had a part comes after the others");
}

#[test]
fn single_bytes_go_round_all_streams() {
    let mut model = crowded(11, 10);
    for _ in 0..50 {
        assert_eq!(model.open_window(1), 1);
        let id = model.told.pop().unwrap();
        assert_eq!(model.send(id), 1);
    }
    assert!(model.streams.values().skip(1).all(|(_, left)| left.len() == 5));
}

#[test]
fn what_those_who_were_told_do_not_use_goes_to_the_next_with_the_next_turn() {
    let mut model = crowded(6, 10);
    assert_eq!(model.open_window(20), 2);
    assert!(model.server.owes_turn());
    // One is gone, one does nothing; a newcomer may not pass those who wait.
    model.forget(3, true);
    assert_eq!(model.send(1), 0);
    assert_eq!(model.next_turn(), 2);
    assert_eq!(model.told, [3, 5, 7, 9]);
    model.told.clear();
    assert_eq!((model.send(7), model.send(9)), (10, 10));
    assert!(!model.server.owes_turn());
}

proptest! {
    /// Whatever happens, a stream waits only while a window is closed; and when all open, everything is sent.
    #[test]
    fn nobody_waits_for_a_window_that_is_open(ops in prop::collection::vec((0u8..10, 0u32..12, 1u32..3000), 0..150)) {
        let mut model = Model::new(12, 20_000);
        for (op, stream, amount) in ops {
            let id = 2 * stream + 1;
            match op {
                0..3 => _ = model.send(id),
                3..5 => _ = model.open_window(amount),
                5 => {
                    if let Some((window, _)) = model.streams.get_mut(&id) {
                        *window += i64::from(amount);
                        model.receive(WINDOW_UPDATE, id, &amount.to_be_bytes());
                    }
                }
                6 if stream < 2 => model.forget(id, amount % 2 == 0),
                7 => {
                    let initial = i64::from(amount) * 8;
                    let change = initial - model.initial;
                    model.initial = initial;
                    model.streams.values_mut().for_each(|(window, _)| *window += change);
                    model.receive(4, 0, &[&[0, 4][..], &(initial as u32).to_be_bytes()].concat());
                    drain(&mut model.server);
                }
                8 => _ = model.next_turn(),
                // Some of those who were told go on, others never do until they want to by themselves.
                9 => {
                    for id in std::mem::take(&mut model.told).into_iter().step_by(2) {
                        model.send(id);
                    }
                }
                _ => model.settle(),
            }
        }
        let late: Vec<u32> = model.streams.keys().copied().collect();
        late.iter().for_each(|id| _ = model.send(*id));
        model.settle();
        for (id, (window, left)) in &model.streams {
            prop_assert!(left.is_empty() || *window <= 0 || model.window == 0, "{id} waits with {window} and {}", model.window);
        }
        for id in &late {
            if let Some((window, _)) = model.streams.get_mut(id) {
                *window += 1 << 20;
                model.receive(WINDOW_UPDATE, *id, &(1u32 << 20).to_be_bytes());
            }
        }
        model.settle();
        while model.streams.values().any(|(_, left)| !left.is_empty()) {
            prop_assert_eq!(model.window, 0, "somebody waits while the window is open");
            model.open_window(7000);
            model.settle();
        }
    }
}

struct Counter(AtomicUsize);

impl Wake for Counter {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Relaxed);
    }
}

fn accept(server: &mut Server<tokio::io::DuplexStream>) -> Vec<Stream> {
    let cx = &mut Context::from_waker(Waker::noop());
    let mut streams = Vec::new();
    while let Poll::Ready(Some(accepted)) = server.poll_accept(cx) {
        streams.push(accepted.stream);
    }
    streams
}

#[tokio::test]
async fn an_update_by_one_byte_wakes_one_task() {
    let (mut peer, ours) = tokio::io::duplex(1 << 18);
    let mut server = Server::new(ours, Config::default(), BytesMut::new());
    peer.write_all(&requests(200)).await.unwrap();
    let mut streams = accept(&mut server);
    assert_eq!(streams.len(), 200);
    let counters: Vec<_> = streams.iter().map(|_| Arc::new(Counter(AtomicUsize::new(0)))).collect();
    let wakes = || counters.iter().map(|c| c.0.load(Relaxed)).sum::<usize>();
    let wakers: Vec<Waker> = counters.iter().map(|c| Waker::from(Arc::clone(c))).collect();
    for (stream, waker) in streams.iter_mut().zip(&wakers) {
        stream.send_response(StatusCode::OK, &HeaderMap::new(), false);
        stream.send_data(Bytes::from(vec![0; 1000]));
        let _ = stream.poll_room(&mut Context::from_waker(waker));
    }
    assert!(accept(&mut server).is_empty());
    // All that the window holds is written; the rest of the streams wait.
    assert!(peer.read_buf(&mut BytesMut::with_capacity(1 << 18)).await.unwrap() > FIRST as usize);
    assert!(accept(&mut server).is_empty());
    assert_eq!(wakes(), 0);
    for update in 1..=20 {
        let mut bytes = BytesMut::new();
        frame(&mut bytes, WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]);
        peer.write_all(&bytes).await.unwrap();
        assert!(accept(&mut server).is_empty());
        assert_eq!(wakes(), update);
        for (number, counter) in counters.iter().enumerate() {
            if counter.0.load(Relaxed) > 0 {
                let _ = streams[number].poll_room(&mut Context::from_waker(&wakers[number]));
            }
        }
        assert!(accept(&mut server).is_empty());
    }
}

#[tokio::test]
async fn what_streams_say_while_their_task_polls_them_wakes_nobody_and_is_written() {
    let (mut peer, ours) = tokio::io::duplex(1 << 16);
    let mut server = Server::new(ours, Config::default(), BytesMut::new());
    peer.write_all(&requests(2)).await.unwrap();
    let counter = Arc::new(Counter(AtomicUsize::new(0)));
    let waker = Waker::from(Arc::clone(&counter));
    let cx = &mut Context::from_waker(&waker);
    let mut streams = Vec::new();
    while let Poll::Ready(Some(accepted)) = server.poll_accept(cx) {
        streams.push(accepted.stream);
    }
    peer.read_buf(&mut BytesMut::with_capacity(1 << 16)).await.unwrap();
    counter.0.store(0, Relaxed);
    server.expect_output();
    streams[0].send_response(StatusCode::OK, &HeaderMap::new(), true);
    assert_eq!(counter.0.load(Relaxed), 0);
    assert!(server.poll_written(cx).is_pending());
    let mut answer = BytesMut::with_capacity(1 << 16);
    peer.read_buf(&mut answer).await.unwrap();
    assert_eq!(answer[..], [0, 0, 1, 1, 5, 0, 0, 0, 1, 0x88]);
    streams[1].send_response(StatusCode::OK, &HeaderMap::new(), true);
    assert_eq!(counter.0.load(Relaxed), 1, "whoever speaks at another time wakes the task");
}
