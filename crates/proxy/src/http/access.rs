//! Access logs of requests and connections: what is logged where, and the facts that formats ask for.
use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::{HeaderMap, StatusCode};
use lateen_snapshot::http::{AccessLog, LogFormat};
use lateen_snapshot::listener::ConnectionInfo;
use lateen_snapshot::log_filter::LogType;
use lateen_telemetry::access_log::{
    Address, AddressOf, Bytes, ENVOY_TEXT, FilterState, HeaderKey, HeadersOf, InvalidFormat, JsonFormat, LogWriter, Record, Span, Text,
    TextFormat,
};
use lateen_telemetry::{ResponseFlags, details};
use tokio::time::Instant;

use super::Exchange;
use super::exchange::Info;
use super::log_filter::passes;
use super::message::{Request, Version};
use crate::listener::{Conn, ListenerState};
use crate::upstream::ClusterState;
use crate::worker::Worker;

pub(super) enum Format {
    Text(TextFormat),
    Json(JsonFormat),
}

impl Format {
    pub(super) fn compile(format: &LogFormat) -> Result<Self, InvalidFormat> {
        match format {
            LogFormat::Default => TextFormat::compile(ENVOY_TEXT).map(Self::Text),
            LogFormat::Text { format, omit_missing } => {
                let format = TextFormat::compile(format)?;
                Ok(Self::Text(if *omit_missing { format.omit_missing() } else { format }))
            }
            LogFormat::Json { format, omit_missing } => {
                let format = JsonFormat::compile(format)?;
                Ok(Self::Json(if *omit_missing { format.omit_missing() } else { format }))
            }
        }
    }

    pub(super) fn write<R: Record>(&self, record: &R, out: &mut Vec<u8>) {
        match self {
            Self::Text(format) => format.write(record, out),
            Self::Json(format) => format.write(record, out),
        }
    }
}

struct Log {
    config: Arc<AccessLog>,
    format: Format,
    writer: Rc<RefCell<LogWriter>>,
}

/// The logs of a listener, connection manager or TCP proxy.
pub(crate) struct LogSet(Vec<Log>);

impl LogSet {
    pub(crate) fn new(worker: &Worker, configs: &[Arc<AccessLog>]) -> Self {
        let open = |config: &Arc<AccessLog>| match Format::compile(&config.format) {
            Ok(format) => Some(Log { format, writer: worker.logs.writer(&config.path)?, config: Arc::clone(config) }),
            Err(e) => {
                tracing::error!("access log {}: {e}", config.path);
                None
            }
        };
        Self(configs.iter().filter_map(open).collect())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether response headers must be kept for a line.
    pub(crate) fn wants_headers(&self) -> bool {
        !self.0.is_empty()
    }

    pub(crate) fn request(&self, exchange: &Exchange<'_>) {
        let record = RequestRecord::new(exchange, exchange.info.response_headers.as_ref());
        self.write(&record, Some(&record), LogType::DownstreamEnd);
    }

    pub(crate) fn connection(&self, record: &ConnectionRecord<'_>, on: LogType) {
        self.write(record, None, on);
    }

    fn write<R: Record>(&self, record: &R, request: Option<&RequestRecord<'_>>, on: LogType) {
        for log in &self.0 {
            if log.config.filter.as_ref().is_some_and(|f| !passes(f, record, request, on)) {
                continue;
            }
            log.writer.borrow_mut().line(|out| log.format.write(record, out));
        }
    }
}

/// From the request's first byte until it was over, or until now.
fn whole(info: &Info) -> Duration {
    info.ended.unwrap_or_else(Instant::now).saturating_duration_since(info.start)
}

/// A finished request.
pub(crate) struct RequestRecord<'a> {
    pub(crate) info: &'a Info,
    pub(crate) request: &'a Request,
    pub(crate) conn: &'a Conn,
    /// What has been sent to the caller, or is about to be.
    pub(crate) response: Option<&'a HeaderMap>,
}

impl<'a> RequestRecord<'a> {
    pub(crate) fn new(exchange: &'a Exchange<'_>, response: Option<&'a HeaderMap>) -> Self {
        Self { info: &exchange.info, request: &exchange.request, conn: exchange.conn, response }
    }
}

fn tls_text(conn: &Conn, of: Text) -> Option<&str> {
    let tls = conn.tls.as_ref()?;
    let text = match of {
        Text::DownstreamLocalUriSan => conn.local_uri.as_deref()?,
        Text::DownstreamPeerSubject => tls.peer.as_ref()?.subject.as_str(),
        Text::DownstreamTlsVersion => tls.version,
        Text::DownstreamTlsCipher => tls.cipher,
        _ => return None,
    };
    Some(text)
}

fn non_empty(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

fn address_of<'a>(
    conn: &Conn,
    remote: SocketAddr,
    host: Option<&'a lateen_balance::Host>,
    local: Option<SocketAddr>,
    of: AddressOf,
) -> Option<Address<'a>> {
    match of {
        AddressOf::UpstreamHost => host.map(|h| match &h.address {
            lateen_balance::Address::Socket(a) => Address::Socket(*a),
            lateen_balance::Address::Pipe(path) => Address::Named(path),
        }),
        AddressOf::UpstreamLocal => local.map(Address::Socket),
        AddressOf::DownstreamLocal => Some(Address::Socket(conn.local)),
        AddressOf::DownstreamRemote => Some(Address::Socket(remote)),
        AddressOf::DownstreamDirectRemote => Some(Address::Socket(conn.direct_remote)),
    }
}

fn cluster_text(cluster: Option<&Rc<ClusterState>>, of: Text) -> Option<&str> {
    let config = &cluster?.cluster.config;
    Some(if of == Text::UpstreamCluster { &config.stat_name } else { &config.name })
}

impl Record for RequestRecord<'_> {
    fn start_time(&self) -> SystemTime {
        self.info.start_time
    }

    fn header(&self, of: HeadersOf, key: &HeaderKey) -> Option<&[u8]> {
        let request = self.request;
        match (of, key) {
            (HeadersOf::Request, _) if !request.was_read() => None,
            (HeadersOf::Request, HeaderKey::Method) => Some(request.method.as_str().as_bytes()),
            (HeadersOf::Request, HeaderKey::Path) => non_empty(&request.path).map(str::as_bytes),
            (HeadersOf::Request, HeaderKey::Authority) => non_empty(&request.authority).map(str::as_bytes),
            (HeadersOf::Request, HeaderKey::Scheme) => Some(request.scheme.as_bytes()),
            (HeadersOf::Request, HeaderKey::Named(name)) => request.headers.get(name).map(http::HeaderValue::as_bytes),
            (HeadersOf::Response, HeaderKey::Named(name)) => self.response?.get(name).map(http::HeaderValue::as_bytes),
            (HeadersOf::ResponseTrailers, HeaderKey::Named(name)) => {
                self.info.response_trailers.as_ref()?.get(name).map(http::HeaderValue::as_bytes)
            }
            _ => None,
        }
    }

    fn content_length(&self, of: HeadersOf) -> Option<u64> {
        match of {
            HeadersOf::Request => self.request.length.said(),
            HeadersOf::Response => self.info.response_length.said(),
            HeadersOf::ResponseTrailers => None,
        }
    }

    fn text(&self, of: Text) -> Option<&str> {
        let info = self.info;
        match of {
            Text::Protocol => Some(self.request.version.name()),
            Text::UpstreamProtocol => info.upstream_protocol.map(Version::name),
            Text::RouteName => non_empty(&info.route.as_ref()?.route.name),
            Text::VirtualHostName => Some(&info.route.as_ref()?.virtual_host()?.name),
            Text::FilterChainName => non_empty(&self.conn.chain.chain.name),
            Text::ResponseCodeDetails => non_empty(&info.details),
            Text::UpstreamTransportFailureReason => non_empty(&info.transport_failure),
            Text::UpstreamCluster | Text::UpstreamClusterRaw => cluster_text(info.cluster.as_ref(), of),
            Text::RequestedServerName => self.conn.server_name.as_deref(),
            Text::LocalReplyBody => info.reply_body.as_deref(),
            other => tls_text(self.conn, other),
        }
    }

    fn address(&self, of: AddressOf) -> Option<Address<'_>> {
        address_of(self.conn, self.info.remote, self.info.host.as_deref(), self.info.upstream_local, of)
    }

    fn span(&self, of: Span) -> Option<Duration> {
        let info = self.info;
        match of {
            Span::Whole => Some(whole(info)),
            Span::Request => info.request_done,
            Span::Response => info.response_at,
            Span::ResponseTx => info.response_at.map(|at| whole(info).saturating_sub(at)),
        }
    }

    fn bytes(&self, of: Bytes) -> u64 {
        let info = self.info;
        match of {
            Bytes::Received => info.body_received,
            Bytes::Sent => info.body_sent,
            Bytes::DownstreamWireReceived => info.body_received + self.request.head_bytes,
            Bytes::DownstreamWireSent => info.body_sent + info.head_sent,
        }
    }

    fn response_code(&self) -> u16 {
        self.info.status
    }

    fn flags(&self) -> ResponseFlags {
        self.info.flags
    }

    fn dynamic_metadata(&self, namespace: &str, path: &[Box<str>]) -> Option<&serde_json::Value> {
        self.info.metadata.get(namespace, path)
    }

    fn connection_id(&self) -> Option<u64> {
        Some(self.conn.connected.id)
    }

    fn peer_uri_sans(&self) -> &[String] {
        self.conn.peer().map_or(&[], |peer| &peer.uri_sans)
    }

    fn trace_id(&self) -> Option<(u128, usize)> {
        self.info.span.as_ref().map(|span| span.trace_id())
    }

    fn is_grpc(&self) -> bool {
        self.info.grpc
    }

    fn implied_grpc_status(&self) -> Option<u16> {
        (self.info.grpc && self.info.status != 0).then(|| super::reply::grpc_status_of(self.info.status))
    }

    fn attempts(&self) -> u32 {
        self.info.attempts
    }
}

/// A finished TCP connection.
pub(crate) struct ConnectionRecord<'a> {
    pub(crate) conn: &'a Conn,
    pub(crate) cluster: Option<&'a Rc<ClusterState>>,
    pub(crate) host: Option<&'a lateen_balance::Host>,
    pub(crate) upstream_local: Option<SocketAddr>,
    pub(crate) received: u64,
    pub(crate) sent: u64,
    pub(crate) flags: ResponseFlags,
    pub(crate) transport_failure: &'a str,
    /// What a filter says of why.
    pub(crate) details: &'a str,
    /// Why a filter ended the connection.
    pub(crate) termination: Option<&'a str>,
    pub(crate) attempts: u32,
    /// What a tunnel was answered, where that is kept.
    pub(crate) tunnel_headers: Option<&'a (StatusCode, HeaderMap)>,
    pub(crate) tunnel_trailers: Option<&'a HeaderMap>,
}

impl<'a> ConnectionRecord<'a> {
    /// A connection of which nothing is known but where it came from and went.
    pub(crate) fn of(conn: &'a Conn) -> Self {
        Self {
            conn,
            cluster: None,
            host: None,
            upstream_local: None,
            received: 0,
            sent: 0,
            flags: ResponseFlags::NONE,
            transport_failure: "",
            details: "",
            termination: None,
            attempts: 0,
            tunnel_headers: None,
            tunnel_trailers: None,
        }
    }
}

impl Record for ConnectionRecord<'_> {
    fn dynamic_metadata(&self, namespace: &str, path: &[Box<str>]) -> Option<&serde_json::Value> {
        self.conn.metadata()?.get(namespace, path)
    }

    fn start_time(&self) -> SystemTime {
        self.conn.start_time
    }

    fn header(&self, _: HeadersOf, _: &HeaderKey) -> Option<&[u8]> {
        None
    }

    fn text(&self, of: Text) -> Option<&str> {
        match of {
            Text::FilterChainName => non_empty(&self.conn.chain.chain.name),
            Text::UpstreamTransportFailureReason => non_empty(self.transport_failure),
            Text::ResponseCodeDetails => non_empty(self.details),
            Text::ConnectionTerminationDetails => self.termination,
            Text::UpstreamCluster | Text::UpstreamClusterRaw => cluster_text(self.cluster, of),
            Text::RequestedServerName => self.conn.server_name.as_deref(),
            other => tls_text(self.conn, other),
        }
    }

    fn address(&self, of: AddressOf) -> Option<Address<'_>> {
        address_of(self.conn, self.conn.remote, self.host, self.upstream_local, of)
    }

    fn span(&self, of: Span) -> Option<Duration> {
        (of == Span::Whole).then(|| self.conn.start.elapsed())
    }

    fn bytes(&self, of: Bytes) -> u64 {
        match of {
            Bytes::Received | Bytes::DownstreamWireReceived => self.received,
            Bytes::Sent | Bytes::DownstreamWireSent => self.sent,
        }
    }

    fn response_code(&self) -> u16 {
        0
    }

    fn flags(&self) -> ResponseFlags {
        self.flags
    }

    fn connection_id(&self) -> Option<u64> {
        Some(self.conn.connected.id)
    }

    fn peer_uri_sans(&self) -> &[String] {
        self.conn.peer().map_or(&[], |peer| &peer.uri_sans)
    }

    fn attempts(&self) -> u32 {
        self.attempts
    }

    fn filter_state(&self, of: FilterState) -> Option<serde_json::Value> {
        match of {
            FilterState::TunnelHeaders => self.tunnel_headers.map(|(status, map)| pairs(Some(status), map)),
            FilterState::TunnelTrailers => self.tunnel_trailers.map(|map| pairs(None, map)),
        }
    }
}

/// Headers as Envoy's filter state shows them.
fn pairs(status: Option<&StatusCode>, map: &HeaderMap) -> serde_json::Value {
    let pair = |key: &str, value: &[u8]| serde_json::json!({"key": key, "value": String::from_utf8_lossy(value)});
    let status = status.map(|status| pair(":status", status.as_str().as_bytes()));
    let all = map.iter().map(|(name, value)| pair(name.as_str(), value.as_bytes()));
    serde_json::json!({"headers": status.into_iter().chain(all).collect::<Vec<_>>()})
}

/// A connection that came to none of its chain's filters.
struct RefusedRecord<'a> {
    info: &'a ConnectionInfo,
    start: Instant,
    flags: ResponseFlags,
}

impl Record for RefusedRecord<'_> {
    fn start_time(&self) -> SystemTime {
        SystemTime::now() - self.start.elapsed()
    }

    fn header(&self, _: HeadersOf, _: &HeaderKey) -> Option<&[u8]> {
        None
    }

    fn text(&self, of: Text) -> Option<&str> {
        match of {
            Text::RequestedServerName => self.info.server_name.as_deref(),
            Text::ResponseCodeDetails if self.flags == ResponseFlags::NO_ROUTE_FOUND => Some(details::FILTER_CHAIN_NOT_FOUND),
            _ => None,
        }
    }

    fn address(&self, of: AddressOf) -> Option<Address<'_>> {
        match of {
            AddressOf::DownstreamLocal => Some(Address::Socket(self.info.destination)),
            AddressOf::DownstreamRemote => Some(Address::Socket(self.info.source)),
            AddressOf::DownstreamDirectRemote => Some(Address::Socket(self.info.direct_source)),
            AddressOf::UpstreamHost | AddressOf::UpstreamLocal => None,
        }
    }

    fn span(&self, of: Span) -> Option<Duration> {
        (of == Span::Whole).then(|| self.start.elapsed())
    }

    fn bytes(&self, _: Bytes) -> u64 {
        0
    }

    fn response_code(&self) -> u16 {
        0
    }

    fn flags(&self) -> ResponseFlags {
        self.flags
    }
}

/// Logs a connection of a listener that came to none of its chain's filters.
pub(crate) fn log_refused(listener: &ListenerState, info: &ConnectionInfo, start: Instant, flags: ResponseFlags) {
    if !listener.logs.is_empty() {
        listener.logs.write(&RefusedRecord { info, start, flags }, None, LogType::NotSet);
    }
}
