//! A body on its way through a processor, piece by piece, and its trailers.
use std::cell::RefCell;
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

/// The stage.
pub(super) struct Through {
    session: Rc<RefCell<Session>>,
    way: Way,
    /// Data are shown; otherwise only trailers are.
    data: bool,
    trailers: bool,
    state: State,
    /// What came behind a piece that was shown.
    ahead: Option<Option<Frame>>,
    /// The processor knows that there are no more data.
    told_end: bool,
}

enum State {
    Flowing,
    /// The processor has this piece.
    Shown(Bytes),
    ShownTrailers(Box<HeaderMap>),
}

impl Through {
    pub(super) fn new(session: &Rc<RefCell<Session>>, way: Way, data: bool, trailers: bool) -> Self {
        Self { session: Rc::clone(session), way, data, trailers, state: State::Flowing, ahead: None, told_end: false }
    }

    /// The next piece as it comes.
    fn poll_next(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Result<Option<Frame>, Halt>> {
        if let Some(ahead) = self.ahead.take() {
            return Poll::Ready(Ok(ahead));
        }
        Poll::Ready(ready!(source.poll_piece(cx, info)).transpose())
    }

    fn say(&self, part: Part, request: Request, info: &Info) {
        let mut session = self.session.borrow_mut();
        let message = message::request(&session, &info.metadata, request);
        session.say(self.way, part, &message);
    }

    /// Shows a piece; whether it is the last is said where that is known already.
    fn show(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source, data: Bytes) -> Result<(), Halt> {
        if self.ahead.is_none()
            && let Poll::Ready(next) = source.poll_piece(cx, info)
        {
            self.ahead = Some(next.transpose()?);
        }
        self.told_end = matches!(self.ahead, Some(None));
        self.say(Part::Body, message::body(self.way, data.clone(), self.told_end), info);
        self.state = State::Shown(data);
        Ok(())
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
            match &mut self.state {
                State::Shown(data) => {
                    let data = std::mem::take(data);
                    let Poll::Ready(answer) = self.poll_answer(cx) else {
                        self.state = State::Shown(data);
                        return Poll::Pending;
                    };
                    self.state = State::Flowing;
                    let data = self.settled(info, answer?, data)?;
                    if !data.is_empty() {
                        return Poll::Ready(Ok(Some(Frame::Data(data))));
                    }
                }
                State::ShownTrailers(trailers) => {
                    let trailers = std::mem::take(trailers);
                    let Poll::Ready(answer) = self.poll_answer(cx) else {
                        self.state = State::ShownTrailers(trailers);
                        return Poll::Pending;
                    };
                    self.state = State::Flowing;
                    return Poll::Ready(Ok(Some(Frame::Trailers(self.settled_trailers(info, answer?, trailers)?))));
                }
                State::Flowing => {
                    let over = self.session.borrow().is_over();
                    match ready!(self.poll_next(cx, info, source))? {
                        Some(Frame::Data(data)) if self.data && !over => self.show(cx, info, source, data)?,
                        Some(Frame::Trailers(trailers)) if self.trailers && !over => {
                            let request = message::trailers(&self.session.borrow().config, self.way, &trailers);
                            self.say(Part::Trailers, request, info);
                            self.state = State::ShownTrailers(trailers);
                        }
                        None if self.data && !over && !self.told_end => {
                            self.told_end = true;
                            self.say(Part::Body, message::body(self.way, Bytes::new(), true), info);
                            self.ahead = Some(None);
                            self.state = State::Shown(Bytes::new());
                        }
                        other => return Poll::Ready(Ok(other)),
                    }
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
