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

/// One direction.
pub(super) struct Direction {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    eof: bool,
    closed: bool,
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
            closed: false,
            needs_flush: false,
            full_reads: 0,
            moved: 0,
            stripper: None,
            pipe: None,
        }
    }

    /// Takes a frame of metadata exchange off the front.
    pub(super) fn strip(&mut self) {
        self.stripper = Some(Stripper::default());
    }

    /// Whether nothing is held that was read and not written.
    pub(super) fn is_empty(&self) -> bool {
        self.start >= self.end && self.pipe.as_ref().is_none_or(Pipe::is_empty)
    }

    pub(super) fn done(&self) -> bool {
        self.closed
    }

    /// Moves bytes until one side is not ready; ready at the end of the direction.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, from: &mut Io, to: &mut Io) -> Poll<std::io::Result<()>> {
        while !self.closed {
            while self.start < self.end {
                let piece = self.buffer.get(self.start..self.end).unwrap_or_default();
                let n = ready!(Pin::new(&mut *to).poll_write(cx, piece))?;
                if n == 0 {
                    return Poll::Ready(Err(std::io::ErrorKind::WriteZero.into()));
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
                ready!(Pin::new(&mut *to).poll_shutdown(cx))?;
                self.closed = true;
                break;
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
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => {
                    if self.needs_flush {
                        ready!(Pin::new(&mut *to).poll_flush(cx))?;
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
        Poll::Ready(Ok(()))
    }

    /// Whether the kernel can move the bytes: nothing is to be looked at, and enough comes to be worth a pipe.
    fn splices(&mut self, from: &Io, to: &Io) -> bool {
        if self.pipe.is_none() && self.full_reads >= 2 && self.stripper.is_none() && from.tcp().is_some() && to.tcp().is_some() {
            self.pipe = Pipe::new().ok();
            if self.pipe.is_some() {
                self.buffer = Vec::new();
            }
        }
        self.pipe.is_some() && !self.eof
    }

    /// Moves bytes through the pipe; ready at the end of what comes.
    fn poll_pipe(&mut self, cx: &mut Context<'_>, from: &Io, to: &Io) -> Poll<std::io::Result<()>> {
        let (Some(pipe), Some(from), Some(to)) = (&mut self.pipe, from.tcp(), to.tcp()) else { return Poll::Ready(Ok(())) };
        loop {
            while !pipe.is_empty() {
                self.moved += ready!(pipe.poll_drain(cx, to))? as u64;
            }
            if ready!(pipe.poll_fill(cx, from))? == 0 {
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
