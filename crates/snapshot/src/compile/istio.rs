//! Istio's own filters, which istiod sends either typed or as a `TypedStruct`.
use std::sync::Arc;

use lateen_proto::io::istio::http::peer_metadata::{
    self, config::DiscoveryMethod, config::PropagationMethod, config::discovery_method::MethodSpecifier as Discover,
    config::propagation_method,
};
use lateen_proto::{Any, any, stats};
use prost_types::{Struct, Value, value::Kind};

use super::common::open;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::opaque;
use crate::http::{HttpFilter, IstioStats, PeerMetadata, Propagation};

const PEER_METADATA: &str = "io.istio.http.peer_metadata.Config";
const STATS: &str = "stats.PluginConfig";
pub(crate) const METADATA_EXCHANGE: &str = "envoy.tcp.metadataexchange.config.MetadataExchange";

/// An HTTP filter of Istio's, or `None` for any other.
pub(crate) fn http_filter(config: &Any, source: bool) -> Result<Option<HttpFilter>> {
    match type_name(config).as_str() {
        PEER_METADATA => Ok(Some(HttpFilter::PeerMetadata(Arc::new(peer_metadata(config)?)))),
        STATS => Ok(Some(HttpFilter::IstioStats(Arc::new(istio_stats(config, source)?)))),
        _ => Ok(None),
    }
}

/// Whether Istio's own filters have this message.
pub(crate) fn is_own(message_name: &str) -> bool {
    [PEER_METADATA, STATS, METADATA_EXCHANGE].contains(&message_name)
}

/// The message name of a configuration, looking through a `TypedStruct`.
pub(crate) fn type_name(config: &Any) -> String {
    typed_struct(config).map_or_else(|| any::name_of(&config.type_url).to_owned(), |(name, _)| name)
}

fn typed_struct(config: &Any) -> Option<(String, Struct)> {
    let (url, value) = opaque::typed_struct(config).ok().flatten()?;
    Some((any::name_of(&url).to_owned(), value))
}

/// `source` is what the listener's direction says of who reports.
pub(crate) fn istio_stats(config: &Any, source: bool) -> Result<IstioStats> {
    if let Some((_, fields)) = typed_struct(config) {
        return stats_struct(&fields, source);
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
    // A gateway of services reports as `waypoint`, with both ends as peers.
    refuse!(metrics, definitions, reporter);
    Ok(IstioStats { reporter_source: source, disable_host_header_fallback })
}

fn stats_struct(fields: &Struct, source: bool) -> Result<IstioStats> {
    let mut result = IstioStats { reporter_source: source, disable_host_header_fallback: false };
    for (name, value) in &fields.fields {
        match name.as_str() {
            "disable_host_header_fallback" | "disableHostHeaderFallback" => {
                result.disable_host_header_fallback = value.kind == Some(Kind::BoolValue(true));
            }
            "metrics" | "definitions" => return Err(Invalid::unsupported(name)),
            "reporter" if value.kind != Some(Kind::StringValue("UNSPECIFIED".to_owned())) => return Err(Invalid::unsupported(name)),
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
    let discovers = |methods: &[DiscoveryMethod]| {
        methods.iter().any(|DiscoveryMethod { method_specifier }| match method_specifier {
            Some(Discover::IstioHeaders(_)) => true,
            // What a peer of ambient mode says of itself; istiod names it beside the headers for every sidecar.
            Some(Discover::Baggage(baggage)) => {
                harmless!(baggage);
                false
            }
            Some(Discover::WorkloadDiscovery(workloads)) => {
                harmless!(workloads);
                false
            }
            None => false,
        })
    };
    let propagates = |methods: &[PropagationMethod]| {
        propagation(methods.iter().filter_map(|PropagationMethod { method_specifier }| match method_specifier.as_ref()? {
            propagation_method::MethodSpecifier::IstioHeaders(headers) => Some(headers.skip_external_clusters),
        }))
    };
    Ok(PeerMetadata {
        discover_downstream: discovers(&downstream_discovery),
        discover_upstream: discovers(&upstream_discovery),
        propagate_downstream: propagates(&downstream_propagation),
        propagate_upstream: propagates(&upstream_propagation),
    })
}

/// Every method puts the same headers: one that leaves nobody out is enough.
fn propagation(mut skips: impl Iterator<Item = bool>) -> Option<Propagation> {
    let first = skips.next()?;
    Some(Propagation { skip_external_clusters: first && skips.all(|skip| skip) })
}

fn peer_metadata_struct(fields: &Struct) -> Result<PeerMetadata> {
    let mut result = PeerMetadata::default();
    for (name, value) in &fields.fields {
        let uses_headers = || headers_methods(value).next().is_some();
        let propagates = || propagation(headers_methods(value).map(skips_external));
        match name.as_str() {
            "downstream_discovery" | "downstreamDiscovery" => result.discover_downstream = uses_headers(),
            "upstream_discovery" | "upstreamDiscovery" => result.discover_upstream = uses_headers(),
            "downstream_propagation" | "downstreamPropagation" => result.propagate_downstream = propagates(),
            "upstream_propagation" | "upstreamPropagation" => result.propagate_upstream = propagates(),
            "shared_with_upstream" | "sharedWithUpstream" | "additional_labels" | "additionalLabels" => {}
            other => return Err(Invalid::unsupported(other)).within("typed_config.value"),
        }
    }
    Ok(result)
}

/// The settings of each method of a list that is by Istio's headers.
fn headers_methods(value: &Value) -> impl Iterator<Item = &Value> {
    let list = match &value.kind {
        Some(Kind::ListValue(list)) => list.values.as_slice(),
        _ => &[],
    };
    list.iter().filter_map(|item| field(item, &["istio_headers", "istioHeaders"]))
}

fn skips_external(headers: &Value) -> bool {
    field(headers, &["skip_external_clusters", "skipExternalClusters"]).is_some_and(|v| v.kind == Some(Kind::BoolValue(true)))
}

fn field<'a>(value: &'a Value, names: &[&str]) -> Option<&'a Value> {
    let Some(Kind::StructValue(fields)) = &value.kind else { return None };
    names.iter().find_map(|name| fields.fields.get(*name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_says_who_reports_and_a_gateway_of_services_is_refused() {
        let reporter = |source, reporter: stats::Reporter| {
            let config = stats::PluginConfig { reporter: reporter.into(), ..Default::default() };
            istio_stats(&any::pack(&config), source)
        };
        assert!(reporter(true, stats::Reporter::Unspecified).unwrap().reporter_source);
        assert!(!reporter(false, stats::Reporter::Unspecified).unwrap().reporter_source);
        let refused = reporter(true, stats::Reporter::ServerGateway).unwrap_err().to_string();
        assert!(refused.contains("reporter"), "{refused}");
        let text = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
        let fields = |value| Struct { fields: [("reporter".to_owned(), text(value))].into_iter().collect() };
        assert!(stats_struct(&fields("SERVER_GATEWAY"), true).is_err());
        assert!(stats_struct(&fields("UNSPECIFIED"), true).unwrap().reporter_source);
    }

    #[test]
    fn external_clusters_are_left_out_where_every_method_says_so() {
        use peer_metadata::config::{IstioHeaders, PropagationMethod};
        let typed = |skips: &[bool]| {
            let method = |skip: &bool| PropagationMethod {
                method_specifier: Some(propagation_method::MethodSpecifier::IstioHeaders(IstioHeaders { skip_external_clusters: *skip })),
            };
            let config = peer_metadata::Config { upstream_propagation: skips.iter().map(method).collect(), ..Default::default() };
            peer_metadata(&any::pack(&config)).unwrap().propagate_upstream
        };
        let of = |skip_external_clusters| Some(Propagation { skip_external_clusters });
        assert_eq!([typed(&[]), typed(&[true]), typed(&[false]), typed(&[true, false])], [None, of(true), of(false), of(false)]);
    }

    #[test]
    fn methods_of_a_struct_are_read_as_typed_ones() {
        let object = |fields: &[(&str, Kind)]| {
            let fields = fields.iter().map(|(k, v)| ((*k).to_owned(), Value { kind: Some(v.clone()) })).collect();
            Struct { fields }
        };
        let config = |key, skip| {
            let headers = object(&[(key, Kind::BoolValue(skip))]);
            let method = object(&[("istio_headers", Kind::StructValue(headers))]);
            let list = prost_types::ListValue { values: vec![Value { kind: Some(Kind::StructValue(method)) }] };
            let read = peer_metadata_struct(&object(&[("upstream_propagation", Kind::ListValue(list))])).unwrap();
            assert_eq!(read.propagate_downstream, None);
            read.propagate_upstream.unwrap().skip_external_clusters
        };
        assert!(config("skip_external_clusters", true) && config("skipExternalClusters", true));
        assert!(!config("skip_external_clusters", false) && !config("other", true));
    }
}
