//! How a try failed, and the words that the caller gets for it.
use std::borrow::Cow;

use http::HeaderValue;
use lateen_telemetry::{ResponseFlags, details};

use crate::http::headers::OVERLOADED;
use crate::http::reply::Reply;
use crate::http::stream::StreamError;
use crate::upstream::{ConnectFailure, NoConnection};

/// gRPC's status of that name.
const DEADLINE_EXCEEDED: u32 = 4;

/// A try that brought no response (Envoy's stream reset reasons, and our timers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(clippy::enum_variant_names, reason = "the names of Envoy's resets")]
pub(crate) enum Failure {
    ConnectionFailure,
    ConnectionTimeout,
    ConnectionTermination,
    RemoteReset,
    RefusedStream,
    ProtocolError,
    Overflow,
    /// The limit of the whole request.
    Timeout,
    PerTryTimeout,
    PerTryIdleTimeout,
    StreamDuration,
    StreamIdle,
    /// The caller did not send all of the request in time.
    SlowRequest,
    NoHealthyHost,
    /// The host that the request names has no address; the reason stands where otherwise the socket's does.
    NameNotResolved,
}

/// A failure with what the socket or TLS said.
#[derive(Clone, Debug)]
pub(crate) struct Failed {
    pub(super) failure: Failure,
    pub(super) transport: String,
}

impl From<Failure> for Failed {
    fn from(failure: Failure) -> Self {
        Self { failure, transport: String::new() }
    }
}

impl From<StreamError> for Failed {
    fn from(error: StreamError) -> Self {
        Self::from(match error {
            StreamError::Closed => Failure::ConnectionTermination,
            StreamError::Reset => Failure::RemoteReset,
            StreamError::Refused => Failure::RefusedStream,
            StreamError::Protocol => Failure::ProtocolError,
        })
    }
}

impl From<NoConnection> for Failed {
    fn from(none: NoConnection) -> Self {
        match none {
            NoConnection::Overflow => Failure::Overflow.into(),
            NoConnection::Failed(ConnectFailure::Timeout) => Failure::ConnectionTimeout.into(),
            NoConnection::Failed(failure) => Self { failure: Failure::ConnectionFailure, transport: failure.reason() },
        }
    }
}

impl Failure {
    /// Envoy's name of the reset.
    fn reason(self) -> &'static str {
        match self {
            Self::ConnectionFailure => "remote connection failure",
            Self::ConnectionTimeout => "connection timeout",
            Self::ConnectionTermination => "connection termination",
            Self::RemoteReset => "remote reset",
            Self::RefusedStream => "remote refused stream reset",
            Self::ProtocolError => "protocol error",
            Self::Overflow => "overflow",
            Self::Timeout
            | Self::PerTryTimeout
            | Self::PerTryIdleTimeout
            | Self::StreamDuration
            | Self::StreamIdle
            | Self::SlowRequest
            | Self::NoHealthyHost
            | Self::NameNotResolved => "local reset",
        }
    }

    pub(super) fn flags(self) -> ResponseFlags {
        match self {
            Self::ConnectionFailure | Self::ConnectionTimeout => ResponseFlags::UPSTREAM_CONNECTION_FAILURE,
            Self::ConnectionTermination => ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
            Self::RemoteReset | Self::RefusedStream => ResponseFlags::UPSTREAM_REMOTE_RESET,
            Self::ProtocolError => ResponseFlags::UPSTREAM_PROTOCOL_ERROR,
            Self::Overflow => ResponseFlags::UPSTREAM_OVERFLOW,
            Self::Timeout | Self::PerTryTimeout | Self::PerTryIdleTimeout => ResponseFlags::UPSTREAM_REQUEST_TIMEOUT,
            // Limits of the caller's stream, not the upstream's: Envoy sets no flag.
            Self::StreamDuration => ResponseFlags::NONE,
            Self::StreamIdle => ResponseFlags::STREAM_IDLE_TIMEOUT,
            Self::SlowRequest => ResponseFlags::NONE,
            Self::NoHealthyHost | Self::NameNotResolved => ResponseFlags::NO_HEALTHY_UPSTREAM,
        }
    }

    /// Whether the host, rather than this proxy's own limits, failed.
    pub(super) fn blames_host(self) -> bool {
        let own = matches!(self, Self::Overflow | Self::StreamDuration | Self::StreamIdle | Self::SlowRequest);
        !own && !matches!(self, Self::NoHealthyHost | Self::NameNotResolved)
    }

    /// Whether its reply counts as a response of the cluster that the route names: limits of the caller's stream say nothing of it.
    pub(super) fn is_of_cluster(self) -> bool {
        !matches!(self, Self::StreamIdle | Self::StreamDuration | Self::SlowRequest)
    }

    /// Whether nothing that is still under way could be of use.
    pub(super) fn ends_request(self) -> bool {
        matches!(self, Self::Timeout | Self::StreamDuration | Self::StreamIdle | Self::SlowRequest)
    }

    pub(super) fn is_timeout(self) -> bool {
        matches!(self, Self::Timeout | Self::PerTryTimeout | Self::PerTryIdleTimeout)
    }
}

impl Failed {
    /// The answer to the caller; one that has not sent its whole request is itself the late one.
    pub(crate) fn reply(&self, retried: bool, complete: bool, quiet: bool) -> Reply {
        let late = if complete { 504 } else { 408 };
        let flags = self.failure.flags();
        let timeout = |details| match quiet {
            true => Reply::new(204, "", details, flags),
            false => Reply::new(504, "upstream request timeout", details, flags),
        };
        match self.failure {
            Failure::Timeout => timeout(details::RESPONSE_TIMEOUT),
            Failure::PerTryTimeout => timeout(details::UPSTREAM_PER_TRY_TIMEOUT),
            Failure::PerTryIdleTimeout => timeout(details::UPSTREAM_PER_TRY_IDLE_TIMEOUT),
            Failure::StreamDuration => {
                let mut reply = Reply::new(late, "downstream duration timeout", details::MAX_DURATION_TIMEOUT, flags);
                reply.grpc_status = Some(DEADLINE_EXCEEDED);
                reply
            }
            Failure::StreamIdle => Reply::new(late, "stream timeout", details::STREAM_IDLE_TIMEOUT, flags),
            // Envoy `ConnectionManagerImpl::ActiveStream::onRequestTimeout`.
            Failure::SlowRequest => Reply::new(408, "request timeout", details::REQUEST_OVERALL_TIMEOUT, flags),
            Failure::NoHealthyHost => Reply::new(503, "no healthy upstream", details::NO_HEALTHY_UPSTREAM, flags),
            Failure::NameNotResolved => Reply::new(503, "no healthy upstream", self.transport.clone(), flags),
            other => {
                let status = if other == Failure::ProtocolError { 502 } else { 503 };
                let reply = Reply::new(status, self.text(retried), details::reset_before_response(other.reason(), &self.transport), flags);
                if other == Failure::Overflow { reply.with_header(OVERLOADED, HeaderValue::from_static("true")) } else { reply }
            }
        }
    }

    fn text(&self, retried: bool) -> Cow<'static, str> {
        let latest = if retried { "retried and the latest " } else { "" };
        let mut text =
            format!("upstream connect error or disconnect/reset before headers. {latest}reset reason: {}", self.failure.reason());
        if !self.transport.is_empty() {
            text.push_str(", transport failure reason: ");
            text.push_str(&self.transport);
        }
        Cow::Owned(text)
    }

    /// The detail once the response had begun.
    pub(super) fn after_response(&self) -> Cow<'static, str> {
        match self.failure {
            Failure::Timeout => Cow::Borrowed(details::RESPONSE_TIMEOUT),
            Failure::StreamDuration => Cow::Borrowed(details::MAX_DURATION_TIMEOUT),
            Failure::StreamIdle => Cow::Borrowed(details::STREAM_IDLE_TIMEOUT),
            Failure::PerTryIdleTimeout => Cow::Borrowed(details::UPSTREAM_PER_TRY_IDLE_TIMEOUT),
            Failure::SlowRequest => Cow::Borrowed(details::REQUEST_OVERALL_TIMEOUT),
            _ => Cow::Owned(details::reset_after_response(self.failure.reason(), &self.transport)),
        }
    }
}
