//! CORS: answers preflights, marks responses for the origins that a route allows (Envoy cors filter).
use http::header::{self, HeaderName, HeaderValue};
use lateen_snapshot::http::Cors;
use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::cors as names;
use lateen_telemetry::{ResponseFlags, details};

use super::{Step, levels};
use crate::http::Exchange;
use crate::http::message::{Request, Response};
use crate::http::reply::Reply;

const PRIVATE_NETWORK_ASKED: HeaderName = HeaderName::from_static("access-control-request-private-network");
const PRIVATE_NETWORK_ALLOWED: HeaderName = HeaderName::from_static("access-control-allow-private-network");

/// What the response says to an allowed origin; settled with the request.
#[derive(Debug)]
pub(crate) struct Marks {
    origin: HeaderValue,
    credentials: bool,
    expose: Option<HeaderValue>,
}

/// The policies that hold, most specific first: what one leaves open the next may say.
#[derive(Default)]
struct Policies<'a>([Option<&'a Cors>; 4]);

impl<'a> Policies<'a> {
    /// Those of the filter, or else those in the routes themselves, where the first of them is on and the route forwards.
    fn of(exchange: &'a Exchange<'_>) -> Option<Self> {
        let matched = exchange.info.route.as_ref()?;
        let Action::Forward(forward) = &matched.route.action else { return None };
        let name = exchange.hcm.config.filter_names.get(exchange.info.filter)?;
        let mut all = Self::default();
        all.fill(levels(matched).filter_map(|level| level.of(name)?.cors.as_deref()));
        if all.iter().next().is_none() {
            all.fill(
                [forward.cors.as_deref(), matched.virtual_host().and_then(|host| host.settings.cors.as_deref())].into_iter().flatten(),
            );
        }
        let enabled = all.iter().next()?.enabled;
        enabled.is_none_or(|fraction| fraction.hits(exchange.worker.roll())).then_some(all)
    }

    fn fill(&mut self, policies: impl Iterator<Item = &'a Cors>) {
        self.0.iter_mut().zip(policies).for_each(|(place, policy)| *place = Some(policy));
    }

    fn iter(&self) -> impl Iterator<Item = &'a Cors> {
        self.0.iter().copied().flatten()
    }

    /// What the most specific one says that says anything.
    fn first<T>(&self, said: impl Fn(&'a Cors) -> Option<T>) -> Option<T> {
        self.iter().find_map(said)
    }

    fn allow(&self, origin: &HeaderValue) -> bool {
        let origins = self.iter().map(|policy| &policy.allow_origins).find(|origins| !origins.is_empty());
        let fits = |text: &str| origins.is_some_and(|origins| origins.iter().any(|m| m.matches("*") || m.matches(text)));
        origin.to_str().is_ok_and(fits)
    }

    fn allows_credentials(&self) -> bool {
        self.first(|policy| policy.allow_credentials).unwrap_or(false)
    }

    fn expose(&self) -> Option<HeaderValue> {
        self.first(|policy| policy.expose_headers.clone())
    }

    /// The answer to a preflight; a browser takes one without its origin for a refusal.
    fn answer(&self, request: &Request, origin: Option<&HeaderValue>) -> Reply {
        let yes = HeaderValue::from_static("true");
        let asked = |name: HeaderName| request.headers.get(name).cloned().unwrap_or(HeaderValue::from_static(""));
        // A star is no wildcard where credentials are sent: what was asked for is allowed by its name.
        let unless_any = |value: &HeaderValue, name| if value == "*" { asked(name) } else { value.clone() };
        let private = self.first(|policy| policy.allow_private_network_access).unwrap_or(false)
            && request.headers.get(PRIVATE_NETWORK_ASKED).is_some_and(|v| v == "true");
        let methods = self.first(|policy| policy.allow_methods.as_ref());
        let headers = self.first(|policy| policy.allow_headers.as_ref());
        let said = [
            (header::ACCESS_CONTROL_ALLOW_ORIGIN, origin.cloned()),
            (header::ACCESS_CONTROL_ALLOW_CREDENTIALS, self.allows_credentials().then(|| yes.clone())),
            (PRIVATE_NETWORK_ALLOWED, private.then_some(yes)),
            (header::ACCESS_CONTROL_ALLOW_METHODS, methods.map(|v| unless_any(v, header::ACCESS_CONTROL_REQUEST_METHOD))),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, headers.map(|v| unless_any(v, header::ACCESS_CONTROL_REQUEST_HEADERS))),
            (header::ACCESS_CONTROL_EXPOSE_HEADERS, self.expose()),
            (header::ACCESS_CONTROL_MAX_AGE, self.first(|policy| policy.max_age.clone())),
        ];
        let mut reply = Reply::new(200, "", details::CORS_RESPONSE, ResponseFlags::NONE);
        reply.headers = said.into_iter().filter_map(|(name, value)| Some((name, value?))).collect();
        reply
    }
}

pub(super) fn on_request(exchange: &mut Exchange<'_>) -> Step {
    let request = &exchange.request;
    let Some(origin) = request.headers.get(header::ORIGIN).filter(|origin| !origin.is_empty()) else { return Step::Continue };
    let Some(policies) = Policies::of(exchange) else { return Step::Continue };
    let allowed = policies.allow(origin);
    exchange.hcm.cors.inc(if allowed { names::ORIGIN_VALID } else { names::ORIGIN_INVALID });
    let preflight = request.method == http::Method::OPTIONS
        && request.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD).is_some_and(|method| !method.is_empty());
    if preflight {
        let forwards = !allowed && policies.first(|policy| policy.forward_not_matching_preflights).unwrap_or(true);
        return if forwards { Step::Continue } else { Step::Reply(policies.answer(request, allowed.then_some(origin))) };
    }
    if allowed {
        let marks = Marks { origin: origin.clone(), credentials: policies.allows_credentials(), expose: policies.expose() };
        exchange.info.cors = Some(Box::new(marks));
    }
    Step::Continue
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, response: &mut Response) {
    let Some(marks) = exchange.info.cors.take() else { return };
    response.headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, marks.origin);
    if marks.credentials {
        response.headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    }
    if let Some(expose) = marks.expose {
        response.headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, expose);
    }
}
