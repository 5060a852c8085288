//! Tracing: a span for each request that is to be traced, from the caller's context to the collector.
//!
//! A connection manager without a tracing provider has no tracer, and none of this runs. With one, a finished
//! span is handed to the worker's exporting task, and never waited for.
mod context;
mod decision;
mod export;
mod otlp;
mod span;
mod zipkin;

use std::rc::Rc;
use std::sync::Arc;
use std::time::SystemTime;

use http::header::{HeaderMap, HeaderName, HeaderValue};
use lateen_snapshot::trace::{ProviderKind, Tracing};
use lateen_telemetry::envoy_names::{exporter, tracing as names};
use lateen_telemetry::{BlockName, Local};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::http::{Exchange, headers};
use crate::worker::{NodeText, Worker};
use context::{Ids, Incoming, Malformed};
use decision::Reason;
pub(crate) use decision::{die_of, forget};
use span::{Kind, Span};

const TRACE_STATE: HeaderName = HeaderName::from_static("tracestate");
/// Spans that may wait for Zipkin's collector.
const WAITING: usize = 1024;

/// What a connection manager traces with.
pub(crate) struct Tracer {
    config: Arc<Tracing>,
    egress: bool,
    node: Arc<NodeText>,
    stats: Local,
    exporting: Local,
    finished: mpsc::Sender<Span>,
}

/// The span of a request under way.
pub(crate) struct Active {
    tracer: Rc<Tracer>,
    ids: Ids,
    sampled: bool,
    shared: bool,
    name: String,
    trace_state: Option<String>,
    /// Offered to the caller's proxy as the name of its span.
    decorated: Option<Arc<str>>,
    current_try: Option<Try>,
}

/// The span of one try, where tries have their own.
struct Try {
    ids: Ids,
    start: SystemTime,
    began: Instant,
    retry: bool,
}

impl Tracer {
    /// `None` where spans have nowhere to go. Starts the task that exports.
    pub(crate) fn new(worker: &Rc<Worker>, config: Option<&Arc<Tracing>>, prefix: &str, egress: bool) -> Option<Rc<Self>> {
        let config = config?;
        let provider = config.provider.as_ref()?;
        let local = |defs, name| worker.shard.local(&worker.registry.block(defs, name));
        let (prefix_of_exporter, waiting) = match &provider.kind {
            ProviderKind::Zipkin { .. } => ("tracing.zipkin", WAITING),
            ProviderKind::OpenTelemetry { max_cache_size, .. } => ("tracing.opentelemetry", *max_cache_size as usize),
        };
        let (finished, spans) = mpsc::channel(waiting);
        let exporting = local(exporter::DEFS, BlockName::plain(prefix_of_exporter));
        tokio::task::spawn_local(export::run(Rc::clone(worker), Arc::clone(config), exporting.clone(), spans));
        Some(Rc::new(Self {
            config: Arc::clone(config),
            egress,
            node: Arc::clone(&worker.node),
            stats: local(names::DEFS, BlockName::http(prefix)),
            exporting,
            finished,
        }))
    }

    fn read(&self, map: &HeaderMap) -> Result<Incoming, Malformed> {
        match self.config.provider.as_ref().map(|p| &p.kind) {
            Some(ProviderKind::Zipkin { w3c, .. }) => match context::read_b3(map)? {
                // What is not understood of the other form is as if it were not there.
                Incoming { ids: None, sampled: None } if *w3c => Ok(context::read_w3c(map).unwrap_or_default()),
                found => Ok(found),
            },
            _ => context::read_w3c(map),
        }
    }

    fn write(&self, map: &mut HeaderMap, ids: &Ids, sampled: bool) {
        if !self.config.propagates {
            return;
        }
        match self.config.provider.as_ref().map(|p| &p.kind) {
            Some(ProviderKind::Zipkin { w3c, .. }) => {
                context::write_b3(map, ids, sampled);
                if *w3c {
                    context::write_w3c(map, ids, sampled);
                }
            }
            _ => context::write_w3c(map, ids, sampled),
        }
    }

    /// The ids of a new span: the caller's own where both ends share one, else a child's, else a new trace's.
    fn identify(&self, incoming: Option<Ids>, random: u128) -> (Ids, bool) {
        let [high, low] = [(random >> 64) as u64, random as u64].map(|n| n.max(1));
        let (shares, wide) = match self.config.provider.as_ref().map(|p| &p.kind) {
            Some(ProviderKind::Zipkin { shared_span_context, trace_id_128bit, .. }) => (*shared_span_context, *trace_id_128bit),
            _ => (false, true),
        };
        match incoming {
            Some(ids) if shares && self.kind() == Kind::Server => (ids, true),
            Some(ids) => (Ids { trace: ids.trace, span: low, parent: Some(ids.span) }, false),
            None => {
                let trace = if wide { u128::from(high) << 64 | u128::from(low) } else { low.into() };
                (Ids { trace, span: low, parent: None }, shares && self.kind() == Kind::Server)
            }
        }
    }

    fn count(&self, reason: Reason) {
        self.stats.inc(match reason {
            Reason::NotTraceable => names::NOT_TRACEABLE,
            Reason::Sampling => names::RANDOM_SAMPLING,
            Reason::ServiceForced => names::SERVICE_FORCED,
            Reason::ClientForced => names::CLIENT_ENABLED,
        });
    }

    /// Where each try has a span of its own, that of the request is the server's on both sides.
    fn kind(&self) -> Kind {
        if self.egress && !self.config.spawn_upstream_span { Kind::Client } else { Kind::Server }
    }

    fn hand_over(&self, span: Span) {
        if self.finished.try_send(span).is_err() {
            self.exporting.inc(exporter::SPANS_DROPPED);
        }
    }
}

impl Active {
    /// The trace, and how many digits it has: Zipkin's may do without the upper half.
    pub(crate) fn trace_id(&self) -> (u128, usize) {
        let short =
            self.ids.trace >> 64 == 0 && matches!(self.tracer.config.provider.as_ref().map(|p| &p.kind), Some(ProviderKind::Zipkin { .. }));
        (self.ids.trace, if short { 16 } else { 32 })
    }
}

/// Decides whether the request is traced, begins its span where spans go anywhere, and tells the upstream of both. Called once
/// the route is known.
pub(crate) fn begin(exchange: &mut Exchange<'_>) {
    let Some(config) = &exchange.hcm.config.tracing else { return };
    let roll = exchange.worker.roll();
    let of_route = exchange.info.route.as_ref().and_then(|m| m.route.tracing.as_deref());
    let map = &mut exchange.request.headers;
    let sampling = of_route.map_or(&config.sampling, |t| &t.sampling);
    let reason = decision::decide(map, exchange.hcm.config.request_ids, sampling, roll);
    exchange.info.trace_forced = reason == Reason::ServiceForced;
    let Some(tracer) = &exchange.hcm.tracer else { return };
    tracer.count(reason);
    let Ok(incoming) = tracer.read(map) else { return };
    let sampled = incoming.sampled.unwrap_or(reason != Reason::NotTraceable);
    let (ids, shared) = tracer.identify(incoming.ids, u128::from_be_bytes(exchange.worker.random_bytes()));
    let trace_state = headers::text(map, &TRACE_STATE).map(str::to_owned);
    tracer.write(map, &ids, sampled);
    let (name, decorated) = name(exchange, tracer.egress);
    exchange.info.span =
        Some(Box::new(Active { tracer: Rc::clone(tracer), ids, sampled, shared, name, trace_state, decorated, current_try: None }));
}

/// The span's name: the route's operation, for the server's side the caller's wish before it, else the host. Whether the
/// other side is told of the operation is up to the route.
fn name(exchange: &mut Exchange<'_>, egress: bool) -> (String, Option<Arc<str>>) {
    let route = exchange.info.route.as_ref().map(|m| &m.route);
    let decorated = route.and_then(|r| r.decorator.clone()).filter(|d| !d.is_empty());
    let told = decorated.clone().filter(|_| route.is_some_and(|r| r.decorator_propagates));
    let host = exchange.request.authority.to_string();
    let map = &mut exchange.request.headers;
    if egress {
        if let Some(value) = told.as_deref().and_then(|d| HeaderValue::from_str(d).ok()) {
            map.insert(headers::DECORATOR, value);
        }
        return (decorated.as_deref().map_or(host, str::to_owned), told);
    }
    let wished = map.remove(headers::DECORATOR).filter(|w| !w.is_empty());
    match wished.as_ref().and_then(|w| w.to_str().ok()) {
        // The caller knows the name already: the response need not tell it.
        Some(wished) => (wished.to_owned(), None),
        None => (decorated.as_deref().map_or(host, str::to_owned), told),
    }
}

/// Settles the operation's name between both ends of a call, on the response's way back.
pub(crate) fn on_response(active: &mut Active, map: &mut HeaderMap) {
    if active.tracer.egress {
        if let Some(wished) = map.remove(headers::DECORATOR)
            && let Ok(wished) = wished.to_str()
            && !wished.is_empty()
        {
            wished.clone_into(&mut active.name);
        }
    } else if let Some(value) = active.decorated.as_deref().and_then(|d| HeaderValue::from_str(d).ok()) {
        map.insert(headers::DECORATOR, value);
    }
}

/// A try begins: where tries have spans of their own, its context goes upstream instead of the request's.
pub(crate) fn begin_try(exchange: &mut Exchange<'_>) {
    end_try(exchange);
    let random = exchange.worker.roll64().max(1);
    let start_child = exchange.hcm.router.start_child_span;
    let retry = exchange.info.attempts > 1;
    let Some(active) = &mut exchange.info.span else { return };
    if !(start_child || active.tracer.config.spawn_upstream_span) {
        return;
    }
    let ids = Ids { trace: active.ids.trace, span: random, parent: Some(active.ids.span) };
    active.tracer.write(&mut exchange.request.headers, &ids, active.sampled);
    active.current_try = Some(Try { ids, start: SystemTime::now(), began: Instant::now(), retry });
}

fn end_try(exchange: &mut Exchange<'_>) {
    let Some(active) = &mut exchange.info.span else { return };
    let Some(attempt) = active.current_try.take() else { return };
    let (tracer, trace_state, sampled) = (Rc::clone(&active.tracer), active.trace_state.clone(), active.sampled);
    if !sampled {
        return;
    }
    let cluster = exchange.info.cluster.as_ref().map_or("", |c| &*c.cluster.config.stat_name);
    let name = format!("router {cluster} {}", if attempt.retry { "retry" } else { "egress" });
    let mut span = Span {
        ids: attempt.ids,
        kind: Kind::Client,
        shared: false,
        name,
        start: attempt.start,
        duration: attempt.began.elapsed(),
        tags: Vec::new(),
        trace_state,
        status: 0,
    };
    span::common_tags(exchange, &mut span);
    for map in [exchange.info.response_headers.as_ref(), exchange.info.response_trailers.as_deref()].into_iter().flatten() {
        span::grpc_tags(map, &mut span);
    }
    span.tag("http.protocol", exchange.request.version.name());
    if let Some(host) = &exchange.info.host {
        span.tag("upstream_address", host.address.to_string());
        span.tag("peer.address", host.address.to_string());
    }
    tracer.hand_over(span);
}

/// The request is over.
pub(crate) fn end(exchange: &mut Exchange<'_>) {
    end_try(exchange);
    let Some(mut active) = exchange.info.span.take() else { return };
    if !active.sampled {
        return;
    }
    let mut span = Span {
        ids: active.ids,
        kind: active.tracer.kind(),
        shared: active.shared,
        name: std::mem::take(&mut active.name),
        start: exchange.info.start_time,
        duration: exchange.info.start.elapsed(),
        tags: Vec::with_capacity(24),
        trace_state: active.trace_state.take(),
        status: 0,
    };
    span::finish(exchange, &active, &mut span);
    active.tracer.hand_over(span);
}
