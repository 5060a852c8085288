//! HTTP/2, both sides, over the `h2` crate: our messages on its streams.
mod client;
mod server;

pub(crate) use client::H2Client;
pub(crate) use server::{H2ServerStream, request_of};

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::SendStream;
use http::HeaderMap;

use super::stream::StreamError;

/// Data on its way into an HTTP/2 stream, no more than the peer's window lets through.
#[derive(Default)]
struct Outgoing {
    waiting: Bytes,
    end: Option<Option<Box<HeaderMap>>>,
    ended: bool,
}

impl Outgoing {
    fn push(&mut self, stream: &mut SendStream<Bytes>, data: Bytes) {
        debug_assert!(self.waiting.is_empty(), "callers wait for room");
        self.waiting = data;
        self.send_what_fits(stream);
    }

    fn finish(&mut self, stream: &mut SendStream<Bytes>, trailers: Option<Box<HeaderMap>>) {
        self.end = Some(trailers);
        self.send_what_fits(stream);
    }

    /// An error here means that the stream is over, which reading it tells better.
    fn send_what_fits(&mut self, stream: &mut SendStream<Bytes>) {
        let fits = stream.capacity().min(self.waiting.len());
        if fits > 0 {
            let last = fits == self.waiting.len() && matches!(self.end, Some(None));
            self.ended |= last;
            let _ = stream.send_data(self.waiting.split_to(fits), last);
        }
        if self.waiting.is_empty() && !self.ended {
            match self.end.take() {
                Some(Some(trailers)) => {
                    self.ended = true;
                    let _ = stream.send_trailers(*trailers);
                }
                Some(None) => {
                    self.ended = true;
                    let _ = stream.send_data(Bytes::new(), true);
                }
                None => {}
            }
        }
    }

    /// Ready when nothing waits.
    fn poll(&mut self, stream: &mut SendStream<Bytes>, cx: &mut Context<'_>) -> Poll<Result<(), StreamError>> {
        while !self.waiting.is_empty() {
            stream.reserve_capacity(self.waiting.len());
            if stream.capacity() == 0 {
                match ready!(stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(e)) => return Poll::Ready(Err(StreamError::from_h2(&e))),
                    None => return Poll::Ready(Err(StreamError::Closed)),
                }
            }
            self.send_what_fits(stream);
        }
        Poll::Ready(Ok(()))
    }
}
