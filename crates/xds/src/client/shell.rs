//! Connects [`ClientState`] to a gRPC stream, and connects it again whenever the stream ends.
use std::error::Error;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use http::HeaderMap;
use http::header::AUTHORIZATION;
use http::uri::PathAndQuery;
use lateen_proto::envoy::config::core::v3::Node;
use lateen_proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse};
use rand::SeedableRng;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Extensions, Status, Streaming};

use super::pool::Seat;
use super::{ClientState, Command, Connector, Handler, Mode, Request, Response, Subscriptions};
use crate::backoff::Backoff;

/// Requests that may wait for the transport before the client stops making more.
const REQUEST_QUEUE: usize = 16;
/// Flow-control windows: a response of some megabytes should not wait for a round trip per 64 KiB.
const WINDOW: u32 = 1 << 20;

/// Gives the token for `authorization: Bearer`, asked at each connection because tokens are renewed.
pub type TokenSource = Arc<dyn Fn() -> Option<String> + Send + Sync>;

/// Which discovery service to call. All speak the same messages; only ADS carries every type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    Aggregated,
    Secret,
    Listener,
    Route,
    Cluster,
    Endpoint,
    ExtensionConfig,
}

impl Service {
    fn path(self, mode: Mode) -> &'static str {
        match (self, mode) {
            (Self::Aggregated, Mode::Delta) => "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            (Self::Aggregated, Mode::Sotw) => "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources",
            (Self::Secret, Mode::Delta) => "/envoy.service.secret.v3.SecretDiscoveryService/DeltaSecrets",
            (Self::Secret, Mode::Sotw) => "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets",
            (Self::Listener, Mode::Delta) => "/envoy.service.listener.v3.ListenerDiscoveryService/DeltaListeners",
            (Self::Listener, Mode::Sotw) => "/envoy.service.listener.v3.ListenerDiscoveryService/StreamListeners",
            (Self::Route, Mode::Delta) => "/envoy.service.route.v3.RouteDiscoveryService/DeltaRoutes",
            (Self::Route, Mode::Sotw) => "/envoy.service.route.v3.RouteDiscoveryService/StreamRoutes",
            (Self::Cluster, Mode::Delta) => "/envoy.service.cluster.v3.ClusterDiscoveryService/DeltaClusters",
            (Self::Cluster, Mode::Sotw) => "/envoy.service.cluster.v3.ClusterDiscoveryService/StreamClusters",
            (Self::Endpoint, Mode::Delta) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/DeltaEndpoints",
            (Self::Endpoint, Mode::Sotw) => "/envoy.service.endpoint.v3.EndpointDiscoveryService/StreamEndpoints",
            (Self::ExtensionConfig, Mode::Delta) => "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/DeltaExtensionConfigs",
            (Self::ExtensionConfig, Mode::Sotw) => "/envoy.service.extension.v3.ExtensionConfigDiscoveryService/StreamExtensionConfigs",
        }
    }
}

/// How a client connects. Start from [`Options::new`].
#[derive(Clone)]
pub struct Options {
    pub service: Service,
    pub mode: Mode,
    /// Identifies the proxy; sent in the first request of each stream.
    pub node: Node,
    /// The HTTP/2 `:authority`, for example `istiod.istio-system.svc:15012`.
    pub authority: String,
    pub token: Option<TokenSource>,
    /// Sent with each stream. Where it has an `authorization`, that goes before the token.
    pub metadata: HeaderMap,
    /// A larger response ends the stream. Default 256 MiB.
    pub max_message_bytes: usize,
    /// Includes the TLS handshake. Default 10 s.
    pub connect_timeout: Duration,
    /// HTTP/2 pings when nothing arrives; default every 30 s, dead after 10 s without an answer.
    pub keepalive_interval: Duration,
    pub keepalive_timeout: Duration,
    pub backoff: Backoff,
}

impl Options {
    /// Delta ADS with the defaults named at the fields.
    pub fn new(node: Node, authority: impl Into<String>) -> Self {
        Self {
            service: Service::Aggregated,
            mode: Mode::Delta,
            node,
            authority: authority.into(),
            token: None,
            metadata: HeaderMap::new(),
            max_message_bytes: 256 << 20,
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(30),
            keepalive_timeout: Duration::from_secs(10),
            backoff: Backoff::default(),
        }
    }
}

/// What happened to the connection.
#[derive(Clone, Debug)]
pub enum ConnectionEvent {
    /// The server answered the stream.
    Connected,
    /// The stream ended or could not be opened; everything applied stays in use.
    Disconnected { reason: String, retry_in: Duration },
}

/// A discovery client. Dropping the future of [`Client::run`] stops it.
pub struct Client {
    options: Options,
    connector: Connector,
    state: ClientState,
    commands: mpsc::UnboundedReceiver<Command>,
    /// Keeps the command channel open when the caller lets go of its handle.
    subscriptions: Subscriptions,
}

impl Client {
    pub fn new(options: Options, connector: Connector) -> Self {
        let (sender, commands) = mpsc::unbounded_channel();
        let state = ClientState::new(options.mode, options.node.clone());
        Self { options, connector, state, commands, subscriptions: Subscriptions { commands: sender } }
    }

    /// The handle to subscribe with, before and while the client runs.
    pub fn subscriptions(&self) -> Subscriptions {
        self.subscriptions.clone()
    }

    /// Connects, receives and reconnects for ever. Stop it by dropping the future.
    pub async fn run<H: Handler>(mut self, handler: &mut H) {
        let mut dice = rand::rngs::SmallRng::from_os_rng();
        let mut backoff = self.options.backoff.clone();
        loop {
            let end = self.session(handler, &mut backoff).await;
            let retry_in = backoff.next(&mut dice);
            tracing::info!(authority = self.options.authority, reason = %end, ?retry_in, "xDS stream is down");
            handler.connection(ConnectionEvent::Disconnected { reason: end, retry_in });
            let retry_at = Instant::now() + retry_in;
            loop {
                tokio::select! {
                    () = sleep_until(retry_at) => break,
                    Some(command) = self.commands.recv() => command.obey(&mut self.state),
                    () = ended(&self.state) => self.state.expire(handler, now()),
                }
            }
        }
    }

    /// One stream, until it ends; says why it ended. Where it came too late for a connection that others had, that is another one.
    async fn session<H: Handler>(&mut self, handler: &mut H, backoff: &mut Backoff) -> String {
        let mut may_move = true;
        loop {
            let seat = match self.connect(handler).await {
                Ok(seat) => seat,
                Err(reason) => return format!("cannot connect: {reason}"),
            };
            let end = match self.options.mode {
                Mode::Delta => self.stream::<DeltaDiscoveryRequest, DeltaDiscoveryResponse, H>(&seat, handler, backoff).await,
                Mode::Sotw => self.stream::<DiscoveryRequest, DiscoveryResponse, H>(&seat, handler, backoff).await,
            };
            match end {
                Ok(()) => return "the server closed the stream".to_owned(),
                Err(Failed { answered: false, status }) if may_move && seat.came_late(&status) => may_move = false,
                Err(Failed { status, .. }) => return format!("{:?}: {}", status.code(), causes(&status)),
            }
        }
    }

    async fn connect<H: Handler>(&mut self, handler: &mut H) -> Result<Seat, String> {
        let within = self.options.connect_timeout;
        let mut connecting = pin!(timeout(within, seat(&self.options, &self.connector)));
        loop {
            tokio::select! {
                connected = &mut connecting => return connected.unwrap_or_else(|_| Err(format!("no answer within {within:?}"))),
                () = ended(&self.state) => self.state.expire(handler, now()),
            }
        }
    }

    async fn stream<Q, R, H>(&mut self, seat: &Seat, handler: &mut H, backoff: &mut Backoff) -> Result<(), Failed>
    where
        Q: prost::Message + Default + TryFrom<Request> + 'static,
        R: prost::Message + Default + Into<Response> + 'static,
        H: Handler,
    {
        let (state, commands) = (&mut self.state, &mut self.commands);
        state.on_connect();
        let (sender, receiver) = mpsc::channel::<Q>(REQUEST_QUEUE);
        let mut opening = pin!(open::<Q, R>(&self.options, seat.channel(), receiver));
        let mut inbound: Option<Streaming<R>> = None;
        loop {
            tokio::select! {
                biased;
                permit = sender.reserve(), if state.has_request() => {
                    // Fails when the transport dropped its end; why, the inbound half will say.
                    if let (Ok(permit), Some(Ok(request))) = (permit, state.poll_request().map(Q::try_from)) {
                        permit.send(request);
                    }
                }
                Some(command) = commands.recv() => command.obey(state),
                () = ended(state) => state.expire(handler, now()),
                opened = &mut opening, if inbound.is_none() => {
                    inbound = Some(opened.map_err(|status| Failed { status, answered: false })?);
                    handler.connection(ConnectionEvent::Connected);
                }
                message = next(&mut inbound), if inbound.is_some() => {
                    let Some(message) = message.map_err(|status| Failed { status, answered: true })? else { return Ok(()) };
                    backoff.reset();
                    state.on_response(message, handler, now());
                    // What the handler asked for while applying travels with the ACK.
                    while let Ok(command) = commands.try_recv() {
                        command.obey(state);
                    }
                }
            }
        }
    }
}

/// Why a stream failed, and whether the server had answered it before.
struct Failed {
    status: Status,
    answered: bool,
}

async fn seat(options: &Options, connector: &Connector) -> Result<Seat, String> {
    // The scheme is `http` also over TLS: the connector, not the library, does the handshake.
    let endpoint = Endpoint::from_shared(format!("http://{}", options.authority))
        .map_err(|e| causes(&e))?
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW);
    connector.seat(&endpoint, options.connect_timeout).await
}

/// Opens the stream. Servers may hold back their response headers until the first response, so
/// requests must flow while this waits.
fn open<Q, R>(
    options: &Options,
    channel: Channel,
    requests: mpsc::Receiver<Q>,
) -> impl Future<Output = Result<Streaming<R>, Status>> + use<Q, R>
where
    Q: prost::Message + Default + 'static,
    R: prost::Message + Default + 'static,
{
    let path = options.service.path(options.mode);
    let metadata = options.metadata.clone();
    let token = options.token.as_ref().filter(|_| !metadata.contains_key(AUTHORIZATION)).and_then(|source| source());
    let limit = options.max_message_bytes;
    async move {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(limit);
        grpc.ready().await.map_err(|e| Status::unavailable(causes(&e)))?;
        let metadata = MetadataMap::from_headers(metadata);
        let mut request = tonic::Request::from_parts(metadata, Extensions::default(), ReceiverStream::new(requests));
        if let Some(token) = token {
            let value = format!("Bearer {}", token.trim()).parse();
            let value = value.map_err(|_| Status::unauthenticated("the token file holds something that is not a token"))?;
            request.metadata_mut().insert("authorization", value);
        }
        let codec = tonic_prost::ProstCodec::<Q, R>::default();
        Ok(grpc.streaming(request, PathAndQuery::from_static(path), codec).await?.into_inner())
    }
}

/// The clock of what ends by itself.
fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// Waits until something in use has lived its time.
fn ended(state: &ClientState) -> impl Future<Output = ()> + use<> {
    let at = state.next_end().map(Instant::from_std);
    async move {
        match at {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }
}

async fn next<R>(inbound: &mut Option<Streaming<R>>) -> Result<Option<R>, Status> {
    match inbound {
        Some(stream) => stream.message().await,
        None => std::future::pending().await,
    }
}

/// An error with its causes, because the outermost one is often only "transport error".
pub(super) fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        cause = inner.source();
    }
    text
}

impl TryFrom<Request> for DeltaDiscoveryRequest {
    type Error = Request;
    fn try_from(request: Request) -> Result<Self, Request> {
        match request {
            Request::Delta(request) => Ok(request),
            other @ Request::Sotw(_) => Err(other),
        }
    }
}

impl TryFrom<Request> for DiscoveryRequest {
    type Error = Request;
    fn try_from(request: Request) -> Result<Self, Request> {
        match request {
            Request::Sotw(request) => Ok(request),
            other @ Request::Delta(_) => Err(other),
        }
    }
}
