//! Waiting for a body before its head goes on, up to a limit.
use std::collections::VecDeque;
use std::future::poll_fn;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::http as names;
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::super::wait;
use super::{Caller, Chain, Halt, Origin, Piece, Source, Stage, small};
use crate::http::message::{Frame, Length};
use crate::http::reply::Reply;
use crate::http::{End, Exchange, Info};
use crate::router::Failure;

/// A body that was waited for, or its beginning.
#[derive(Debug, Default)]
pub(crate) struct Held {
    frames: VecDeque<Frame>,
    bytes: usize,
    /// There is no more of it.
    complete: bool,
}

impl Held {
    /// All of a body.
    pub(crate) fn of(frames: impl Iterator<Item = Frame>) -> Self {
        let mut held = Self::default();
        frames.for_each(|frame| held.add(frame));
        held.complete = true;
        held
    }

    pub(crate) fn is_complete(&self) -> bool {
        self.complete
    }

    /// How many bytes are held.
    pub(crate) fn len(&self) -> usize {
        self.bytes
    }

    /// The bytes in one piece.
    pub(crate) fn bytes(&self) -> Bytes {
        let mut all = self.data();
        match (all.next(), all.next()) {
            (None, _) => Bytes::new(),
            (Some(only), None) => only.clone(),
            _ => self
                .data()
                .fold(BytesMut::with_capacity(self.bytes), |mut joined, data| {
                    joined.extend_from_slice(data);
                    joined
                })
                .freeze(),
        }
    }

    /// The trailers, where the body is complete and has some.
    pub(crate) fn trailers(&mut self) -> Option<&mut HeaderMap> {
        self.frames.iter_mut().find_map(|f| if let Frame::Trailers(map) = f { Some(&mut **map) } else { None })
    }

    /// Puts other bytes in the place of those that are held; trailers stay.
    pub(crate) fn replace(&mut self, data: Bytes) {
        self.frames.retain(|f| matches!(f, Frame::Trailers(_)));
        self.bytes = data.len();
        self.frames.push_front(Frame::Data(data));
    }

    fn data(&self) -> impl Iterator<Item = &Bytes> {
        self.frames.iter().filter_map(|f| if let Frame::Data(data) = f { Some(data) } else { None })
    }

    /// Takes what comes until it is complete or has more than `limit` bytes.
    fn poll_fill(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source, limit: usize) -> Poll<Result<(), Halt>> {
        while !self.complete && self.bytes <= limit {
            match ready!(source.poll_piece(cx, info)) {
                Some(Ok(frame)) => self.add(frame),
                None => self.complete = true,
                Some(Err(halt)) => return Poll::Ready(Err(halt)),
            }
        }
        Poll::Ready(Ok(()))
    }

    fn add(&mut self, frame: Frame) {
        match &frame {
            Frame::Data(data) => {
                self.bytes += data.len();
                let last = self.frames.back_mut().and_then(|f| if let Frame::Data(last) = f { Some(last) } else { None });
                if small::join(last, data) {
                    return;
                }
            }
            Frame::Trailers(_) => self.complete = true,
        }
        self.frames.push_back(frame);
    }
}

impl Stage for Held {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        match self.frames.pop_front() {
            Some(frame) => Poll::Ready(Some(Ok(frame))),
            None if self.complete => Poll::Ready(None),
            None => source.poll_piece(cx, info),
        }
    }
}

/// Waits for the request's body, as the filters before made it, until it is complete or has more than `limit` bytes.
/// Put it back with [`Exchange::put_back_request`], or the bytes are lost.
///
/// # Errors
/// When the caller goes away or takes too long, or a filter before answers.
pub(crate) async fn request(exchange: &mut Exchange<'_>, limit: usize) -> Result<Held, End> {
    let mut held = Held::default();
    during_request(exchange, |cx, info, source| held.poll_fill(cx, info, source, limit)).await?;
    Ok(held)
}

/// Does what `work` does with the request's body, as the filters before made it, while the request's head waits. `work` is
/// done again when something has come of what it waits for. When it has taken all of the body, what that went through must be
/// left behind ([`Exchange::pass_request`]).
///
/// # Errors
/// When the caller goes away or takes too long, or a filter before answers.
pub(crate) async fn during_request<T>(
    exchange: &mut Exchange<'_>,
    mut work: impl FnMut(&mut Context<'_>, &mut Info, &mut dyn Source) -> Poll<Result<T, Halt>>,
) -> Result<T, End> {
    let limits = Limits::of(exchange);
    exchange.timer.set(limits.next(Instant::now()));
    let (down, timer, info) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info);
    let chain = &mut exchange.bodies.get_or_insert_default().request;
    let http1 = exchange.request.version != crate::http::message::Version::Http2;
    let result = poll_fn(|cx| {
        let mut origin = Watched { source: &mut *down, waits: false };
        let mut source = Chained { chain: &mut *chain, origin: &mut origin, moved: false };
        let done = work(cx, info, &mut source);
        let (moved, waits) = (source.moved, origin.waits);
        match done {
            Poll::Ready(Ok(done)) => return Poll::Ready(Ok(done)),
            Poll::Ready(Err(Halt::Reply(reply))) => return Poll::Ready(Err(End::Reply(reply))),
            Poll::Ready(Err(Halt::Stream(crate::http::stream::StreamError::Protocol))) if http1 => {
                return Poll::Ready(Err(crate::http::reply::malformed_body().into()));
            }
            Poll::Ready(Err(Halt::Stream(_))) => return Poll::Ready(Err(End::Gone)),
            Poll::Pending => {}
        }
        // Who waits for a body sees its sender go.
        if !waits && (!http1 || down.request_done()) && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        if moved && limits.idle.is_some() {
            timer.set(limits.next(Instant::now()));
        }
        timer.poll(cx).map(|()| Err(End::from(limits.expired(Instant::now()).reply(false, false, false))))
    })
    .await;
    exchange.timer.set(None);
    if matches!(&result, Err(End::Reply(reply)) if reply.details == details::REQUEST_OVERALL_TIMEOUT) {
        exchange.hcm.stats.inc(names::DOWNSTREAM_RQ_TIMEOUT);
    }
    result
}

/// Waits for a response's body, as the filters before made it, until it is complete or has more than `limit` bytes.
/// Put it back with [`Exchange::put_back_response`], or the bytes are lost.
///
/// # Errors
/// When either end goes away or takes too long, or a filter before answers.
pub(crate) async fn response(exchange: &mut Exchange<'_>, origin: &mut dyn Origin, limit: usize) -> Result<Held, End> {
    let mut held = Held::default();
    during_response(exchange, origin, |cx, info, source| held.poll_fill(cx, info, source, limit)).await?;
    Ok(held)
}

/// [`during_request`] for a response's body ([`Exchange::pass_response`]).
///
/// # Errors
/// When either end goes away or takes too long, or a filter before answers.
pub(crate) async fn during_response<T>(
    exchange: &mut Exchange<'_>,
    origin: &mut dyn Origin,
    mut work: impl FnMut(&mut Context<'_>, &mut Info, &mut dyn Source) -> Poll<Result<T, Halt>>,
) -> Result<T, End> {
    let (down, timer, info) = (&mut *exchange.down, &mut *exchange.timer, &mut exchange.info);
    let bodies = exchange.bodies.get_or_insert_default();
    let (mut caller, chain) = (Caller { down, timer, chain: Some(&mut bodies.request) }, &mut bodies.response);
    let end = |halt| match halt {
        Halt::Reply(reply) => End::Reply(reply),
        Halt::Stream(_) => End::Cut,
    };
    poll_fn(|cx| {
        let mut meanwhile = Meanwhile { origin: &mut *origin, caller: &mut caller };
        let mut watched = Watched { source: &mut meanwhile, waits: false };
        let mut source = Chained { chain: &mut *chain, origin: &mut watched, moved: false };
        if let Poll::Ready(done) = work(cx, info, &mut source) {
            return Poll::Ready(done.map_err(end));
        }
        // Whoever waits for more of what comes does the rest as well; a stage may wait for something else.
        if watched.waits { Poll::Pending } else { origin.poll_meanwhile(cx, info, &mut caller).map(|halt| Err(end(halt))) }
    })
    .await
}

/// What comes out of a chain.
struct Chained<'a> {
    chain: &'a mut Chain,
    origin: &'a mut dyn Source,
    /// Something came.
    moved: bool,
}

impl Source for Chained<'_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        let piece = self.chain.poll_piece(cx, info, self.origin);
        self.moved |= piece.is_ready();
        piece
    }
}

/// What comes into a chain.
struct Watched<'a> {
    source: &'a mut dyn Source,
    /// There was nothing more when it was asked last.
    waits: bool,
}

impl Source for Watched<'_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        let piece = self.source.poll_piece(cx, info);
        self.waits = piece.is_pending();
        piece
    }
}

/// An [`Origin`] as a source.
struct Meanwhile<'a, 'b> {
    origin: &'a mut dyn Origin,
    caller: &'a mut Caller<'b>,
}

impl Source for Meanwhile<'_, '_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        self.origin.poll_piece(cx, info, self.caller)
    }
}

impl Exchange<'_> {
    /// Lets a held body go on. One that is complete, and was in length what it says, has a known length.
    pub(crate) fn put_back_request(&mut self, held: Held) {
        if held.complete {
            self.request.length = Length::Known(held.bytes as u64);
        }
        let complete = held.complete;
        self.pass_request(held, complete);
    }

    /// Lets a body go on that was looked at while the head waited; `complete` when there is no more of it to come.
    pub(crate) fn pass_request(&mut self, stage: impl Stage + 'static, complete: bool) {
        pass(&mut self.bodies().request, stage, complete);
    }

    /// Lets a held body go on; its length is the filter's to say.
    pub(crate) fn put_back_response(&mut self, held: Held) {
        let complete = held.complete;
        self.pass_response(held, complete);
    }

    /// [`Self::pass_request`] for a response's body.
    pub(crate) fn pass_response(&mut self, stage: impl Stage + 'static, complete: bool) {
        pass(&mut self.bodies().response, stage, complete);
    }
}

/// What a complete body went through is behind it and gave all it had; what an incomplete one goes through goes on before it.
fn pass(chain: &mut Chain, stage: impl Stage + 'static, complete: bool) {
    if complete {
        *chain = Chain::default();
    }
    chain.push(stage);
}

/// The answer to a body that a filter needs whole and that is too large for that (Envoy's words).
pub(crate) fn request_too_large(exchange: &Exchange<'_>) -> Reply {
    exchange.hcm.stats.inc(names::DOWNSTREAM_RQ_TOO_LARGE);
    Reply::new(413, "Payload Too Large", details::REQUEST_PAYLOAD_TOO_LARGE, ResponseFlags::NONE)
}

/// The same for a response's body.
pub(crate) fn response_too_large(exchange: &Exchange<'_>) -> Reply {
    exchange.hcm.stats.inc(names::RS_TOO_LARGE);
    Reply::new(500, "Internal Server Error", details::RESPONSE_PAYLOAD_TOO_LARGE, ResponseFlags::NONE)
}

/// How long a caller may take over its body while nobody else has the request.
struct Limits {
    idle: Option<std::time::Duration>,
    request: Option<Instant>,
    stream: Option<Instant>,
}

impl Limits {
    fn of(exchange: &Exchange<'_>) -> Self {
        let config = &exchange.hcm.config;
        let route = exchange.info.route.as_ref().and_then(|m| if let Action::Forward(f) = &m.route.action { Some(f) } else { None });
        let positive = |d: Option<std::time::Duration>| d.filter(|d| !d.is_zero());
        let after = |d: std::time::Duration| exchange.info.start.checked_add(d);
        Self {
            idle: wait::idle_limit(exchange),
            request: positive(config.request_timeout).and_then(after),
            stream: positive(route.and_then(|f| f.max_stream_duration).or(config.max_stream_duration)).and_then(after),
        }
    }

    fn next(&self, now: Instant) -> Option<Instant> {
        let idle = self.idle.and_then(|span| now.checked_add(span));
        [idle, self.request, self.stream].into_iter().flatten().min()
    }

    fn expired(&self, now: Instant) -> crate::router::Failed {
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        let failure = if passed(self.request) {
            Failure::SlowRequest
        } else if passed(self.stream) {
            Failure::StreamDuration
        } else {
            Failure::StreamIdle
        };
        failure.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_pieces_are_held_together() {
        let read = Bytes::from(vec![b'a'; 32 * 1024]);
        let mut held = Held::of((0..10_000).map(|at| Frame::Data(read.slice(at..=at))));
        assert_eq!((held.len(), held.frames.len(), held.bytes().len()), (10_000, 3, 10_000));
        held.add(Frame::Data(read));
        assert_eq!((held.len(), held.frames.len()), (10_000 + 32 * 1024, 4));
    }
}
