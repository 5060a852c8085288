//! Waiting for another server while a caller waits for us.
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::{Context, Poll};
use std::time::Duration;

use lateen_snapshot::route::Action;

use crate::http::message::Version;
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::{Failed, Failure};

/// Waits for `work` as long as the caller does. `work` ends in its own time: it has a limit.
pub(super) async fn patiently<T>(exchange: &mut Exchange<'_>, work: impl Future<Output = T>) -> Result<T, End> {
    let mut work = pin!(work);
    poll_fn(|cx| match work.as_mut().poll(cx) {
        Poll::Ready(done) => Poll::Ready(Ok(done)),
        Poll::Pending => poll_gone(exchange, cx).map(|()| Err(End::Gone)),
    })
    .await
}

/// Waits for `work` as long as the caller does, and no longer than `limit`: then it is `None`.
pub(super) async fn at_most<T>(exchange: &mut Exchange<'_>, limit: Duration, work: impl Future<Output = T>) -> Result<Option<T>, End> {
    let mut work = pin!(work);
    exchange.timer.after(Some(limit));
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(Some(done)));
        }
        if poll_gone(exchange, cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        exchange.timer.poll(cx).map(|()| Ok(None))
    })
    .await;
    exchange.timer.set(None);
    outcome
}

/// Ready when the caller went away, as far as that can be seen.
fn poll_gone(exchange: &mut Exchange<'_>, cx: &mut Context<'_>) -> Poll<()> {
    // What comes on an HTTP/1 connection before the request is complete is the request.
    let visible = exchange.request.version == Version::Http2 || exchange.down.request_done();
    if visible { exchange.down.poll_gone(cx) } else { Poll::Pending }
}

/// How long an exchange may be idle.
pub(super) fn idle_limit(exchange: &Exchange<'_>) -> Option<Duration> {
    let route = exchange.info.route.as_ref().and_then(|m| if let Action::Forward(f) = &m.route.action { Some(f) } else { None });
    let idle = route.and_then(|f| f.idle_timeout).or(exchange.hcm.config.stream_idle_timeout);
    idle.filter(|span| !span.is_zero())
}

/// The answer to one that was idle for longer; a request that is all there is not itself the late one.
pub(super) fn idle(complete: bool) -> Reply {
    Failed::from(Failure::StreamIdle).reply(false, complete, false)
}
