//! What goes over connections, as the application's bytes: TLS is off.
use std::cell::Cell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use lateen_telemetry::stats::{Counter, Local};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Io;

/// Where the bytes of a connection count.
pub(crate) struct Meter {
    stats: Local,
    received: Counter,
    sent: Counter,
    /// Told once the peer has ended the connection.
    ended: Option<Rc<Cell<bool>>>,
}

impl Meter {
    pub(crate) fn new(stats: &Local, received: Counter, sent: Counter) -> Self {
        Self { stats: stats.clone(), received, sent, ended: None }
    }

    pub(crate) fn telling(self, ended: &Rc<Cell<bool>>) -> Self {
        Self { ended: Some(Rc::clone(ended)), ..self }
    }

    /// Of none is told that the peer has ended.
    pub(super) fn received(&self, bytes: usize) {
        if bytes == 0 {
            self.ended(true);
        }
        self.stats.add(self.received, bytes as u64);
    }

    pub(super) fn sent(&self, bytes: usize) {
        self.stats.add(self.sent, bytes as u64);
    }

    /// Whether the peer has ended the connection, or it broke.
    pub(super) fn ended(&self, by_peer: bool) {
        self.ended.iter().for_each(|ended| ended.set(by_peer));
    }

    fn watch<T>(&self, result: io::Result<T>) -> io::Result<T> {
        result.inspect_err(|_| self.ended(true))
    }
}

/// A connection whose bytes count.
pub(crate) struct Metered {
    pub(crate) io: Io,
    pub(crate) meter: Meter,
}

impl AsyncRead for Metered {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { io, meter } = self.get_mut();
        let before = buf.filled().len();
        meter.watch(ready!(Pin::new(io).poll_read(cx, buf)))?;
        meter.received(buf.filled().len() - before);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Metered {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let Self { io, meter } = self.get_mut();
        let written = meter.watch(ready!(Pin::new(io).poll_write(cx, buf)))?;
        meter.sent(written);
        Poll::Ready(Ok(written))
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let Self { io, meter } = self.get_mut();
        let written = meter.watch(ready!(Pin::new(io).poll_write_vectored(cx, bufs)))?;
        meter.sent(written);
        Poll::Ready(Ok(written))
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
