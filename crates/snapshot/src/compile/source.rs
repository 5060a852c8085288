//! Where a resource is discovered from, and how long it is waited for.
use std::path::Path;

use http::{HeaderName, HeaderValue};
use lateen_proto::envoy::config::core::v3::{
    self as core, api_config_source::ApiType, config_source::ConfigSourceSpecifier, grpc_service::TargetSpecifier,
};

use super::common::limit;
use super::file_names;
use super::invalid::{Invalid, Result, Within, harmless, refuse};
use super::service::fixed_header;
use super::warming::{FETCH_TIMEOUT, FetchTimeout};

/// The places secrets come from.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretSource {
    /// `static_resources.secrets`, or the workload's own identity.
    Static,
    /// The aggregated stream.
    Ads,
    /// A discovery service of their own.
    Api(ApiSource),
    /// A file with a discovery response.
    Path(String),
    /// Certificate files that a TLS context names.
    Files,
}

impl SecretSource {
    /// Whether what comes from there has the names that it was given.
    pub(crate) fn is_not_file(&self) -> bool {
        !matches!(self, Self::Path(_))
    }
}

/// A gRPC discovery service behind a static cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ApiSource {
    /// E.g. `sds-grpc`.
    pub cluster: String,
    /// It is asked for changes, not for the state of the world.
    pub delta: bool,
    pub authority: String,
    /// Sent with each stream, e.g. `ClusterID`.
    pub metadata: Vec<(String, HeaderValue)>,
}

/// For resources that only the aggregated stream delivers: how long they are waited for.
pub(crate) fn ads_only(value: Option<core::ConfigSource>) -> Result<FetchTimeout> {
    let core::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier } =
        value.ok_or_else(|| Invalid::new("is missing; use `ads: {}`"))?;
    harmless!(authorities, resource_api_version);
    let timeout = fetch_timeout(initial_fetch_timeout)?;
    match config_source_specifier {
        // `self` means "the stream that this message came on", which is the aggregated one.
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(core::SelfConfigSource { transport_api_version: _ })) => {
            Ok(timeout)
        }
        _ => Err(Invalid::new("is not supported; use `ads: {}`")),
    }
}

/// For routes and endpoints, which may also be in a file: what they are known as, and how long they are waited for.
pub(crate) fn ads_or_file(value: Option<core::ConfigSource>, name: &str) -> Result<(String, FetchTimeout)> {
    let path = match value.as_ref().and_then(|source| source.config_source_specifier.clone()) {
        Some(ConfigSourceSpecifier::Path(path)) => existing(path, "path")?,
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => watched_path(file)?,
        _ => return Ok((name.to_owned(), ads_only(value)?)),
    };
    // A file is read at once, and what is not in it is not waited for.
    Ok((file_names::in_file(&path, name), FetchTimeout::Never))
}

/// As Envoy: a file that is not there now may never be.
pub(crate) fn existing(path: String, field: &str) -> Result<String> {
    file_names::check(&path).within(field)?;
    if Path::new(&path).exists() { Ok(path) } else { Err(Invalid::field(field, format!("`{path}` does not exist"))) }
}

/// Zero is without end.
pub(crate) fn fetch_timeout(value: Option<lateen_proto::Duration>) -> Result<FetchTimeout> {
    let limit = limit(value.as_ref(), Some(FETCH_TIMEOUT), "initial_fetch_timeout")?;
    Ok(limit.map_or(FetchTimeout::Never, FetchTimeout::After))
}

/// Where secrets come from, and how long they are waited for.
pub(crate) fn secret_source(value: Option<core::ConfigSource>) -> Result<(SecretSource, FetchTimeout)> {
    let Some(core::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier }) = value else {
        return Ok((SecretSource::Static, FetchTimeout::default()));
    };
    harmless!(resource_api_version);
    refuse!(authorities);
    let timeout = fetch_timeout(initial_fetch_timeout)?;
    let source = match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_) | ConfigSourceSpecifier::Self_(_)) => SecretSource::Ads,
        Some(ConfigSourceSpecifier::Path(path)) => SecretSource::Path(existing(path, "path")?),
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => SecretSource::Path(watched_path(file)?),
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => SecretSource::Api(api_source(source).within("api_config_source")?),
        None => return Err(Invalid::new("names no source; use `ads: {}`")),
    };
    Ok((source, timeout))
}

/// The file itself is looked at every second, however it changes.
pub(crate) fn watched_path(value: core::PathConfigSource) -> Result<String> {
    let core::PathConfigSource { path, watched_directory, poll_interval } = value;
    harmless!(watched_directory, poll_interval);
    existing(path, "path_config_source.path")
}

/// How a gRPC discovery service is asked.
pub(crate) fn api_source(value: core::ApiConfigSource) -> Result<ApiSource> {
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
    let delta = match ApiType::try_from(api_type) {
        Ok(ApiType::Grpc) => false,
        Ok(ApiType::DeltaGrpc) => true,
        _ => return Err(Invalid::field("api_type", "is not supported; use GRPC or DELTA_GRPC")),
    };
    let mut services = grpc_services.into_iter();
    let first = services.next();
    if services.next().is_some() {
        return Err(Invalid::field("grpc_services", "more than one is not supported"));
    }
    let GrpcTarget { cluster, authority, headers } = grpc_target(first).within_item("grpc_services", 0)?;
    let metadata = headers.into_iter().map(|(name, value)| (name.as_str().to_owned(), value)).collect();
    Ok(ApiSource { cluster, delta, authority, metadata })
}

/// A gRPC service whose calls take what time they need.
pub(crate) struct GrpcTarget {
    pub(crate) cluster: String,
    pub(crate) authority: String,
    pub(crate) headers: Vec<(HeaderName, HeaderValue)>,
}

pub(crate) fn grpc_target(value: Option<core::GrpcService>) -> Result<GrpcTarget> {
    let core::GrpcService { timeout, initial_metadata, retry_policy, target_specifier } =
        value.ok_or_else(|| Invalid::new("is missing; use envoy_grpc"))?;
    harmless!(timeout, retry_policy);
    let headers = initial_metadata.into_iter().enumerate().map(|(i, h)| fixed_header(h).within_item("initial_metadata", i));
    let headers = headers.collect::<Result<_>>()?;
    match target_specifier {
        Some(TargetSpecifier::EnvoyGrpc(core::grpc_service::EnvoyGrpc {
            cluster_name,
            authority,
            retry_policy,
            max_receive_message_length,
            skip_envoy_headers,
        })) => {
            harmless!(retry_policy, max_receive_message_length, skip_envoy_headers);
            if cluster_name.is_empty() {
                return Err(Invalid::field("envoy_grpc.cluster_name", "is empty"));
            }
            let authority = if authority.is_empty() { cluster_name.clone() } else { authority };
            Ok(GrpcTarget { cluster: cluster_name, authority, headers })
        }
        Some(TargetSpecifier::GoogleGrpc(_)) => Err(Invalid::field("google_grpc", "is not supported; use envoy_grpc with a cluster")),
        None => Err(Invalid::new("names no target; use envoy_grpc")),
    }
}
