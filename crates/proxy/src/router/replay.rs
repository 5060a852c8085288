//! The request's body on its way up: pulled from the caller once, kept as long as it may have to be sent again.
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;

use super::mirror::Mirrors;
use crate::filter::http::body::{Caller, Halt, small};
use crate::filter::http::grpc_stats::Messages;
use crate::http::Info;
use crate::http::message::Frame;
use crate::http::stream::Upstream;

/// The body. Memory is bounded by the cap: a body that outgrows it can no longer be sent again.
pub(super) struct Body {
    kept: Vec<Bytes>,
    kept_bytes: usize,
    cap: usize,
    keeps: bool,
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
    pieces: Vec<Bytes>,
    trailers: Option<Box<HeaderMap>>,
}

impl Kept {
    pub(crate) fn into_frames(self) -> impl Iterator<Item = Frame> {
        self.pieces.into_iter().map(Frame::Data).chain(self.trailers.map(Frame::Trailers))
    }
}

impl Body {
    pub(super) fn new(has_body: bool, upgrade: bool, cap: usize, mirrors: Mirrors) -> Self {
        Self {
            kept: Vec::new(),
            kept_bytes: 0,
            cap,
            keeps: cap > 0,
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
        self.keeps || self.received == 0
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
        self.keeps = false;
        self.kept.clear();
        self.next = 0;
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
        self.sent = self.upgrade;
        self.broken = false;
    }

    /// Nothing will be sent again: the memory may go.
    pub(super) fn forget(&mut self) {
        self.keeps = false;
        if self.next >= self.kept.len() {
            self.kept = Vec::new();
            self.next = 0;
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
                Poll::Pending => break,
            }
            if let Some(piece) = self.kept.get(self.next) {
                self.next += 1;
                up.send_data(piece.clone());
                moved = true;
                continue;
            }
            if self.complete {
                self.sent = true;
                up.send_end(self.trailers.clone());
                break;
            }
            match caller.poll_piece(cx, info) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    moved = true;
                    self.received += data.len() as u64;
                    if let Some(messages) = &mut self.messages {
                        messages.push(&data);
                    }
                    self.keep(&data);
                    self.mirrors.push(&data);
                    up.send_data(data);
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => self.end(Some(trailers)),
                Poll::Ready(None) => self.end(None),
                Poll::Ready(Some(Err(e))) => return Err(e),
                Poll::Pending => break,
            }
        }
        if !self.broken && matches!(up.poll_flush(cx), Poll::Ready(Err(_))) {
            self.broken = true;
        }
        Ok(moved)
    }

    fn end(&mut self, trailers: Option<Box<HeaderMap>>) {
        self.complete = true;
        self.trailers = trailers;
        self.mirrors.end();
    }

    fn keep(&mut self, data: &Bytes) {
        if !self.keeps {
            return;
        }
        self.kept_bytes += data.len();
        if self.kept_bytes > self.cap {
            self.keeps = false;
            self.kept = Vec::new();
            self.next = 0;
        } else if !small::join(self.kept.last_mut(), data) {
            self.kept.push(data.clone());
            self.next = self.kept.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_kept_together() {
        let read = Bytes::from(vec![b'a'; 10_000]);
        let mut body = Body::new(true, false, 10_000, Mirrors::default());
        (0..10_000).for_each(|at| body.keep(&read.slice(at..=at)));
        assert_eq!((body.kept.len(), body.next, body.kept_bytes), (3, 3, 10_000));
        let Kept { pieces, .. } = body.take();
        assert_eq!(pieces.concat(), read);
    }
}
