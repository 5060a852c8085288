//! Sends finished spans to the collector in batches, over the mesh's cluster, in a task beside the requests.
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use lateen_snapshot::trace::{Collector, Provider, ProviderKind, Tracing};
use lateen_telemetry::Local;
use lateen_telemetry::envoy_names::exporter as names;
use tokio::sync::mpsc;

use super::span::Span;
use super::{otlp, zipkin};
use crate::http::message::{Length, Request, Version};
use crate::io::Text;
use crate::upstream::call::{self, Limits};
use crate::upstream::grpc;
use crate::worker::Worker;

/// Spans that are sent without waiting for more (Envoy `tracing.zipkin.min_flush_spans`).
const ENOUGH: usize = 5;
/// The longest that fewer wait (Envoy `tracing.zipkin.flush_interval_ms`).
const PATIENCE: Duration = Duration::from_secs(5);
/// Spans of one report: those that came while the last one was under way.
const MOST: usize = 256;
/// Bytes of a collector's answer, which says nothing that is used.
const MOST_ANSWER: usize = 64 * 1024;

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
        match Box::pin(send(&worker, &provider.collector, body)).await {
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
            grpc::framed_bytes(&message)
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
    for (name, value) in &collector.headers {
        headers.insert(name.clone(), value.clone());
    }
    Request {
        method: http::Method::POST,
        headers,
        version: if collector.grpc { Version::Http2 } else { Version::Http11 },
        length: if collector.grpc { Length::Unknown } else { Length::Known(length as u64) },
        accepts_trailers: collector.grpc,
        ..Request::get(Text::from(&*collector.authority), Text::from(&*collector.path))
    }
}

async fn send(worker: &Rc<Worker>, collector: &Collector, body: Bytes) -> Result<(), Lost> {
    let request = request(collector, body.first() == Some(&b'['), body.len());
    let limits = Limits { time: Some(collector.timeout), bytes: MOST_ANSWER };
    let answer = call::ask(worker, &worker.live(), collector.cluster, &request, body, limits).await;
    let answer = answer.map_err(|lost| if lost == call::Lost::NoCluster { Lost::NoCluster } else { Lost::Failed })?;
    let accepted = if collector.grpc {
        grpc::ended(answer.status.as_u16(), &answer.headers, answer.trailers.as_deref()).is_ok()
    } else {
        answer.status.is_success()
    };
    if accepted { Ok(()) } else { Err(Lost::Refused) }
}
