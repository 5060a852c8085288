//! Connections of the load generator and one request on them.
use super::LoadOptions;
use crate::answer::CHAIN;
use bytes::Bytes;
use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri, Version};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::rc::Rc;
use tokio::net::TcpStream;
use tokio::sync::Mutex;

/// Everything about a request that does not change.
pub(super) struct Plan {
    host: String,
    port: u16,
    template: Request<()>,
    body: Bytes,
    http2: bool,
    keepalive: bool,
}

/// Why no response came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Connect,
    Closed,
    Body,
    Timeout,
}

impl Fault {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Closed => "closed",
            Self::Body => "body",
            Self::Timeout => "timeout",
        }
    }
}

/// A response, read to its end.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) chain: String,
}

pub(super) enum Sender {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A connection, shared by the lanes of HTTP/2 and owned by the one lane of HTTP/1.1.
pub(super) type Connection = Rc<Mutex<Option<Sender>>>;

/// One request at a time over a connection.
pub(super) struct Lane {
    pub(super) plan: Rc<Plan>,
    pub(super) connection: Connection,
}

impl Plan {
    pub(super) fn new(options: &LoadOptions) -> Self {
        let authority = options.url.authority().map(ToString::to_string).unwrap_or_default();
        let mut template = Request::new(());
        *template.method_mut() = options.method.clone();
        template.headers_mut().extend(options.headers.iter().cloned());
        if options.http2 {
            // `Host` names the authority over HTTP/2, where it is no header.
            let host = template.headers_mut().remove(HOST).and_then(|host| host.to_str().map(str::to_owned).ok());
            let path = options.url.path_and_query().map_or("/", |path| path.as_str());
            let uri = Uri::builder().scheme("http").authority(host.unwrap_or(authority)).path_and_query(path).build();
            *template.uri_mut() = uri.unwrap_or_else(|_| options.url.clone());
            *template.version_mut() = Version::HTTP_2;
        } else {
            let path = options.url.path_and_query().map_or("/", |path| path.as_str());
            *template.uri_mut() = path.parse().unwrap_or_else(|_| Uri::from_static("/"));
            if let Ok(host) = HeaderValue::from_str(&authority) {
                template.headers_mut().entry(HOST).or_insert(host);
            }
        }
        Self {
            host: options.url.host().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: options.url.port_u16().unwrap_or(80),
            template,
            body: Bytes::from(options.data.clone()),
            http2: options.http2,
            keepalive: !options.no_keepalive,
        }
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.template.method().clone();
        *request.uri_mut() = self.template.uri().clone();
        *request.version_mut() = self.template.version();
        *request.headers_mut() = self.template.headers().clone();
        if !self.keepalive {
            request.headers_mut().insert("connection", HeaderValue::from_static("close"));
        }
        request
    }

    async fn connect(&self) -> Result<Sender, Fault> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|_| Fault::Connect)?;
        let _ = stream.set_nodelay(true);
        let io = TokioIo::new(stream);
        if self.http2 {
            let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.map_err(|_| Fault::Connect)?;
            tokio::task::spawn_local(connection);
            Ok(Sender::Http2(sender))
        } else {
            let (sender, connection) = http1::handshake(io).await.map_err(|_| Fault::Connect)?;
            tokio::task::spawn_local(connection);
            Ok(Sender::Http1(sender))
        }
    }
}

impl Lane {
    /// One connection for each that was asked for; none is opened yet.
    pub(super) fn connections(options: &LoadOptions) -> Vec<Connection> {
        (0..options.connections).map(|_| Rc::default()).collect()
    }

    /// Sends one request, connecting first if need be, and reads the response.
    pub(super) async fn send(&mut self) -> Result<Reply, Fault> {
        let request = self.plan.request();
        let mut slot = self.connection.lock().await;
        let reusable = match &mut *slot {
            Some(Sender::Http1(sender)) => sender.ready().await.is_ok(),
            Some(Sender::Http2(sender)) => sender.ready().await.is_ok(),
            None => false,
        };
        if !reusable {
            *slot = None;
            *slot = Some(self.plan.connect().await?);
        }
        let response = match slot.as_mut() {
            Some(Sender::Http1(sender)) => {
                let response = sender.send_request(request).await;
                let (parts, body) = response.map_err(|_| Fault::Closed)?.into_parts();
                // The lane owns the connection: nobody else waits for the slot.
                return Self::finish(parts, body).await;
            }
            Some(Sender::Http2(sender)) => sender.send_request(request),
            None => return Err(Fault::Connect),
        };
        drop(slot);
        let (parts, body) = response.await.map_err(|_| Fault::Closed)?.into_parts();
        Self::finish(parts, body).await
    }

    async fn finish(parts: http::response::Parts, body: hyper::body::Incoming) -> Result<Reply, Fault> {
        let mut body = body;
        while let Some(frame) = body.frame().await {
            frame.map_err(|_| Fault::Body)?;
        }
        let chain = parts.headers.get(CHAIN).and_then(|chain| chain.to_str().ok()).unwrap_or_default().to_owned();
        Ok(Reply { status: parts.status, chain })
    }

    /// After a timeout an HTTP/1.1 connection is of no more use: its answer may still come.
    pub(super) async fn give_up(&mut self) {
        if !self.plan.http2 {
            *self.connection.lock().await = None;
        }
    }
}
