//! A body on its way through a processor, piece by piece, and its trailers.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::HeaderMap;
use lateen_proto::envoy::service::ext_proc::v3::{
    ImmediateResponse, ProcessingResponse, processing_request::Request, processing_response::Response as Answer,
};

use super::super::body::{Halt, Piece, Source, Stage};
use super::message::{self, Limits};
use super::session::{Said, Session};
use super::side::{Part, Way};
use crate::http::Info;
use crate::http::message::Frame;

/// Pieces that a processor may have at once, however small they are.
const MOST_SHOWN: usize = 64;

/// A stage that can show a body before the answer about its head is there.
pub(super) trait Shows: Stage + 'static {
    /// Shows what there is, as far as more may be under way; whether there was anything.
    fn show(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<bool, Halt>;

    /// There is no more of it to come.
    fn is_complete(&self) -> bool;
}

/// What a processor is shown of one direction.
pub(super) struct Feed {
    pub(super) session: Rc<RefCell<Session>>,
    pub(super) way: Way,
    /// What comes behind the pieces that are shown, where that is known.
    pub(super) behind: Option<Option<Frame>>,
    /// The processor knows that there are no more data.
    pub(super) told_end: bool,
    complete: bool,
}

impl Feed {
    pub(super) fn new(session: &Rc<RefCell<Session>>, way: Way) -> Self {
        Self { session: Rc::clone(session), way, behind: None, told_end: false, complete: false }
    }

    pub(super) fn say(&self, part: Part, request: Request, info: &Info) {
        let mut session = self.session.borrow_mut();
        let message = message::request(&mut session, self.way, &info.metadata, request);
        session.say(self.way, part, &message);
    }

    /// What comes next, where that is known.
    pub(super) fn next(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<Option<Option<Frame>>, Halt> {
        if self.behind.is_some() {
            return Ok(self.behind.take());
        }
        if self.complete {
            return Ok(Some(None));
        }
        match source.poll_piece(cx, info) {
            Poll::Ready(piece) => {
                self.complete = !matches!(piece, Some(Ok(Frame::Data(_))));
                piece.transpose().map(Some)
            }
            Poll::Pending => Ok(None),
        }
    }

    /// Shows a piece; that it is the last is said with it where that is known.
    pub(super) fn show_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source, data: Bytes) -> Result<(), Halt> {
        self.behind = self.next(cx, info, source)?;
        self.told_end = matches!(self.behind, Some(None));
        self.say(Part::Body, message::body(self.way, data, self.told_end), info);
        Ok(())
    }

    pub(super) fn show_end(&mut self, info: &Info) {
        self.told_end = true;
        self.say(Part::Body, message::body(self.way, Bytes::new(), true), info);
    }

    pub(super) fn show_trailers(&self, trailers: &HeaderMap, info: &Info) {
        let request = message::trailers(&self.session.borrow().config, self.way, trailers);
        self.say(Part::Trailers, request, info);
    }

    /// There is no more of the body to come.
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn is_over(&self) -> bool {
        self.session.borrow().is_over()
    }

    /// What a processor makes of trailers.
    pub(super) fn settled_trailers(
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
            Some(Answer::ImmediateResponse(response)) => return Err(immediate(&mut session, response)),
            _ => {}
        }
        Ok(trailers)
    }
}

/// The processor answers in the upstream's place.
pub(super) fn immediate(session: &mut Session, response: ImmediateResponse) -> Halt {
    session.finish();
    Halt::Reply(Box::new(message::immediate(&session.stats, response)))
}

/// The stage. Pieces are shown as they come, and go on in the order of their answers; how much is under way is bounded, so
/// that a slow processor slows the sender.
pub(super) struct Through {
    feed: Feed,
    /// Data are shown; otherwise only trailers are.
    data: bool,
    trailers: bool,
    /// Pieces that the processor has, oldest first.
    shown: VecDeque<Bytes>,
    shown_bytes: usize,
    /// The most bytes that it may have when another piece is shown.
    limit: usize,
    shown_trailers: Option<Box<HeaderMap>>,
}

impl Through {
    pub(super) fn new(session: &Rc<RefCell<Session>>, way: Way, data: bool, trailers: bool, limit: usize) -> Self {
        let feed = Feed::new(session, way);
        Self { feed, data, trailers, shown: VecDeque::new(), shown_bytes: 0, limit, shown_trailers: None }
    }

    fn has_room(&self) -> bool {
        // One that only looks on has a queue of its own.
        let most = if self.feed.session.borrow().config.observes { 1 } else { MOST_SHOWN };
        self.shown.len() < most && (self.shown.is_empty() || self.shown_bytes < self.limit)
    }

    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Box<ProcessingResponse>>, Halt>> {
        let mut session = self.feed.session.borrow_mut();
        if session.config.observes {
            ready!(session.poll_said(cx));
            return Poll::Ready(Ok(None));
        }
        Poll::Ready(match ready!(session.poll_answer(cx, self.feed.way)) {
            Said::Nothing => Ok(None),
            Said::Reply(reply) => Err(Halt::Reply(reply)),
            Said::Answer(answer) => Ok(Some(answer)),
        })
    }

    /// What became of a piece that was shown.
    fn settled(&self, info: &mut Info, answer: Option<Box<ProcessingResponse>>, data: Bytes) -> Result<Bytes, Halt> {
        let Some(answer) = answer else { return Ok(data) };
        let mut session = self.feed.session.borrow_mut();
        message::note_metadata(&session.config, &mut info.metadata, answer.dynamic_metadata);
        match answer.response {
            Some(Answer::RequestBody(body) | Answer::ResponseBody(body)) => {
                // The head has gone on: only the piece itself can change.
                Ok(message::new_body(body.response.and_then(|r| r.body_mutation)).unwrap_or(data))
            }
            Some(Answer::ImmediateResponse(response)) => Err(immediate(&mut session, response)),
            _ => Ok(data),
        }
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
                return Poll::Ready(Ok(Some(Frame::Trailers(self.feed.settled_trailers(info, answer, trailers)?))));
            } else {
                match self.feed.behind.take() {
                    None => return Poll::Pending,
                    Some(Some(Frame::Trailers(trailers))) if self.trailers && !self.feed.is_over() => {
                        self.feed.show_trailers(&trailers, info);
                        self.shown_trailers = Some(trailers);
                    }
                    Some(other) => return Poll::Ready(Ok(other)),
                }
            }
        }
    }
}

impl Shows for Through {
    fn show(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Result<bool, Halt> {
        let before = self.shown.len();
        while self.has_room() {
            let shows = self.data && !self.feed.is_over();
            let data = match self.feed.next(cx, info, source)? {
                Some(Some(Frame::Data(data))) if shows => {
                    self.feed.show_piece(cx, info, source, data.clone())?;
                    data
                }
                Some(None) if shows && !self.feed.told_end => {
                    self.feed.show_end(info);
                    self.feed.behind = Some(None);
                    Bytes::new()
                }
                other => {
                    self.feed.behind = other;
                    break;
                }
            };
            self.shown_bytes += data.len();
            self.shown.push_back(data);
        }
        Ok(self.shown.len() > before)
    }

    fn is_complete(&self) -> bool {
        self.feed.is_complete()
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
    /// `complete`: there is nothing more of the other to come.
    pub(super) fn of(body: Bytes, complete: bool) -> Self {
        Self { body: Some(body), drained: complete }
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
