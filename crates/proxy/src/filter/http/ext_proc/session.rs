//! The conversation with a processor about one exchange: one stream of messages, in which each direction waits for its answers.
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use lateen_proto::Struct;
use lateen_proto::envoy::service::ext_proc::v3::{
    HeaderMutation, ProcessingRequest, ProcessingResponse, processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{BodyMode, ExtProc, ProcessingMode, RouteCacheAction};
use lateen_telemetry::envoy_names::ext_proc as names;
use lateen_telemetry::{Local, ResponseFlags};
use tokio::time::Instant;

use super::message::{self, Changes, Limits, Refused};
use super::side::{Part, Side, Way};
use crate::http::reply::Reply;
use crate::upstream::grpc::{self, Status, Streaming};
use crate::worker::{Live, Worker};

const METHOD: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// How long a processor may take to end its side once the exchange is over.
const LINGER: Duration = Duration::from_secs(1);
/// Messages that wait to be sent to a processor that nobody waits for; when it reads slower than they come, the exchange waits.
const MOST_QUEUED: usize = 16;
/// How many times as many answers of one direction may wait to be used while the other waits for one.
const BEHIND: usize = 3;

/// What comes of asking.
pub(super) enum Said {
    Answer(Box<ProcessingResponse>),
    /// Nothing: the exchange goes on as it is.
    Nothing,
    /// The processor, or its failure, ends the exchange.
    Reply(Box<Reply>),
}

enum Stream {
    None,
    Opening(Pin<Box<dyn Future<Output = Result<Streaming, Status>>>>),
    Open(Box<Streaming>),
    /// Nothing more is said.
    Over,
}

/// The conversation.
pub(super) struct Session {
    worker: Rc<Worker>,
    live: Rc<Live>,
    pub(super) config: Arc<ExtProc>,
    pub(super) stats: Rc<Local>,
    pub(super) mode: ProcessingMode,
    pub(super) failure_mode_allow: bool,
    /// Something has been said.
    pub(super) begun: bool,
    stream: Stream,
    outbox: VecDeque<Bytes>,
    outbox_bytes: usize,
    /// How many bytes may wait to be sent, and how many of answers to be used.
    limit: usize,
    request: Side,
    response: Side,
    /// The answer in the upstream's place, for whichever direction looks first.
    immediate: Option<Box<ProcessingResponse>>,
    /// What ended the conversation badly: the next that waits is told.
    failed: Option<Box<Reply>>,
}

impl Session {
    pub(super) fn new(worker: Rc<Worker>, live: Rc<Live>, config: Arc<ExtProc>, stats: Rc<Local>, limit: usize) -> Self {
        Self {
            worker,
            live,
            mode: config.mode,
            failure_mode_allow: config.failure_mode_allow,
            config,
            stats,
            begun: false,
            stream: Stream::None,
            outbox: VecDeque::new(),
            outbox_bytes: 0,
            limit,
            request: Side::default(),
            response: Side::default(),
            immediate: None,
            failed: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.stream, Stream::Over)
    }

    fn side(&mut self, way: Way) -> &mut Side {
        match way {
            Way::Request => &mut self.request,
            Way::Response => &mut self.response,
        }
    }

    /// What is told with the first message about a direction.
    pub(super) fn tell(&mut self, way: Way, attributes: Struct) {
        self.side(way).attributes = Some(Box::new(attributes));
    }

    /// What is to be told with a message; the next needs it no more.
    pub(super) fn attributes(&mut self, way: Way) -> Option<Box<Struct>> {
        self.side(way).attributes.take()
    }

    pub(super) fn is_full_duplex(&self, way: Way) -> bool {
        let mode = match way {
            Way::Request => self.mode.request_body,
            Way::Response => self.mode.response_body,
        };
        mode == BodyMode::FullDuplexStreamed
    }

    /// Says something about one direction; unless the processor only looks on, its answer is to be waited for.
    pub(super) fn say(&mut self, way: Way, part: Part, message: &ProcessingRequest) {
        if self.is_over() {
            return;
        }
        if matches!(self.stream, Stream::None) {
            self.stats.inc(names::STREAMS_STARTED);
            let (worker, live, config) = (Rc::clone(&self.worker), Rc::clone(&self.live), Arc::clone(&self.config));
            self.stream = Stream::Opening(Box::pin(async move { Streaming::open(&worker, &live, &config.service, METHOD).await }));
        }
        self.begun = true;
        let message = grpc::framed(message);
        self.outbox_bytes += message.len();
        self.outbox.push_back(message);
        self.stats.inc(names::STREAM_MSGS_SENT);
        if self.config.observes {
            return;
        }
        let (limit, full_duplex) = (self.config.message_timeout, self.is_full_duplex(way));
        let side = self.side(way);
        match part {
            Part::Headers => side.head = true,
            Part::Body if full_duplex => (side.pieces, side.given) = (1, true),
            Part::Body => side.pieces += 1,
            Part::Trailers => side.trailers = true,
        }
        // In full duplex a processor takes its time, as Envoy lets it: how long an exchange may be idle limits it.
        if !full_duplex {
            side.timer.after(Some(limit));
        }
    }

    /// Whether more may be said to a processor whose answers are not counted.
    pub(super) fn has_room(&self) -> bool {
        self.outbox.len() < MOST_QUEUED && self.outbox_bytes < self.limit
    }

    /// Whether more answers may come. Those of a direction that does not go on, as when an upstream has answered before it read
    /// the request, do not keep those away that the other waits for, within a bound.
    fn reads(&self) -> bool {
        let room = |side: &Side, other: &Side| {
            let wanted = other.waits() && other.held == 0;
            side.held < if wanted { BEHIND * self.limit } else { self.limit }
        };
        room(&self.request, &self.response) && room(&self.response, &self.request)
    }

    /// Nobody takes what becomes of this direction's body any more.
    pub(super) fn forget(&mut self, way: Way) {
        self.side(way).forget();
    }

    /// Ready when what was said has been taken, so far that more may be said, or nobody takes any more.
    pub(super) fn poll_said(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.drive(cx);
        if self.outbox.len() < MOST_QUEUED { Poll::Ready(()) } else { Poll::Pending }
    }

    /// The next answer to what was said about this direction; they come in the order in which it was said.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>, way: Way) -> Poll<Said> {
        self.drive(cx);
        if let Some(reply) = self.failed.take() {
            return Poll::Ready(Said::Reply(reply));
        }
        if let Some(answer) = self.immediate.take() {
            return Poll::Ready(Said::Answer(answer));
        }
        let read = self.reads();
        if let Some(answer) = self.side(way).take() {
            if !read {
                // Reading goes on.
                cx.waker().wake_by_ref();
            }
            return Poll::Ready(Said::Answer(answer));
        }
        if self.is_over() || !self.side(way).waits() {
            return Poll::Ready(Said::Nothing);
        }
        if self.side(way).timer.poll(cx).is_pending() {
            return Poll::Pending;
        }
        self.stats.inc(names::MESSAGE_TIMEOUTS);
        self.fail(504, "ext_proc_error_per-message_timeout_exceeded".to_owned());
        Poll::Ready(self.failed.take().map_or(Said::Nothing, Said::Reply))
    }

    /// Moves what can be moved.
    pub(super) fn drive(&mut self, cx: &mut Context<'_>) {
        loop {
            let reads = self.reads();
            match &mut self.stream {
                Stream::None | Stream::Over => return,
                Stream::Opening(opening) => match opening.as_mut().poll(cx) {
                    Poll::Ready(Ok(open)) => self.stream = Stream::Open(Box::new(open)),
                    Poll::Ready(Err(status)) => return self.broken(&status),
                    Poll::Pending => return,
                },
                Stream::Open(open) => {
                    while !self.outbox.is_empty() && open.poll_room(cx).is_ready() {
                        if let Some(message) = self.outbox.pop_front() {
                            self.outbox_bytes -= message.len();
                            open.send(message);
                        }
                    }
                    if !reads {
                        return open.flush(cx);
                    }
                    match open.poll_message(cx) {
                        Poll::Ready(Ok(Some(answer))) => self.take(cx, Box::new(answer)),
                        // The processor has seen enough.
                        Poll::Ready(Ok(None)) => return self.closed(),
                        Poll::Ready(Err(status)) => return self.broken(&status),
                        Poll::Pending => return,
                    }
                }
            }
        }
    }

    /// Gives an answer to the direction that waits for it.
    fn take(&mut self, cx: &mut Context<'_>, answer: Box<ProcessingResponse>) {
        if self.config.observes {
            return;
        }
        if let Some(wanted) = &answer.override_message_timeout {
            let wanted = Duration::try_from(*wanted).unwrap_or(Duration::ZERO);
            return self.more_time(wanted);
        }
        let (way, part) = match &answer.response {
            Some(Answer::RequestHeaders(_)) => (Way::Request, Part::Headers),
            Some(Answer::RequestBody(_)) => (Way::Request, Part::Body),
            Some(Answer::RequestTrailers(_)) => (Way::Request, Part::Trailers),
            Some(Answer::ResponseHeaders(_)) => (Way::Response, Part::Headers),
            Some(Answer::ResponseBody(_)) => (Way::Response, Part::Body),
            Some(Answer::ResponseTrailers(_)) => (Way::Response, Part::Trailers),
            Some(Answer::ImmediateResponse(_)) if self.config.disable_immediate_response => {
                return self.spurious("unhandled_immediate_response_due_to_config_disabled_it");
            }
            Some(Answer::ImmediateResponse(_)) => {
                self.request.settle();
                self.response.settle();
                self.immediate = Some(answer);
                self.stats.inc(names::STREAM_MSGS_RECEIVED);
                return cx.waker().wake_by_ref();
            }
            _ => return self.spurious("unhandled_message"),
        };
        let (limit, full_duplex) = (self.config.message_timeout, self.is_full_duplex(way));
        if self.side(way).replaced {
            return;
        }
        if !self.side(way).expects(part, full_duplex) {
            return self.spurious("spurious_message");
        }
        if let Some(wrong) = self.wrong_form(way, part, &answer) {
            return self.spurious(wrong);
        }
        let side = self.side(way);
        side.answered(part, full_duplex, &answer);
        side.keep(answer);
        side.timer.after(Some(limit).filter(|_| side.waits() && !full_duplex));
        self.stats.inc(names::STREAM_MSGS_RECEIVED);
        // The other direction may have been the one that looked.
        cx.waker().wake_by_ref();
    }

    /// Why an answer about a piece is none in this mode: pieces in full duplex are of another form than others.
    fn wrong_form(&mut self, way: Way, part: Part, answer: &ProcessingResponse) -> Option<&'static str> {
        match (part, self.is_full_duplex(way), message::streamed(answer)) {
            (Part::Body, true, None) => {
                Some("spurious_message:_Normal_body_mutation_response_is_received_while_body_mode__is_FULL_DUPLEX_STREAMED")
            }
            (Part::Body, false, Some(_)) => {
                Some("spurious_message:_streamed_response_is_received_while_body_mode__is_not_FULL_DUPLEX_STREAMED")
            }
            _ => None,
        }
    }

    fn more_time(&mut self, wanted: Duration) {
        let timed = |way| self.is_timed(way);
        let waits = timed(Way::Request) || timed(Way::Response);
        if wanted < Duration::from_millis(1) || wanted > self.config.max_message_timeout || !waits {
            return self.stats.inc(names::OVERRIDE_MESSAGE_TIMEOUT_IGNORED);
        }
        self.stats.inc(names::OVERRIDE_MESSAGE_TIMEOUT_RECEIVED);
        let until = Instant::now().checked_add(wanted);
        for way in [Way::Request, Way::Response] {
            if self.is_timed(way) {
                self.side(way).timer.set(until);
            }
        }
    }

    /// Whether an answer is waited for that has to come in time.
    fn is_timed(&self, way: Way) -> bool {
        let side = if way == Way::Request { &self.request } else { &self.response };
        side.waits() && !self.is_full_duplex(way)
    }

    /// What the processor wants of headers.
    ///
    /// # Errors
    /// The reply to an exchange whose processor wants what it may not; it is not listened to any more.
    pub(super) fn changes(&mut self, limits: Limits, wanted: Option<HeaderMutation>) -> Result<Changes, Box<Reply>> {
        message::changes(&self.config.rules, limits, &self.stats, wanted).map_err(|reason| self.refused(reason))
    }

    /// The reply where changes cannot be made.
    pub(super) fn refused(&mut self, reason: Refused) -> Box<Reply> {
        self.finish();
        Box::new(Reply::new(self.config.status_on_error, "", reason, ResponseFlags::NONE))
    }

    /// Whether a request finds its route again after an answer.
    pub(super) fn clears_route(&self, changes_headers: bool, asked: bool) -> bool {
        match self.config.route_cache {
            _ if !changes_headers => {
                if asked {
                    self.stats.inc(names::CLEAR_ROUTE_CACHE_IGNORED);
                }
                false
            }
            RouteCacheAction::Clear => true,
            RouteCacheAction::Default => asked,
            RouteCacheAction::Retain => {
                if asked {
                    self.stats.inc(names::CLEAR_ROUTE_CACHE_DISABLED);
                }
                false
            }
        }
    }

    /// A message that nobody waits for: such a processor is not listened to any more.
    fn spurious(&mut self, details: &'static str) {
        self.stats.inc(names::SPURIOUS_MSGS_RECEIVED);
        self.fail(self.config.status_on_error, details.to_owned());
    }

    /// The processor has seen enough. What it alone has of a body it must have answered.
    fn closed(&mut self) {
        self.stats.inc(names::STREAMS_CLOSED);
        self.stream = Stream::Over;
        self.take_outbox();
        let lost = [&self.request, &self.response].iter().any(|side| side.given && side.pieces > 0);
        if lost {
            self.fail(self.config.status_on_error, "ext_proc_error_stream_closed_within_a_body".to_owned());
        }
    }

    fn broken(&mut self, status: &Status) {
        tracing::debug!(code = status.code, message = status.message, "external processing failed");
        self.stats.inc(names::STREAMS_FAILED);
        let answered = matches!(&self.stream, Stream::Open(open) if open.is_answered());
        self.stream = Stream::Over;
        let how = if answered { "{via_upstream}" } else { "" };
        self.fail(self.config.status_on_error, format!("ext_proc_error_gRPC_error_{}{how}", status.code));
    }

    /// Ends the conversation over a failure of the processor.
    fn fail(&mut self, status: u16, details: String) {
        self.finish();
        // A body of which the processor has a part cannot go on without it.
        if self.failure_mode_allow && !self.request.given && !self.response.given {
            self.stats.inc(names::FAILURE_MODE_ALLOWED);
        } else {
            self.failed = Some(Box::new(Reply::new(status, "", details, ResponseFlags::NONE)));
        }
    }

    /// Nothing more is said; what was said is still delivered.
    pub(super) fn finish(&mut self) {
        for side in [&mut self.request, &mut self.response] {
            side.settle();
        }
        let left = self.take_outbox();
        let Stream::Open(open) = std::mem::replace(&mut self.stream, Stream::Over) else { return };
        self.stats.inc(names::STREAMS_CLOSED);
        let limit = if self.config.observes { self.config.close_timeout } else { LINGER };
        crate::worker::spawn(&self.worker, async move {
            let _ = tokio::time::timeout(limit, Box::pin(open.close(left))).await;
        });
    }

    fn take_outbox(&mut self) -> VecDeque<Bytes> {
        self.outbox_bytes = 0;
        std::mem::take(&mut self.outbox)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if matches!(self.stream, Stream::Opening(_))
            && let Stream::Opening(opening) = std::mem::replace(&mut self.stream, Stream::Over)
        {
            if self.config.observes {
                // What it was to see has not been sent yet.
                let (left, limit) = (std::mem::take(&mut self.outbox), self.config.close_timeout);
                crate::worker::spawn(&self.worker, async move {
                    let work = async {
                        if let Ok(open) = opening.await {
                            open.close(left).await;
                        }
                    };
                    let _ = tokio::time::timeout(limit, Box::pin(work)).await;
                });
            }
            return;
        }
        self.finish();
    }
}
