//! The conversation with a processor about one exchange: one stream of messages, in which each direction waits for its answers.
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use lateen_proto::envoy::service::ext_proc::v3::{
    HeaderMutation, ProcessingRequest, ProcessingResponse, processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{ExtProc, ProcessingMode, RouteCacheAction};
use lateen_telemetry::envoy_names::ext_proc as names;
use lateen_telemetry::{Local, ResponseFlags};
use tokio::time::Instant;

use super::message::{self, Changes, Limits, Refused};
use crate::http::reply::Reply;
use crate::io::Timer;
use crate::upstream::grpc::{self, Status, Streaming};
use crate::worker::{Live, Worker};

const METHOD: &str = "/envoy.service.ext_proc.v3.ExternalProcessor/Process";
/// How long a processor may take to end its side once the exchange is over.
const LINGER: Duration = Duration::from_secs(1);
/// Messages to a processor that only looks on; when it reads slower than they come, the exchange waits for it.
const MOST_QUEUED: usize = 16;

/// One of the two ways of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Response,
}

/// What a processor was asked about last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Headers,
    Body,
    Trailers,
}

/// What comes of asking.
pub(super) enum Said {
    Answer(Box<ProcessingResponse>),
    /// Nothing: the exchange goes on as it is.
    Nothing,
    /// The processor, or its failure, ends the exchange.
    Reply(Box<Reply>),
}

/// A direction's part in the conversation.
#[derive(Default)]
struct Side {
    waits_for: Option<Part>,
    /// How many answers about that part are still to come.
    open: usize,
    /// Those that have come, in order.
    answers: VecDeque<Box<ProcessingResponse>>,
    timer: Timer,
}

impl Side {
    /// Nothing more is to come.
    fn settle(&mut self) {
        (self.waits_for, self.open) = (None, 0);
        self.timer.set(None);
    }
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
    request: Side,
    response: Side,
    /// What ended the conversation badly: the next that waits is told.
    failed: Option<Box<Reply>>,
}

impl Session {
    pub(super) fn new(worker: Rc<Worker>, live: Rc<Live>, config: Arc<ExtProc>, stats: Rc<Local>) -> Self {
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
            request: Side::default(),
            response: Side::default(),
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
        self.outbox.push_back(grpc::framed(message));
        self.stats.inc(names::STREAM_MSGS_SENT);
        if !self.config.observes {
            let limit = self.config.message_timeout;
            let side = self.side(way);
            side.waits_for = Some(part);
            side.open += 1;
            side.timer.after(Some(limit));
        }
    }

    /// Ready when what was said has been taken, so far that more may be said.
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
        if let Some(answer) = self.side(way).answers.pop_front() {
            return Poll::Ready(Said::Answer(answer));
        }
        if self.is_over() || self.side(way).waits_for.is_none() {
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
    fn drive(&mut self, cx: &mut Context<'_>) {
        loop {
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
                            open.send(message);
                        }
                    }
                    match open.poll_message(cx) {
                        Poll::Ready(Ok(Some(answer))) => self.take(cx, Box::new(answer)),
                        // The processor has seen enough.
                        Poll::Ready(Ok(None)) => {
                            self.stats.inc(names::STREAMS_CLOSED);
                            return self.stream = Stream::Over;
                        }
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
            Some(Answer::ImmediateResponse(_)) => match self.request.waits_for {
                Some(part) => (Way::Request, part),
                None => (Way::Response, self.response.waits_for.unwrap_or(Part::Headers)),
            },
            _ => return self.spurious("unhandled_message"),
        };
        let limit = self.config.message_timeout;
        let side = self.side(way);
        if side.waits_for != Some(part) {
            return self.spurious("spurious_message");
        }
        side.answers.push_back(answer);
        if side.open > 1 {
            side.open -= 1;
            side.timer.after(Some(limit));
        } else {
            side.settle();
        }
        self.stats.inc(names::STREAM_MSGS_RECEIVED);
        // The other direction may have been the one that looked.
        cx.waker().wake_by_ref();
    }

    fn more_time(&mut self, wanted: Duration) {
        let waits = self.request.waits_for.is_some() || self.response.waits_for.is_some();
        if wanted < Duration::from_millis(1) || wanted > self.config.max_message_timeout || !waits {
            return self.stats.inc(names::OVERRIDE_MESSAGE_TIMEOUT_IGNORED);
        }
        self.stats.inc(names::OVERRIDE_MESSAGE_TIMEOUT_RECEIVED);
        let until = Instant::now().checked_add(wanted);
        for side in [&mut self.request, &mut self.response] {
            if side.waits_for.is_some() {
                side.timer.set(until);
            }
        }
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
        if self.failure_mode_allow {
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
        let Stream::Open(open) = std::mem::replace(&mut self.stream, Stream::Over) else { return };
        self.stats.inc(names::STREAMS_CLOSED);
        let left = std::mem::take(&mut self.outbox);
        let limit = if self.config.observes { self.config.close_timeout } else { LINGER };
        crate::worker::spawn(&self.worker, async move {
            let _ = tokio::time::timeout(limit, Box::pin(open.close(left))).await;
        });
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
