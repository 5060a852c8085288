//! Bytes both ways between two connections, with half-close, until both directions are done.
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::peer_exchange::{Stripped, Stripper};
use super::splice::Pipe;
use crate::io::Io;

/// A quiet connection costs this much per direction while bytes are under way.
const SMALL: usize = 16 * 1024;
/// A busy one gets this much.
const LARGE: usize = 256 * 1024;

/// How a direction ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// All that came was taken, and its end.
    Whole,
    /// Nothing more comes: reading failed. What had come was taken.
    Source,
    /// Nothing more is taken: writing failed.
    Sink,
}

/// One direction.
pub(super) struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    eof: bool,
    /// Reading failed.
    failed: bool,
    ended: Option<End>,
    needs_flush: bool,
    full_reads: u32,
    /// Bytes moved.
    pub(super) moved: u64,
    stripper: Option<Stripper>,
    /// For a busy direction between plain sockets, in place of the buffer.
    pipe: Option<Pipe>,
}

impl Direction {
    /// A direction of which these bytes were read before.
    pub(super) fn after(first: BytesMut) -> Self {
        Self {
            start: 0,
            end: first.len(),
            buffer: first.into(),
            eof: false,
            failed: false,
            ended: None,
            needs_flush: false,
            full_reads: 0,
            moved: 0,
            stripper: None,
            pipe: None,
        }
    }

    /// Takes a frame of metadata exchange off the front, of what was read before too.
    pub(super) fn strip(&mut self) {
        self.stripper = Some(Stripper::default());
        if self.end > 0 {
            self.stripped(self.end);
        }
    }

    /// Whether nothing is held that was read and not written.
    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end && self.pipe.as_ref().is_none_or(Pipe::is_empty)
    }

    /// Moves bytes until one side is not ready; how the direction ended, once it has.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Option<End> {
        if self.ended.is_none() {
            self.ended = match self.poll_end(cx, from, to) {
                Poll::Ready(Ok(())) => Some(End::Whole),
                Poll::Ready(Err(end)) => Some(end),
                Poll::Pending => None,
            };
        }
        if self.ended == Some(End::Sink) {
            self.drop_rest(cx, from);
        }
        self.ended
    }

    fn poll_end(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<Result<(), End>> {
        let sink = |_| End::Sink;
        loop {
            while self.start < self.end {
                let piece = self.buffer.get(self.start..self.end).unwrap_or_default();
                let n = ready!(Pin::new(&mut *to).poll_write(cx, piece)).map_err(sink)?;
                if n == 0 {
                    return Poll::Ready(Err(End::Sink));
                }
                self.start += n;
                self.moved += n as u64;
                self.needs_flush = true;
            }
            (self.start, self.end) = (0, 0);
            if self.splices(from, to) {
                ready!(self.poll_pipe(cx, from, to))?;
            }
            if self.eof {
                ready!(Pin::new(&mut *to).poll_shutdown(cx)).map_err(sink)?;
                return Poll::Ready(Ok(()));
            }
            if self.failed {
                ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(sink)?;
                return Poll::Ready(Err(End::Source));
            }
            self.make_room();
            let mut read = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => {
                    let n = read.filled().len();
                    self.end = n;
                    self.eof = n == 0;
                    self.full_reads = if n == self.buffer.len() { self.full_reads + 1 } else { 0 };
                    if self.stripper.is_some() {
                        self.stripped(n);
                    }
                }
                Poll::Ready(Err(_)) => self.failed = true,
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx)).map_err(sink)?;
                        self.needs_flush = false;
                    }
                    // Idle connections hold no buffer.
                    if self.buffer.len() <= SMALL {
                        self.buffer = Vec::new();
                    }
                    return Poll::Pending;
                }
            }
        }
    }

    /// Reads what nobody takes: who sends it may read only once it has written.
    fn drop_rest(&mut self, cx: &mut Context<'_>, from: &mut Io) {
        self.pipe = None;
        (self.start, self.end) = (0, 0);
        while !self.eof && !self.failed {
            self.make_room();
            let mut read = ReadBuf::new(&mut self.buffer);
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                Poll::Ready(Ok(())) => self.eof = read.filled().is_empty(),
                Poll::Ready(Err(_)) => self.failed = true,
                Poll::Pending => break,
            }
        }
    }

    /// Whether the kernel can move the bytes: nothing is to be looked at, and enough comes to be worth a pipe.
    fn splices(&mut self, from: &Io, to: &Io) -> bool {
        if self.pipe.is_none() && self.full_reads >= 2 && self.stripper.is_none() && from.tcp().is_some() && to.tcp().is_some() {
            self.pipe = Pipe::new().ok();
            if self.pipe.is_some() {
                self.buffer = Vec::new();
            }
        }
        self.pipe.is_some() && !self.eof && !self.failed
    }

    /// Moves bytes through the pipe; ready at the end of what comes.
    fn poll_pipe(&mut self, cx: &mut Context<'_>, from: &Io, to: &Io) -> Poll<Result<(), End>> {
        let (Some(pipe), Some(from), Some(to)) = (&mut self.pipe, from.tcp(), to.tcp()) else { return Poll::Ready(Ok(())) };
        loop {
            while !pipe.is_empty() {
                self.moved += ready!(pipe.poll_drain(cx, to)).map_err(|_| End::Sink)? as u64;
            }
            if ready!(pipe.poll_fill(cx, from)).map_err(|_| End::Source)? == 0 {
                self.eof = true;
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// Replaces the `n` bytes just read by what the application is to get of them.
    fn stripped(&mut self, n: usize) {
        let Some(stripper) = &mut self.stripper else { return };
        let rest = if n == 0 {
            Some(stripper.give_up())
        } else {
            match stripper.push(self.buffer.get(..n).unwrap_or_default()) {
                Stripped::More => None,
                Stripped::Rest(rest) => Some(rest),
            }
        };
        match rest {
            None => self.end = 0,
            Some(rest) => {
                self.stripper = None;
                self.end = rest.len();
                if rest.len() > self.buffer.len() {
                    self.buffer.resize(rest.len(), 0);
                }
                if let Some(room) = self.buffer.get_mut(..rest.len()) {
                    room.copy_from_slice(&rest);
                }
            }
        }
    }

    fn make_room(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = vec![0; SMALL];
        } else if self.full_reads >= 2 && self.buffer.len() < LARGE {
            self.buffer.resize((self.buffer.len() * 4).min(LARGE), 0);
            self.full_reads = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_was_read_before_is_taken_off_too() {
        let mut frame = b"\x3d\x23\x04\x67\0\0\0\x02ab".to_vec();
        let mut cut = Direction::after(BytesMut::from(&frame[..]));
        cut.strip();
        assert!(cut.is_empty() && cut.stripper.is_none());
        frame.extend_from_slice(b"hello");
        let mut whole = Direction::after(BytesMut::from(&frame[..]));
        whole.strip();
        assert_eq!(whole.buffer.get(whole.start..whole.end), Some(&b"hello"[..]));
        let mut begun = Direction::after(BytesMut::from(&frame[..5]));
        begun.strip();
        assert!(begun.is_empty() && begun.stripper.is_some());
    }
}
