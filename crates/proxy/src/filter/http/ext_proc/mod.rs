//! External processing: another server sees an exchange pass, in parts or whole, and may change it (Envoy ext_proc filter).
#![allow(deprecated, reason = "older fields of answers still count")]
mod attributes;
mod body;
mod duplex;
mod message;
mod request;
mod response;
mod session;
mod side;

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use lateen_proto::envoy::service::ext_proc::v3::{
    ProcessingResponse, processing_request::Request, processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{BodyMode, ExtProc, ExtProcPerRoute, ProcessingMode};
use lateen_telemetry::BlockName;
use lateen_telemetry::envoy_names::ext_proc as names;

pub(super) use self::request::on_request;
pub(super) use self::response::on_response;

use self::message::Limits;
use self::session::{Said, Session};
use self::side::{Part, Way};
use super::body::hold::Held;
use super::{all_per_route, heads, wait};
use crate::http::{End, Exchange};
use crate::io::Timer;

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
    let limit = buffer_limit(exchange);
    let mut session = Session::new(Rc::clone(exchange.worker), Rc::clone(&exchange.live), Arc::clone(config), stats, limit);
    (session.mode, session.failure_mode_allow) = (mode, allow);
    let session = Rc::new(RefCell::new(session));
    exchange.bodies().note(index, Rc::clone(&session));
    Some(session)
}

/// Says something about one direction.
fn say(exchange: &Exchange<'_>, session: &Shared, way: Way, request: Request) {
    let mut session = session.borrow_mut();
    let message = message::request(&mut session, way, &exchange.info.metadata, request);
    let part = message.request.as_ref().map_or(Part::Headers, message::part);
    session.say(way, part, &message);
}

/// Says something and waits for the answer; `None` where there is none and the exchange goes on.
async fn converse(
    exchange: &mut Exchange<'_>,
    session: &Shared,
    way: Way,
    request: Request,
) -> Result<Option<Box<ProcessingResponse>>, End> {
    say(exchange, session, way, request);
    if session.borrow().config.observes {
        // One that only looks on is not waited for: its few heads, and bodies that are held, queue beyond what pieces may.
        poll_fn(|cx| {
            session.borrow_mut().drive(cx);
            Poll::Ready(())
        })
        .await;
        return Ok(None);
    }
    // In full duplex a head that nothing follows is answered in the processor's own time; how long the caller may be idle counts.
    let limit = session.borrow().is_full_duplex(way).then(|| wait::idle_limit(exchange)).flatten();
    let mut timer = Timer::default();
    timer.after(limit);
    let complete = exchange.down.request_done();
    let answer = poll_fn(|cx| match session.borrow_mut().poll_answer(cx, way) {
        Poll::Pending => timer.poll(cx).map(|()| Said::Reply(Box::new(wait::idle(complete)))),
        said => said,
    });
    let said = wait::patiently(exchange, answer).await?;
    heard(exchange, session, said)
}

/// What an answer means for the exchange.
fn heard(exchange: &mut Exchange<'_>, session: &Shared, said: Said) -> Result<Option<Box<ProcessingResponse>>, End> {
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

/// Whether a body is shown before the answer about its head is there.
fn is_early(session: &Session, mode: BodyMode) -> bool {
    match mode {
        BodyMode::FullDuplexStreamed => true,
        BodyMode::Streamed => session.config.early_bodies && !session.config.observes,
        _ => false,
    }
}

/// The mode that a processor asks for with its answer about a head. Where a body may be on its way already none is (Envoy
/// `Filter::onReceiveMessage`).
fn override_mode(session: &Shared, answer: &ProcessingResponse) {
    let mut session = session.borrow_mut();
    let config = Arc::clone(&session.config);
    if !config.allow_mode_override || config.early_bodies || config.mode.is_full_duplex() || session.mode.is_full_duplex() {
        return;
    }
    let Some(Ok(mode)) = answer.mode_override.map(|mode| config.mode.asked(mode)) else { return };
    let same = |allowed: &ProcessingMode| ProcessingMode { request_headers: mode.request_headers, ..*allowed } == mode;
    if config.allowed_modes.is_empty() || config.allowed_modes.iter().any(same) {
        session.mode = mode;
    }
}

/// How much of a body may be held.
fn buffer_limit(exchange: &Exchange<'_>) -> usize {
    exchange.conn.listener.listener.per_connection_buffer_limit as usize
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
