//! Role-based access control of requests.
use std::sync::Arc;

use lateen_snapshot::authorize::Facts;
use lateen_snapshot::http::RbacPerRoute;
use lateen_snapshot::matcher::Rbac;
use lateen_telemetry::envoy_names::rbac as names;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, per_route};
use crate::http::Exchange;
use crate::http::reply::Reply;
use crate::router::lookup;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<Rbac>) -> Step {
    let config = match per_route(exchange, |p| p.rbac.as_ref()).as_deref() {
        Some(RbacPerRoute::Disabled) => return Step::Continue,
        Some(RbacPerRoute::Override(other)) => Arc::clone(other),
        None => Arc::clone(config),
    };
    if !config.enforced {
        return Step::Continue;
    }
    let conn = exchange.conn;
    let head = lookup::head_of(&exchange.request);
    let verdict = config.evaluate(&Facts {
        head: Some(&head),
        destination: conn.local,
        direct_remote: conn.direct_remote.ip(),
        remote: exchange.info.remote.ip(),
        peer: conn.peer(),
        server_name: conn.server_name.as_deref(),
        metadata: Some(&exchange.info.metadata),
    });
    if verdict.allowed {
        exchange.hcm.rbac.inc(names::ALLOWED);
        return Step::Continue;
    }
    exchange.hcm.rbac.inc(names::DENIED);
    let details = details::rbac_denied(verdict.policy.as_deref());
    Step::Reply(Reply::new(403, "RBAC: access denied", details, ResponseFlags::NONE))
}
