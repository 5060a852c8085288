//! The debug and monitoring ports: readiness, metrics, and pages that show what the control plane knows.
//!
//! Everything is read-only. `/debug/*` shows all configuration and is answered to this host alone
//! unless opened in the [`crate::Config`]; readiness, version and metrics are for everybody.
mod dump;
mod pages;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lateen_identity::CertificateAuthority;
use lateen_proto::json::Codec;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};

use crate::backend::Streams;
use crate::listen;
use crate::metrics::Metrics;
use crate::snapshot::Snapshot;

/// Connections at once; more wait in the kernel's queue.
const CONNECTIONS: usize = 128;
/// Request line and headers together.
const MAX_HEAD: usize = 16 * 1024;
/// A client that sends its headers slower, or reads its answer slower, is cut off.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(120);

/// What the pages show.
pub(crate) struct Context {
    pub(crate) version: &'static str,
    pub(crate) identifier: String,
    pub(crate) current: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(crate) streams: Arc<Streams>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) authority: Option<Arc<CertificateAuthority>>,
    pub(crate) codec: Codec,
    pub(crate) debug_for_all: bool,
}

/// A page, made.
pub(crate) enum Page {
    Json(Value),
    Text(String),
    Metrics(String),
    Refused(StatusCode, String),
}

/// Serves one port for ever.
pub(crate) async fn serve(listener: TcpListener, context: Arc<Context>) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = permits.clone().acquire_owned().await else { return };
        let (stream, remote) = listen::accept(&listener).await;
        let context = context.clone();
        tokio::spawn(async move {
            let _permit = permit;
            // Errors here are the client's: it hung up, or spoke something else than HTTP.
            let _ = tokio::time::timeout(CONNECTION_TIMEOUT, connection(stream, remote, context)).await;
        });
    }
}

async fn connection(stream: TcpStream, remote: SocketAddr, context: Arc<Context>) -> hyper::Result<()> {
    let service = service_fn(move |request: Request<Incoming>| {
        let context = context.clone();
        async move { Ok::<_, Infallible>(answer(&request, remote, context).await) }
    });
    hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

async fn answer<B>(request: &Request<B>, remote: SocketAddr, context: Arc<Context>) -> Response<Full<Bytes>> {
    if request.method() != Method::GET && request.method() != Method::HEAD {
        return render(Page::Refused(StatusCode::METHOD_NOT_ALLOWED, "these pages are read-only".into()));
    }
    let path = request.uri().path().to_owned();
    if path.starts_with("/debug") && !context.debug_for_all && !remote.ip().to_canonical().is_loopback() {
        return render(Page::Refused(StatusCode::FORBIDDEN, "debug pages are answered to this host alone".into()));
    }
    let query = request.uri().query().unwrap_or_default().to_owned();
    // A dump of a large mesh takes a while; it must not hold up streams on this thread.
    let made = tokio::task::spawn_blocking(move || pages::page(&context, &path, &query)).await;
    render(made.unwrap_or_else(|_| Page::Refused(StatusCode::INTERNAL_SERVER_ERROR, "internal error while making this page".into())))
}

fn render(page: Page) -> Response<Full<Bytes>> {
    let (status, kind, body) = match page {
        Page::Json(value) => {
            let mut text = serde_json::to_string_pretty(&value).unwrap_or_default();
            text.push('\n');
            (StatusCode::OK, "application/json", text)
        }
        Page::Text(text) => (StatusCode::OK, "text/plain; charset=utf-8", text),
        Page::Metrics(text) => (StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", text),
        Page::Refused(status, text) => (status, "text/plain; charset=utf-8", format!("{text}\n")),
    };
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}
