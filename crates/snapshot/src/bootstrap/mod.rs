//! Bootstrap files: Envoy's YAML or JSON, judged field by field like any other message.
#![allow(deprecated)] // Older fields still occur in files and must be judged like any other.
mod discovered_file;
pub mod overload;
pub mod stats;
pub mod yaml;

use std::net::SocketAddr;
use std::path::Path;

use lateen_core::bounded_file;
use lateen_proto::any;
use lateen_proto::envoy::config::bootstrap::v3::{self as proto, bootstrap, runtime_layer};
use lateen_proto::envoy::config::cluster::v3::Cluster;
use lateen_proto::envoy::config::core::v3::{self as core, config_source::ConfigSourceSpecifier};
use lateen_proto::envoy::config::listener::v3::Listener;
use lateen_proto::json::{Codec, InvalidJson, Tree};
use lateen_proto::wire::pieces;
use lateen_proto::{Any, Struct};
use prost::{Message, Name};

pub use discovered_file::{Discovered, DiscoveredFile};
pub use stats::StatsMatcher;

use crate::compile::parts::{
    Place, Within, api_source, dns_resolver, existing, fetch_timeout, harmless, place, refuse, refuse_admin_logs, watched_path,
};
use crate::compile::{ApiSource, FetchTimeout, Invalid};
use crate::dns::DnsResolver;

/// The most that a bootstrap or a file of discovered resources may hold: as much as an answer of a discovery service.
const MOST_BYTES: u64 = 256 << 20;

type Result<T> = std::result::Result<T, Invalid>;

/// What a bootstrap says, apart from the resources in it.
#[derive(Clone, Debug)]
pub struct Bootstrap {
    pub node: core::Node,
    /// The admin server's address; `None` runs none.
    pub admin: Option<AdminAddress>,
    /// Static secrets, clusters and listeners, in the order in which they must be taken in use.
    pub resources: Vec<Any>,
    pub listeners: Option<DynamicSource>,
    pub clusters: Option<DynamicSource>,
    /// How long the first answers of these are waited for.
    pub listeners_within: FetchTimeout,
    pub clusters_within: FetchTimeout,
    /// The aggregated stream.
    pub ads: Option<ApiSource>,
    /// Which statistics are shown.
    pub stats: StatsMatcher,
    /// The cluster that this process is a member of, for zone-aware routing.
    pub local_cluster: Option<String>,
    /// What happens when resources run short.
    pub overload: overload::Overload,
    /// How names of clusters are resolved that say nothing about it.
    pub dns_resolver: DnsResolver,
    /// The file itself but for its listeners and clusters, which are among `resources`: for `config_dump`.
    pub encoded: Any,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AdminAddress {
    Socket(SocketAddr),
    Pipe(String),
}

/// Where listeners or clusters come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DynamicSource {
    Ads,
    /// A file that holds a discovery response, watched.
    Path(String),
    /// A discovery service of its own.
    Api(ApiSource),
}

/// A bootstrap that cannot be used. The text names file, line and field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidBootstrap(String);

/// Reads and judges a bootstrap file, YAML or JSON.
///
/// # Errors
/// When it cannot be read, a field is unknown, or one would change behaviour and is not honoured.
pub fn load(path: &Path) -> std::result::Result<Bootstrap, InvalidBootstrap> {
    let origin = path.display().to_string();
    parse(&text(bounded_file::read_any(path, MOST_BYTES), &origin)?, &origin)
}

/// What was read of a file, which must be text.
fn text(content: std::io::Result<Vec<u8>>, origin: &str) -> std::result::Result<String, InvalidBootstrap> {
    let invalid = |reason: &dyn std::fmt::Display| InvalidBootstrap(format!("{origin}: {reason}"));
    String::from_utf8(content.map_err(|e| invalid(&e))?).map_err(|e| invalid(&e.utf8_error()))
}

/// [`load`] for a text; `origin` is named in errors.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, origin: &str) -> std::result::Result<Bootstrap, InvalidBootstrap> {
    let invalid = |reason: &dyn std::fmt::Display| InvalidBootstrap(format!("{origin}: {reason}"));
    let (rest, resources) = apart(&encode::<proto::Bootstrap>(text, origin)?);
    let value = proto::Bootstrap::decode(rest.as_slice()).map_err(|e| invalid(&e))?;
    judge_with(value, resources).map_err(|e| invalid(&e))
}

fn message<M: Message + Name + Default>(text: &str, origin: &str) -> std::result::Result<M, InvalidBootstrap> {
    M::decode(encode::<M>(text, origin)?.as_slice()).map_err(|e| InvalidBootstrap(format!("{origin}: {e}")))
}

fn encode<M: Name>(text: &str, origin: &str) -> std::result::Result<Vec<u8>, InvalidBootstrap> {
    let value;
    // JSON is YAML, but its own reader is ten times as fast and big bootstraps are JSON.
    let tree = match Tree::parse(text) {
        Ok(tree) => tree,
        Err(_) => {
            value = yaml::read(text).map_err(|e| InvalidBootstrap(format!("{origin}: {e}")))?;
            Tree::from(&value)
        }
    };
    Codec::new().encode(&M::full_name(), &tree).map_err(|error| {
        let InvalidJson::Misfit(misfit) = error else { return InvalidBootstrap(format!("{origin}: {error}")) };
        let line = yaml::line_of(text, &misfit.path).map(|l| format!("{l}:")).unwrap_or_default();
        InvalidBootstrap(format!("{origin}:{line} {misfit}"))
    })
}

/// An encoded bootstrap without its listeners and clusters, and these as they stand in it: decoded all at once, thousands
/// of clusters would take a hundred times the memory of their bytes, which the compiler needs one at a time.
fn apart(encoded: &[u8]) -> (Vec<u8>, Vec<Any>) {
    let (mut rest, mut clusters, mut listeners) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces(encoded) {
        let Some(inside) = piece.content.filter(|_| piece.number == 2) else {
            rest.extend_from_slice(piece.whole);
            continue;
        };
        let mut static_resources = Vec::new();
        for piece in pieces(inside) {
            match (piece.number, piece.content) {
                (1, Some(listener)) => listeners.push(Any { type_url: any::url::<Listener>(), value: listener.to_vec() }),
                (2, Some(cluster)) => clusters.push(Any { type_url: any::url::<Cluster>(), value: cluster.to_vec() }),
                _ => static_resources.extend_from_slice(piece.whole),
            }
        }
        // `Bootstrap.static_resources` is field 2.
        prost::encoding::bytes::encode(2, &static_resources, &mut rest);
    }
    clusters.append(&mut listeners);
    (rest, clusters)
}

/// Judges a bootstrap that is there as a message already.
///
/// # Errors
/// When a field would change behaviour and is not honoured.
pub fn judge(mut value: proto::Bootstrap) -> Result<Bootstrap> {
    let mut resources = Vec::new();
    if let Some(fixed) = &mut value.static_resources {
        // Secrets stay: they are taken with the rest, before others refer to them.
        let bootstrap::StaticResources { listeners, clusters, secrets: _taken } = fixed;
        resources.extend(std::mem::take(clusters).iter().map(any::pack));
        resources.extend(std::mem::take(listeners).iter().map(any::pack));
    }
    judge_with(value, resources)
}

/// [`judge`], the listeners and clusters being there as resources.
fn judge_with(value: proto::Bootstrap, others: Vec<Any>) -> Result<Bootstrap> {
    let encoded = any::pack(&value);
    let proto::Bootstrap {
        node,
        node_context_params,
        static_resources,
        dynamic_resources,
        cluster_manager,
        hds_config,
        flags_path,
        stats_sinks,
        deferred_stat_options,
        stats_config,
        stats_flush_interval,
        watchdog,
        watchdogs,
        tracing,
        layered_runtime,
        admin,
        overload_manager,
        enable_dispatcher_stats,
        header_prefix,
        stats_server_version_override,
        use_tcp_for_dns_lookups,
        dns_resolution_config,
        typed_dns_resolver_config,
        bootstrap_extensions,
        fatal_actions,
        config_sources,
        default_config_source,
        default_socket_interface,
        certificate_provider_instances,
        inline_headers,
        perf_tracing_file_path,
        default_regex_engine,
        xds_delegate_extension,
        xds_config_tracker_extension,
        listener_manager,
        application_log_config,
        grpc_async_client_manager_config,
        memory_allocator_manager,
        enable_worker_cpu_affinity,
        stats_flush,
        stats_eviction,
    } = value;
    // How the process runs, not what it answers.
    harmless!(node_context_params, flags_path, deferred_stat_options, watchdog, watchdogs, enable_dispatcher_stats);
    harmless!(stats_server_version_override, fatal_actions, perf_tracing_file_path, memory_allocator_manager, enable_worker_cpu_affinity);
    // Nothing is flushed: there are no sinks, and figures are as they are when asked for.
    harmless!(stats_flush_interval, stats_flush, stats_eviction, grpc_async_client_manager_config, application_log_config, inline_headers);
    refuse!(hds_config, stats_sinks, tracing, header_prefix, config_sources);
    refuse!(default_config_source, default_socket_interface, certificate_provider_instances, default_regex_engine);
    refuse!(xds_delegate_extension, xds_config_tracker_extension, listener_manager);
    extensions(bootstrap_extensions)?;
    let limits = runtime(layered_runtime).within("layered_runtime")?;
    let overload = overload::compile(overload_manager, limits).within("overload_manager")?;
    let local_cluster = self::cluster_manager(cluster_manager).within("cluster_manager")?;
    let dynamic = dynamic_resources.unwrap_or_default();
    let bootstrap::DynamicResources { lds_config, lds_resources_locator, cds_config, cds_resources_locator, ads_config } = dynamic;
    let checked = || -> Result<_> {
        refuse!(lds_resources_locator, cds_resources_locator);
        let ads = ads_config.map(api_source).transpose().within("ads_config")?;
        let listeners = lds_config.map(|c| source(c, ads.is_some())).transpose().within("lds_config")?.unzip();
        let clusters = cds_config.map(|c| source(c, ads.is_some())).transpose().within("cds_config")?.unzip();
        Ok((ads, listeners, clusters))
    };
    let (ads, (listeners, listeners_within), (clusters, clusters_within)) = checked().within("dynamic_resources")?;
    Ok(Bootstrap {
        node: node.unwrap_or_default(),
        admin: admin.map(self::admin).transpose().within("admin")?.flatten(),
        resources: static_resources.iter().flat_map(|s| &s.secrets).map(any::pack).chain(others).collect(),
        listeners,
        clusters,
        listeners_within: listeners_within.unwrap_or_default(),
        clusters_within: clusters_within.unwrap_or_default(),
        ads,
        stats: StatsMatcher::compile(stats_config).within("stats_config")?,
        local_cluster,
        overload,
        dns_resolver: dns_resolver(typed_dns_resolver_config, dns_resolution_config, use_tcp_for_dns_lookups)?.unwrap_or_default(),
        encoded,
    })
}

fn admin(value: proto::Admin) -> Result<Option<AdminAddress>> {
    let proto::Admin { access_log, access_log_path, profile_path, address, socket_options, ignore_global_conn_limit, allow_paths } = value;
    harmless!(profile_path, ignore_global_conn_limit, socket_options);
    refuse!(allow_paths);
    refuse_admin_logs(&access_log)?;
    if !access_log_path.is_empty() && access_log_path != "/dev/null" {
        refuse!(access_log_path);
    }
    if address.is_none() {
        return Ok(None);
    }
    match place(address).within("address")? {
        Place::Socket(address) => Ok(Some(AdminAddress::Socket(address))),
        Place::Pipe(path) => Ok(Some(AdminAddress::Pipe(path))),
        Place::Name(name, _) => Err(Invalid { path: "address".into(), reason: format!("`{name}` is not an IP address") }),
    }
}

/// A source, and how long its first answer is waited for.
fn source(value: core::ConfigSource, has_ads: bool) -> Result<(DynamicSource, FetchTimeout)> {
    let core::ConfigSource { authorities, initial_fetch_timeout, resource_api_version, config_source_specifier } = value;
    harmless!(resource_api_version);
    refuse!(authorities);
    let timeout = fetch_timeout(initial_fetch_timeout)?;
    match config_source_specifier {
        Some(ConfigSourceSpecifier::Ads(_)) if has_ads => Ok((DynamicSource::Ads, timeout)),
        Some(ConfigSourceSpecifier::Ads(_)) => {
            Err(Invalid { path: "ads".into(), reason: "there is no dynamic_resources.ads_config".into() })
        }
        // Whatever comes of reading a file is an answer.
        Some(ConfigSourceSpecifier::Path(path)) => Ok((DynamicSource::Path(existing(path, "path")?), FetchTimeout::Never)),
        Some(ConfigSourceSpecifier::PathConfigSource(file)) => Ok((DynamicSource::Path(watched_path(file)?), FetchTimeout::Never)),
        Some(ConfigSourceSpecifier::ApiConfigSource(source)) => {
            Ok((DynamicSource::Api(api_source(source).within("api_config_source")?), timeout))
        }
        Some(ConfigSourceSpecifier::Self_(_)) => {
            Err(Invalid { path: "self".into(), reason: "has no meaning in a bootstrap; use ads".into() })
        }
        None => Err(Invalid { path: String::new(), reason: "names no source; use ads or path".into() }),
    }
}

fn extensions(values: Vec<core::TypedExtensionConfig>) -> Result<()> {
    for (index, value) in values.into_iter().enumerate() {
        // Internal listeners and the Wasm service matter only once something refers to them, which is refused there.
        let known = ["envoy.bootstrap.internal_listener", "envoy.bootstrap.wasm"];
        if !known.contains(&value.name.as_str()) {
            return Err(Invalid { path: String::new(), reason: format!("{} is not supported; remove it", value.name) })
                .within_item("bootstrap_extensions", index);
        }
    }
    Ok(())
}

/// Runtime keys steer Envoy's internals; the few that change what a proxy answers would be fractions
/// of routes and filters, whose keys have no values here.
fn runtime(value: Option<proto::LayeredRuntime>) -> Result<overload::Limits> {
    let mut limits = overload::Limits::default();
    let proto::LayeredRuntime { layers } = value.unwrap_or_default();
    for (index, proto::RuntimeLayer { name: _, layer_specifier }) in layers.into_iter().enumerate() {
        match layer_specifier {
            None | Some(runtime_layer::LayerSpecifier::AdminLayer(_)) => {}
            Some(runtime_layer::LayerSpecifier::StaticLayer(values)) => {
                static_layer(&values).within_item("layers", index)?;
                overload::runtime_limits(&values, &mut limits);
            }
            Some(runtime_layer::LayerSpecifier::DiskLayer(_)) => {
                return Err(Invalid { path: "disk_layer".into(), reason: "is not supported; remove it".into() })
                    .within_item("layers", index);
            }
            Some(runtime_layer::LayerSpecifier::RtdsLayer(_)) => {
                return Err(Invalid { path: "rtds_layer".into(), reason: "is not supported; remove it".into() })
                    .within_item("layers", index);
            }
        }
    }
    Ok(limits)
}

fn static_layer(values: &Struct) -> Result<()> {
    for key in values.fields.keys() {
        let internal = ["envoy", "overload", "re2", "deprecated_features", "upstream", "tracing"];
        if !internal.contains(&key.split('.').next().unwrap_or(key)) {
            tracing::warn!("bootstrap: runtime key {key} has no effect");
        }
    }
    Ok(())
}

/// The name of the local cluster.
fn cluster_manager(value: Option<proto::ClusterManager>) -> Result<Option<String>> {
    let proto::ClusterManager {
        local_cluster_name,
        outlier_detection,
        upstream_bind_config,
        load_stats_config,
        enable_deferred_cluster_creation,
    } = value.unwrap_or_default();
    harmless!(enable_deferred_cluster_creation);
    ejection_log(outlier_detection.unwrap_or_default()).within("outlier_detection")?;
    refuse!(upstream_bind_config, load_stats_config);
    Ok((!local_cluster_name.is_empty()).then_some(local_cluster_name))
}

/// Ejections are logged with the other messages.
fn ejection_log(value: proto::cluster_manager::OutlierDetection) -> Result<()> {
    let proto::cluster_manager::OutlierDetection { event_log_path, event_service } = value;
    refuse!(event_log_path, event_service);
    Ok(())
}

#[cfg(test)]
mod tests;
