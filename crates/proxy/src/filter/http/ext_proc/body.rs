//! A body on its way through a processor, piece by piece, and its trailers.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use lateen_proto::envoy::service::ext_proc::v3::{
    ProcessingResponse, processing_request::Request, processing_response::Response as Answer,
};

use super::super::body::{Halt, Piece, Source, Stage};
use super::message::{self, Limits};
use super::session::{Part, Said, Session, Way};
use crate::http::Info;
use crate::http::message::Frame;

/// Pieces that a processor may have at once, however small they are.
const MOST_SHOWN: usize = 64;

/// The stage. Pieces are shown as they come, and go on in the order of their answers; how much is under way is bounded, so
/// that a slow processor slows the sender.
pub(super) struct Through {
    session: Rc<RefCell<Session>>,
    way: Way,
    /// Data are shown; otherwise only trailers are.
    data: bool,
    trailers: bool,
    /// Pieces that the processor has, oldest first.
    shown: VecDeque<Bytes>,
    shown_bytes: usize,
    /// The most bytes that it may have when another piece is shown.
    limit: usize,
    shown_trailers: Option<Box<HeaderMap>>,
    /// What comes behind the pieces that are shown, where that is known.
    behind: Option<Option<Frame>>,
    /// The processor knows that there are no more data.
    told_end: bool,
}

impl Through {
    pub(super) fn new(session: &Rc<RefCell<Session>>, way: Way, data: bool, trailers: bool, limit: usize) -> Self {
        Self {
            session: Rc::clone(session),
            way,
            data,
            trailers,
            shown: VecDeque::new(),
            shown_bytes: 0,
            limit,
            shown_trailers: None,
            behind: None,
            told_end: false,
        }
    }

    fn say(&self, part: Part, request: Request, info: &Info) {
        let mut session = self.session.borrow_mut();
        let message = message::request(&session, &info.metadata, request);
        session.say(self.way, part, &message);
    }

    fn has_room(&self) -> bool {
        // One that only looks on has a queue of its own.
        let most = if self.session.borrow().config.observes { 1 } else { MOST_SHOWN };
        self.shown.len() < most && (self.shown.is_empty() || self.shown_bytes < self.limit)
    }

    /// Shows what there is, as far as more may be under way.
    fn show(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<(), Halt> {
        while self.has_room() {
            let over = self.session.borrow().is_over();
            match self.next(cx, info, source)? {
                Some(Some(Frame::Data(data))) if self.data && !over => {
                    // That a piece is the last is said with it where that is known.
                    self.behind = self.next(cx, info, source)?;
                    let last = matches!(self.behind, Some(None));
                    self.show_piece(data, last, info);
                }
                Some(None) if self.data && !over && !self.told_end => {
                    self.show_piece(Bytes::new(), true, info);
                    self.behind = Some(None);
                }
                other => {
                    self.behind = other;
                    break;
                }
            }
        }
        Ok(())
    }

    /// What comes next, where that is known.
    fn next(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<Option<Option<Frame>>, Halt> {
        if self.behind.is_some() {
            return Ok(self.behind.take());
        }
        match source.poll_piece(cx, info) {
            Poll::Ready(piece) => piece.transpose().map(Some),
            Poll::Pending => Ok(None),
        }
    }

    fn show_piece(&mut self, data: Bytes, last: bool, info: &Info) {
        self.told_end = last;
        self.say(Part::Body, message::body(self.way, data.clone(), last), info);
        self.shown_bytes += data.len();
        self.shown.push_back(data);
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<ProcessingResponse>>, Halt>> {
        let mut session = self.session.borrow_mut();
        if session.config.observes {
            ready!(session.poll_said(cx));
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(match ready!(session.poll_answer(cx, self.way)) {
            Said::Nothing => Ok(None),
            Said::Reply(reply) => Err(Halt::Reply(reply)),
            Said::Answer(answer) => Ok(Some(answer)),
        })
    }

    /// What became of a piece that was shown.
    fn settled(&self, info: &mut Info, answer: Option<Box<ProcessingResponse>>, data: Bytes) -> Result<Bytes, Halt> {
        let Some(answer) = answer else { return Ok(data) };
        let mut session = self.session.borrow_mut();
        message::note_metadata(&session.config, &mut info.metadata, answer.dynamic_metadata);
        match answer.response {
            Some(Answer::RequestBody(body) | Answer::ResponseBody(body)) => {
                // The head has gone on: only the piece itself can change.
                Ok(message::new_body(body.response.and_then(|r| r.body_mutation)).unwrap_or(data))
            }
            Some(Answer::ImmediateResponse(response)) => {
                session.finish();
                Err(Halt::Reply(Box::new(message::immediate(&session.stats, response))))
            }
            _ => Ok(data),
        }
    }

    fn settled_trailers(
        &self,
        info: &mut Info,
        answer: Option<Box<ProcessingResponse>>,
        mut trailers: Box<HeaderMap>,
    ) -> Result<Box<HeaderMap>, Halt> {
        let Some(answer) = answer else { return Ok(trailers) };
        let mut session = self.session.borrow_mut();
        message::note_metadata(&session.config, &mut info.metadata, answer.dynamic_metadata);
        match answer.response {
            Some(Answer::RequestTrailers(said) | Answer::ResponseTrailers(said)) => {
                session.changes(Limits::DEFAULT, said.header_mutation).map_err(Halt::Reply)?.apply_to(&mut trailers);
            }
            Some(Answer::ImmediateResponse(response)) => {
                session.finish();
                return Err(Halt::Reply(Box::new(message::immediate(&session.stats, response))));
            }
            _ => {}
        }
        Ok(trailers)
    }

    fn poll_all(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Result<Option<Frame>, Halt>> {
        loop {
            self.show(cx, info, source)?;
            if !self.shown.is_empty() {
                let answer = ready!(self.poll_answer(cx))?;
                let data = self.shown.pop_front().unwrap_or_default();
                self.shown_bytes -= data.len();
                let data = self.settled(info, answer, data)?;
                if !data.is_empty() {
                    return Poll::Ready(Ok(Some(Frame::Data(data))));
                }
            } else if self.shown_trailers.is_some() {
                let answer = ready!(self.poll_answer(cx))?;
                let trailers = self.shown_trailers.take().unwrap_or_default();
                return Poll::Ready(Ok(Some(Frame::Trailers(self.settled_trailers(info, answer, trailers)?))));
            } else {
                match self.behind.take() {
                    None => return Poll::Pending,
                    Some(Some(Frame::Trailers(trailers))) if self.trailers && !self.session.borrow().is_over() => {
                        let request = message::trailers(&self.session.borrow().config, self.way, &trailers);
                        self.say(Part::Trailers, request, info);
                        self.shown_trailers = Some(trailers);
                    }
                    Some(other) => return Poll::Ready(Ok(other)),
                }
            }
        }
    }
}

impl Stage for Through {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        Poll::Ready(ready!(self.poll_all(cx, info, source)).transpose())
    }
}

/// A body in the place of one that is thrown away.
pub(super) struct Instead {
    body: Option<Bytes>,
    drained: bool,
}

impl Instead {
    pub(super) fn of(body: Bytes) -> Self {
        Self { body: Some(body), drained: false }
    }
}

impl Stage for Instead {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        while !self.drained {
            match ready!(source.poll_piece(cx, info)) {
                Some(Ok(Frame::Data(_))) => {}
                Some(Err(halt)) => return Poll::Ready(Some(Err(halt))),
                Some(Ok(Frame::Trailers(_))) | None => self.drained = true,
            }
        }
        Poll::Ready(self.body.take().filter(|body| !body.is_empty()).map(|body| Ok(Frame::Data(body))))
    }
}
