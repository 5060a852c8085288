//! Where tokens stand in a request.
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName};

use super::{MAX_TOKEN_BYTES, Provider};
use crate::header_metadata::cookie;
use crate::matching::query_parameters;

/// A token with the place it was found in.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Token {
    pub(super) text: String,
    pub(super) place: Place,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Header(HeaderName),
    Parameter(Box<str>),
    Cookie,
}

impl Provider {
    /// All tokens in the provider's places; each value of a repeated header counts by itself.
    pub(super) fn tokens(&self, headers: &HeaderMap, path: &str) -> Vec<Token> {
        let mut tokens = Vec::new();
        if self.headers.is_empty() && self.parameters.is_empty() && self.cookies.is_empty() {
            in_header(headers, &AUTHORIZATION, "Bearer ", &mut tokens);
            in_query(path, "access_token", &mut tokens);
            return tokens;
        }
        for header in &self.headers {
            in_header(headers, &header.name, &header.prefix, &mut tokens);
        }
        for name in &self.parameters {
            in_query(path, name, &mut tokens);
        }
        for name in &self.cookies {
            if let Some(value) = cookie(headers, name).filter(|v| !v.is_empty()) {
                push(value, Place::Cookie, &mut tokens);
            }
        }
        tokens
    }
}

/// A token too large to be read is kept as an empty one, which fails: dropping it would make it missing.
fn push(text: &str, place: Place, tokens: &mut Vec<Token>) {
    let text = if text.len() > MAX_TOKEN_BYTES { "" } else { text };
    tokens.push(Token { text: text.to_owned(), place });
}

fn in_header(headers: &HeaderMap, name: &HeaderName, prefix: &str, tokens: &mut Vec<Token>) {
    for value in headers.get_all(name) {
        // As Envoy: the prefix may stand anywhere, and the token ends where its alphabet does.
        let text = String::from_utf8_lossy(value.as_bytes());
        let Some(at) = text.find(prefix) else { continue };
        let in_token = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '=');
        let rest = text.get(at + prefix.len()..).unwrap_or_default().trim_start_matches(|c| !in_token(c));
        let end = rest.find(|c| !in_token(c)).unwrap_or(rest.len());
        push(rest.get(..end).unwrap_or_default(), Place::Header(name.clone()), tokens);
    }
}

fn in_query(path: &str, name: &str, tokens: &mut Vec<Token>) {
    for (_, value) in query_parameters(path).filter(|(key, _)| *key == name) {
        push(value, Place::Parameter(name.into()), tokens);
    }
}

/// The path without a query parameter.
pub(super) fn without_parameter(path: &str, name: &str) -> String {
    let Some((before, query)) = path.split_once('?') else { return path.to_owned() };
    let kept: Vec<&str> = query.split('&').filter(|p| p.split('=').next() != Some(name)).collect();
    if kept.is_empty() { before.to_owned() } else { format!("{before}?{}", kept.join("&")) }
}
