//! TCP inside HTTP: a CONNECT, or a POST, to an upstream that takes the caller's bytes as its body (Envoy
//! `tunneling_config`). Nothing goes up before the answer.
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, HeaderMap, HeaderName, HeaderValue};
use http::{Method, StatusCode};
use lateen_balance::Host;
use lateen_balance::breaker::Permit;
use lateen_balance::host::ActiveRequest;
use lateen_snapshot::header::{AppendAction, HeaderTemplate};
use lateen_snapshot::listener::TcpTunnel;
use lateen_telemetry::ResponseFlags;
use lateen_telemetry::access_log::TextFormat;
use lateen_telemetry::envoy_names::cluster as names;
use lateen_telemetry::stats::Held;

use super::clock::{Clock, Due};
use super::dial;
use super::leaving::leaves_within;
use super::peer_exchange::{self, Stripped, Stripper};
use super::relay::{LINGER, drains};
use super::tcp::Session;
use crate::http::ConnectionRecord;
use crate::http::headers;
use crate::http::message::{Frame, Length, Request, Version};
use crate::http::stream::{StreamError, Upstream};
use crate::io::{Io, Text, Wire, linger};
use crate::upstream::call::{NotOpened, open_stream};
use crate::upstream::{ClusterState, Lease, NoConnection, TargetWish};

/// Text that may hold facts of the connection.
enum Piece {
    Fixed(HeaderValue),
    Format(TextFormat),
}

impl Piece {
    fn new(template: &HeaderTemplate) -> Option<Self> {
        match template {
            HeaderTemplate::Fixed(value) => Some(Self::Fixed(value.clone())),
            // It compiled when the configuration came.
            HeaderTemplate::Format(text) => TextFormat::compile(text).ok().map(Self::Format),
        }
    }

    fn value(&self, record: &ConnectionRecord<'_>) -> Option<HeaderValue> {
        match self {
            Self::Fixed(value) => Some(value.clone()),
            Self::Format(format) => {
                let mut bytes = Vec::new();
                format.write(record, &mut bytes);
                HeaderValue::from_bytes(&bytes).ok()
            }
        }
    }
}

struct Addition {
    name: HeaderName,
    value: Piece,
    action: AppendAction,
    keep_empty: bool,
}

/// The request that opens a tunnel, but for what each connection puts into it.
pub(super) struct Template {
    hostname: Option<Piece>,
    post_path: Option<Text>,
    headers: Vec<Addition>,
    keeps_headers: bool,
    keeps_trailers: bool,
}

impl Template {
    pub(super) fn new(config: &TcpTunnel) -> Self {
        let addition = |a: &lateen_snapshot::header::HeaderAddition| {
            let value = match Piece::new(&a.value)? {
                Piece::Format(format) => Piece::Format(format.omit_missing()),
                fixed => fixed,
            };
            Some(Addition { name: a.name.clone(), value, action: a.action, keep_empty: a.keep_empty })
        };
        Self {
            hostname: Piece::new(&config.hostname),
            post_path: config.post_path.as_deref().map(Text::from),
            headers: config.headers.add.iter().filter_map(addition).collect(),
            keeps_headers: config.keeps_headers,
            keeps_trailers: config.keeps_trailers,
        }
    }

    fn request(&self, record: &ConnectionRecord<'_>, secure: bool) -> Option<Request> {
        let hostname = self.hostname.as_ref()?.value(record)?;
        let authority = Text::new(Bytes::copy_from_slice(hostname.as_bytes()))?;
        let mut map = HeaderMap::new();
        for addition in &self.headers {
            let Some(value) = addition.value.value(record).filter(|v| addition.keep_empty || !v.is_empty()) else { continue };
            match addition.action {
                AppendAction::AppendIfExistsOrAdd => drop(map.append(addition.name.clone(), value)),
                AppendAction::AddIfAbsent => headers::insert_if_absent(&mut map, addition.name.clone(), || value),
                AppendAction::OverwriteIfExistsOrAdd => drop(map.insert(addition.name.clone(), value)),
                AppendAction::OverwriteIfExists => {
                    if map.contains_key(&addition.name) {
                        map.insert(addition.name.clone(), value);
                    }
                }
            }
        }
        let post = self.post_path.clone();
        Some(Request {
            method: if post.is_some() { Method::POST } else { Method::CONNECT },
            scheme: if secure { "https" } else { "http" },
            length: if post.is_some() { Length::Unknown } else { Length::None },
            upgrade: post.is_none().then(|| Text::fixed("connect")),
            headers: map,
            version: Version::Http2,
            ..Request::get(authority, post.unwrap_or(Text::EMPTY))
        })
    }
}

/// Serves a caller through a tunnel.
///
/// # Errors
/// When the connection's time was over.
pub(super) async fn serve(
    session: &mut Session<'_>,
    template: &Template,
    cluster: &Rc<ClusterState>,
    mut io: Io,
    mut first: BytesMut,
    clock: &mut Clock,
) -> Result<(), Due> {
    let (state, conn) = (session.state, session.conn);
    let patience = cluster.cluster.config.connect_timeout;
    let opened = tokio::select! {
        biased;
        opened = open(session, template, cluster) => opened,
        () = leaves_within(patience, &mut io, &mut first) => {
            cluster.stats.inc(names::UPSTREAM_RQ_CANCELLED);
            session.outcome.flags = ResponseFlags::DOWNSTREAM_CONNECTION_TERMINATION;
            None
        }
        due = clock.over(state, conn) => {
            if due == Due::Idle {
                session.failed("tunnel response timeout");
            }
            return Err(due);
        }
    };
    let Some(Opened { mut lease, cluster, held }) = opened else { return Ok(()) };
    session.outcome.upstream_local = lease.local_address();
    session.outcome.principals = lease.principals();
    session.connected();
    if template.post_path.is_none() {
        lease.upstream.start_raw();
    }
    let stripper = (session.passed.peer_exchange && peer_exchange::is_agreed(&io)).then(Stripper::default);
    let mut wire = Wire::new(io);
    wire.input = first;
    let mut pump = Pump { up: Way::Open, down: Way::Open, broken: None, keeps_trailers: template.keeps_trailers, stripper };
    clock.begin(&state.config);
    let ended = poll_fn(|cx| pump.poll(cx, session, clock, &mut wire, &mut lease.upstream)).await;
    match ended {
        Ok(()) => {
            lease.finish(cluster.cluster.config.max_requests_per_connection, tokio::time::Instant::now());
            return Ok(());
        }
        Err(Broken::Caller) => cluster.stats.inc(names::UPSTREAM_RQ_CANCELLED),
        // It has said all, and wants no more.
        Err(Broken::Upstream(StreamError::Reset)) if pump.down == Way::Over => {}
        Err(Broken::Upstream(StreamError::Closed)) => session.outcome.flags = ResponseFlags::UPSTREAM_CONNECTION_TERMINATION,
        Err(Broken::Upstream(_)) => session.outcome.flags = ResponseFlags::UPSTREAM_REMOTE_RESET,
        Err(Broken::Leaving | Broken::Time(_)) => {}
    }
    drop((lease, held));
    if pump.down == Way::Over {
        Box::pin(linger(&mut wire.io, LINGER)).await;
    }
    if let Err(Broken::Time(due)) = ended { Err(due) } else { Ok(()) }
}

/// A tunnel that is a request of its cluster as long as this is held.
struct Opened {
    lease: Lease,
    cluster: Rc<ClusterState>,
    held: (Permit, ActiveRequest, Held),
}

/// A tunnel that was answered as it should be, by as many attempts as it takes.
async fn open(session: &mut Session<'_>, template: &Template, of: &Rc<ClusterState>) -> Option<Opened> {
    let mut attempts = dial::Attempts::new(&session.state.config);
    while attempts.next(session.worker).await {
        let (cluster, host) = session.choose(of)?;
        match attempt(session, template, &cluster, &host).await {
            Ok(opened) => {
                cluster.report_connect(session.worker, &host, true);
                // The log still tells why an earlier attempt failed, as Envoy's does.
                session.outcome.flags = ResponseFlags::NONE;
                return Some(opened);
            }
            Err(Refused::Full) => {
                session.outcome.flags = ResponseFlags::UPSTREAM_OVERFLOW;
                return None;
            }
            Err(Refused::Failed(reason)) => {
                host.counters.rq_error.fetch_add(1, Relaxed);
                cluster.report_connect(session.worker, &host, false);
                session.failed(&reason);
            }
        }
    }
    session.gave_up(of);
    None
}

enum Refused {
    /// A circuit breaker is open.
    Full,
    Failed(String),
}

async fn attempt(session: &mut Session<'_>, template: &Template, cluster: &Rc<ClusterState>, host: &Arc<Host>) -> Result<Opened, Refused> {
    let (worker, conn) = (session.worker, session.conn);
    let Some(permit) = cluster.breakers(false).take_request(|| worker.millis()) else {
        cluster.stats.inc(names::UPSTREAM_RQ_PENDING_OVERFLOW);
        return Err(Refused::Full);
    };
    let held = (permit, host.begin_request(), cluster.stats.hold(names::UPSTREAM_RQ_ACTIVE));
    let secure = cluster.cluster.config.transports.get(host.transport as usize).is_some_and(|t| t.tls.is_some());
    let request = template.request(&session.outcome.record(conn), secure);
    let request = request.ok_or_else(|| Refused::Failed("the tunnel's hostname is no text".to_owned()))?;
    let wish = TargetWish { downstream: Version::Http2, alpn: None, authority: None, upgrade: false, conn: Some(conn) };
    let target = cluster.target(Arc::clone(host), &wish);
    let failed = |_: StreamError| Refused::Failed(String::new());
    let acquire = || target.pool.acquire(worker, cluster, host, false, &target.plan);
    let mut lease = open_stream(acquire, &request).await.map_err(|none| match none {
        NotOpened::NoConnection(NoConnection::Overflow) => Refused::Full,
        NotOpened::NoConnection(NoConnection::Failed(failure)) => Refused::Failed(failure.reason()),
        NotOpened::Broken(why) => failed(why),
    })?;
    cluster.stats.inc(names::UPSTREAM_RQ_TOTAL);
    host.counters.rq_total.fetch_add(1, Relaxed);
    let (status, headers) = answer(&mut lease.upstream).await.map_err(failed)?;
    if template.keeps_headers {
        session.outcome.tunnel_headers = Some((status, headers));
    }
    // Envoy takes any success over HTTP/1 (RFC 9110 9.3.6), and only a 200 over HTTP/2.
    let opened = if matches!(lease.upstream, Upstream::H1(_)) { status.is_success() } else { status == StatusCode::OK };
    if !opened {
        return Err(Refused::Failed(format!("tunnel response:{}", status.as_u16())));
    }
    Ok(Opened { lease, cluster: Rc::clone(cluster), held })
}

/// The final answer's head.
async fn answer(upstream: &mut Upstream) -> Result<(StatusCode, HeaderMap), StreamError> {
    poll_fn(|cx| {
        loop {
            match upstream.poll_response(cx) {
                Poll::Ready(Ok(response)) if response.status.is_informational() && response.upgrade.is_none() => {}
                Poll::Ready(Ok(mut response)) => {
                    if let Length::Known(n) = response.length {
                        response.headers.insert(CONTENT_LENGTH, n.into());
                    }
                    return Poll::Ready(Ok((response.status, response.headers)));
                }
                Poll::Ready(Err(e)) => return Poll::Ready(Err(e)),
                Poll::Pending => break,
            }
        }
        // Only now: a server that refuses may reset the stream at once, and what it said before counts.
        match upstream.poll_flush(cx) {
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            _ => Poll::Pending,
        }
    })
    .await
}

enum Broken {
    Caller,
    Upstream(StreamError),
    /// Its chain asks it to leave.
    Leaving,
    /// The connection was silent or lasted for too long.
    Time(Due),
}

/// One direction.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Open,
    /// The end is under way.
    Ending,
    /// All of it arrived.
    Over,
    /// It ended before its time.
    Cut,
}

/// Both directions between a connection and a stream.
struct Pump {
    up: Way,
    down: Way,
    /// Why the stream takes nothing more. What it brought before is still delivered.
    broken: Option<StreamError>,
    keeps_trailers: bool,
    /// A frame of metadata exchange may come in front of what the caller says.
    stripper: Option<Stripper>,
}

impl Pump {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        session: &mut Session<'_>,
        clock: &mut Clock,
        wire: &mut Wire,
        up: &mut Upstream,
    ) -> Poll<Result<(), Broken>> {
        let before = (session.outcome.received, session.outcome.sent);
        if let Err(broken) = self.upwards(cx, session, wire, up).and_then(|()| self.downwards(cx, session, wire, up)) {
            return Poll::Ready(Err(broken));
        }
        // Once all was taken, it is nothing to us how the stream or its connection goes.
        if matches!(self.up, Way::Open | Way::Ending) {
            match up.poll_flush(cx) {
                Poll::Ready(Err(e)) => self.cut(e),
                Poll::Ready(Ok(())) if self.up == Way::Ending => self.up = Way::Over,
                _ => {}
            }
        }
        let delivered = match wire.poll_flush(cx) {
            Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken::Caller)),
            other => other.is_ready(),
        };
        if self.down == Way::Ending && delivered && wire.poll_shutdown(cx).is_ready() {
            self.down = Way::Over;
        }
        match (self.down, self.broken) {
            (Way::Over, None) if self.up == Way::Over => return Poll::Ready(Ok(())),
            (Way::Over | Way::Cut, Some(e)) if delivered => return Poll::Ready(Err(Broken::Upstream(e))),
            (_, Some(_)) => clock.limit(),
            _ => {}
        }
        if (session.outcome.received, session.outcome.sent) != before {
            session.count();
            clock.touch();
            if session.outcome.sent != before.1 && delivered && drains(session) {
                return Poll::Ready(Err(Broken::Leaving));
            }
        }
        clock.poll_end(cx, session).map(|due| Err(Broken::Time(due)))
    }

    /// The stream takes nothing more.
    fn cut(&mut self, why: StreamError) {
        self.up = Way::Cut;
        self.broken.get_or_insert(why);
    }

    fn upwards(&mut self, cx: &mut Context<'_>, session: &mut Session<'_>, wire: &mut Wire, up: &mut Upstream) -> Result<(), Broken> {
        while self.up == Way::Open {
            match up.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(e)) => {
                    self.cut(e);
                    break;
                }
                Poll::Pending => break,
            }
            if !wire.input.is_empty() {
                let data = self.stripped(wire.input.split().freeze());
                send(session, data, up);
                continue;
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    if let Some(mut stripper) = self.stripper.take() {
                        send(session, stripper.give_up().into(), up);
                    }
                    self.up = Way::Ending;
                    up.send_end(None);
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(_)) => return Err(Broken::Caller),
                Poll::Pending => break,
            }
        }
        if self.up == Way::Cut { drop_rest(cx, wire) } else { Ok(()) }
    }

    /// What the application is to get of these bytes, so far.
    fn stripped(&mut self, data: Bytes) -> Bytes {
        let Some(stripper) = &mut self.stripper else { return data };
        let Stripped::Rest(rest) = stripper.push(&data) else { return Bytes::new() };
        self.stripper = None;
        rest.into()
    }

    fn downwards(&mut self, cx: &mut Context<'_>, session: &mut Session<'_>, wire: &mut Wire, up: &mut Upstream) -> Result<(), Broken> {
        while self.down == Way::Open {
            match wire.poll_room(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Err(Broken::Caller),
                Poll::Pending => break,
            }
            match up.poll_frame(cx) {
                Poll::Ready(Some(Ok(Frame::Data(data)))) => {
                    session.outcome.sent += data.len() as u64;
                    wire.push(data);
                }
                Poll::Ready(Some(Ok(Frame::Trailers(trailers)))) => {
                    if self.keeps_trailers {
                        session.outcome.tunnel_trailers = Some(trailers);
                    }
                    self.down = Way::Ending;
                }
                Poll::Ready(None) => self.down = Way::Ending,
                Poll::Ready(Some(Err(e))) => {
                    self.down = Way::Cut;
                    self.cut(e);
                }
                Poll::Pending => break,
            }
        }
        Ok(())
    }
}

fn send(session: &mut Session<'_>, data: Bytes, up: &mut Upstream) {
    if !data.is_empty() {
        session.outcome.received += data.len() as u64;
        up.send_data(data);
    }
}

/// Reads what nobody takes: a caller may read only once it has written.
fn drop_rest(cx: &mut Context<'_>, wire: &mut Wire) -> Result<(), Broken> {
    loop {
        wire.input.clear();
        match wire.poll_fill(cx) {
            Poll::Ready(Ok(0)) | Poll::Pending => return Ok(()),
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(_)) => return Err(Broken::Caller),
        }
    }
}
