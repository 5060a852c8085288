//! Tracing, compiled: which requests are traced, what their spans carry, and where finished spans go.
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue};

use crate::ClusterId;
use crate::matcher::Fraction;

/// Envoy `HttpConnectionManager.Tracing`.
#[derive(Debug)]
pub struct Tracing {
    pub sampling: Sampling,
    /// Bytes of the path that `http.url` shows; default 256.
    pub max_path_tag_length: u32,
    pub custom_tags: Vec<CustomTag>,
    /// A span for each try, below the request's own.
    pub spawn_upstream_span: bool,
    /// The context goes upstream in headers.
    pub propagates: bool,
    pub provider: Option<Provider>,
}

/// Which requests are traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampling {
    /// Of requests with `x-client-trace-id`.
    pub client: Fraction,
    pub random: Fraction,
    /// Of what the other two, or the caller, chose.
    pub overall: Fraction,
}

/// What a route says of tracing, in place of its connection manager (Envoy `config.route.v3.Tracing`).
#[derive(Debug)]
pub struct RouteTracing {
    pub sampling: Sampling,
    /// Before the connection manager's tags of the same names.
    pub custom_tags: Vec<CustomTag>,
}

/// Envoy `UuidRequestIdConfig`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestIdRules {
    /// The decision is written into the id, for the proxies that follow.
    pub pack_reason: bool,
    /// The id is the die, so that every proxy on the way throws the same. Without it all requests are sampled.
    pub samples: bool,
}

impl Default for RequestIdRules {
    fn default() -> Self {
        Self { pack_reason: true, samples: true }
    }
}

#[derive(Debug)]
pub struct CustomTag {
    pub name: Arc<str>,
    pub value: TagValue,
}

/// A tag whose value turns out empty is left out.
#[derive(Debug)]
pub enum TagValue {
    /// A literal, or an environment variable as it was when the configuration came.
    Fixed(Arc<str>),
    Header {
        name: HeaderName,
        default: Arc<str>,
    },
    /// With the commands of access logs.
    Format(Arc<str>),
    /// What filters found out about the request.
    Metadata {
        namespace: Arc<str>,
        path: Vec<Box<str>>,
        default: Arc<str>,
    },
}

#[derive(Debug)]
pub struct Provider {
    pub kind: ProviderKind,
    pub collector: Collector,
}

#[derive(Debug)]
pub enum ProviderKind {
    Zipkin {
        /// Both ends of a call share one span id.
        shared_span_context: bool,
        trace_id_128bit: bool,
        /// W3C context is read where there is no B3, and written beside it.
        w3c: bool,
    },
    OpenTelemetry {
        /// The resource that all spans belong to, `service.name` among it.
        resource: Vec<(Arc<str>, Arc<str>)>,
        /// Says in each batch which library made the spans.
        scope: bool,
        /// Spans that may wait for export; more are dropped and counted.
        max_cache_size: u32,
    },
}

/// Where batches of spans are posted.
#[derive(Debug)]
pub struct Collector {
    pub cluster: ClusterId,
    pub authority: Arc<str>,
    pub path: Arc<str>,
    /// gRPC rather than plain HTTP.
    pub grpc: bool,
    pub timeout: Duration,
    pub headers: Vec<(HeaderName, HeaderValue)>,
}
