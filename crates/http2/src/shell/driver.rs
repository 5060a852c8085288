//! Moving bytes between the state machine and the byte stream.
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::BytesMut;
use lateen_core::recycle::buffers;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::session::Session;
use crate::event::Event;

/// A read asks for up to this much: one full frame and its header, twice.
const READ: usize = buffers::LARGE;
/// While this much waits to be written nothing more is read, so that a peer that does not read
/// cannot make us answer without end.
const WRITE_HIGH: usize = 1 << 20;

/// A byte stream with its connection.
pub(super) struct Pump<Io> {
    pub(super) io: Io,
    pub(super) session: Session,
    input: BytesMut,
    events: Vec<Event>,
    read_closed: bool,
    /// Nothing was read because too much waited to be written: nobody else would wake us for what has arrived.
    held_back: bool,
    /// What was written may still stand in a buffer of `io`'s own, as with TLS: nobody else would send it on.
    unflushed: bool,
}

/// How a turn ended.
pub(super) enum Turn {
    /// Everything that could be done is done; wakers are set.
    Waiting,
    /// The connection is over.
    Over,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Pump<Io> {
    /// `ahead` holds bytes that were read before.
    pub(super) fn new(io: Io, session: Session, ahead: BytesMut) -> Self {
        Self { io, session, input: ahead, events: Vec::new(), read_closed: false, held_back: false, unflushed: false }
    }

    /// Reads what is there, then writes what there is to say. Called again after the handles had
    /// their say in the same turn, it only writes.
    pub(super) fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        {
            let mut inner = self.session.0.borrow_mut();
            inner.driver_woken = false;
            if inner.driver.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
                inner.driver = Some(cx.waker().clone());
            }
            inner.connection.next_turn(&mut self.events);
            inner.dispatch(&mut self.events);
        }
        let reading = self.read(cx);
        let turn = self.conclude(cx);
        if reading.is_err() {
            self.session.0.borrow_mut().close();
            return Turn::Over;
        }
        turn
    }

    /// Writes what there is to say, and says whether the connection goes on.
    pub(super) fn conclude(&mut self, cx: &mut Context<'_>) -> Turn {
        self.session.0.borrow_mut().driver_woken = false;
        let writing = self.write(cx);
        // An idle connection keeps no buffer. One whose slices somebody still reads stays: it can soon be used again.
        if self.input.is_empty() && self.input.capacity() > 0 && self.input.try_reclaim(READ / 2) {
            buffers::recycle(std::mem::take(&mut self.input));
        }
        let mut inner = self.session.0.borrow_mut();
        let finished = inner.connection.output().is_empty() && !self.unflushed && (inner.connection.is_finished() || self.read_closed);
        if writing.is_err() || finished {
            inner.close();
            return Turn::Over;
        }
        let reads_again = self.held_back && inner.connection.output().len() < WRITE_HIGH;
        if reads_again || inner.connection.owes_turn() {
            // Behind those who were told that they may send.
            inner.wake_driver();
        }
        Turn::Waiting
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut inner = self.session.0.borrow_mut();
        if !self.input.is_empty() {
            let _ = inner.connection.receive(&mut self.input, &mut self.events);
            inner.dispatch(&mut self.events);
        }
        while !self.read_closed && inner.connection.output().len() < WRITE_HIGH {
            make_room(&mut self.input);
            let count = match poll_read(&mut self.io, cx, &mut self.input) {
                Poll::Ready(count) => count?,
                Poll::Pending => break,
            };
            if count == 0 {
                self.read_closed = true;
                break;
            }
            inner.heard += 1;
            let outcome = inner.connection.receive(&mut self.input, &mut self.events);
            inner.dispatch(&mut self.events);
            if outcome.is_err() {
                // The GOAWAY that says why is in the output.
                self.read_closed = true;
            }
        }
        self.held_back = !self.read_closed && inner.connection.output().len() >= WRITE_HIGH;
        Ok(())
    }

    /// Writes until nothing is left or the stream is full.
    pub(super) fn write(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        let mut inner = self.session.0.borrow_mut();
        let mut wrote = false;
        while !inner.connection.output().is_empty() {
            let written = {
                let mut slices = [IoSlice::new(&[]); 16];
                let filled = inner.connection.output().slices(&mut slices);
                match Pin::new(&mut self.io).poll_write_vectored(cx, &slices[..filled]) {
                    Poll::Ready(written) => written?,
                    Poll::Pending => break,
                }
            };
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            inner.connection.written(written);
            wrote = true;
        }
        self.unflushed |= wrote;
        if self.unflushed
            && let Poll::Ready(flushed) = Pin::new(&mut self.io).poll_flush(cx)
        {
            flushed?;
            self.unflushed = false;
        }
        if wrote {
            inner.wake_stalled();
        }
        Ok(())
    }
}

/// Makes a buffer fit for a read.
fn make_room(input: &mut BytesMut) {
    if input.capacity() - input.len() >= READ / 2 || input.try_reclaim(READ / 2) {
        return;
    }
    if input.is_empty() {
        *input = buffers::take_large();
    } else {
        input.reserve(READ);
    }
}

/// Reads once into the buffer's spare room.
fn poll_read(io: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>, input: &mut BytesMut) -> Poll<io::Result<usize>> {
    std::pin::pin!(io.read_buf(input)).poll(cx)
}
