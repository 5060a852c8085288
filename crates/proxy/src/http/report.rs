//! Counters, Istio's metrics and log lines at a request's begin and end.
use lateen_telemetry::envoy_names::{count_downstream_code, http as names};
use lateen_telemetry::istio::{Destination, DestinationId, HttpOutcome, PeerId, Reporter, StreamLabels};

use tokio::time::Instant;

use super::Exchange;
use super::message::Version;
use crate::filter::http::grpc_stats;
use crate::upstream::ClusterState;
use crate::worker::Worker;
use lateen_snapshot::cluster::IstioDestination;
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
    let labels = StreamLabels {
        reporter: if source { Reporter::Source } else { Reporter::Destination },
        destination: destination(exchange, !no_fallback),
        peer: info.peer,
        peer_principal: if source { info.upstream_principals.host } else { exchange.conn.peer_principal },
        local_principal: if source { info.upstream_principals.own } else { exchange.conn.local_principal },
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
    if let Some(call) = info.grpc_call.as_ref().filter(|call| call.emitted) {
        let (requests, responses) = call.counts();
        shard.grpc_messages(labels, requests, responses);
    }
}

/// What the request was for: Istio's name where no service takes it, else the cluster's service, else the host that was asked for.
fn destination(exchange: &Exchange<'_>, by_host: bool) -> DestinationId {
    let shard = &exchange.worker.istio;
    let host: &[u8] = if by_host { exchange.request.authority.as_bytes() } else { &[] };
    let by_route = exchange.info.route.as_ref().and_then(|matched| matched.route.catch_all);
    let cluster = exchange.info.cluster.as_ref();
    if let Some(catch_all) = by_route.or_else(|| cluster?.cluster.config.istio.destination.catch_all()) {
        return shard.destination_of_catch_all(catch_all, host);
    }
    match cluster.map_or(DestinationId::default(), |cluster| destination_of(exchange.worker, cluster)) {
        unknown if unknown == DestinationId::default() => shard.destination_of_host(host),
        known => known,
    }
}

/// What is behind a cluster, interned once per worker.
pub(crate) fn destination_of(worker: &Worker, cluster: &ClusterState) -> DestinationId {
    if let Some(id) = cluster.istio_destination.get() {
        return id;
    }
    let id = match &cluster.cluster.config.istio.destination {
        IstioDestination::Service(service) => {
            let service = Destination::service(&service.host, Some(&service.name), Some(&service.namespace));
            worker.istio.shared().destination(service)
        }
        IstioDestination::CatchAll(catch_all) => worker.istio.destination_of_catch_all(*catch_all, &[]),
        IstioDestination::Unknown => DestinationId::default(),
    };
    cluster.istio_destination.set(Some(id));
    id
}

/// The workload behind an endpoint, as its metadata names it.
pub(crate) fn endpoint_peer(worker: &Worker, workload: Option<&str>) -> PeerId {
    use lateen_telemetry::istio::PeerMetadata;
    let peer = workload.and_then(PeerMetadata::from_endpoint);
    peer.map_or(PeerId::default(), |peer| worker.istio.shared().peer(peer))
}
