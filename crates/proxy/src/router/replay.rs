//! The request's body on its way up: pulled from the caller once, kept as long as it may have to be sent again.
use std::cell::Cell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;

use super::mirror::Mirrors;
use crate::filter::http::body::{Caller, Halt, small};
use crate::filter::http::grpc_stats::Messages;
use crate::http::Info;
use crate::http::message::Frame;
use crate::http::stream::Upstream;

/// How much is pulled of a body that cannot go up yet. A request's time begins when it is all here, whether or not the upstream
/// takes it (Envoy holds as much as its buffer limits let it).
const MOST_AHEAD: usize = 256 * 1024;

/// So many times as much as one request of a connection may hold, all of them together do.
const REQUESTS_AHEAD: usize = 16;

/// What the bodies of one connection's requests hold that cannot go up yet.
pub(super) struct Ahead {
    all: Rc<Cell<usize>>,
    own: usize,
    most: usize,
}

impl Ahead {
    /// `limit` is that of the listener.
    pub(super) fn new(all: &Rc<Cell<usize>>, limit: usize) -> Self {
        Self { all: Rc::clone(all), own: 0, most: MOST_AHEAD.min(limit) }
    }

    fn set(&mut self, bytes: usize) {
        self.all.set((self.all.get() + bytes).saturating_sub(self.own));
        self.own = bytes;
    }

    fn has_room(&self) -> bool {
        self.own < self.most && self.all.get() < self.most.saturating_mul(REQUESTS_AHEAD)
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.set(0);
    }
}

/// The body. Memory is bounded by the cap and [`Ahead`]: a body that outgrows the cap can no longer be sent again once some
/// of it was sent.
pub(super) struct Body {
    /// What may have to be sent again, and what was not sent yet.
    kept: VecDeque<Bytes>,
    kept_bytes: usize,
    /// How many of them were not sent in this try.
    ahead: Ahead,
    cap: usize,
    /// Sent pieces are kept.
    keeps: bool,
    /// A sent piece was not kept.
    dropped: bool,
    /// Whether it is pulled before it can go up.
    pulls_ahead: bool,
    /// The next kept piece to send in this try.
    next: usize,
    trailers: Option<Box<HeaderMap>>,
    /// Everything has come from the caller.
    complete: bool,
    /// Everything has been handed to the upstream of this try.
    sent: bool,
    /// The stream stays open for an upgrade: not even an empty body is ended.
    upgrade: bool,
    /// Writing failed; the response, if there is one, tells why.
    broken: bool,
    pub(super) received: u64,
    /// Counts messages, where somebody wants to know.
    pub(super) messages: Option<Messages>,
    pub(super) mirrors: Mirrors,
}

/// How far a try has come with sending the body.
#[derive(Clone, Copy, Debug)]
pub(super) struct Progress {
    next: usize,
    sent: bool,
}

/// All of a body.
#[derive(Default)]
pub(crate) struct Kept {
    pieces: VecDeque<Bytes>,
    trailers: Option<Box<HeaderMap>>,
}

impl Kept {
    pub(crate) fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.pieces.into_iter().map(Frame::Data).chain(self.trailers.map(Frame::Trailers))
    }
}

impl Body {
    pub(super) fn new(has_body: bool, upgrade: bool, cap: usize, ahead: Ahead, mirrors: Mirrors) -> Self {
        Self {
            kept: VecDeque::new(),
            kept_bytes: 0,
            ahead,
            cap,
            keeps: cap > 0,
            dropped: false,
            // What follows a switch of protocols is held back by who takes it, and so is what stands before.
            pulls_ahead: !upgrade,
            next: 0,
            trailers: None,
            complete: !has_body,
            sent: upgrade && !has_body,
            upgrade: upgrade && !has_body,
            broken: false,
            received: 0,
            messages: None,
            mirrors,
        }
    }

    /// What is to be sent once more, to wherever a redirect leads.
    pub(super) fn take(&mut self) -> Kept {
        Kept { pieces: std::mem::take(&mut self.kept), trailers: self.trailers.take() }
    }

    /// Counts the messages of a gRPC call from here on.
    pub(super) fn count_messages(&mut self) {
        let messages = self.messages.insert(Messages::default());
        self.kept.iter().for_each(|piece| messages.push(piece));
    }

    /// Whether a new try could send everything that was sent so far.
    pub(super) fn repeatable(&self) -> bool {
        self.keeps || !self.dropped
    }

    pub(super) fn complete(&self) -> bool {
        self.complete
    }

    pub(super) fn sent(&self) -> bool {
        self.sent
    }

    /// Writing failed: the upstream takes no more.
    pub(super) fn broken(&self) -> bool {
        self.broken
    }

    /// For raw bytes after a switch of protocols.
    pub(super) fn start_raw(&mut self) {
        self.forget();
        self.complete = false;
        self.sent = false;
    }

    /// How far this try has come, for when it goes on beside the next; `None` for what the next could not send again.
    pub(super) fn progress(&self) -> Option<Progress> {
        (self.complete && (self.sent || self.keeps)).then_some(Progress { next: self.next, sent: self.sent })
    }

    /// Goes on where a slower try stands.
    pub(super) fn resume(&mut self, progress: Progress) {
        Progress { next: self.next, sent: self.sent } = progress;
        self.ahead.set(self.kept.iter().skip(self.next).map(Bytes::len).sum());
    }

    /// Sends what a slower try has not sent yet. `false` when its connection takes no more.
    pub(super) fn send_rest(&self, progress: &mut Progress, cx: &mut Context<'_>, up: &mut Upstream) -> bool {
        while !progress.sent {
            match up.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return false,
                Poll::Pending => break,
            }
            match self.kept.get(progress.next) {
                Some(piece) => up.send_data(piece.clone()),
                None => up.send_end(self.trailers.clone()),
            }
            progress.sent = progress.next >= self.kept.len();
            progress.next += 1;
        }
        !matches!(up.poll_flush(cx), Poll::Ready(Err(_)))
    }

    /// Starts over for the next try.
    pub(super) fn rewind(&mut self) {
        self.next = 0;
        self.ahead.set(self.kept_bytes);
        self.sent = self.upgrade;
        self.broken = false;
    }

    /// Nothing will be sent again: the memory may go.
    pub(super) fn forget(&mut self) {
        self.keeps = false;
        self.drop_sent();
    }

    fn drop_sent(&mut self) {
        self.dropped |= self.next > 0;
        self.kept.drain(..self.next.min(self.kept.len()));
        self.next = 0;
        self.kept_bytes = self.ahead.own;
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// Moves what can be moved. An error is the caller's, or a filter's.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>, up: &mut Upstream) -> Result<bool, Halt> {
        let mut moved = false;
        while !self.sent && !self.broken {
            match up.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => {
                    self.broken = true;
                    break;
                }
                Poll::Pending => {
                    moved |= self.pull_ahead(cx, info, caller)?;
                    break;
                }
            }
            if let Some(piece) = self.next_kept() {
                up.send_data(piece);
                moved = true;
                continue;
            }
            if self.complete {
                self.sent = true;
                up.send_end(self.trailers.clone());
                break;
            }
            match self.pull(cx, info, caller)? {
                Pulled::Data(data) => {
                    moved = true;
                    self.keep(&data);
                    up.send_data(data);
                }
                Pulled::End => {}
                Pulled::Nothing => break,
            }
        }
        if !self.broken && matches!(up.poll_flush(cx), Poll::Ready(Err(_))) {
            self.broken = true;
        }
        Ok(moved)
    }

    /// Takes what has come of a body that cannot go up yet; says whether there was any. An error is the caller's, or a filter's.
    pub(super) fn pull_ahead(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Result<bool, Halt> {
        let mut moved = false;
        while self.pulls_ahead && !self.complete && self.ahead.has_room() {
            match self.pull(cx, info, caller)? {
                Pulled::Data(data) => {
                    moved = true;
                    self.hold(data);
                }
                Pulled::End => moved = true,
                Pulled::Nothing => break,
            }
        }
        Ok(moved)
    }

    /// The next piece from the caller.
    fn pull(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Result<Pulled, Halt> {
        let trailers = match caller.poll_piece(cx, info) {
            Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                self.received += data.len() as u64;
                if let Some(messages) = &mut self.messages {
                    messages.push(&data);
                }
                self.mirrors.push(&data);
                return Ok(Pulled::Data(data));
            }
            Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => Some(trailers),
            Poll::Ready(None) => None,
            Poll::Ready(Some(Err(e))) => return Err(e),
            Poll::Pending => return Ok(Pulled::Nothing),
        };
        self.complete = true;
        self.trailers = trailers;
        self.mirrors.end();
        Ok(Pulled::End)
    }

    /// What was kept and not sent in this try.
    fn next_kept(&mut self) -> Option<Bytes> {
        let piece = if self.keeps {
            let piece = self.kept.get(self.next)?.clone();
            self.next += 1;
            piece
        } else {
            let piece = self.kept.pop_front()?;
            self.dropped = true;
            self.kept_bytes -= piece.len();
            piece
        };
        self.ahead.set(self.ahead.own - piece.len());
        Some(piece)
    }

    /// Keeps what is sent at once.
    fn keep(&mut self, data: &Bytes) {
        if self.keeps {
            self.kept_bytes += data.len();
            if !small::join(self.kept.back_mut(), data) {
                self.kept.push_back(data.clone());
            }
            self.next = self.kept.len();
            self.check_cap();
        } else {
            self.dropped = true;
        }
    }

    /// Keeps what cannot be sent yet.
    fn hold(&mut self, data: Bytes) {
        self.kept_bytes += data.len();
        self.ahead.set(self.ahead.own + data.len());
        // One that was sent is whole.
        let last = if self.kept.len() > self.next { self.kept.back_mut() } else { None };
        if !small::join(last, &data) {
            self.kept.push_back(data);
        }
        self.check_cap();
    }

    fn check_cap(&mut self) {
        if self.keeps && self.kept_bytes > self.cap {
            self.forget();
        }
    }
}

/// What came of the caller.
enum Pulled {
    Data(Bytes),
    End,
    Nothing,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeping(cap: usize) -> Body {
        Body::new(true, false, cap, Ahead::new(&Rc::default(), MOST_AHEAD), Mirrors::default())
    }

    #[test]
    fn a_request_holds_no_more_than_a_connection_may_and_all_of_one_no_more_than_some_do() {
        let all = Rc::default();
        let start = || Body::new(true, false, 0, Ahead::new(&all, 1000), Mirrors::default());
        let mut bodies: Vec<Body> = (0..REQUESTS_AHEAD).map(|_| start()).collect();
        for body in &mut bodies {
            assert!(body.ahead.has_room());
            body.hold(Bytes::from_static(&[0; 1000]));
            assert!(!body.ahead.has_room());
        }
        assert!(!start().ahead.has_room(), "the connection holds as much as it may");
        assert!(bodies[0].next_kept().is_some());
        assert!(start().ahead.has_room());
        drop(bodies);
        assert_eq!(all.get(), 0);
    }

    #[test]
    fn small_pieces_are_kept_together() {
        let read = Bytes::from(vec![b'a'; 10_000]);
        let mut body = keeping(10_000);
        (0..10_000).for_each(|at| body.keep(&read.slice(at..=at)));
        assert_eq!((body.kept.len(), body.next, body.kept_bytes), (3, 3, 10_000));
        let Kept { pieces, .. } = body.take();
        assert_eq!(pieces.into_iter().collect::<Vec<_>>().concat(), read);
    }

    #[test]
    fn what_was_not_sent_can_be_sent_however_much_may_be_kept() {
        let (read, mut sent) = (Bytes::from_iter((0..=255).cycle().take(10_000)), Vec::new());
        let mut body = keeping(100);
        body.keep(&read.slice(..10));
        sent.extend_from_slice(&read[..10]);
        (10..80).for_each(|at| body.hold(read.slice(at..=at)));
        assert!(body.repeatable());
        body.rewind();
        assert_eq!((body.ahead.own, body.next_kept()), (80, Some(read.slice(..10))));
        body.hold(read.slice(80..));
        assert!(!body.repeatable(), "more than may be kept, and some of it was sent");
        std::iter::from_fn(|| body.next_kept()).for_each(|piece| sent.extend_from_slice(&piece));
        assert_eq!((&sent[..], body.ahead.own, body.kept_bytes), (&read[..], 0, 0));

        let mut body = keeping(100);
        body.hold(read.clone());
        assert!(body.repeatable(), "nothing was sent");
        assert_eq!((body.next_kept(), body.repeatable()), (Some(read), false));
    }
}
