//! Trees of matchers (xDS `Matcher`): from facts about a request, a connection or a host to the action that is meant for it.
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use crate::authorize::Facts;
use crate::matcher::{Cidr, HeaderKey, StringMatcher};

/// A tree whose leaves are actions, and that looks at inputs of one kind.
#[derive(Debug)]
pub struct MatchTree<A, I = Input> {
    pub branch: Branch<A, I>,
    /// What holds when no branch does.
    pub otherwise: Option<OnMatch<A, I>>,
}

#[derive(Debug)]
pub enum OnMatch<A, I> {
    Tree(Box<MatchTree<A, I>>),
    Action(A),
}

#[derive(Debug)]
pub enum Branch<A, I> {
    /// Nothing but what holds otherwise.
    None,
    /// The first that holds and leads to an action.
    List(Vec<(Predicate<I>, OnMatch<A, I>)>),
    Exact(I, HashMap<Box<str>, OnMatch<A, I>>),
    /// The longest that holds and leads to an action; longest first.
    Prefix(I, Vec<(Box<str>, OnMatch<A, I>)>),
}

#[derive(Debug)]
pub enum Predicate<I> {
    One(I, Test),
    Or(Vec<Predicate<I>>),
    And(Vec<Predicate<I>>),
    Not(Box<Predicate<I>>),
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
        self.find_by(&|input: &Input| input.value(facts))
    }
}

impl<A, I> MatchTree<A, I> {
    /// The action where inputs have these values; one without is not there.
    pub fn find_by<'a>(&self, value: &impl Fn(&I) -> Option<Cow<'a, str>>) -> Option<&A> {
        let found = match &self.branch {
            Branch::None => None,
            Branch::List(list) => list.iter().find_map(|(predicate, on)| if predicate.holds(value) { on.find_by(value) } else { None }),
            Branch::Exact(input, map) => value(input).and_then(|text| map.get(&*text)).and_then(|on| on.find_by(value)),
            // One whose tree has nothing for the rest leaves it to the shorter ones.
            Branch::Prefix(input, list) => value(input).and_then(|text| {
                let mut fits = list.iter().filter(|(prefix, _)| text.starts_with(&**prefix));
                fits.find_map(|(_, on)| on.find_by(value))
            }),
        };
        found.or_else(|| self.otherwise.as_ref()?.find_by(value))
    }
}

impl<A, I> OnMatch<A, I> {
    fn find_by<'a>(&self, value: &impl Fn(&I) -> Option<Cow<'a, str>>) -> Option<&A> {
        match self {
            Self::Tree(tree) => tree.find_by(value),
            Self::Action(action) => Some(action),
        }
    }
}

impl<I> Predicate<I> {
    fn holds<'a>(&self, value: &impl Fn(&I) -> Option<Cow<'a, str>>) -> bool {
        match self {
            // What is not there matches nothing.
            Self::One(input, test) => value(input).is_some_and(|value| test.holds(&value)),
            Self::Or(any) => any.iter().any(|p| p.holds(value)),
            Self::And(all) => all.iter().all(|p| p.holds(value)),
            Self::Not(other) => !other.holds(value),
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
