//! How long a request may take: route, caller's headers, gRPC deadline (Envoy `FilterUtility::finalTimeout`).
use std::time::Duration;

use lateen_snapshot::route::{Forward, RetryPolicy};

use crate::http::headers as names;
use crate::http::message::Request;

/// The limits of one request; zero has already become `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Timeouts {
    /// From the end of the request to the end of the response, over all tries.
    pub(super) global: Option<Duration>,
    pub(super) per_try: Option<Duration>,
    pub(super) per_try_idle: Option<Duration>,
    /// Between bytes.
    pub(super) idle: Option<Duration>,
    /// For the caller to take the end of the response.
    pub(super) flush: Option<Duration>,
    /// Of the whole stream.
    pub(super) stream: Option<Duration>,
    /// A try that is too slow goes on beside its repetition.
    pub(super) hedge: bool,
    /// Callers may ask for 204 in place of 504.
    pub(super) quiet: bool,
}

/// What the connection manager says for routes that say nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListenerLimits {
    pub(super) idle: Option<Duration>,
    pub(super) flush: Option<Duration>,
    pub(super) stream: Option<Duration>,
}

/// What holds where the route says nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Inherited {
    pub(super) listener: ListenerLimits,
    /// Of the virtual host.
    pub(super) hedge: bool,
    /// Of the router filter.
    pub(super) respects_expected: bool,
}

fn positive(duration: Option<Duration>) -> Option<Duration> {
    duration.filter(|d| !d.is_zero())
}

impl Timeouts {
    pub(super) fn new(request: &Request, forward: &Forward, retry: Option<&RetryPolicy>, inherited: Inherited) -> Self {
        let listener = inherited.listener;
        let mut timeouts = Self {
            global: forward.timeout,
            per_try: retry.and_then(|r| r.per_try_timeout),
            per_try_idle: positive(retry.and_then(|r| r.per_try_idle_timeout)),
            idle: positive(forward.idle_timeout.or(listener.idle)),
            flush: positive(forward.flush_timeout.or(listener.flush).or(forward.idle_timeout).or(listener.idle)),
            stream: positive(stream(request, forward).or(listener.stream)),
            hedge: forward.hedge_on_per_try_timeout.unwrap_or(inherited.hedge),
            quiet: false,
        };
        if let Some(most) = forward.max_grpc_timeout
            && request.is_grpc()
        {
            // One that asks for nothing gets the most.
            let asked = request.headers.get(names::GRPC_TIMEOUT).and_then(|v| grpc_timeout(v.as_bytes()));
            let asked = asked.map(|t| t.saturating_sub(forward.grpc_timeout_offset.unwrap_or_default()));
            timeouts.global = match (asked, positive(Some(most))) {
                (Some(asked), Some(most)) => Some(asked.min(most)),
                (asked, most) => asked.or(most),
            };
        }
        if request.hints.envoy {
            let millis = |name: http::HeaderName| names::number(&request.headers, &name).map(Duration::from_millis);
            // A caller's proxy has told how long it waits, and took the caller's own wish into account.
            let expected = inherited.respects_expected.then(|| millis(names::EXPECTED_TIMEOUT)).flatten();
            timeouts.global = expected.or_else(|| millis(names::TIMEOUT)).or(timeouts.global);
            timeouts.per_try = millis(names::PER_TRY_TIMEOUT).or(timeouts.per_try);
            timeouts.quiet = request.headers.contains_key(names::TIMEOUT_ALT_RESPONSE);
            match names::text(&request.headers, &names::HEDGE_ON_PER_TRY_TIMEOUT) {
                Some("true") => timeouts.hedge = true,
                Some("false") => timeouts.hedge = false,
                _ => {}
            }
        }
        timeouts.global = positive(timeouts.global);
        timeouts.per_try = positive(timeouts.per_try);
        // A try that may outlast the whole request has no limit of its own.
        if let (Some(global), Some(per_try)) = (timeouts.global, timeouts.per_try)
            && per_try >= global
        {
            timeouts.per_try = None;
        }
        timeouts
    }

    /// What the upstream is told to expect.
    pub(super) fn expected(&self) -> Option<Duration> {
        self.per_try.filter(|_| !self.hedge).or(self.global)
    }
}

/// How long the stream may last: what the caller asks for where the route lets it, else what the route says.
fn stream(request: &Request, forward: &Forward) -> Option<Duration> {
    let Some(most) = forward.stream_grpc_max else { return forward.max_stream_duration };
    let asked = request.headers.get(names::GRPC_TIMEOUT).and_then(|v| grpc_timeout(v.as_bytes()));
    let Some(asked) = asked else { return forward.max_stream_duration };
    let asked = positive(Some(most)).map_or(asked, |most| asked.min(most));
    // Zero would mean no limit: what is over at once still has one.
    Some(asked.saturating_sub(forward.stream_grpc_offset.unwrap_or_default()).max(Duration::from_millis(1)))
}

/// gRPC's `grpc-timeout`: up to eight digits and a unit.
fn grpc_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let n = digits.iter().fold(0u64, |n, d| n * 10 + u64::from(d - b'0'));
    Some(match unit {
        b'H' => Duration::from_secs(n * 3600),
        b'M' => Duration::from_secs(n * 60),
        b'S' => Duration::from_secs(n),
        b'm' => Duration::from_millis(n),
        b'u' => Duration::from_micros(n),
        b'n' => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grpc_deadlines_have_six_units() {
        assert_eq!(grpc_timeout(b"5S"), Some(Duration::from_secs(5)));
        assert_eq!(grpc_timeout(b"100m"), Some(Duration::from_millis(100)));
        assert_eq!(grpc_timeout(b"2H"), Some(Duration::from_secs(7200)));
        for bad in [&b""[..], b"S", b"5", b"123456789S", b"-1S", b"5x"] {
            assert_eq!(grpc_timeout(bad), None, "{bad:?}");
        }
    }
}
