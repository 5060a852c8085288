//! How HTTP filters see and change bodies: the one hook for all that do.
//!
//! A body is pulled: whoever sends it on has room for a piece, asks the last stage of the [`Chain`] for one, which asks the
//! stage before it, down to the codec. So a slow receiver slows the sender, and nothing is held but what a stage holds.
//! An exchange without a stage has no chain: the router then asks the codec itself.
//!
//! The contract of a [`Stage`]:
//! - It is asked for one piece and gives one: data of any size above zero (empty data are asked past), trailers, or the end.
//!   What it cannot say yet it answers with `Pending`, with the waker in the hands of what it waits for.
//! - Trailers end a body, and so does `None`: each comes last, and nobody is asked again after it. A stage may turn trailers
//!   into data, add trailers, or drop them.
//! - It holds no more than a bound of its own, and gives what it makes in pieces rather than at once.
//! - It may end the exchange with a reply of its own ([`Halt::Reply`]). Once the response's head is out that cuts it off.
//! - A stage that changes how long a body is says so in the head: `Length::Unknown`.
//!
//! When a filter sees a request's head it may add a stage ([`Exchange::change_request_body`]), or first take the whole body, or
//! the beginning of it, as the filters before it made it: [`hold::request`] waits for it while the request goes nowhere else,
//! and what is held may be looked at, and put back. With a response's head it may do the same
//! ([`Exchange::change_response_body`], [`hold::response`]); the request's body goes on up meanwhile.
//!
//! Requests meet the filters first to last, responses last to first, and so do their bodies. What is kept for another try, and
//! what a mirror gets, is what came out of the chain.
pub(crate) mod hold;
mod piecewise;
pub(crate) mod small;
pub(crate) mod throttle;

use std::any::Any;
use std::task::{Context, Poll, ready};

use bytes::Bytes;

pub(crate) use piecewise::{Convert, Piecewise};

use crate::http::message::{Frame, Length};
use crate::http::reply::Reply;
use crate::http::stream::{Downstream, StreamError, Upstream};
use crate::http::{Exchange, Info};
use crate::io::Timer;

/// Why a body does not go on.
#[derive(Debug)]
pub(crate) enum Halt {
    /// Its sender gave up.
    Stream(StreamError),
    /// A filter answers instead.
    Reply(Box<Reply>),
}

/// A piece, or the end.
pub(crate) type Piece = Option<Result<Frame, Halt>>;

/// What a stage pulls from: the stage before it, or the codec.
pub(crate) trait Source {
    /// The next piece. After the end it goes on to be `None`.
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece>;
}

/// A filter's part in a body; the module's text is its contract.
pub(crate) trait Stage {
    /// The next piece of what goes on.
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece>;
}

impl Stage for Box<dyn Stage> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, source: &mut dyn Source) -> Poll<Piece> {
        (**self).poll_piece(cx, info, source)
    }
}

impl Source for Downstream {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        let piece = ready!(self.poll_frame(cx));
        if let Some(Ok(Frame::Data(data))) = &piece {
            info.body_received += data.len() as u64;
        }
        Poll::Ready(piece.map(|p| p.map_err(Halt::Stream)))
    }
}

impl Source for Upstream {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        let piece = ready!(self.poll_frame(cx));
        if let (Some(Ok(Frame::Data(data))), Some(call)) = (&piece, &mut info.grpc_call) {
            call.response.push(data);
        }
        Poll::Ready(piece.map(|p| p.map_err(Halt::Stream)))
    }
}

/// A body that is all there.
pub(crate) struct Whole(pub(crate) Option<Bytes>);

impl Source for Whole {
    fn poll_piece(&mut self, _: &mut Context<'_>, _: &mut Info) -> Poll<Piece> {
        Poll::Ready(self.0.take().filter(|data| !data.is_empty()).map(|data| Ok(Frame::Data(data))))
    }
}

/// The stages of one direction, in the order in which a body meets them.
#[derive(Default)]
pub(crate) struct Chain {
    links: Vec<Link>,
    ended: bool,
}

struct Link {
    stage: Box<dyn Stage>,
    ended: bool,
}

impl Chain {
    pub(crate) fn push(&mut self, stage: impl Stage + 'static) {
        self.links.push(Link { stage: Box::new(stage), ended: false });
    }

    fn push_first(&mut self, stage: impl Stage + 'static) {
        self.links.insert(0, Link { stage: Box::new(stage), ended: false });
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    /// The next piece of what comes out; data are never empty.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, origin: &mut dyn Source) -> Poll<Piece> {
        if self.ended {
            return Poll::Ready(None);
        }
        loop {
            let piece = ready!(pull(&mut self.links, cx, info, origin));
            match &piece {
                Some(Ok(Frame::Data(data))) if data.is_empty() => continue,
                Some(Ok(Frame::Data(_))) => {}
                _ => self.ended = true,
            }
            return Poll::Ready(piece);
        }
    }
}

fn pull(links: &mut [Link], cx: &mut Context<'_>, info: &mut Info, origin: &mut dyn Source) -> Poll<Piece> {
    let Some((last, before)) = links.split_last_mut() else { return origin.poll_piece(cx, info) };
    if last.ended {
        return Poll::Ready(None);
    }
    let piece = ready!(last.stage.poll_piece(cx, info, &mut Before { links: before, origin }));
    last.ended = !matches!(piece, Some(Ok(Frame::Data(_))));
    Poll::Ready(piece)
}

/// All that comes before a stage.
struct Before<'a> {
    links: &'a mut [Link],
    origin: &'a mut dyn Source,
}

impl Source for Before<'_> {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        pull(self.links, cx, info, &mut *self.origin)
    }
}

/// What filters that touch bodies have of an exchange; most exchanges have none.
#[derive(Default)]
pub(crate) struct Bodies {
    pub(crate) request: Chain,
    pub(crate) response: Chain,
    /// What becomes of these when protocols are switched.
    tunnel: Option<Box<Bodies>>,
    /// How much of the request's body may be kept for another try, where a filter says so.
    pub(crate) kept: Option<usize>,
    /// What filters, by their place, keep from a request for its response.
    notes: Vec<(usize, Box<dyn Any>)>,
}

impl Bodies {
    /// A request whose body is there already.
    pub(crate) fn of(frames: impl Iterator<Item = Frame>) -> Self {
        let mut bodies = Self::default();
        bodies.request.push(hold::Held::of(frames));
        bodies
    }

    /// What filters made of a request's body so far, and nothing else of theirs.
    pub(crate) fn with_request(request: Chain) -> Self {
        Self { request, ..Self::default() }
    }

    /// What goes on once protocols are switched: bodies of another protocol are none of most filters' business.
    pub(crate) fn into_tunnel(self) -> Option<Box<Self>> {
        self.tunnel
    }

    pub(crate) fn note<T: 'static>(&mut self, filter: usize, note: T) {
        self.notes.push((filter, Box::new(note)));
    }

    pub(crate) fn noted<T: 'static>(&self, filter: usize) -> Option<&T> {
        self.notes.iter().find_map(|(of, note)| if *of == filter { note.downcast_ref() } else { None })
    }
}

impl Exchange<'_> {
    /// What body filters have of this exchange.
    pub(crate) fn bodies(&mut self) -> &mut Bodies {
        self.bodies.get_or_insert_default()
    }

    /// What a filter noted of the request.
    pub(crate) fn noted<T: 'static>(&self, filter: usize) -> Option<&T> {
        self.bodies.as_ref()?.noted(filter)
    }

    /// Adds a stage to what the request's body goes through. `changes_length`: how long it will be is not known.
    pub(crate) fn change_request_body(&mut self, stage: impl Stage + 'static, changes_length: bool) {
        if changes_length {
            self.request.length = Length::Unknown;
        }
        self.bodies().request.push(stage);
    }

    /// Adds stages to both directions of an upgraded connection, when its response is seen: the last filter comes first.
    pub(crate) fn change_tunnel<S: Stage + 'static>(&mut self, request: Option<S>, response: Option<S>) {
        if request.is_some() || response.is_some() {
            let tunnel = self.bodies().tunnel.get_or_insert_default();
            request.into_iter().for_each(|stage| tunnel.request.push_first(stage));
            response.into_iter().for_each(|stage| tunnel.response.push(stage));
        }
    }

    /// Adds a stage to what the response's body goes through; the response's length is the filter's to change.
    pub(crate) fn change_response_body(&mut self, stage: impl Stage + 'static) {
        self.bodies().response.push(stage);
    }
}

/// The caller's side of an exchange, while it is waited for something else.
pub(crate) struct Caller<'a> {
    pub(crate) down: &'a mut Downstream,
    pub(crate) timer: &'a mut Timer,
    /// What the request's body goes through.
    pub(crate) chain: Option<&'a mut Chain>,
}

impl Caller<'_> {
    /// Nobody takes the request's body any more: what filters wait for to make of it is waited for no more. Whoever waited behind
    /// it, as a response does that shares a processor's attention, is asked again.
    pub(crate) fn let_go(&mut self, cx: &mut Context<'_>) {
        if let Some(chain) = &mut self.chain
            && !chain.is_empty()
        {
            **chain = Chain::default();
            cx.waker().wake_by_ref();
        }
    }

    /// The next piece of the request's body, as filters made it.
    pub(crate) fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info) -> Poll<Piece> {
        match &mut self.chain {
            None => self.down.poll_frame(cx).map(|piece| piece.map(|p| p.map_err(Halt::Stream))),
            Some(chain) => chain.poll_piece(cx, info, &mut *self.down),
        }
    }
}

/// Where a response's body comes from while filters hold its head.
pub(crate) trait Origin {
    /// The next piece as it came; what else the exchange has to do meanwhile is done here.
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Poll<Piece>;

    /// What else the exchange has to do while nothing more of the body is wanted; ready when it can go on no longer.
    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, info: &mut Info, caller: &mut Caller<'_>) -> Poll<Halt>;
}

impl Origin for Whole {
    fn poll_piece(&mut self, cx: &mut Context<'_>, info: &mut Info, _: &mut Caller<'_>) -> Poll<Piece> {
        Source::poll_piece(self, cx, info)
    }

    fn poll_meanwhile(&mut self, cx: &mut Context<'_>, _: &mut Info, caller: &mut Caller<'_>) -> Poll<Halt> {
        caller.timer.poll(cx).map(|()| Halt::Stream(StreamError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    use std::task::{Wake, Waker};

    use lateen_snapshot::http::NameCase;
    use tokio::net::UnixStream;

    use super::hold::Held;
    use super::*;
    use crate::http::h1::{H1Server, HeadLimits};
    use crate::io::{Io, Raw, Socket, Wire};

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, SeqCst);
        }
    }

    #[tokio::test]
    async fn whoever_waits_behind_a_request_that_nobody_takes_is_asked_again() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let limits = HeadLimits { bytes: 1024, count: 10, accept_http_10: false, allow_chunked_length: false, names: NameCase::default() };
        let server = H1Server::new(Wire::new(Io::Plain(Socket::new(Raw::Unix(ours)))), limits, false);
        let (mut down, mut timer, mut chain) = (Downstream::H1(Box::new(server)), Timer::default(), Chain::default());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let cx = &mut Context::from_waker(&waker);
        chain.push(Held::default());
        let mut caller = Caller { down: &mut down, timer: &mut timer, chain: Some(&mut chain) };
        caller.let_go(cx);
        assert_eq!(woken.0.load(SeqCst), 1);
        caller.let_go(cx);
        assert_eq!(woken.0.load(SeqCst), 1, "nothing was let go of");
        assert!(chain.is_empty());
    }
}
