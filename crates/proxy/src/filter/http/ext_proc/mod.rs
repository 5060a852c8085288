//! External processing: another server sees an exchange pass, in parts or whole, and may change it (Envoy ext_proc filter).
#![allow(deprecated, reason = "older fields of answers still count")]
mod body;
mod message;
mod session;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use lateen_proto::envoy::service::ext_proc::v3::{
    CommonResponse, ProcessingResponse, common_response::ResponseStatus, processing_request::Request,
    processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{BodyMode, ExtProc, ExtProcPerRoute, ProcessingMode};
use lateen_telemetry::BlockName;
use lateen_telemetry::envoy_names::ext_proc as names;

use self::body::{Instead, Through};
use self::message::Limits;
use self::session::{Said, Session, Way};
use super::body::Origin;
use super::body::hold::{self, Held};
use super::{Step, all_per_route, heads, wait};
use crate::http::message::{Length, Response};
use crate::http::{End, Exchange};

/// Pseudo headers of a request, which count as headers.
const REQUEST_PSEUDO: usize = 4;
const RESPONSE_PSEUDO: usize = 1;

type Shared = Rc<RefCell<Session>>;

/// The conversation about this exchange, begun if there is none; `None` where the route wants none.
fn session(exchange: &mut Exchange<'_>, config: &Arc<ExtProc>, index: usize) -> Option<Shared> {
    if let Some(known) = exchange.noted::<Shared>(index) {
        return Some(Rc::clone(known));
    }
    let (mut mode, mut allow) = (config.mode, config.failure_mode_allow);
    // The most specific last, so that it counts.
    for (depth, level) in all_per_route(exchange, |p| p.ext_proc.as_ref()).iter().enumerate().rev() {
        match &**level {
            ExtProcPerRoute::Disabled if depth == 0 => return None,
            ExtProcPerRoute::Disabled => mode = config.mode,
            ExtProcPerRoute::Overrides(o) => {
                mode = o.mode.unwrap_or(mode);
                allow = o.failure_mode_allow.unwrap_or(allow);
            }
        }
    }
    let prefix = &config.stat_prefix;
    let name = || BlockName::http_filter(&exchange.hcm.config.stat_prefix, prefix);
    let stats = exchange.hcm.counters.get(exchange.worker, names::DEFS, prefix, name);
    let mut session = Session::new(Rc::clone(exchange.worker), Rc::clone(&exchange.live), Arc::clone(config), stats);
    (session.mode, session.failure_mode_allow) = (mode, allow);
    let session = Rc::new(RefCell::new(session));
    exchange.bodies().note(index, Rc::clone(&session));
    Some(session)
}

/// Says something and waits for the answer; `None` where there is none and the exchange goes on.
async fn converse(
    exchange: &mut Exchange<'_>,
    session: &Shared,
    way: Way,
    request: Request,
) -> Result<Option<Box<ProcessingResponse>>, End> {
    {
        let mut session = session.borrow_mut();
        let message = message::request(&session, &exchange.info.metadata, request);
        let part = message.request.as_ref().map_or(session::Part::Headers, message::part);
        session.say(way, part, &message);
    }
    if session.borrow().config.observes {
        wait::patiently(exchange, poll_fn(|cx| session.borrow_mut().poll_said(cx))).await?;
        return Ok(None);
    }
    let said = wait::patiently(exchange, poll_fn(|cx| session.borrow_mut().poll_answer(cx, way))).await?;
    let mut answer = match said {
        Said::Nothing => return Ok(None),
        Said::Reply(reply) => return Err(End::Reply(reply)),
        Said::Answer(answer) => answer,
    };
    let mut session = session.borrow_mut();
    message::note_metadata(&session.config, &mut exchange.info.metadata, answer.dynamic_metadata.take());
    if matches!(answer.response, Some(Answer::ImmediateResponse(_)))
        && let Some(Answer::ImmediateResponse(response)) = answer.response.take()
    {
        session.finish();
        return Err(message::immediate(&session.stats, response).into());
    }
    Ok(Some(answer))
}

/// The mode that a processor asks for with its answer about a head.
fn override_mode(session: &Shared, answer: &ProcessingResponse) {
    let mut session = session.borrow_mut();
    let asked = answer.mode_override.as_ref().filter(|_| session.config.allow_mode_override).cloned();
    let Some(Ok(mode)) = asked.map(ProcessingMode::asked) else { return };
    let same = |allowed: &ProcessingMode| ProcessingMode { request_headers: mode.request_headers, ..*allowed } == mode;
    let allowed = &session.config.allowed_modes;
    if allowed.is_empty() || allowed.iter().any(same) {
        session.mode = mode;
    }
}

pub(super) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<ExtProc>, index: usize) -> Result<Step, End> {
    let Some(session) = session(exchange, config, index) else { return Ok(Step::Continue) };
    // What follows the head of an upgrade is no body, and yet it is not the end.
    let upgrade = exchange.request.upgrade.is_some();
    let has_body = !matches!(exchange.request.length, Length::None | Length::Known(0)) && !upgrade;
    if session.borrow().mode.request_headers {
        let head = message::headers(config, Way::Request, heads::of_request(&exchange.request), !has_body && !upgrade);
        if let Some(answer) = converse(exchange, &session, Way::Request, head).await? {
            override_mode(&session, &answer);
            if let Some(Answer::RequestHeaders(said)) = answer.response
                && let Some(body) = change_request(exchange, &session, said.response)?
            {
                exchange.change_request_body(Instead::of(body), true);
                return Ok(Step::Continue);
            }
        }
    }
    if has_body {
        request_body(exchange, &session).await?;
    }
    Ok(Step::Continue)
}

/// How much of a body may be held.
fn buffer_limit(exchange: &Exchange<'_>) -> usize {
    exchange.conn.listener.listener.per_connection_buffer_limit as usize
}

/// A connection manager's limits of a request's head.
fn request_limits(exchange: &Exchange<'_>) -> Limits {
    let config = &exchange.hcm.config;
    Limits { count: config.max_headers_count as usize, bytes: config.max_request_headers_kb as usize * 1024 }
}

/// Changes the request as the processor wants it; the body that is to go on instead of its own, if any.
fn change_request(exchange: &mut Exchange<'_>, session: &Shared, said: Option<CommonResponse>) -> Result<Option<Bytes>, End> {
    let Some(said) = said else { return Ok(None) };
    let changes_headers = said.header_mutation.is_some();
    let limits = request_limits(exchange);
    let changes = session.borrow_mut().changes(limits, said.header_mutation).map_err(End::Reply)?;
    for name in &changes.remove {
        exchange.request.headers.remove(name);
    }
    for mutation in &changes.set {
        heads::change_request(exchange, mutation);
    }
    limits.check(&exchange.request.headers, REQUEST_PSEUDO).map_err(|reason| End::Reply(session.borrow_mut().refused(reason)))?;
    if session.borrow().clears_route(changes_headers, said.clear_route_cache) {
        exchange.refresh_route();
    }
    let replaces = said.status == ResponseStatus::ContinueAndReplace as i32;
    Ok(replaces.then(|| message::new_body(said.body_mutation).unwrap_or_default()))
}

async fn request_body(exchange: &mut Exchange<'_>, session: &Shared) -> Result<(), End> {
    let (mode, observes) = {
        let session = session.borrow();
        (session.mode, session.config.observes)
    };
    let whole = match mode.request_body {
        BodyMode::Buffered => true,
        BodyMode::BufferedPartial => false,
        BodyMode::None | BodyMode::Streamed => {
            let data = mode.request_body == BodyMode::Streamed;
            if data || mode.request_trailers {
                let through = Through::new(session, Way::Request, data, mode.request_trailers, buffer_limit(exchange));
                exchange.change_request_body(through, data && !observes);
            }
            return Ok(());
        }
    };
    let limit = buffer_limit(exchange);
    let mut held = Box::pin(hold::request(exchange, limit)).await?;
    if whole && !held.is_complete() {
        return Err(hold::request_too_large(exchange).into());
    }
    let end = held.is_complete() && held.trailers().is_none();
    if let Some(answer) = converse(exchange, session, Way::Request, message::body(Way::Request, held.bytes(), end)).await?
        && let Some(Answer::RequestBody(said)) = answer.response
        && let Some(said) = said.response
    {
        let body = message::new_body(said.body_mutation.clone());
        change_request(exchange, session, Some(CommonResponse { status: 0, ..said }))?;
        if let Some(body) = body {
            held.replace(body);
        }
    }
    let rest = !held.is_complete();
    if mode.request_trailers && !rest {
        trailers(exchange, session, Way::Request, &mut held).await?;
    }
    let trails = held.trailers().is_some();
    exchange.put_back_request(held);
    if rest || trails {
        // Over HTTP/1 only a body in chunks has trailers.
        exchange.request.length = Length::Unknown;
    }
    if rest && mode.request_trailers {
        exchange.change_request_body(Through::new(session, Way::Request, false, true, limit), false);
    }
    Ok(())
}

/// Shows the trailers of a body that is held.
async fn trailers(exchange: &mut Exchange<'_>, session: &Shared, way: Way, held: &mut Held) -> Result<(), End> {
    let Some(map) = held.trailers() else { return Ok(()) };
    let request = message::trailers(&session.borrow().config, way, map);
    let Some(answer) = converse(exchange, session, way, request).await? else { return Ok(()) };
    if let Some(Answer::RequestTrailers(said) | Answer::ResponseTrailers(said)) = answer.response {
        session.borrow_mut().changes(Limits::DEFAULT, said.header_mutation).map_err(End::Reply)?.apply_to(map);
    }
    Ok(())
}

pub(super) async fn on_response(
    exchange: &mut Exchange<'_>,
    config: &Arc<ExtProc>,
    index: usize,
    response: &mut Response,
    body: &mut dyn Origin,
) -> Result<(), End> {
    let Some(session) = session(exchange, config, index) else { return Ok(()) };
    if session.borrow().is_over() {
        return Ok(());
    }
    let upgraded = exchange.request.upgrade.is_some() && response.upgrade.is_some();
    let has_body = super::has_body(exchange, response);
    if session.borrow().mode.response_headers {
        let head = message::headers(config, Way::Response, message::of_response(response), !has_body && !upgraded);
        if let Some(answer) = converse(exchange, &session, Way::Response, head).await? {
            override_mode(&session, &answer);
            if let Some(Answer::ResponseHeaders(said)) = answer.response
                && let Some(body) = change_response(&session, response, said.response)?
            {
                response.length = Length::Unknown;
                exchange.change_response_body(Instead::of(body));
                return Ok(());
            }
        }
    }
    if upgraded {
        show_tunnel(exchange, &session);
    } else if has_body {
        response_body(exchange, &session, response, body).await?;
    }
    Ok(())
}

/// Shows what goes through an upgraded connection where bodies are shown as they come; there is no end of it to wait for
/// where they are shown whole.
fn show_tunnel(exchange: &mut Exchange<'_>, session: &Shared) {
    let (mode, limit) = (session.borrow().mode, buffer_limit(exchange));
    let stage = |way, body| (body == BodyMode::Streamed).then(|| Through::new(session, way, true, false, limit));
    let (request, response) = (stage(Way::Request, mode.request_body), stage(Way::Response, mode.response_body));
    exchange.change_tunnel(request, response);
}

fn change_response(session: &Shared, response: &mut Response, said: Option<CommonResponse>) -> Result<Option<Bytes>, End> {
    let Some(said) = said else { return Ok(None) };
    let limits = Limits::DEFAULT;
    session.borrow_mut().changes(limits, said.header_mutation).map_err(End::Reply)?.apply_to_response(response);
    limits.check(&response.headers, RESPONSE_PSEUDO).map_err(|reason| End::Reply(session.borrow_mut().refused(reason)))?;
    let replaces = said.status == ResponseStatus::ContinueAndReplace as i32;
    Ok(replaces.then(|| message::new_body(said.body_mutation).unwrap_or_default()))
}

async fn response_body(exchange: &mut Exchange<'_>, session: &Shared, response: &mut Response, body: &mut dyn Origin) -> Result<(), End> {
    let (mode, observes) = {
        let session = session.borrow();
        (session.mode, session.config.observes)
    };
    let whole = match mode.response_body {
        BodyMode::Buffered => true,
        BodyMode::BufferedPartial => false,
        BodyMode::None | BodyMode::Streamed => {
            let data = mode.response_body == BodyMode::Streamed;
            if data && !observes {
                response.length = Length::Unknown;
            }
            if data || mode.response_trailers {
                let limit = buffer_limit(exchange);
                exchange.change_response_body(Through::new(session, Way::Response, data, mode.response_trailers, limit));
            }
            return Ok(());
        }
    };
    let limit = buffer_limit(exchange);
    let mut held = Box::pin(hold::response(exchange, body, limit)).await?;
    if whole && !held.is_complete() {
        return Err(hold::response_too_large(exchange).into());
    }
    let end = held.is_complete() && held.trailers().is_none();
    if let Some(answer) = converse(exchange, session, Way::Response, message::body(Way::Response, held.bytes(), end)).await?
        && let Some(Answer::ResponseBody(said)) = answer.response
        && let Some(said) = said.response
    {
        let body = message::new_body(said.body_mutation.clone());
        change_response(session, response, Some(CommonResponse { status: 0, ..said }))?;
        if let Some(body) = body {
            held.replace(body);
        }
    }
    let rest = !held.is_complete();
    if mode.response_trailers && !rest {
        trailers(exchange, session, Way::Response, &mut held).await?;
    }
    response.length = if rest || held.trailers().is_some() { Length::Unknown } else { Length::Known(held.len() as u64) };
    exchange.put_back_response(held);
    if rest && mode.response_trailers {
        exchange.change_response_body(Through::new(session, Way::Response, false, true, limit));
    }
    Ok(())
}
