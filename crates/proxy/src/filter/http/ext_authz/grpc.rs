//! Asking an authorizer over gRPC: `envoy.service.auth.v3.Authorization/Check`.
use lateen_proto::envoy::config::core::v3::{self as core, header_value_option::HeaderAppendAction};
use lateen_proto::envoy::service::auth::v3::{self as auth, attribute_context, check_response::HttpResponse};
use lateen_snapshot::ext_authz::ExtAuthz;
use lateen_snapshot::header::AppendAction;
use lateen_snapshot::metadata;
use lateen_snapshot::service::GrpcService;
use prost_types::{Struct, value::Kind};

use super::super::{heads, wait};
use super::verdict::{Changes, Collected, Decision, Refusal, Verdict};
use super::{Shown, context_extensions};
use crate::filter::authorizer;
use crate::http::headers::{DOWNSTREAM_CLUSTER, text};
use crate::http::{End, Exchange};
use crate::upstream::grpc;

const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
pub(super) async fn ask(
    exchange: &mut Exchange<'_>,
    config: &ExtAuthz,
    service: &GrpcService,
    body: Option<Shown>,
) -> Result<Verdict, End> {
    let question = auth::CheckRequest { attributes: Some(attributes(exchange, config, body)) };
    let (worker, live) = (exchange.worker.clone(), exchange.live.clone());
    let asking = Box::pin(grpc::unary::<auth::CheckResponse>(&worker, &live, service, authorizer::METHOD, &question));
    let answer = wait::patiently(exchange, asking).await?;
    Ok(answer.map_or_else(
        |status| {
            tracing::debug!(code = status.code, message = status.message, "external authorization failed");
            Verdict::error()
        },
        verdict,
    ))
}

fn attributes(exchange: &Exchange<'_>, config: &ExtAuthz, body: Option<Shown>) -> auth::AttributeContext {
    let conn = exchange.conn;
    let namespaces = config.metadata_namespaces.iter();
    let known = namespaces.filter_map(|name| Some((name.to_string(), as_struct(exchange.info.metadata.get(name, &[])?)?)));
    auth::AttributeContext {
        source: Some(attribute_context::Peer {
            service: text(&exchange.request.headers, &DOWNSTREAM_CLUSTER).unwrap_or_default().to_owned(),
            ..authorizer::source(conn, config.include_peer_certificate)
        }),
        destination: Some(authorizer::destination(conn)),
        request: Some(attribute_context::Request {
            time: Some(exchange.info.start_time.into()),
            http: Some(http_request(exchange, config, body)),
        }),
        context_extensions: context_extensions(exchange).into_iter().collect(),
        metadata_context: Some(core::Metadata { filter_metadata: known.collect(), ..Default::default() }),
        route_metadata_context: Some(core::Metadata::default()),
        tls_session: authorizer::tls_session(conn, config.include_tls_session),
    }
}

fn http_request(exchange: &Exchange<'_>, config: &ExtAuthz, body: Option<Shown>) -> attribute_context::HttpRequest {
    let request = &exchange.request;
    let mut http = attribute_context::HttpRequest {
        id: exchange.worker.roll64().to_string(),
        method: request.method.as_str().to_owned(),
        path: request.path.to_string(),
        host: request.authority.to_string(),
        scheme: request.scheme.to_owned(),
        size: i64::try_from(exchange.info.body_received).unwrap_or(i64::MAX),
        protocol: request.version.name().to_owned(),
        ..Default::default()
    };
    let shown = heads::of_request(request).into_iter().filter(|(name, _)| *name != PARTIAL_BODY && config.headers.passes(name));
    let partial = body.as_ref().map(|shown| (PARTIAL_BODY, if shown.partial { "true" } else { "false" }.as_bytes().to_vec()));
    let shown = shown.chain(partial);
    if config.raw_headers {
        let header =
            |(name, value): (&str, Vec<u8>)| core::HeaderValue { key: name.to_owned(), raw_value: value.into(), ..Default::default() };
        http.header_map = Some(core::HeaderMap { headers: shown.map(header).collect() });
    } else {
        for (name, value) in shown {
            let value = heads::sanitized(&value);
            match http.headers.get_mut(name) {
                Some(before) => {
                    before.push(',');
                    before.push_str(&value);
                }
                None => drop(http.headers.insert(name.to_owned(), value)),
            }
        }
    }
    match body {
        Some(shown) if shown.as_bytes => http.raw_body = shown.bytes,
        Some(shown) => http.body = heads::sanitized(&shown.bytes),
        None => {}
    }
    http
}

fn as_struct(value: &serde_json::Value) -> Option<Struct> {
    match metadata::to_proto(value).kind {
        Some(Kind::StructValue(fields)) => Some(fields),
        _ => None,
    }
}

fn verdict(answer: auth::CheckResponse) -> Verdict {
    let code = answer.status.map_or(0, |status| status.code);
    let mut said = answer.dynamic_metadata;
    if let Some(HttpResponse::OkResponse(ok)) = &answer.http_response
        && let Some(older) = &ok.dynamic_metadata
    {
        said = Some(older.clone());
    }
    let metadata = said.map(|s| s.fields.iter().map(|(key, value)| (key.clone(), metadata::from_proto(value))).collect());
    let decision = match (code, answer.http_response) {
        (0, Some(HttpResponse::OkResponse(ok))) => Decision::Allowed(Box::new(changes(ok))),
        (0, _) => Decision::Allowed(Box::default()),
        (_, Some(HttpResponse::ErrorResponse(error))) => Decision::Error(Some(refusal(error, 0))),
        (_, Some(HttpResponse::DeniedResponse(denied))) => Decision::Denied(refusal(denied, 403)),
        (_, _) => Decision::Denied(Refusal { status: 403, ..Refusal::default() }),
    };
    Verdict { decision, metadata: metadata.unwrap_or_default() }
}

fn changes(ok: auth::OkHttpResponse) -> Changes {
    let (request, response) = (collect(ok.headers, flagged), collect(ok.response_headers_to_add, asked));
    let plain = |text: &str| text.bytes().all(|b| (b'!'..=b'~').contains(&b) && b != b'#');
    let (set_query, wrong): (Vec<_>, Vec<_>) =
        ok.query_parameters_to_set.into_iter().map(|p| (p.key, p.value)).partition(|(key, value)| plain(key) && plain(value));
    Changes {
        invalid: request.invalid || response.invalid || !wrong.is_empty(),
        request: request.mutations,
        response: response.mutations,
        remove: ok.headers_to_remove,
        set_query,
        remove_query: ok.query_parameters_to_remove,
    }
}

fn refusal(denied: auth::DeniedHttpResponse, status: u16) -> Refusal {
    let headers = collect(denied.headers, asked);
    let code = denied.status.map(|s| s.code).and_then(|code| u16::try_from(code).ok()).filter(|code| (100..600).contains(code));
    Refusal { status: code.unwrap_or(status), headers: headers.mutations, body: denied.body.into_bytes(), invalid: headers.invalid }
}

fn collect(headers: Vec<core::HeaderValueOption>, how: fn(Option<bool>, i32) -> Option<(AppendAction, bool)>) -> Collected {
    let mut collected = Collected::default();
    for core::HeaderValueOption { header, append, append_action, .. } in headers {
        let Some(core::HeaderValue { key, value, raw_value }) = header else { continue };
        let value = if value.is_empty() { &raw_value[..] } else { value.as_bytes() };
        match how(append, append_action) {
            Some((action, joins)) => collected.add(&key, value, action, joins),
            None => collected.invalid = true,
        }
    }
    collected
}

/// Of a request's headers, Envoy reads the old flag alone: without it a header replaces the caller's, whatever action stands there.
fn flagged(append: Option<bool>, _: i32) -> Option<(AppendAction, bool)> {
    Some(if append == Some(true) { (AppendAction::AppendIfExistsOrAdd, true) } else { (AppendAction::OverwriteIfExistsOrAdd, false) })
}

/// How a response's header is set; `None` for an action that nobody knows.
fn asked(append: Option<bool>, action: i32) -> Option<(AppendAction, bool)> {
    if let Some(append) = append {
        return flagged(Some(append), action);
    }
    let action = match HeaderAppendAction::try_from(action).ok()? {
        HeaderAppendAction::AppendIfExistsOrAdd => AppendAction::AppendIfExistsOrAdd,
        HeaderAppendAction::AddIfAbsent => AppendAction::AddIfAbsent,
        HeaderAppendAction::OverwriteIfExistsOrAdd => AppendAction::OverwriteIfExistsOrAdd,
        HeaderAppendAction::OverwriteIfExists => AppendAction::OverwriteIfExists,
    };
    Some((action, false))
}
