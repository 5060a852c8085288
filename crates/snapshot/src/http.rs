//! The HTTP connection manager and its filters, compiled.
use std::sync::Arc;
use std::time::Duration;

use http::HeaderName;

use crate::admission::AdmissionControl;
use crate::bandwidth::BandwidthLimit;
use crate::compression::{Compressor, CompressorPerRoute, Decompressor};
use crate::dns::cache::DnsCache;
use crate::ext_authz::{ExtAuthz, ExtAuthzPerRoute};
use crate::ext_proc::{ExtProc, ExtProcPerRoute};
use crate::extension::DiscoveredFilter;
use crate::global_ratelimit::{GlobalRateLimit, RateLimitPerRoute};
use crate::header::HeaderMutations;
use crate::header_metadata::HeaderToMetadata;
use crate::header_mutation::{HeaderMutation, Mutations};
use crate::jwt::{JwtAuthn, JwtPerRoute};
use crate::local_reply::LocalReplies;
use crate::log_filter::LogFilter;
use crate::matcher::{Fraction, Rbac, StringMatcher};
use crate::original_ip::OriginalIp;
use crate::ratelimit::LocalRateLimit;
use crate::scopes::ScopedRoutes;
use crate::stateful_session::{StatefulSession, StatefulSessionPerRoute};
use crate::trace::{RequestIdRules, Tracing};
use crate::{RouteTable, RouteTableId};

/// Envoy `codec_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Codec {
    /// ALPN, else the first bytes.
    Auto,
    Http1,
    Http2,
}

/// Envoy `HttpConnectionManager`.
#[derive(Debug, Clone)]
pub struct HttpConnectionManager {
    pub stat_prefix: Arc<str>,
    pub codec: Codec,
    pub http1: Http1Options,
    pub http2: Http2Options,
    pub routes: RouteSource,
    /// In order; the router is last and implied by its entry.
    pub filters: Vec<HttpFilter>,
    /// The filters' names, in the same order.
    pub filter_names: Vec<Arc<str>>,
    /// Which filters only routes switch on, in the same order; empty when none is.
    pub filters_off: Vec<bool>,
    /// How our own replies are worded, where that is said.
    pub local_replies: Option<Arc<LocalReplies>>,
    pub access_logs: Vec<Arc<AccessLog>>,
    /// `server` response header (default `envoy`; Istio `istio-envoy`).
    pub server_name: Arc<str>,
    pub server_header: ServerHeader,
    /// Trust the connection's address for `x-forwarded-for`, as edge proxies do.
    pub use_remote_address: bool,
    pub xff_num_trusted_hops: u32,
    /// Where else the caller's address comes from; where this is empty, from `x-forwarded-for`.
    pub original_ip: Vec<OriginalIp>,
    pub skip_xff_append: bool,
    /// Tell the upstream at which port the caller came in, in `x-forwarded-port`.
    pub append_x_forwarded_port: bool,
    /// Callers from here are internal: their `x-envoy-` headers are believed. Envoy knows none unless told.
    pub internal_addresses: Vec<crate::matcher::Cidr>,
    pub generate_request_id: bool,
    pub preserve_external_request_id: bool,
    pub request_ids: RequestIdRules,
    pub always_set_request_id_in_response: bool,
    pub forward_client_cert: ForwardClientCert,
    pub set_current_client_cert: CurrentClientCert,
    pub path: PathNormalization,
    pub upgrades: Vec<Upgrade>,
    /// Time between bytes of a stream; default 5 min, `None` unlimited (Istio).
    pub stream_idle_timeout: Option<Duration>,
    /// How long the end of a response waits for its caller where the route does not say; zero for ever, `None` as long as its
    /// stream may be idle.
    pub stream_flush_timeout: Option<Duration>,
    /// Whole request must have arrived by then; `None` unlimited.
    pub request_timeout: Option<Duration>,
    pub request_headers_timeout: Option<Duration>,
    /// An idle downstream connection is closed after this; default 1 h.
    pub idle_timeout: Option<Duration>,
    pub max_connection_duration: Option<Duration>,
    /// By how much it may be longer, in percent.
    pub max_connection_duration_jitter_percent: f64,
    /// A connection of HTTP/1 that has lasted so long ends after its next response, and not without one.
    pub http1_safe_max_connection_duration: bool,
    pub max_stream_duration: Option<Duration>,
    pub max_requests_per_connection: Option<u32>,
    pub max_request_headers_kb: u32,
    pub max_headers_count: u32,
    pub drain_timeout: Duration,
    pub delayed_close_timeout: Duration,
    /// `via` entry to append, if any.
    pub via: Option<Arc<str>>,
    pub merge_slashes: bool,
    pub strip_matching_host_port: bool,
    pub strip_any_host_port: bool,
    /// `reviews.` is `reviews`.
    pub strip_trailing_host_dot: bool,
    pub tracing: Option<Arc<Tracing>>,
    pub suppress_envoy_headers: bool,
    /// Body format of local replies is Envoy's plain text unless mapped; mappings are refused for now.
    pub normalize_underscores: Underscores,
}

/// What the connection manager says of one upgrade (Envoy `UpgradeConfig`).
#[derive(Debug, Clone)]
pub struct Upgrade {
    /// In lower case: `websocket`, `connect`.
    pub name: Arc<str>,
    pub enabled: bool,
    /// The manager for those requests, where they have filters of their own; the same in all else.
    pub manager: Option<Arc<HttpConnectionManager>>,
}

/// Where the routes are.
#[derive(Debug, Clone)]
pub enum RouteSource {
    Inline(Arc<RouteTable>),
    /// Discovered: look it up in the current snapshot at each request.
    Discovered(RouteTableId),
    /// By the request's headers.
    Scoped(Arc<ScopedRoutes>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ServerHeader {
    #[default]
    Overwrite,
    AppendIfAbsent,
    PassThrough,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Underscores {
    #[default]
    Allow,
    RejectRequest,
    DropHeader,
}

/// Envoy `forward_client_cert_details`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum ForwardClientCert {
    #[default]
    Sanitize,
    ForwardOnly,
    AppendForward,
    SanitizeSet,
    AlwaysForwardOnly,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CurrentClientCert {
    pub subject: bool,
    pub cert: bool,
    pub chain: bool,
    pub dns: bool,
    pub uri: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathNormalization {
    /// Dot segments removed, backslashes turned (RFC 3986).
    pub normalize: bool,
    pub escaped_slashes: EscapedSlashes,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum EscapedSlashes {
    #[default]
    Keep,
    Reject,
    UnescapeAndRedirect,
    UnescapeAndForward,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Http1Options {
    pub accept_http_10: bool,
    /// A request that says both is chunked, and its length is dropped.
    pub allow_chunked_length: bool,
    pub names: NameCase,
}

/// How names of HTTP/1 headers are written (Envoy `header_key_format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NameCase {
    /// In lower case, as HTTP/2 has them.
    #[default]
    Lower,
    /// Like `Content-Type` (Envoy `proper_case_words`).
    Words,
    /// What comes in keeps its spelling on its way out (Envoy `preserve_case`).
    Kept {
        /// Names that are added on the way are like `Content-Type`.
        words: bool,
        /// A response keeps what its status line says of the status (Envoy `forward_reason_phrase`).
        reason: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Http2Options {
    /// Envoy's default is 1024 since 1.3x.
    pub max_concurrent_streams: u32,
    /// Bytes; Envoy default 16 MiB.
    pub initial_stream_window_size: u32,
    /// Bytes; Envoy default 24 MiB.
    pub initial_connection_window_size: u32,
    pub allow_connect: bool,
    pub keepalive: Option<Keepalive>,
}

/// PINGs that show whether the peer of an HTTP/2 connection still lives (Envoy `KeepaliveSettings`).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Keepalive {
    pub interval: Option<Duration>,
    /// By how many percent an interval may be longer, at random; Envoy default 15.
    pub interval_jitter_percent: f64,
    /// Without a sign of life for so long after a PING the connection is closed.
    pub timeout: Duration,
    /// A stream on a connection that was silent for so long is preceded by a PING.
    pub connection_idle_interval: Option<Duration>,
}

/// An HTTP filter, in its listener-wide configuration; routes may override (see [`FilterOverrides`]).
#[derive(Debug, Clone)]
pub enum HttpFilter {
    Router(Arc<Router>),
    Fault(Arc<Fault>),
    Cors,
    GrpcStats(Arc<crate::grpc_stats::GrpcStats>),
    Rbac(Arc<Rbac>),
    /// Istio's ALPN override by downstream protocol.
    IstioAlpn(Arc<AlpnOverrides>),
    IstioStats(Arc<IstioStats>),
    PeerMetadata(Arc<PeerMetadata>),
    LocalRateLimit(Arc<LocalRateLimit>),
    HeaderToMetadata(Arc<HeaderToMetadata>),
    JwtAuthn(Arc<JwtAuthn>),
    ExtAuthz(Arc<ExtAuthz>),
    RateLimit(Arc<GlobalRateLimit>),
    ExtProc(Arc<ExtProc>),
    BandwidthLimit(Arc<BandwidthLimit>),
    AdmissionControl(Arc<AdmissionControl>),
    StatefulSession(Arc<StatefulSession>),
    OnDemand(Arc<OnDemand>),
    Buffer(Arc<Buffer>),
    Compressor(Arc<Compressor>),
    Decompressor(Arc<Decompressor>),
    GrpcWeb,
    HeaderMutation(Arc<HeaderMutation>),
    Csrf(Arc<Csrf>),
    SetMetadata(Arc<SetMetadata>),
    HealthCheck(Arc<HealthCheckFilter>),
    GrpcReverseBridge(Arc<GrpcReverseBridge>),
    /// Has the name resolved that a request is for.
    DynamicForwardProxy(Arc<DnsCache>),
    /// Stands for what a request is given instead, unless there is nothing.
    Discovered(Arc<DiscoveredFilter<HttpFilter>>),
}

/// Requests for unknown clusters wait until those are discovered (Envoy on_demand filter).
#[derive(Debug)]
pub struct OnDemand {
    /// How long; `None` not at all.
    pub clusters: Option<Duration>,
}

/// Envoy `Buffer` filter.
#[derive(Debug)]
pub struct Buffer {
    pub max_request_bytes: u32,
}

#[derive(Debug)]
pub enum BufferPerRoute {
    Disabled,
    Override(Buffer),
}

/// Envoy `Router` filter.
#[derive(Debug, Default)]
pub struct Router {
    pub suppress_envoy_headers: bool,
    pub start_child_span: bool,
    pub respect_expected_rq_timeout: bool,
}

/// ALPN lists to offer upstream by the downstream protocol.
#[derive(Debug, Default)]
pub struct AlpnOverrides {
    pub http10: Arc<Vec<Vec<u8>>>,
    pub http11: Arc<Vec<Vec<u8>>>,
    pub http2: Arc<Vec<Vec<u8>>>,
}

/// Istio's standard metrics, HTTP and TCP.
#[derive(Debug)]
pub struct IstioStats {
    /// `source` for client sidecars and gateways, `destination` for servers.
    pub reporter_source: bool,
    pub disable_host_header_fallback: bool,
}

/// Istio's peer metadata exchange over headers.
#[derive(Debug, Default)]
pub struct PeerMetadata {
    pub discover_downstream: bool,
    pub discover_upstream: bool,
    pub propagate_downstream: Option<Propagation>,
    pub propagate_upstream: Option<Propagation>,
}

/// To whom the own metadata is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Propagation {
    /// Not where the cluster is outside of the mesh.
    pub skip_external_clusters: bool,
}

/// Fault injection (Envoy `HTTPFault`).
#[derive(Debug, Clone)]
pub struct Fault {
    pub delay: Option<FaultDelay>,
    pub abort: Option<FaultAbort>,
    pub rate_limit: Option<FaultRateLimit>,
    /// Applies only to requests for this upstream cluster, when set.
    pub upstream_cluster: Option<Arc<str>>,
    /// Applies only to requests from these nodes, when any is named.
    pub downstream_nodes: Vec<Box<str>>,
    /// Applies only to requests with these headers.
    pub headers: Vec<crate::matcher::HeaderMatcher>,
    pub max_active_faults: Option<u32>,
}

#[derive(Debug, Clone, Copy)]
pub struct FaultDelay {
    pub kind: DelayKind,
    pub fraction: Fraction,
}

#[derive(Debug, Clone, Copy)]
pub enum DelayKind {
    Fixed(Duration),
    /// The caller's header says how long.
    Header,
}

#[derive(Debug, Clone)]
pub struct FaultAbort {
    pub kind: AbortKind,
    pub fraction: Fraction,
    /// Instead of Envoy's text.
    pub body: Option<Arc<str>>,
}

#[derive(Debug, Clone, Copy)]
pub struct FaultRateLimit {
    pub kind: RateKind,
    pub fraction: Fraction,
}

#[derive(Debug, Clone, Copy)]
pub enum RateKind {
    /// KiB a second.
    Fixed(u64),
    /// The caller's header says how many.
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AbortKind {
    Http(u16),
    Grpc(u32),
    /// The caller's headers say which.
    Header,
}

/// Envoy `CsrfPolicy`.
#[derive(Debug)]
pub struct Csrf {
    pub enabled: Fraction,
    /// Counted, and let through.
    pub shadow: Fraction,
    pub additional_origins: Vec<StringMatcher>,
}

/// Envoy `grpc_http1_reverse_bridge` filter.
#[derive(Debug)]
pub struct GrpcReverseBridge {
    /// What upstreams speak.
    pub content_type: ::http::HeaderValue,
    /// Upstreams get and send messages without gRPC's frame.
    pub withhold_frames: bool,
    /// Where upstreams tell how long their answer is; without it, it is waited for.
    pub size_header: Option<::http::HeaderName>,
}

/// Envoy `HealthCheck` filter.
#[derive(Debug)]
pub struct HealthCheckFilter {
    /// Checks go on to the upstream.
    pub pass_through: bool,
    /// How long an upstream's answer is given again.
    pub cache: Option<Duration>,
    /// Clusters, and how many percent of their hosts must be healthy.
    pub min_healthy: Vec<(Arc<str>, f64)>,
    /// What makes a request a check.
    pub headers: Vec<crate::matcher::HeaderMatcher>,
}

/// Envoy `set_metadata`.
#[derive(Debug)]
pub struct SetMetadata {
    pub entries: Vec<FixedMetadata>,
}

#[derive(Debug)]
pub struct FixedMetadata {
    pub namespace: Arc<str>,
    pub allow_overwrite: bool,
    /// An object.
    pub value: Arc<serde_json::Value>,
}

/// CORS policy (Envoy `CorsPolicy`).
#[derive(Debug, Clone, Default)]
pub struct Cors {
    pub allow_origins: Vec<StringMatcher>,
    pub allow_methods: Option<::http::HeaderValue>,
    pub allow_headers: Option<::http::HeaderValue>,
    pub expose_headers: Option<::http::HeaderValue>,
    pub max_age: Option<::http::HeaderValue>,
    pub allow_credentials: Option<bool>,
    pub allow_private_network_access: Option<bool>,
    pub forward_not_matching_preflights: Option<bool>,
    pub enabled: Option<Fraction>,
}

/// What a route table, virtual host, route or weighted cluster says of filters: most specific wins.
#[derive(Clone, Debug, Default)]
pub struct FilterOverrides {
    /// By the filters' names.
    pub configs: Vec<(Arc<str>, PerRoute)>,
    /// Filters that are switched off here (`true`), or on again, by their names.
    pub disabled: Vec<(Arc<str>, bool)>,
}

impl FilterOverrides {
    /// What holds for the filter of this name.
    pub fn of(&self, name: &str) -> Option<&PerRoute> {
        self.configs.iter().find(|(known, _)| **known == *name).map(|(_, config)| config)
    }
}

/// One filter's configuration of a route: of the forms, one is there.
#[derive(Debug, Clone, Default)]
pub struct PerRoute {
    pub fault: Option<Arc<Fault>>,
    pub cors: Option<Arc<Cors>>,
    pub rbac: Option<Arc<RbacPerRoute>>,
    pub local_rate_limit: Option<Arc<LocalRateLimit>>,
    pub header_to_metadata: Option<Arc<HeaderToMetadata>>,
    pub jwt_authn: Option<Arc<JwtPerRoute>>,
    pub stateful_session: Option<Arc<StatefulSessionPerRoute>>,
    pub on_demand: Option<Arc<OnDemand>>,
    pub buffer: Option<Arc<BufferPerRoute>>,
    pub compressor: Option<Arc<CompressorPerRoute>>,
    pub ext_authz: Option<Arc<ExtAuthzPerRoute>>,
    pub rate_limit: Option<Arc<RateLimitPerRoute>>,
    pub header_mutation: Option<Arc<Mutations>>,
    pub csrf: Option<Arc<Csrf>>,
    pub grpc_reverse_bridge_disabled: Option<Arc<bool>>,
    pub ext_proc: Option<Arc<ExtProcPerRoute>>,
    pub bandwidth_limit: Option<Arc<BandwidthLimit>>,
    pub dynamic_forward_proxy: Option<Arc<HostFrom>>,
}

/// What takes the place of a request's host before its name is resolved.
#[derive(Debug)]
pub enum HostFrom {
    Literal(Arc<str>),
    /// The first value of this header, where there is one.
    Header(HeaderName),
}

#[derive(Debug)]
pub enum RbacPerRoute {
    Disabled,
    Override(Arc<Rbac>),
}

/// A log to write when a request or connection ends.
#[derive(Debug)]
pub struct AccessLog {
    pub path: Arc<str>,
    pub format: LogFormat,
    pub filter: Option<LogFilter>,
}

/// The format as configured; the proxy compiles it with `lateen-telemetry` when it opens the sink.
#[derive(Debug, Clone)]
pub enum LogFormat {
    /// Envoy's default text format.
    Default,
    Text {
        format: Arc<str>,
        /// Missing values print as nothing.
        omit_missing: bool,
    },
    Json {
        format: Arc<serde_json::Value>,
        /// Missing values and their keys are left out.
        omit_missing: bool,
    },
}

/// Headers that a stage adds, sets or removes on the way up and down.
#[derive(Debug, Clone, Default)]
pub struct HeaderChanges {
    pub request: HeaderMutations,
    pub response: HeaderMutations,
}
