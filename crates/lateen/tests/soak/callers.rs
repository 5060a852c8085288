//! Callers of every kind. They behave: whoever is told that a connection ends opens another, and nothing else is forgiven.
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rand::Rng as _;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::certificates::{SERVER, number};
use crate::config::Site;
use crate::tally::Tally;

const HTTP1: &str = "HTTP/1.1 requests";
const HTTP2: &str = "HTTP/2 requests";
const GRPC: &str = "gRPC calls";
const AROUND: &str = "requests with mTLS on the way";
const TCP: &str = "TCP streams";
const WEBSOCKET: &str = "WebSockets";
const MTLS: &str = "new mTLS connections";
pub(crate) const KINDS: [&str; 7] = [HTTP1, HTTP2, GRPC, AROUND, TCP, WEBSOCKET, MTLS];

/// Nothing takes that long; what does has failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// One caller's place.
#[derive(Clone)]
struct Caller {
    tally: Arc<Tally>,
    site: usize,
    http: SocketAddr,
    mtls: SocketAddr,
    tcp: SocketAddr,
}

pub(crate) fn start(tally: &Arc<Tally>, sites: &[Site]) -> Vec<JoinHandle<()>> {
    let local = |port| SocketAddr::from(([127, 0, 0, 1], port));
    let mut callers = Vec::new();
    for (number, site) in sites.iter().enumerate() {
        let caller = Caller { tally: tally.clone(), site: number, http: local(site.http), mtls: local(site.mtls), tcp: local(site.tcp) };
        for _ in 0..2 {
            callers.push(tokio::spawn(caller.clone().http1(HTTP1, "/")));
        }
        callers.push(tokio::spawn(caller.clone().http1(AROUND, "/self")));
        callers.push(tokio::spawn(caller.clone().http2()));
        callers.push(tokio::spawn(caller.clone().again(TCP, |c| async move { c.lines().await })));
        callers.push(tokio::spawn(caller.clone().again(WEBSOCKET, |c| async move { c.websocket().await })));
        callers.push(tokio::spawn(caller.again(MTLS, |c| async move { c.mtls().await })));
    }
    callers
}

fn pause() -> Duration {
    Duration::from_millis(rand::rng().random_range(2..15))
}

impl Caller {
    fn saw(&self, headers: &HeaderMap) {
        if let Some(number) = headers.get("x-configuration").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok()) {
            self.tally.saw_configuration(self.site, number);
        }
    }

    /// Does the same again and again, each time on a connection of its own.
    async fn again<F: Future<Output = anyhow::Result<()>>>(self, what: &'static str, once: impl Fn(Self) -> F) {
        while self.tally.goes_on() {
            match tokio::time::timeout(PATIENCE, once(self.clone())).await {
                Ok(Ok(())) => self.tally.done(what),
                Ok(Err(e)) => self.tally.lost(self.site, what, format!("{e:#}")),
                Err(_) => self.tally.lost(self.site, what, "not done in time"),
            }
            tokio::time::sleep(pause()).await;
        }
    }

    async fn http1(self, what: &'static str, path: &'static str) {
        let mut kept = None;
        let mut turn = 0u64;
        while self.tally.goes_on() {
            turn += 1;
            let call = self.http1_once(&mut kept, path, turn);
            match tokio::time::timeout(PATIENCE, call).await {
                Ok(Ok(true)) => self.tally.done(what),
                Ok(Ok(false)) => {}
                Ok(Err(e)) => {
                    self.tally.lost(self.site, what, format!("{e:#}"));
                    kept = None;
                }
                Err(_) => {
                    self.tally.lost(self.site, what, "not done in time");
                    kept = None;
                }
            }
            tokio::time::sleep(pause()).await;
        }
    }

    /// One request; false when the kept connection had been closed before anything was sent.
    async fn http1_once(&self, kept: &mut Option<http1::SendRequest<Full<Bytes>>>, path: &str, turn: u64) -> anyhow::Result<bool> {
        let mut sender = match kept.take() {
            Some(sender) if !sender.is_closed() => sender,
            _ => {
                let stream = TcpStream::connect(self.http).await.context("connect")?;
                stream.set_nodelay(true)?;
                let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
                tokio::spawn(async move { connection.await.ok() });
                sender
            }
        };
        if sender.ready().await.is_err() {
            return Ok(false);
        }
        let (method, body) =
            if turn.is_multiple_of(4) { (Method::POST, Bytes::from(vec![b'x'; 20_000])) } else { (Method::GET, Bytes::new()) };
        let request = Request::builder().method(method).uri(path).header("host", "soak").body(Full::new(body))?;
        let response = match sender.send_request(request).await {
            Ok(response) => response,
            // It was never sent.
            Err(e) if e.is_canceled() => return Ok(false),
            Err(e) => return Err(e.into()),
        };
        let (head, body) = response.into_parts();
        let body = body.collect().await.context("body")?.to_bytes();
        ensure!(head.status == StatusCode::OK, "{}: {}", head.status, String::from_utf8_lossy(&body));
        self.saw(&head.headers);
        let closes = head.headers.get("connection").is_some_and(|v| v.as_bytes().eq_ignore_ascii_case(b"close"));
        *kept = (!closes).then_some(sender);
        Ok(true)
    }

    /// Streams side by side, plain ones and gRPC's with trailers.
    async fn http2(self) {
        let mut kept: Option<h2::client::SendRequest<Bytes>> = None;
        while self.tally.goes_on() {
            let sender = match kept.take() {
                Some(sender) => sender,
                None => match self.http2_connect().await {
                    Ok(sender) => sender,
                    Err(e) => {
                        self.tally.lost(self.site, HTTP2, format!("{e:#}"));
                        tokio::time::sleep(pause()).await;
                        continue;
                    }
                },
            };
            let calls = (0..6).map(|n| self.http2_once(sender.clone(), n % 2 == 0));
            let outcomes = futures_util::future::join_all(calls).await;
            if outcomes.into_iter().all(|stays| stays) {
                kept = Some(sender);
            }
            tokio::time::sleep(pause()).await;
        }
    }

    async fn http2_connect(&self) -> anyhow::Result<h2::client::SendRequest<Bytes>> {
        let stream = TcpStream::connect(self.http).await.context("connect")?;
        stream.set_nodelay(true)?;
        let (sender, connection) = h2::client::handshake(stream).await?;
        tokio::spawn(async move { connection.await.ok() });
        Ok(sender)
    }

    /// One call; false when the connection takes no more.
    async fn http2_once(&self, sender: h2::client::SendRequest<Bytes>, is_grpc: bool) -> bool {
        let what = if is_grpc { GRPC } else { HTTP2 };
        match tokio::time::timeout(PATIENCE, self.http2_call(sender, is_grpc)).await {
            Ok(Ok(())) => {
                self.tally.done(what);
                return true;
            }
            // The callee says that it has not begun: the connection is leaving.
            Ok(Err(e)) if was_not_begun(&e) => {}
            Ok(Err(e)) => self.tally.lost(self.site, what, format!("{e:#}")),
            Err(_) => self.tally.lost(self.site, what, "not done in time"),
        }
        false
    }

    async fn http2_call(&self, sender: h2::client::SendRequest<Bytes>, is_grpc: bool) -> anyhow::Result<()> {
        let mut sender = sender.ready().await?;
        let request = Request::builder().method(Method::POST).header("te", "trailers");
        let request = if is_grpc {
            request.uri("http://soak/lateen.app.Echo/Call").header("content-type", "application/grpc").body(())?
        } else {
            request.uri("http://soak/").body(())?
        };
        let (response, mut send) = sender.send_request(request, false)?;
        // An empty message, with gRPC's five bytes in front.
        send.send_data(Bytes::from_static(&[0; 5]), true)?;
        let (head, mut body) = response.await?.into_parts();
        ensure!(head.status == StatusCode::OK, "{}", head.status);
        self.saw(&head.headers);
        while let Some(data) = body.data().await {
            let length = data?.len();
            body.flow_control().release_capacity(length)?;
        }
        let trailers = body.trailers().await?;
        if is_grpc {
            let status = trailers.as_ref().and_then(|t| t.get("grpc-status")).or(head.headers.get("grpc-status"));
            ensure!(status.is_some_and(|s| s == "0"), "gRPC status {status:?}");
        }
        Ok(())
    }

    /// A stream that lives for some seconds, and longer than a replacement of the process takes.
    async fn lines(self) -> anyhow::Result<()> {
        let (read, mut write) = TcpStream::connect(self.tcp).await.context("connect")?.into_split();
        let mut read = BufReader::new(read);
        let count = rand::rng().random_range(5..100);
        for n in 0..count {
            write.write_all(format!("line {n}\n").as_bytes()).await.context("write")?;
            let mut line = String::new();
            read.read_line(&mut line).await.context("read")?;
            ensure!(line.ends_with(&format!("line {n}\n")), "line {n} came back as {line:?}");
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        write.shutdown().await?;
        ensure!(read.read_u8().await.is_err(), "bytes after the end");
        Ok(())
    }

    async fn websocket(self) -> anyhow::Result<()> {
        let mut stream = TcpStream::connect(self.http).await.context("connect")?;
        let head = "GET /lasting HTTP/1.1\r\nhost: soak\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).await.context("write")?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(stream.read_u8().await.context("the head of the response")?);
        }
        ensure!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        let count = rand::rng().random_range(5..50u8);
        for n in 0..count {
            // A text of four bytes, masked with zeroes.
            let text = [b'w', b's', b'0' + n / 10, b'0' + n % 10];
            stream.write_all(&[&[0x81, 0x84, 0, 0, 0, 0], &text[..]].concat()).await.context("write")?;
            let mut frame = [0; 6];
            stream.read_exact(&mut frame).await.context("read")?;
            ensure!(frame[..2] == [0x81, 4] && frame[2..] == text, "{frame:?}");
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
        stream.write_all(&[0x88, 0x80, 0, 0, 0, 0]).await.context("close")?;
        Ok(())
    }

    /// A handshake and a request.
    async fn mtls(self) -> anyhow::Result<()> {
        let Some(connector) = self.tally.connector() else { bail!("no certificate yet") };
        let stream = TcpStream::connect(self.mtls).await.context("connect")?;
        let stream = connector.connect(ServerName::try_from(SERVER)?, stream).await.context("handshake")?;
        let shown = stream.get_ref().1.peer_certificates().and_then(|chain| number(chain.first()?));
        self.tally.saw_certificate(self.site, shown.context("no certificate")?);
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        tokio::spawn(async move { connection.await.ok() });
        let request = Request::get("/").header("host", "soak").header("connection", "close").body(Full::<Bytes>::default())?;
        let (head, body) = sender.send_request(request).await.context("request")?.into_parts();
        let body = body.collect().await.context("body")?.to_bytes();
        ensure!(head.status == StatusCode::OK, "{}: {}", head.status, String::from_utf8_lossy(&body));
        self.saw(&head.headers);
        Ok(())
    }
}

fn was_not_begun(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<h2::Error>()
        .is_some_and(|e| (e.is_go_away() && e.reason() == Some(h2::Reason::NO_ERROR)) || e.reason() == Some(h2::Reason::REFUSED_STREAM))
}
