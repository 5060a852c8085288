//! The gRPC statistics filter.
use std::collections::HashMap;
use std::sync::Arc;

use lateen_proto::envoy::config::core::v3 as core;
use lateen_proto::envoy::extensions::filters::http::grpc_stats::v3 as proto;

use super::invalid::{Invalid, Result, Within, refuse};
use crate::grpc_stats::{GrpcMethods, GrpcStats};
use crate::http::HttpFilter;

pub(crate) fn filter(value: proto::FilterConfig) -> Result<HttpFilter> {
    use proto::filter_config::PerMethodStatSpecifier as Spec;
    let proto::FilterConfig { emit_filter_state, enable_upstream_stats, replace_dots_in_grpc_service_name, per_method_stat_specifier } =
        value;
    refuse!(enable_upstream_stats);
    let methods = match per_method_stat_specifier {
        None | Some(Spec::StatsForAllMethods(false)) => GrpcMethods::None,
        Some(Spec::StatsForAllMethods(true)) => GrpcMethods::All,
        Some(Spec::IndividualMethodStatsAllowlist(list)) => listed(list).within("individual_method_stats_allowlist")?,
    };
    Ok(HttpFilter::GrpcStats(Arc::new(GrpcStats { methods, replace_dots: replace_dots_in_grpc_service_name, emits: emit_filter_state })))
}

fn listed(value: core::GrpcMethodList) -> Result<GrpcMethods> {
    let core::GrpcMethodList { services } = value;
    let mut all = HashMap::new();
    for (index, core::grpc_method_list::Service { name, method_names }) in services.into_iter().enumerate() {
        if name.is_empty() || method_names.is_empty() {
            return Err(Invalid::new("needs a name and method_names")).within_item("services", index);
        }
        all.entry(name.into()).or_insert_with(std::collections::HashSet::new).extend(method_names.into_iter().map(Into::into));
    }
    Ok(GrpcMethods::Listed(all))
}
