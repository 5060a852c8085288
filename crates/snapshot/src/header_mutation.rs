//! The header mutation filter, compiled.
use std::sync::Arc;

use ::http::HeaderMap;

use crate::header::HeaderMutations;
use crate::matcher::StringMatcher;

/// Envoy `HeaderMutation`.
#[derive(Debug)]
pub struct HeaderMutation {
    pub mutations: Arc<Mutations>,
    pub most_specific_wins: bool,
}

/// Changes in their order.
#[derive(Debug, Default)]
pub struct Mutations {
    pub request: Vec<Edit>,
    pub response: Vec<Edit>,
    pub request_trailers: Vec<Edit>,
    pub response_trailers: Vec<Edit>,
}

/// One change.
#[derive(Debug)]
pub enum Edit {
    Change(HeaderMutations),
    /// Goes by the name.
    RemoveMatching(StringMatcher),
}

impl Edit {
    /// Takes off what it removes by matching.
    pub fn remove_from(&self, map: &mut HeaderMap) {
        let Self::RemoveMatching(matcher) = self else { return };
        let names: Vec<_> = map.keys().filter(|name| matcher.matches(name.as_str())).cloned().collect();
        for name in names {
            map.remove(name);
        }
    }
}
