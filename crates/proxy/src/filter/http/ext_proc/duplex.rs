//! A body in full duplex: the processor is shown pieces, and says in its own time and in its own pieces what goes on.
use std::cell::RefCell;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use lateen_proto::envoy::service::ext_proc::v3::{ProcessingResponse, processing_response::Response as Answer};

use super::super::body::{Halt, Piece, Source, Stage};
use super::body::{Feed, Shows, immediate};
use super::message;
use super::session::{Said, Session};
use super::side::Way;
use crate::http::Info;
use crate::http::message::Frame;

/// The stage. What was shown is the processor's: nothing of it is kept here. It is shown more only while there is no answer of
/// its to pass on and it takes what it is sent, so that a slow receiver or a slow processor slows the sender.
pub(super) struct FullDuplex {
    feed: Feed,
    /// Trailers are shown; otherwise the processor is told that the body has ended, and they follow what it makes of that.
    shows_trailers: bool,
    trailers: Option<Box<HeaderMap>>,
    trailers_shown: bool,
    /// Data go on no more.
    ended: bool,
}

/// What an answer brings.
enum Brought {
    Data(Bytes),
    Trailers(Box<HeaderMap>),
    Nothing,
}

impl FullDuplex {
    pub(super) fn new(session: &Rc<RefCell<Session>>, way: Way, shows_trailers: bool) -> Self {
        Self { feed: Feed::new(session, way), shows_trailers, trailers: None, trailers_shown: false, ended: false }
    }

    fn settle(&mut self, info: &mut Info, answer: Box<ProcessingResponse>) -> Result<Brought, Halt> {
        if let Some(Answer::RequestTrailers(_) | Answer::ResponseTrailers(_)) = answer.response {
            self.ended = true;
            let trailers = self.trailers.take().unwrap_or_default();
            return self.feed.settled_trailers(info, Some(answer), trailers).map(Brought::Trailers);
        }
        let piece = message::streamed(&answer).map(|piece| (piece.body.clone(), piece.end_of_stream));
        let mut session = self.feed.session.borrow_mut();
        message::note_metadata(&session.config, &mut info.metadata, answer.dynamic_metadata);
        if let Some(Answer::ImmediateResponse(response)) = answer.response {
            return Err(immediate(&mut session, response));
        }
        let Some((data, last)) = piece else { return Ok(Brought::Nothing) };
        // Trailers that it has are answered for themselves.
        self.ended = last && !self.trailers_shown;
        Ok(Brought::Data(data))
    }

    fn poll_all(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Result<Option<Frame>, Halt>> {
        loop {
            if self.ended {
                return Poll::Ready(Ok(self.trailers.take().map(Frame::Trailers)));
            }
            let said = self.feed.session.borrow_mut().poll_answer(cx, self.feed.way);
            match said {
                Poll::Ready(Said::Reply(reply)) => return Poll::Ready(Err(Halt::Reply(reply))),
                Poll::Ready(Said::Answer(answer)) => match self.settle(info, answer)? {
                    Brought::Data(data) if data.is_empty() => {}
                    Brought::Data(data) => return Poll::Ready(Ok(Some(Frame::Data(data)))),
                    Brought::Trailers(trailers) => return Poll::Ready(Ok(Some(Frame::Trailers(trailers)))),
                    Brought::Nothing => {}
                },
                Poll::Ready(Said::Nothing) if self.feed.is_over() => return self.poll_rest(cx, info, source),
                Poll::Ready(Said::Nothing) | Poll::Pending => {
                    if !self.show(cx, info, source)? {
                        return Poll::Pending;
                    }
                }
            }
        }
    }

    /// What the processor does not want to see.
    fn poll_rest(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Result<Option<Frame>, Halt>> {
        if let Some(trailers) = self.trailers.take() {
            self.ended = true;
            return Poll::Ready(Ok(Some(Frame::Trailers(trailers))));
        }
        match self.feed.next(cx, info, source)? {
            Some(next) => Poll::Ready(Ok(next)),
            None => Poll::Pending,
        }
    }
}

impl Shows for FullDuplex {
    fn show(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<bool, Halt> {
        let mut moved = false;
        while !self.feed.told_end && self.trailers.is_none() && self.feed.session.borrow().has_room() {
            match self.feed.next(cx, info, source)? {
                None => break,
                Some(Some(Frame::Data(data))) => self.feed.show_piece(cx, info, source, data)?,
                Some(Some(Frame::Trailers(trailers))) => {
                    self.trailers_shown = self.shows_trailers;
                    if self.shows_trailers {
                        self.feed.show_trailers(&trailers, info);
                    } else {
                        self.feed.show_end(info);
                    }
                    self.trailers = Some(trailers);
                }
                Some(None) => self.feed.show_end(info),
            }
            moved = true;
        }
        Ok(moved)
    }

    fn is_complete(&self) -> bool {
        self.feed.is_complete()
    }
}

impl Drop for FullDuplex {
    fn drop(&mut self) {
        if let Ok(mut session) = self.feed.session.try_borrow_mut() {
            session.forget(self.feed.way);
        }
    }
}

impl Stage for FullDuplex {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        Poll::Ready(ready!(self.poll_all(cx, info, source)).transpose())
    }
}
