//! Retry policies of routes and virtual hosts.
use std::num::NonZeroU32;
use std::time::Duration;

use lateen_balance::Omit;
use lateen_proto::Any;
use lateen_proto::any;
use lateen_proto::envoy::config::route::v3::{self as proto, retry_policy};
use lateen_proto::envoy::extensions::retry::host::{
    omit_canary_hosts::v3::OmitCanaryHostsPredicate, omit_host_metadata::v3::OmitHostMetadataConfig,
    previous_hosts::v3::PreviousHostsPredicate,
};
use lateen_proto::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;

use super::common::{duration, fraction, limit, open};
use super::invalid::{Invalid, Result, Within, each, refuse};
use super::{matcher, subset};
use crate::route::{RateLimitedBackOff, ResetHeader, RetryOn, RetryPolicy};

/// Envoy's longest wait on a server's word.
const MAX_RESET: Duration = Duration::from_secs(300);

pub(crate) fn policy(value: proto::RetryPolicy) -> Result<RetryPolicy> {
    let proto::RetryPolicy {
        retry_on,
        num_retries,
        per_try_timeout,
        per_try_idle_timeout,
        retry_priority,
        retry_host_predicate,
        retry_options_predicates,
        host_selection_retry_max_attempts,
        retriable_status_codes,
        retry_back_off,
        rate_limited_retry_back_off,
        retriable_headers,
        retriable_request_headers,
        refresh_cluster_on_retry,
    } = value;
    refuse!(retry_options_predicates, refresh_cluster_on_retry);
    let (back_off_base, back_off_max) = back_off(retry_back_off).within("retry_back_off")?;
    let mut avoid = Avoid::default();
    for (index, predicate) in retry_host_predicate.into_iter().enumerate() {
        avoid.add(predicate).within_item("retry_host_predicate", index)?;
    }
    let mut codes = Vec::with_capacity(retriable_status_codes.len());
    for (index, code) in retriable_status_codes.into_iter().enumerate() {
        let code = u16::try_from(code)
            .map_err(|_| Invalid::new(format!("{code} is not a status")))
            .within_item("retriable_status_codes", index)?;
        codes.push(code);
    }
    Ok(RetryPolicy {
        on: RetryOn::parse(&retry_on).map_err(|unknown| Invalid::field("retry_on", format!("`{unknown}` is not a retry condition")))?,
        num_retries: num_retries.unwrap_or(1),
        per_try_timeout: limit(per_try_timeout.as_ref(), None, "per_try_timeout")?,
        per_try_idle_timeout: limit(per_try_idle_timeout.as_ref(), None, "per_try_idle_timeout")?,
        retriable_status_codes: codes,
        retriable_headers: matcher::headers(retriable_headers, "retriable_headers")?,
        retriable_request_headers: matcher::headers(retriable_request_headers, "retriable_request_headers")?,
        rate_limited: rate_limited_retry_back_off.map(rate_limited).transpose().within("rate_limited_retry_back_off")?,
        back_off_base,
        back_off_max,
        avoid_previous_hosts: avoid.previous,
        omit: (!avoid.omit.is_empty()).then(|| Box::new(avoid.omit)),
        previous_priorities: retry_priority.map(previous_priorities).transpose().within("retry_priority")?,
        host_selection_attempts: u32::try_from(host_selection_retry_max_attempts.max(1)).unwrap_or(u32::MAX),
    })
}

/// Whether a try that is too slow goes on beside its repetition.
pub(crate) fn hedge(value: proto::HedgePolicy) -> Result<bool> {
    let proto::HedgePolicy { initial_requests, additional_request_chance, hedge_on_per_try_timeout } = value;
    // Envoy has never had more than one first request either.
    let initial_requests = initial_requests.filter(|n| *n != 1);
    let additional_request_chance = additional_request_chance.map(fraction).transpose().within("additional_request_chance")?;
    let additional_request_chance = additional_request_chance.filter(|chance| chance.numerator > 0);
    refuse!(initial_requests, additional_request_chance);
    Ok(hedge_on_per_try_timeout)
}

/// Envoy's defaults: 25 ms, at most ten times that.
fn back_off(value: Option<retry_policy::RetryBackOff>) -> Result<(Duration, Duration)> {
    let Some(retry_policy::RetryBackOff { base_interval, max_interval }) = value else {
        return Ok((Duration::from_millis(25), Duration::from_millis(250)));
    };
    let base = base_interval.map_or_else(|| Err(Invalid::new("is missing")), |d| duration(&d)).within("base_interval")?;
    let max = max_interval.map_or(Ok(base.saturating_mul(10)), |d| duration(&d)).within("max_interval")?;
    if base.is_zero() || max < base {
        return Err(Invalid::new("the intervals must be above zero and the maximum not below the base"));
    }
    Ok((base, max))
}

fn rate_limited(value: retry_policy::RateLimitedRetryBackOff) -> Result<RateLimitedBackOff> {
    let retry_policy::RateLimitedRetryBackOff { reset_headers, max_interval } = value;
    if reset_headers.is_empty() {
        return Err(Invalid::field("reset_headers", "is empty; name the header that says when to try again"));
    }
    let header = |retry_policy::ResetHeader { name, format }: retry_policy::ResetHeader| {
        let unix = match retry_policy::ResetHeaderFormat::try_from(format) {
            Ok(format) => format == retry_policy::ResetHeaderFormat::UnixTimestamp,
            Err(_) => return Err(Invalid::field("format", format!("{format} is not known"))),
        };
        Ok(ResetHeader { name: matcher::header_name(&name).within("name")?, unix })
    };
    let headers = each(reset_headers, "reset_headers", header)?;
    let max = max_interval.map_or(Ok(MAX_RESET), |d| duration(&d)).within("max_interval")?;
    Ok(RateLimitedBackOff { headers, max })
}

/// After how many tries of priorities others are taken.
fn previous_priorities(value: retry_policy::RetryPriority) -> Result<NonZeroU32> {
    let retry_policy::RetryPriority { name, config_type } = value;
    match config_type.map(|retry_policy::retry_priority::ConfigType::TypedConfig(c)| c) {
        Some(config) if any::is::<PreviousPrioritiesConfig>(&config) => {
            let PreviousPrioritiesConfig { update_frequency } = open(&config)?;
            let above_zero = u32::try_from(update_frequency).ok().and_then(NonZeroU32::new);
            above_zero.ok_or_else(|| Invalid::field("typed_config.update_frequency", format!("{update_frequency} is not above zero")))
        }
        _ => Err(Invalid::new(format!("{name} is not supported; envoy.retry_priorities.previous_priorities is"))),
    }
}

/// Whom retries go past.
#[derive(Default)]
struct Avoid {
    previous: bool,
    omit: Omit,
}

impl Avoid {
    fn add(&mut self, value: retry_policy::RetryHostPredicate) -> Result<()> {
        let retry_policy::RetryHostPredicate { name, config_type } = value;
        let config: Option<Any> = config_type.map(|retry_policy::retry_host_predicate::ConfigType::TypedConfig(c)| c);
        let is = |extension: &str, typed: fn(&Any) -> bool| config.as_ref().map_or(name == extension, typed);
        if is("envoy.retry_host_predicates.previous_hosts", any::is::<PreviousHostsPredicate>) {
            self.previous = true;
        } else if is("envoy.retry_host_predicates.omit_canary_hosts", any::is::<OmitCanaryHostsPredicate>) {
            self.omit.canaries = true;
        } else if let Some(config) = config.as_ref().filter(|c| any::is::<OmitHostMetadataConfig>(c)) {
            let OmitHostMetadataConfig { metadata_match } = open(config)?;
            // Without anything to match nobody is omitted.
            let entries = subset::criteria(metadata_match).map(|c| c.entries().to_vec()).filter(|e| !e.is_empty());
            self.omit.labelled.extend(entries);
        } else {
            let known = "envoy.retry_host_predicates.previous_hosts, omit_canary_hosts and omit_host_metadata are";
            return Err(Invalid::new(format!("{name} is not supported; {known}")));
        }
        Ok(())
    }
}

impl RetryOn {
    /// Reads a comma-separated list of conditions (Envoy `retry_on`, `x-envoy-retry-on`).
    ///
    /// # Errors
    /// The first word that is not a condition.
    pub fn parse(text: &str) -> std::result::Result<Self, String> {
        text.split(',').map(str::trim).filter(|w| !w.is_empty()).try_fold(Self::default(), |set, word| {
            Self::of_http(word).or_else(|| Self::of_grpc(word)).map(|bit| set.with(bit)).ok_or_else(|| word.to_owned())
        })
    }

    /// A condition of `x-envoy-retry-on`.
    pub fn of_http(word: &str) -> Option<Self> {
        HTTP_WORDS.iter().find(|(known, _)| *known == word).map(|(_, bit)| *bit)
    }

    /// A condition of `x-envoy-retry-grpc-on`.
    pub fn of_grpc(word: &str) -> Option<Self> {
        GRPC_WORDS.iter().find(|(known, _)| *known == word).map(|(_, bit)| *bit)
    }
}

const HTTP_WORDS: [(&str, RetryOn); 11] = [
    ("5xx", RetryOn::FIVE_XX),
    ("gateway-error", RetryOn::GATEWAY_ERROR),
    ("reset", RetryOn::RESET),
    ("reset-before-request", RetryOn::RESET_BEFORE_REQUEST),
    ("connect-failure", RetryOn::CONNECT_FAILURE),
    ("refused-stream", RetryOn::REFUSED_STREAM),
    ("retriable-4xx", RetryOn::RETRIABLE_4XX),
    ("retriable-status-codes", RetryOn::RETRIABLE_STATUS_CODES),
    ("retriable-headers", RetryOn::RETRIABLE_HEADERS),
    ("envoy-ratelimited", RetryOn::ENVOY_RATELIMITED),
    ("http3-post-connect-failure", RetryOn::HTTP3_POST_CONNECT_FAILURE),
];

const GRPC_WORDS: [(&str, RetryOn); 5] = [
    ("cancelled", RetryOn::GRPC_CANCELLED),
    ("deadline-exceeded", RetryOn::GRPC_DEADLINE_EXCEEDED),
    ("internal", RetryOn::GRPC_INTERNAL),
    ("resource-exhausted", RetryOn::GRPC_RESOURCE_EXHAUSTED),
    ("unavailable", RetryOn::GRPC_UNAVAILABLE),
];
