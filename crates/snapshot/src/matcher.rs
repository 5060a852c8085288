//! Matchers of Envoy's `type.matcher.v3` and RBAC, compiled: strings, headers, numbers, addresses.
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use http::HeaderName;
use regex::Regex;

use crate::matcher_tree::MatchTree;
use crate::metadata::MetadataMatcher;
use crate::path_template::PathTemplate;

/// A string matcher (Envoy string.proto).
#[derive(Debug, Clone)]
pub enum StringMatcher {
    Exact {
        text: Box<str>,
        ignore_case: bool,
    },
    Prefix {
        text: Box<str>,
        ignore_case: bool,
    },
    Suffix {
        text: Box<str>,
        ignore_case: bool,
    },
    Contains {
        text: Box<str>,
        ignore_case: bool,
    },
    /// Anchored at both ends: the whole value must match.
    Regex(Regex),
}

/// A header matcher (Envoy route_components.proto `HeaderMatcher`).
#[derive(Debug, Clone)]
pub struct HeaderMatcher {
    pub name: HeaderKey,
    pub predicate: HeaderPredicate,
    pub invert: bool,
    /// A missing header is treated as the empty string.
    pub missing_as_empty: bool,
}

/// A header, or one of HTTP/2's pseudo headers that Envoy configurations may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HeaderKey {
    Name(HeaderName),
    Method,
    Path,
    Authority,
    Scheme,
    /// Framing too, and kept as that and not among the headers.
    ContentLength,
}

#[derive(Debug, Clone)]
pub enum HeaderPredicate {
    Present(bool),
    String(StringMatcher),
    Range { start: i64, end: i64 },
}

/// A query parameter matcher.
#[derive(Debug, Clone)]
pub struct QueryMatcher {
    pub name: Box<str>,
    pub value: QueryValue,
}

#[derive(Debug, Clone)]
pub enum QueryValue {
    Present,
    Absent,
    Matches(StringMatcher),
}

/// A cookie matcher.
#[derive(Debug, Clone)]
pub struct CookieMatcher {
    pub name: Box<str>,
    pub value: StringMatcher,
    pub invert: bool,
}

/// `numerator` of `denominator` requests (Envoy `FractionalPercent`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };
    pub const NONE: Self = Self { numerator: 0, denominator: 100 };

    /// Whether a die roll (any uniformly distributed number) falls in.
    pub fn hits(self, roll: u32) -> bool {
        self.numerator > 0 && roll % self.denominator < self.numerator
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueMatcher {
    Equal(u64),
    GreaterOrEqual(u64),
    LessOrEqual(u64),
    NotEqual(u64),
}

/// An address block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    pub address: IpAddr,
    pub length: u8,
}

impl Cidr {
    /// A block; bits below the prefix are cleared.
    pub fn new(address: IpAddr, length: u8) -> Self {
        let address = address.to_canonical();
        let length = length.min(if address.is_ipv4() { 32 } else { 128 });
        Self { address: Self::mask(address, length), length }
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        address.is_ipv4() == self.address.is_ipv4() && Self::mask(address, self.length) == self.address
    }

    /// `address` with all bits after the first `length` cleared.
    pub(crate) fn mask(address: IpAddr, length: u8) -> IpAddr {
        match address {
            IpAddr::V4(v4) => {
                IpAddr::from(Ipv4Addr::from_bits(v4.to_bits() & u32::MAX.checked_shl(32 - u32::from(length.min(32))).unwrap_or(0)))
            }
            IpAddr::V6(v6) => {
                IpAddr::from(Ipv6Addr::from_bits(v6.to_bits() & u128::MAX.checked_shl(128 - u32::from(length.min(128))).unwrap_or(0)))
            }
        }
    }
}

impl std::fmt::Display for Cidr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// Role-based access control (Envoy rbac.proto), HTTP and network.
#[derive(Debug, Default)]
pub struct Rbac {
    /// `None` enforces nothing.
    pub rules: Option<RbacRules>,
    /// Evaluated and told of, and never enforced.
    pub shadow: Option<RbacRules>,
    /// In front of the names of counters and of keys of dynamic metadata.
    pub stat_prefix: Arc<str>,
    pub shadow_stat_prefix: Arc<str>,
    /// Each policy has counters of its own.
    pub tracks_policies: bool,
}

#[derive(Debug)]
pub enum RbacRules {
    Policies {
        action: RbacAction,
        /// By name, in Envoy's (sorted) order.
        policies: Vec<RbacPolicy>,
    },
    /// Without a decision the request is denied.
    Tree {
        tree: MatchTree<RbacDecision>,
        /// Some decision is to log, so that each tells logs whether it is.
        logs: bool,
    },
}

/// What a tree of matchers leads to.
#[derive(Debug)]
pub struct RbacDecision {
    pub name: Arc<str>,
    pub action: RbacAction,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RbacAction {
    Allow,
    Deny,
    Log,
}

#[derive(Debug)]
pub struct RbacPolicy {
    pub name: Arc<str>,
    pub permissions: Vec<Permission>,
    pub principals: Vec<Principal>,
}

#[derive(Debug)]
pub enum Permission {
    Any,
    And(Vec<Permission>),
    Or(Vec<Permission>),
    Not(Box<Permission>),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    DestinationIp(Cidr),
    DestinationPort(u16),
    DestinationPortRange(std::ops::RangeInclusive<u16>),
    RequestedServerName(StringMatcher),
    Metadata(MetadataMatcher),
    UriTemplate(PathTemplate),
}

#[derive(Debug)]
pub enum Principal {
    Any,
    And(Vec<Principal>),
    Or(Vec<Principal>),
    Not(Box<Principal>),
    /// Mutual TLS peer; `None` matches any authenticated peer.
    Authenticated(Option<StringMatcher>),
    /// Peer after PROXY protocol.
    DirectRemoteIp(Cidr),
    /// Peer after `x-forwarded-for`.
    RemoteIp(Cidr),
    SourceIp(Cidr),
    Header(HeaderMatcher),
    UrlPath(StringMatcher),
    Metadata(MetadataMatcher),
}
