//! Route tables: virtual hosts by domain, routes in order, and what a matched route does.
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, StatusCode};
use lateen_balance::{Criteria, Omit};
use lateen_telemetry::istio::CatchAll;
use regex::Regex;

use crate::header::HeaderMutations;
use crate::http::{Cors, FilterOverrides, HeaderChanges};
use crate::matcher::{CookieMatcher, Fraction, HeaderMatcher, QueryMatcher, StringMatcher};
use crate::metadata::MetadataMatcher;
use crate::path_template::{PathTemplate, PathTemplateRewrite};
use crate::proxy_protocol::ProxyProtocol;
use crate::ratelimit::RateLimit;
use crate::trace::RouteTracing;
use crate::{ClusterId, RouteTableId};

/// Virtual hosts by domain. Hashed without much ado: callers do not choose what is in it.
pub type Domains = HashMap<Box<str>, u32, foldhash::fast::RandomState>;

/// Envoy `RouteConfiguration`.
#[derive(Clone, Debug)]
pub struct RouteTable {
    pub name: Arc<str>,
    pub virtual_hosts: Vec<VirtualHost>,
    /// Lower-case domains (ports kept unless `ignore_port`) to indices of virtual hosts.
    pub exact: Domains,
    /// `*.suffix` entries, longest first: (suffix with its dot, index).
    pub suffixes: Vec<(Box<str>, u32)>,
    /// `prefix.*` entries, longest first.
    pub prefixes: Vec<(Box<str>, u32)>,
    /// The `*` virtual host.
    pub catch_all: Option<u32>,
    pub ignore_port_in_host: bool,
    /// Virtual hosts that are not there can be asked for, under this id.
    pub discovers_hosts: Option<RouteTableId>,
    /// The virtual host is found by this header instead of the host.
    pub vhost_header: Option<HeaderName>,
    /// Paths are matched without what follows a `;`.
    pub ignore_path_parameters: bool,
    /// Taken off requests from outside.
    pub internal_only_headers: Vec<HeaderName>,
    pub per_route: FilterOverrides,
    pub headers: HeaderChanges,
    pub most_specific_header_mutations_wins: bool,
}

/// What differs from host to host is small, and lies together: a request to one of thousands of hosts finds none of it in the
/// processor's caches.
#[derive(Clone, Debug)]
pub struct VirtualHost {
    pub name: Arc<str>,
    pub routes: Box<[Arc<Route>]>,
    pub settings: Arc<HostSettings>,
}

/// What a virtual host says beside its name, domains and routes: mostly the same for all of a table.
#[derive(Debug)]
pub struct HostSettings {
    pub headers: HeaderChanges,
    pub per_route: FilterOverrides,
    /// For routes without a policy of their own.
    pub cors: Option<Arc<Cors>>,
    pub require_tls: RequireTls,
    pub retry: Option<Arc<RetryPolicy>>,
    pub include_request_attempt_count: bool,
    pub include_attempt_count_in_response: bool,
    /// Tries after the first are told whether the one before was too slow.
    pub include_is_timeout_retry: bool,
    pub hedge_on_per_try_timeout: bool,
    pub buffer_limit: BufferLimit,
    pub rate_limits: Vec<RateLimit>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RequireTls {
    #[default]
    None,
    ExternalOnly,
    All,
}

impl RequireTls {
    /// Whether a request that did not come over TLS, as `x-forwarded-proto` tells, is sent to where it would: before any route
    /// is looked for (Envoy `VirtualHostImpl::getRouteFromEntries`).
    pub fn redirects(self, internal: bool) -> bool {
        match self {
            Self::None => false,
            Self::ExternalOnly => !internal,
            Self::All => true,
        }
    }
}

/// One route.
#[derive(Debug)]
pub struct Route {
    /// `default` and the like; empty when unnamed.
    pub name: Arc<str>,
    /// What Istio's metrics say in place of the service, by the name.
    pub catch_all: Option<CatchAll>,
    pub matches: Arc<RouteMatch>,
    pub action: Action,
    pub headers: HeaderChanges,
    pub per_route: FilterOverrides,
    pub buffer_limit: BufferLimit,
    /// Operation name for spans and `x-envoy-decorator-operation`.
    pub decorator: Option<Arc<str>>,
    /// The other end is told of it.
    pub decorator_propagates: bool,
    /// In place of the connection manager's shares.
    pub tracing: Option<Box<RouteTracing>>,
    /// `filter_metadata.istio.config`, our provenance text, for explanations.
    pub provenance: Option<Arc<str>>,
}

impl Route {
    /// The route of requests that have to come over TLS (see [`RequireTls`]).
    pub fn to_https() -> Self {
        let matches = RouteMatch {
            path: PathMatch::Prefix("".into()),
            case_sensitive: true,
            headers: Vec::new(),
            query: Vec::new(),
            cookies: Vec::new(),
            metadata: Vec::new(),
            grpc_only: false,
            fraction: None,
        };
        Self {
            name: "".into(),
            catch_all: None,
            matches: Arc::new(matches),
            action: Action::ToHttps,
            headers: HeaderChanges::default(),
            per_route: FilterOverrides::default(),
            buffer_limit: BufferLimit::default(),
            decorator: None,
            decorator_propagates: false,
            tracing: None,
            provenance: None,
        }
    }
}

/// How much of a request's body is kept for another try.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BufferLimit {
    #[default]
    Inherited,
    /// Whatever the connection's limit is (Envoy `request_body_buffer_limit`).
    Own(u64),
    /// At most the connection's limit (Envoy `per_request_buffer_limit_bytes`).
    Below(u64),
}

#[derive(Debug)]
pub struct RouteMatch {
    pub path: PathMatch,
    /// For exact and prefix only.
    pub case_sensitive: bool,
    pub headers: Vec<HeaderMatcher>,
    pub query: Vec<QueryMatcher>,
    pub cookies: Vec<CookieMatcher>,
    /// Of what filters found out, where one has the route looked for again.
    pub metadata: Vec<MetadataMatcher>,
    pub grpc_only: bool,
    pub fraction: Option<Fraction>,
}

#[derive(Debug)]
pub enum PathMatch {
    Prefix(Box<str>),
    Exact(Box<str>),
    /// The whole path (without query) must match.
    Regex(Regex),
    /// Prefix that ends at a `/` or the path's end.
    PathSeparatedPrefix(Box<str>),
    Template(PathTemplate),
    Connect,
}

#[derive(Debug)]
pub enum Action {
    Forward(Box<Forward>),
    Redirect(Box<Redirect>),
    Direct(Box<DirectResponse>),
    /// To the same place over TLS, as the virtual host demands.
    ToHttps,
    /// For gateways' AUTO_PASSTHROUGH and the like: nothing to do but 404.
    NonForwarding,
}

/// Envoy `RouteAction`.
#[derive(Debug)]
pub struct Forward {
    pub cluster: ClusterChoice,
    /// Status when the cluster is unknown (Envoy default 503).
    pub cluster_not_found_status: StatusCode,
    pub path_rewrite: Option<PathRewrite>,
    pub host_rewrite: Option<HostRewrite>,
    /// Append `x-forwarded-host` when the host is rewritten.
    pub append_x_forwarded_host: bool,
    /// Whole response; Envoy's default is 15 s, Istio sends 0 (`None`).
    pub timeout: Option<Duration>,
    /// Time between bytes; zero for ever, `None` as the connection manager says.
    pub idle_timeout: Option<Duration>,
    /// How long the end of a response waits for its caller; zero for ever, `None` as the connection manager says.
    pub flush_timeout: Option<Duration>,
    pub max_stream_duration: Option<Duration>,
    pub max_grpc_timeout: Option<Duration>,
    pub grpc_timeout_offset: Option<Duration>,
    /// The most that `grpc-timeout` may ask for as length of the stream; zero for any (`grpc_timeout_header_max`).
    pub stream_grpc_max: Option<Duration>,
    /// Taken off what was asked for (`grpc_timeout_header_offset`).
    pub stream_grpc_offset: Option<Duration>,
    pub retry: Option<Arc<RetryPolicy>>,
    pub mirrors: Vec<Mirror>,
    pub hash: Vec<HashPolicy>,
    pub cors: Option<Arc<Cors>>,
    /// High-priority circuit breakers are used.
    pub high_priority: bool,
    /// Per-route switch of upgrades: (lower-case name, allowed).
    pub upgrades: Vec<(Arc<str>, bool)>,
    pub connect: Option<Connect>,
    pub rate_limits: Vec<RateLimit>,
    /// The virtual host's limits count too, whatever the filter says.
    pub include_virtual_host_limits: bool,
    pub internal_redirect: Option<Box<InternalRedirect>>,
    /// A try that is too slow goes on beside its repetition; `None` for what the virtual host says.
    pub hedge_on_per_try_timeout: Option<bool>,
    /// What the host's subset must be; one of several clusters has its own.
    pub metadata_match: Option<Arc<Criteria>>,
}

/// Envoy `InternalRedirectPolicy`: an upstream's redirect is followed here, and the caller never sees it.
#[derive(Debug)]
pub struct InternalRedirect {
    /// More redirects of one request than this are passed on.
    pub most: u32,
    pub statuses: Vec<u16>,
    /// All must agree.
    pub predicates: Vec<RedirectPredicate>,
    pub allow_cross_scheme: bool,
    /// Headers that the next request has from the response, or else not at all.
    pub headers_to_copy: Vec<HeaderName>,
}

#[derive(Debug, PartialEq, Eq)]
pub enum RedirectPredicate {
    /// Not to a route that was reached from this route before.
    PreviousRoutes,
    /// To a route of one of these names.
    AllowListed(Vec<Box<str>>),
    /// Not from HTTP to HTTPS.
    SafeCrossScheme,
}

/// The end of a tunnel: the bytes behind a CONNECT go upstream over plain TCP (Envoy `ConnectConfig`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connect {
    /// A PROXY protocol header goes first.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// A POST's body is such bytes too.
    pub allow_post: bool,
}

impl Connect {
    /// Whether a request of this method ends here.
    pub fn takes(&self, method: &::http::Method) -> bool {
        *method == ::http::Method::CONNECT || (self.allow_post && *method == ::http::Method::POST)
    }
}

#[derive(Debug)]
pub enum ClusterChoice {
    One(ClusterId),
    Weighted(WeightedClusters),
    /// The cluster is named by this request header.
    Header(HeaderName),
}

#[derive(Debug)]
pub struct WeightedClusters {
    pub total: u64,
    pub roll: Roll,
    /// With cumulative upper bounds: the first entry whose bound exceeds the roll is chosen.
    pub entries: Vec<WeightedCluster>,
}

/// What chooses among weighted clusters.
#[derive(Debug, PartialEq, Eq)]
pub enum Roll {
    Dice,
    /// The number in this header, if there is one.
    Header(HeaderName),
    /// The route's hash policies, if they yield a hash.
    Hash,
}

/// A cluster, or the request header that names it.
#[derive(Debug, PartialEq, Eq)]
pub enum NamedCluster {
    Fixed(ClusterId),
    Header(HeaderName),
}

#[derive(Debug)]
pub struct WeightedCluster {
    pub cluster: NamedCluster,
    pub bound: u64,
    pub headers: HeaderChanges,
    pub per_route: FilterOverrides,
    pub host_rewrite: Option<Box<str>>,
    /// The route's, with this entry's values over it.
    pub metadata_match: Option<Arc<Criteria>>,
}

#[derive(Debug)]
pub enum PathRewrite {
    /// Replaces what the route's prefix (or exact path) matched.
    Prefix(Box<str>),
    Regex {
        pattern: Regex,
        substitution: Box<str>,
    },
    Full(Box<str>),
    /// By the variables of the route's template.
    Template(PathTemplateRewrite),
}

#[derive(Debug)]
pub enum HostRewrite {
    Literal(::http::HeaderValue),
    Header(HeaderName),
    /// The chosen endpoint's hostname.
    Auto,
    /// Made of the path.
    PathRegex {
        pattern: Regex,
        substitution: Box<str>,
    },
}

#[derive(Debug)]
pub struct Redirect {
    pub https: bool,
    pub scheme: Option<Box<str>>,
    pub host: Option<Box<str>>,
    pub port: Option<u16>,
    pub path: RedirectPath,
    pub status: StatusCode,
    pub strip_query: bool,
}

#[derive(Debug)]
pub enum RedirectPath {
    Same,
    Full(Box<str>),
    Prefix(Box<str>),
    Regex { pattern: Regex, substitution: Box<str> },
}

#[derive(Debug)]
pub struct DirectResponse {
    pub status: StatusCode,
    pub body: Bytes,
}

/// Envoy `RetryPolicy`, conditions as bits.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    pub on: RetryOn,
    /// Retries after the first try.
    pub num_retries: u32,
    pub per_try_timeout: Option<Duration>,
    pub per_try_idle_timeout: Option<Duration>,
    pub retriable_status_codes: Vec<u16>,
    pub retriable_headers: Vec<HeaderMatcher>,
    /// When not empty, only requests that one of these matches are tried again.
    pub retriable_request_headers: Vec<HeaderMatcher>,
    pub rate_limited: Option<RateLimitedBackOff>,
    pub back_off_base: Duration,
    pub back_off_max: Duration,
    /// Hosts already tried are avoided (Envoy `previous_hosts` predicate).
    pub avoid_previous_hosts: bool,
    /// Hosts that are avoided for what they are, where any are.
    pub omit: Option<Box<Omit>>,
    /// After so many tries the priorities tried so far are gone past, as after so many more.
    pub previous_priorities: Option<NonZeroU32>,
    pub host_selection_attempts: u32,
}

/// Waits as long as the server's answer says (Envoy `rate_limited_retry_back_off`).
#[derive(Debug, Clone)]
pub struct RateLimitedBackOff {
    /// The first that a response has counts.
    pub headers: Vec<ResetHeader>,
    /// A longer wait is not believed.
    pub max: Duration,
}

#[derive(Debug, Clone)]
pub struct ResetHeader {
    pub name: HeaderName,
    /// The moment rather than the seconds until then.
    pub unix: bool,
}

/// Retry conditions (Envoy `x-envoy-retry-on`, `x-envoy-retry-grpc-on`) as a set of bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RetryOn(pub u32);

impl RetryOn {
    pub const FIVE_XX: Self = Self(1);
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    pub const RESET: Self = Self(1 << 2);
    pub const CONNECT_FAILURE: Self = Self(1 << 3);
    pub const REFUSED_STREAM: Self = Self(1 << 4);
    pub const RETRIABLE_4XX: Self = Self(1 << 5);
    pub const RETRIABLE_STATUS_CODES: Self = Self(1 << 6);
    pub const RETRIABLE_HEADERS: Self = Self(1 << 7);
    pub const ENVOY_RATELIMITED: Self = Self(1 << 8);
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 9);
    pub const HTTP3_POST_CONNECT_FAILURE: Self = Self(1 << 10);
    pub const GRPC_CANCELLED: Self = Self(1 << 16);
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 17);
    pub const GRPC_INTERNAL: Self = Self(1 << 18);
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 19);
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 20);

    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[derive(Debug)]
pub struct Mirror {
    pub cluster: NamedCluster,
    pub fraction: Fraction,
    /// Append `-shadow` to the host (off in Istio by default).
    pub append_shadow: bool,
    pub host_rewrite: Option<Box<str>>,
    pub headers: HeaderMutations,
}

#[derive(Debug)]
pub struct HashPolicy {
    pub source: HashSource,
    /// Stop when this policy yielded a hash.
    pub terminal: bool,
}

#[derive(Debug)]
pub enum HashSource {
    Header {
        name: HeaderName,
        /// What of it is hashed.
        rewrite: Option<(Regex, Box<str>)>,
    },
    /// With a lifetime, the cookie is made on demand.
    Cookie {
        name: Box<str>,
        ttl: Option<Duration>,
        path: Box<str>,
        attributes: Box<str>,
    },
    SourceIp,
    QueryParameter(Box<str>),
}

/// A request's head as routing sees it.
#[derive(Clone, Copy, Debug)]
pub struct RequestHead<'a> {
    pub method: &'a str,
    /// Host with port, as received.
    pub authority: &'a str,
    pub scheme: &'a str,
    /// Path with query, after normalisation.
    pub path_and_query: &'a str,
    pub headers: &'a ::http::HeaderMap,
    /// What `content-length` says, which is not among the headers.
    pub content_length: Option<u64>,
}

impl<'a> RequestHead<'a> {
    /// The path without query and fragment.
    pub fn path(&self) -> &'a str {
        self.path_and_query.split(['?', '#']).next().unwrap_or("")
    }
}

/// A cluster's matcher reused for hosts in tests and explanations.
pub type Hosts = Vec<StringMatcher>;

impl RouteTable {
    /// Puts wildcard domains in the order in which they are searched.
    pub(crate) fn sort_wildcards(&mut self) {
        let order = |a: &(Box<str>, u32), b: &(Box<str>, u32)| b.0.len().cmp(&a.0.len()).then_with(|| a.0.cmp(&b.0));
        self.suffixes.sort_by(order);
        self.prefixes.sort_by(order);
    }
}
