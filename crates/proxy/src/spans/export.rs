//! Sends finished spans to the collector in batches, over the mesh's cluster, in a task beside the requests.
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue, TE};
use lateen_balance::Context;
use lateen_snapshot::trace::{Collector, Provider, ProviderKind, Tracing};
use lateen_telemetry::Local;
use lateen_telemetry::envoy_names::{cluster as cluster_names, count_upstream_code, exporter as names};
use tokio::sync::mpsc;

use super::span::Span;
use super::{otlp, zipkin};
use crate::http::headers::{GRPC_STATUS, number};
use crate::http::message::{Frame, Hints, Length, Request, Version};
use crate::io::Text;
use crate::upstream::{Sought, TargetWish, choose};
use crate::worker::Worker;

/// Spans that are sent without waiting for more (Envoy `tracing.zipkin.min_flush_spans`).
const ENOUGH: usize = 5;
/// The longest that fewer wait (Envoy `tracing.zipkin.flush_interval_ms`).
const PATIENCE: Duration = Duration::from_secs(5);
/// Spans of one report: those that came while the last one was under way.
const MOST: usize = 256;

/// Why a report did not arrive.
enum Lost {
    NoCluster,
    /// No host, no connection, or no answer in time.
    Failed,
    /// The collector refused it.
    Refused,
}

/// Runs until the tracer is gone and everything it handed over is sent.
pub(super) async fn run(worker: Rc<Worker>, config: Arc<Tracing>, stats: Local, mut spans: mpsc::Receiver<Span>) {
    let Some(provider) = &config.provider else { return };
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, MOST).await > 0 {
        let more = async { while batch.len() < ENOUGH && spans.recv_many(&mut batch, MOST).await > 0 {} };
        if tokio::time::timeout(PATIENCE, more).await.is_err() {
            stats.inc(names::TIMER_FLUSHED);
        }
        let body = encode(&worker, provider, &batch);
        let sending = Box::pin(send(&worker, &provider.collector, body));
        match tokio::time::timeout(provider.collector.timeout, sending).await.unwrap_or(Err(Lost::Failed)) {
            Ok(()) => {
                stats.inc(names::REPORTS_SENT);
                stats.add(names::SPANS_SENT, batch.len() as u64);
            }
            Err(lost) => {
                stats.inc(match lost {
                    Lost::NoCluster => names::REPORTS_SKIPPED_NO_CLUSTER,
                    Lost::Failed => names::REPORTS_FAILED,
                    Lost::Refused => names::REPORTS_DROPPED,
                });
                stats.add(names::SPANS_DROPPED, batch.len() as u64);
            }
        }
        batch.clear();
    }
}

fn encode(worker: &Worker, provider: &Provider, batch: &[Span]) -> Bytes {
    match &provider.kind {
        ProviderKind::Zipkin { .. } => zipkin::encode(batch, &worker.node).into(),
        ProviderKind::OpenTelemetry { resource, scope, .. } => {
            let message = otlp::encode(batch, resource, *scope);
            if !provider.collector.grpc {
                return message.into();
            }
            let mut framed = BytesMut::with_capacity(message.len() + 5);
            framed.put_u8(0);
            framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
            framed.extend_from_slice(&message);
            framed.freeze()
        }
    }
}

fn request(collector: &Collector, json: bool, length: usize) -> Request {
    let mut headers = HeaderMap::new();
    let kind = match (collector.grpc, json) {
        (true, _) => "application/grpc",
        (false, true) => "application/json",
        (false, false) => "application/x-protobuf",
    };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if collector.grpc {
        headers.insert(TE, HeaderValue::from_static("trailers"));
    }
    for (name, value) in &collector.headers {
        headers.insert(name.clone(), value.clone());
    }
    Request {
        method: http::Method::POST,
        authority: Text::from(&*collector.authority),
        scheme: "http",
        path: Text::from(&*collector.path),
        headers,
        version: if collector.grpc { Version::Http2 } else { Version::Http11 },
        length: if collector.grpc { Length::Unknown } else { Length::Known(length as u64) },
        upgrade: None,
        expects_continue: false,
        accepts_trailers: collector.grpc,
        hints: Hints::default(),
        head_bytes: 0,
    }
}

async fn send(worker: &Rc<Worker>, collector: &Collector, body: Bytes) -> Result<(), Lost> {
    let live = worker.live();
    let cluster = live.cluster(worker, collector.cluster).ok_or(Lost::NoCluster)?;
    let json = body.first() == Some(&b'[');
    let request = request(collector, json, body.len());
    let (cluster, host) = choose(worker, &live, cluster, &Context::default(), &Sought::default()).ok_or(Lost::Failed)?;
    drop(live);
    let _permit = cluster.breakers(false).requests.take().ok_or(Lost::Failed)?;
    let wish = TargetWish { downstream: request.version, alpn: None, authority: &request.authority, upgrade: false, conn: None };
    let target = cluster.target(host, &wish);
    let _active = target.host.begin_request();
    let acquired = target.pool.acquire(worker, &cluster, &target.host, false, &target.plan).await;
    let mut lease = acquired.map_err(|_| Lost::Failed)?;
    let up = &mut lease.upstream;
    cluster.stats.inc(cluster_names::UPSTREAM_RQ_TOTAL);
    up.send_request(&request).map_err(|_| Lost::Failed)?;
    poll_fn(|cx| up.poll_room(cx)).await.map_err(|_| Lost::Failed)?;
    up.send_data(body);
    up.send_end(None);
    poll_fn(|cx| up.poll_flush(cx)).await.map_err(|_| Lost::Failed)?;
    let response = loop {
        let response = poll_fn(|cx| up.poll_response(cx)).await.map_err(|_| Lost::Failed)?;
        if !response.status.is_informational() {
            break response;
        }
    };
    count_upstream_code(&cluster.stats, response.status.as_u16());
    let mut grpc_status = number(&response.headers, &GRPC_STATUS);
    while let Some(frame) = poll_fn(|cx| up.poll_frame(cx)).await {
        if let Frame::Trailers(trailers) = frame.map_err(|_| Lost::Failed)? {
            grpc_status = number(&trailers, &GRPC_STATUS).or(grpc_status);
            break;
        }
    }
    lease.finish(cluster.cluster.config.max_requests_per_connection, tokio::time::Instant::now());
    let accepted = response.status.is_success() && (!collector.grpc || grpc_status == Some(0));
    if accepted { Ok(()) } else { Err(Lost::Refused) }
}
