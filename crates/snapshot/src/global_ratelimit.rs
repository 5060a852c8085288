//! Global rate limits: which requests a rate limit service is asked about, and what a request over its limit gets.
use std::sync::Arc;

use crate::header::HeaderMutations;
use crate::matcher::Fraction;
use crate::ratelimit::{RateLimit, VirtualHostLimits};
use crate::service::GrpcService;

/// Envoy's `RateLimit` filter.
#[derive(Debug)]
pub struct GlobalRateLimit {
    pub domain: Arc<str>,
    pub stage: u32,
    pub requests: LimitedRequests,
    /// With the filter's timeout.
    pub service: GrpcService,
    /// The share of requests that are refused when the service cannot be asked.
    pub failure_mode_deny: Fraction,
    /// gRPC callers get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    /// `x-ratelimit-*` on responses.
    pub quota_headers: bool,
    /// `x-envoy-ratelimited` on responses to requests over their limit.
    pub marks: bool,
    /// `retry-after` on refusals with 429.
    pub retry_after: bool,
    /// 429 unless set to another error.
    pub status: u16,
    /// 500 unless set to another error.
    pub status_on_error: u16,
    /// To refusals.
    pub response_headers: HeaderMutations,
    /// `ratelimit`, or `ratelimit.<stat_prefix>`: part of the statistics' names.
    pub stat_prefix: Arc<str>,
    pub enabled: Fraction,
    pub enforced: Fraction,
    /// Take the place of those of routes and virtual hosts when there are any.
    pub limits: Vec<RateLimit>,
    /// Where the service's metadata go.
    pub metadata_namespace: Arc<str>,
}

/// Envoy's `request_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitedRequests {
    Internal,
    External,
    Both,
}

/// What a route says about the filter.
#[derive(Debug)]
pub struct RateLimitPerRoute {
    pub virtual_host: VirtualHostLimits,
    pub limits: Vec<RateLimit>,
    pub domain: Option<Arc<str>>,
}
