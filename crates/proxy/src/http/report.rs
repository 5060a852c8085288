//! Counters, Istio's metrics and log lines at a request's begin and end.
use lateen_telemetry::envoy_names::{count_downstream_code, http as names};
use lateen_telemetry::istio::{Destination, DestinationId, HttpOutcome, PeerId, Reporter, StreamLabels};

use tokio::time::Instant;

use super::Exchange;
use super::message::Version;
use crate::filter::http::grpc_stats;
use crate::upstream::ClusterState;
use crate::worker::Worker;
use lateen_snapshot::http::HttpFilter;

pub(crate) fn begin(exchange: &Exchange<'_>) {
    let stats = &exchange.hcm.stats;
    stats.inc(names::DOWNSTREAM_RQ_TOTAL);
    stats.gauge_inc(names::DOWNSTREAM_RQ_ACTIVE);
    stats.inc(match exchange.request.version {
        Version::Http2 => names::DOWNSTREAM_RQ_HTTP2_TOTAL,
        _ => names::DOWNSTREAM_RQ_HTTP1_TOTAL,
    });
}

pub(crate) fn end(exchange: &Exchange<'_>, ended: Instant) {
    let stats = &exchange.hcm.stats;
    let info = &exchange.info;
    let micros = ended.saturating_duration_since(info.start).as_micros() as u64;
    stats.gauge_dec(names::DOWNSTREAM_RQ_ACTIVE);
    stats.record(names::DOWNSTREAM_RQ_TIME, micros);
    if info.status != 0 {
        count_downstream_code(stats, info.status);
    } else {
        stats.inc(names::DOWNSTREAM_RQ_RX_RESET);
    }
    for filter in crate::filter::http::in_force(exchange) {
        match filter {
            HttpFilter::IstioStats(config) => istio(exchange, config.reporter_source, config.disable_host_header_fallback, micros),
            HttpFilter::GrpcStats(config) => grpc_stats::charge(exchange, config),
            _ => {}
        }
    }
    if !exchange.hcm.logs.is_empty() {
        exchange.hcm.logs.request(exchange);
    }
}

fn istio(exchange: &Exchange<'_>, source: bool, no_fallback: bool, micros: u64) {
    let info = &exchange.info;
    let shard = &exchange.worker.istio;
    let destination = match &info.cluster {
        Some(cluster) => destination_of(exchange.worker, cluster),
        None => DestinationId::default(),
    };
    let destination = if destination == DestinationId::default() && !no_fallback {
        shard.destination_of_host(exchange.request.authority.as_bytes())
    } else {
        destination
    };
    let labels = StreamLabels {
        reporter: if source { Reporter::Source } else { Reporter::Destination },
        destination,
        peer: info.peer,
        peer_principal: if source { info.upstream_principal } else { exchange.conn.peer_principal },
        local_principal: exchange.conn.local_principal,
    };
    let outcome = HttpOutcome {
        code: info.status,
        flags: info.flags,
        grpc: info.grpc,
        grpc_status: info.grpc_status,
        duration_micros: micros,
        request_bytes: exchange.request.head_bytes + info.body_received,
        response_bytes: info.head_sent + info.body_sent,
    };
    shard.http(labels, &outcome);
}

/// The service behind a cluster, interned once per worker.
pub(crate) fn destination_of(worker: &Worker, cluster: &ClusterState) -> DestinationId {
    if let Some(id) = cluster.istio_destination.get() {
        return id;
    }
    let config = &cluster.cluster.config;
    let destination = match &config.istio_service {
        Some(service) => Some(Destination::service(&service.host, Some(&service.name), Some(&service.namespace))),
        None if matches!(&*config.name, "BlackHoleCluster" | "PassthroughCluster" | "InboundPassthroughCluster") => {
            Some(Destination::catch_all(&config.name, None))
        }
        None => None,
    };
    let id = destination.map_or(DestinationId::default(), |d| worker.istio.shared().destination(d));
    cluster.istio_destination.set(Some(id));
    id
}

/// The workload behind an endpoint, as its metadata names it.
pub(crate) fn endpoint_peer(worker: &Worker, workload: Option<&str>) -> PeerId {
    use lateen_telemetry::istio::PeerMetadata;
    let peer = workload.and_then(PeerMetadata::from_endpoint);
    peer.map_or(PeerId::default(), |peer| worker.istio.shared().peer(peer))
}
