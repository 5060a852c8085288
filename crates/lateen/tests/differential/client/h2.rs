//! A caller's HTTP/2 exchange.
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request};
use serde_json::{Value, json};

use crate::case::{Headers, Step};
use crate::compressed;
use crate::config::Places;
use crate::wire::{Io, fields, shown};

pub(super) async fn ask(stream: impl Io + 'static, step: &Step, index: usize, places: &Places, patience: Duration) -> Value {
    let mut answer = json!({});
    let work = exchange(stream, step, index, places, &mut answer);
    match tokio::time::timeout(patience, work).await {
        Ok(Ok(())) => {}
        Ok(Err(e)) => answer["cut"] = e.reason().map_or_else(|| "closed".to_owned(), |r| format!("{r:?}")).into(),
        Err(_) => answer["cut"] = "nothing came in time".into(),
    }
    answer
}

async fn exchange(stream: impl Io + 'static, step: &Step, index: usize, places: &Places, answer: &mut Value) -> Result<(), h2::Error> {
    let scheme = if step.tls.is_some() { "https" } else { "http" };
    let (client, connection) = h2::client::handshake(stream).await?;
    let driver = tokio::spawn(connection);
    let mut client = client.ready().await?;
    let (method, path) = step.method_and_path();
    while step.protocol.is_some() && !client.is_extended_connect_protocol_enabled() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let mut request = Request::new(());
    *request.method_mut() = method.parse().unwrap_or_default();
    *request.version_mut() = http::Version::HTTP_2;
    *request.headers_mut() = map(&Headers(super::headers(step, index, places)));
    let authority = super::host(step, places);
    let uri = if method == "CONNECT" && step.protocol.is_none() { authority } else { format!("{scheme}://{authority}{path}") };
    *request.uri_mut() = uri.parse().unwrap_or_default();
    if let Some(protocol) = &step.protocol {
        request.extensions_mut().insert(h2::ext::Protocol::from(protocol.as_str()));
    }
    let (pieces, _) = step.pieces();
    let ends = pieces.is_empty() && step.trailers.0.is_empty() && step.then_send.is_none();
    let (response, mut send) = client.send_request(request, ends)?;
    if let Some(then) = &step.then_send {
        let outcome = tunnel(response, send, then, answer).await;
        // The stream is reset when it is dropped: the proxy is to see that, and not the end of the connection.
        tokio::time::sleep(Duration::from_millis(30)).await;
        driver.abort();
        outcome?;
        return Ok(());
    }
    if !ends {
        let last = pieces.len().saturating_sub(1);
        for (at, piece) in pieces.into_iter().enumerate() {
            // A stream that is answered early takes no more.
            let _ = send.send_data(piece.into(), at == last && step.trailers.0.is_empty());
        }
        if !step.trailers.0.is_empty() {
            let _ = send.send_trailers(map(&step.trailers));
        }
    }
    receive(response, answer).await?;
    driver.abort();
    Ok(())
}

fn map(headers: &Headers) -> HeaderMap {
    let pair =
        |(n, v): &(String, String)| Some((http::HeaderName::try_from(n.as_str()).ok()?, http::HeaderValue::try_from(v.as_str()).ok()?));
    headers.0.iter().filter_map(pair).collect()
}

/// Sends once the answer is here and reads as much back; an answer that opens no tunnel is read as any.
async fn tunnel(
    response: h2::client::ResponseFuture,
    mut send: h2::SendStream<Bytes>,
    then: &str,
    answer: &mut Value,
) -> Result<(), h2::Error> {
    let (parts, mut body) = response.await?.into_parts();
    answer["status"] = parts.status.as_u16().into();
    answer["headers"] = fields(parts.headers.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap_or("?"))));
    let open = parts.status.is_success();
    if open {
        let _ = send.send_data(Bytes::copy_from_slice(then.as_bytes()), false);
    }
    let mut bytes: Vec<u8> = Vec::new();
    while !open || bytes.len() < then.len() {
        let Some(piece) = body.data().await else { break };
        let piece = piece?;
        let _ = body.flow_control().release_capacity(piece.len());
        bytes.extend_from_slice(&piece);
    }
    answer[if open { "echoed" } else { "body" }] = shown(&bytes);
    Ok(())
}

async fn receive(mut response: h2::client::ResponseFuture, answer: &mut Value) -> Result<(), h2::Error> {
    let told = |map: &HeaderMap| fields(map.iter().map(|(n, v)| (n.as_str(), v.to_str().unwrap_or("?"))));
    let mut interim = Vec::new();
    let response = poll_fn(|cx| {
        while let Poll::Ready(Some(Ok(one))) = response.poll_informational(cx) {
            interim.push(json!({"status": one.status().as_u16(), "headers": told(one.headers())}));
        }
        Pin::new(&mut response).poll(cx)
    });
    let (parts, mut body) = response.await?.into_parts();
    if !interim.is_empty() {
        answer["before"] = interim.into();
    }
    answer["status"] = parts.status.as_u16().into();
    answer["headers"] = told(&parts.headers);
    let mut bytes: Vec<u8> = Vec::new();
    let mut outcome = Ok(());
    while let Some(piece) = body.data().await {
        match piece {
            Ok(piece) => {
                let _ = body.flow_control().release_capacity(piece.len());
                bytes.extend_from_slice(&piece);
            }
            Err(e) => {
                outcome = Err(e);
                break;
            }
        }
    }
    answer["body"] = compressed::shown(&bytes, parts.headers.get("content-encoding").and_then(|v| v.to_str().ok()));
    outcome?;
    if let Some(trailers) = body.trailers().await? {
        answer["trailers"] = told(&trailers);
    }
    Ok(())
}
