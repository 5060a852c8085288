//! Servers that are asked about a connection before anything is done with it (Envoy's network filters `ext_authz` and
//! `ratelimit`).
use std::sync::Arc;

use crate::service::GrpcService;

/// Whether a connection may be served, an authorizer says.
#[derive(Debug)]
pub struct ConnectionAuthorization {
    /// Statistics are under `ext_authz.<stat_prefix>.`.
    pub stat_prefix: Arc<str>,
    pub service: GrpcService,
    /// Connections are served while the authorizer fails.
    pub failure_mode_allow: bool,
    pub include_peer_certificate: bool,
    pub include_tls_session: bool,
}

/// Whether there are too many connections of a kind, a rate limit service says.
#[derive(Debug)]
pub struct ConnectionQuota {
    /// Statistics are under `ratelimit.<stat_prefix>.`.
    pub stat_prefix: Arc<str>,
    pub domain: Box<str>,
    pub descriptors: Vec<QuotaDescriptor>,
    pub service: GrpcService,
    /// Connections are closed while the service fails.
    pub failure_mode_deny: bool,
}

/// Keys with their values, in which there may be `%COMMAND%`s.
pub type QuotaDescriptor = Vec<(Box<str>, Box<str>)>;
