//! An upstream's HTTP/2 connection.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response};
use serde_json::json;
use tokio::sync::Notify;
use tokio::task::JoinSet;

use super::{Script, processor};
use crate::case::{Answer, Headers, Then};
use crate::compressed;
use crate::wire::{Io, fields};

pub(super) async fn serve(stream: impl Io + 'static, name: &str, script: &Arc<Script>) {
    let mut builder = h2::server::Builder::new();
    let Ok(mut connection) = builder.enable_connect_protocol().handshake::<_, Bytes>(stream).await else { return };
    let mut open = JoinSet::new();
    let deaf = Arc::new(Notify::new());
    loop {
        let (request, respond) = tokio::select! {
            accepted = connection.accept() => match accepted {
                Some(Ok(accepted)) => accepted,
                _ => return,
            },
            () = deaf.notified() => std::future::pending().await,
        };
        let (name, script, deaf) = (name.to_owned(), Arc::clone(script), Arc::clone(&deaf));
        open.spawn(async move {
            // A stream that the proxy gave up is no mistake of ours.
            let _ = exchange(request, respond, &name, &script, &deaf).await;
        });
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    name: &str,
    script: &Script,
    deaf: &Notify,
) -> Result<(), h2::Error> {
    let (parts, mut body) = request.into_parts();
    let path = parts.uri.path_and_query().map_or("", |p| p.as_str());
    let pseudo = [(":authority", parts.uri.authority().map_or("", |a| a.as_str())), (":scheme", parts.uri.scheme_str().unwrap_or(""))];
    let headers = parts.headers.iter().filter(|(n, _)| *n != "x-step").map(|(n, v)| (n.as_str(), v.to_str().unwrap_or("?")));
    let protocol = parts.extensions.get::<h2::ext::Protocol>().map(h2::ext::Protocol::as_str);
    let mut seen = json!({
        "upstream": name, "version": "HTTP/2", "method": parts.method.as_str(), "path": path,
        "headers": fields(pseudo.into_iter().chain(headers)),
    });
    if let Some(protocol) = protocol {
        seen["protocol"] = protocol.into();
    }
    let (at, answer) = script.next(name, seen);
    if answer.upgrade.is_some() {
        return echo(&mut respond, body, &answer).await;
    }
    if let Some(answers) = processor::Answers::of(&answer) {
        return processor::serve(&mut respond, body, answers, at, script).await;
    }
    if !answer.early {
        receive(&mut body, parts.headers.get("content-encoding").and_then(|v| v.to_str().ok()), at, script).await?;
    }
    tokio::time::sleep(Duration::from_millis(answer.after_ms)).await;
    if answer.deaf {
        deaf.notify_one();
    }
    if answer.silent || answer.deaf {
        std::future::pending::<()>().await;
    }
    match answer.then {
        Then::Refuse => respond.send_reset(Reason::REFUSED_STREAM),
        Then::Reset if answer.body.is_none() => respond.send_reset(Reason::INTERNAL_ERROR),
        _ => reply(&mut respond, &answer, name, parts.method == http::Method::HEAD).await?,
    }
    Ok(())
}

/// Takes a CONNECT and sends back what comes, until the end.
async fn echo(respond: &mut SendResponse<Bytes>, mut body: RecvStream, answer: &Answer) -> Result<(), h2::Error> {
    let mut response = Response::new(());
    *response.headers_mut() = map(&answer.headers);
    let mut send = respond.send_response(response, false)?;
    while let Some(piece) = body.data().await {
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        send.send_data(piece, false)?;
    }
    send.send_data(Bytes::new(), true)
}

async fn receive(body: &mut RecvStream, coding: Option<&str>, at: usize, script: &Script) -> Result<(), h2::Error> {
    let _reading = script.read();
    let mut bytes = Vec::new();
    while let Some(piece) = body.data().await {
        let piece = match piece {
            Ok(piece) => piece,
            Err(e) => {
                script.note(at, "body_incomplete", true.into());
                return Err(e);
            }
        };
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    script.note(at, "body", compressed::shown(&bytes, coding));
    if let Some(trailers) = body.trailers().await? {
        script.note(at, "trailers", fields(trailers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap_or("?")))));
    }
    Ok(())
}

pub(crate) fn map(headers: &Headers) -> HeaderMap {
    let pair = |(n, v): &(String, String)| Some((HeaderName::try_from(n.as_str()).ok()?, HeaderValue::try_from(v.as_str()).ok()?));
    headers.0.iter().filter_map(pair).collect()
}

async fn reply(respond: &mut SendResponse<Bytes>, answer: &Answer, name: &str, is_head: bool) -> Result<(), h2::Error> {
    for status in &answer.before {
        let interim = Response::builder().status(*status).header("x-before", status.to_string());
        respond.send_informational(interim.body(()).unwrap_or_default())?;
    }
    let mut response = Response::new(());
    *response.status_mut() = http::StatusCode::from_u16(answer.status).unwrap_or_default();
    *response.headers_mut() = map(&answer.headers);
    let body = super::body_of(answer, name);
    let bodiless = matches!(answer.status, 204 | 304) || is_head || (body.is_empty() && answer.trailers.0.is_empty());
    let mut stream = respond.send_response(response, bodiless)?;
    if bodiless {
        return Ok(());
    }
    tokio::time::sleep(Duration::from_millis(answer.pause_ms)).await;
    let ends = answer.trailers.0.is_empty() && answer.then == Then::Keep;
    stream.send_data(body.into(), ends)?;
    if answer.then != Then::Keep {
        // The data goes out before the reset would overtake it.
        tokio::time::sleep(Duration::from_millis(30)).await;
        stream.send_reset(Reason::INTERNAL_ERROR);
    } else if !ends {
        stream.send_trailers(map(&answer.trailers))?;
    }
    Ok(())
}
