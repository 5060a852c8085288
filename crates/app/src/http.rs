//! Routes of the sample service.
use crate::answer::{self, Answer, CHAIN};
use crate::call::Caller;
use crate::state::{Received, State, header_texts};
use crate::{grpc, websocket};
use bytes::Bytes;
use futures_util::stream;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Incoming;
use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

/// The largest `/bytes/N`.
const MAX_BYTES: u64 = 1 << 30;
/// The longest `/delay/MS`.
const MAX_DELAY: u64 = 600_000;
const CHUNK: usize = 64 * 1024;

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Any response body. It stays on its thread, so it need not be `Send`.
pub(crate) struct Body(Pin<Box<dyn http_body::Body<Data = Bytes, Error = Error>>>);

impl Body {
    pub(crate) fn new<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes, Error = Infallible> + 'static,
    {
        Self(Box::pin(body.map_err(|never| match never {})))
    }

    pub(crate) fn empty() -> Self {
        Self::new(Empty::new())
    }

    fn incoming(body: UnsyncBoxBody<Bytes, Error>) -> Self {
        Self(Box::pin(body))
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        self.0.as_mut().poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.0.size_hint()
    }
}

/// The service as hyper sees it.
#[derive(Clone)]
pub(crate) struct Service {
    state: Rc<State>,
    caller: Rc<Caller>,
}

impl Service {
    pub(crate) fn new(state: Rc<State>, caller: Caller) -> Self {
        Self { state, caller: Rc::new(caller) }
    }
}

impl hyper::service::Service<Request<Incoming>> for Service {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>>>>;

    fn call(&self, request: Request<Incoming>) -> Self::Future {
        let (state, caller) = (self.state.clone(), self.caller.clone());
        Box::pin(async move { Ok(route(state, &caller, request).await) })
    }
}

async fn route(state: Rc<State>, caller: &Caller, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let (first, rest) = path.trim_start_matches('/').split_once('/').unwrap_or((path.trim_start_matches('/'), ""));
    match (first, rest) {
        ("healthz", "") => health(&state),
        ("count", "") => plain(StatusCode::OK, format!("{}\n", state.count())),
        ("stats", "") => json(&state.stats()),
        ("stats", "reset") => {
            state.reset();
            plain(StatusCode::OK, "reset\n".to_owned())
        }
        ("admin", knob) => admin(&state, knob, request.uri().query().unwrap_or_default()),
        // The tutorial's own paths for the same knobs.
        ("misbehave" | "behave", "") => admin(&state, first, request.uri().query().unwrap_or_default()),
        _ => counted(state, caller, request, first, rest).await,
    }
}

/// Requests that count as traffic.
async fn counted(state: Rc<State>, caller: &Caller, request: Request<Incoming>, first: &str, rest: &str) -> Response<Body> {
    let received = received(&request);
    let number = state.received(received.clone());
    if grpc::is_grpc(&request) {
        return grpc::serve(state, number, request).await;
    }
    if websocket::is_upgrade(&request) {
        return websocket::accept(request);
    }
    match (first, rest.parse::<u64>()) {
        ("headers", _) => json(&serde_json::json!(received.headers)),
        ("echo", _) => echo(request),
        ("status", Ok(code)) => match u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok()) {
            Some(status) if status.as_u16() >= 200 => plain(status, format!("{status}\n")),
            _ => plain(StatusCode::BAD_REQUEST, format!("{code} is not a final HTTP status\n")),
        },
        ("delay", Ok(millis)) => {
            tokio::time::sleep(Duration::from_millis(millis.min(MAX_DELAY))).await;
            plain(StatusCode::OK, format!("waited {} ms\n", millis.min(MAX_DELAY)))
        }
        ("bytes", Ok(count)) => bytes(count.min(MAX_BYTES)),
        _ => {
            state.wait().await;
            if let Some(status) = state.failure() {
                return finished(answer::failure(&state, status));
            }
            let replies = caller.call_all(request.headers()).await;
            finished(answer::answer(&state, &received, number, &replies))
        }
    }
}

fn received(request: &Request<Incoming>) -> Received {
    let protocol = match (request.version(), grpc::is_grpc(request), websocket::is_upgrade(request)) {
        (_, true, _) => "grpc",
        (_, _, true) => "websocket",
        (Version::HTTP_2, ..) => "HTTP/2",
        (Version::HTTP_10, ..) => "HTTP/1.0",
        _ => "HTTP/1.1",
    };
    let mut headers = header_texts(request.headers());
    // HTTP/2 has no Host header; show the authority under the name that people look for.
    if let Some(authority) = request.uri().authority() {
        headers.entry("host".to_owned()).or_insert_with(|| authority.to_string());
    }
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str()).to_owned();
    Received { protocol, method: request.method().to_string(), path, headers }
}

fn health(state: &State) -> Response<Body> {
    if state.is_draining() {
        plain(StatusCode::SERVICE_UNAVAILABLE, "stopping\n".to_owned())
    } else {
        plain(StatusCode::OK, "ok\n".to_owned())
    }
}

fn admin(state: &State, knob: &str, query: &str) -> Response<Body> {
    let value = |key: &str| query.split('&').find_map(|pair| pair.strip_prefix(key)?.strip_prefix('='));
    match knob {
        "misbehave" => match value("code").unwrap_or("503").parse::<StatusCode>() {
            Ok(code) if code.as_u16() >= 200 => {
                state.set_misbehave(Some(code));
                plain(StatusCode::OK, format!("Following requests to / will return {}\n", code.as_u16()))
            }
            _ => plain(StatusCode::BAD_REQUEST, "code must be a final HTTP status: /admin/misbehave?code=503\n".to_owned()),
        },
        "behave" => {
            state.set_misbehave(None);
            plain(StatusCode::OK, "Following requests to / will return 200\n".to_owned())
        }
        "latency" => match value("ms").and_then(|ms| ms.parse::<u64>().ok()) {
            Some(ms) => {
                state.set_latency(Duration::from_millis(ms.min(MAX_DELAY)));
                plain(StatusCode::OK, format!("Following requests to / will take {} ms\n", ms.min(MAX_DELAY)))
            }
            None => plain(StatusCode::BAD_REQUEST, "ms must be a number: /admin/latency?ms=200\n".to_owned()),
        },
        _ => plain(StatusCode::NOT_FOUND, "knobs: /admin/misbehave?code=503, /admin/behave, /admin/latency?ms=200\n".to_owned()),
    }
}

fn echo(request: Request<Incoming>) -> Response<Body> {
    let (parts, body) = request.into_parts();
    let mut response = Response::new(Body::incoming(body.map_err(Into::into).boxed_unsync()));
    if let Some(kind) = parts.headers.get(CONTENT_TYPE) {
        response.headers_mut().insert(CONTENT_TYPE, kind.clone());
    }
    response
}

fn bytes(count: u64) -> Response<Body> {
    let chunk = Bytes::from(vec![b'x'; CHUNK]);
    let frames = stream::unfold(count, move |left| {
        let size = left.min(CHUNK as u64);
        let frame = Frame::data(chunk.slice(..size as usize));
        std::future::ready((left > 0).then_some((Ok::<_, Infallible>(frame), left - size)))
    });
    let mut response = Response::new(Body::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-length", HeaderValue::from(count));
    response
}

fn finished(answer: Answer) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(answer.body)));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(answer.content_type));
    response.headers_mut().insert(CHAIN, answer.chain);
    response
}

fn plain(status: StatusCode, text: String) -> Response<Body> {
    let mut response = Response::new(Body::new(Full::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

fn json(value: &serde_json::Value) -> Response<Body> {
    let text = serde_json::to_string_pretty(value).unwrap_or_default() + "\n";
    let mut response = Response::new(Body::new(Full::from(text)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
