//! Tries that were too slow and go on beside their repetitions (Envoy `hedge_on_per_try_timeout`): the first good answer wins.
use std::future::poll_fn;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use lateen_telemetry::envoy_names::{cluster as names, count_upstream_code};
use tokio::time::Instant;

use super::attempt::{Answered, Began, Tried, note_failure, note_host, note_response};
use super::forward::Forwarding;
use super::limits::Limits;
use super::outcome::Failed;
use super::replay::{Body, Progress};
use super::retry::Retries;
use crate::http::message::{Request, Response};
use crate::http::{End, Exchange};
use crate::upstream::{ClusterState, Lease};

/// A try that is too slow.
pub(super) struct Late {
    pub(super) lease: Lease,
    pub(super) began: Began,
    pub(super) progress: Progress,
}

/// What it brought in the end.
pub(super) struct Answer {
    response: Response,
    of: Late,
}

/// All of a request; as many as it has retries at most.
#[derive(Default)]
pub(super) struct LateTries(Vec<Late>);

impl LateTries {
    pub(super) fn push(&mut self, one: Late) {
        self.0.push(one);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The request's time is over: counts that for each, and nothing where none is under way (Envoy `Filter::onResponseTimeout`).
    pub(super) fn count_timeout(&self, cluster: &ClusterState, status: u16) {
        for late in &self.0 {
            cluster.stats.inc(names::UPSTREAM_RQ_TIMEOUT);
            count_upstream_code(&cluster.stats, status);
            late.began.active.host().counters.rq_timeout.fetch_add(1, Relaxed);
        }
    }

    /// Nobody waits for them any more.
    pub(super) fn forget(&mut self) {
        self.0 = Vec::new();
    }

    /// The answer of one while others are still under way: those that failed, or would be tried again, are let go.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, body: &Body, request: &Request, retries: &Retries) -> Poll<Box<Answer>> {
        let mut index = 0;
        while let Some(one) = self.0.get_mut(index) {
            match one.poll(cx, body) {
                Poll::Pending => index += 1,
                Poll::Ready(Ok(response)) if !retries.wants_response(&response, request) => {
                    return Poll::Ready(Box::new(Answer { response, of: self.0.swap_remove(index) }));
                }
                Poll::Ready(_) => drop(self.0.swap_remove(index)),
            }
        }
        Poll::Pending
    }

    /// [`LateTries::poll`] when nothing else is under way: the last one counts whatever it brings.
    fn poll_last(
        &mut self,
        cx: &mut Context<'_>,
        body: &Body,
        request: &Request,
        retries: &Retries,
    ) -> Poll<Result<Box<Answer>, (Failed, Late)>> {
        if self.0.len() > 1
            && let Poll::Ready(answer) = self.poll(cx, body, request, retries)
        {
            return Poll::Ready(Ok(answer));
        }
        let [one] = self.0.as_mut_slice() else { return Poll::Pending };
        match one.poll(cx, body) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(result) => match (result, self.0.pop()) {
                (Ok(response), Some(of)) => Poll::Ready(Ok(Box::new(Answer { response, of }))),
                (Err(failed), Some(of)) => Poll::Ready(Err((failed, of))),
                (_, None) => Poll::Pending,
            },
        }
    }
}

impl Late {
    fn poll(&mut self, cx: &mut Context<'_>, body: &Body) -> Poll<Result<Response, Failed>> {
        // An upstream may answer and refuse the rest: what it says counts.
        body.send_rest(&mut self.progress, cx, &mut self.lease.upstream);
        loop {
            match self.lease.upstream.poll_response(cx) {
                Poll::Ready(Ok(response)) if response.status.is_informational() && response.upgrade.is_none() => {}
                Poll::Ready(result) => return Poll::Ready(result.map_err(Failed::from)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl Answer {
    /// Makes it the answer of the request: what is known of the upstream is of this try.
    pub(super) fn settle(self, exchange: &mut Exchange<'_>, forwarding: &mut Forwarding) -> Box<Answered> {
        let Self { response, of: Late { lease, began, progress } } = self;
        note_host(exchange, &began.cluster, began.active.host());
        let info = &mut exchange.info;
        info.moment = Instant::now();
        info.upstream_local = lease.local_address();
        info.upstream_protocol = lease.protocol();
        info.upstream_principals = lease.principals();
        forwarding.body.resume(progress);
        note_response(exchange, &began.cluster, &began, &response);
        Box::new(Answered { response, lease, began })
    }
}

/// Waits for the late tries when there is nothing else to wait for: the last try was one, or brought nothing good.
pub(super) async fn outcome(
    exchange: &mut Exchange<'_>,
    forwarding: &mut Forwarding,
    retries: &Retries,
    last: Tried,
) -> Result<Result<Box<Answered>, Failed>, End> {
    if let Tried::Late(late) = last {
        forwarding.late.push(*late);
    }
    let limits = Limits::while_relaying(forwarding, Instant::now());
    exchange.timer.set(limits.next());
    let (timer, down, request) = (&mut exchange.timer, &mut exchange.down, &exchange.request);
    let Forwarding { late, body, .. } = forwarding;
    let result = poll_fn(|cx| {
        if down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        if let Poll::Ready(result) = late.poll_last(cx, body, request, retries) {
            return Poll::Ready(Ok(result.map_err(|(failed, late)| (failed, Some(late)))));
        }
        timer.poll(cx).map(|()| Ok(Err((limits.expired(Instant::now()).into(), None))))
    })
    .await?;
    Ok(match result {
        Ok(answer) => Ok(answer.settle(exchange, forwarding)),
        Err((failed, late)) => {
            if let Some(late) = late {
                note_failure(exchange, &late.began.cluster, late.began.active.host(), &failed);
            }
            Err(failed)
        }
    })
}
