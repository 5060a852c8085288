//! Sessions that stay at one host: the caller brings its address along (Envoy stateful_session filter).
use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::HeaderValue;
use http::header::SET_COOKIE;
use lateen_balance::Host;
use lateen_snapshot::matching;
use lateen_snapshot::stateful_session::{self as state, SessionCookie, SessionState, StatefulSession, StatefulSessionPerRoute};
use lateen_telemetry::envoy_names::stateful_session as names;
use lateen_telemetry::{Local, ResponseFlags, details};

use super::{Step, per_route};
use crate::http::message::Response;
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::upstream::ClusterState;

/// The session of a request.
pub(crate) struct Session {
    config: Arc<StatefulSession>,
    /// Of the filter, where it counts; routes that override it do not.
    stats: Option<Rc<Local>>,
    /// `false` when the request's path is not that of the session's cookie.
    tracked: bool,
    /// The host that the caller wants, as text.
    address: Option<String>,
}

pub(super) fn on_request(exchange: &mut Exchange<'_>, filter: &Arc<StatefulSession>) -> Step {
    let config = match per_route(exchange, |p| p.stateful_session.as_ref()).as_deref() {
        Some(StatefulSessionPerRoute::Disabled) => return Step::Continue,
        Some(StatefulSessionPerRoute::Override(other)) => Arc::clone(other),
        None => Arc::clone(filter),
    };
    let counts = Arc::ptr_eq(&config, filter);
    let stats = config.stat_prefix.as_ref().filter(|_| counts).map(|prefix| exchange.hcm.session_stats(exchange.worker, prefix));
    let (tracked, address) = match &config.state {
        None => (false, None),
        Some(SessionState::Cookie(cookie)) if !cookie.covers(&exchange.request.path) => (false, None),
        Some(SessionState::Cookie(cookie)) => {
            let value = matching::cookie(&exchange.request.headers, &cookie.name);
            (true, value.and_then(|value| SessionCookie::read(value, now(exchange))))
        }
        Some(SessionState::Header(name)) => {
            let value = exchange.request.headers.get(name).and_then(|v| v.to_str().ok());
            (true, value.and_then(state::read_header))
        }
        Some(SessionState::Envelope(name)) => {
            let map = &mut exchange.request.headers;
            let opened = map.get(name).and_then(|v| v.to_str().ok()).and_then(state::open_envelope);
            let address = opened.and_then(|(address, own)| {
                // The upstream gets back what it gave.
                map.insert(name, HeaderValue::try_from(own).ok()?);
                address
            });
            (true, address)
        }
    };
    exchange.info.session = Some(Box::new(Session { config, stats, tracked, address }));
    Step::Continue
}

/// The host that the session names, if it may be used. An error where it must be and cannot.
pub(crate) fn choose(exchange: &Exchange<'_>, cluster: &ClusterState) -> Result<Option<Arc<Host>>, End> {
    let Some(session) = &exchange.info.session else { return Ok(None) };
    // A retry looks for another host.
    let Some(address) = session.address.as_ref().filter(|_| exchange.info.attempts <= 1) else { return Ok(None) };
    let host = cluster.host_at(address);
    let usable = host.as_ref().is_some_and(|host| cluster.cluster.config.balance.override_host.allows(host.flags()));
    match host {
        Some(host) if usable => Ok(Some(host)),
        _ if !session.config.strict => Ok(None),
        found => {
            let status = if found.is_none() { session.config.status_not_found } else { 503 };
            Err(Reply::new(status, "no healthy upstream", details::NO_HEALTHY_UPSTREAM, ResponseFlags::NO_HEALTHY_UPSTREAM).into())
        }
    }
}

/// Tells the caller which host it was, unless it knows.
pub(super) fn on_response(exchange: &Exchange<'_>, response: &mut Response) {
    let Some(session) = &exchange.info.session else { return };
    let count = |counter| session.stats.iter().for_each(|stats| stats.inc(counter));
    let Some(host) = &exchange.info.host else {
        if session.tracked && session.config.strict && exchange.info.flags.contains(ResponseFlags::NO_HEALTHY_UPSTREAM) {
            count(names::FAILED_CLOSED);
        }
        return;
    };
    if !session.tracked {
        return count(names::NO_SESSION);
    }
    let address = host.address.to_string();
    let changed = session.address.as_ref() != Some(&address);
    if !changed {
        count(names::ROUTED);
    } else if !session.config.strict {
        count(names::FAILED_OPEN);
    }
    let map = &mut response.headers;
    match &session.config.state {
        Some(SessionState::Cookie(cookie)) if changed => {
            if let Ok(value) = HeaderValue::try_from(cookie.set(&address, now(exchange))) {
                map.append(SET_COOKIE, value);
            }
        }
        Some(SessionState::Header(name)) if changed => {
            if let Ok(value) = HeaderValue::try_from(state::write_header(&address)) {
                map.insert(name, value);
            }
        }
        Some(SessionState::Envelope(name)) => {
            let mut values = map.get_all(name).iter();
            let own = values.next().filter(|_| values.next().is_none());
            if let Some(value) = own.and_then(|own| HeaderValue::try_from(state::envelope(&address, own.as_bytes())).ok()) {
                map.insert(name, value);
            }
        }
        _ => {}
    }
}

fn now(exchange: &Exchange<'_>) -> u64 {
    exchange.info.start_time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
