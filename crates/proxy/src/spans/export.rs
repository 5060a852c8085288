//! Sends finished spans to the collector in batches, over the mesh's cluster, in a task beside the requests.
use std::panic::AssertUnwindSafe;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
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
pub(super) async fn run(worker: Rc<Worker>, config: Arc<Tracing>, stats: Local, spans: mpsc::Receiver<Span>) {
    let Some(provider) = &config.provider else { return };
    let report = async |batch: &[Span]| {
        let body = encode(&worker, provider, batch);
        Box::pin(send(&worker, &provider.collector, body)).await
    };
    report_all(spans, &stats, report, || worker.panicked("a report of spans was interrupted")).await;
}

/// Reports in batches; one that panics is lost, and the next goes its way.
async fn report_all(
    mut spans: mpsc::Receiver<Span>,
    stats: &Local,
    report: impl AsyncFn(&[Span]) -> Result<(), Lost>,
    panicked: impl Fn(),
) {
    let mut batch = Vec::new();
    while spans.recv_many(&mut batch, MOST).await > 0 {
        let more = async { while batch.len() < ENOUGH && spans.recv_many(&mut batch, MOST).await > 0 {} };
        if tokio::time::timeout(PATIENCE, more).await.is_err() {
            stats.inc(names::TIMER_FLUSHED);
        }
        match AssertUnwindSafe(report(&batch)).catch_unwind().await {
            Ok(Ok(())) => {
                stats.inc(names::REPORTS_SENT);
                stats.add(names::SPANS_SENT, batch.len() as u64);
            }
            Ok(Err(lost)) => {
                stats.inc(match lost {
                    Lost::NoCluster => names::REPORTS_SKIPPED_NO_CLUSTER,
                    Lost::Failed => names::REPORTS_FAILED,
                    Lost::Refused => names::REPORTS_DROPPED,
                });
                stats.add(names::SPANS_DROPPED, batch.len() as u64);
            }
            Err(_) => {
                panicked();
                stats.inc(names::REPORTS_FAILED);
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

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::time::SystemTime;

    use lateen_telemetry::{BlockName, Registry};

    use super::super::context::Ids;
    use super::super::span::Kind;
    use super::*;

    fn span(name: &str) -> Span {
        Span {
            ids: Ids { trace: 1, span: 1, parent: None },
            kind: Kind::Server,
            shared: false,
            name: name.to_owned(),
            start: SystemTime::UNIX_EPOCH,
            duration: Duration::ZERO,
            tags: Vec::new(),
            trace_state: None,
            status: 200,
        }
    }

    #[tokio::test]
    async fn a_report_that_panics_is_told_and_lost_alone() {
        let (registry, shards) = Registry::new(1, Default::default());
        let block = registry.block(names::DEFS, BlockName::plain("tracing.zipkin"));
        let (finished, spans) = mpsc::channel(2 * MOST);
        for number in 0..2 * MOST {
            finished.send(span(if number < MOST { "bad" } else { "good" })).await.unwrap();
        }
        drop(finished);
        let (told, reported) = (Cell::new(0), Cell::new(0));
        let report = async |batch: &[Span]| {
            assert!(batch.iter().all(|span| span.name == "good"), "injected");
            reported.set(reported.get() + batch.len());
            Ok(())
        };
        report_all(spans, &shards[0].local(&block), report, || told.set(told.get() + 1)).await;
        assert_eq!((told.get(), reported.get()), (1, MOST));
        let counted = [names::SPANS_DROPPED, names::SPANS_SENT, names::REPORTS_FAILED, names::REPORTS_SENT].map(|c| block.counter(c));
        assert_eq!(counted, [MOST as u64, MOST as u64, 1, 1]);
    }
}
