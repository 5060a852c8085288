//! Waiting for another server while a caller waits for us.
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use crate::http::message::Version;
use crate::http::{End, Exchange};

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
