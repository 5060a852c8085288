//! Istio's exchange of workload metadata in headers: each end tells who it is, so that metrics can name both.
use http::header::{HeaderMap, HeaderValue};
use lateen_snapshot::http::{PeerMetadata, Propagation};
use lateen_telemetry::istio::PeerId;

use crate::http::Exchange;
use crate::http::headers::{PEER_METADATA, PEER_METADATA_ID};
use crate::http::message::Response;
use crate::router::lookup;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &PeerMetadata) {
    if config.discover_downstream {
        let (id, metadata) = take(&mut exchange.request.headers, exchange.request.hints.peer);
        // What a caller says of itself is nothing of the workload that an outbound request is for.
        if let Some(metadata) = metadata.filter(|_| exchange.hcm.inbound) {
            exchange.info.peer = exchange.worker.istio.peer_of_header(metadata.as_bytes());
        }
        exchange.info.peer_asked |= id.is_some();
    }
    if config.propagate_upstream.is_some_and(|to| allows(exchange, to)) {
        put(exchange.worker, &mut exchange.request.headers);
    }
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, config: &PeerMetadata, response: &mut Response) {
    if config.discover_upstream {
        let (_, metadata) = take(&mut response.headers, true);
        let told = metadata.map_or(PeerId::default(), |metadata| exchange.worker.istio.peer_of_header(metadata.as_bytes()));
        // One that cannot be read tells less than the endpoint's own metadata.
        if told != PeerId::default() && !exchange.hcm.inbound {
            exchange.info.peer = told;
        }
    }
    // Only callers that told us who they are know what to do with our answer.
    if exchange.info.peer_asked && config.propagate_downstream.is_some_and(|to| allows(exchange, to)) {
        put(exchange.worker, &mut response.headers);
    }
}

/// Takes both headers off: they are for this hop.
fn take(map: &mut HeaderMap, may_be_there: bool) -> (Option<HeaderValue>, Option<HeaderValue>) {
    if may_be_there { (map.remove(PEER_METADATA_ID), map.remove(PEER_METADATA)) } else { (None, None) }
}

/// What the mesh knows of workloads is not for everybody: the request's cluster says who may be told.
fn allows(exchange: &Exchange<'_>, to: Propagation) -> bool {
    let id = exchange.info.route.as_ref().and_then(|m| lookup::cluster_of(m, &exchange.live.snapshot, &exchange.request));
    let cluster = id.and_then(|id| exchange.live.snapshot.cluster(id));
    cluster.is_none_or(|cluster| cluster.config.istio.exchange.allows(to.skip_external_clusters))
}

fn put(worker: &crate::worker::Worker, map: &mut HeaderMap) {
    let node = &worker.node_headers;
    if let Some(id) = &node.id {
        map.insert(PEER_METADATA_ID, id.clone());
    }
    if let Some(metadata) = &node.metadata {
        map.insert(PEER_METADATA, metadata.clone());
    }
}
