//! Redirects of an upstream that are followed here instead of by the caller (Envoy `Filter::setupRedirect`).
//!
//! The request begins anew with another address: filters, route and log see it as a request of its own.
use std::borrow::Cow;
use std::sync::Arc;

use http::header::{CONTENT_LENGTH, LOCATION};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use lateen_snapshot::route::{InternalRedirect, RedirectPredicate};
use lateen_telemetry::details;
use lateen_telemetry::envoy_names::{cluster as cluster_names, http as names};
use lateen_telemetry::stats::Counter;

use super::attempt::Answered;
use super::forward::Forwarding;
use super::lookup;
use super::replay::Kept;
use crate::http::headers::ORIGINAL_URL;
use crate::http::message::{Length, Response};
use crate::http::{End, Exchange, Matched};
use crate::io::Text;

/// What a request keeps from one redirect to the next.
#[derive(Default)]
pub(crate) struct Redirects {
    count: u32,
    /// From which route which was reached, by their names.
    reached: Vec<(Arc<str>, Arc<str>)>,
    /// What is sent once more, through the filters of another turn.
    pub(crate) body: Option<Box<Kept>>,
}

/// Turns the request into the one that the response redirects to. `false` when the policy or the request does not
/// allow that: then the caller gets the response.
pub(super) fn follow(
    exchange: &mut Exchange<'_>,
    matched: &Matched,
    policy: &InternalRedirect,
    forwarding: &mut Forwarding,
    response: &Response,
) -> bool {
    if !policy.statuses.contains(&response.status.as_u16()) {
        return false;
    }
    let body = &forwarding.body;
    // What has not arrived or is not kept cannot be sent again.
    let repeatable = body.complete() && body.repeatable() && exchange.request.upgrade.is_none();
    let location = response.headers.get(LOCATION).filter(|_| repeatable);
    let followed = location.is_some_and(|location| match redirect(exchange, matched, policy, response, location) {
        Ok(()) => true,
        Err(why) => {
            exchange.hcm.stats.inc(why);
            false
        }
    });
    let stats = &forwarding.cluster.stats;
    if !followed {
        stats.inc(cluster_names::UPSTREAM_INTERNAL_REDIRECT_FAILED_TOTAL);
        return false;
    }
    stats.inc(cluster_names::UPSTREAM_INTERNAL_REDIRECT_SUCCEEDED_TOTAL);
    let mut kept = forwarding.body.take();
    let method = &mut exchange.request.method;
    // RFC 9110 15.4.4: what to look at instead is asked for with GET.
    if response.status == StatusCode::SEE_OTHER && *method != Method::GET && *method != Method::HEAD {
        *method = Method::GET;
        exchange.request.headers.remove(CONTENT_LENGTH);
        exchange.request.length = Length::None;
        kept = Kept::default();
    }
    let redirects = exchange.redirects.get_or_insert_default();
    redirects.count += 1;
    redirects.body = Some(Box::new(kept));
    true
}

/// Leaves the response that was followed: the log tells of it, and nobody gets it.
pub(super) fn leave(exchange: &mut Exchange<'_>, answered: Answered) -> Result<(), End> {
    let info = &mut exchange.info;
    let response = answered.leave(info.moment);
    info.response_at = Some(info.moment.saturating_duration_since(info.start));
    info.status = response.status.as_u16();
    info.details = Cow::Borrowed(details::INTERNAL_REDIRECT);
    if exchange.hcm.logs.wants_headers() || exchange.info.span.is_some() {
        exchange.info.response_headers = Some(response.headers);
    }
    Err(End::Redirected)
}

/// Changes the request; puts it back as it was when the redirect is not to be followed. An error is what to count.
fn redirect(
    exchange: &mut Exchange<'_>,
    matched: &Matched,
    policy: &InternalRedirect,
    response: &Response,
    location: &HeaderValue,
) -> Result<(), Counter> {
    let target = location.to_str().ok().and_then(Target::read).ok_or(names::PASSTHROUGH_INTERNAL_REDIRECT_BAD_LOCATION)?;
    let from_https = exchange.request.scheme == "https" && exchange.conn.is_tls();
    if !policy.allow_cross_scheme && from_https != target.https {
        return Err(names::PASSTHROUGH_INTERNAL_REDIRECT_UNSAFE_SCHEME);
    }
    if exchange.redirects.as_ref().map_or(0, |r| r.count) >= policy.most {
        return Err(names::PASSTHROUGH_INTERNAL_REDIRECT_TOO_MANY_REDIRECTS);
    }
    let headers = (!policy.headers_to_copy.is_empty()).then(|| exchange.request.headers.clone());
    let request = &mut exchange.request;
    copy(policy, &response.headers, &mut request.headers);
    let authority = std::mem::replace(&mut request.authority, Text::from(target.authority));
    let path = std::mem::replace(&mut request.path, Text::from(target.path.into_owned()));
    let scheme = std::mem::replace(&mut request.scheme, if target.https { "https" } else { "http" });
    let allowed = match lookup::find(&matched.table, exchange) {
        None => Err(names::PASSTHROUGH_INTERNAL_REDIRECT_NO_ROUTE),
        Some(next) if admits(exchange, policy, &matched.route.name, &next.route.name, from_https, target.https) => Ok(()),
        Some(_) => Err(names::PASSTHROUGH_INTERNAL_REDIRECT_PREDICATE),
    };
    let request = &mut exchange.request;
    if allowed.is_err() {
        (request.authority, request.path, request.scheme) = (authority, path, scheme);
        if let Some(headers) = headers {
            request.headers = headers;
        }
    } else if let Ok(original) = HeaderValue::try_from(format!("{}://{}{}", if from_https { "https" } else { "http" }, &*authority, &*path))
    {
        request.headers.insert(ORIGINAL_URL, original);
    }
    allowed
}

/// The response's values stand instead of the request's; where it has none, none do.
fn copy(policy: &InternalRedirect, from: &HeaderMap, to: &mut HeaderMap) {
    for name in &policy.headers_to_copy {
        to.remove(name);
        for value in from.get_all(name) {
            to.append(name, value.clone());
        }
    }
}

fn admits(
    exchange: &mut Exchange<'_>,
    policy: &InternalRedirect,
    from: &Arc<str>,
    to: &Arc<str>,
    from_https: bool,
    to_https: bool,
) -> bool {
    policy.predicates.iter().all(|predicate| match predicate {
        RedirectPredicate::AllowListed(names) => names.iter().any(|name| **name == **to),
        RedirectPredicate::SafeCrossScheme => from_https || !to_https,
        RedirectPredicate::PreviousRoutes => {
            let reached = &mut exchange.redirects.get_or_insert_default().reached;
            let is_new = !reached.iter().any(|(a, b)| a == from && b == to);
            if is_new {
                reached.push((Arc::clone(from), Arc::clone(to)));
            }
            is_new
        }
    })
}

/// Where a `location` leads: only a whole URL says so without doubt.
#[derive(Debug, PartialEq, Eq)]
struct Target<'a> {
    https: bool,
    authority: &'a str,
    path: Cow<'a, str>,
}

impl<'a> Target<'a> {
    fn read(location: &'a str) -> Option<Self> {
        let (scheme, rest) = location.split_once("://")?;
        let https = match scheme {
            _ if scheme.eq_ignore_ascii_case("https") => true,
            _ if scheme.eq_ignore_ascii_case("http") => false,
            _ => return None,
        };
        // A fragment is for whoever shows the page.
        let rest = rest.split('#').next().unwrap_or_default();
        let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
        // Who the redirect's author would be there is nothing to tell the upstream.
        let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
        if authority.is_empty() || !crate::http::valid_host(authority) || path.bytes().any(|b| b <= b' ' || b == 0x7f) {
            return None;
        }
        let path = if path.starts_with('/') { Cow::Borrowed(path) } else { Cow::Owned(format!("/{path}")) };
        Some(Self { https, authority, path })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_urls_are_followed() {
        let read = |location| Target::read(location).map(|t| (t.https, t.authority.to_owned(), t.path.into_owned()));
        let target = |https, authority: &str, path: &str| Some((https, authority.to_owned(), path.to_owned()));
        assert_eq!(read("http://b/c?d=e"), target(false, "b", "/c?d=e"));
        assert_eq!(read("HTTPS://b:8443"), target(true, "b:8443", "/"));
        assert_eq!(read("http://b?x"), target(false, "b", "/?x"));
        assert_eq!(read("http://user:word@b/c#part"), target(false, "b", "/c"));
        assert_eq!(read("http://[2001:db8::1]:80/"), target(false, "[2001:db8::1]:80", "/"));
        for bad in ["", "/c", "b/c", "//b/c", "ftp://b/c", "http:///c", "http://", "http://b c/", "http://b/c d", "://b"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
