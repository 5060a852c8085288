//! What would happen to a call, step by step, found by the code that serves traffic. No sockets.
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use lateen_balance::{Address, Criteria, Host};
use lateen_identity::PeerIdentity;

use crate::authorize::Facts;
use crate::cluster::Discovery;
use crate::http::{FilterOverrides, HttpConnectionManager, HttpFilter, RbacPerRoute, RouteSource};
use crate::listener::{ConnectionInfo, FilterChain, Listener, NetworkFilter, TcpProxy, Terminal};
use crate::matching::Mismatch;
use crate::normalize::{Normalized, normalize};
use crate::route::{Action, ClusterChoice, Forward, NamedCluster, RequestHead, Route, RouteTable, VirtualHost};
use crate::{ClusterId, Snapshot};

/// A hypothetical connection, with a request on it unless it is plain TCP.
#[derive(Clone, Debug)]
pub struct Call {
    /// The listener that accepts; without one, the listener at the destination.
    pub listener: Option<String>,
    /// Where the caller thinks it connects to (the original destination of captured traffic).
    pub destination: SocketAddr,
    pub source: SocketAddr,
    /// Server name of a TLS client; `Some` or a list of `alpn` makes the connection TLS.
    pub sni: Option<String>,
    pub alpn: Vec<String>,
    pub tls: bool,
    /// The verified certificate of the caller, for mutual TLS.
    pub peer: Option<PeerIdentity>,
    /// `None` for bytes that are not HTTP.
    pub request: Option<Request>,
    /// Decides between weights and shares; any number.
    pub roll: u64,
}

/// The request of a [`Call`].
#[derive(Clone, Debug)]
pub struct Request {
    pub method: String,
    /// Host with port, as a client would write it.
    pub authority: String,
    pub scheme: String,
    pub path: String,
    pub headers: HeaderMap,
    /// HTTP/2 instead of HTTP/1.1.
    pub http2: bool,
}

impl Call {
    /// A `GET` of plain HTTP/1.1 from somewhere else.
    pub fn http(destination: SocketAddr, authority: &str, path: &str) -> Self {
        let request = Request {
            method: "GET".to_owned(),
            authority: authority.to_owned(),
            scheme: "http".to_owned(),
            path: path.to_owned(),
            headers: HeaderMap::new(),
            http2: false,
        };
        Self { request: Some(request), ..Self::tcp(destination) }
    }

    /// Plain bytes from somewhere else.
    pub fn tcp(destination: SocketAddr) -> Self {
        Self {
            listener: None,
            destination,
            source: SocketAddr::from(([10, 255, 255, 254], 40_000)),
            sni: None,
            alpn: Vec::new(),
            tls: false,
            peer: None,
            request: None,
            roll: 0,
        }
    }
}

/// One decision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    Listener {
        name: String,
    },
    /// The accepting listener handed the connection to the one at its original destination.
    HandedOver {
        to: String,
    },
    Chain {
        name: String,
        is_default: bool,
        tls: bool,
    },
    /// A policy filter looked at it.
    Authorized {
        policy: Option<String>,
    },
    VirtualHost {
        table: String,
        name: String,
    },
    /// A route that comes before the chosen one, and why it was passed over.
    Passed {
        route: String,
        reason: String,
    },
    Route {
        index: usize,
        name: String,
        provenance: Option<String>,
    },
    Cluster {
        name: String,
    },
    /// A host that may be chosen.
    Endpoint {
        address: String,
        healthy: bool,
        transport: String,
    },
    Mirrored {
        cluster: String,
    },
}

/// How it ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To one of the endpoints of this cluster.
    Forwarded {
        cluster: String,
    },
    /// To the address that the caller asked for.
    PassedThrough {
        cluster: String,
    },
    Redirected {
        status: u16,
        location: String,
    },
    Answered {
        status: u16,
        reason: String,
    },
    Closed {
        reason: String,
    },
}

/// The whole story.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    pub steps: Vec<Step>,
    pub outcome: Outcome,
}

impl Explanation {
    /// The name of the route that was chosen.
    pub fn route(&self) -> Option<&str> {
        self.steps.iter().find_map(|s| match s {
            Step::Route { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }

    pub fn cluster(&self) -> Option<&str> {
        match &self.outcome {
            Outcome::Forwarded { cluster } | Outcome::PassedThrough { cluster } => Some(cluster),
            _ => None,
        }
    }

    pub fn chain(&self) -> Option<&str> {
        self.steps.iter().find_map(|s| match s {
            Step::Chain { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}

impl Snapshot {
    /// What would become of `call`.
    pub fn explain(&self, call: &Call) -> Explanation {
        let mut steps = Vec::new();
        let outcome = self.follow(call, &mut steps).unwrap_or_else(|end| end);
        Explanation { steps, outcome }
    }

    /// `Err` ends early; both are ends.
    fn follow(&self, call: &Call, steps: &mut Vec<Step>) -> Result<Outcome, Outcome> {
        let listener = self.accepting(call, steps)?;
        let connection = connection(listener, call);
        let Some(chain) = listener.choose_chain(&connection) else {
            return Err(closed("no filter chain of the listener matches the connection"));
        };
        let is_default = listener.default_chain.as_ref().is_some_and(|d| Arc::ptr_eq(d, chain));
        steps.push(Step::Chain { name: chain.name.to_string(), is_default, tls: chain.tls.is_some() });
        if chain.tls.is_some() && !call.tls {
            return Err(closed("the chain expects TLS, the call is plaintext"));
        }
        let source = listener.direction.is_source();
        let resolved = chain.discovered().next().map(|_| chain.resolve(|id| self.extension(id).map(|e| &**e), source));
        let chain = resolved.as_ref().unwrap_or(chain);
        self.network_filters(call, chain, steps)?;
        match &chain.terminal {
            Terminal::Http(manager) => self.http(call, manager, steps),
            Terminal::Tcp(proxy) => self.tcp(call, proxy, steps),
            Terminal::DirectResponse(bytes) => Err(closed(&format!("the chain writes {} bytes and closes", bytes.len()))),
            Terminal::Echo => Err(closed("the chain echoes what it receives")),
            Terminal::Discovered(_) => Err(closed("the configuration of the chain's last filter has not arrived")),
        }
    }

    fn accepting(&self, call: &Call, steps: &mut Vec<Step>) -> Result<&Arc<Listener>, Outcome> {
        let first = match &call.listener {
            Some(name) => self.listeners.iter().find(|l| *l.name == **name),
            None => self.listener_at(call.destination, |_| true),
        };
        let Some(first) = first else {
            let name = call.listener.clone().unwrap_or_else(|| call.destination.to_string());
            return Err(closed(&format!("there is no listener {name}")));
        };
        steps.push(Step::Listener { name: first.name.to_string() });
        if !first.use_original_dst {
            return Ok(first);
        }
        match self.listener_at(call.destination, |l| !Arc::ptr_eq(l, first)) {
            Some(other) => {
                steps.push(Step::HandedOver { to: other.name.to_string() });
                Ok(other)
            }
            None => Ok(first),
        }
    }

    /// The listener at an address: the exact one, else the one at the wildcard address of that port.
    pub fn listener_at(&self, address: SocketAddr, accept: impl Fn(&Arc<Listener>) -> bool) -> Option<&Arc<Listener>> {
        let candidates = || self.listeners.iter().filter(|l| accept(l));
        let any = |a: &SocketAddr| a.port() == address.port() && a.ip().is_unspecified();
        let wildcard = |l: &Listener, a: &SocketAddr| any(a) && (a.is_ipv4() == address.is_ipv4() || l.dual_stack.contains(a));
        let exact = candidates().find(|l| l.addresses.contains(&address));
        exact.or_else(|| candidates().find(|l| l.addresses.iter().any(|a| wildcard(l, a))))
    }

    fn network_filters(&self, call: &Call, chain: &FilterChain, steps: &mut Vec<Step>) -> Result<(), Outcome> {
        for filter in &chain.filters {
            if let NetworkFilter::Discovered(_) = filter {
                return Err(closed("the configuration of a filter of the chain has not arrived"));
            }
            if let NetworkFilter::Rbac(rbac) = filter {
                let verdict = rbac.evaluate(&facts(call, None));
                steps.push(Step::Authorized { policy: verdict.policy.as_deref().map(str::to_owned) });
                if !verdict.allowed {
                    return Err(closed(&denied(verdict.policy.as_deref())));
                }
            }
        }
        Ok(())
    }

    fn tcp(&self, call: &Call, proxy: &TcpProxy, steps: &mut Vec<Step>) -> Result<Outcome, Outcome> {
        let total = proxy.clusters.last().map_or(0, |c| u64::from(c.bound));
        let roll = call.roll.checked_rem(total).unwrap_or(0);
        match proxy.clusters.iter().find(|c| u64::from(c.bound) > roll) {
            Some(cluster) => self.cluster_step(cluster.id, cluster.metadata_match.as_deref(), steps),
            None => Err(closed("the chain names no cluster")),
        }
    }

    fn http(&self, call: &Call, manager: &HttpConnectionManager, steps: &mut Vec<Step>) -> Result<Outcome, Outcome> {
        let Some(request) = &call.request else { return Err(closed("the chain expects HTTP, the call is not")) };
        let path = match normalize(&request.path, &manager.path, manager.merge_slashes) {
            Normalized::Path(path) => path.into_owned(),
            Normalized::Redirect(location) => return Err(Outcome::Redirected { status: 307, location }),
            Normalized::Reject(reason) => return Err(answered(400, reason)),
        };
        let head = RequestHead {
            method: &request.method,
            authority: &request.authority,
            scheme: &request.scheme,
            path_and_query: &path,
            headers: &request.headers,
            content_length: request.headers.get(::http::header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok()),
        };
        let table = match &manager.routes {
            RouteSource::Inline(table) => table,
            RouteSource::Scoped(scoped) => {
                let target = scoped.find(self, &request.headers).ok_or_else(|| answered(404, "the request is in no scope"))?;
                target.table(self).ok_or_else(|| answered(404, "the routes of the scope have not arrived"))?
            }
            RouteSource::Discovered(id) => self.route_table(*id).ok_or_else(|| answered(404, "the route table has not arrived"))?,
        };
        let Some(host) = table.virtual_host(&request.authority) else {
            return Err(answered(404, &format!("no virtual host of {} serves {}", table.name, request.authority)));
        };
        steps.push(Step::VirtualHost { table: table.name.to_string(), name: host.name.to_string() });
        if host.settings.require_tls.redirects(false) && request.scheme != "https" {
            return Ok(Outcome::Redirected { status: 301, location: format!("https://{}{path}", request.authority) });
        }
        let route = choose_route(call, table, host, &head, steps)?;
        http_policies(call, manager, host, route, &head, steps)?;
        match &route.action {
            Action::Forward(forward) => self.forward(call, forward, &head, steps),
            Action::Redirect(redirect) => {
                Ok(Outcome::Redirected { status: redirect.status.as_u16(), location: redirect.location(&route.matches, &head) })
            }
            Action::NonForwarding | Action::ToHttps => Ok(answered(404, "the route does not forward")),
            Action::Direct(direct) => Ok(answered(direct.status.as_u16(), "the route answers by itself")),
        }
    }

    fn forward(&self, call: &Call, forward: &Forward, head: &RequestHead<'_>, steps: &mut Vec<Step>) -> Result<Outcome, Outcome> {
        #[allow(clippy::cast_possible_truncation)] // A share is taken of the low bits.
        let roll = call.roll as u32;
        let text = |header: &HeaderName| head.headers.get(header).and_then(|v| v.to_str().ok()).unwrap_or_default();
        for mirror in forward.mirrors.iter().filter(|m| m.fraction.hits(roll)) {
            let cluster = match &mirror.cluster {
                NamedCluster::Fixed(id) => self.name_of(*id),
                NamedCluster::Header(header) => text(header).to_owned(),
            };
            steps.push(Step::Mirrored { cluster });
        }
        let missing = |name: &str| answered(forward.cluster_not_found_status.as_u16(), &format!("cluster {name} is unknown"));
        let by_header = |header: &HeaderName| self.cluster_named(text(header)).map(|(id, _)| id).ok_or_else(|| missing(text(header)));
        let mut criteria = forward.metadata_match.as_deref();
        let id = match &forward.cluster {
            ClusterChoice::One(id) => *id,
            ClusterChoice::Weighted(weighted) => {
                let entry = weighted.choose(call.roll).ok_or_else(|| answered(503, "no weights"))?;
                criteria = entry.metadata_match.as_deref();
                match &entry.cluster {
                    NamedCluster::Fixed(id) => *id,
                    NamedCluster::Header(header) => by_header(header)?,
                }
            }
            ClusterChoice::Header(header) => by_header(header)?,
        };
        if self.cluster(id).is_none() {
            return Err(missing(&self.name_of(id)));
        }
        self.cluster_step(id, criteria, steps)
    }

    /// The first of several clusters that has a usable host.
    fn member_step(
        &self,
        name: &str,
        members: &[ClusterId],
        criteria: Option<&Criteria>,
        steps: &mut Vec<Step>,
    ) -> Result<Outcome, Outcome> {
        let plain = |id: &&ClusterId| self.cluster(**id).is_some_and(|c| !matches!(c.config.discovery, Discovery::Aggregate(_)));
        let found = members.iter().filter(plain).find_map(|id| self.cluster_step(*id, criteria, steps).ok());
        found.ok_or_else(|| answered(503, &format!("no healthy upstream in {name}")))
    }

    fn cluster_step(&self, id: ClusterId, criteria: Option<&Criteria>, steps: &mut Vec<Step>) -> Result<Outcome, Outcome> {
        let name = self.name_of(id);
        steps.push(Step::Cluster { name: name.clone() });
        let Some(cluster) = self.cluster(id) else { return Err(closed(&format!("cluster {name} is unknown"))) };
        if matches!(cluster.config.discovery, Discovery::OriginalDst(_) | Discovery::DynamicForwardProxy(_)) {
            return Ok(Outcome::PassedThrough { cluster: name });
        }
        if let Discovery::Aggregate(members) = &cluster.config.discovery {
            return self.member_step(&name, members, criteria, steps);
        }
        let transport = |index: u32| {
            cluster.config.transports.get(index as usize).map(|t| match (&t.tls, &*t.name) {
                (None, _) => "plaintext".to_owned(),
                (Some(_), "") => "TLS".to_owned(),
                (Some(_), name) => format!("TLS ({name})"),
            })
        };
        let hosts = cluster.hosts.asked(&cluster.config.balance, criteria);
        for host in &hosts {
            let transport = transport(host.transport).unwrap_or_default();
            steps.push(Step::Endpoint { address: shown(&host.address), healthy: host.is_healthy(), transport });
        }
        if none_usable(&hosts, cluster.config.balance.panic_threshold_percent) {
            return Err(answered(503, &format!("no healthy upstream in {name}")));
        }
        Ok(Outcome::Forwarded { cluster: name })
    }

    fn name_of(&self, id: ClusterId) -> String {
        match self.cluster(id) {
            Some(cluster) => cluster.config.name.to_string(),
            None => self.cluster_ids.iter().find(|(_, i)| **i == id).map(|(n, _)| n.to_string()).unwrap_or_default(),
        }
    }
}

/// With panic allowed, unhealthy hosts are used when too few are healthy.
fn none_usable(hosts: &[&Arc<Host>], panic_threshold: u32) -> bool {
    hosts.is_empty() || (panic_threshold == 0 && !hosts.iter().any(|h| h.is_healthy()))
}

fn connection(listener: &Listener, call: &Call) -> ConnectionInfo {
    let port = call.destination.port();
    let sees_tls = call.tls && listener.inspectors.tls.as_ref().is_some_and(|g| g.applies_to(port));
    let sees_http = !call.tls && listener.inspectors.http.as_ref().is_some_and(|g| g.applies_to(port));
    let protocols: Vec<Arc<[u8]>> = match &call.request {
        _ if sees_tls => call.alpn.iter().map(|p| p.as_bytes().into()).collect(),
        Some(request) if sees_http => vec![if request.http2 { b"h2c".as_slice() } else { b"http/1.1".as_slice() }.into()],
        _ => Vec::new(),
    };
    ConnectionInfo {
        destination: call.destination,
        source: call.source,
        direct_source: call.source,
        server_name: call.sni.as_deref().filter(|_| sees_tls).map(Into::into),
        application_protocols: protocols,
        transport_protocol: if sees_tls { "tls" } else { "raw_buffer" },
    }
}

fn facts<'a>(call: &'a Call, head: Option<&'a RequestHead<'a>>) -> Facts<'a> {
    Facts {
        head,
        destination: call.destination,
        direct_remote: call.source.ip(),
        connection_remote: call.source.ip(),
        remote: call.source.ip(),
        source_port: call.source.port(),
        peer: call.peer.as_ref(),
        server_name: call.sni.as_deref(),
        metadata: None,
    }
}

fn choose_route<'a>(
    call: &Call,
    table: &RouteTable,
    host: &'a VirtualHost,
    head: &RequestHead<'_>,
    steps: &mut Vec<Step>,
) -> Result<&'a Arc<Route>, Outcome> {
    for (index, route) in host.routes.iter().enumerate() {
        match route.matches.check(head, head.path(), None, call.roll) {
            Ok(()) => {
                let provenance = route.provenance.as_deref().map(str::to_owned);
                steps.push(Step::Route { index, name: route.name.to_string(), provenance });
                return Ok(route);
            }
            Err(mismatch) => {
                let name = if route.name.is_empty() { format!("#{index}") } else { route.name.to_string() };
                steps.push(Step::Passed { route: name, reason: reason(route, mismatch, head) });
            }
        }
    }
    Err(answered(404, &format!("no route of virtual host {} in {} matches", host.name, table.name)))
}

fn reason(route: &Route, mismatch: Mismatch, head: &RequestHead<'_>) -> String {
    match mismatch {
        Mismatch::Path => format!("path {} does not match {:?}", head.path(), route.matches.path),
        Mismatch::Header(index) => match route.matches.headers.get(index) {
            Some(matcher) => format!("header {:?} does not match {:?}", matcher.name, matcher.predicate),
            None => "a header does not match".to_owned(),
        },
        Mismatch::Query(index) => match route.matches.query.get(index) {
            Some(matcher) => format!("query parameter {} does not match", matcher.name),
            None => "a query parameter does not match".to_owned(),
        },
        Mismatch::Cookie(index) => match route.matches.cookies.get(index) {
            Some(matcher) => format!("cookie {} does not match", matcher.name),
            None => "a cookie does not match".to_owned(),
        },
        Mismatch::Metadata(_) => "what filters found out does not match".to_owned(),
        Mismatch::NotGrpc => "the request is not gRPC".to_owned(),
        Mismatch::Fraction => "the roll falls outside of the route's share".to_owned(),
    }
}

fn http_policies(
    call: &Call,
    manager: &HttpConnectionManager,
    host: &VirtualHost,
    route: &Route,
    head: &RequestHead<'_>,
    steps: &mut Vec<Step>,
) -> Result<(), Outcome> {
    for (filter, name) in manager.filters.iter().zip(&manager.filter_names) {
        let HttpFilter::Rbac(rbac) = filter else { continue };
        let overriding = |o: &FilterOverrides| o.of(name).and_then(|p| p.rbac.clone());
        let own = overriding(&route.per_route).or_else(|| overriding(&host.settings.per_route));
        let rbac = match own.as_deref() {
            Some(RbacPerRoute::Disabled) => continue,
            Some(RbacPerRoute::Override(other)) => other,
            None => rbac,
        };
        let verdict = rbac.evaluate(&facts(call, Some(head)));
        steps.push(Step::Authorized { policy: verdict.policy.as_deref().map(str::to_owned) });
        if !verdict.allowed {
            return Err(answered(403, &denied(verdict.policy.as_deref())));
        }
    }
    Ok(())
}

fn denied(policy: Option<&str>) -> String {
    match policy {
        Some(policy) => format!("RBAC: access denied by {policy}"),
        None => "RBAC: access denied, no policy allows it".to_owned(),
    }
}

fn closed(reason: &str) -> Outcome {
    Outcome::Closed { reason: reason.to_owned() }
}

fn answered(status: u16, reason: &str) -> Outcome {
    Outcome::Answered { status, reason: reason.to_owned() }
}

fn shown(address: &Address) -> String {
    address.to_string()
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in &self.steps {
            writeln!(f, "{step}")?;
        }
        write!(f, "{}", self.outcome)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listener { name } => write!(f, "listener      {name}"),
            Self::HandedOver { to } => write!(f, "handed over   {to}"),
            Self::Chain { name, is_default, tls } => {
                write!(f, "filter chain  {name}{}{}", if *tls { " (TLS)" } else { "" }, if *is_default { " (default)" } else { "" })
            }
            Self::Authorized { policy: Some(policy) } => write!(f, "policy        {policy} matches"),
            Self::Authorized { policy: None } => write!(f, "policy        none matches"),
            Self::VirtualHost { table, name } => write!(f, "virtual host  {name} of {table}"),
            Self::Passed { route, reason } => write!(f, "  passed over {route}: {reason}"),
            Self::Route { index, name, provenance } => {
                write!(f, "route         {}", if name.is_empty() { format!("#{index}") } else { name.clone() })?;
                provenance.as_ref().map_or(Ok(()), |p| write!(f, " from {p}"))
            }
            Self::Cluster { name } => write!(f, "cluster       {name}"),
            Self::Endpoint { address, healthy, transport } => {
                write!(f, "  endpoint    {address} {transport}{}", if *healthy { "" } else { " (unhealthy)" })
            }
            Self::Mirrored { cluster } => write!(f, "mirrored to   {cluster}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Forwarded { cluster } => write!(f, "=> forwarded to {cluster}"),
            Self::PassedThrough { cluster } => write!(f, "=> passed through to its destination by {cluster}"),
            Self::Redirected { status, location } => write!(f, "=> {status} redirect to {location}"),
            Self::Answered { status, reason } => write!(f, "=> {status}: {reason}"),
            Self::Closed { reason } => write!(f, "=> connection closed: {reason}"),
        }
    }
}
