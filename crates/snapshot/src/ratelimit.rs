//! Rate limits: what a request counts as (descriptors), and token buckets that all workers share.
use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::header::HeaderMutations;
use crate::matcher::{Cidr, Fraction, HeaderKey, HeaderMatcher, QueryMatcher};
use crate::matching::query_parameters;
use crate::metadata::Metadata;
use crate::route::RequestHead;

/// One entry of a route's `rate_limits` (Envoy `RateLimit`).
#[derive(Debug, Clone)]
pub struct RateLimit {
    /// Filters ask for the limits of their stage.
    pub stage: u32,
    pub actions: Vec<DescriptorAction>,
}

/// How one part of a descriptor is made. An action that yields nothing takes its whole descriptor away.
#[derive(Debug, Clone)]
pub enum DescriptorAction {
    /// The cluster that this proxy belongs to.
    SourceCluster,
    DestinationCluster,
    RequestHeader {
        name: HeaderKey,
        key: Box<str>,
        skip_if_absent: bool,
    },
    QueryParameter {
        name: Box<str>,
        key: Box<str>,
        skip_if_absent: bool,
    },
    RemoteAddress,
    MaskedRemoteAddress {
        v4: u8,
        v6: u8,
    },
    /// The caller is, or with `invert` is not, within one of the ranges.
    RemoteAddressMatch {
        key: Box<str>,
        value: Box<str>,
        ranges: Vec<Cidr>,
        invert: bool,
    },
    GenericKey {
        key: Box<str>,
        value: Box<str>,
    },
    HeaderValueMatch {
        key: Box<str>,
        value: Box<str>,
        headers: Vec<HeaderMatcher>,
        expect: bool,
    },
    QueryValueMatch {
        key: Box<str>,
        value: Box<str>,
        parameters: Vec<QueryMatcher>,
        expect: bool,
    },
    /// A text that a filter wrote.
    Metadata {
        key: Box<str>,
        namespace: Box<str>,
        path: Vec<Box<str>>,
        default: Box<str>,
        skip_if_absent: bool,
    },
}

/// A key with its value; a list of them is a descriptor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry<'a> {
    pub key: Cow<'a, str>,
    pub value: Cow<'a, str>,
}

/// What a request counts as in one respect.
pub type Descriptor<'a> = Vec<Entry<'a>>;

/// What descriptors are made of.
#[derive(Clone, Copy, Debug)]
pub struct LimitFacts<'a> {
    pub head: &'a RequestHead<'a>,
    /// The caller after `x-forwarded-for`.
    pub remote: IpAddr,
    pub cluster: Option<&'a str>,
    /// The cluster of this proxy's node.
    pub source: &'a str,
    pub metadata: &'a Metadata,
}

impl RateLimit {
    /// The request's descriptor; `None` when an action does not apply.
    pub fn descriptor<'a>(&'a self, facts: &LimitFacts<'a>) -> Option<Descriptor<'a>> {
        let mut entries = Vec::with_capacity(self.actions.len());
        for action in &self.actions {
            match action.entry(facts) {
                Made::Entry(key, value) => entries.push(Entry { key: Cow::Borrowed(key), value }),
                Made::Skipped => {}
                Made::Nothing => return None,
            }
        }
        (!entries.is_empty()).then_some(entries)
    }
}

enum Made<'a> {
    Entry(&'a str, Cow<'a, str>),
    Skipped,
    Nothing,
}

impl DescriptorAction {
    fn entry<'a>(&'a self, facts: &LimitFacts<'a>) -> Made<'a> {
        match self {
            Self::SourceCluster => Made::Entry("source_cluster", facts.source.into()),
            Self::DestinationCluster => facts.cluster.map_or(Made::Nothing, |name| Made::Entry("destination_cluster", name.into())),
            Self::RequestHeader { name, key, skip_if_absent } => made_or(key, crate::matching::value_of(name, facts.head), *skip_if_absent),
            Self::QueryParameter { name, key, skip_if_absent } => {
                let found = query_parameters(facts.head.path_and_query).find(|(parameter, _)| **parameter == **name);
                made_or(key, found.map(|(_, value)| Cow::Borrowed(value)), *skip_if_absent)
            }
            Self::RemoteAddress => Made::Entry("remote_address", facts.remote.to_canonical().to_string().into()),
            Self::MaskedRemoteAddress { v4, v6 } => {
                let address = facts.remote.to_canonical();
                let block = Cidr::new(address, if address.is_ipv4() { *v4 } else { *v6 });
                Made::Entry("masked_remote_address", block.to_string().into())
            }
            Self::RemoteAddressMatch { key, value, ranges, invert } => {
                let address = facts.remote.to_canonical();
                let within = ranges.iter().any(|range| range.contains(address));
                if within == *invert { Made::Nothing } else { Made::Entry(key, Cow::Borrowed(value)) }
            }
            Self::GenericKey { key, value } => Made::Entry(key, Cow::Borrowed(value)),
            Self::HeaderValueMatch { key, value, headers, expect } => {
                let all = headers.iter().all(|m| m.matches(facts.head));
                if all == *expect { Made::Entry(key, Cow::Borrowed(value)) } else { Made::Nothing }
            }
            Self::QueryValueMatch { key, value, parameters, expect } => {
                let all = parameters.iter().all(|m| m.matches(facts.head.path_and_query));
                if all == *expect { Made::Entry(key, Cow::Borrowed(value)) } else { Made::Nothing }
            }
            Self::Metadata { key, namespace, path, default, skip_if_absent } => {
                let found = facts.metadata.get(namespace, path).and_then(|v| v.as_str()).filter(|text| !text.is_empty());
                let fallback = (!default.is_empty()).then_some(&**default);
                made_or(key, found.or(fallback).map(Cow::Borrowed), *skip_if_absent)
            }
        }
    }
}

fn made_or<'a>(key: &'a str, value: Option<Cow<'a, str>>, skip_if_absent: bool) -> Made<'a> {
    match value {
        Some(value) => Made::Entry(key, value),
        None if skip_if_absent => Made::Skipped,
        None => Made::Nothing,
    }
}

/// Which limits of the virtual host count beside the route's (Envoy `VhRateLimitsOptions`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VirtualHostLimits {
    /// Only where the route has none.
    Override,
    Include,
    Ignore,
}

/// Envoy's `LocalRateLimit` filter.
#[derive(Debug)]
pub struct LocalRateLimit {
    pub stat_prefix: Arc<str>,
    /// 429 unless set to another error.
    pub status: u16,
    /// The share of requests that is counted.
    pub enabled: Fraction,
    /// The share of counted requests that may be refused.
    pub enforced: Fraction,
    pub limiter: Limiter,
    /// Each connection has buckets of its own.
    pub per_connection: bool,
    /// `x-ratelimit-*` on responses.
    pub quota_headers: bool,
    /// `retry-after` on refusals.
    pub retry_after: bool,
    /// To requests over the limit that pass since it is not enforced.
    pub request_headers: HeaderMutations,
    /// To refusals.
    pub response_headers: HeaderMutations,
    /// gRPC callers get RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub resource_exhausted: bool,
    pub virtual_host: VirtualHostLimits,
    pub stage: u32,
    /// Take the place of the route's when there are any.
    pub limits: Vec<RateLimit>,
}

/// The buckets of a filter.
#[derive(Debug, Clone)]
pub struct Limiter {
    pub default: Option<Arc<TokenBucket>>,
    /// Slowest first: its answer is the one that a caller is told.
    pub described: Vec<(Descriptor<'static>, Arc<TokenBucket>)>,
    /// The default bucket counts also what a descriptor counted.
    pub always_default: bool,
}

impl Limiter {
    /// Takes a token from each bucket that counts the request, until one has none left. Also the bucket that decided.
    pub fn take(&self, descriptors: &[Descriptor<'_>], now: u64) -> (bool, Option<&Arc<TokenBucket>>) {
        let mut first = None;
        for (wanted, bucket) in &self.described {
            for _ in descriptors.iter().filter(|d| *d == wanted) {
                if !bucket.take(now) {
                    return (false, Some(bucket));
                }
                first = first.or(Some(bucket));
            }
        }
        if first.is_some() && !self.always_default {
            return (true, first);
        }
        match &self.default {
            Some(bucket) if !bucket.take(now) => (false, Some(bucket)),
            default => (true, first.or(default.as_ref())),
        }
    }

    /// The same limits with full buckets of their own.
    #[must_use]
    pub fn fresh(&self) -> Self {
        let fresh = |bucket: &Arc<TokenBucket>| Arc::new(bucket.fresh());
        Self {
            default: self.default.as_ref().map(fresh),
            described: self.described.iter().map(|(d, bucket)| (d.clone(), fresh(bucket))).collect(),
            always_default: self.always_default,
        }
    }
}

/// A token bucket without a timer or lock: its level follows from one number, the moment at which it was empty.
///
/// Times are nanoseconds on any clock that all its users share. Inside they are shifted by the time that a whole
/// bucket takes, so that zero means full, whatever the clock says.
#[derive(Debug)]
pub struct TokenBucket {
    most: u32,
    /// Nanoseconds for one token.
    cost: u64,
    empty_at: AtomicU64,
}

impl TokenBucket {
    /// Holds at most `most` tokens and gets `fill` of them, evenly, every `interval` (nanoseconds).
    pub fn new(most: u32, fill: u32, interval: u64) -> Self {
        Self { most, cost: (interval / u64::from(fill.max(1))).max(1), empty_at: AtomicU64::new(0) }
    }

    fn fresh(&self) -> Self {
        Self { most: self.most, cost: self.cost, empty_at: AtomicU64::new(0) }
    }

    /// Nanoseconds for one token.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// The size of the bucket.
    pub fn most(&self) -> u32 {
        self.most
    }

    fn span(&self) -> u64 {
        self.cost.saturating_mul(u64::from(self.most)).min(u64::MAX / 2)
    }

    fn level(&self, empty_at: u64, now: u64) -> u64 {
        now.saturating_add(self.span()).saturating_sub(empty_at).min(self.span())
    }

    /// Takes a token if there is one.
    pub fn take(&self, now: u64) -> bool {
        let next = |seen| {
            let left = self.level(seen, now).checked_sub(self.cost)?;
            Some(now.saturating_add(self.span()).saturating_sub(left))
        };
        self.empty_at.fetch_update(Relaxed, Relaxed, next).is_ok()
    }

    /// Whole tokens left.
    pub fn remaining(&self, now: u64) -> u64 {
        self.level(self.empty_at.load(Relaxed), now) / self.cost
    }

    /// Seconds until there is a token, rounded up; 0 when there is one.
    pub fn reset(&self, now: u64) -> u64 {
        self.cost.saturating_sub(self.level(self.empty_at.load(Relaxed), now)).div_ceil(1_000_000_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn entry(key: &'static str, value: &'static str) -> Entry<'static> {
        Entry { key: key.into(), value: value.into() }
    }

    #[test]
    fn a_bucket_starts_full_fills_evenly_and_never_over() {
        let bucket = TokenBucket::new(2, 4, 10 * SECOND);
        let now = 7 * SECOND;
        assert_eq!((bucket.remaining(now), bucket.take(now), bucket.take(now), bucket.take(now)), (2, true, true, false));
        assert_eq!((bucket.remaining(now), bucket.reset(now)), (0, 3));
        assert!(!bucket.take(now + 2 * SECOND), "half a token is none");
        assert!(bucket.take(now + 5 * SECOND / 2));
        assert_eq!(bucket.remaining(now + 1000 * SECOND), 2);
        assert_eq!(bucket.reset(now + 1000 * SECOND), 0);
    }

    #[test]
    fn threads_share_a_bucket_to_the_last_token() {
        let bucket = TokenBucket::new(1000, 1, 3600 * SECOND);
        let taken = AtomicU64::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        taken.fetch_add(u64::from(bucket.take(1)), Relaxed);
                    }
                });
            }
        });
        assert_eq!(taken.load(Relaxed), 1000);
    }

    #[test]
    fn a_descriptor_has_its_own_bucket_beside_the_default() {
        let bucket = |most| Arc::new(TokenBucket::new(most, 1, 3600 * SECOND));
        let described = vec![(vec![entry("path", "/slow")], bucket(1))];
        let limiter = Limiter { default: Some(bucket(2)), described, always_default: true };
        let slow = [vec![entry("path", "/slow")]];
        assert!(limiter.take(&slow, 0).0);
        assert!(!limiter.take(&slow, 0).0, "its own bucket is empty");
        assert!(limiter.take(&[], 0).0);
        assert!(!limiter.take(&[], 0).0, "the default counted the described request too");
        let apart = Limiter { always_default: false, ..limiter.fresh() };
        assert!(apart.take(&slow, 0).0);
        assert_eq!(apart.take(&[], 0).1.map(|b| b.remaining(0)), Some(1), "not counted twice");
    }
}
