//! Envoy's response code details: the sentence-in-a-word that says who made a response and why.
//!
//! Values are those of Envoy's `ResponseCodeDetailValues` and of its filters; a detail may carry more
//! in braces, for which the functions below write Envoy's form (spaces become underscores, since access
//! logs split at spaces).
use std::borrow::Cow;

/// The status came from the upstream.
pub const VIA_UPSTREAM: &str = "via_upstream";
/// No route matched.
pub const ROUTE_NOT_FOUND: &str = "route_not_found";
/// The route's cluster is unknown.
pub const CLUSTER_NOT_FOUND: &str = "cluster_not_found";
/// The cluster has no usable endpoint.
pub const NO_HEALTHY_UPSTREAM: &str = "no_healthy_upstream";
/// The cluster drops this share of its requests.
pub const DROP_OVERLOAD: &str = "drop_overload";
/// The cluster drops all of its requests.
pub const UNCONDITIONAL_DROP_OVERLOAD: &str = "unconditional_drop_overload";
/// The upstream's redirect was followed here.
pub const INTERNAL_REDIRECT: &str = "internal_redirect";
/// The name that a request is for could not be resolved; the reason follows in braces.
pub const DNS_RESOLUTION_FAILURE: &str = "dns_resolution_failure";
/// The dynamic forward proxy holds as many hosts as it may.
pub const DNS_CACHE_OVERFLOW: &str = "dns_cache_overflow";
/// Too many requests wait for names.
pub const DYNAMIC_FORWARD_PROXY_PENDING_REQUEST_OVERFLOW: &str = "dynamic_forward_proxy_pending_request_overflow";
/// The host that a request names is empty.
pub const EMPTY_HOST_HEADER: &str = "empty_host_header";
/// A `direct_response` route.
pub const DIRECT_RESPONSE: &str = "direct_response";
/// The fault filter answered.
pub const FAULT_FILTER_ABORT: &str = "fault_filter_abort";
/// The fault filter's limit of active faults was reached.
pub const FAULT_FILTER_OVERFLOW: &str = "fault_filter_overflow";
/// The route's timeout passed.
pub const RESPONSE_TIMEOUT: &str = "response_timeout";
/// The last try's timeout passed.
pub const UPSTREAM_PER_TRY_TIMEOUT: &str = "upstream_per_try_timeout";
/// The last try was idle for too long.
pub const UPSTREAM_PER_TRY_IDLE_TIMEOUT: &str = "upstream_per_try_idle_timeout";
/// The whole request did not arrive in time (`request_timeout` of the connection manager).
pub const REQUEST_OVERALL_TIMEOUT: &str = "request_overall_timeout";
/// The request's headers did not arrive in time.
pub const REQUEST_HEADER_TIMEOUT: &str = "request_header_timeout";
/// The stream was idle for too long.
pub const STREAM_IDLE_TIMEOUT: &str = "stream_idle_timeout";
/// The stream reached its longest allowed duration.
pub const MAX_DURATION_TIMEOUT: &str = "max_duration_timeout";
/// The upstream stream reached its longest allowed duration.
pub const UPSTREAM_MAX_STREAM_DURATION_REACHED: &str = "upstream_max_stream_duration_reached";
/// The connection reached its longest allowed duration.
pub const DURATION_TIMEOUT: &str = "duration_timeout";
/// Reset before response headers; see [`reset_before_response`].
pub const UPSTREAM_RESET_BEFORE_RESPONSE_STARTED: &str = "upstream_reset_before_response_started";
/// Reset after response headers; see [`reset_after_response`].
pub const UPSTREAM_RESET_AFTER_RESPONSE_STARTED: &str = "upstream_reset_after_response_started";
/// The caller went away.
pub const DOWNSTREAM_REMOTE_DISCONNECT: &str = "downstream_remote_disconnect";
/// The caller reset its HTTP/2 stream.
pub const HTTP2_REMOTE_RESET: &str = "http2.remote_reset";
/// We closed the caller's connection; see [`local_disconnect`].
pub const DOWNSTREAM_LOCAL_DISCONNECT: &str = "downstream_local_disconnect";
/// No filter chain matched.
pub const FILTER_CHAIN_NOT_FOUND: &str = "filter_chain_not_found";
/// A filter needed the whole request body and it was too large.
pub const REQUEST_PAYLOAD_TOO_LARGE: &str = "request_payload_too_large";
/// A filter needed the whole response body and it was too large.
pub const RESPONSE_PAYLOAD_TOO_LARGE: &str = "response_payload_too_large";
/// A compressed body is not what it says.
pub const DECOMPRESSION_FAILED: &str = "decompression_failed";
/// A compressed body grows by more than is allowed.
pub const DECOMPRESSION_RATIO_EXCEEDED: &str = "decompression_ratio_exceeded";
/// The gRPC bridge got a request smaller than a frame.
pub const GRPC_BRIDGE_DATA_TOO_SMALL: &str = "grpc_bridge_data_too_small";
/// The gRPC bridge got an answer of another type than configured.
pub const GRPC_BRIDGE_CONTENT_TYPE_WRONG: &str = "grpc_bridge_content_type_wrong";
/// The gRPC bridge was not told how long an answer is.
pub const GRPC_BRIDGE_CONTENT_LENGTH_MISSING: &str = "grpc_bridge_content_length_missing";
/// The gRPC bridge was told another length than the answer has.
pub const GRPC_BRIDGE_CONTENT_LENGTH_WRONG: &str = "grpc_bridge_content_length_wrong";
/// The health check filter answered: all is well.
pub const HEALTH_CHECK_OK: &str = "health_check_ok";
/// The health check filter answered: this process is to be taken for failed.
pub const HEALTH_CHECK_FAILED: &str = "health_check_failed";
/// The health check filter answered as an upstream had before.
pub const HEALTH_CHECK_CACHED: &str = "health_check_cached";
/// A cluster that must be healthy is not there.
pub const HEALTH_CHECK_FAILED_NO_CLUSTER_FOUND: &str = "health_check_failed_no_cluster_found";
/// A cluster that must be healthy has no hosts.
pub const HEALTH_CHECK_FAILED_CLUSTER_EMPTY: &str = "health_check_failed_cluster_empty";
/// Too few hosts of a cluster are healthy.
pub const HEALTH_CHECK_FAILED_CLUSTER_UNHEALTHY: &str = "health_check_failed_cluster_unhealthy";
/// Enough hosts of the clusters are healthy.
pub const HEALTH_CHECK_OK_CLUSTER_HEALTHY: &str = "health_check_ok_cluster_healthy";
/// Too many requests before failed.
pub const DENIED_BY_ADMISSION_CONTROL: &str = "denied_by_admission_control";
/// A request that changes something comes from another site.
pub const CSRF_ORIGIN_MISMATCH: &str = "csrf_origin_mismatch";
/// A gRPC-Web request in text is no base64.
pub const GRPC_BASE64_DECODE_FAILED: &str = "grpc_base_64_decode_failed";
/// A gRPC-Web request in text ends within a group of base64.
pub const GRPC_BASE64_DECODE_FAILED_BAD_SIZE: &str = "grpc_base_64_decode_failed_bad_size";
/// The body outgrew the retry buffer.
pub const REQUEST_PAYLOAD_EXCEEDED_RETRY_BUFFER_LIMIT: &str = "request_payload_exceeded_retry_buffer_limit";
/// HTTP/1.1 without `Host`, HTTP/2 without `:authority`.
pub const MISSING_HOST_HEADER: &str = "missing_host_header";
/// No path.
pub const MISSING_PATH: &str = "missing_path_rejected";
/// A path that is no path.
pub const INVALID_PATH: &str = "invalid_path";
/// An absolute URL where none is allowed.
pub const ABSOLUTE_PATH_REJECTED: &str = "absolute_path_rejected";
/// The path could not be normalised.
pub const PATH_NORMALIZATION_FAILED: &str = "path_normalization_failed";
/// HTTP/1.0 is not enabled.
pub const LOW_VERSION: &str = "low_version";
/// The upgrade is not enabled on this route.
pub const UPGRADE_FAILED: &str = "upgrade_failed";
/// The upstream did not switch protocols.
pub const WEBSOCKET_HANDSHAKE_UNSUCCESSFUL: &str = "websocket_handshake_unsuccessful";
/// The local rate limiter said no.
pub const LOCAL_RATE_LIMITED: &str = "local_rate_limited";
/// The rate limit service said no.
pub const REQUEST_RATE_LIMITED: &str = "request_rate_limited";
/// The rate limit service could not be asked.
pub const RATE_LIMITER_ERROR: &str = "rate_limiter_error";
/// The external authorizer said no.
pub const EXT_AUTHZ_DENIED: &str = "ext_authz_denied";
/// The external authorizer could not be asked.
pub const EXT_AUTHZ_ERROR: &str = "ext_authz_error";
/// The external authorizer's answer holds a header that cannot be.
pub const EXT_AUTHZ_INVALID: &str = "ext_authz_invalid";
/// A CORS preflight was answered by the filter.
pub const CORS_RESPONSE: &str = "cors_response";
/// The overload manager said no.
pub const OVERLOAD: &str = "overload";
/// Answered by the admin server.
pub const ADMIN_FILTER_RESPONSE: &str = "admin_filter_response";

/// `upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}`.
///
/// `reason` is Envoy's name of the reset (`connection_termination`, `remote_reset`, `connection_timeout` …),
/// `transport_failure` what the socket or TLS said.
pub fn reset_before_response(reason: &str, transport_failure: &str) -> String {
    with_braces(UPSTREAM_RESET_BEFORE_RESPONSE_STARTED, reason, transport_failure)
}

/// As [`reset_before_response`], once response headers had been sent.
pub fn reset_after_response(reason: &str, transport_failure: &str) -> String {
    with_braces(UPSTREAM_RESET_AFTER_RESPONSE_STARTED, reason, transport_failure)
}

/// `downstream_local_disconnect(on_idle_timeout)`.
pub fn local_disconnect(reason: &str) -> String {
    format!("{DOWNSTREAM_LOCAL_DISCONNECT}({})", underscored(reason))
}

/// `rbac_access_denied_matched_policy[ns[default]-policy[deny-all]-rule[0]]`; `none` when no ALLOW policy matched.
pub fn rbac_denied(policy: Option<&str>) -> String {
    format!("rbac_access_denied_matched_policy[{}]", underscored(policy.unwrap_or("none")))
}

/// `jwt_authn_access_denied{Jwt_is_expired}`.
pub fn jwt_denied(reason: &str) -> String {
    format!("jwt_authn_access_denied{{{}}}", underscored(reason))
}

/// Spaces and control characters become `_`, so that a detail stays one word of an access log line.
pub fn underscored(text: &str) -> Cow<'_, str> {
    if text.bytes().any(|b| b.is_ascii_whitespace() || b.is_ascii_control()) {
        Cow::Owned(text.chars().map(|c| if c.is_whitespace() || c.is_control() { '_' } else { c }).collect())
    } else {
        Cow::Borrowed(text)
    }
}

fn with_braces(detail: &str, reason: &str, transport_failure: &str) -> String {
    if transport_failure.is_empty() {
        format!("{detail}{{{}}}", underscored(reason))
    } else {
        format!("{detail}{{{}|{}}}", underscored(reason), underscored(transport_failure))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_are_written_as_envoy_writes_them() {
        assert_eq!(
            reset_before_response("remote_connection_failure", "delayed connect error: Connection refused"),
            "upstream_reset_before_response_started{remote_connection_failure|delayed_connect_error:_Connection_refused}"
        );
        assert_eq!(reset_after_response("remote_reset", ""), "upstream_reset_after_response_started{remote_reset}");
        assert_eq!(rbac_denied(None), "rbac_access_denied_matched_policy[none]");
        assert_eq!(jwt_denied("Jwt is expired"), "jwt_authn_access_denied{Jwt_is_expired}");
        assert_eq!(local_disconnect("on idle\ntimeout"), "downstream_local_disconnect(on_idle_timeout)");
    }
}
