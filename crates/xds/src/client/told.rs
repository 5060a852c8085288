//! A connection that tells what the server says in its first frame of how many streams it takes.
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use super::Io;
use super::pool::Lifeline;

/// RFC 9113 section 4.1: length in 3 bytes, type, flags, stream in 4.
const FRAME_HEAD: usize = 9;
const SETTINGS: u8 = 4;
/// RFC 9113 section 6.5: each in 6 bytes, 2 of them which it is.
const SETTING: usize = 6;
const MAX_CONCURRENT_STREAMS: u16 = 3;

/// The library keeps the server's settings to itself, and lets streams beyond the limit wait without a word.
pub(super) struct Telling {
    io: Box<dyn Io>,
    line: Lifeline,
    /// What was read, until that is the first frame, and when that is too late: a server that is silent would have everybody wait.
    first: Option<(Vec<u8>, Pin<Box<Sleep>>)>,
}

pub(super) fn too_late(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no {what} within the time limit"))
}

impl Telling {
    pub(super) fn new(io: Box<dyn Io>, line: Lifeline, until: Instant) -> Self {
        Self { io, line, first: Some((Vec::new(), Box::pin(sleep_until(until)))) }
    }

    fn note(&mut self, read: &[u8]) {
        let Some((first, _)) = &mut self.first else { return };
        first.extend_from_slice(read);
        let Some(limit) = limit(first) else { return };
        self.first = None;
        self.line.is_open(limit);
    }

    fn poll_too_late(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let Some((_, until)) = &mut self.first else { return Poll::Pending };
        ready!(until.as_mut().poll(cx));
        let error = too_late("HTTP/2 settings");
        self.line.over(&error.to_string());
        Poll::Ready(error)
    }
}

/// The limit in a server's first frame, if there is one in it; nothing while it is not all there.
fn limit(read: &[u8]) -> Option<Option<usize>> {
    let (head, rest) = read.split_first_chunk::<FRAME_HEAD>()?;
    let [a, b, c, kind, ..] = *head;
    // Something else is no HTTP/2, which the library finds out.
    if kind != SETTINGS {
        return Some(None);
    }
    let settings = rest.get(..u32::from_be_bytes([0, a, b, c]) as usize)?;
    let limit = settings.chunks_exact(SETTING).rev().find_map(|setting| {
        let (name, value) = setting.split_first_chunk()?;
        (u16::from_be_bytes(*name) == MAX_CONCURRENT_STREAMS).then_some(u32::from_be_bytes(value.try_into().ok()?) as usize)
    });
    Some(limit)
}

impl AsyncRead for Telling {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let Poll::Ready(read) = Pin::new(&mut self.io).poll_read(cx, buffer) else { return self.poll_too_late(cx).map(Err) };
        read?;
        self.note(&buffer.filled()[before..]);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Telling {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[io::IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bytes)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_found_in_the_first_frame_when_that_is_there() {
        let with = [0, 0, 12, 4, 0, 0, 0, 0, 0, 0, 4, 0, 16, 0, 0, 0, 3, 0, 0, 1, 2, 9, 9];
        assert!((0..21).all(|length| limit(&with[..length]).is_none()));
        assert_eq!((limit(&with[..21]), limit(&with)), (Some(Some(258)), Some(Some(258))));
        assert_eq!(limit(&[0, 0, 0, 4, 0, 0, 0, 0, 0]), Some(None));
        assert_eq!(limit(b"HTTP/1.1 400 Bad Request"), Some(None));
    }
}
