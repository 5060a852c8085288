//! What the service answers: JSON that shows the whole chain, or the one line of the Istio tutorial.
use crate::call::Reply;
use crate::options::Format;
use crate::state::{Received, State};
use http::{HeaderValue, StatusCode};
use serde_json::{Value, json};

/// The header that names every service the answer passed through: `customer/v1,preference/v1`.
pub(crate) const CHAIN: &str = "x-app-chain";

/// A finished answer.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) content_type: &'static str,
    pub(crate) body: String,
    pub(crate) chain: HeaderValue,
}

/// Puts an answer together from the request and what the calls brought.
pub(crate) fn answer(state: &State, received: &Received, number: u64, replies: &[Reply]) -> Answer {
    let failed = replies.iter().any(|reply| !reply.is_success());
    let status = if failed { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK };
    let body = match state.options.format {
        Format::Json => as_json(state, received, number, replies),
        Format::Tutorial => as_line(state, number, replies),
    };
    Answer { status, content_type: content_type(state.options.format), body, chain: chain(state, replies) }
}

/// The answer of a request that is to fail.
pub(crate) fn failure(state: &State, status: StatusCode) -> Answer {
    let options = &state.options;
    let body = match options.format {
        Format::Tutorial => format!("{} misbehavior from '{}'\n", options.name, state.pod),
        Format::Json => {
            let error = "failing as told, by --error-rate or /admin/misbehave";
            pretty(&json!({"service": options.name, "version": options.version, "pod": state.pod, "error": error}))
        }
    };
    Answer { status, content_type: content_type(options.format), body, chain: chain(state, &[]) }
}

fn content_type(format: Format) -> &'static str {
    match format {
        Format::Json => "application/json",
        Format::Tutorial => "text/plain; charset=utf-8",
    }
}

fn as_json(state: &State, received: &Received, number: u64, replies: &[Reply]) -> String {
    let options = &state.options;
    let mut out = json!({
        "service": options.name,
        "version": options.version,
        "pod": state.pod,
        "count": number,
        "protocol": received.protocol,
        "method": received.method,
        "path": received.path,
        "headers": received.headers,
    });
    if let Some(message) = &options.message {
        out["message"] = json!(message);
    }
    if !replies.is_empty() {
        out["calls"] = replies.iter().map(call_json).collect();
    }
    if options.body_size > 0 {
        let missing = usize::try_from(options.body_size).unwrap_or(usize::MAX).saturating_sub(out.to_string().len());
        out["payload"] = json!("x".repeat(missing));
    }
    pretty(&out)
}

/// A callee's JSON is nested as JSON, anything else as text.
fn call_json(reply: &Reply) -> Value {
    let body = serde_json::from_str(&reply.body).unwrap_or_else(|_| json!(reply.body.trim_end()));
    let mut out = json!({"url": reply.url, "millis": reply.took.as_secs_f64() * 1e3, "body": body});
    match (&reply.status, &reply.error) {
        (_, Some(error)) => out["error"] = json!(error),
        (Some(status), None) => out["status"] = json!(status.as_u16()),
        (None, None) => {}
    }
    out
}

/// `customer => preference => recommendation v1 from 'pod': 3`, and `customer => Error: 503 - no healthy upstream`.
fn as_line(state: &State, number: u64, replies: &[Reply]) -> String {
    let options = &state.options;
    let message = options.message.as_deref().map(|message| format!(" {message}")).unwrap_or_default();
    let own = format!("{} {} from '{}': {number}{message}", options.name, options.version, state.pod);
    if replies.is_empty() {
        return format!("{own}\n");
    }
    let callees: Vec<String> = replies.iter().map(call_line).collect();
    format!("{} => {}\n", options.name, callees.join(" + "))
}

fn call_line(reply: &Reply) -> String {
    match (&reply.error, reply.status) {
        (Some(error), _) => format!("Error: {error}"),
        (None, Some(status)) if !status.is_success() => format!("Error: {} - {}", status.as_u16(), reply.body.trim_end()),
        (None, _) => reply.body.trim_end().to_owned(),
    }
}

fn chain(state: &State, replies: &[Reply]) -> HeaderValue {
    let mut out = format!("{}/{}", state.options.name, state.options.version);
    for reply in replies.iter().filter(|reply| !reply.chain.is_empty()) {
        out.push(',');
        out.push_str(&reply.chain);
    }
    HeaderValue::from_str(&out).unwrap_or(HeaderValue::from_static(""))
}

fn pretty(value: &Value) -> String {
    let mut out = serde_json::to_string_pretty(value).unwrap_or_default();
    out.push('\n');
    out
}
