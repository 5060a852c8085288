//! Whether to try again (Envoy `RetryStateImpl`).
use std::sync::Arc;
use std::time::Duration;

use lateen_snapshot::route::{RetryOn, RetryPolicy};

use super::outcome::Failure;
use crate::http::headers as names;
use crate::http::message::{Request, Response};

/// What remains of a request's retries.
pub(super) struct Retries {
    policy: Option<Arc<RetryPolicy>>,
    on: RetryOn,
    remaining: u32,
    taken: u32,
    /// From the caller's header, beside the policy's.
    more_codes: Vec<u16>,
    more_headers: Vec<http::HeaderName>,
}

/// A decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Decision {
    No,
    /// It would, had it not been tried often enough.
    Exhausted,
    Retry,
}

impl Retries {
    pub(super) fn new(policy: Option<Arc<RetryPolicy>>, request: &Request) -> Self {
        let mut on = policy.as_ref().map_or(RetryOn::default(), |p| p.on);
        let mut remaining = policy.as_ref().map_or(1, |p| p.num_retries);
        let (mut more_codes, mut more_headers) = (Vec::new(), Vec::new());
        if request.hints.envoy {
            let text = |name: http::HeaderName| names::text(&request.headers, &name).unwrap_or("");
            on = words(text(names::RETRY_ON)).chain(words(text(names::RETRY_GRPC_ON))).filter_map(condition).fold(on, RetryOn::with);
            more_codes = words(text(names::RETRIABLE_STATUS_CODES)).filter_map(|w| w.parse().ok()).collect();
            more_headers = words(text(names::RETRIABLE_HEADERS)).filter_map(|w| w.parse().ok()).collect();
            if let Some(most) = names::number(&request.headers, &names::MAX_RETRIES) {
                remaining = u32::try_from(most).unwrap_or(u32::MAX);
            }
        }
        if on == RetryOn::default() {
            remaining = 0;
        }
        Self { policy, on, remaining, taken: 0, more_codes, more_headers }
    }

    pub(super) fn policy(&self) -> Option<&Arc<RetryPolicy>> {
        self.policy.as_ref()
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn after_response(&self, response: &Response, request: &Request) -> Decision {
        self.decide(self.wants_response(response, request))
    }

    pub(super) fn after_failure(&self, failure: Failure, sent_any: bool) -> Decision {
        self.decide(self.wants_failure(failure, sent_any))
    }

    fn decide(&self, wanted: bool) -> Decision {
        match (wanted, self.remaining) {
            (false, _) => Decision::No,
            (true, 0) if self.on == RetryOn::default() => Decision::No,
            (true, 0) => Decision::Exhausted,
            (true, _) => Decision::Retry,
        }
    }

    fn wants_response(&self, response: &Response, request: &Request) -> bool {
        let on = |condition| self.on.contains(condition);
        let code = response.status.as_u16();
        if response.headers.contains_key(names::RATE_LIMITED) {
            return on(RetryOn::ENVOY_RATELIMITED);
        }
        if (on(RetryOn::FIVE_XX) && (500..600).contains(&code))
            || (on(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&code))
            || (on(RetryOn::RETRIABLE_4XX) && code == 409)
        {
            return true;
        }
        let listed = self.policy.as_ref().is_some_and(|p| p.retriable_status_codes.contains(&code)) || self.more_codes.contains(&code);
        if on(RetryOn::RETRIABLE_STATUS_CODES) && listed {
            return true;
        }
        if on(RetryOn::RETRIABLE_HEADERS) && self.more_headers.iter().any(|name| response.headers.contains_key(name)) {
            return true;
        }
        if on(RetryOn::RETRIABLE_HEADERS)
            && let Some(policy) = &self.policy
        {
            let head = lateen_snapshot::route::RequestHead { headers: &response.headers, ..super::lookup::head_of(request) };
            if policy.retriable_headers.iter().any(|m| m.matches(&head)) {
                return true;
            }
        }
        let grpc = match names::number(&response.headers, &names::GRPC_STATUS) {
            Some(1) => RetryOn::GRPC_CANCELLED,
            Some(4) => RetryOn::GRPC_DEADLINE_EXCEEDED,
            Some(8) => RetryOn::GRPC_RESOURCE_EXHAUSTED,
            Some(13) => RetryOn::GRPC_INTERNAL,
            Some(14) => RetryOn::GRPC_UNAVAILABLE,
            _ => return false,
        };
        on(grpc)
    }

    fn wants_failure(&self, failure: Failure, sent_any: bool) -> bool {
        let on = |condition| self.on.contains(condition);
        match failure {
            Failure::Overflow
            | Failure::NoHealthyHost
            | Failure::SlowRequest
            | Failure::Timeout
            | Failure::StreamDuration
            | Failure::StreamIdle => false,
            _ if on(RetryOn::FIVE_XX) || on(RetryOn::GATEWAY_ERROR) || on(RetryOn::RESET) => true,
            _ if on(RetryOn::RESET_BEFORE_REQUEST) && !sent_any => true,
            Failure::ConnectionFailure | Failure::ConnectionTimeout => on(RetryOn::CONNECT_FAILURE),
            Failure::RefusedStream => on(RetryOn::REFUSED_STREAM),
            _ => false,
        }
    }

    /// Takes one retry; says how long to wait before it: a random part of an exponentially growing span.
    pub(super) fn take(&mut self, roll: u64) -> Duration {
        self.remaining = self.remaining.saturating_sub(1);
        self.taken += 1;
        let (base, most) =
            self.policy.as_ref().map_or((Duration::from_millis(25), Duration::from_millis(250)), |p| (p.back_off_base, p.back_off_max));
        let factor = (1u32 << self.taken.min(16)) - 1;
        let span = base.saturating_mul(factor).min(most.max(base));
        Duration::from_micros(roll % (span.as_micros() as u64).max(1))
    }
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|w| !w.is_empty())
}

fn condition(word: &str) -> Option<RetryOn> {
    Some(match word {
        "5xx" => RetryOn::FIVE_XX,
        "gateway-error" => RetryOn::GATEWAY_ERROR,
        "reset" => RetryOn::RESET,
        "reset-before-request" => RetryOn::RESET_BEFORE_REQUEST,
        "connect-failure" => RetryOn::CONNECT_FAILURE,
        "refused-stream" => RetryOn::REFUSED_STREAM,
        "retriable-4xx" => RetryOn::RETRIABLE_4XX,
        "retriable-status-codes" => RetryOn::RETRIABLE_STATUS_CODES,
        "retriable-headers" => RetryOn::RETRIABLE_HEADERS,
        "envoy-ratelimited" => RetryOn::ENVOY_RATELIMITED,
        "cancelled" => RetryOn::GRPC_CANCELLED,
        "deadline-exceeded" => RetryOn::GRPC_DEADLINE_EXCEEDED,
        "internal" => RetryOn::GRPC_INTERNAL,
        "resource-exhausted" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
        "unavailable" => RetryOn::GRPC_UNAVAILABLE,
        _ => return None,
    })
}
