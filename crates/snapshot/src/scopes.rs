//! Scoped routes: the route table of a request is found by a key made of its headers (Envoy `ScopedRoutes`).
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use http::HeaderMap;
use http::header::HeaderName;

use crate::{RouteTable, RouteTableId, Snapshot};

/// Where routes come from that are found by scope.
#[derive(Clone, Debug)]
pub struct ScopedRoutes {
    pub key: ScopeKeyBuilder,
    /// The scopes that the listener lists; `None` for those that are discovered, which all such listeners share.
    pub listed: Option<Arc<Scopes>>,
}

/// Scopes by their keys.
pub type Scopes = HashMap<Box<str>, RouteTarget>;

/// A scope's routes.
#[derive(Clone, Debug)]
pub enum RouteTarget {
    Inline(Arc<RouteTable>),
    /// By the name of the routes.
    Discovered(RouteTableId, Arc<str>),
}

/// How a request's key is made: a fragment of each header, in order.
#[derive(Clone, Debug)]
pub struct ScopeKeyBuilder {
    pub fragments: Vec<HeaderFragment>,
}

/// A part of a header's first value (Envoy `HeaderValueExtractor`).
#[derive(Clone, Debug)]
pub struct HeaderFragment {
    pub name: HeaderName,
    /// Empty: the value is one element.
    pub separator: Box<str>,
    pub element: Element,
}

#[derive(Clone, Debug)]
pub enum Element {
    At(usize),
    /// What follows the separator in the first element with this key; nothing where there is no separator.
    Value {
        key: Box<str>,
        separator: Box<str>,
    },
}

impl HeaderFragment {
    fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        let value = headers.get(&self.name)?.to_str().ok()?;
        let whole = self.separator.is_empty();
        let mut elements = value.split(if whole { "\0" } else { &*self.separator });
        match &self.element {
            Element::At(index) => elements.nth(*index),
            Element::Value { key, separator } => {
                let pair = |element: &'a str| element.split_once(&**separator).unwrap_or((element, ""));
                elements.map(pair).find(|(k, _)| *k == &**key).map(|(_, value)| value)
            }
        }
    }
}

/// Stands between the fragments of a key: no header holds it, nor does a fragment that is configured.
pub(crate) const BETWEEN: char = '\0';

impl ScopeKeyBuilder {
    /// The key of a request; `None` when a header or an element is missing, so that it is in no scope.
    pub fn key<'a>(&self, headers: &'a HeaderMap) -> Option<Cow<'a, str>> {
        if let [only] = self.fragments.as_slice() {
            return only.of(headers).map(Cow::Borrowed);
        }
        let mut key = String::new();
        for (index, fragment) in self.fragments.iter().enumerate() {
            if index > 0 {
                key.push(BETWEEN);
            }
            key.push_str(fragment.of(headers)?);
        }
        Some(Cow::Owned(key))
    }
}

impl ScopedRoutes {
    /// The routes of a request's scope.
    pub fn find<'a>(&'a self, snapshot: &'a Snapshot, headers: &HeaderMap) -> Option<&'a RouteTarget> {
        let key = self.key.key(headers)?;
        self.listed.as_deref().unwrap_or(&snapshot.scopes).get(&*key)
    }
}

impl RouteTarget {
    /// The routes, if they have arrived.
    pub fn table<'a>(&'a self, snapshot: &'a Snapshot) -> Option<&'a Arc<RouteTable>> {
        match self {
            Self::Inline(table) => Some(table),
            Self::Discovered(id, _) => snapshot.route_table(*id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(name: &'static str, separator: &str, element: Element) -> HeaderFragment {
        HeaderFragment { name: HeaderName::from_static(name), separator: separator.into(), element }
    }

    fn value(key: &str) -> Element {
        Element::Value { key: key.into(), separator: "=".into() }
    }

    #[test]
    fn a_key_is_made_of_parts_of_headers_in_order() {
        let mut headers = HeaderMap::new();
        headers.append("x-a", "one;two;k=v=w;k=second;lone".parse().unwrap());
        headers.append("x-a", "another".parse().unwrap());
        headers.insert("x-b", "b".parse().unwrap());
        let key = |fragments: Vec<HeaderFragment>| ScopeKeyBuilder { fragments }.key(&headers).map(Cow::into_owned);
        let cases = [
            (vec![fragment("x-b", "", Element::At(0))], Some("b")),
            (vec![fragment("x-a", ";", Element::At(1))], Some("two")),
            (vec![fragment("x-a", ";", Element::At(5))], None),
            (vec![fragment("x-a", ";", value("k"))], Some("v=w")),
            (vec![fragment("x-a", ";", value("lone"))], Some("")),
            (vec![fragment("x-a", ";", value("none"))], None),
            (vec![fragment("x-none", "", Element::At(0))], None),
            (vec![fragment("x-a", ";", Element::At(0)), fragment("x-b", "", Element::At(0))], Some("one\0b")),
            (vec![fragment("x-a", ";", Element::At(0)), fragment("x-none", "", Element::At(0))], None),
        ];
        for (fragments, expected) in cases {
            let shown = format!("{fragments:?}");
            assert_eq!(key(fragments).as_deref(), expected, "{shown}");
        }
    }
}
