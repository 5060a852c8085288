//! Fixed values for later filters and logs (Envoy set_metadata filter).
use lateen_snapshot::http::SetMetadata;
use lateen_telemetry::Local;
use lateen_telemetry::envoy_names::set_metadata as names;

use crate::http::Exchange;

pub(super) fn on_request(exchange: &mut Exchange<'_>, config: &SetMetadata, stats: &Local) {
    for entry in &config.entries {
        if !entry.allow_overwrite && exchange.info.metadata.get(&entry.namespace, &[]).is_some() {
            stats.inc(names::OVERWRITE_DENIED);
            continue;
        }
        exchange.info.metadata.merge(&entry.namespace, &entry.value);
    }
}
