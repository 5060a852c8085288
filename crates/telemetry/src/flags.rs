//! Envoy's response flags: why a stream ended as it did, as a set that fits one word.
//!
//! Names and order are those of Envoy's `CoreResponseFlag` (stream_info.h); access logs and the
//! `response_flags` label of Istio's metrics print the short names joined by commas.
use std::fmt;
use std::ops::{BitOr, BitOrAssign};

/// A set of response flags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ResponseFlags(u32);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $bit:literal, $short:literal, $long:literal;)*) => {
        impl ResponseFlags {
            $($(#[$doc])* pub const $name: Self = Self(1 << $bit);)*
        }
        /// Every flag with its short and long name, in Envoy's order.
        pub const ALL: &[(ResponseFlags, &str, &str)] = &[$((ResponseFlags::$name, $short, $long),)*];
    };
}

flags! {
    /// All retries were used up. Printed first: Envoy prints flags as they were set, and sets this before the last try's own.
    UPSTREAM_RETRY_LIMIT_EXCEEDED = 15, "URX", "UpstreamRetryLimitExceeded";
    /// The local health check failed.
    FAILED_LOCAL_HEALTH_CHECK = 0, "LH", "FailedLocalHealthCheck";
    /// No healthy endpoint.
    NO_HEALTHY_UPSTREAM = 1, "UH", "NoHealthyUpstream";
    /// The upstream did not answer in time.
    UPSTREAM_REQUEST_TIMEOUT = 2, "UT", "UpstreamRequestTimeout";
    /// Our codec reset the stream.
    LOCAL_RESET = 3, "LR", "LocalReset";
    /// The upstream reset the stream.
    UPSTREAM_REMOTE_RESET = 4, "UR", "UpstreamRemoteReset";
    /// Connecting to the upstream failed.
    UPSTREAM_CONNECTION_FAILURE = 5, "UF", "UpstreamConnectionFailure";
    /// The upstream closed the connection under the stream.
    UPSTREAM_CONNECTION_TERMINATION = 6, "UC", "UpstreamConnectionTermination";
    /// A circuit breaker was open.
    UPSTREAM_OVERFLOW = 7, "UO", "UpstreamOverflow";
    /// No route or no filter chain matched.
    NO_ROUTE_FOUND = 8, "NR", "NoRouteFound";
    /// The fault filter delayed the request.
    DELAY_INJECTED = 9, "DI", "DelayInjected";
    /// The fault filter answered with an error.
    FAULT_INJECTED = 10, "FI", "FaultInjected";
    /// A rate limit applied.
    RATE_LIMITED = 11, "RL", "RateLimited";
    /// The external authorizer denied the request.
    UNAUTHORIZED_EXTERNAL_SERVICE = 12, "UAEX", "UnauthorizedExternalService";
    /// The rate limit service could not be asked.
    RATE_LIMIT_SERVICE_ERROR = 13, "RLSE", "RateLimitServiceError";
    /// The caller went away.
    DOWNSTREAM_CONNECTION_TERMINATION = 14, "DC", "DownstreamConnectionTermination";
    /// The stream was idle for too long.
    STREAM_IDLE_TIMEOUT = 16, "SI", "StreamIdleTimeout";
    /// An `x-envoy-*` header failed strict checking.
    INVALID_ENVOY_REQUEST_HEADERS = 17, "IH", "InvalidEnvoyRequestHeaders";
    /// The caller broke the HTTP protocol.
    DOWNSTREAM_PROTOCOL_ERROR = 18, "DPE", "DownstreamProtocolError";
    /// The upstream stream reached its longest allowed duration.
    UPSTREAM_MAX_STREAM_DURATION_REACHED = 19, "UMSDR", "UpstreamMaxStreamDurationReached";
    /// Served from a cache filter.
    RESPONSE_FROM_CACHE_FILTER = 20, "RFCF", "ResponseFromCacheFilter";
    /// A filter's configuration did not arrive in time.
    NO_FILTER_CONFIG_FOUND = 21, "NFCF", "NoFilterConfigFound";
    /// The request or connection reached its longest allowed duration.
    DURATION_TIMEOUT = 22, "DT", "DurationTimeout";
    /// The upstream broke the HTTP protocol.
    UPSTREAM_PROTOCOL_ERROR = 23, "UPE", "UpstreamProtocolError";
    /// The route's cluster is unknown.
    NO_CLUSTER_FOUND = 24, "NC", "NoClusterFound";
    /// The overload manager ended the stream.
    OVERLOAD_MANAGER = 25, "OM", "OverloadManagerTerminated";
    /// The upstream's name did not resolve.
    DNS_RESOLUTION_FAILED = 26, "DF", "DnsResolutionFailed";
    /// Dropped by the cluster's drop_overload policy.
    DROP_OVERLOAD = 27, "DO", "DropOverload";
    /// The caller reset the stream.
    DOWNSTREAM_REMOTE_RESET = 28, "DR", "DownstreamRemoteReset";
    /// Dropped because drop_overload is 100%.
    UNCONDITIONAL_DROP_OVERLOAD = 29, "UDO", "UnconditionalDropOverload";
    /// All attempts to connect were used up, of a connection: Envoy sets this after the last attempt's own.
    CONNECT_ATTEMPTS_EXCEEDED = 30, "URX", "UpstreamRetryLimitExceeded";
}

impl ResponseFlags {
    /// No flag: prints `-`.
    pub const NONE: Self = Self(0);

    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether every flag of `other` is set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any flag of `other` is set.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    pub fn insert(&mut self, other: Self) {
        self.0 |= other.0;
    }

    pub fn remove(&mut self, other: Self) {
        self.0 &= !other.0;
    }

    pub const fn bits(self) -> u32 {
        self.0
    }

    /// All there are.
    pub fn every() -> Self {
        ALL.iter().fold(Self::NONE, |all, (flag, ..)| all | *flag)
    }

    /// The flags with this short name (`UH`), if Envoy has it.
    pub fn from_short(name: &str) -> Option<Self> {
        ALL.iter().filter(|(_, short, _)| *short == name).map(|(flag, ..)| *flag).reduce(|a, b| a | b)
    }

    /// Appends the short names joined by commas, or `-`.
    pub fn write_short(self, out: &mut Vec<u8>) {
        self.write(out, |(_, short, _)| short);
    }

    /// Appends the long names joined by commas, or `-`.
    pub fn write_long(self, out: &mut Vec<u8>) {
        self.write(out, |(.., long)| long);
    }

    fn write(self, out: &mut Vec<u8>, name: impl Fn(&(Self, &'static str, &'static str)) -> &'static str) {
        if self.is_empty() {
            return out.push(b'-');
        }
        let mut first = true;
        for entry in ALL.iter().filter(|(flag, ..)| self.contains(*flag)) {
            if !std::mem::replace(&mut first, false) {
                out.push(b',');
            }
            out.extend_from_slice(name(entry).as_bytes());
        }
    }
}

impl BitOr for ResponseFlags {
    type Output = Self;
    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl BitOrAssign for ResponseFlags {
    fn bitor_assign(&mut self, other: Self) {
        self.0 |= other.0;
    }
}

/// The short form, as in access logs.
impl fmt::Display for ResponseFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = Vec::with_capacity(8);
        self.write_short(&mut out);
        f.write_str(&String::from_utf8_lossy(&out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_print_as_envoy_prints_them() {
        assert_eq!(ResponseFlags::NONE.to_string(), "-");
        let both = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED | ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        assert_eq!(both.to_string(), "URX,UF");
        let connection = ResponseFlags::CONNECT_ATTEMPTS_EXCEEDED | ResponseFlags::UPSTREAM_CONNECTION_FAILURE;
        assert_eq!(connection.to_string(), "UF,URX");
        let mut long = Vec::new();
        both.write_long(&mut long);
        assert_eq!(long, b"UpstreamRetryLimitExceeded,UpstreamConnectionFailure");
    }

    #[test]
    fn every_short_name_reads_back_and_is_unique() {
        let twice = ResponseFlags::UPSTREAM_RETRY_LIMIT_EXCEEDED | ResponseFlags::CONNECT_ATTEMPTS_EXCEEDED;
        for (flag, short, _) in ALL {
            let all = if twice.contains(*flag) { twice } else { *flag };
            assert_eq!(ResponseFlags::from_short(short), Some(all), "{short}");
            assert_eq!(flag.bits().count_ones(), 1);
        }
        assert_eq!(ResponseFlags::from_short("ZZ"), None);
        assert!(ALL.iter().all(|(flag, ..)| ResponseFlags::every().contains(*flag)));
    }

    #[test]
    fn insert_and_remove_undo_each_other() {
        let mut flags = ResponseFlags::DELAY_INJECTED;
        flags.insert(ResponseFlags::FAULT_INJECTED);
        assert!(flags.contains(ResponseFlags::FAULT_INJECTED));
        flags.remove(ResponseFlags::DELAY_INJECTED);
        assert_eq!(flags, ResponseFlags::FAULT_INJECTED);
    }
}
