//! Trees of matchers (xDS `Matcher`): from facts about a request or connection to the action that is meant for it.
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::authorize::Facts;
use crate::matcher::{Cidr, HeaderKey, StringMatcher};

/// A tree whose leaves are actions.
#[derive(Debug)]
pub struct MatchTree<A> {
    pub branch: Branch<A>,
    /// What holds when no branch does.
    pub otherwise: Option<OnMatch<A>>,
}

#[derive(Debug)]
pub enum OnMatch<A> {
    Tree(Box<MatchTree<A>>),
    Action(A),
}

#[derive(Debug)]
pub enum Branch<A> {
    /// Nothing but what holds otherwise.
    None,
    /// The first that holds and leads to an action.
    List(Vec<(Predicate, OnMatch<A>)>),
    Exact(Input, HashMap<Box<str>, OnMatch<A>>),
    /// Longest first.
    Prefix(Input, Vec<(Box<str>, OnMatch<A>)>),
}

#[derive(Debug)]
pub enum Predicate {
    One(Input, Test),
    Or(Vec<Predicate>),
    And(Vec<Predicate>),
    Not(Box<Predicate>),
}

/// What is looked at.
#[derive(Debug)]
pub enum Input {
    Header(HeaderKey),
    DestinationIp,
    DestinationPort,
    SourceIp,
    SourcePort,
    DirectSourceIp,
    ServerName,
    UriSan,
    DnsSan,
    Subject,
    Metadata { namespace: Arc<str>, path: Vec<Box<str>> },
}

#[derive(Debug)]
pub enum Test {
    Text(StringMatcher),
    Ip(Vec<Cidr>),
}

impl<A> MatchTree<A> {
    /// The action for these facts; `None` where the tree has none.
    pub fn find(&self, facts: &Facts<'_>) -> Option<&A> {
        let found = match &self.branch {
            Branch::None => None,
            Branch::List(list) => list.iter().find_map(|(predicate, on)| if predicate.holds(facts) { on.find(facts) } else { None }),
            Branch::Exact(input, map) => input.value(facts).and_then(|value| map.get(&*value)).and_then(|on| on.find(facts)),
            Branch::Prefix(input, list) => input.value(facts).and_then(|value| {
                let (_, on) = list.iter().find(|(prefix, _)| value.starts_with(&**prefix))?;
                on.find(facts)
            }),
        };
        found.or_else(|| self.otherwise.as_ref()?.find(facts))
    }
}

impl<A> OnMatch<A> {
    fn find(&self, facts: &Facts<'_>) -> Option<&A> {
        match self {
            Self::Tree(tree) => tree.find(facts),
            Self::Action(action) => Some(action),
        }
    }
}

impl Predicate {
    fn holds(&self, facts: &Facts<'_>) -> bool {
        match self {
            // What is not there matches nothing.
            Self::One(input, test) => input.value(facts).is_some_and(|value| test.holds(&value)),
            Self::Or(any) => any.iter().any(|p| p.holds(facts)),
            Self::And(all) => all.iter().all(|p| p.holds(facts)),
            Self::Not(other) => !other.holds(facts),
        }
    }
}

impl Test {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Text(matcher) => matcher.matches(value),
            Self::Ip(blocks) => value.parse().is_ok_and(|address| blocks.iter().any(|block| block.contains(address))),
        }
    }
}

impl Input {
    fn value<'a>(&self, facts: &Facts<'a>) -> Option<Cow<'a, str>> {
        let names = |names: &[String]| Some(names.join(",")).filter(|all| !all.is_empty()).map(Cow::Owned);
        match self {
            Self::Header(key) => crate::matching::value_of(key, facts.head?),
            Self::DestinationIp => Some(facts.destination.ip().to_string().into()),
            Self::DestinationPort => Some(facts.destination.port().to_string().into()),
            Self::SourceIp => Some(facts.remote.to_string().into()),
            Self::SourcePort => Some(facts.source_port.to_string().into()),
            Self::DirectSourceIp => Some(facts.direct_remote.to_string().into()),
            Self::ServerName => facts.server_name.filter(|name| !name.is_empty()).map(Cow::Borrowed),
            Self::UriSan => names(&facts.peer?.uri_sans),
            Self::DnsSan => names(&facts.peer?.dns_sans),
            Self::Subject => Some(facts.peer?.subject.as_str()).filter(|s| !s.is_empty()).map(Cow::Borrowed),
            Self::Metadata { namespace, path } => match facts.metadata?.get(namespace, path)? {
                serde_json::Value::String(text) => Some(Cow::Borrowed(text.as_str())),
                _ => None,
            },
        }
    }
}
