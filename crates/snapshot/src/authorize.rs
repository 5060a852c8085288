//! RBAC: whether a request or connection may go on. A pure function of facts.
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use lateen_identity::PeerIdentity;

use crate::matcher::{Permission, Principal, Rbac, RbacAction, RbacPolicy, RbacRules};
use crate::metadata::Metadata;
use crate::route::RequestHead;

/// What rules may ask about.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// `None` for network filters: rules about requests then match nothing.
    pub head: Option<&'a RequestHead<'a>>,
    /// The address the connection was accepted on, restored to the original destination.
    pub destination: SocketAddr,
    /// The peer of the socket.
    pub direct_remote: IpAddr,
    /// The peer of the connection: that of the socket, or who the PROXY protocol says it is.
    pub connection_remote: IpAddr,
    /// The peer after `x-forwarded-for` or PROXY protocol.
    pub remote: IpAddr,
    /// The port that belongs to `remote`.
    pub source_port: u16,
    /// The verified peer certificate, if the connection is mutual TLS.
    pub peer: Option<&'a PeerIdentity>,
    pub server_name: Option<&'a str>,
    /// What filters found out about the request; `None` for connections.
    pub metadata: Option<&'a Metadata>,
}

impl Facts<'_> {
    /// The request's path; a CONNECT has none, and matches no rule about one.
    fn path(&self) -> Option<&str> {
        self.head.map(RequestHead::path).filter(|path| !path.is_empty())
    }
}

/// The outcome, with the policy that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verdict {
    pub allowed: bool,
    /// The policy that matched. A denial without one means that no ALLOW policy matched.
    pub policy: Option<Arc<str>>,
    /// What access logs are told, where rules are there to log.
    pub log: Option<bool>,
}

impl Rbac {
    /// Whether to let through. `Log` never denies.
    pub fn evaluate(&self, facts: &Facts<'_>) -> Verdict {
        let nothing = || Verdict { allowed: true, policy: None, log: None };
        self.rules.as_ref().map_or_else(nothing, |rules| rules.evaluate(facts))
    }
}

impl RbacRules {
    pub fn evaluate(&self, facts: &Facts<'_>) -> Verdict {
        match self {
            Self::Policies { action, policies } => {
                let policy = policies.iter().find(|p| p.matches(facts)).map(|p| p.name.clone());
                let allowed = match action {
                    RbacAction::Allow => policy.is_some(),
                    RbacAction::Deny => policy.is_none(),
                    RbacAction::Log => true,
                };
                let log = (*action == RbacAction::Log).then_some(policy.is_some());
                Verdict { allowed, policy, log }
            }
            Self::Tree { tree, logs } => {
                let decision = tree.find(facts);
                Verdict {
                    allowed: decision.is_some_and(|d| d.action != RbacAction::Deny),
                    policy: decision.map(|d| d.name.clone()),
                    log: decision.filter(|_| *logs).map(|d| d.action == RbacAction::Log),
                }
            }
        }
    }
}

impl RbacPolicy {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        self.permissions.iter().any(|p| p.matches(facts)) && self.principals.iter().any(|p| p.matches(facts))
    }
}

impl Permission {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|p| p.matches(facts)),
            Self::Or(any) => any.iter().any(|p| p.matches(facts)),
            Self::Not(rule) => !rule.matches(facts),
            Self::Header(matcher) => facts.head.is_some_and(|head| matcher.matches_any_value(head)),
            Self::UrlPath(matcher) => facts.path().is_some_and(|path| matcher.matches(path)),
            Self::DestinationIp(block) => block.contains(facts.destination.ip()),
            Self::DestinationPort(port) => facts.destination.port() == *port,
            Self::DestinationPortRange(range) => range.contains(&facts.destination.port()),
            Self::Metadata(matcher) => matcher.matches(facts.metadata),
            Self::UriTemplate(template) => facts.path().is_some_and(|path| template.matches(path)),
            Self::RequestedServerName(matcher) => matcher.matches(facts.server_name.unwrap_or_default()),
        }
    }
}

impl Principal {
    fn matches(&self, facts: &Facts<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::And(all) => all.iter().all(|p| p.matches(facts)),
            Self::Or(any) => any.iter().any(|p| p.matches(facts)),
            Self::Not(rule) => !rule.matches(facts),
            Self::Authenticated(None) => facts.peer.is_some(),
            Self::Authenticated(Some(matcher)) => facts.peer.is_some_and(|peer| has_name(peer, |name| matcher.matches(name))),
            Self::DirectRemoteIp(block) => block.contains(facts.direct_remote),
            Self::SourceIp(block) => block.contains(facts.connection_remote),
            Self::Metadata(matcher) => matcher.matches(facts.metadata),
            Self::RemoteIp(block) => block.contains(facts.remote),
            Self::Header(matcher) => facts.head.is_some_and(|head| matcher.matches_any_value(head)),
            Self::UrlPath(matcher) => facts.path().is_some_and(|path| matcher.matches(path)),
        }
    }
}

/// Envoy compares the URI names, then the DNS names, then the subject.
fn has_name(peer: &PeerIdentity, matches: impl Fn(&str) -> bool) -> bool {
    peer.uri_sans.iter().chain(&peer.dns_sans).any(|name| matches(name)) || matches(&peer.subject)
}

#[cfg(test)]
mod tests;
