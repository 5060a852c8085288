//! JSON Web Tokens of requests: where they are looked for, what they must claim, what becomes of the claims.
//!
//! Envoy's jwt_authn filter. A pure function of the request and the time; statuses have Envoy's texts.
mod extract;
mod fault;
mod payload;
mod remote;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderName, HeaderValue};
use lateen_identity::jwks::KeySet;
use serde_json::{Value, json};

use crate::matcher::StringMatcher;
use crate::metadata::Metadata;
use crate::route::RouteMatch;
use extract::{Place, Token};
pub use fault::JwtFault;
pub use remote::{Fetching, KeySource, RemoteKeys};

/// The namespace of what this filter writes.
pub const NAMESPACE: &str = "envoy.filters.http.jwt_authn";

/// Tokens larger than this are not read.
const MAX_TOKEN_BYTES: usize = 16 * 1024;

/// Envoy's `JwtAuthentication`.
#[derive(Debug)]
pub struct JwtAuthn {
    /// The first rule whose route matches counts.
    pub rules: Vec<JwtRule>,
    /// For routes that name a requirement.
    pub named: HashMap<Box<str>, Requirement>,
    pub bypass_cors_preflight: bool,
    /// Refusals have no body.
    pub strip_failure_response: bool,
    /// Of all providers, those that are fetched.
    pub remote: Vec<Arc<RemoteKeys>>,
}

#[derive(Debug)]
pub struct JwtRule {
    pub matches: RouteMatch,
    /// `None`: nothing is asked for.
    pub requirement: Option<Requirement>,
}

/// What a route says about the filter.
#[derive(Debug)]
pub enum JwtPerRoute {
    Disabled,
    Named(Box<str>),
}

/// Envoy's `JwtRequirement`.
#[derive(Debug, Clone)]
pub enum Requirement {
    /// A token of this provider, for these audiences instead of the provider's if there are any.
    Provider(Arc<Provider>, Vec<Box<str>>),
    Any(Vec<Requirement>),
    All(Vec<Requirement>),
    /// No token will do, but a wrong one of these providers will not.
    AllowMissing(Vec<Arc<Provider>>),
    /// Anything will do; what is right is used.
    AllowMissingOrFailed(Vec<Arc<Provider>>),
}

/// Envoy's `JwtProvider`.
#[derive(Debug)]
pub struct Provider {
    /// `None` takes every issuer's tokens.
    pub issuer: Option<Box<str>>,
    /// Without the scheme and the last slash; empty takes every audience.
    pub audiences: Vec<Box<str>>,
    /// Whom tokens may be about; `None` takes everyone.
    pub subjects: Option<StringMatcher>,
    /// How long a token may still be good; one without an end is refused where there is a limit.
    pub max_lifetime: Option<Duration>,
    pub keys: Keys,
    /// The token goes on to the upstream.
    pub forward: bool,
    pub headers: Vec<TokenHeader>,
    pub parameters: Vec<Box<str>>,
    pub cookies: Vec<Box<str>>,
    pub payload_header: Option<HeaderName>,
    pub pad_payload_header: bool,
    pub payload_key: Option<Box<str>>,
    pub header_key: Option<Box<str>>,
    /// Where metadata tells why a token was refused.
    pub failure_key: Option<Box<str>>,
    /// There is no other provider: what is wrong with a token of nobody's, or that there is none, is told for it.
    pub alone: bool,
    /// Claims that become lists in metadata, split at spaces.
    pub space_delimited: Vec<Box<str>>,
    /// Seconds.
    pub clock_skew: u64,
    pub claim_headers: Vec<ClaimHeader>,
    pub clear_route_cache: bool,
}

/// What signatures are checked with.
#[derive(Debug)]
pub enum Keys {
    Local(KeySet),
    Remote(Arc<RemoteKeys>),
}

impl Keys {
    fn verify(&self, token: &str) -> Result<(), JwtFault> {
        match self {
            Self::Local(keys) => Ok(keys.verify(token)?),
            Self::Remote(keys) => keys.verify(token),
        }
    }
}

/// A header that may hold a token, after a prefix.
#[derive(Debug)]
pub struct TokenHeader {
    pub name: HeaderName,
    pub prefix: Box<str>,
}

/// A claim, by its path, that is passed on as a header.
#[derive(Debug)]
pub struct ClaimHeader {
    pub name: HeaderName,
    pub path: Vec<Box<str>>,
}

/// The parts of a request that the filter reads and changes.
#[derive(Debug)]
pub struct JwtRequest<'a> {
    pub headers: &'a mut HeaderMap,
    pub path: &'a str,
    pub metadata: &'a mut Metadata,
    /// Seconds since 1970.
    pub now: u64,
    /// The path without the tokens that go no further.
    pub new_path: Option<String>,
    /// The route is to be found again.
    pub clear_route: bool,
}

impl Requirement {
    /// Checks the request's tokens, and passes on what they say.
    ///
    /// # Errors
    /// The reason to refuse the request.
    pub fn check(&self, request: &mut JwtRequest<'_>) -> Result<(), JwtFault> {
        self.sanitize(request.headers);
        self.check_sanitized(request)
    }

    fn check_sanitized(&self, request: &mut JwtRequest<'_>) -> Result<(), JwtFault> {
        match self {
            Self::Provider(provider, audiences) => provider.check_all(audiences, request),
            Self::All(all) => all.iter().try_for_each(|one| one.check_sanitized(request)),
            Self::Any(any) => {
                let mut worst = JwtFault::Missing;
                for one in any {
                    match one.check_sanitized(request) {
                        Ok(()) => return Ok(()),
                        // A token that was there and was wrong tells more than that there was none.
                        Err(JwtFault::Missing) => {}
                        Err(JwtFault::UnknownIssuer) if worst != JwtFault::Missing => {}
                        Err(fault) => worst = fault,
                    }
                }
                Err(worst)
            }
            Self::AllowMissing(providers) => check_any(providers, request, false),
            Self::AllowMissingOrFailed(providers) => check_any(providers, request, true),
        }
    }

    /// Keys that this request's tokens are verified with, and that have to be fetched first.
    pub fn unfetched(&self, headers: &HeaderMap, path: &str, now: Instant, out: &mut Vec<Arc<RemoteKeys>>) {
        let mut add = |provider: &Provider| {
            if let Keys::Remote(keys) = &provider.keys
                && !keys.is_fresh(now)
                && provider.tokens(headers, path).iter().any(|token| provider.issued(token))
                && !out.iter().any(|known| Arc::ptr_eq(known, keys))
            {
                out.push(Arc::clone(keys));
            }
        };
        match self {
            Self::Provider(provider, _) => add(provider),
            Self::AllowMissing(providers) | Self::AllowMissingOrFailed(providers) => providers.iter().for_each(|p| add(p)),
            Self::Any(all) | Self::All(all) => all.iter().for_each(|one| one.unfetched(headers, path, now, out)),
        }
    }

    /// Takes away what a caller must not say about a token that we did not see.
    fn sanitize(&self, headers: &mut HeaderMap) {
        let mut clean = |provider: &Provider| {
            for name in provider.payload_header.iter().chain(provider.claim_headers.iter().map(|c| &c.name)) {
                headers.remove(name);
            }
        };
        match self {
            Self::Provider(provider, _) => clean(provider),
            Self::AllowMissing(providers) | Self::AllowMissingOrFailed(providers) => providers.iter().for_each(|p| clean(p)),
            Self::Any(all) | Self::All(all) => all.iter().for_each(|one| one.sanitize(headers)),
        }
    }
}

/// Every token that there is must be good for one of the providers that look where it stands, unless failures are allowed.
fn check_any(providers: &[Arc<Provider>], request: &mut JwtRequest<'_>, failures: bool) -> Result<(), JwtFault> {
    let mut seen: Vec<(Token, Result<(), JwtFault>)> = Vec::new();
    for provider in providers {
        for token in provider.tokens(request.headers, request.path) {
            let known = seen.iter().position(|(other, _)| *other == token);
            if known.is_some_and(|index| seen.get(index).is_some_and(|(_, result)| result.is_ok())) {
                continue;
            }
            let result = provider.check_one(&token, &[], request);
            if let Err(fault) = result {
                provider.tell(fault, fault.is_of_an_issuer(), request);
            }
            match known.and_then(|index| seen.get_mut(index)) {
                // Another provider's issuer says nothing about what this token's own said.
                Some((_, before)) if result.is_ok() || *before == Err(JwtFault::UnknownIssuer) => *before = result,
                Some(_) => {}
                None => seen.push((token, result)),
            }
        }
    }
    if let ([provider], true) = (providers, seen.is_empty()) {
        provider.tell(JwtFault::Missing, false, request);
    }
    if failures { Ok(()) } else { seen.into_iter().try_for_each(|(_, result)| result) }
}

impl Provider {
    /// Whether a token says that it is of this provider's issuer.
    fn issued(&self, token: &Token) -> bool {
        let Ok(parsed) = payload::Parsed::read(&token.text) else { return false };
        self.issuer.as_deref().is_none_or(|wanted| parsed.claims.get("iss").and_then(Value::as_str) == Some(wanted))
    }

    fn check_all(&self, audiences: &[Box<str>], request: &mut JwtRequest<'_>) -> Result<(), JwtFault> {
        let tokens = self.tokens(request.headers, request.path);
        // All must be right: else a bad token could travel in a good one's company.
        let mut result = if tokens.is_empty() { Err(JwtFault::Missing) } else { Ok(()) };
        for token in &tokens {
            result = result.and_then(|()| self.check_one(token, audiences, request));
        }
        if let Err(fault) = result {
            self.tell(fault, fault != JwtFault::Missing, request);
        }
        result
    }

    /// Writes down why tokens do not do, as Envoy's `failed_status_in_metadata`: of a token that is `ours`, and where there is no
    /// other provider of any, and of none.
    fn tell(&self, fault: JwtFault, ours: bool, request: &mut JwtRequest<'_>) {
        if let Some(key) = self.failure_key.as_deref().filter(|_| self.alone || ours) {
            request.metadata.set(&NAMESPACE.into(), key, json!({"code": fault.code(), "message": fault.text()}));
        }
    }

    /// Whether this provider may say so much about a subject, for so long.
    fn vouches(&self, parsed: &payload::Parsed<'_>, now: u64) -> bool {
        let subject = parsed.claims.get("sub").and_then(Value::as_str).unwrap_or_default();
        let ends_in_time = |most: Duration| parsed.end().is_some_and(|end| Duration::from_secs(end.saturating_sub(now)) <= most);
        self.subjects.as_ref().is_none_or(|subjects| subjects.matches(subject)) && self.max_lifetime.is_none_or(ends_in_time)
    }

    fn check_one(&self, token: &Token, audiences: &[Box<str>], request: &mut JwtRequest<'_>) -> Result<(), JwtFault> {
        let parsed = payload::Parsed::read(&token.text)?;
        let claims = &parsed.claims;
        let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
        if self.issuer.as_deref().is_some_and(|wanted| wanted != issuer) {
            return Err(JwtFault::UnknownIssuer);
        }
        parsed.check_times(request.now, self.clock_skew)?;
        let wanted = if audiences.is_empty() { &self.audiences[..] } else { audiences };
        if !wanted.is_empty() && !parsed.audiences().any(|a| wanted.iter().any(|w| **w == *audience(a))) {
            return Err(JwtFault::Audience);
        }
        if !self.vouches(&parsed, request.now) {
            return Err(JwtFault::Signature);
        }
        self.keys.verify(&token.text)?;
        self.pass_on(token, &parsed, request);
        Ok(())
    }

    fn pass_on(&self, token: &Token, parsed: &payload::Parsed<'_>, request: &mut JwtRequest<'_>) {
        for claim in &self.claim_headers {
            if let Some(value) = payload::claim_text(&parsed.claims, &claim.path).and_then(|v| HeaderValue::try_from(v).ok()) {
                request.headers.append(&claim.name, value);
            }
        }
        if let Some(name) = &self.payload_header
            && let Ok(value) = HeaderValue::try_from(parsed.payload_text(self.pad_payload_header))
        {
            request.headers.append(name, value);
        }
        if self.payload_key.is_some() || self.header_key.is_some() {
            let namespace: Arc<str> = NAMESPACE.into();
            if let Some(key) = &self.payload_key {
                request.metadata.set(&namespace, key, payload::normalized(&parsed.claims, &self.space_delimited));
            }
            if let Some(key) = &self.header_key {
                request.metadata.set(&namespace, key, parsed.header.clone());
            }
        }
        request.clear_route |= self.clear_route_cache;
        if !self.forward {
            match &token.place {
                Place::Header(name) => {
                    request.headers.remove(name);
                }
                Place::Parameter(name) => {
                    let path = request.new_path.as_deref().unwrap_or(request.path);
                    request.new_path = Some(extract::without_parameter(path, name));
                }
                Place::Cookie => {}
            }
        }
    }
}

/// An audience as they are compared: without scheme and last slash.
pub fn audience(text: &str) -> &str {
    let text = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://")).unwrap_or(text);
    text.strip_suffix('/').unwrap_or(text)
}

#[cfg(test)]
mod tests;
