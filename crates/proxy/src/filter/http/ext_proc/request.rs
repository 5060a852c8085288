//! A request on its way past a processor.
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use lateen_proto::envoy::service::ext_proc::v3::{
    CommonResponse, ProcessingResponse, common_response::ResponseStatus, processing_request::Request,
    processing_response::Response as Answer,
};
use lateen_snapshot::ext_proc::{BodyMode, ExtProc};

use super::body::{Instead, Shows, Through};
use super::duplex::FullDuplex;
use super::message::{self, Limits};
use super::side::Way;
use super::{Shared, attributes, buffer_limit, converse, heard, is_early, override_mode, say, session, trailers};
use crate::filter::http::body::hold;
use crate::filter::http::{Step, heads};
use crate::http::message::Length;
use crate::http::{End, Exchange};

/// Pseudo headers, which count as headers.
const PSEUDO: usize = 4;

pub(crate) async fn on_request(exchange: &mut Exchange<'_>, config: &Arc<ExtProc>, index: usize) -> Result<Step, End> {
    let Some(session) = session(exchange, config, index) else { return Ok(Step::Continue) };
    // What follows the head of an upgrade is no body, and yet it is not the end.
    let upgrade = exchange.request.upgrade.is_some();
    let has_body = exchange.request.has_body() && exchange.request.length != Length::Known(0) && !upgrade;
    let mode = session.borrow().mode;
    if !config.request_attributes.is_empty() {
        session.borrow_mut().tell(Way::Request, attributes::tell(exchange, None, &config.request_attributes));
    }
    if mode.request_headers {
        let head = message::headers(config, Way::Request, heads::of_request(&exchange.request), !has_body && !upgrade);
        if has_body && is_early(&session.borrow(), mode.request_body) {
            early(exchange, &session, head).await?;
            return Ok(Step::Continue);
        }
        if let Some(answer) = converse(exchange, &session, Way::Request, head).await? {
            override_mode(&session, &answer);
            if let Some(body) = change_head(exchange, &session, *answer)? {
                exchange.change_request_body(Instead::of(body, false), true);
                return Ok(Step::Continue);
            }
        }
    }
    if has_body {
        request_body(exchange, &session).await?;
    }
    Ok(Step::Continue)
}

/// Shows the head, and the body while the answer is waited for.
async fn early(exchange: &mut Exchange<'_>, session: &Shared, head: Request) -> Result<(), End> {
    let (mode, limit) = (session.borrow().mode, buffer_limit(exchange));
    if mode.request_body == BodyMode::FullDuplexStreamed {
        early_with(exchange, session, head, FullDuplex::new(session, Way::Request, mode.request_trailers)).await
    } else {
        early_with(exchange, session, head, Through::new(session, Way::Request, true, mode.request_trailers, limit)).await
    }
}

async fn early_with(exchange: &mut Exchange<'_>, session: &Shared, head: Request, mut stage: impl Shows) -> Result<(), End> {
    say(exchange, session, Way::Request, head);
    let work = hold::during_request(exchange, |cx, info, source| {
        loop {
            if let Poll::Ready(said) = session.borrow_mut().poll_answer(cx, Way::Request) {
                return Poll::Ready(Ok(said));
            }
            if !stage.show(cx, info, source)? {
                return Poll::Pending;
            }
        }
    });
    let said = Box::pin(work).await?;
    let answer = heard(exchange, session, said)?;
    let replaced = answer.map(|answer| change_head(exchange, session, *answer)).transpose()?.flatten();
    // How long it will be is not known.
    exchange.request.length = Length::Unknown;
    let complete = stage.is_complete();
    match replaced {
        Some(body) => exchange.pass_request(Instead::of(body, complete), complete),
        None => exchange.pass_request(stage, complete),
    }
    Ok(())
}

fn change_head(exchange: &mut Exchange<'_>, session: &Shared, answer: ProcessingResponse) -> Result<Option<Bytes>, End> {
    match answer.response {
        Some(Answer::RequestHeaders(said)) => change_request(exchange, session, said.response),
        _ => Ok(None),
    }
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
    limits.check(&exchange.request.headers, PSEUDO).map_err(|reason| End::Reply(session.borrow_mut().refused(reason)))?;
    if session.borrow().clears_route(changes_headers, said.clear_route_cache) {
        exchange.refresh_route()?;
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
        BodyMode::FullDuplexStreamed => {
            exchange.change_request_body(FullDuplex::new(session, Way::Request, mode.request_trailers), true);
            return Ok(());
        }
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
