//! The name that a request is for is resolved before the request goes on (Envoy dynamic forward proxy; texts are Envoy's).
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use http::HeaderValue;
use lateen_snapshot::dns::cache::{CachedHost, DnsCache, HostKey, Load, Waiting};
use lateen_snapshot::http::HostFrom;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, per_route};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::io::Text;
use crate::router::lookup;

/// How long to wait where only the resolver has a limit.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) async fn on_request(exchange: &mut Exchange<'_>, cache: &Arc<DnsCache>) -> Result<Step, End> {
    let Some(default_port) = port_of_cluster(exchange) else { return Ok(Step::Continue) };
    if let Some(from) = per_route(exchange, |p| p.dynamic_forward_proxy.as_ref()) {
        replace_host(exchange, &from);
    }
    if exchange.request.authority.is_empty() {
        return Ok(refuse(400, "Empty host header", details::EMPTY_HOST_HEADER));
    }
    let Some(key) = HostKey::of(&exchange.request.authority, default_port) else {
        return Ok(refuse(400, "Empty host header", details::EMPTY_HOST_HEADER));
    };
    let known = match cache.load(key) {
        Load::Known(host) => Some(host),
        Load::Wait(waiting) => Box::pin(wait(exchange, waiting, cache.config.query_timeout)).await?,
        Load::Overflow => {
            let text = "Dynamic forward proxy pending request overflow";
            return Ok(refuse(503, text, details::DYNAMIC_FORWARD_PROXY_PENDING_REQUEST_OVERFLOW));
        }
        Load::Full => return Ok(refuse(503, "DNS cache overflow", details::DNS_CACHE_OVERFLOW)),
    };
    let reason = match known.map(|host| host.host()) {
        Some(Ok(_)) => return Ok(Step::Continue),
        Some(Err(reason)) => reason,
        None => Arc::from("no answer in time"),
    };
    let details = format!("{}{{{}}}", details::DNS_RESOLUTION_FAILURE, details::underscored(&reason));
    Ok(Step::Reply(Reply::new(503, "DNS resolution failure", details, ResponseFlags::DNS_RESOLUTION_FAILED)))
}

fn refuse(status: u16, text: &'static str, details: &'static str) -> Step {
    Step::Reply(Reply::new(status, text, details, ResponseFlags::NONE))
}

/// The port of names without one, where the request's cluster takes its host from the request.
fn port_of_cluster(exchange: &Exchange<'_>) -> Option<u16> {
    let matched = exchange.info.route.as_ref()?;
    let id = lookup::cluster_of(matched, &exchange.live.snapshot, &exchange.request)?;
    exchange.live.snapshot.cluster(id)?.config.default_port()
}

fn replace_host(exchange: &mut Exchange<'_>, from: &HostFrom) {
    let request = &mut exchange.request;
    match from {
        HostFrom::Literal(host) => request.authority = Text::from(&**host),
        HostFrom::Header(name) => {
            if let Some(host) = request.headers.get(name).map(HeaderValue::to_str).and_then(Result::ok) {
                request.authority = Text::from(host);
            }
        }
    }
}

/// Waits for the first lookup of a name; `None` when that takes too long.
async fn wait(exchange: &mut Exchange<'_>, waiting: Waiting, limit: Option<Duration>) -> Result<Option<Arc<CachedHost>>, End> {
    // The lookup has this limit itself; a little more, so that its own word comes first.
    exchange.timer.after(Some(limit.unwrap_or(LONGEST) + Duration::from_secs(1)));
    let (timer, down) = (&mut exchange.timer, &mut exchange.down);
    let mut waiting = pin!(waiting);
    let outcome = poll_fn(|cx| {
        if let Poll::Ready(host) = waiting.as_mut().poll(cx) {
            return Poll::Ready(Ok(Some(host)));
        }
        if down.request_done() && down.poll_gone(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        timer.poll(cx).map(|()| Ok(None))
    })
    .await;
    exchange.timer.set(None);
    outcome
}
