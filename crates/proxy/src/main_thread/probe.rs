//! One active health check: what is asked over HTTP, gRPC or TCP, and what the answer means.
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Scheme;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use lateen_balance::health::Checked;
use lateen_balance::{Address, Host};
use lateen_snapshot::Cluster;
use lateen_snapshot::health_check::{CheckHeader, Expectation, HealthCheck, HealthCheckKind, HttpCheck};
use lateen_snapshot::matcher::StringMatcher;
use lateen_xds::client::Io;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Main;
use super::upstream::{Destination, connect_to};
use crate::http::headers::{DEGRADED, GRPC_TIMEOUT, HEALTH_CHECKED_CLUSTER, IMMEDIATE_HEALTH_CHECK_FAIL};
use crate::listener::proxy_header;
use crate::upstream::grpc::timeout_value;

/// The first bytes of an answer to a gRPC check, which tell.
const GRPC_ANSWER: usize = 4096;

/// What a check told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) result: Checked,
    /// How it failed, where it did.
    pub(super) failure: FailureType,
    /// Of an HTTP answer that is none of a healthy host; else 0.
    pub(super) status: u16,
    /// The host takes traffic, but others are to be preferred (`x-envoy-degraded`).
    pub(super) degraded: bool,
    /// It is not to be counted while it fails (`x-envoy-immediate-health-check-fail`).
    pub(super) excluded: bool,
}

/// How a check failed (Envoy `HealthCheckFailureType`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FailureType {
    /// By its answer.
    Active,
    /// A response to a request said so.
    Passive,
    Network,
    NetworkTimeout,
}

impl Answer {
    /// The host could not be asked.
    pub(super) const NONE: Self = Self { failure: FailureType::Network, ..Self::of(Checked::NoAnswer) };

    /// It said nothing in time.
    pub(super) const LATE: Self = Self { failure: FailureType::NetworkTimeout, ..Self::NONE };

    const fn of(result: Checked) -> Self {
        Self { result, failure: FailureType::Active, status: 0, degraded: false, excluded: false }
    }
}

pub(super) async fn probe(main: &Main, cluster: &Arc<Cluster>, host: &Arc<Host>, check: &HealthCheck) -> Answer {
    let fallback: Option<&[u8]> = match &check.kind {
        HealthCheckKind::Tcp { .. } => None,
        HealthCheckKind::Http(http) if !http.http2 => Some(b"http/1.1"),
        HealthCheckKind::Http(_) | HealthCheckKind::Grpc { .. } => Some(b"h2"),
    };
    let fallback = fallback.map(|name| vec![name.to_vec()]);
    let alpn = check.alpn.as_deref().or(fallback.as_deref());
    let address = address(host, check);
    let transport = check.transport.unwrap_or(host.transport);
    let destination = Destination { address: &address, transport, hostname: &host.hostname, authority: None };
    let Ok(stream) = connect_to(cluster, &destination, main.upstream_mark, alpn).await else { return Answer::NONE };
    let is_tls = cluster.config.transports.get(transport as usize).is_some_and(|t| t.tls.is_some());
    let scheme = if is_tls { Scheme::HTTPS } else { Scheme::HTTP };
    let named = host.checked_at.as_ref().map(|c| &*c.hostname).filter(|name| !name.is_empty());
    match &check.kind {
        HealthCheckKind::Tcp { proxy, send, receive } => {
            let header = proxy.as_ref().map(|p| proxy_header::encode(p, None)).unwrap_or_default();
            tcp(stream, &[header.as_slice(), send.as_slice()].concat(), receive).await
        }
        HealthCheckKind::Http(http) => ask_http(stream, http, scheme, named.unwrap_or(&http.host)).await,
        HealthCheckKind::Grpc { service, authority, headers } => {
            let authority = named.unwrap_or(authority);
            ask_grpc(stream, GrpcQuestion { service, scheme, authority, headers, timeout: check.timeout }).await
        }
    }
}

/// Where the host is checked: its own address unless the endpoint or the check says otherwise.
fn address(host: &Host, check: &HealthCheck) -> Address {
    match (host.checked_at.as_ref().and_then(|c| c.address.as_ref()), check.alt_port, &host.address) {
        (Some(address), _, _) => address.clone(),
        (None, Some(port), Address::Socket(socket)) => Address::Socket((socket.ip(), port).into()),
        (None, _, address) => address.clone(),
    }
}

async fn tcp(mut stream: Box<dyn Io>, send: &[u8], receive: &[Vec<u8>]) -> Answer {
    if !send.is_empty() && (stream.write_all(send).await.is_err() || stream.flush().await.is_err()) {
        return Answer::NONE;
    }
    let mut expected = Expectation::new(receive);
    let mut buffer = [0; 1024];
    while !expected.is_met() {
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => expected.push(buffer.get(..n).unwrap_or_default()),
            _ => return Answer::NONE,
        };
    }
    Answer::of(Checked::Healthy)
}

async fn ask_http(stream: Box<dyn Io>, check: &HttpCheck, scheme: Scheme, host: &str) -> Answer {
    let body = Full::new(check.send.clone());
    let Ok(mut request) = Request::builder().method(check.method.clone()).uri(&*check.path).body(body) else {
        return Answer::NONE;
    };
    request.headers_mut().insert(header::USER_AGENT, header::HeaderValue::from_static("Envoy/HC"));
    for name in &check.remove {
        request.headers_mut().remove(name);
    }
    add(request.headers_mut(), &check.add);
    let (mut expected, mut left) = (Expectation::new(&check.receive), check.receive_within);
    let look = |data: &[u8]| {
        let data = data.get(..left.min(data.len())).unwrap_or_default();
        left -= data.len();
        expected.push(data);
    };
    let Some(told) = exchange(stream, request, host, check.http2.then_some(scheme), look).await else { return Answer::NONE };
    let within = |ranges: &[std::ops::Range<u16>]| ranges.iter().any(|r| r.contains(&told.status));
    let answered = within(&check.expected);
    let unwell = Answer { status: told.status, ..Answer::of(Checked::Unwell) };
    if !answered {
        let result = if within(&check.retriable) { Checked::NoAnswer } else { Checked::Unwell };
        return Answer { result, excluded: told.headers.contains_key(&IMMEDIATE_HEALTH_CHECK_FAIL), ..unwell };
    }
    let belongs = |service: &StringMatcher| {
        let named = told.headers.get(&HEALTH_CHECKED_CLUSTER).and_then(|v| v.to_str().ok());
        service.matches(named.unwrap_or_default())
    };
    if expected.is_met() && check.service.as_ref().is_none_or(belongs) {
        Answer { degraded: told.headers.contains_key(&DEGRADED), ..Answer::of(Checked::Healthy) }
    } else {
        unwell
    }
}

/// What a gRPC check asks.
struct GrpcQuestion<'a> {
    service: &'a str,
    scheme: Scheme,
    authority: &'a str,
    headers: &'a [CheckHeader],
    timeout: Duration,
}

async fn ask_grpc(stream: Box<dyn Io>, question: GrpcQuestion<'_>) -> Answer {
    let GrpcQuestion { service, scheme, authority, headers, timeout } = question;
    let request = Request::post("/grpc.health.v1.Health/Check").header("content-type", "application/grpc").header("te", "trailers");
    let Ok(mut request) = request.body(Full::new(grpc_request(service))) else { return Answer::NONE };
    request.headers_mut().insert(header::USER_AGENT, header::HeaderValue::from_static("Envoy/HC"));
    add(request.headers_mut(), headers);
    if let Some(value) = timeout_value(timeout) {
        request.headers_mut().insert(GRPC_TIMEOUT, value);
    }
    let mut message = Vec::new();
    let keep = |data: &[u8]| message.extend_from_slice(data.get(..data.len().min(GRPC_ANSWER - message.len())).unwrap_or_default());
    match exchange(stream, request, authority, Some(scheme), keep).await {
        None => Answer::NONE,
        Some(told) if told.status == 200 && told.grpc_ok && is_serving(&message) => Answer::of(Checked::Healthy),
        Some(_) => Answer::of(Checked::Unwell),
    }
}

fn add(headers: &mut HeaderMap, more: &[CheckHeader]) {
    for CheckHeader { name, value, append } in more {
        if *append {
            headers.append(name, value.clone());
        } else {
            headers.insert(name, value.clone());
        }
    }
}

/// `HealthCheckRequest { service = 1 }` in its five-byte frame.
fn grpc_request(service: &str) -> Bytes {
    let mut message = Vec::with_capacity(service.len() + 8);
    if !service.is_empty() {
        message.push(0x0a);
        let mut length = service.len();
        // A varint: seven bits a byte, the lowest first.
        while length >= 0x80 {
            message.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        message.push(length as u8);
        message.extend_from_slice(service.as_bytes());
    }
    let length = u32::try_from(message.len()).unwrap_or(0).to_be_bytes();
    [&[0u8][..], &length, &message].concat().into()
}

/// `HealthCheckResponse { status = 1 }` with `SERVING` = 1.
fn is_serving(body: &[u8]) -> bool {
    body.get(5..).is_some_and(|message| message.starts_with(&[0x08, 0x01]))
}

/// What an answer says that matters, but for its body.
struct Told {
    status: u16,
    headers: HeaderMap,
    grpc_ok: bool,
}

/// Asks, over HTTP/2 where there is a scheme to name, and shows the body of the answer as it comes.
async fn exchange(
    stream: Box<dyn Io>,
    mut request: Request<Full<Bytes>>,
    host: &str,
    http2: Option<Scheme>,
    look: impl FnMut(&[u8]),
) -> Option<Told> {
    let io = TokioIo::new(stream);
    if let Some(scheme) = http2 {
        // A cluster's name may hold characters that an authority must not.
        let authority = host.parse().unwrap_or(http::uri::Authority::from_static("localhost"));
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(scheme);
        parts.authority = Some(authority);
        *request.uri_mut() = http::Uri::from_parts(parts).ok()?;
        let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.ok()?;
        let _driver = Driver(tokio::spawn(async move { connection.await.is_ok() }));
        read(sender.send_request(request).await.ok()?, look).await
    } else {
        if !request.headers().contains_key(header::HOST) {
            request.headers_mut().insert(header::HOST, host.parse().ok()?);
        }
        let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.ok()?;
        let _driver = Driver(tokio::spawn(async move { connection.await.is_ok() }));
        read(sender.send_request(request).await.ok()?, look).await
    }
}

/// The task that moves a connection's bytes; it ends with the check, also when that is given up.
struct Driver(tokio::task::JoinHandle<bool>);

impl Drop for Driver {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn read(response: http::Response<hyper::body::Incoming>, mut look: impl FnMut(&[u8])) -> Option<Told> {
    let (head, mut body) = response.into_parts();
    let is_ok = |headers: &HeaderMap| headers.get("grpc-status").map(|s| s == "0");
    let mut grpc_ok = is_ok(&head.headers);
    while let Some(frame) = body.frame().await {
        let frame = frame.ok()?;
        if let Some(data) = frame.data_ref() {
            look(data);
        }
        grpc_ok = frame.trailers_ref().and_then(is_ok).or(grpc_ok);
    }
    Some(Told { status: head.status.as_u16(), headers: head.headers, grpc_ok: grpc_ok.unwrap_or(false) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_grpc_check_says_how_it_comes_and_how_long_it_waits() {
        for (scheme, name) in [(Scheme::HTTP, "http"), (Scheme::HTTPS, "https")] {
            let (ours, theirs) = tokio::io::duplex(4096);
            let peer = tokio::spawn(async move {
                let mut connection = h2::server::handshake(theirs).await.unwrap();
                let (request, mut respond) = connection.accept().await.unwrap().unwrap();
                let head = (request.uri().scheme_str().map(str::to_owned), request.headers()[GRPC_TIMEOUT].clone());
                respond.send_response(http::Response::builder().status(503).body(()).unwrap(), true).unwrap();
                // Until the caller leaves.
                while connection.accept().await.is_some_and(|r| r.is_ok()) {}
                head
            });
            let headers = [CheckHeader { name: GRPC_TIMEOUT, value: header::HeaderValue::from_static("9H"), append: false }];
            let timeout = Duration::from_millis(1500);
            let question = GrpcQuestion { service: "s", scheme, authority: "a", headers: &headers, timeout };
            assert_eq!(ask_grpc(Box::new(ours), question).await, Answer::of(Checked::Unwell));
            assert_eq!(peer.await.unwrap(), (Some(name.to_owned()), header::HeaderValue::from_static("1500m")));
        }
    }
}
