//! Services that the proxy itself asks while a request waits: where they are, and for how long it waits.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::ClusterId;

/// A gRPC service behind a cluster (Envoy `GrpcService` with `envoy_grpc`).
#[derive(Debug, Clone)]
pub struct GrpcService {
    pub cluster: ClusterId,
    pub authority: Arc<str>,
    /// `None` where the configuration says zero: a filter's own limit, or the caller's patience, counts alone.
    pub timeout: Option<Duration>,
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// Bytes of one message; a larger one ends the call.
    pub max_message: usize,
    /// The service is told what every upstream of this proxy is told.
    pub envoy_headers: bool,
}

/// An HTTP service behind a cluster (Envoy `HttpUri`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpUri {
    pub cluster: ClusterId,
    pub authority: Arc<str>,
    /// With query.
    pub path: Arc<str>,
    pub timeout: Option<Duration>,
}
