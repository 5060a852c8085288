//! The name that a request is for is resolved before the request goes on (Envoy dynamic forward proxy; texts are Envoy's).
use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderValue;
use lateen_snapshot::ClusterId;
use lateen_snapshot::dns::cache::{CachedHost, DnsCache, HostKey, Load, Waiting};
use lateen_snapshot::http::HostFrom;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, per_route, wait};
use crate::http::reply::Reply;
use crate::http::{End, Exchange};
use crate::io::Text;
use crate::router::lookup;

/// How long to wait where only the resolver has a limit.
const LONGEST: Duration = Duration::from_secs(60);

pub(super) async fn on_request(exchange: &mut Exchange<'_>, cache: &Arc<DnsCache>) -> Result<Step, End> {
    let Some((id, default_port)) = cluster(exchange) else { return Ok(Step::Continue) };
    if let Some(from) = per_route(exchange, |p| p.dynamic_forward_proxy.as_ref()) {
        replace_host(exchange, &from);
    }
    let cluster = exchange.live.cluster(exchange.worker, id);
    if cluster.is_some_and(|c| c.knows(cache, &exchange.request.authority, default_port)) {
        return Ok(Step::Continue);
    }
    let Err(unresolved) = resolve(exchange, cache, default_port).await? else { return Ok(Step::Continue) };
    let (status, text, flags) = match unresolved {
        Unresolved::NoName => (400, "Empty host header", ResponseFlags::NONE),
        Unresolved::TooManyWait => (503, "Dynamic forward proxy pending request overflow", ResponseFlags::NONE),
        Unresolved::Full => (503, "DNS cache overflow", ResponseFlags::NONE),
        Unresolved::Failed(_) => (503, "DNS resolution failure", ResponseFlags::DNS_RESOLUTION_FAILED),
    };
    Ok(Step::Reply(Reply::new(status, text, unresolved.details(), flags)))
}

/// Why the host that a request names has no address.
pub(crate) enum Unresolved {
    NoName,
    TooManyWait,
    Full,
    Failed(Arc<str>),
}

impl Unresolved {
    pub(crate) fn details(&self) -> Cow<'static, str> {
        match self {
            Self::NoName => details::EMPTY_HOST_HEADER.into(),
            Self::TooManyWait => details::DYNAMIC_FORWARD_PROXY_PENDING_REQUEST_OVERFLOW.into(),
            Self::Full => details::DNS_CACHE_OVERFLOW.into(),
            Self::Failed(reason) => format!("{}{{{}}}", details::DNS_RESOLUTION_FAILURE, details::underscored(reason)).into(),
        }
    }
}

/// Waits until the host that the request names has an address.
pub(crate) async fn resolve(exchange: &mut Exchange<'_>, cache: &Arc<DnsCache>, default_port: u16) -> Result<Result<(), Unresolved>, End> {
    let Some(key) = HostKey::of(&exchange.request.authority, default_port) else { return Ok(Err(Unresolved::NoName)) };
    let known = match cache.load(key) {
        Load::Known(host) => Some(host),
        Load::Wait(waiting) => Box::pin(first_lookup(exchange, waiting, cache.config.query_timeout)).await?,
        Load::Overflow => return Ok(Err(Unresolved::TooManyWait)),
        Load::Full => return Ok(Err(Unresolved::Full)),
    };
    Ok(match known.map(|host| host.host()) {
        Some(Ok(_)) => Ok(()),
        Some(Err(reason)) => Err(Unresolved::Failed(reason)),
        None => Err(Unresolved::Failed("no answer in time".into())),
    })
}

/// The request's cluster, where that takes its host from the request, and the port of names without one.
fn cluster(exchange: &Exchange<'_>) -> Option<(ClusterId, u16)> {
    let matched = exchange.info.route.as_ref()?;
    let id = lookup::cluster_of(matched, &exchange.live.snapshot, &exchange.request)?;
    Some((id, exchange.live.snapshot.cluster(id)?.config.default_port()?))
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
async fn first_lookup(exchange: &mut Exchange<'_>, waiting: Waiting, limit: Option<Duration>) -> Result<Option<Arc<CachedHost>>, End> {
    // The lookup has this limit itself; a little more, so that its own word comes first.
    wait::at_most(exchange, limit.unwrap_or(LONGEST) + Duration::from_secs(1), waiting).await
}
