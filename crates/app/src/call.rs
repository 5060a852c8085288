//! Calls to other services, with the headers that a trace and the demos need passed on.
use crate::answer::CHAIN;
use crate::grpc;
use crate::options::ServeOptions;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use std::time::{Duration, Instant};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};

/// Headers passed on as they came: tracing families, who the user is, and what the demos route by.
const FORWARDED: &[&str] = &[
    "x-request-id",
    "x-b3-traceid",
    "x-b3-spanid",
    "x-b3-parentspanid",
    "x-b3-sampled",
    "x-b3-flags",
    "b3",
    "traceparent",
    "tracestate",
    "sw8",
    "x-datadog-trace-id",
    "x-datadog-parent-id",
    "x-datadog-sampling-priority",
    "x-ot-span-context",
    "x-cloud-trace-context",
    "grpc-trace-bin",
    "x-client-trace-id",
    "x-envoy-force-trace",
    "baggage",
    "end-user",
    "user-agent",
    "user-preference",
    "cookie",
    "authorization",
];

/// Longer answers are cut off with an error: the chain repeats them at every step.
const MAX_ANSWER: usize = 4 << 20;

/// What a call brought.
pub(crate) struct Reply {
    pub(crate) url: String,
    /// None when no response came, and for TCP.
    pub(crate) status: Option<StatusCode>,
    /// Why no response came.
    pub(crate) error: Option<String>,
    pub(crate) body: String,
    /// The services it passed through.
    pub(crate) chain: String,
    pub(crate) took: Duration,
}

impl Reply {
    pub(crate) fn is_success(&self) -> bool {
        self.error.is_none() && self.status.is_none_or(|status| status.is_success())
    }
}

/// The service's client side.
#[derive(Clone)]
pub(crate) struct Caller {
    http1: Client<HttpConnector, Full<Bytes>>,
    http2: Client<HttpConnector, Full<Bytes>>,
    calls: Vec<Uri>,
    forward: Vec<HeaderName>,
    timeout: Duration,
}

/// Body and chain of a response.
type Got = (Option<StatusCode>, String, String);

impl Caller {
    pub(crate) fn new(options: &ServeOptions) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.set_connect_timeout(Some(options.call_timeout));
        let mut builder = Client::builder(TokioExecutor::new());
        builder.pool_timer(TokioTimer::new()).pool_idle_timeout(Duration::from_secs(30)).pool_max_idle_per_host(32);
        let http1 = builder.build(connector.clone());
        let http2 = builder.http2_only(true).build(connector);
        let mut forward: Vec<HeaderName> = FORWARDED.iter().map(|name| HeaderName::from_static(name)).collect();
        for name in &options.forward {
            // A name given twice, or forwarded anyway, must not double the header.
            if !forward.contains(name) {
                forward.push(name.clone());
            }
        }
        Self { http1, http2, calls: options.calls.clone(), forward, timeout: options.call_timeout }
    }

    /// Makes every call in turn.
    pub(crate) async fn call_all(&self, incoming: &HeaderMap) -> Vec<Reply> {
        let mut replies = Vec::with_capacity(self.calls.len());
        for url in &self.calls {
            replies.push(self.call(url, incoming).await);
        }
        replies
    }

    async fn call(&self, url: &Uri, incoming: &HeaderMap) -> Reply {
        let started = Instant::now();
        let outcome = tokio::time::timeout(self.timeout, async {
            match url.scheme_str() {
                Some("grpc") => self.grpc(url, incoming).await,
                Some("tcp") => tcp(url).await,
                _ => self.http(url, incoming).await,
            }
        });
        let outcome = outcome.await.unwrap_or_else(|_| Err(format!("no answer within {:?}", self.timeout)));
        let (status, error, body, chain) = match outcome {
            Ok((status, body, chain)) => (status, None, body, chain),
            Err(error) => (None, Some(error), String::new(), String::new()),
        };
        Reply { url: url.to_string(), status, error, body, chain, took: started.elapsed() }
    }

    async fn http(&self, url: &Uri, incoming: &HeaderMap) -> Result<Got, String> {
        let mut request = Request::get(url.clone()).body(Full::default()).map_err(|e| e.to_string())?;
        self.forward(incoming, request.headers_mut());
        let response = self.http1.request(request).await.map_err(|e| whole(&e))?;
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?.to_bytes();
        let chain = parts.headers.get(CHAIN).and_then(|chain| chain.to_str().ok()).unwrap_or_default().to_owned();
        Ok((Some(parts.status), String::from_utf8_lossy(&body).into_owned(), chain))
    }

    async fn grpc(&self, url: &Uri, incoming: &HeaderMap) -> Result<Got, String> {
        let authority = url.authority().map(ToString::to_string).unwrap_or_default();
        let target = format!("http://{authority}{}", grpc::UNARY);
        let body = grpc::frame(&grpc::EchoRequest { message: "hello".to_owned(), ..grpc::EchoRequest::default() });
        let request = Request::post(target).header("content-type", "application/grpc").header("te", "trailers").body(Full::new(body));
        let mut request = request.map_err(|e| e.to_string())?;
        self.forward(incoming, request.headers_mut());
        let response = self.http2.request(request).await.map_err(|e| whole(&e))?;
        let (parts, body) = response.into_parts();
        let collected = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
        let trailers = collected.trailers().cloned().unwrap_or_default();
        let status = trailers.get("grpc-status").or_else(|| parts.headers.get("grpc-status")).and_then(|s| s.to_str().ok());
        match status {
            Some("0") => {
                let reply: grpc::EchoReply = grpc::unframe(&collected.to_bytes()).map_err(|e| e.to_string())?;
                let body = serde_json::to_string(&reply).unwrap_or_default();
                Ok((Some(StatusCode::OK), body, format!("{}/{}", reply.service, reply.version)))
            }
            Some(code) => {
                let message = trailers.get("grpc-message").or_else(|| parts.headers.get("grpc-message"));
                let message = message.map(|m| String::from_utf8_lossy(m.as_bytes()).into_owned()).unwrap_or_default();
                Err(format!("grpc-status {code} {message}"))
            }
            None => Err(format!("HTTP status {} without grpc-status", parts.status)),
        }
    }

    fn forward(&self, incoming: &HeaderMap, out: &mut HeaderMap) {
        for name in &self.forward {
            for value in incoming.get_all(name) {
                out.append(name.clone(), value.clone());
            }
        }
        // The tutorial passes `baggage-user-agent` and its like on.
        for (name, value) in incoming.iter().filter(|(name, _)| name.as_str().starts_with("baggage-")) {
            out.append(name.clone(), value.clone());
        }
    }
}

async fn tcp(url: &Uri) -> Result<Got, String> {
    let (host, port) = (url.host().unwrap_or_default(), url.port_u16().unwrap_or_default());
    let stream = tokio::net::TcpStream::connect((host.trim_matches(['[', ']']), port)).await.map_err(|e| e.to_string())?;
    let mut stream = BufReader::new(stream);
    stream.write_all(b"hello\n").await.map_err(|e| e.to_string())?;
    let mut line = String::new();
    let read = stream.read_line(&mut line).await.map_err(|e| e.to_string())?;
    if read == 0 { Err("closed without an answer".to_owned()) } else { Ok((None, line, String::new())) }
}

/// An error with its causes: hyper's own text says only "client error".
pub(crate) fn whole(error: &dyn std::error::Error) -> String {
    let mut out = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        out.push_str(": ");
        out.push_str(&error.to_string());
        cause = error.source();
    }
    out
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    #[command(disable_version_flag = true)]
    struct Line {
        #[command(flatten)]
        options: ServeOptions,
    }

    #[test]
    fn a_header_that_is_forwarded_anyway_is_not_doubled_by_asking_for_it() {
        let line = Line::parse_from(["app", "--forward", "end-user", "--forward", "x-tenant", "--forward", "x-tenant"]);
        let incoming = HeaderMap::from_iter([
            (HeaderName::from_static("end-user"), http::HeaderValue::from_static("ada")),
            (HeaderName::from_static("x-tenant"), http::HeaderValue::from_static("blue")),
        ]);
        let mut out = HeaderMap::new();
        Caller::new(&line.options).forward(&incoming, &mut out);
        assert_eq!((out.get_all("end-user").iter().count(), out.get_all("x-tenant").iter().count()), (1, 1));
    }
}
