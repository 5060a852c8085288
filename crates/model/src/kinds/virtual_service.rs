//! VirtualService: where requests to a host go (`istio.io/api/networking/v1alpha3/virtual_service.proto`).
use std::collections::BTreeMap;
use std::time::Duration;

use lateen_core::Labels;

use super::common::{Percent, PortSelector, StringMatch};
use crate::schema::Base64Bytes;

message! {
    /// Routes for a set of hosts. Without hosts it is a delegate, used only from another VirtualService.
    pub struct VirtualService "VirtualService" {
        hosts: Vec<String> = honoured,
        /// Names of Gateways, or `mesh` for all sidecars. Empty means `mesh`.
        gateways: Vec<String> = honoured,
        /// The first matching route wins.
        http: Vec<HttpRoute> = honoured,
        tls: Vec<TlsRoute> = honoured,
        tcp: Vec<TcpRoute> = honoured,
        /// See [`crate::names::ExportTo`]; empty means the mesh default.
        export_to: Vec<String> = honoured,
    }
}

message! {
    pub struct HttpRoute "HTTPRoute" {
        name: Option<String> = honoured,
        /// Any one of these; empty matches everything.
        r#match: Vec<HttpMatchRequest> = honoured,
        route: Vec<HttpRouteDestination> = honoured,
        redirect: Option<HttpRedirect> = honoured,
        direct_response: Option<HttpDirectResponse> = honoured,
        delegate: Option<Delegate> = honoured,
        rewrite: Option<HttpRewrite> = honoured,
        /// For the whole request with retries; absent or 0 means none.
        timeout: Option<Duration> = honoured,
        retries: Option<HttpRetry> = honoured,
        fault: Option<HttpFaultInjection> = honoured,
        mirror: Option<Destination> = honoured,
        mirrors: Vec<HttpMirrorPolicy> = honoured,
        /// The old spelling of `mirror_percentage`.
        mirror_percent: Option<u32> = honoured,
        /// Absent means 100; 0 means no mirroring.
        mirror_percentage: Option<Percent> = honoured,
        cors_policy: Option<CorsPolicy> = honoured,
        headers: Option<Headers> = honoured,
        websocket_upgrade: Option<bool> = warned("was removed from Istio: WebSocket upgrades always work"),
        append_headers: BTreeMap<String, String> = refused("was removed from Istio; write headers.request.add"),
        append_request_headers: BTreeMap<String, String> = refused("was removed from Istio; write headers.request.add"),
        append_response_headers: BTreeMap<String, String> = refused("was removed from Istio; write headers.response.add"),
        remove_request_headers: Vec<String> = refused("was removed from Istio; write headers.request.remove"),
        remove_response_headers: Vec<String> = refused("was removed from Istio; write headers.response.remove"),
    }
}

message! {
    /// Where a request goes.
    pub struct Destination "Destination" {
        /// A short name is completed with the namespace of the rule.
        host: String = honoured,
        subset: Option<String> = honoured,
        /// May be left out when the service has one port.
        port: Option<PortSelector> = honoured,
    }
}

message! {
    /// Another VirtualService that holds the routes.
    pub struct Delegate "Delegate" {
        name: Option<String> = honoured,
        /// Absent means the namespace of the rule.
        namespace: Option<String> = honoured,
    }
}

message! {
    pub struct Headers "Headers" {
        request: Option<HeaderOperations> = honoured,
        response: Option<HeaderOperations> = honoured,
    }
}

message! {
    pub struct HeaderOperations "HeaderOperations" {
        /// Replaces.
        set: BTreeMap<String, String> = honoured,
        /// Appends.
        add: BTreeMap<String, String> = honoured,
        remove: Vec<String> = honoured,
    }
}

message! {
    pub struct TlsRoute "TLSRoute" {
        /// Any one of these; at least one is required.
        r#match: Vec<TlsMatchAttributes> = honoured,
        route: Vec<RouteDestination> = honoured,
    }
}

message! {
    pub struct TcpRoute "TCPRoute" {
        /// Any one of these; empty matches everything.
        r#match: Vec<L4MatchAttributes> = honoured,
        route: Vec<RouteDestination> = honoured,
    }
}

message! {
    /// All conditions given must hold.
    pub struct HttpMatchRequest "HTTPMatchRequest" {
        name: Option<String> = honoured,
        uri: Option<StringMatch> = honoured,
        scheme: Option<StringMatch> = honoured,
        method: Option<StringMatch> = honoured,
        authority: Option<StringMatch> = honoured,
        headers: BTreeMap<String, StringMatch> = honoured,
        /// The port of the service, or of the gateway's server.
        port: Option<u16> = honoured,
        source_labels: Labels = honoured,
        /// Overrides the gateways of the VirtualService.
        gateways: Vec<String> = honoured,
        query_params: BTreeMap<String, StringMatch> = honoured,
        /// For `exact` and `prefix` of `uri`.
        ignore_uri_case: bool = honoured,
        without_headers: BTreeMap<String, StringMatch> = honoured,
        source_namespace: Option<String> = honoured,
        stat_prefix: Option<String> = warned("has no effect yet: no statistics are kept per route"),
    }
}

message! {
    pub struct HttpRouteDestination "HTTPRouteDestination" {
        destination: Destination = honoured,
        /// Shares of the sum of all weights; a single destination needs none.
        weight: u32 = honoured,
        headers: Option<Headers> = honoured,
        append_request_headers: BTreeMap<String, String> = refused("was removed from Istio; write headers.request.add"),
        append_response_headers: BTreeMap<String, String> = refused("was removed from Istio; write headers.response.add"),
        remove_request_headers: Vec<String> = refused("was removed from Istio; write headers.request.remove"),
        remove_response_headers: Vec<String> = refused("was removed from Istio; write headers.response.remove"),
    }
}

message! {
    pub struct RouteDestination "RouteDestination" {
        destination: Destination = honoured,
        weight: u32 = honoured,
    }
}

message! {
    pub struct L4MatchAttributes "L4MatchAttributes" {
        destination_subnets: Vec<String> = honoured,
        port: Option<u16> = honoured,
        source_subnet: Option<String> = warned("is ignored, as by Istio; select clients with sourceLabels or sourceNamespace"),
        source_labels: Labels = honoured,
        gateways: Vec<String> = honoured,
        source_namespace: Option<String> = honoured,
    }
}

message! {
    pub struct TlsMatchAttributes "TLSMatchAttributes" {
        /// Each must fit one of the VirtualService's hosts.
        sni_hosts: Vec<String> = honoured,
        destination_subnets: Vec<String> = honoured,
        port: Option<u16> = honoured,
        source_labels: Labels = honoured,
        gateways: Vec<String> = honoured,
        source_namespace: Option<String> = honoured,
    }
}

message! {
    pub struct HttpRedirect "HTTPRedirect" {
        uri: Option<String> = honoured,
        /// Replaces the matched prefix only.
        prefix_rewrite: Option<String> = honoured,
        authority: Option<String> = honoured,
        port: Option<u16> = honoured,
        derive_port: Option<RedirectPortSelection> = honoured,
        scheme: Option<String> = honoured,
        /// 301 when absent.
        redirect_code: Option<u16> = honoured,
    }
    oneof [port, derive_port]
}

enumeration! {
    pub enum RedirectPortSelection {
        /// 80 for http, 443 for https.
        FromProtocolDefault = "FROM_PROTOCOL_DEFAULT",
        FromRequestPort = "FROM_REQUEST_PORT",
    }
}

message! {
    pub struct HttpDirectResponse "HTTPDirectResponse" {
        status: u16 = honoured,
        body: Option<HttpBody> = honoured,
    }
}

message! {
    pub struct HttpBody "HTTPBody" {
        string: Option<String> = honoured,
        bytes: Option<Base64Bytes> = honoured,
    }
    oneof [string, bytes]
}

impl HttpBody {
    /// The bytes to send.
    pub fn content(&self) -> &[u8] {
        match (&self.string, &self.bytes) {
            (Some(text), _) => text.as_bytes(),
            (None, Some(bytes)) => &bytes.0,
            (None, None) => &[],
        }
    }
}

message! {
    pub struct HttpRewrite "HTTPRewrite" {
        /// Replaces the matched prefix, or the whole path when the match is not a prefix.
        uri: Option<String> = honoured,
        authority: Option<String> = honoured,
        uri_regex_rewrite: Option<RegexRewrite> = honoured,
    }
}

message! {
    pub struct RegexRewrite "RegexRewrite" {
        r#match: String = honoured,
        /// May refer to groups as `\1`.
        rewrite: String = honoured,
    }
}

message! {
    pub struct HttpRetry "HTTPRetry" {
        /// Retries after the first attempt; 0 turns retries off.
        attempts: i32 = honoured,
        /// Absent means the timeout of the route.
        per_try_timeout: Option<Duration> = honoured,
        /// Comma-separated conditions; integers are status codes.
        retry_on: Option<String> = honoured,
        retry_remote_localities: Option<bool> = warned("has no effect yet: retries are not bound to a locality"),
        /// True when absent: a retry avoids the endpoints already tried.
        retry_ignore_previous_hosts: Option<bool> = honoured,
        /// The base of the exponential backoff, 25 ms when absent.
        backoff: Option<Duration> = honoured,
    }
}

message! {
    pub struct CorsPolicy "CorsPolicy" {
        /// The old form of `allow_origins`: exact texts, or `*`.
        allow_origin: Vec<String> = honoured,
        allow_origins: Vec<StringMatch> = honoured,
        allow_methods: Vec<String> = honoured,
        allow_headers: Vec<String> = honoured,
        expose_headers: Vec<String> = honoured,
        max_age: Option<Duration> = honoured,
        allow_credentials: Option<bool> = honoured,
        unmatched_preflights: UnmatchedPreflights = honoured,
    }
}

enumeration! {
    /// What happens to a preflight from an origin that is not allowed.
    pub enum UnmatchedPreflights {
        /// The same as `FORWARD`.
        Unspecified = "UNSPECIFIED",
        Forward = "FORWARD",
        Ignore = "IGNORE",
    }
}

message! {
    pub struct HttpFaultInjection "HTTPFaultInjection" {
        delay: Option<FaultDelay> = honoured,
        abort: Option<FaultAbort> = honoured,
    }
}

message! {
    pub struct FaultDelay "HTTPFaultInjection.Delay" {
        /// The old spelling of `percentage`: whole percents.
        percent: Option<u32> = honoured,
        fixed_delay: Option<Duration> = honoured,
        exponential_delay: Option<Duration> = refused("is not supported, as in Istio; use fixedDelay"),
        /// Absent means 0: no delay.
        percentage: Option<Percent> = honoured,
    }
    oneof [fixed_delay, exponential_delay]
}

message! {
    pub struct FaultAbort "HTTPFaultInjection.Abort" {
        percent: Option<u32> = refused("was removed from Istio; write percentage with value under it"),
        http_status: Option<u16> = honoured,
        /// A name such as `UNAVAILABLE`.
        grpc_status: Option<String> = honoured,
        http2_error: Option<String> = refused("is not supported, as in Istio; use httpStatus or grpcStatus"),
        /// Absent means 0: no abort.
        percentage: Option<Percent> = honoured,
    }
    oneof [http_status, grpc_status, http2_error]
}

message! {
    pub struct HttpMirrorPolicy "HTTPMirrorPolicy" {
        destination: Destination = honoured,
        /// Absent means 100.
        percentage: Option<Percent> = honoured,
    }
}
