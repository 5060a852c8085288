//! Waiting for another server while a caller waits for us.
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use lateen_snapshot::route::Action;

use crate::http::message::Version;
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::router::{Failed, Failure};

/// Waits for `work` as long as the caller does. `work` ends in its own time: it has a limit.
pub(super) async fn patiently<T>(exchange: &mut Exchange<'_>, work: impl Future<Output = T>) -> Result<T, End> {
    let mut work = pin!(work);
    let http2 = exchange.request.version == Version::Http2;
    let down = &mut *exchange.down;
    poll_fn(|cx| {
        if let Poll::Ready(done) = work.as_mut().poll(cx) {
            return Poll::Ready(Ok(done));
        }
        // What comes on an HTTP/1 connection before the request is complete is the request.
        if (http2 || down.request_done()) && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        Poll::Pending
    })
    .await
}

/// How long an exchange may be idle.
pub(super) fn idle_limit(exchange: &Exchange<'_>) -> Option<Duration> {
    let route = exchange.info.route.as_ref().and_then(|m| if let Action::Forward(f) = &m.route.action { Some(f) } else { None });
    let idle = route.and_then(|f| f.idle_timeout).or(exchange.hcm.config.stream_idle_timeout);
    idle.filter(|span| !span.is_zero())
}

/// The answer to one that was idle for longer.
pub(super) fn idle() -> Reply {
    Failed::from(Failure::StreamIdle).reply(false, false, false)
}
