//! Where a resource is discovered from.
use lateen_proto::envoy::config::core::v3::{
    self as core, api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
};

use super::invalid::{Invalid, Result, Within, harmless, refuse};

/// The places secrets come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretSource {
    /// `static_resources.secrets`, or the workload's own identity.
    Static,
    /// The aggregated stream.
    Ads,
    /// A discovery service behind this static cluster, e.g. `sds-grpc`.
    Cluster(String),
    /// A file with a discovery response.
    Path(String),
    /// Certificate files that a TLS context names.
    Files,
}

/// For resources that only the aggregated stream delivers.
pub(crate) fn ads_only(value: Option<core::ConfigSource>) -> Result<()> {
    let core::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier } =
        value.ok_or_else(|| Invalid::new("is missing; use `ads: {}`"))?;
    harmless!(authorities, initial_fetch_timeout, resource_api_version);
    match config_source_specifier {
        // `self` means "the stream that this message came on", which is the aggregated one.
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(()),
        _ => Err(Invalid::new("is not supported; use `ads: {}`")),
    }
}

pub(crate) fn secret_source(value: Option<core::ConfigSource>) -> Result<SecretSource> {
    let Some(core::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier }) = value else {
        return Ok(SecretSource::Static);
    };
    harmless!(initial_fetch_timeout, resource_api_version);
    refuse!(authorities);
    match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => Ok(SecretSource::Ads),
        Some(ConfigSourceSpecifier::Path(path)) => Ok(SecretSource::Path(path)),
        Some(ConfigSourceSpecifier::PathConfigSource(source)) => Ok(SecretSource::Path(source.path)),
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => Ok(SecretSource::Cluster(api_cluster(source).within("api_config_source")?)),
        None => Err(Invalid::new("names no source; use `ads: {}`")),
    }
}

/// The cluster of a gRPC discovery service.
pub(crate) fn api_cluster(value: core::ApiConfigSource) -> Result<String> {
    let core::ApiConfigSource {
        api_type,
        transport_api_version,
        cluster_names,
        grpc_services,
        refresh_delay,
        request_timeout,
        rate_limit_settings,
        set_node_on_first_message_only,
        config_validators,
    } = value;
    harmless!(transport_api_version, cluster_names, refresh_delay, request_timeout, rate_limit_settings, set_node_on_first_message_only);
    refuse!(config_validators);
    if !matches!(ApiType::try_from(api_type), Ok(ApiType::Grpc | ApiType::DeltaGrpc)) {
        return Err(Invalid::field("api_type", "is not supported; use GRPC or DELTA_GRPC"));
    }
    let mut services = grpc_services.into_iter();
    let first = services.next();
    if services.next().is_some() {
        return Err(Invalid::field("grpc_services", "more than one is not supported"));
    }
    grpc_cluster(first).within_item("grpc_services", 0)
}

pub(crate) fn grpc_cluster(value: Option<core::GrpcService>) -> Result<String> {
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } =
        value.ok_or_else(|| Invalid::new("is missing; use envoy_grpc"))?;
    harmless!(timeout, retry_policy);
    refuse!(initial_metadata);
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name,
            authority,
            retry_policy,
            max_receive_message_length,
            skip_envoy_headers,
        })) => {
            harmless!(authority, retry_policy, max_receive_message_length, skip_envoy_headers);
            if cluster_name.is_empty() {
                return Err(Invalid::field("envoy_grpc.cluster_name", "is empty"));
            }
            Ok(cluster_name)
        }
        Some(TargetSpecifier::GoogleGrpc(_)) => Err(Invalid::field("google_grpc", "is not supported; use envoy_grpc with a cluster")),
        None => Err(Invalid::new("names no target; use envoy_grpc")),
    }
}
