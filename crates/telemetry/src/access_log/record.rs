//! What a finished request or connection can tell a log line.
use crate::ResponseFlags;
use http::HeaderName;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

/// A header asked for by name; pseudo headers have cases of their own, so that a record need not compare texts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HeaderKey {
    Method,
    Path,
    Authority,
    Scheme,
    Status,
    /// Framing too, and kept as that and not among the headers.
    ContentLength,
    Named(HeaderName),
}

/// Which message's headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadersOf {
    Request,
    Response,
    ResponseTrailers,
}

/// Facts that are texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Text {
    /// `HTTP/1.1`; none for TCP.
    Protocol,
    UpstreamProtocol,
    RouteName,
    VirtualHostName,
    FilterChainName,
    ResponseCodeDetails,
    ConnectionTerminationDetails,
    UpstreamTransportFailureReason,
    /// The cluster's observability name.
    UpstreamCluster,
    /// The cluster's own name.
    UpstreamClusterRaw,
    /// The SNI of the caller.
    RequestedServerName,
    DownstreamLocalUriSan,
    DownstreamPeerSubject,
    DownstreamTlsVersion,
    DownstreamTlsCipher,
    /// The body of a local reply.
    LocalReplyBody,
}

/// Whose address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressOf {
    UpstreamHost,
    UpstreamLocal,
    DownstreamLocal,
    DownstreamRemote,
    /// The other end of the connection, whatever `x-forwarded-for` says.
    DownstreamDirectRemote,
}

/// An address: of a socket, or a name that is none (a Unix socket's path, an internal listener).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address<'a> {
    Socket(SocketAddr),
    Named(&'a str),
}

/// Which stretch of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Span {
    /// From the first byte of the request to the last byte of the response, or the connection's life.
    Whole,
    /// Until the last byte of the request had been received.
    Request,
    /// Until the first byte of the response came from the upstream.
    Response,
    /// From the first byte of the upstream's response to the last byte sent to the caller.
    ResponseTx,
}

/// Counts of body bytes (of all bytes, for TCP), unless they say otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bytes {
    Received,
    Sent,
    /// With headers and framing.
    DownstreamWireReceived,
    DownstreamWireSent,
}

/// State that filters leave behind for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilterState {
    /// What the TCP proxy's tunnel was answered.
    TunnelHeaders,
    TunnelTrailers,
}

/// A finished request or connection. What is not known is `None`, which prints as `-` or JSON null.
pub trait Record {
    fn start_time(&self) -> SystemTime;
    fn header(&self, of: HeadersOf, key: &HeaderKey) -> Option<&[u8]>;

    /// What `content-length` says, which [`Record::header`] is not asked for.
    fn content_length(&self, _: HeadersOf) -> Option<u64> {
        None
    }
    fn text(&self, of: Text) -> Option<&str>;
    fn address(&self, of: AddressOf) -> Option<Address<'_>>;
    fn span(&self, of: Span) -> Option<Duration>;
    fn bytes(&self, of: Bytes) -> u64;
    /// 0 when no response was produced.
    fn response_code(&self) -> u16;
    fn flags(&self) -> ResponseFlags;

    /// What filters found out about the request: a value by namespace and path.
    fn dynamic_metadata(&self, _namespace: &str, _path: &[Box<str>]) -> Option<&serde_json::Value> {
        None
    }

    /// What a filter keeps of the connection.
    fn filter_state(&self, _of: FilterState) -> Option<serde_json::Value> {
        None
    }

    /// The names in the caller's certificate that are URIs.
    fn peer_uri_sans(&self) -> &[String] {
        &[]
    }

    /// The trace that the request is part of, and how many digits it is written with.
    fn trace_id(&self) -> Option<(u128, usize)> {
        None
    }

    /// Whether the request is a gRPC call.
    fn is_grpc(&self) -> bool {
        false
    }

    /// The number of the caller's connection.
    fn connection_id(&self) -> Option<u64> {
        None
    }

    /// What a gRPC call's status is where neither trailers nor headers name one: made from the HTTP status.
    fn implied_grpc_status(&self) -> Option<u16> {
        None
    }

    /// How many times the upstream was tried.
    fn attempts(&self) -> u32 {
        0
    }
}
