//! A response on its way past a processor.
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
use crate::filter::http::body::{Origin, Stage, hold};
use crate::http::message::{Length, Response};
use crate::http::{End, Exchange};

/// Pseudo headers, which count as headers.
const PSEUDO: usize = 1;

pub(crate) async fn on_response(
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
    let has_body = crate::filter::http::has_body(exchange, response);
    let mode = session.borrow().mode;
    if !config.response_attributes.is_empty() {
        session.borrow_mut().tell(Way::Response, attributes::tell(exchange, Some(response), &config.response_attributes));
    }
    if mode.response_headers {
        let head = message::headers(config, Way::Response, message::of_response(response), !has_body && !upgraded);
        if has_body && is_early(&session.borrow(), mode.response_body) {
            return early(exchange, &session, head, response, body).await;
        }
        if let Some(answer) = converse(exchange, &session, Way::Response, head).await? {
            override_mode(&session, &answer);
            if let Some(body) = change_head(&session, response, *answer)? {
                response.length = Length::Unknown;
                exchange.change_response_body(Instead::of(body, false));
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

/// Shows the head, and the body while the answer is waited for.
async fn early(
    exchange: &mut Exchange<'_>,
    session: &Shared,
    head: Request,
    response: &mut Response,
    body: &mut dyn Origin,
) -> Result<(), End> {
    let (mode, limit) = (session.borrow().mode, buffer_limit(exchange));
    if mode.response_body == BodyMode::FullDuplexStreamed {
        let stage = FullDuplex::new(session, Way::Response, mode.response_trailers);
        early_with(exchange, session, head, response, body, stage).await
    } else {
        let stage = Through::new(session, Way::Response, true, mode.response_trailers, limit);
        early_with(exchange, session, head, response, body, stage).await
    }
}

async fn early_with(
    exchange: &mut Exchange<'_>,
    session: &Shared,
    head: Request,
    response: &mut Response,
    body: &mut dyn Origin,
    mut stage: impl Shows,
) -> Result<(), End> {
    say(exchange, session, Way::Response, head);
    let work = hold::during_response(exchange, body, |cx, info, source| {
        loop {
            if let Poll::Ready(said) = session.borrow_mut().poll_answer(cx, Way::Response) {
                return Poll::Ready(Ok(said));
            }
            if !stage.show(cx, info, source)? {
                return Poll::Pending;
            }
        }
    });
    let said = Box::pin(work).await?;
    let answer = heard(exchange, session, said)?;
    let replaced = answer.map(|answer| change_head(session, response, *answer)).transpose()?.flatten();
    // How long it will be is not known.
    response.length = Length::Unknown;
    let complete = stage.is_complete();
    match replaced {
        Some(body) => exchange.pass_response(Instead::of(body, complete), complete),
        None => exchange.pass_response(stage, complete),
    }
    Ok(())
}

/// Shows what goes through an upgraded connection where bodies are shown as they come; there is no end of it to wait for
/// where they are shown whole.
fn show_tunnel(exchange: &mut Exchange<'_>, session: &Shared) {
    let (mode, limit) = (session.borrow().mode, buffer_limit(exchange));
    let stage = |way, body| -> Option<Box<dyn Stage>> {
        match body {
            BodyMode::Streamed => Some(Box::new(Through::new(session, way, true, false, limit))),
            BodyMode::FullDuplexStreamed => Some(Box::new(FullDuplex::new(session, way, false))),
            _ => None,
        }
    };
    let (request, response) = (stage(Way::Request, mode.request_body), stage(Way::Response, mode.response_body));
    exchange.change_tunnel(request, response);
}

fn change_head(session: &Shared, response: &mut Response, answer: ProcessingResponse) -> Result<Option<Bytes>, End> {
    match answer.response {
        Some(Answer::ResponseHeaders(said)) => change_response(session, response, said.response),
        _ => Ok(None),
    }
}

fn change_response(session: &Shared, response: &mut Response, said: Option<CommonResponse>) -> Result<Option<Bytes>, End> {
    let Some(said) = said else { return Ok(None) };
    let limits = Limits::DEFAULT;
    session.borrow_mut().changes(limits, said.header_mutation).map_err(End::Reply)?.apply_to_response(response);
    limits.check(&response.headers, PSEUDO).map_err(|reason| End::Reply(session.borrow_mut().refused(reason)))?;
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
        BodyMode::FullDuplexStreamed => {
            response.length = Length::Unknown;
            exchange.change_response_body(FullDuplex::new(session, Way::Response, mode.response_trailers));
            return Ok(());
        }
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
