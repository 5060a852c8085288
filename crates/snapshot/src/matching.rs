//! Matching on a request's path: strings, headers, query parameters, routes. Pure and without allocation
//! in the common case.
use std::borrow::Cow;

use http::HeaderMap;

use crate::matcher::{CookieMatcher, HeaderKey, HeaderMatcher, HeaderPredicate, QueryMatcher, QueryValue, StringMatcher, ValueMatcher};
use crate::metadata::Metadata;
use crate::route::{PathMatch, RequestHead, RouteMatch, WeightedCluster, WeightedClusters};

impl StringMatcher {
    /// Compiled text is lower case already where case does not count.
    pub fn matches(&self, value: &str) -> bool {
        let (value, text) = (value.as_bytes(), self.text());
        match self {
            Self::Exact { ignore_case, .. } => same(value, text, *ignore_case),
            Self::Prefix { ignore_case, .. } => value.get(..text.len()).is_some_and(|start| same(start, text, *ignore_case)),
            Self::Suffix { ignore_case, .. } => {
                value.len().checked_sub(text.len()).and_then(|at| value.get(at..)).is_some_and(|end| same(end, text, *ignore_case))
            }
            Self::Contains { ignore_case, .. } => text.is_empty() || value.windows(text.len()).any(|part| same(part, text, *ignore_case)),
            // The value was text, so it still is.
            Self::Regex(regex) => std::str::from_utf8(value).is_ok_and(|v| regex.is_match(v)),
        }
    }

    fn text(&self) -> &[u8] {
        match self {
            Self::Exact { text, .. } | Self::Prefix { text, .. } | Self::Suffix { text, .. } | Self::Contains { text, .. } => {
                text.as_bytes()
            }
            Self::Regex(_) => b"",
        }
    }
}

fn same(a: &[u8], b: &[u8], ignore_case: bool) -> bool {
    if ignore_case { a.eq_ignore_ascii_case(b) } else { a == b }
}

/// A header's value as routing sees it: several values joined by commas, as Envoy does.
/// Bytes that are not UTF-8 are replaced, so that they match no plain text.
fn joined<'a>(headers: &'a HeaderMap, name: &http::HeaderName) -> Option<Cow<'a, str>> {
    let mut values = headers.get_all(name).iter();
    let first = String::from_utf8_lossy(values.next()?.as_bytes());
    match values.next() {
        None => Some(first),
        Some(second) => {
            let mut all = first.into_owned();
            for value in std::iter::once(second).chain(values) {
                all.push(',');
                all.push_str(&String::from_utf8_lossy(value.as_bytes()));
            }
            Some(Cow::Owned(all))
        }
    }
}

/// A header's value, or a pseudo header's.
pub(crate) fn value_of<'a>(key: &HeaderKey, head: &RequestHead<'a>) -> Option<Cow<'a, str>> {
    match key {
        HeaderKey::Name(name) => joined(head.headers, name),
        HeaderKey::ContentLength => head.content_length.map(|length| Cow::Owned(length.to_string())),
        // A CONNECT has none.
        HeaderKey::Path if head.path_and_query.is_empty() => None,
        pseudo => Some(Cow::Borrowed(pseudo_header(pseudo, head))),
    }
}

impl HeaderMatcher {
    /// Whether the request's header matches, several values being joined by commas.
    ///
    /// Several values match by any of them, or as one list (Envoy since 1.39).
    ///
    /// A missing header matches only a demand for its absence (Envoy: `invert_match` does not turn a
    /// missing header into a match, unless it is treated as empty).
    pub fn matches(&self, head: &RequestHead<'_>) -> bool {
        match value_of(&self.name, head) {
            _ if self.holds_for_one_of_several(head) => !self.invert,
            Some(value) => self.predicate.holds(&value) != self.invert,
            None => self.matches_missing(),
        }
    }

    fn holds_for_one_of_several(&self, head: &RequestHead<'_>) -> bool {
        let HeaderKey::Name(name) = &self.name else { return false };
        let mut values = head.headers.get_all(name).iter();
        let several = values.next().is_some() && values.next().is_some();
        several && head.headers.get_all(name).iter().any(|v| self.predicate.holds(&String::from_utf8_lossy(v.as_bytes())))
    }

    /// Whether one of the values matches, each looked at by itself: RBAC must not let a second value hide a first.
    pub fn matches_any_value(&self, head: &RequestHead<'_>) -> bool {
        let HeaderKey::Name(name) = &self.name else { return self.matches(head) };
        let mut values = head.headers.get_all(name).iter().peekable();
        if values.peek().is_none() {
            return self.matches_missing();
        }
        values.any(|v| self.predicate.holds(&String::from_utf8_lossy(v.as_bytes()))) != self.invert
    }

    /// Whether it matches where there is no such header.
    pub fn matches_missing(&self) -> bool {
        match (&self.predicate, self.missing_as_empty) {
            (HeaderPredicate::Present(present), _) => *present == self.invert,
            (predicate, true) => predicate.holds("") != self.invert,
            (_, false) => false,
        }
    }
}

fn pseudo_header<'a>(key: &HeaderKey, head: &RequestHead<'a>) -> &'a str {
    match key {
        HeaderKey::Method => head.method,
        HeaderKey::Path => head.path_and_query,
        HeaderKey::Authority => head.authority,
        HeaderKey::Scheme => head.scheme,
        HeaderKey::Name(_) | HeaderKey::ContentLength => "",
    }
}

impl HeaderPredicate {
    fn holds(&self, value: &str) -> bool {
        match self {
            Self::Present(present) => *present,
            Self::String(matcher) => matcher.matches(value),
            Self::Range { start, end } => value.parse::<i64>().is_ok_and(|n| (*start..*end).contains(&n)),
        }
    }
}

/// The parameters of a query as they stand, not percent-decoded (as Envoy's router reads them).
pub fn query_parameters(path_and_query: &str) -> impl Iterator<Item = (&str, &str)> {
    let without_fragment = path_and_query.split('#').next().unwrap_or_default();
    let query = without_fragment.split_once('?').map_or("", |(_, query)| query);
    query.split('&').filter(|p| !p.is_empty()).map(|p| p.split_once('=').unwrap_or((p, "")))
}

impl QueryMatcher {
    /// Of a repeated parameter the first value counts.
    pub fn matches(&self, path_and_query: &str) -> bool {
        let value = query_parameters(path_and_query).find(|(name, _)| *name == &*self.name).map(|(_, value)| value);
        match (&self.value, value) {
            (QueryValue::Present, value) => value.is_some(),
            (QueryValue::Absent, value) => value.is_none(),
            (QueryValue::Matches(matcher), value) => value.is_some_and(|value| matcher.matches(value)),
        }
    }
}

/// The value of a cookie, without its quotes (Envoy `Utility::parseCookieValue`).
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(http::header::COOKIE);
    let pairs = all.iter().filter_map(|v| v.to_str().ok()).flat_map(|v| v.split(';'));
    let (_, value) = pairs.filter_map(|pair| pair.trim().split_once('=')).find(|(key, _)| *key == name)?;
    Some(value.strip_prefix('"').and_then(|v| v.strip_suffix('"')).unwrap_or(value))
}

impl CookieMatcher {
    /// A missing cookie matches only where the matcher is inverted.
    pub fn matches(&self, headers: &HeaderMap) -> bool {
        cookie(headers, &self.name).is_some_and(|value| self.value.matches(value)) != self.invert
    }
}

impl ValueMatcher {
    pub fn matches(self, value: u64) -> bool {
        match self {
            Self::Equal(n) => value == n,
            Self::GreaterOrEqual(n) => value >= n,
            Self::LessOrEqual(n) => value <= n,
            Self::NotEqual(n) => value != n,
        }
    }
}

/// Why a route does not match, in the order in which conditions are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mismatch {
    Path,
    /// Index of the header matcher.
    Header(usize),
    /// Index of the query matcher.
    Query(usize),
    /// Index of the cookie matcher.
    Cookie(usize),
    /// Index of the metadata matcher.
    Metadata(usize),
    NotGrpc,
    /// The die fell outside of the route's share.
    Fraction,
}

impl RouteMatch {
    /// Whether the route takes the request. `roll` is any uniformly distributed number.
    pub fn matches(&self, head: &RequestHead<'_>, roll: u64) -> bool {
        self.check(head, head.path(), None, roll).is_ok()
    }

    /// [`RouteMatch::matches`] with the first reason against.
    ///
    /// # Errors
    /// The condition that does not hold.
    pub fn check(&self, head: &RequestHead<'_>, path: &str, metadata: Option<&Metadata>, roll: u64) -> Result<(), Mismatch> {
        if !self.path_matches(head, path) {
            return Err(Mismatch::Path);
        }
        if let Some(index) = self.headers.iter().position(|h| !h.matches(head)) {
            return Err(Mismatch::Header(index));
        }
        if let Some(index) = self.query.iter().position(|q| !q.matches(head.path_and_query)) {
            return Err(Mismatch::Query(index));
        }
        if let Some(index) = self.cookies.iter().position(|c| !c.matches(head.headers)) {
            return Err(Mismatch::Cookie(index));
        }
        if let Some(index) = self.metadata.iter().position(|m| !m.matches(metadata)) {
            return Err(Mismatch::Metadata(index));
        }
        if self.grpc_only && !is_grpc(head.headers) {
            return Err(Mismatch::NotGrpc);
        }
        #[allow(clippy::cast_possible_truncation)] // A share is taken of the low bits.
        match self.fraction {
            Some(fraction) if !fraction.hits(roll as u32) => Err(Mismatch::Fraction),
            _ => Ok(()),
        }
    }

    fn path_matches(&self, head: &RequestHead<'_>, path: &str) -> bool {
        // The target of a plain CONNECT is no path: not even a prefix of nothing takes it.
        if path.is_empty() {
            return matches!(self.path, PathMatch::Connect) && head.method == "CONNECT";
        }
        let (path_bytes, ignore_case) = (path.as_bytes(), !self.case_sensitive);
        let starts = |text: &str| path_bytes.get(..text.len()).is_some_and(|start| same(start, text.as_bytes(), ignore_case));
        match &self.path {
            PathMatch::Prefix(prefix) => starts(prefix),
            PathMatch::Exact(exact) => same(path_bytes, exact.as_bytes(), ignore_case),
            PathMatch::Regex(regex) => regex.is_match(path),
            PathMatch::PathSeparatedPrefix(prefix) => starts(prefix) && matches!(path_bytes.get(prefix.len()), None | Some(b'/')),
            PathMatch::Template(template) => template.matches(path),
            PathMatch::Connect => head.method == "CONNECT",
        }
    }
}

/// Whether the content type is gRPC's (`application/grpc`, `application/grpc+proto`).
pub fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(http::header::CONTENT_TYPE).map(http::HeaderValue::as_bytes) else { return false };
    value.strip_prefix(b"application/grpc").is_some_and(|rest| rest.is_empty() || rest.starts_with(b"+"))
}

impl WeightedClusters {
    /// The entry for a roll: any uniformly distributed number.
    pub fn choose(&self, roll: u64) -> Option<&WeightedCluster> {
        let roll = roll.checked_rem(self.total)?;
        self.entries.get(self.entries.partition_point(|e| e.bound <= roll))
    }
}

#[cfg(test)]
mod tests;
