//! A connection with its read and write buffers: what an HTTP/1 codec works on.
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWrite;

use lateen_core::recycle::buffers::{self, SMALL as FIRST_READ};

use super::{Io, Meter};

/// Chunks up to this size are copied behind the head, so that one write carries both.
const COPY_LIMIT: usize = 16 * 1024;
/// A read into a full buffer asks for up to this much more.
const LARGEST_READ: usize = 64 * 1024;
/// Above this many unwritten bytes the source is paused.
const HIGH_WATER: usize = 128 * 1024;

/// A buffered connection.
pub(crate) struct Wire {
    pub(crate) io: Io,
    /// Bytes received and not yet consumed.
    pub(crate) input: BytesMut,
    pub(crate) eof: bool,
    /// Bytes to send: `output` first, then `queue`.
    output: BytesMut,
    queue: VecDeque<Bytes>,
    queued: usize,
    /// Asks for larger reads while reads fill the buffer.
    read_size: usize,
    pub(crate) sent: u64,
    meter: Option<Meter>,
    dirty: bool,
}

impl Wire {
    pub(crate) fn new(io: Io) -> Self {
        Self {
            io,
            input: BytesMut::new(),
            eof: false,
            output: BytesMut::new(),
            queue: VecDeque::new(),
            queued: 0,
            read_size: FIRST_READ,
            sent: 0,
            meter: None,
            dirty: false,
        }
    }

    /// One whose bytes count.
    pub(crate) fn metered(io: Io, meter: Meter) -> Self {
        Self { meter: Some(meter), ..Self::new(io) }
    }

    /// Reads once; 0 means that the peer closed. While nothing comes an empty buffer is given back.
    pub(crate) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.eof {
            return Poll::Ready(Ok(0));
        }
        if self.input.capacity() == 0 {
            // Most looks find nothing: those need no buffer.
            if let Some(tcp) = self.io.tcp() {
                ready!(tcp.poll_read_ready(cx))?;
            }
            self.input = buffers::take();
        }
        if self.input.capacity() - self.input.len() < 512 || (self.input.is_empty() && self.read_size > FIRST_READ) {
            self.input.reserve(self.read_size);
        }
        let result = read_into(&mut self.io, cx, &mut self.input);
        match result {
            Poll::Pending => {
                // Not while slices of it live: it could not be used again, and this request will end soon.
                if self.input.is_empty() && buffers::rewind(&mut self.input) {
                    buffers::recycle(std::mem::take(&mut self.input));
                }
                Poll::Pending
            }
            Poll::Ready(Ok(n)) => {
                self.eof = n == 0;
                self.meter.iter().for_each(|meter| meter.received(n));
                if n >= self.read_size {
                    self.read_size = (self.read_size * 2).min(LARGEST_READ);
                } else if n < self.read_size / 4 {
                    self.read_size = (self.read_size / 2).max(FIRST_READ);
                }
                Poll::Ready(Ok(n))
            }
            Poll::Ready(Err(e)) => {
                self.ended(true);
                Poll::Ready(Err(e))
            }
        }
    }

    /// Whether it is the peer that ended the connection, or broke it.
    pub(crate) fn ended(&self, by_peer: bool) {
        self.meter.iter().for_each(|meter| meter.ended(by_peer));
    }

    /// Ready once the peer has closed. Reads no further than one buffer ahead.
    pub(crate) fn poll_closed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.input.is_empty() {
            return if self.eof { Poll::Ready(()) } else { Poll::Pending };
        }
        match self.poll_fill(cx) {
            Poll::Ready(Ok(0) | Err(_)) => Poll::Ready(()),
            _ => Poll::Pending,
        }
    }

    /// Where a head is written.
    pub(crate) fn head(&mut self) -> &mut BytesMut {
        if self.output.capacity() == 0 {
            self.output = buffers::take();
        }
        if !self.queue.is_empty() {
            // Keeps order: what is queued goes before the next head.
            let before = std::mem::replace(&mut self.output, buffers::take());
            if !before.is_empty() {
                self.queued += before.len();
                self.queue.push_front(before.freeze());
            }
            let after = std::mem::take(&mut self.queue);
            for chunk in after {
                self.output.extend_from_slice(&chunk);
            }
            self.queued = 0;
        }
        &mut self.output
    }

    /// Adds bytes to send.
    pub(crate) fn push(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        if self.queue.is_empty() && self.output.len() + data.len() <= COPY_LIMIT {
            self.head().extend_from_slice(&data);
        } else {
            self.queued += data.len();
            self.queue.push_back(data);
        }
    }

    /// Adds a few bytes of framing.
    pub(crate) fn push_slice(&mut self, data: &[u8]) {
        if self.queue.is_empty() {
            self.head().extend_from_slice(data);
        } else {
            self.queued += data.len();
            self.queue.push_back(Bytes::copy_from_slice(data));
        }
    }

    pub(crate) fn unsent(&self) -> usize {
        self.output.len() + self.queued
    }

    /// Ready when more may be pushed; writes when too much is waiting.
    pub(crate) fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.unsent() < HIGH_WATER {
            return Poll::Ready(Ok(()));
        }
        self.poll_flush(cx)
    }

    /// Writes everything.
    pub(crate) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.output.is_empty() || !self.queue.is_empty() {
            let written = if self.queue.is_empty() {
                ready!(Pin::new(&mut self.io).poll_write(cx, &self.output))
            } else {
                let mut slices = [IoSlice::new(&[]); 16];
                let chunks = std::iter::once(&self.output[..]).chain(self.queue.iter().map(|c| &c[..]));
                let mut used = 0;
                for (slot, chunk) in slices.iter_mut().zip(chunks.filter(|c| !c.is_empty())) {
                    *slot = IoSlice::new(chunk);
                    used += 1;
                }
                ready!(Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..used]))
            };
            let n = written.inspect_err(|_| self.ended(true))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += n as u64;
            self.meter.iter().for_each(|meter| meter.sent(n));
            self.dirty = true;
            self.written(n);
        }
        if self.dirty {
            ready!(Pin::new(&mut self.io).poll_flush(cx))?;
            self.dirty = false;
        }
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, mut n: usize) {
        let head = n.min(self.output.len());
        if head == self.output.len() {
            self.output.clear();
        } else {
            self.output.advance(head);
        }
        n -= head;
        while n > 0 {
            let Some(first) = self.queue.front_mut() else { return };
            let part = n.min(first.len());
            self.queued -= part;
            n -= part;
            if part == first.len() {
                self.queue.pop_front();
            } else {
                first.advance(part);
            }
        }
    }

    /// Lets go of buffers that hold nothing: called between requests.
    pub(crate) fn rest(&mut self) {
        if self.output.is_empty() && self.output.capacity() > 0 {
            buffers::recycle(std::mem::take(&mut self.output));
        }
    }

    pub(crate) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    /// Writes everything, and then ends this direction where `close` says so; it is not asked for twice. That the peer has left
    /// before is no failure.
    pub(crate) fn poll_flush_or_shut(&mut self, cx: &mut Context<'_>, close: &mut bool) -> Poll<io::Result<()>> {
        ready!(self.poll_flush(cx))?;
        if *close {
            let _ = ready!(self.poll_shutdown(cx));
            *close = false;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads into the spare room of `buffer`.
fn read_into(io: &mut Io, cx: &mut Context<'_>, buffer: &mut BytesMut) -> Poll<io::Result<usize>> {
    let mut read = std::pin::pin!(tokio::io::AsyncReadExt::read_buf(io, buffer));
    Future::poll(read.as_mut(), cx)
}
