//! Istio's own filters, which istiod sends either typed or as a `TypedStruct`.
use std::sync::Arc;

use lateen_proto::io::istio::http::peer_metadata::{
    self, config::discovery_method::MethodSpecifier as Discover, config::propagation_method,
};
use lateen_proto::{Any, any, stats, udpa, xds};
use prost_types::{Struct, value::Kind};

use super::common::open;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use crate::http::{HttpFilter, IstioStats, PeerMetadata};

const PEER_METADATA: &str = "io.istio.http.peer_metadata.Config";
const STATS: &str = "stats.PluginConfig";
pub(crate) const METADATA_EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";

/// An HTTP filter of Istio's, or `None` for any other.
pub(crate) fn http_filter(config: &Any, outbound: bool) -> Result<Option<HttpFilter>> {
    match type_name(config).as_str() {
        PEER_METADATA => Ok(Some(HttpFilter::PeerMetadata(Arc::new(peer_metadata(config)?)))),
        STATS => Ok(Some(HttpFilter::IstioStats(Arc::new(istio_stats(config, outbound)?)))),
        _ => Ok(None),
    }
}

/// The message name of a configuration, looking through a `TypedStruct`.
pub(crate) fn type_name(config: &Any) -> String {
    typed_struct(config).map_or_else(|| any::name_of(&config.type_url).to_owned(), |(name, _)| name)
}

fn typed_struct(config: &Any) -> Option<(String, Struct)> {
    let (url, value) = if any::is::<udpa::r#type::v1::TypedStruct>(config) {
        let typed: udpa::r#type::v1::TypedStruct = any::open(config).ok()?;
        (typed.type_url, typed.value)
    } else if any::is::<xds::r#type::v3::TypedStruct>(config) {
        let typed: xds::r#type::v3::TypedStruct = any::open(config).ok()?;
        (typed.type_url, typed.value)
    } else {
        return None;
    };
    Some((any::name_of(&url).to_owned(), value.unwrap_or_default()))
}

pub(crate) fn istio_stats(config: &Any, outbound: bool) -> Result<IstioStats> {
    if let Some((_, fields)) = typed_struct(config) {
        return stats_struct(&fields, outbound);
    }
    let stats::PluginConfig {
        debug,
        max_peer_cache_size,
        stat_prefix,
        field_separator,
        value_separator,
        disable_host_header_fallback,
        tcp_reporting_duration,
        metrics,
        definitions,
        reporter,
        rotation_interval,
        graceful_deletion_interval,
    } = open(config)?;
    harmless!(debug, max_peer_cache_size, stat_prefix, field_separator, value_separator, tcp_reporting_duration);
    harmless!(rotation_interval, graceful_deletion_interval);
    refuse!(metrics, definitions);
    // The listener's direction says whether this end reports as source; only gateways of services differ.
    let reporter_source = outbound && reporter != stats::Reporter::ServerGateway as i32;
    Ok(IstioStats { reporter_source, disable_host_header_fallback })
}

fn stats_struct(fields: &Struct, outbound: bool) -> Result<IstioStats> {
    let mut result = IstioStats { reporter_source: outbound, disable_host_header_fallback: false };
    for (name, value) in &fields.fields {
        match name.as_str() {
            "disable_host_header_fallback" | "disableHostHeaderFallback" => {
                result.disable_host_header_fallback = value.kind == Some(Kind::BoolValue(true));
            }
            "metrics" | "definitions" => return Err(Invalid::unsupported(name)),
            "reporter" => {
                result.reporter_source = outbound && value.kind != Some(Kind::StringValue("SERVER_GATEWAY".to_owned()));
            }
            _ => {}
        }
    }
    Ok(result)
}

fn peer_metadata(config: &Any) -> Result<PeerMetadata> {
    if let Some((_, fields)) = typed_struct(config) {
        return peer_metadata_struct(&fields);
    }
    let peer_metadata::Config {
        downstream_discovery,
        upstream_discovery,
        downstream_propagation,
        upstream_propagation,
        shared_with_upstream,
        additional_labels,
    } = open(config)?;
    harmless!(shared_with_upstream, additional_labels);
    let discovers = |methods: &[peer_metadata::config::DiscoveryMethod]| {
        methods.iter().any(|m| matches!(m.method_specifier, Some(Discover::IstioHeaders(_))))
    };
    let propagates = |methods: &[peer_metadata::config::PropagationMethod]| {
        methods.iter().any(|m| matches!(m.method_specifier, Some(propagation_method::MethodSpecifier::IstioHeaders(_))))
    };
    Ok(PeerMetadata {
        discover_downstream: discovers(&downstream_discovery),
        discover_upstream: discovers(&upstream_discovery),
        propagate_downstream: propagates(&downstream_propagation),
        propagate_upstream: propagates(&upstream_propagation),
    })
}

fn peer_metadata_struct(fields: &Struct) -> Result<PeerMetadata> {
    let mut result = PeerMetadata::default();
    for (name, value) in &fields.fields {
        let uses_headers = || lists_method(value, &["istio_headers", "istioHeaders"]);
        match name.as_str() {
            "downstream_discovery" | "downstreamDiscovery" => result.discover_downstream = uses_headers(),
            "upstream_discovery" | "upstreamDiscovery" => result.discover_upstream = uses_headers(),
            "downstream_propagation" | "downstreamPropagation" => result.propagate_downstream = uses_headers(),
            "upstream_propagation" | "upstreamPropagation" => result.propagate_upstream = uses_headers(),
            "shared_with_upstream" | "sharedWithUpstream" | "additional_labels" | "additionalLabels" => {}
            other => return Err(Invalid::unsupported(other)).within("typed_config.value"),
        }
    }
    Ok(result)
}

fn lists_method(value: &prost_types::Value, names: &[&str]) -> bool {
    let Some(Kind::ListValue(list)) = &value.kind else { return false };
    list.values.iter().any(|item| match &item.kind {
        Some(Kind::StructValue(s)) => names.iter().any(|n| s.fields.contains_key(*n)),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outbound_listener_reports_as_the_source_unless_it_is_a_services_gateway() {
        let reporter = |outbound, reporter: stats::Reporter| {
            let config = stats::PluginConfig { reporter: reporter.into(), ..Default::default() };
            istio_stats(&any::pack(&config), outbound).unwrap().reporter_source
        };
        assert!(reporter(true, stats::Reporter::Unspecified));
        assert!(!reporter(false, stats::Reporter::Unspecified));
        assert!(!reporter(true, stats::Reporter::ServerGateway));
    }
}
