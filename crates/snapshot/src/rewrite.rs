//! Rewrites of paths and the targets of redirects, as text in and text out.
use std::borrow::Cow;

use crate::lookup::without_port;
use crate::route::{PathMatch, PathRewrite, Redirect, RedirectPath, RequestHead, RouteMatch};

/// Path, then query and fragment with their mark.
fn split(path_and_query: &str) -> (&str, &str) {
    path_and_query.split_at(path_and_query.find(['?', '#']).unwrap_or(path_and_query.len()))
}

impl RouteMatch {
    /// How much of the path this match stands for, which a prefix rewrite replaces.
    fn matched<'a>(&self, path: &'a str) -> &'a str {
        match &self.path {
            PathMatch::Prefix(text) | PathMatch::Exact(text) | PathMatch::PathSeparatedPrefix(text) => path.get(text.len()..).unwrap_or(""),
            // An expression matched all of it.
            PathMatch::Regex(_) | PathMatch::Template(_) => "",
            PathMatch::Connect => path,
        }
    }

    fn replaced(&self, path: &str, prefix: &str) -> String {
        let rest = self.matched(path);
        // A separated prefix cut down to `/` would leave `//`.
        let rest = if matches!(self.path, PathMatch::PathSeparatedPrefix(_)) && prefix.ends_with('/') {
            rest.trim_start_matches('/')
        } else {
            rest
        };
        [prefix, rest].concat()
    }
}

impl PathRewrite {
    /// The path and query to send on. The query is kept; `None` where nothing is left of the path, which stays then.
    pub fn apply(&self, matched: &RouteMatch, path_and_query: &str) -> Option<String> {
        let (path, query) = split(path_and_query);
        let rewritten = match self {
            Self::Prefix(prefix) => matched.replaced(path, prefix),
            Self::Regex { pattern, substitution } => pattern.replace_all(path, &**substitution).into_owned(),
            Self::Full(path) => path.to_string(),
            Self::Template(rewrite) => match &matched.path {
                PathMatch::Template(template) => rewrite.apply(template, path)?,
                _ => return None,
            },
        };
        (!rewritten.is_empty()).then(|| rewritten + query)
    }
}

impl Redirect {
    /// The `location` of the redirect.
    pub fn location(&self, matched: &RouteMatch, head: &RequestHead<'_>) -> String {
        let scheme = match &self.scheme {
            _ if self.https => "https",
            Some(scheme) => scheme,
            None => head.scheme,
        };
        let mut host = self.host.as_deref().unwrap_or(head.authority);
        if self.host.is_none() && (self.port.is_some() || is_default_port(head.scheme, scheme, host)) {
            host = without_port(host);
        }
        let port = self.port.map(|p| format!(":{p}")).unwrap_or_default();
        format!("{scheme}://{host}{port}{}", self.path(matched, head.path_and_query))
    }

    fn path<'a>(&'a self, matched: &RouteMatch, path_and_query: &'a str) -> Cow<'a, str> {
        let (path, query) = split(path_and_query);
        let query = if self.strip_query { "" } else { query };
        match &self.path {
            RedirectPath::Same => if self.strip_query { path } else { path_and_query }.into(),
            // Its own query takes precedence over the request's.
            RedirectPath::Full(full) if full.contains('?') => Cow::Borrowed(full),
            RedirectPath::Full(full) => [&**full, query].concat().into(),
            RedirectPath::Prefix(prefix) => (matched.replaced(path, prefix) + query).into(),
            RedirectPath::Regex { pattern, substitution } => {
                let replaced = pattern.replace_all(path, &**substitution);
                // The path stays where nothing is left of it.
                [if replaced.is_empty() { path } else { &replaced }, query].concat().into()
            }
        }
    }
}

/// A change of scheme drops the port that was the default of the old one: it would be wrong for the new.
fn is_default_port(from: &str, to: &str, host: &str) -> bool {
    from != to && ((from == "http" && host.ends_with(":80")) || (from == "https" && host.ends_with(":443")))
}

#[cfg(test)]
mod tests;
