//! Envoy's metric names, as tables of definitions for blocks, with typed handles into them.
//!
//! Each module is one table: `DEFS` for [`Registry::block`](crate::Registry::block), and one constant per
//! metric for the calls that count. Names are those of Envoy 1.40; a metric stands here when this proxy
//! can count it truthfully, so a dashboard never reads a zero that nobody maintains.
use crate::stats::{ENVOY_MS, ENVOY_MS_FINE};

macro_rules! table {
    ($(#[$doc:meta])* $module:ident { $($kind:ident $(($buckets:expr))? $(?$hide:ident)? $id:ident = $name:literal;)* }) => {
        $(#[$doc])*
        pub mod $module {
            #[allow(unused_imports)]
            use super::*;
            use crate::stats::{MetricDef, cell_of};
            #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
            enum At { $($id),* }
            /// The table itself.
            pub static DEFS: &[MetricDef] = TABLE;
            const TABLE: &[MetricDef] = &[$(MetricDef { name: $name, kind: table!(@kind $kind $(($buckets))?), hide_zero: table!(@hide $($hide)?) }),*];
            $(#[doc = concat!("`", $name, "`")] pub const $id: table!(@type $kind) = table!(@handle $kind $(($buckets))?, cell_of(TABLE, At::$id as usize));)*
        }
    };
    (@kind counter) => { crate::stats::Kind::Counter };
    (@kind gauge) => { crate::stats::Kind::Gauge };
    (@kind histogram ($buckets:expr)) => { crate::stats::Kind::Histogram(&$buckets) };
    (@type counter) => { crate::stats::Counter };
    (@type gauge) => { crate::stats::Gauge };
    (@type histogram) => { crate::stats::Histogram };
    (@handle counter, $cell:expr) => { crate::stats::Counter($cell) };
    (@handle gauge, $cell:expr) => { crate::stats::Gauge($cell) };
    (@handle histogram ($buckets:expr), $cell:expr) => { crate::stats::Histogram($cell, &$buckets) };
    (@hide) => { false };
    (@hide hidden) => { true };
}

table! {
    /// Traffic of one cluster, under `cluster.<name>.`; written by workers. Times are recorded in microseconds.
    cluster {
        gauge UPSTREAM_CX_ACTIVE = "upstream_cx_active";
        counter UPSTREAM_CX_TOTAL = "upstream_cx_total";
        counter UPSTREAM_CX_HTTP1_TOTAL = "upstream_cx_http1_total";
        counter UPSTREAM_CX_HTTP2_TOTAL = "upstream_cx_http2_total";
        counter ?hidden HTTP2_KEEPALIVE_TIMEOUT = "http2.keepalive_timeout";
        counter UPSTREAM_CX_CONNECT_FAIL = "upstream_cx_connect_fail";
        counter UPSTREAM_CX_CONNECT_TIMEOUT = "upstream_cx_connect_timeout";
        counter UPSTREAM_CX_CONNECT_ATTEMPTS_EXCEEDED = "upstream_cx_connect_attempts_exceeded";
        counter UPSTREAM_CX_OVERFLOW = "upstream_cx_overflow";
        counter UPSTREAM_CX_POOL_OVERFLOW = "upstream_cx_pool_overflow";
        counter UPSTREAM_CX_DESTROY = "upstream_cx_destroy";
        counter UPSTREAM_CX_DESTROY_LOCAL = "upstream_cx_destroy_local";
        counter UPSTREAM_CX_DESTROY_REMOTE = "upstream_cx_destroy_remote";
        counter UPSTREAM_CX_DESTROY_WITH_ACTIVE_RQ = "upstream_cx_destroy_with_active_rq";
        counter UPSTREAM_CX_DESTROY_LOCAL_WITH_ACTIVE_RQ = "upstream_cx_destroy_local_with_active_rq";
        counter UPSTREAM_CX_DESTROY_REMOTE_WITH_ACTIVE_RQ = "upstream_cx_destroy_remote_with_active_rq";
        counter UPSTREAM_CX_CLOSE_NOTIFY = "upstream_cx_close_notify";
        counter UPSTREAM_CX_IDLE_TIMEOUT = "upstream_cx_idle_timeout";
        counter UPSTREAM_CX_MAX_REQUESTS = "upstream_cx_max_requests";
        counter UPSTREAM_CX_MAX_DURATION_REACHED = "upstream_cx_max_duration_reached";
        counter UPSTREAM_CX_NONE_HEALTHY = "upstream_cx_none_healthy";
        counter UPSTREAM_CX_PROTOCOL_ERROR = "upstream_cx_protocol_error";
        counter UPSTREAM_CX_RX_BYTES_TOTAL = "upstream_cx_rx_bytes_total";
        counter UPSTREAM_CX_TX_BYTES_TOTAL = "upstream_cx_tx_bytes_total";
        gauge UPSTREAM_RQ_ACTIVE = "upstream_rq_active";
        counter UPSTREAM_RQ_TOTAL = "upstream_rq_total";
        counter UPSTREAM_RQ_COMPLETED = "upstream_rq_completed";
        gauge UPSTREAM_RQ_PENDING_ACTIVE = "upstream_rq_pending_active";
        counter UPSTREAM_RQ_PENDING_TOTAL = "upstream_rq_pending_total";
        counter UPSTREAM_RQ_PENDING_OVERFLOW = "upstream_rq_pending_overflow";
        counter UPSTREAM_RQ_PENDING_FAILURE_EJECT = "upstream_rq_pending_failure_eject";
        counter UPSTREAM_RQ_ACTIVE_OVERFLOW = "upstream_rq_active_overflow";
        counter UPSTREAM_RQ_CANCELLED = "upstream_rq_cancelled";
        counter UPSTREAM_RQ_TIMEOUT = "upstream_rq_timeout";
        counter UPSTREAM_RQ_PER_TRY_TIMEOUT = "upstream_rq_per_try_timeout";
        counter UPSTREAM_RQ_PER_TRY_IDLE_TIMEOUT = "upstream_rq_per_try_idle_timeout";
        counter UPSTREAM_RQ_MAX_DURATION_REACHED = "upstream_rq_max_duration_reached";
        counter UPSTREAM_RQ_RX_RESET = "upstream_rq_rx_reset";
        counter UPSTREAM_RQ_TX_RESET = "upstream_rq_tx_reset";
        counter UPSTREAM_RQ_RETRY = "upstream_rq_retry";
        counter UPSTREAM_RQ_RETRY_BACKOFF_EXPONENTIAL = "upstream_rq_retry_backoff_exponential";
        counter UPSTREAM_RQ_RETRY_BACKOFF_RATELIMITED = "upstream_rq_retry_backoff_ratelimited";
        counter UPSTREAM_RQ_RETRY_LIMIT_EXCEEDED = "upstream_rq_retry_limit_exceeded";
        counter UPSTREAM_RQ_RETRY_SUCCESS = "upstream_rq_retry_success";
        counter UPSTREAM_RQ_RETRY_OVERFLOW = "upstream_rq_retry_overflow";
        counter RETRY_OR_SHADOW_ABANDONED = "retry_or_shadow_abandoned";
        counter UPSTREAM_INTERNAL_REDIRECT_FAILED_TOTAL = "upstream_internal_redirect_failed_total";
        counter UPSTREAM_INTERNAL_REDIRECT_SUCCEEDED_TOTAL = "upstream_internal_redirect_succeeded_total";
        counter ?hidden UPSTREAM_RQ_1XX = "upstream_rq_1xx";
        counter ?hidden UPSTREAM_RQ_2XX = "upstream_rq_2xx";
        counter ?hidden UPSTREAM_RQ_3XX = "upstream_rq_3xx";
        counter ?hidden UPSTREAM_RQ_4XX = "upstream_rq_4xx";
        counter ?hidden UPSTREAM_RQ_5XX = "upstream_rq_5xx";
        counter ?hidden UPSTREAM_RQ_200 = "upstream_rq_200";
        counter ?hidden UPSTREAM_RQ_201 = "upstream_rq_201";
        counter ?hidden UPSTREAM_RQ_204 = "upstream_rq_204";
        counter ?hidden UPSTREAM_RQ_206 = "upstream_rq_206";
        counter ?hidden UPSTREAM_RQ_301 = "upstream_rq_301";
        counter ?hidden UPSTREAM_RQ_302 = "upstream_rq_302";
        counter ?hidden UPSTREAM_RQ_304 = "upstream_rq_304";
        counter ?hidden UPSTREAM_RQ_400 = "upstream_rq_400";
        counter ?hidden UPSTREAM_RQ_401 = "upstream_rq_401";
        counter ?hidden UPSTREAM_RQ_403 = "upstream_rq_403";
        counter ?hidden UPSTREAM_RQ_404 = "upstream_rq_404";
        counter ?hidden UPSTREAM_RQ_408 = "upstream_rq_408";
        counter ?hidden UPSTREAM_RQ_409 = "upstream_rq_409";
        counter ?hidden UPSTREAM_RQ_418 = "upstream_rq_418";
        counter ?hidden UPSTREAM_RQ_429 = "upstream_rq_429";
        counter ?hidden UPSTREAM_RQ_500 = "upstream_rq_500";
        counter ?hidden UPSTREAM_RQ_501 = "upstream_rq_501";
        counter ?hidden UPSTREAM_RQ_502 = "upstream_rq_502";
        counter ?hidden UPSTREAM_RQ_503 = "upstream_rq_503";
        counter ?hidden UPSTREAM_RQ_504 = "upstream_rq_504";
        counter LB_HEALTHY_PANIC = "lb_healthy_panic";
        counter DEFAULT_TOTAL_MATCH_COUNT = "default.total_match_count";
        histogram (ENVOY_MS_FINE) ?hidden UPSTREAM_RQ_TIME = "upstream_rq_time";
        histogram (ENVOY_MS) UPSTREAM_CX_CONNECT_MS = "upstream_cx_connect_ms";
        histogram (ENVOY_MS) UPSTREAM_CX_LENGTH_MS = "upstream_cx_length_ms";
    }
}

/// Counts a response of an upstream by its code: the class always, the code itself where it has a counter.
pub fn count_upstream_code(stats: &crate::Local, code: u16) {
    use cluster as c;
    stats.inc(c::UPSTREAM_RQ_COMPLETED);
    match code / 100 {
        1 => stats.inc(c::UPSTREAM_RQ_1XX),
        2 => stats.inc(c::UPSTREAM_RQ_2XX),
        3 => stats.inc(c::UPSTREAM_RQ_3XX),
        4 => stats.inc(c::UPSTREAM_RQ_4XX),
        5 => stats.inc(c::UPSTREAM_RQ_5XX),
        _ => {}
    }
    let counter = match code {
        200 => c::UPSTREAM_RQ_200,
        201 => c::UPSTREAM_RQ_201,
        204 => c::UPSTREAM_RQ_204,
        206 => c::UPSTREAM_RQ_206,
        301 => c::UPSTREAM_RQ_301,
        302 => c::UPSTREAM_RQ_302,
        304 => c::UPSTREAM_RQ_304,
        400 => c::UPSTREAM_RQ_400,
        401 => c::UPSTREAM_RQ_401,
        403 => c::UPSTREAM_RQ_403,
        404 => c::UPSTREAM_RQ_404,
        408 => c::UPSTREAM_RQ_408,
        409 => c::UPSTREAM_RQ_409,
        418 => c::UPSTREAM_RQ_418,
        429 => c::UPSTREAM_RQ_429,
        500 => c::UPSTREAM_RQ_500,
        501 => c::UPSTREAM_RQ_501,
        502 => c::UPSTREAM_RQ_502,
        503 => c::UPSTREAM_RQ_503,
        504 => c::UPSTREAM_RQ_504,
        _ => return,
    };
    stats.inc(counter);
}

/// Counts a response to a caller by its class, in an [`http`] table.
pub fn count_downstream_code(stats: &crate::Local, code: u16) {
    stats.inc(http::DOWNSTREAM_RQ_COMPLETED);
    match code / 100 {
        1 => stats.inc(http::DOWNSTREAM_RQ_1XX),
        2 => stats.inc(http::DOWNSTREAM_RQ_2XX),
        3 => stats.inc(http::DOWNSTREAM_RQ_3XX),
        4 => stats.inc(http::DOWNSTREAM_RQ_4XX),
        5 => stats.inc(http::DOWNSTREAM_RQ_5XX),
        _ => {}
    }
}

table! {
    /// What the main thread knows of a cluster, under the same prefix as [`cluster`]: membership, open circuit breakers.
    cluster_state {
        gauge MEMBERSHIP_TOTAL = "membership_total";
        gauge MEMBERSHIP_HEALTHY = "membership_healthy";
        gauge MEMBERSHIP_DEGRADED = "membership_degraded";
        gauge MEMBERSHIP_EXCLUDED = "membership_excluded";
        counter MEMBERSHIP_CHANGE = "membership_change";
        gauge CIRCUIT_CX_OPEN = "circuit_breakers.default.cx_open";
        gauge CIRCUIT_RQ_PENDING_OPEN = "circuit_breakers.default.rq_pending_open";
        gauge CIRCUIT_RQ_OPEN = "circuit_breakers.default.rq_open";
        gauge CIRCUIT_RQ_RETRY_OPEN = "circuit_breakers.default.rq_retry_open";
        gauge CIRCUIT_HIGH_CX_OPEN = "circuit_breakers.high.cx_open";
        gauge CIRCUIT_HIGH_RQ_PENDING_OPEN = "circuit_breakers.high.rq_pending_open";
        gauge CIRCUIT_HIGH_RQ_OPEN = "circuit_breakers.high.rq_open";
        gauge CIRCUIT_HIGH_RQ_RETRY_OPEN = "circuit_breakers.high.rq_retry_open";
    }
}

table! {
    /// What is left below a cluster's limits, of one priority, under `cluster.<name>.`; only with `track_remaining`.
    remaining {
        gauge REMAINING_CX = "circuit_breakers.default.remaining_cx";
        gauge REMAINING_PENDING = "circuit_breakers.default.remaining_pending";
        gauge REMAINING_RQ = "circuit_breakers.default.remaining_rq";
        gauge REMAINING_RETRIES = "circuit_breakers.default.remaining_retries";
    }
}

table! {
    /// As [`remaining`], for the high priority.
    remaining_high {
        gauge REMAINING_CX = "circuit_breakers.high.remaining_cx";
        gauge REMAINING_PENDING = "circuit_breakers.high.remaining_pending";
        gauge REMAINING_RQ = "circuit_breakers.high.remaining_rq";
        gauge REMAINING_RETRIES = "circuit_breakers.high.remaining_retries";
    }
}

table! {
    /// Active health checks of one cluster, under `cluster.<name>.`; registered only where they are configured.
    health_check {
        counter ATTEMPT = "health_check.attempt";
        counter SUCCESS = "health_check.success";
        counter FAILURE = "health_check.failure";
        counter NETWORK_FAILURE = "health_check.network_failure";
        counter PASSIVE_FAILURE = "health_check.passive_failure";
        gauge HEALTHY = "health_check.healthy";
        gauge DEGRADED = "health_check.degraded";
    }
}

table! {
    /// Outlier detection of one cluster, under `cluster.<name>.`; registered only where it is configured.
    outlier {
        gauge EJECTIONS_ACTIVE = "outlier_detection.ejections_active";
        counter EJECTIONS_ENFORCED_TOTAL = "outlier_detection.ejections_enforced_total";
        counter EJECTIONS_OVERFLOW = "outlier_detection.ejections_overflow";
        counter EJECTIONS_DETECTED_SUCCESS_RATE = "outlier_detection.ejections_detected_success_rate";
        counter EJECTIONS_ENFORCED_SUCCESS_RATE = "outlier_detection.ejections_enforced_success_rate";
        counter EJECTIONS_DETECTED_FAILURE_PERCENTAGE = "outlier_detection.ejections_detected_failure_percentage";
        counter EJECTIONS_ENFORCED_FAILURE_PERCENTAGE = "outlier_detection.ejections_enforced_failure_percentage";
        counter EJECTIONS_DETECTED_LOCAL_ORIGIN_SUCCESS_RATE = "outlier_detection.ejections_detected_local_origin_success_rate";
        counter EJECTIONS_ENFORCED_LOCAL_ORIGIN_SUCCESS_RATE = "outlier_detection.ejections_enforced_local_origin_success_rate";
        counter EJECTIONS_DETECTED_LOCAL_ORIGIN_FAILURE_PERCENTAGE = "outlier_detection.ejections_detected_local_origin_failure_percentage";
        counter EJECTIONS_ENFORCED_LOCAL_ORIGIN_FAILURE_PERCENTAGE = "outlier_detection.ejections_enforced_local_origin_failure_percentage";
        counter EJECTIONS_DETECTED_CONSECUTIVE_5XX = "outlier_detection.ejections_detected_consecutive_5xx";
        counter EJECTIONS_ENFORCED_CONSECUTIVE_5XX = "outlier_detection.ejections_enforced_consecutive_5xx";
        counter EJECTIONS_DETECTED_CONSECUTIVE_GATEWAY_FAILURE = "outlier_detection.ejections_detected_consecutive_gateway_failure";
        counter EJECTIONS_ENFORCED_CONSECUTIVE_GATEWAY_FAILURE = "outlier_detection.ejections_enforced_consecutive_gateway_failure";
        counter EJECTIONS_DETECTED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE = "outlier_detection.ejections_detected_consecutive_local_origin_failure";
        counter EJECTIONS_ENFORCED_CONSECUTIVE_LOCAL_ORIGIN_FAILURE = "outlier_detection.ejections_enforced_consecutive_local_origin_failure";
    }
}

table! {
    /// Subsets of one cluster, under `cluster.<name>.`: choices are counted by workers, the subsets by the main thread.
    subsets {
        gauge ACTIVE = "lb_subsets_active";
        counter CREATED = "lb_subsets_created";
        counter REMOVED = "lb_subsets_removed";
        counter SELECTED = "lb_subsets_selected";
        counter FALLBACK = "lb_subsets_fallback";
        counter FALLBACK_PANIC = "lb_subsets_fallback_panic";
        gauge SINGLE_HOST_DUPLICATE = "lb_subsets_single_host_per_subset_duplicate";
    }
}

table! {
    /// Zone-aware routing to one cluster, under `cluster.<name>.`.
    zones {
        counter RECALCULATE_ZONE_STRUCTURES = "lb_recalculate_zone_structures";
        counter LOCAL_CLUSTER_NOT_OK = "lb_local_cluster_not_ok";
        counter ZONE_CLUSTER_TOO_SMALL = "lb_zone_cluster_too_small";
        counter ZONE_NO_CAPACITY_LEFT = "lb_zone_no_capacity_left";
        counter ZONE_ROUTING_ALL_DIRECTLY = "lb_zone_routing_all_directly";
        counter ZONE_ROUTING_CROSS_ZONE = "lb_zone_routing_cross_zone";
        counter ZONE_ROUTING_SAMPLED = "lb_zone_routing_sampled";
    }
}

table! {
    /// TLS of one cluster (`cluster.<name>.`) or listener (`listener.<address>.`).
    ssl {
        counter HANDSHAKE = "ssl.handshake";
        counter CONNECTION_ERROR = "ssl.connection_error";
        counter FAIL_VERIFY_ERROR = "ssl.fail_verify_error";
        counter FAIL_VERIFY_NO_CERT = "ssl.fail_verify_no_cert";
        counter FAIL_VERIFY_SAN = "ssl.fail_verify_san";
        counter FAIL_VERIFY_CERT_HASH = "ssl.fail_verify_cert_hash";
        counter NO_CERTIFICATE = "ssl.no_certificate";
        counter SESSION_REUSED = "ssl.session_reused";
    }
}

table! {
    /// One HTTP connection manager, under `http.<stat prefix>.`.
    http {
        gauge DOWNSTREAM_CX_ACTIVE = "downstream_cx_active";
        gauge DOWNSTREAM_CX_HTTP1_ACTIVE = "downstream_cx_http1_active";
        gauge DOWNSTREAM_CX_HTTP2_ACTIVE = "downstream_cx_http2_active";
        gauge DOWNSTREAM_CX_SSL_ACTIVE = "downstream_cx_ssl_active";
        gauge DOWNSTREAM_CX_UPGRADES_ACTIVE = "downstream_cx_upgrades_active";
        counter DOWNSTREAM_CX_TOTAL = "downstream_cx_total";
        counter DOWNSTREAM_CX_HTTP1_TOTAL = "downstream_cx_http1_total";
        counter DOWNSTREAM_CX_HTTP2_TOTAL = "downstream_cx_http2_total";
        counter DOWNSTREAM_CX_SSL_TOTAL = "downstream_cx_ssl_total";
        counter DOWNSTREAM_CX_UPGRADES_TOTAL = "downstream_cx_upgrades_total";
        counter DOWNSTREAM_CX_DESTROY = "downstream_cx_destroy";
        counter DOWNSTREAM_CX_DESTROY_LOCAL = "downstream_cx_destroy_local";
        counter DOWNSTREAM_CX_DESTROY_REMOTE = "downstream_cx_destroy_remote";
        counter DOWNSTREAM_CX_DESTROY_ACTIVE_RQ = "downstream_cx_destroy_active_rq";
        counter DOWNSTREAM_CX_DRAIN_CLOSE = "downstream_cx_drain_close";
        counter DOWNSTREAM_CX_IDLE_TIMEOUT = "downstream_cx_idle_timeout";
        counter DOWNSTREAM_CX_MAX_DURATION_REACHED = "downstream_cx_max_duration_reached";
        counter DOWNSTREAM_CX_MAX_REQUESTS_REACHED = "downstream_cx_max_requests_reached";
        counter DOWNSTREAM_CX_PROTOCOL_ERROR = "downstream_cx_protocol_error";
        counter DOWNSTREAM_CX_RX_BYTES_TOTAL = "downstream_cx_rx_bytes_total";
        counter DOWNSTREAM_CX_TX_BYTES_TOTAL = "downstream_cx_tx_bytes_total";
        gauge DOWNSTREAM_RQ_ACTIVE = "downstream_rq_active";
        counter DOWNSTREAM_RQ_TOTAL = "downstream_rq_total";
        counter DOWNSTREAM_RQ_HTTP1_TOTAL = "downstream_rq_http1_total";
        counter DOWNSTREAM_RQ_HTTP2_TOTAL = "downstream_rq_http2_total";
        counter DOWNSTREAM_RQ_COMPLETED = "downstream_rq_completed";
        counter DOWNSTREAM_RQ_1XX = "downstream_rq_1xx";
        counter DOWNSTREAM_RQ_2XX = "downstream_rq_2xx";
        counter DOWNSTREAM_RQ_3XX = "downstream_rq_3xx";
        counter DOWNSTREAM_RQ_4XX = "downstream_rq_4xx";
        counter DOWNSTREAM_RQ_5XX = "downstream_rq_5xx";
        counter DOWNSTREAM_RQ_RX_RESET = "downstream_rq_rx_reset";
        counter DOWNSTREAM_RQ_TX_RESET = "downstream_rq_tx_reset";
        counter DOWNSTREAM_RQ_TIMEOUT = "downstream_rq_timeout";
        counter DOWNSTREAM_RQ_IDLE_TIMEOUT = "downstream_rq_idle_timeout";
        counter DOWNSTREAM_RQ_HEADER_TIMEOUT = "downstream_rq_header_timeout";
        counter DOWNSTREAM_RQ_MAX_DURATION_REACHED = "downstream_rq_max_duration_reached";
        counter DOWNSTREAM_RQ_OVERLOAD_CLOSE = "downstream_rq_overload_close";
        counter DOWNSTREAM_CX_OVERLOAD_DISABLE_KEEPALIVE = "downstream_cx_overload_disable_keepalive";
        counter DOWNSTREAM_RQ_TOO_LARGE = "downstream_rq_too_large";
        counter DOWNSTREAM_RQ_RESPONSE_BEFORE_RQ_COMPLETE = "downstream_rq_response_before_rq_complete";
        counter DOWNSTREAM_RQ_WS_ON_NON_WS_ROUTE = "downstream_rq_ws_on_non_ws_route";
        counter DOWNSTREAM_RQ_FAILED_PATH_NORMALIZATION = "downstream_rq_failed_path_normalization";
        counter NO_ROUTE = "no_route";
        counter NO_CLUSTER = "no_cluster";
        counter RQ_TOTAL = "rq_total";
        counter RQ_REDIRECT = "rq_redirect";
        counter RQ_DIRECT_RESPONSE = "rq_direct_response";
        counter PASSTHROUGH_INTERNAL_REDIRECT_BAD_LOCATION = "passthrough_internal_redirect_bad_location";
        counter PASSTHROUGH_INTERNAL_REDIRECT_NO_ROUTE = "passthrough_internal_redirect_no_route";
        counter PASSTHROUGH_INTERNAL_REDIRECT_PREDICATE = "passthrough_internal_redirect_predicate";
        counter PASSTHROUGH_INTERNAL_REDIRECT_TOO_MANY_REDIRECTS = "passthrough_internal_redirect_too_many_redirects";
        counter PASSTHROUGH_INTERNAL_REDIRECT_UNSAFE_SCHEME = "passthrough_internal_redirect_unsafe_scheme";
        counter RQ_RESET_AFTER_DOWNSTREAM_RESPONSE_STARTED = "rq_reset_after_downstream_response_started";
        counter RS_TOO_LARGE = "rs_too_large";
        histogram (ENVOY_MS_FINE) DOWNSTREAM_RQ_TIME = "downstream_rq_time";
        histogram (ENVOY_MS) DOWNSTREAM_CX_LENGTH_MS = "downstream_cx_length_ms";
    }
}

table! {
    /// HTTP/2 connections of all callers, without a prefix.
    http2 {
        counter ?hidden KEEPALIVE_TIMEOUT = "http2.keepalive_timeout";
    }
}

table! {
    /// gRPC calls, under `cluster.<name>.grpc.` or `cluster.<name>.grpc.<service>.<method>.`.
    grpc {
        counter SUCCESS = "success";
        counter FAILURE = "failure";
        counter TOTAL = "total";
        counter REQUEST_MESSAGE_COUNT = "request_message_count";
        counter RESPONSE_MESSAGE_COUNT = "response_message_count";
        counter ?hidden STATUS_0 = "0";
        counter ?hidden STATUS_1 = "1";
        counter ?hidden STATUS_2 = "2";
        counter ?hidden STATUS_3 = "3";
        counter ?hidden STATUS_4 = "4";
        counter ?hidden STATUS_5 = "5";
        counter ?hidden STATUS_6 = "6";
        counter ?hidden STATUS_7 = "7";
        counter ?hidden STATUS_8 = "8";
        counter ?hidden STATUS_9 = "9";
        counter ?hidden STATUS_10 = "10";
        counter ?hidden STATUS_11 = "11";
        counter ?hidden STATUS_12 = "12";
        counter ?hidden STATUS_13 = "13";
        counter ?hidden STATUS_14 = "14";
        counter ?hidden STATUS_15 = "15";
        counter ?hidden STATUS_16 = "16";
    }
}

/// Counts the end of a gRPC call.
pub fn count_grpc_status(stats: &crate::Local, status: u16) {
    use grpc as g;
    const BY_STATUS: [crate::stats::Counter; 17] = [
        g::STATUS_0,
        g::STATUS_1,
        g::STATUS_2,
        g::STATUS_3,
        g::STATUS_4,
        g::STATUS_5,
        g::STATUS_6,
        g::STATUS_7,
        g::STATUS_8,
        g::STATUS_9,
        g::STATUS_10,
        g::STATUS_11,
        g::STATUS_12,
        g::STATUS_13,
        g::STATUS_14,
        g::STATUS_15,
        g::STATUS_16,
    ];
    if let Some(counter) = BY_STATUS.get(usize::from(status)) {
        stats.inc(*counter);
    }
    stats.inc(if status == 0 { g::SUCCESS } else { g::FAILURE });
    stats.inc(g::TOTAL);
}

table! {
    /// Why requests were traced, under `http.<stat prefix>.`.
    tracing {
        counter RANDOM_SAMPLING = "tracing.random_sampling";
        counter SERVICE_FORCED = "tracing.service_forced";
        counter CLIENT_ENABLED = "tracing.client_enabled";
        counter NOT_TRACEABLE = "tracing.not_traceable";
    }
}

table! {
    /// The way of spans to a collector, under `tracing.zipkin.` or `tracing.opentelemetry.`.
    exporter {
        counter SPANS_SENT = "spans_sent";
        counter SPANS_DROPPED = "spans_dropped";
        counter TIMER_FLUSHED = "timer_flushed";
        counter REPORTS_SKIPPED_NO_CLUSTER = "reports_skipped_no_cluster";
        counter REPORTS_SENT = "reports_sent";
        counter REPORTS_DROPPED = "reports_dropped";
        counter REPORTS_FAILED = "reports_failed";
    }
}

table! {
    /// The fault filter, under `http.<stat prefix>.`.
    fault {
        counter ABORTS_INJECTED = "fault.aborts_injected";
        counter DELAYS_INJECTED = "fault.delays_injected";
        counter FAULTS_OVERFLOW = "fault.faults_overflow";
        counter RESPONSE_RL_INJECTED = "fault.response_rl_injected";
        gauge ACTIVE_FAULTS = "fault.active_faults";
    }
}

table! {
    /// The CSRF filter, under `http.<stat prefix>.csrf.`.
    csrf {
        counter MISSING_SOURCE_ORIGIN = "missing_source_origin";
        counter REQUEST_INVALID = "request_invalid";
        counter REQUEST_VALID = "request_valid";
    }
}

table! {
    /// A bandwidth limit filter, under its own prefix. Times are recorded in microseconds.
    bandwidth_limit {
        counter REQUEST_ENABLED = "http_bandwidth_limit.request_enabled";
        counter REQUEST_ENFORCED = "http_bandwidth_limit.request_enforced";
        gauge REQUEST_PENDING = "http_bandwidth_limit.request_pending";
        counter REQUEST_INCOMING_TOTAL_SIZE = "http_bandwidth_limit.request_incoming_total_size";
        counter REQUEST_ALLOWED_TOTAL_SIZE = "http_bandwidth_limit.request_allowed_total_size";
        histogram (ENVOY_MS) REQUEST_TRANSFER_DURATION = "http_bandwidth_limit.request_transfer_duration";
        counter RESPONSE_ENABLED = "http_bandwidth_limit.response_enabled";
        counter RESPONSE_ENFORCED = "http_bandwidth_limit.response_enforced";
        gauge RESPONSE_PENDING = "http_bandwidth_limit.response_pending";
        counter RESPONSE_INCOMING_TOTAL_SIZE = "http_bandwidth_limit.response_incoming_total_size";
        counter RESPONSE_ALLOWED_TOTAL_SIZE = "http_bandwidth_limit.response_allowed_total_size";
        histogram (ENVOY_MS) RESPONSE_TRANSFER_DURATION = "http_bandwidth_limit.response_transfer_duration";
    }
}

table! {
    /// The admission control filter, under `http.<stat prefix>.admission_control.`.
    admission_control {
        counter RQ_REJECTED = "rq_rejected";
        counter RQ_SUCCESS = "rq_success";
        counter RQ_FAILURE = "rq_failure";
    }
}

table! {
    /// The filter of fixed metadata, under `http.<stat prefix>.set_metadata.`.
    set_metadata {
        counter OVERWRITE_DENIED = "overwrite_denied";
    }
}

table! {
    /// A stateful session filter, under `http.<stat prefix>.stateful_session.<own prefix>.`.
    stateful_session {
        counter ROUTED = "routed";
        counter FAILED_OPEN = "failed_open";
        counter FAILED_CLOSED = "failed_closed";
        counter NO_SESSION = "no_session";
    }
}

table! {
    /// The rules of an RBAC filter, under `http.<stat prefix>.rbac[.<rules prefix>].`, with `policy.<policy>.` for one policy,
    /// or `<stat prefix>rbac.` of a network filter.
    rbac {
        counter ALLOWED = "allowed";
        counter DENIED = "denied";
    }
}

table! {
    /// The shadow rules of an RBAC filter, under the same names with a prefix of their own.
    rbac_shadow {
        counter SHADOW_ALLOWED = "shadow_allowed";
        counter SHADOW_DENIED = "shadow_denied";
    }
}

table! {
    /// The CORS filter, under `http.<stat prefix>.`.
    cors {
        counter ORIGIN_VALID = "cors.origin_valid";
        counter ORIGIN_INVALID = "cors.origin_invalid";
    }
}

table! {
    /// A local rate limiter, under `<stat prefix>.`.
    local_rate_limit {
        counter ENABLED = "enabled";
        counter ENFORCED = "enforced";
        counter OK = "ok";
        counter RATE_LIMITED = "rate_limited";
        counter SHADOW_MODE = "shadow_mode";
    }
}

table! {
    /// One direction of a compressor, under `http.<stat prefix>.compressor.<library name>.<library>.<direction>.`.
    compressor {
        counter COMPRESSED = "compressed";
        counter NOT_COMPRESSED = "not_compressed";
        counter TOTAL_UNCOMPRESSED_BYTES = "total_uncompressed_bytes";
        counter TOTAL_COMPRESSED_BYTES = "total_compressed_bytes";
        counter CONTENT_LENGTH_TOO_SMALL = "content_length_too_small";
    }
}

table! {
    /// What callers of a compressor accept, under `http.<stat prefix>.compressor.<library name>.<library>.`.
    compressor_choice {
        counter NO_ACCEPT_HEADER = "no_accept_header";
        counter HEADER_IDENTITY = "header_identity";
        counter HEADER_COMPRESSOR_USED = "header_compressor_used";
        counter HEADER_COMPRESSOR_OVERSHADOWED = "header_compressor_overshadowed";
        counter HEADER_WILDCARD = "header_wildcard";
        counter HEADER_NOT_VALID = "header_not_valid";
        counter NOT_COMPRESSED_ETAG = "not_compressed_etag";
    }
}

table! {
    /// One direction of a decompressor, under `http.<stat prefix>.decompressor.<library name>.<library>.<direction>.`.
    decompressor {
        counter DECOMPRESSED = "decompressed";
        counter NOT_DECOMPRESSED = "not_decompressed";
        counter TOTAL_UNCOMPRESSED_BYTES = "total_uncompressed_bytes";
        counter TOTAL_COMPRESSED_BYTES = "total_compressed_bytes";
    }
}

table! {
    /// A limit of connections, under `local_rate_limit.<stat prefix>.` or `listener_local_ratelimit.<stat prefix>.`.
    connection_rate_limit {
        counter RATE_LIMITED = "rate_limited";
    }
}

table! {
    /// A limit of connections that are open at once, under `connection_limit.<stat prefix>.`.
    connection_limit {
        counter LIMITED_CONNECTIONS = "limited_connections";
        gauge ACTIVE_CONNECTIONS = "active_connections";
    }
}

table! {
    /// Authorization of connections, under `ext_authz.<stat prefix>.`.
    connection_authorization {
        counter TOTAL = "total";
        counter OK = "ok";
        counter DENIED = "denied";
        counter ERROR = "error";
        counter FAILURE_MODE_ALLOWED = "failure_mode_allowed";
        counter CX_CLOSED = "cx_closed";
        gauge ACTIVE = "active";
    }
}

table! {
    /// Global rate limits of connections, under `ratelimit.<stat prefix>.`.
    connection_quota {
        counter TOTAL = "total";
        counter OK = "ok";
        counter OVER_LIMIT = "over_limit";
        counter ERROR = "error";
        counter FAILURE_MODE_ALLOWED = "failure_mode_allowed";
        counter CX_CLOSED = "cx_closed";
        gauge ACTIVE = "active";
    }
}

table! {
    /// The JWT filter, under `http.<stat prefix>.`.
    jwt_authn {
        counter ALLOWED = "jwt_authn.allowed";
        counter DENIED = "jwt_authn.denied";
        counter CORS_PREFLIGHT_BYPASSED = "jwt_authn.cors_preflight_bypassed";
        counter JWKS_FETCH_SUCCESS = "jwt_authn.jwks_fetch_success";
        counter JWKS_FETCH_FAILED = "jwt_authn.jwks_fetch_failed";
    }
}

table! {
    /// An external authorization filter, under `http.<stat prefix>.ext_authz.`, and the same of a route's cluster.
    ext_authz {
        counter OK = "ok";
        counter DENIED = "denied";
        counter ERROR = "error";
        counter FAILURE_MODE_ALLOWED = "failure_mode_allowed";
    }
}

table! {
    /// What more an external authorization filter counts, under `http.<stat prefix>.ext_authz.`.
    ext_authz_filter {
        counter DISABLED = "disabled";
        counter INVALID = "invalid";
        counter IGNORED_DYNAMIC_METADATA = "ignored_dynamic_metadata";
    }
}

table! {
    /// A global rate limit, under `cluster.<route's cluster>.ratelimit.`.
    ratelimit {
        counter OK = "ok";
        counter ERROR = "error";
        counter OVER_LIMIT = "over_limit";
        counter FAILURE_MODE_ALLOWED = "failure_mode_allowed";
    }
}

table! {
    /// An external processing filter, under `http.<stat prefix>.ext_proc.`.
    ext_proc {
        counter STREAMS_STARTED = "streams_started";
        counter STREAMS_CLOSED = "streams_closed";
        counter STREAMS_FAILED = "streams_failed";
        counter STREAM_MSGS_SENT = "stream_msgs_sent";
        counter STREAM_MSGS_RECEIVED = "stream_msgs_received";
        counter SPURIOUS_MSGS_RECEIVED = "spurious_msgs_received";
        counter FAILURE_MODE_ALLOWED = "failure_mode_allowed";
        counter MESSAGE_TIMEOUTS = "message_timeouts";
        counter REJECTED_HEADER_MUTATIONS = "rejected_header_mutations";
        counter OVERRIDE_MESSAGE_TIMEOUT_RECEIVED = "override_message_timeout_received";
        counter OVERRIDE_MESSAGE_TIMEOUT_IGNORED = "override_message_timeout_ignored";
        counter CLEAR_ROUTE_CACHE_IGNORED = "clear_route_cache_ignored";
        counter CLEAR_ROUTE_CACHE_DISABLED = "clear_route_cache_disabled";
    }
}

table! {
    /// One listener, under `listener.<address>.`.
    listener {
        gauge DOWNSTREAM_CX_ACTIVE = "downstream_cx_active";
        counter DOWNSTREAM_CX_TOTAL = "downstream_cx_total";
        counter DOWNSTREAM_CX_DESTROY = "downstream_cx_destroy";
        counter DOWNSTREAM_CX_OVERFLOW = "downstream_cx_overflow";
        counter DOWNSTREAM_CX_TRANSPORT_SOCKET_CONNECT_TIMEOUT = "downstream_cx_transport_socket_connect_timeout";
        counter DOWNSTREAM_CX_OVERLOAD_REJECT = "downstream_cx_overload_reject";
        counter DOWNSTREAM_GLOBAL_CX_OVERFLOW = "downstream_global_cx_overflow";
        counter DOWNSTREAM_LISTENER_FILTER_ERROR = "downstream_listener_filter_error";
        counter DOWNSTREAM_LISTENER_FILTER_REMOTE_CLOSE = "downstream_listener_filter_remote_close";
        gauge DOWNSTREAM_PRE_CX_ACTIVE = "downstream_pre_cx_active";
        counter DOWNSTREAM_PRE_CX_TIMEOUT = "downstream_pre_cx_timeout";
        counter NO_FILTER_CHAIN_MATCH = "no_filter_chain_match";
        counter EXTENSION_CONFIG_MISSING = "extension_config_missing";
        counter NETWORK_EXTENSION_CONFIG_MISSING = "network_extension_config_missing";
        histogram (ENVOY_MS) DOWNSTREAM_CX_LENGTH_MS = "downstream_cx_length_ms";
    }
}

table! {
    /// A TCP proxy, under `tcp.<stat prefix>.`.
    tcp {
        counter DOWNSTREAM_CX_TOTAL = "downstream_cx_total";
        counter DOWNSTREAM_CX_NO_ROUTE = "downstream_cx_no_route";
        counter DOWNSTREAM_CX_RX_BYTES_TOTAL = "downstream_cx_rx_bytes_total";
        counter DOWNSTREAM_CX_TX_BYTES_TOTAL = "downstream_cx_tx_bytes_total";
        counter IDLE_TIMEOUT = "idle_timeout";
        counter MAX_DOWNSTREAM_CONNECTION_DURATION = "max_downstream_connection_duration";
    }
}

table! {
    /// A TCP proxy that waits for its cluster, beside those of [`tcp`].
    tcp_on_demand {
        counter ATTEMPT = "on_demand_cluster_attempt";
        counter MISSING = "on_demand_cluster_missing";
        counter TIMEOUT = "on_demand_cluster_timeout";
        counter SUCCESS = "on_demand_cluster_success";
    }
}

table! {
    /// A filter that is discovered, under `extension_config_discovery.<kind of filter>.<name>.`; written by the main thread.
    extension_config {
        counter CONFIG_RELOAD = "config_reload";
        counter CONFIG_FAIL = "config_fail";
        counter CONFIG_CONFLICT = "config_conflict";
    }
}

table! {
    /// The cluster manager, under `cluster_manager.`; written by the main thread.
    cluster_manager {
        gauge ACTIVE_CLUSTERS = "active_clusters";
        gauge WARMING_CLUSTERS = "warming_clusters";
        counter CLUSTER_ADDED = "cluster_added";
        counter CLUSTER_MODIFIED = "cluster_modified";
        counter CLUSTER_REMOVED = "cluster_removed";
        counter CLUSTER_UPDATED = "cluster_updated";
        counter CDS_UPDATE_ATTEMPT = "cds.update_attempt";
        counter CDS_UPDATE_SUCCESS = "cds.update_success";
        counter CDS_UPDATE_REJECTED = "cds.update_rejected";
    }
}

table! {
    /// The listener manager, under `listener_manager.`; written by the main thread.
    listener_manager {
        gauge TOTAL_LISTENERS_ACTIVE = "total_listeners_active";
        gauge TOTAL_LISTENERS_WARMING = "total_listeners_warming";
        gauge TOTAL_LISTENERS_DRAINING = "total_listeners_draining";
        gauge WORKERS_STARTED = "workers_started";
        counter LISTENER_ADDED = "listener_added";
        counter LISTENER_MODIFIED = "listener_modified";
        counter LISTENER_REMOVED = "listener_removed";
        counter LISTENER_CREATE_SUCCESS = "listener_create_success";
        counter LISTENER_CREATE_FAILURE = "listener_create_failure";
        counter LDS_UPDATE_ATTEMPT = "lds.update_attempt";
        counter LDS_UPDATE_SUCCESS = "lds.update_success";
        counter LDS_UPDATE_REJECTED = "lds.update_rejected";
    }
}

table! {
    /// The process, under `server.`; written by the main thread.
    server {
        gauge CONCURRENCY = "concurrency";
        gauge LIVE = "live";
        gauge STATE = "state";
        gauge UPTIME = "uptime";
        gauge MEMORY_ALLOCATED = "memory_allocated";
        gauge MEMORY_HEAP_SIZE = "memory_heap_size";
        gauge MEMORY_PHYSICAL_SIZE = "memory_physical_size";
        gauge TOTAL_CONNECTIONS = "total_connections";
        gauge PARENT_CONNECTIONS = "parent_connections";
        gauge HOT_RESTART_EPOCH = "hot_restart_epoch";
        gauge HOT_RESTART_GENERATION = "hot_restart_generation";
        gauge DAYS_UNTIL_FIRST_CERT_EXPIRING = "days_until_first_cert_expiring";
        gauge VERSION = "version";
        counter PANICS = "panics";
    }
}

table! {
    /// One action of the overload manager, under `overload.<action>.`; written by the main thread.
    overload_action {
        gauge ACTIVE = "active";
        gauge SCALE_PERCENT = "scale_percent";
    }
}

table! {
    /// One load shed point, under `overload.<point>.`; written by the main thread.
    load_shed_point {
        gauge SCALE_PERCENT = "scale_percent";
        counter SHED_LOAD_COUNT = "shed_load_count";
    }
}

table! {
    /// One resource monitor, under `overload.<monitor>.`; written by the main thread.
    resource_monitor {
        gauge PRESSURE = "pressure";
        counter FAILED_UPDATES = "failed_updates";
        // Measuring never takes so long that the next time passes: always zero.
        counter SKIPPED_UPDATES = "skipped_updates";
    }
}

table! {
    /// The connection to the control plane, under `control_plane.`; written by the main thread.
    control_plane {
        gauge CONNECTED_STATE = "connected_state";
        gauge PENDING_REQUESTS = "pending_requests";
        counter RATE_LIMIT_ENFORCED = "rate_limit_enforced";
    }
}

table! {
    /// Names that requests bring along, under `dns_cache.<name>.`; written by the main thread.
    dns_cache {
        counter DNS_QUERY_ATTEMPT = "dns_query_attempt";
        counter DNS_QUERY_SUCCESS = "dns_query_success";
        counter DNS_QUERY_FAILURE = "dns_query_failure";
        counter DNS_QUERY_TIMEOUT = "dns_query_timeout";
        counter HOST_ADDED = "host_added";
        counter HOST_REMOVED = "host_removed";
        counter HOST_ADDRESS_CHANGED = "host_address_changed";
        counter HOST_OVERFLOW = "host_overflow";
        counter DNS_RQ_PENDING_OVERFLOW = "dns_rq_pending_overflow";
        gauge NUM_HOSTS = "num_hosts";
    }
}

table! {
    /// An SDS subscription, under `sds.<secret name>.`.
    sds {
        counter UPDATE_ATTEMPT = "update_attempt";
        counter UPDATE_SUCCESS = "update_success";
        counter UPDATE_REJECTED = "update_rejected";
        counter UPDATE_FAILURE = "update_failure";
    }
}
