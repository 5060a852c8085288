//! When a request has taken too long, and what took it.
use std::time::Duration;

use tokio::time::Instant;

use super::forward::Forwarding;
use super::outcome::Failure;
use super::timeouts::Timeouts;

/// The deadlines in force during a try.
pub(super) struct Limits {
    pub(super) deadline: Option<Instant>,
    stream: Option<Instant>,
    /// While the caller still sends.
    pub(super) request: Option<Instant>,
    pub(super) try_ends: Option<Instant>,
    idle: Option<(Duration, Instant, Failure)>,
}

impl Limits {
    /// Those of the request.
    pub(super) fn new(forwarding: &Forwarding, now: Instant) -> Self {
        let idle = forwarding.timeouts.idle;
        Self {
            deadline: forwarding.deadline,
            stream: forwarding.stream_deadline,
            request: forwarding.request_deadline.filter(|_| !forwarding.body.complete()),
            try_ends: None,
            idle: idle.and_then(|span| Some((span, now.checked_add(span)?, Failure::StreamIdle))),
        }
    }

    /// Those of a try beside them, once it is connected and the request complete: a caller may take its time, and only the answer is
    /// waited for (Envoy `UpstreamRequest::setupPerTryTimeout`).
    pub(super) fn start_try(&mut self, timeouts: &Timeouts, now: Instant) {
        self.try_ends = timeouts.per_try.and_then(|limit| now.checked_add(limit));
        self.bound_try_idle(timeouts, now);
    }

    /// How long an upstream may be silent that has all of the request.
    fn bound_try_idle(&mut self, timeouts: &Timeouts, now: Instant) {
        let shortest = |span: &Duration| self.idle.is_none_or(|(idle, ..)| *span <= idle);
        if let Some(span) = timeouts.per_try_idle.filter(shortest) {
            self.idle = now.checked_add(span).map(|at| (span, at, Failure::PerTryIdleTimeout));
        }
    }

    /// The response has begun: what is left of a try's own limits is that of silence, unless there are tries beside each other.
    pub(super) fn while_relaying(forwarding: &Forwarding, now: Instant) -> Self {
        let mut limits = Self { request: None, ..Self::new(forwarding, now) };
        if forwarding.body.complete() {
            limits.request_complete(&forwarding.timeouts, now);
        }
        limits
    }

    /// The request has ended while the response is relayed.
    pub(super) fn request_complete(&mut self, timeouts: &Timeouts, now: Instant) {
        if !timeouts.hedge {
            self.bound_try_idle(timeouts, now);
        }
    }

    /// Once all of the response is on its way to its caller nothing else counts.
    pub(super) fn while_flushing(span: Option<Duration>) -> Self {
        let idle = span.and_then(|span| Some((span, Instant::now().checked_add(span)?, Failure::StreamIdle)));
        Self { deadline: None, stream: None, request: None, try_ends: None, idle }
    }

    pub(super) fn has_idle(&self) -> bool {
        self.idle.is_some()
    }

    /// Limits silence where nothing does yet.
    pub(super) fn bound_idle(&mut self, span: Duration) {
        self.idle.get_or_insert_with(|| (span, Instant::now() + span, Failure::StreamIdle));
    }

    pub(super) fn touch(&mut self) {
        if let Some((span, at, _)) = &mut self.idle {
            *at = Instant::now() + *span;
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        [self.deadline, self.stream, self.request, self.try_ends, self.idle.map(|i| i.1)].into_iter().flatten().min()
    }

    /// Which limit was reached.
    pub(super) fn expired(&self, now: Instant) -> Failure {
        let passed = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if passed(self.deadline) {
            Failure::Timeout
        } else if passed(self.stream) {
            Failure::StreamDuration
        } else if passed(self.request) {
            Failure::SlowRequest
        } else if passed(self.try_ends) {
            Failure::PerTryTimeout
        } else {
            self.idle.map_or(Failure::Timeout, |i| i.2)
        }
    }
}
