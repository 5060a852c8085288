//! External authorization: which requests another server is asked about, what it is told, and what its answer may do.
use std::sync::Arc;

use crate::header::HeaderMutations;
use crate::matcher::{Fraction, StringMatcher};
use crate::metadata::MetadataMatcher;
use crate::service::{GrpcService, HttpUri};

/// The namespace of what the authorizer says about a request.
pub const NAMESPACE: &str = "envoy.filters.http.ext_authz";

/// Envoy's `ExtAuthz`.
#[derive(Debug)]
pub struct ExtAuthz {
    pub service: Authorizer,
    /// Requests pass when the authorizer cannot be asked.
    pub failure_mode_allow: bool,
    /// Such requests are marked.
    pub failure_mode_allow_header_add: bool,
    pub with_request_body: Option<BodyRules>,
    pub clear_route_cache: bool,
    /// 403 unless set.
    pub status_on_error: u16,
    /// An answer with a header that cannot be is an error of its own.
    pub validate_mutations: bool,
    /// Dynamic metadata that the authorizer gets.
    pub metadata_namespaces: Vec<Box<str>>,
    pub enabled: Fraction,
    pub enabled_metadata: Option<MetadataMatcher>,
    pub deny_at_disable: bool,
    pub include_peer_certificate: bool,
    pub include_tls_session: bool,
    /// Part of the statistics' names, below `ext_authz`; may be empty.
    pub stat_prefix: Arc<str>,
    pub headers: AllowedHeaders,
    /// Refusals count as responses of the route's cluster.
    pub charge_cluster: bool,
    /// All values of a header apart, as the bytes that they are.
    pub raw_headers: bool,
    /// What the authorizer says of the request becomes dynamic metadata.
    pub ingest_metadata: bool,
    /// Longer bodies of refusals are cut.
    pub max_denied_body: usize,
}

/// Whom to ask.
#[derive(Debug)]
pub enum Authorizer {
    Grpc(GrpcService),
    Http(Box<HttpAuthorizer>),
}

/// Envoy's `HttpService` of the filter.
#[derive(Debug)]
pub struct HttpAuthorizer {
    pub uri: HttpUri,
    pub path: AuthorizerPath,
    /// On the question.
    pub add: HeaderMutations,
    /// Of the answer, set on the request.
    pub upstream: Vec<StringMatcher>,
    /// Of the answer, appended to what the request has.
    pub upstream_append: Vec<StringMatcher>,
    /// Of a refusal, passed on to the caller; empty for all but the host.
    pub client: Vec<StringMatcher>,
    /// Of a permission, passed on to the caller with the response.
    pub client_on_success: Vec<StringMatcher>,
    pub metadata: Vec<StringMatcher>,
}

/// The path of the question.
#[derive(Debug)]
pub enum AuthorizerPath {
    /// Before the request's own.
    Prefix(Box<str>),
    Fixed(Box<str>),
}

/// How much of a body the authorizer gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BodyRules {
    pub max_bytes: usize,
    /// A longer body is sent in part instead of being refused.
    pub allow_partial: bool,
    pub pack_as_bytes: bool,
}

/// Which headers of the request the authorizer gets.
#[derive(Debug, Default)]
pub struct AllowedHeaders {
    /// `None` for all.
    pub allowed: Option<Vec<StringMatcher>>,
    pub disallowed: Vec<StringMatcher>,
}

impl AllowedHeaders {
    pub fn passes(&self, name: &str) -> bool {
        let among = |list: &[StringMatcher]| list.iter().any(|m| m.matches(name));
        self.allowed.as_deref().is_none_or(among) && !among(&self.disallowed)
    }
}

/// What a route says about the filter.
#[derive(Debug, Default)]
pub struct ExtAuthzPerRoute {
    pub disabled: bool,
    /// For the authorizer; those of all levels count.
    pub context: Vec<(String, String)>,
    pub skip_body: bool,
    pub with_request_body: Option<BodyRules>,
}
