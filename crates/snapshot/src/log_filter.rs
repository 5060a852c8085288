//! Which requests and connections a log holds, and which of our own replies are reworded (Envoy `AccessLogFilter`).
use lateen_telemetry::ResponseFlags;

use crate::matcher::{Fraction, HeaderMatcher, ValueMatcher};
use crate::metadata::MetadataMatcher;

#[derive(Debug, Clone)]
pub enum LogFilter {
    StatusCode(ValueMatcher),
    Duration(ValueMatcher),
    /// Only requests with one of these.
    ResponseFlags(ResponseFlags),
    And(Vec<LogFilter>),
    Or(Vec<LogFilter>),
    NotHealthCheck,
    Header(HeaderMatcher),
    /// Traced because the header of a service asked for it.
    Traceable,
    Share {
        fraction: Fraction,
        /// A die of its own is thrown; otherwise the request's id is the die, where it has one that serves as such.
        independent: bool,
    },
    GrpcStatus {
        /// The status that is bit `n` is meant.
        statuses: u32,
        exclude: bool,
    },
    Metadata {
        /// Without it nothing is ever found.
        matcher: Option<MetadataMatcher>,
        /// Whether it passes when there is no such value.
        without: bool,
    },
    LogType {
        /// Those that are bit `n` for their number.
        types: u32,
        exclude: bool,
    },
}

/// On what occasion something is logged: Envoy's `AccessLogType`, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogType {
    /// A listener's connection, and a reply that is about to be worded.
    NotSet = 0,
    TcpUpstreamConnected = 1,
    TcpPeriodic = 2,
    TcpConnectionEnd = 3,
    DownstreamEnd = 6,
    TcpConnectionStart = 14,
}

impl LogType {
    pub fn is_among(self, types: u32) -> bool {
        types & (1 << self as u32) != 0
    }
}
