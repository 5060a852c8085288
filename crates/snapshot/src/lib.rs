//! Envoy resources in the form that a request reads: everything that can be settled when the
//! configuration changes is settled here. No sockets, no tasks.
//!
//! On the path of a change this stands between the xDS client and the workers: [`compile`] turns
//! listeners, routes, clusters, endpoints and secrets into a [`Snapshot`], refusing by field path
//! what it cannot honour; the main thread publishes it and each worker reads it without a lock.
//! On the path of a request it answers which chain, which route, which cluster.
pub mod admission;
pub mod attribute;
pub mod authorize;
pub mod bandwidth;
pub mod bootstrap;
pub mod chain;
pub mod cluster;
pub mod compile;
pub mod compression;
pub mod connection_services;
pub mod dns;
pub mod exact_balance;
pub mod explain;
pub mod ext_authz;
pub mod ext_proc;
pub mod extension;
pub mod global_ratelimit;
pub mod grpc_stats;
pub mod header;
pub mod header_metadata;
pub mod header_mutation;
pub mod health_check;
pub mod http;
pub mod jwt;
pub mod listener;
pub mod local_reply;
pub mod log_filter;
pub mod lookup;
pub mod matcher;
pub mod matcher_tree;
pub mod matching;
pub mod metadata;
pub mod mutation_rules;
pub mod normalize;
pub mod original_ip;
pub mod path_template;
pub mod proxy_protocol;
pub mod ratelimit;
pub mod rewrite;
pub mod route;
pub mod scopes;
pub mod service;
pub mod socket;
pub mod stateful_session;
pub mod subset;
#[cfg(test)]
mod test_support;
pub mod tls;
pub mod trace;

use std::collections::HashMap;
use std::sync::Arc;

pub use cluster::Cluster;
pub use listener::Listener;
pub use route::RouteTable;

/// Index of a cluster in every snapshot; a name keeps its id for the life of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClusterId(pub u32);

/// Index of a route configuration in every snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RouteTableId(pub u32);

/// Index of a discovered filter's configuration in every snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ExtensionId(pub u32);

/// Clusters by name.
pub type ClusterIds = HashMap<Arc<str>, ClusterId, foldhash::fast::RandomState>;

/// All the configuration of a proxy at one moment. Immutable; parts that did not change are shared
/// with the snapshot before, so comparing pointers tells what did.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub version: u64,
    /// Only warmed listeners: everything they refer to has arrived once.
    pub listeners: Vec<Arc<Listener>>,
    /// By [`ClusterId`]; `None` for a name that is referred to but not (or no longer) known.
    pub clusters: Vec<Option<Arc<Cluster>>>,
    /// By [`RouteTableId`].
    pub routes: Vec<Option<Arc<RouteTable>>>,
    /// By [`ExtensionId`].
    pub extensions: Vec<Option<Arc<extension::Extension>>>,
    /// Those that are discovered.
    pub scopes: Arc<scopes::Scopes>,
    pub cluster_ids: Arc<ClusterIds>,
}

impl Snapshot {
    pub fn cluster(&self, id: ClusterId) -> Option<&Arc<Cluster>> {
        self.clusters.get(id.0 as usize)?.as_ref()
    }

    pub fn cluster_named(&self, name: &str) -> Option<(ClusterId, &Arc<Cluster>)> {
        let id = *self.cluster_ids.get(name)?;
        Some((id, self.cluster(id)?))
    }

    pub fn extension(&self, id: ExtensionId) -> Option<&Arc<extension::Extension>> {
        self.extensions.get(id.0 as usize)?.as_ref()
    }

    pub fn route_table(&self, id: RouteTableId) -> Option<&Arc<RouteTable>> {
        self.routes.get(id.0 as usize)?.as_ref()
    }
}
