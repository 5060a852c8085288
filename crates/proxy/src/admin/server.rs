//! Binding, accepting and dispatching. Pages are functions from the main thread's state to a [`Reply`].
use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use lateen_snapshot::bootstrap::AdminAddress;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};

use super::{Ports, agent, certs, clusters, dump, listeners, pages, runtime};
use crate::main_thread::{Main, Phase};
use crate::restart::Inherited;

/// Connections of a port at once. One more ends the oldest: whoever comes now, such as a probe, is answered, however many others
/// ask for nothing or do not read what they asked for.
const MAX_CONNECTIONS: usize = 64;
/// A request, its answer, and the silence until the next may take so long.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a probe may take to say what it wants.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);

/// Reads (`None`) or sets the log level; answers with the level in force, or why it cannot be set.
pub type LogControl = Arc<dyn Fn(Option<&str>) -> Result<String, String> + Send + Sync>;

/// How the admin server and its companions run.
#[derive(Clone, Default)]
pub struct AdminOptions {
    pub logging: Option<LogControl>,
    /// What `/server_info` shows as `command_line_options`, beside what the process knows itself.
    pub command_line: serde_json::Value,
    /// Istio's health port of sidecars and gateways (15021): `/healthz/ready`.
    pub health: Option<SocketAddr>,
    /// Istio's statistics port of the proxy (15090): `/stats/prometheus`.
    pub stats: Option<SocketAddr>,
    /// Istio's agent port (15020): `/healthz/ready`, `/stats/prometheus`, `/quitquitquit`, `/drain`.
    pub agent: Option<SocketAddr>,
}

/// What a page answers.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) body: Bytes,
}

impl Reply {
    pub(super) fn text(body: impl Into<Bytes>) -> Self {
        Self { status: StatusCode::OK, content_type: "text/plain; charset=UTF-8", body: body.into() }
    }

    pub(super) fn json(value: &serde_json::Value) -> Self {
        // Values made of strings as keys always serialize.
        let body = serde_json::to_vec_pretty(value).unwrap_or_default();
        Self { status: StatusCode::OK, content_type: "application/json", body: body.into() }
    }

    pub(super) fn error(status: StatusCode, text: impl Into<String>) -> Self {
        Self { status, ..Self::text(text.into()) }
    }
}

/// What a request asks for.
pub(super) struct Ask<'a> {
    pub(super) method: &'a Method,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
}

impl Ask<'_> {
    /// The decoded value of a query parameter; empty when it has none.
    pub(super) fn parameter(&self, name: &str) -> Option<String> {
        let pairs = self.query.split('&').map(|p| p.split_once('=').unwrap_or((p, "")));
        let value = pairs.into_iter().find(|(key, _)| *key == name)?.1;
        let spaced = value.replace('+', " ");
        Some(percent_encoding::percent_decode_str(&spaced).decode_utf8_lossy().into_owned())
    }

    pub(super) fn wants_json(&self) -> bool {
        self.parameter("format").as_deref() == Some("json")
    }
}

/// Which set of pages a port serves.
#[derive(Clone, Copy)]
enum Port {
    Admin,
    Health,
    Stats,
    Agent,
}

/// Binds every port at once, so that one that is taken ends the start with a clear message.
pub(crate) async fn serve(
    main: &Arc<Main>,
    options: AdminOptions,
    inherited: Option<&Inherited>,
    tasks: &mut JoinSet<()>,
) -> anyhow::Result<Ports> {
    let mut ports = Ports::default();
    match &main.bootstrap.admin {
        None => {}
        Some(AdminAddress::Socket(address)) => {
            let (listener, shared) = ports.tcp("admin", *address, inherited)?;
            tasks.spawn(accept(tcp(listener), main.clone(), options.clone(), Port::Admin, Turn { shared, open: ports.open() }));
        }
        Some(AdminAddress::Pipe(path)) => {
            let (listener, shared) = ports.unix("admin", path, inherited)?;
            tasks.spawn(accept(unix(listener), main.clone(), options.clone(), Port::Admin, Turn { shared, open: ports.open() }));
        }
    }
    let companions =
        [(options.health, Port::Health, "health"), (options.stats, Port::Stats, "statistics"), (options.agent, Port::Agent, "agent")];
    for (address, port, what) in companions {
        if let Some(address) = address {
            let (listener, shared) = ports.tcp(what, address, inherited)?;
            tasks.spawn(accept(tcp(listener), main.clone(), options.clone(), port, Turn { shared, open: ports.open() }));
        }
    }
    Ok(ports)
}

/// When a port is to be served.
struct Turn {
    /// The process before serves it too, until this one is ready: who asks is told about the one that serves.
    shared: bool,
    /// Until the next process serves it.
    open: watch::Receiver<bool>,
}

impl Turn {
    async fn is_over(&mut self) {
        // Without anybody who could tell, the port is served for as long as the process runs.
        if self.open.wait_for(|open| !open).await.is_err() {
            std::future::pending().await
        }
    }
}

async fn accept<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    poll: impl Fn(&mut Context<'_>) -> Poll<io::Result<S>>,
    main: Arc<Main>,
    options: AdminOptions,
    port: Port,
    mut turn: Turn,
) {
    let mut open = Open::default();
    if turn.shared {
        main.released().await;
    }
    loop {
        let accepted = tokio::select! {
            accepted = poll_fn(&poll) => accepted,
            () = turn.is_over() => return,
        };
        match accepted {
            Ok(stream) => open.admit(tokio::spawn(connection(stream, main.clone(), options.clone(), port)).abort_handle()),
            Err(e) => pause(&e).await,
        }
    }
}

fn tcp(listener: TcpListener) -> impl Fn(&mut Context<'_>) -> Poll<io::Result<TcpStream>> {
    move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream)
}

fn unix(listener: UnixListener) -> impl Fn(&mut Context<'_>) -> Poll<io::Result<UnixStream>> {
    move |cx| listener.poll_accept(cx).map_ok(|(stream, _)| stream)
}

/// Out of file descriptors is a state that passes; spinning would make it worse.
async fn pause(error: &io::Error) {
    tracing::warn!("admin: accept: {error}");
    tokio::time::sleep(Duration::from_millis(100)).await;
}

/// A port's connections, the oldest first.
#[derive(Default)]
struct Open(VecDeque<AbortHandle>);

impl Open {
    fn admit(&mut self, connection: AbortHandle) {
        self.0.retain(|connection| !connection.is_finished());
        if self.0.len() >= MAX_CONNECTIONS
            && let Some(oldest) = self.0.pop_front()
        {
            oldest.abort();
        }
        self.0.push_back(connection);
    }
}

async fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S, main: Arc<Main>, options: AdminOptions, port: Port) {
    let asked = Arc::new(Notify::new());
    let again = Arc::clone(&asked);
    let service = service_fn(move |request| {
        again.notify_one();
        let (main, options) = (main.clone(), options.clone());
        async move { Ok::<_, Infallible>(answer(&main, &options, port, &request)) }
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(PATIENCE).max_buf_size(64 << 10);
    let mut serving = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut patience = pin!(tokio::time::sleep(if matches!(port, Port::Health) { PROBE_PATIENCE } else { PATIENCE }));
    loop {
        tokio::select! {
            // A client that goes away in the middle is its own business.
            _ = serving.as_mut() => return,
            () = asked.notified() => patience.as_mut().reset(tokio::time::Instant::now() + PATIENCE),
            () = patience.as_mut() => return,
        }
    }
}

fn answer(main: &Arc<Main>, options: &AdminOptions, port: Port, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    let ask = Ask { method: request.method(), path: request.uri().path(), query: request.uri().query().unwrap_or_default() };
    let reply = match port {
        Port::Admin => admin(main, options, &ask),
        Port::Health => agent::health(main, &ask),
        Port::Stats => agent::stats(main, &ask),
        Port::Agent => agent::agent(main, &ask),
    };
    let mut response = Response::new(Full::new(if *ask.method == Method::HEAD { Bytes::new() } else { reply.body }));
    *response.status_mut() = reply.status;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(reply.content_type));
    headers.insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, max-age=0"));
    if main.phase() == Phase::Draining {
        // Who asks again is to reach the process that serves then.
        headers.insert(http::header::CONNECTION, http::HeaderValue::from_static("close"));
    }
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}

/// Pages that change something are reached by POST only (Envoy admin).
const MUTATIONS: [&str; 8] = [
    "/drain_listeners",
    "/quitquitquit",
    "/healthcheck/fail",
    "/healthcheck/ok",
    "/logging",
    "/reset_counters",
    "/reopen_logs",
    "/runtime_modify",
];

/// Pages of Envoy that show or change what this program has not.
const NOT_HERE: [(&str, &str); 10] = [
    ("/contention", "locks are held for a few instructions and none of them is traced"),
    ("/cpuprofiler", "profile the process with perf"),
    ("/heapprofiler", "there is no heap profiler inside"),
    ("/allocprofiler", "there is no allocation profiler inside"),
    ("/heap_dump", "there is no heap profiler inside"),
    ("/peak_heap_dump", "there is no heap profiler inside"),
    ("/memory/tcmalloc", "the allocator is the C library's; see /memory"),
    ("/runtime_modify", "the runtime values of the bootstrap cannot be changed while it runs"),
    ("/stats/recentlookups", "names of statistics are not looked up while requests are served"),
    ("/tap", "requests are not tapped"),
];

fn admin(main: &Arc<Main>, options: &AdminOptions, ask: &Ask<'_>) -> Reply {
    if MUTATIONS.contains(&ask.path) && *ask.method != Method::POST {
        return Reply::error(StatusCode::METHOD_NOT_ALLOWED, format!("Method {} not allowed, POST required.\n", ask.method));
    }
    match ask.path {
        "/" | "/help" => Reply::text(pages::HELP),
        "/ready" => pages::ready(main),
        "/server_info" => pages::server_info(main, options),
        "/config_dump" => dump::config_dump(main, ask),
        "/clusters" => clusters::page(main, ask),
        "/listeners" => listeners::page(main, ask),
        "/certs" => certs::page(main),
        "/stats" => pages::stats(main, ask),
        "/stats/prometheus" => pages::prometheus(main, ask),
        "/memory" => pages::memory(),
        "/hot_restart_version" => pages::hot_restart_version(main),
        "/runtime" => runtime::page(main),
        "/init_dump" => pages::init_dump(main, ask),
        "/logging" => pages::logging(options, ask),
        "/drain_listeners" => pages::drain(main, ask),
        "/quitquitquit" => pages::quit(main),
        "/healthcheck/fail" => pages::health_check(main, true),
        "/healthcheck/ok" => pages::health_check(main, false),
        "/reset_counters" => pages::reset_counters(main),
        "/reopen_logs" => pages::reopen_logs(main),
        path if NOT_HERE.iter().any(|(page, _)| *page == path) => {
            let why = NOT_HERE.iter().find(|(page, _)| *page == path).map(|(_, why)| *why).unwrap_or_default();
            Reply::error(StatusCode::NOT_IMPLEMENTED, format!("{path} is not supported: {why}\n"))
        }
        _ => Reply::error(StatusCode::NOT_FOUND, format!("invalid path. admin commands are:\n{}", pages::HELP)),
    }
}
