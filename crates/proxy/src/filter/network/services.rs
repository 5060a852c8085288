//! Asking another server about a connection: may it be served (Envoy's network ext_authz), are there too many (ratelimit). The
//! question is asked as soon as the connection is there, after the TLS handshake, and nothing is read meanwhile.
use std::rc::Rc;

use lateen_proto::envoy::extensions::common::ratelimit::v3::{self as common, rate_limit_descriptor};
use lateen_proto::envoy::service::auth::v3 as auth;
use lateen_proto::envoy::service::ratelimit::v3::{self as rls, rate_limit_response};
use lateen_snapshot::connection_services::{ConnectionAuthorization, ConnectionQuota, QuotaDescriptor};
use lateen_snapshot::listener::NetworkFilter;
use lateen_telemetry::access_log::TextFormat;
use lateen_telemetry::envoy_names::{connection_authorization as authz, connection_quota as quota};
use lateen_telemetry::{BlockName, Local, details};

use super::tcp;
use crate::filter::authorizer;
use crate::listener::Conn;
use crate::upstream::grpc;
use crate::worker::Worker;

const SHOULD_RATE_LIMIT: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";

/// What a worker has of one such filter.
pub(super) struct Bound {
    stats: Local,
    /// Of a quota's descriptors, one after the other.
    formats: Vec<TextFormat>,
}

impl Bound {
    /// `None` for a filter that asks nobody.
    pub(super) fn new(worker: &Worker, filter: &NetworkFilter) -> Option<Self> {
        let local = |defs, name| worker.shard.local(&worker.registry.block(defs, name));
        match filter {
            NetworkFilter::ExtAuthz(config) => {
                Some(Self { stats: local(authz::DEFS, BlockName::plain("ext_authz").below(&config.stat_prefix)), formats: Vec::new() })
            }
            NetworkFilter::RateLimit(config) => {
                let values = config.descriptors.iter().flatten();
                // They compiled when the configuration came.
                let formats = values.filter_map(|(_, value)| TextFormat::compile(value).ok()).collect();
                Some(Self { stats: local(quota::DEFS, BlockName::ratelimit(&config.stat_prefix)), formats })
            }
            _ => None,
        }
    }
}

/// Whether the authorizer lets the connection in; else the details of why not.
pub(super) async fn authorized(
    worker: &Rc<Worker>,
    conn: &Conn,
    config: &ConnectionAuthorization,
    bound: &Bound,
) -> Result<(), &'static str> {
    let stats = &bound.stats;
    stats.inc(authz::TOTAL);
    let active = stats.hold(authz::ACTIVE);
    let question = auth::CheckRequest { attributes: Some(attributes(conn, config)) };
    let live = worker.live();
    let asking = grpc::unary::<auth::CheckResponse>(worker, &live, &config.service, authorizer::METHOD, &question);
    let answer = Box::pin(asking).await;
    drop(active);
    let allowed = match answer {
        Ok(answer) if answer.status.as_ref().is_none_or(|status| status.code == 0) => {
            stats.inc(authz::OK);
            Ok(())
        }
        Ok(_) => {
            stats.inc(authz::DENIED);
            Err(details::EXT_AUTHZ_DENIED)
        }
        Err(status) => {
            tracing::debug!(code = status.code, message = status.message, "authorization of a connection failed");
            stats.inc(authz::ERROR);
            if config.failure_mode_allow {
                stats.inc(authz::FAILURE_MODE_ALLOWED);
            }
            if config.failure_mode_allow { Ok(()) } else { Err(details::EXT_AUTHZ_ERROR) }
        }
    };
    if allowed.is_err() {
        tracing::debug!("connection from {} refused by its authorizer", conn.remote);
        stats.inc(authz::CX_CLOSED);
    }
    allowed
}

fn attributes(conn: &Conn, config: &ConnectionAuthorization) -> auth::AttributeContext {
    auth::AttributeContext {
        source: Some(authorizer::source(conn, config.include_peer_certificate)),
        destination: Some(authorizer::destination(conn)),
        tls_session: authorizer::tls_session(conn, config.include_tls_session),
        ..Default::default()
    }
}

/// Whether there may be one more connection of its kind.
pub(super) async fn within_quota(worker: &Rc<Worker>, conn: &Conn, config: &ConnectionQuota, bound: &Bound) -> bool {
    let stats = &bound.stats;
    stats.inc(quota::TOTAL);
    let active = stats.hold(quota::ACTIVE);
    let mut formats = bound.formats.iter();
    let descriptors = config.descriptors.iter().map(|of| descriptor(of, &mut formats, conn)).collect();
    let question = rls::RateLimitRequest { domain: config.domain.to_string(), descriptors, hits_addend: 0 };
    let live = worker.live();
    let answer = Box::pin(grpc::unary::<rls::RateLimitResponse>(worker, &live, &config.service, SHOULD_RATE_LIMIT, &question)).await;
    drop(active);
    let allowed = match answer {
        Ok(answer) if answer.overall_code == rate_limit_response::Code::OverLimit as i32 => {
            stats.inc(quota::OVER_LIMIT);
            false
        }
        Ok(_) => {
            stats.inc(quota::OK);
            true
        }
        Err(status) => {
            tracing::debug!(code = status.code, message = status.message, "the rate limit service of connections failed");
            stats.inc(quota::ERROR);
            if !config.failure_mode_deny {
                stats.inc(quota::FAILURE_MODE_ALLOWED);
            }
            !config.failure_mode_deny
        }
    };
    if !allowed {
        stats.inc(quota::CX_CLOSED);
    }
    allowed
}

fn descriptor<'a>(of: &QuotaDescriptor, formats: &mut impl Iterator<Item = &'a TextFormat>, conn: &Conn) -> common::RateLimitDescriptor {
    let mut entry = |(key, _): &(Box<str>, Box<str>)| {
        let mut value = Vec::new();
        if let Some(format) = formats.next() {
            format.write(&tcp::Outcome::default().record(conn), &mut value);
        }
        let value = String::from_utf8_lossy(&value).into_owned();
        rate_limit_descriptor::Entry { key: key.to_string(), value }
    };
    common::RateLimitDescriptor { entries: of.iter().map(&mut entry).collect(), ..Default::default() }
}
