//! Rate limits: what a request counts as (descriptors), and the buckets of what counts alike.
mod bucket;
mod by_value;
mod hits;

use std::borrow::Cow;
use std::net::IpAddr;
use std::sync::Arc;

pub use bucket::TokenBucket;
pub use by_value::ByValue;
pub use hits::{HitCount, Hits, HitsAddend};

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
    pub hits: Option<HitsAddend>,
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

/// A descriptor with its weight.
#[derive(Debug, Clone)]
pub struct Counted<'a> {
    pub entries: Descriptor<'a>,
    pub hits: Hits,
}

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

impl LocalRateLimit {
    /// The same limit of other requests.
    pub(crate) fn anew(&self) -> Self {
        Self {
            stat_prefix: Arc::clone(&self.stat_prefix),
            limiter: self.limiter.fresh(),
            request_headers: self.request_headers.clone(),
            response_headers: self.response_headers.clone(),
            limits: self.limits.clone(),
            ..*self
        }
    }
}

/// The buckets of a filter.
#[derive(Debug)]
pub struct Limiter {
    pub default: Option<Arc<TokenBucket>>,
    /// Slowest first: its answer is the one that a caller is told.
    pub described: Vec<Described>,
    /// The default bucket counts also what a descriptor counted.
    pub always_default: bool,
}

/// The limit of what a descriptor describes.
#[derive(Debug)]
pub struct Described {
    /// An empty value stands for any.
    pub entries: Descriptor<'static>,
    pub buckets: Buckets,
    /// What is over the limit is only counted.
    pub shadow: bool,
}

#[derive(Debug)]
pub enum Buckets {
    One(Arc<TokenBucket>),
    /// One for each value that comes where the descriptor has none.
    ByValue(ByValue),
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allowed,
    /// Over a limit that only counts.
    Shadowed,
    Refused,
}

impl Limiter {
    /// Takes what the request comes to from each bucket that counts it, until one has not enough; one that only counts ends nothing. Also
    /// the bucket that decided.
    pub fn take(&self, descriptors: &[Counted<'_>], now: u64) -> (Verdict, Option<&Arc<TokenBucket>>) {
        let (mut first, mut shadowed) = (None, None);
        for (index, described) in self.described.iter().enumerate() {
            for descriptor in descriptors.iter().filter(|d| self.counts(index, described, &d.entries)) {
                let Some(bucket) = described.bucket(&descriptor.entries, now) else { continue };
                if descriptor.hits.take(bucket, now) {
                    first = first.or(Some(bucket));
                } else if described.shadow {
                    shadowed = shadowed.or(Some(bucket));
                } else {
                    return (Verdict::Refused, Some(bucket));
                }
            }
        }
        let counted = first.is_some() || shadowed.is_some();
        if let Some(bucket) = self.default.as_ref().filter(|_| self.always_default || !counted) {
            if !bucket.take(now) {
                return (Verdict::Refused, Some(bucket));
            }
            first = first.or(Some(bucket));
        }
        if shadowed.is_some() { (Verdict::Shadowed, shadowed) } else { (Verdict::Allowed, first) }
    }

    /// Whether this limit is the one for the descriptor: of several that match, the one that names all values, else the first.
    fn counts(&self, index: usize, described: &Described, descriptor: &Descriptor<'_>) -> bool {
        let Buckets::ByValue(_) = described.buckets else { return described.entries == *descriptor };
        let others = || self.described.iter().enumerate().filter(|(i, _)| *i != index);
        let better = |(i, other): (usize, &Described)| match other.buckets {
            Buckets::One(_) => other.entries == *descriptor,
            Buckets::ByValue(_) => i < index && other.matches(descriptor),
        };
        described.matches(descriptor) && !others().any(better)
    }

    /// The same limits with full buckets of their own.
    #[must_use]
    pub fn fresh(&self) -> Self {
        Self {
            default: self.default.as_ref().map(|bucket| Arc::new(bucket.fresh())),
            described: self.described.iter().map(Described::fresh).collect(),
            always_default: self.always_default,
        }
    }
}

impl Described {
    /// Nanoseconds for one token.
    pub fn cost(&self) -> u64 {
        match &self.buckets {
            Buckets::One(bucket) => bucket.cost(),
            Buckets::ByValue(table) => table.cost(),
        }
    }

    fn matches(&self, descriptor: &Descriptor<'_>) -> bool {
        let fits = |(own, one): (&Entry<'_>, &Entry<'_>)| own.key == one.key && (own.value.is_empty() || own.value == one.value);
        self.entries.len() == descriptor.len() && self.entries.iter().zip(descriptor).all(fits)
    }

    fn bucket(&self, descriptor: &Descriptor<'_>, now: u64) -> Option<&Arc<TokenBucket>> {
        match &self.buckets {
            Buckets::One(bucket) => Some(bucket),
            Buckets::ByValue(table) => {
                let open = self.entries.iter().zip(descriptor).filter(|(own, _)| own.value.is_empty());
                table.bucket(open.map(|(_, one)| &*one.value), now)
            }
        }
    }

    fn fresh(&self) -> Self {
        let buckets = match &self.buckets {
            Buckets::One(bucket) => Buckets::One(Arc::new(bucket.fresh())),
            Buckets::ByValue(table) => Buckets::ByValue(table.fresh()),
        };
        Self { entries: self.entries.clone(), buckets, shadow: self.shadow }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn entry(key: &'static str, value: &'static str) -> Entry<'static> {
        Entry { key: key.into(), value: value.into() }
    }

    fn bucket(most: u32) -> TokenBucket {
        TokenBucket::new(most, 1, 3600 * SECOND)
    }

    fn one(entries: Descriptor<'static>, most: u32) -> Described {
        Described { entries, buckets: Buckets::One(bucket(most).into()), shadow: false }
    }

    fn by_value(entries: Descriptor<'static>, most: u32) -> Described {
        Described { entries, buckets: Buckets::ByValue(ByValue::new(bucket(most), 20)), shadow: false }
    }

    fn once(entries: Descriptor<'static>) -> Counted<'static> {
        Counted { entries, hits: Hits::default() }
    }

    /// As Envoy's buckets, which have nothing to give for nothing.
    #[test]
    fn a_request_may_count_more_than_once_or_give_back() {
        let limiter = Limiter { default: Some(bucket(9).into()), described: vec![one(vec![entry("a", "b")], 7)], always_default: false };
        let take = |count, negative| {
            let hits = Hits { count: Some(count), negative };
            let (verdict, bucket) = limiter.take(&[Counted { entries: vec![entry("a", "b")], hits }], 0);
            (verdict, bucket.map_or(0, |bucket| bucket.remaining(0)))
        };
        assert_eq!(take(3, false), (Verdict::Allowed, 4));
        assert_eq!(take(5, false), (Verdict::Refused, 4));
        assert_eq!(take(0, false), (Verdict::Refused, 4));
        assert_eq!(take(2, true), (Verdict::Allowed, 6));
        assert_eq!(take(Hits::MOST, true), (Verdict::Allowed, 7));
        assert_eq!(take(Hits::MOST, false), (Verdict::Refused, 7));
        let numbers = ["4", "2.5", "0", "1000000000", "1000000001", "-1", "x", "", "inf", "NaN"].map(Hits::number);
        assert_eq!(numbers, [Some(4), Some(2), Some(0), Some(Hits::MOST), None, None, None, None, None, None]);
    }

    #[test]
    fn a_descriptor_has_its_own_bucket_beside_the_default() {
        let described = vec![one(vec![entry("path", "/slow")], 1)];
        let limiter = Limiter { default: Some(bucket(2).into()), described, always_default: true };
        let slow = [once(vec![entry("path", "/slow")])];
        assert_eq!(limiter.take(&slow, 0).0, Verdict::Allowed);
        assert_eq!(limiter.take(&slow, 0).0, Verdict::Refused, "its own bucket is empty");
        assert_eq!(limiter.take(&[], 0).0, Verdict::Allowed);
        assert_eq!(limiter.take(&[], 0).0, Verdict::Refused, "the default counted the described request too");
        let apart = Limiter { always_default: false, ..limiter.fresh() };
        assert_eq!(apart.take(&slow, 0).0, Verdict::Allowed);
        assert_eq!(apart.take(&[], 0).1.map(|b| b.remaining(0)), Some(1), "not counted twice");
    }

    #[test]
    fn a_descriptor_without_a_value_has_a_bucket_for_each_that_no_other_names() {
        let described = vec![
            by_value(vec![entry("user", ""), entry("plan", "free")], 1),
            by_value(vec![entry("user", "")], 1),
            one(vec![entry("user", "root")], 3),
        ];
        let limiter = Limiter { default: None, described, always_default: true };
        let times = |descriptor: &Descriptor<'static>| {
            (0..9).take_while(|_| limiter.take(&[once(descriptor.clone())], 5).0 == Verdict::Allowed).count()
        };
        assert_eq!(times(&vec![entry("user", "ann")]), 1);
        assert_eq!(times(&vec![entry("user", "bob")]), 1);
        assert_eq!(times(&vec![entry("user", "root")]), 3);
        assert_eq!(times(&vec![entry("user", "ann"), entry("plan", "free")]), 1);
        assert_eq!(times(&vec![entry("user", "ann"), entry("plan", "paid")]), 9, "nobody counts it");
        assert_eq!(times(&vec![entry("user", "ann"), entry("plan", "free")]), 0);
    }

    #[test]
    fn a_shadow_limit_only_tells() {
        let shadow = Described { shadow: true, ..one(vec![entry("a", "b")], 1) };
        let limiter = Limiter { default: Some(bucket(3).into()), described: vec![shadow], always_default: true };
        let descriptor = [once(vec![entry("a", "b")])];
        let verdicts: Vec<Verdict> = (0..4).map(|_| limiter.take(&descriptor, 0).0).collect();
        let expected = [Verdict::Allowed, Verdict::Shadowed, Verdict::Shadowed, Verdict::Refused];
        assert_eq!(verdicts, expected, "the default bucket counts what a shadow would have turned away");
    }
}
