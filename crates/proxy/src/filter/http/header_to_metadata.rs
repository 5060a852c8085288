//! Metadata made of headers, for later filters and logs (Envoy header_to_metadata filter).
use std::sync::Arc;

use lateen_snapshot::header_metadata::{HeaderToMetadata, apply};

use super::{Step, per_route};
use crate::http::Exchange;
use crate::http::message::Response;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &Arc<HeaderToMetadata>) -> Step {
    let config = in_force(exchange, config);
    apply(&config.request, &mut exchange.request.headers, exchange.request.length.said(), &mut exchange.info.metadata);
    Step::Continue
}

pub(super) fn on_response(exchange: &mut Exchange<'_>, config: &Arc<HeaderToMetadata>, response: &mut Response) {
    let config = in_force(exchange, config);
    apply(&config.response, &mut response.headers, response.length.said(), &mut exchange.info.metadata);
}

fn in_force(exchange: &Exchange<'_>, config: &Arc<HeaderToMetadata>) -> Arc<HeaderToMetadata> {
    per_route(exchange, |p| p.header_to_metadata.as_ref()).unwrap_or_else(|| Arc::clone(config))
}
