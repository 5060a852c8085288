//! Asking the snapshot about a request.
use std::sync::{Arc, LazyLock};

use http::{HeaderMap, HeaderName};
use lateen_balance::Criteria;
use lateen_snapshot::compile::Wish;
use lateen_snapshot::http::RouteSource;
use lateen_snapshot::matcher::HeaderMatcher;
use lateen_snapshot::route::{Action, ClusterChoice, Forward, NamedCluster, RequestHead, Roll, Route, RouteTable, WeightedCluster};
use lateen_snapshot::scopes::RouteTarget;
use lateen_snapshot::{ClusterId, Snapshot, subset};

use crate::http::headers::FORWARDED_PROTO;
use crate::http::message::Request;
use crate::http::{Exchange, Matched};

/// A longer name is nobody's, with its port.
const LONGEST_HOST: usize = 261;

/// The request as matchers read it.
pub(crate) fn head_of(request: &Request) -> RequestHead<'_> {
    RequestHead {
        method: request.method.as_str(),
        authority: &request.authority,
        scheme: request.scheme,
        path_and_query: &request.path,
        headers: &request.headers,
        content_length: request.length.said(),
    }
}

/// The route that sends a request to where it comes over TLS. Nothing of its virtual host applies to it, as in Envoy.
static TO_HTTPS: LazyLock<Arc<Route>> = LazyLock::new(|| Arc::new(Route::to_https()));
const NO_HOST: usize = usize::MAX;

/// What came by TLS, as the proxy in front or this one wrote. The scheme that the caller named proves nothing.
fn came_by_tls(headers: &HeaderMap) -> bool {
    headers.get(FORWARDED_PROTO).is_some_and(|proto| proto.as_bytes().eq_ignore_ascii_case(b"https"))
}

/// Virtual host and route, with the weighted cluster already chosen, as filters are configured by it.
pub(crate) fn find(table: &Arc<RouteTable>, exchange: &Exchange<'_>) -> Option<Matched> {
    let (request, roll) = (&exchange.request, exchange.worker.roll64());
    let head = head_of(request);
    let host = table.virtual_host_for(&head)?;
    if host.settings.require_tls.redirects(exchange.info.internal) && !came_by_tls(&request.headers) {
        return Some(Matched { virtual_host: NO_HOST, route: Arc::clone(&TO_HTTPS), table: Arc::clone(table), weighted: None });
    }
    let route = table.route_in(host, &head, Some(&exchange.info.metadata), roll)?;
    let virtual_host = index_of(&table.virtual_hosts, host);
    let weighted = match &route.action {
        Action::Forward(forward) => match &forward.cluster {
            ClusterChoice::Weighted(clusters) => {
                let brought = match &clusters.roll {
                    Roll::Dice => None,
                    Roll::Header(name) => crate::http::headers::number(&request.headers, name),
                    Roll::Hash => super::hash::brought(exchange, &forward.hash),
                };
                // Other bits than the ones that matched fractions, or the two shares would go together.
                clusters.choose(brought.unwrap_or(roll.rotate_left(32))).map(|entry| index_of(&clusters.entries, entry))
            }
            _ => None,
        },
        _ => None,
    };
    Some(Matched { virtual_host, route: Arc::clone(route), table: Arc::clone(table), weighted })
}

/// Where in `all` its element `one` stands.
fn index_of<T>(all: &[T], one: &T) -> usize {
    let offset = (std::ptr::from_ref(one) as usize).wrapping_sub(all.as_ptr() as usize);
    offset / size_of::<T>().max(1)
}

/// The weighted cluster that was chosen.
pub(crate) fn weighted(matched: &Matched) -> Option<&WeightedCluster> {
    match &matched.route.action {
        Action::Forward(forward) => match &forward.cluster {
            ClusterChoice::Weighted(clusters) => clusters.entries.get(matched.weighted?),
            _ => None,
        },
        _ => None,
    }
}

/// The cluster, where the route alone settles it.
pub(crate) fn fixed_cluster(matched: &Matched) -> Option<ClusterId> {
    match &matched.route.action {
        Action::Forward(forward) => match &forward.cluster {
            ClusterChoice::One(id) => Some(*id),
            ClusterChoice::Weighted(_) => match weighted(matched)?.cluster {
                NamedCluster::Fixed(id) => Some(id),
                NamedCluster::Header(_) => None,
            },
            ClusterChoice::Header(_) => None,
        },
        _ => None,
    }
}

/// The cluster of a request.
pub(crate) fn cluster_of(matched: &Matched, snapshot: &Snapshot, request: &Request) -> Option<ClusterId> {
    if let Some(id) = fixed_cluster(matched) {
        return Some(id);
    }
    let name = request.headers.get(header_of(matched)?)?.to_str().ok()?;
    snapshot.cluster_named(name).map(|(id, _)| id)
}

/// The request header that names the cluster.
fn header_of(matched: &Matched) -> Option<&HeaderName> {
    let Action::Forward(forward) = &matched.route.action else { return None };
    match (&forward.cluster, weighted(matched).map(|w| &w.cluster)) {
        (ClusterChoice::Header(name), _) | (_, Some(NamedCluster::Header(name))) => Some(name),
        _ => None,
    }
}

/// The cluster that the request is meant for, if the snapshot does not have it.
pub(crate) fn unknown_cluster(exchange: &Exchange<'_>) -> Option<String> {
    let matched = exchange.info.route.as_ref()?;
    let snapshot = &exchange.live.snapshot;
    if let Some(id) = fixed_cluster(matched) {
        return if snapshot.cluster(id).is_none() { name_of(snapshot, id).map(str::to_owned) } else { None };
    }
    let name = header_of(matched)?;
    let name = exchange.request.headers.get(name)?.to_str().ok()?;
    snapshot.cluster_named(name).is_none().then(|| name.to_owned())
}

/// What may bring the request a route, where it has none: the routes of its scope, or its virtual host.
pub(crate) fn unknown_routes(exchange: &Exchange<'_>) -> Option<Wish> {
    let snapshot = &exchange.live.snapshot;
    if exchange.info.route.is_some() {
        return None;
    }
    match &exchange.hcm.config.routes {
        RouteSource::Inline(_) => None,
        RouteSource::Discovered(id) => unknown_host(snapshot.route_table(*id)?, exchange),
        RouteSource::Scoped(scoped) => match scoped.find(snapshot, &exchange.request.headers)? {
            RouteTarget::Inline(_) => None,
            RouteTarget::Discovered(id, name) => match snapshot.route_table(*id) {
                Some(table) => unknown_host(table, exchange),
                None => Some(Wish::Routes(*id, Arc::clone(name))),
            },
        },
    }
}

/// A host that may be discovered. One whose routes just do not match has been already.
fn unknown_host(table: &RouteTable, exchange: &Exchange<'_>) -> Option<Wish> {
    let routes = table.discovers_hosts?;
    let host = table.host_of(&head_of(&exchange.request))?;
    if host.is_empty() || host.len() > LONGEST_HOST || host.contains('/') || table.virtual_host(host).is_some() {
        return None;
    }
    let host = host.to_ascii_lowercase();
    Some(Wish::VirtualHost { routes, name: format!("{}/{host}", table.name).into(), host: host.into() })
}

/// What the request asks of its host's subset: what the route says, with what filters found out over it.
pub(crate) fn criteria(exchange: &Exchange<'_>, matched: &Matched, forward: &Forward) -> Option<Arc<Criteria>> {
    let by_route = weighted(matched).map_or(&forward.metadata_match, |entry| &entry.metadata_match);
    let found = exchange.info.metadata.get(subset::NAMESPACE, &[]).and_then(serde_json::Value::as_object);
    match (by_route, found.map(subset::criteria)) {
        (Some(route), Some(found)) => Some(Arc::new(route.merged(&found))),
        (route, found) => found.map(Arc::new).or_else(|| route.clone()),
    }
}

/// The name behind an id. Searches all names: for a request that fails anyway.
pub(crate) fn name_of(snapshot: &Snapshot, id: ClusterId) -> Option<&str> {
    snapshot.cluster_ids.iter().find(|(_, known)| **known == id).map(|(name, _)| &**name)
}

pub(crate) fn header_matches(matcher: &HeaderMatcher, request: &Request) -> bool {
    matcher.matches(&head_of(request))
}
