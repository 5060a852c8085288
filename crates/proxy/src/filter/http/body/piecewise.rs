//! Stages that turn bytes into other bytes on the spot: codecs.
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;

use super::{Halt, Piece, Source, Stage};
use crate::http::Info;
use crate::http::message::Frame;

/// A conversion of bytes that waits for nothing.
pub(crate) trait Convert {
    /// Takes a piece. What comes of it is asked for with [`Self::take`], before the next piece is given.
    fn give(&mut self, data: Bytes);

    /// A piece of what is there, of a bounded size; `None` when more has to be given first.
    ///
    /// # Errors
    /// When the bytes make no sense: what the caller is told.
    fn take(&mut self) -> Result<Option<Bytes>, Halt>;

    /// Everything was given; what is left is asked for with [`Self::take`].
    ///
    /// # Errors
    /// When something is missing.
    fn end(&mut self, trailers: &mut Option<Box<HeaderMap>>) -> Result<(), Halt>;
}

/// A [`Convert`] as a stage.
pub(crate) struct Piecewise<C> {
    convert: C,
    phase: Phase,
}

enum Phase {
    Flowing,
    /// What is left, then these trailers.
    Ending(Option<Box<HeaderMap>>),
}

impl<C: Convert> Piecewise<C> {
    pub(crate) fn new(convert: C) -> Self {
        Self { convert, phase: Phase::Flowing }
    }
}

impl<C: Convert> Stage for Piecewise<C> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        loop {
            match self.convert.take() {
                Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::Data(data)))),
                Ok(None) => {}
                Err(halt) => return Poll::Ready(Some(Err(halt))),
            }
            if let Phase::Ending(trailers) = &mut self.phase {
                return Poll::Ready(trailers.take().map(|t| Ok(Frame::Trailers(t))));
            }
            let mut trailers = match ready!(source.poll_piece(cx, info)) {
                Some(Ok(Frame::Data(data))) => {
                    self.convert.give(data);
                    continue;
                }
                Some(Ok(Frame::Trailers(trailers))) => Some(trailers),
                None => None,
                Some(Err(halt)) => return Poll::Ready(Some(Err(halt))),
            };
            if let Err(halt) = self.convert.end(&mut trailers) {
                return Poll::Ready(Some(Err(halt)));
            }
            self.phase = Phase::Ending(trailers);
        }
    }
}
