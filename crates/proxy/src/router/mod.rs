//! The router: from a matched route to a response, through as many tries as it takes.
mod attempt;
pub(crate) mod changes;
pub(crate) mod finalize;
mod forward;
pub(crate) mod hash;
mod hedge;
mod internal_redirect;
mod limits;
pub(crate) mod lookup;
mod mirror;
mod outcome;
mod passed;
mod relay;
mod replay;
mod retry;
mod timeouts;

pub(crate) use outcome::{Failed, Failure};

use http::header::{HeaderValue, LOCATION};
use lateen_snapshot::route::Action;
use lateen_telemetry::envoy_names::http as names;
use lateen_telemetry::{ResponseFlags, details};

use crate::http::reply::Reply;
use crate::http::{End, Exchange};

pub(crate) use internal_redirect::Redirects;

/// Does what the route says.
pub(crate) async fn run(exchange: &mut Exchange<'_>) -> Result<(), End> {
    let Some(matched) = exchange.info.route.clone() else {
        exchange.hcm.stats.inc(names::NO_ROUTE);
        return Err(Reply::new(404, "", details::ROUTE_NOT_FOUND, ResponseFlags::NO_ROUTE_FOUND).into());
    };
    match &matched.route.action {
        Action::Forward(forward) => forward::run(exchange, &matched, forward).await,
        Action::Redirect(action) => {
            exchange.hcm.stats.inc(names::RQ_REDIRECT);
            let location = action.location(&matched.route.matches, &lookup::head_of(&exchange.request));
            Err(redirect(action.status.as_u16(), &location))
        }
        Action::ToHttps => Err(redirect(301, &format!("https://{}{}", &*exchange.request.authority, &*exchange.request.path))),
        Action::Direct(direct) => {
            exchange.hcm.stats.inc(names::RQ_DIRECT_RESPONSE);
            let mut reply = Reply::new(direct.status.as_u16(), "", details::DIRECT_RESPONSE, ResponseFlags::NONE);
            reply.body = std::borrow::Cow::Owned(direct.body.to_vec());
            Err(reply.into())
        }
        Action::NonForwarding => Err(Reply::new(404, "", details::ROUTE_NOT_FOUND, ResponseFlags::NO_ROUTE_FOUND).into()),
    }
}

fn redirect(status: u16, location: &str) -> End {
    let reply = Reply::new(status, "", details::DIRECT_RESPONSE, ResponseFlags::NONE);
    match HeaderValue::from_str(location) {
        Ok(value) => reply.with_header(LOCATION, value).into(),
        Err(_) => Reply::new(400, "", details::INVALID_PATH, ResponseFlags::NONE).into(),
    }
}
