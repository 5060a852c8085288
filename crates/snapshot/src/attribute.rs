//! Facts about an exchange that another server is told by Envoy's names for them (Envoy "Attributes").
use http::HeaderName;

/// One of them, under the name that the configuration gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedAttribute {
    pub name: Box<str>,
    pub attribute: Attribute,
}

/// What can be told. What is not known of an exchange, or not yet, is not told of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    RequestPath,
    /// The path without its query.
    RequestUrlPath,
    RequestQuery,
    RequestHost,
    RequestScheme,
    RequestMethod,
    RequestHeader(HeaderName),
    RequestTime,
    /// Of the body: what the head says, otherwise what has come.
    RequestSize,
    RequestProtocol,
    ResponseCode,
    ResponseCodeDetails,
    /// As Envoy numbers them.
    ResponseFlags,
    ResponseGrpcStatus,
    ResponseHeader(HeaderName),
    /// Of the body, as far as it has been sent.
    ResponseSize,
    ConnectionId,
    /// Whether the caller showed a certificate.
    ConnectionMtls,
    ConnectionRequestedServerName,
    ConnectionTlsVersion,
    ConnectionUriSanLocalCertificate,
    ConnectionSubjectPeerCertificate,
    ConnectionUriSanPeerCertificate,
    ConnectionDnsSanPeerCertificate,
    ConnectionSha256PeerCertificateDigest,
    SourceAddress,
    SourcePort,
    DestinationAddress,
    DestinationPort,
    UpstreamAddress,
    UpstreamPort,
    UpstreamLocalAddress,
    UpstreamRequestAttemptCount,
    ClusterName,
    RouteName,
    VirtualHostName,
    FilterChainName,
    ListenerDirection,
}
