//! Whether to try again (Envoy `RetryStateImpl`).
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::HeaderName;
use lateen_snapshot::route::{RateLimitedBackOff, ResetHeader, RetryOn, RetryPolicy};

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
    /// Response headers from the caller's header.
    more_headers: Vec<HeaderName>,
    /// What the last response said about when to come again.
    told: Option<Duration>,
}

/// The wait before a retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wait {
    pub(super) span: Duration,
    /// The server said so.
    pub(super) rate_limited: bool,
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
            let text = |name: HeaderName| names::text(&request.headers, &name).unwrap_or("");
            on = words(text(names::RETRY_ON)).filter_map(RetryOn::of_http).fold(on, RetryOn::with);
            on = words(text(names::RETRY_GRPC_ON)).filter_map(RetryOn::of_grpc).fold(on, RetryOn::with);
            more_codes = words(text(names::RETRIABLE_STATUS_CODES)).filter_map(|w| w.parse().ok()).collect();
            more_headers = words(text(names::RETRIABLE_HEADERS)).filter_map(|w| w.parse().ok()).collect();
            if let Some(most) = names::number(&request.headers, &names::MAX_RETRIES) {
                remaining = u32::try_from(most).unwrap_or(u32::MAX);
            }
        }
        if policy.as_deref().is_some_and(|p| !admits(p, request)) {
            on = RetryOn::default();
        }
        if on == RetryOn::default() {
            remaining = 0;
        }
        Self { policy, on, remaining, taken: 0, more_codes, more_headers, told: None }
    }

    pub(super) fn policy(&self) -> Option<&Arc<RetryPolicy>> {
        self.policy.as_ref()
    }

    pub(super) fn taken(&self) -> u32 {
        self.taken
    }

    pub(super) fn after_response(&mut self, response: &Response, request: &Request) -> Decision {
        let limited = self.policy.as_ref().and_then(|p| p.rate_limited.as_ref());
        self.told = limited.and_then(|l| reset_interval(l, &response.headers, SystemTime::now()));
        self.decide(self.wants_response(response, request))
    }

    pub(super) fn after_failure(&mut self, failure: Failure, sent_any: bool) -> Decision {
        self.told = None;
        self.decide(self.wants_failure(failure, sent_any))
    }

    /// After a try that is too slow and goes on: whatever the conditions are, it is repeated while retries are left.
    pub(super) fn after_slowness(&mut self) -> Decision {
        self.told = None;
        self.decide(self.on != RetryOn::default())
    }

    fn decide(&self, wanted: bool) -> Decision {
        match (wanted, self.remaining) {
            (false, _) => Decision::No,
            (true, 0) if self.on == RetryOn::default() => Decision::No,
            (true, 0) => Decision::Exhausted,
            (true, _) => Decision::Retry,
        }
    }

    pub(super) fn wants_response(&self, response: &Response, request: &Request) -> bool {
        if self.on == RetryOn::default() {
            return false;
        }
        let (wanted, if_limited) = (self.wants_kind(response, request), self.on.contains(RetryOn::ENVOY_RATELIMITED));
        // Looked for only where it matters: nothing else counts for a response that has it.
        if wanted != if_limited && response.headers.contains_key(names::RATE_LIMITED) { if_limited } else { wanted }
    }

    /// [`Self::wants_response`] of one that is not rate limited.
    fn wants_kind(&self, response: &Response, request: &Request) -> bool {
        let on = |condition| self.on.contains(condition);
        let code = response.status.as_u16();
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
            let head = lateen_snapshot::route::RequestHead {
                headers: &response.headers,
                content_length: response.length.said(),
                ..super::lookup::head_of(request)
            };
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
            | Failure::NameNotResolved
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

    /// Takes one retry; says how long to wait before it: what the server told and up to half as long again, else
    /// a random part of an exponentially growing span.
    pub(super) fn take(&mut self, roll: u64) -> Wait {
        self.remaining = self.remaining.saturating_sub(1);
        self.taken += 1;
        let micros = |span: Duration| u64::try_from(span.as_micros()).unwrap_or(u64::MAX).max(1);
        if let Some(told) = self.told.take() {
            let more = Duration::from_micros(roll % (micros(told) / 2).max(1));
            return Wait { span: told.saturating_add(more), rate_limited: true };
        }
        let (base, most) =
            self.policy.as_ref().map_or((Duration::from_millis(25), Duration::from_millis(250)), |p| (p.back_off_base, p.back_off_max));
        let factor = (1u32 << self.taken.min(16)) - 1;
        let span = base.saturating_mul(factor).min(most.max(base));
        Wait { span: Duration::from_micros(roll % micros(span)), rate_limited: false }
    }
}

/// Whether the policy is for this request at all.
fn admits(policy: &RetryPolicy, request: &Request) -> bool {
    let wanted = &policy.retriable_request_headers;
    wanted.is_empty() || wanted.iter().any(|m| super::lookup::header_matches(m, request))
}

/// How long the server wants us to wait, by the first of the headers that says so within the limit.
fn reset_interval(config: &RateLimitedBackOff, map: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let interval = |header: &ResetHeader| {
        let number = names::number(map, &header.name)?;
        let seconds = if header.unix { number.checked_sub(now.duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs())? } else { number };
        Some(Duration::from_secs(seconds)).filter(|span| !span.is_zero() && *span <= config.max)
    };
    config.headers.iter().find_map(interval)
}

fn words(list: &str) -> impl Iterator<Item = &str> {
    list.split(',').map(str::trim).filter(|w| !w.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::header::HeaderValue;

    #[test]
    fn a_server_may_say_when_to_come_again() {
        let header = |name, unix| ResetHeader { name: HeaderName::from_static(name), unix };
        let headers = vec![header("retry-after", false), header("x-reset", true)];
        let config = RateLimitedBackOff { headers, max: Duration::from_secs(60) };
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000);
        let interval = |name, value| {
            let map: HeaderMap = [(HeaderName::from_static(name), HeaderValue::from_static(value))].into_iter().collect();
            reset_interval(&config, &map, now).map(|d| d.as_secs())
        };
        assert_eq!(interval("retry-after", "7"), Some(7));
        assert_eq!(interval("x-reset", "1030"), Some(30));
        for (name, value) in [("retry-after", "61"), ("retry-after", "0"), ("retry-after", "soon"), ("x-reset", "999"), ("x-other", "7")] {
            assert_eq!(interval(name, value), None, "{name}: {value}");
        }
    }
}
