//! What compiling a resource needs from, and leaves behind in, the compiler.
use std::sync::Arc;

use crate::dns::cache::DnsCaches;
use crate::{ClusterId, RouteTableId};

use super::names::Names;
use super::secret::Secrets;
use super::tls::Waiting;

/// Passed down while one resource is compiled.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) secrets: &'a mut Secrets,
    pub(crate) dns_caches: &'a mut DnsCaches,
    /// What the resource refers to.
    pub(crate) uses: Uses,
    /// Whether a listener for outbound traffic is compiled: its end of a call reports as the source.
    pub(crate) outbound: bool,
}

/// The other resources that one resource refers to: what it waits for while it warms.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    pub(crate) clusters: Vec<ClusterId>,
    pub(crate) route_tables: Vec<RouteTableId>,
    pub(crate) tls: Vec<Waiting>,
    pub(crate) extensions: Vec<ExtensionUse>,
}

/// A discovered filter that a listener has.
#[derive(Debug)]
pub(crate) struct ExtensionUse {
    pub(crate) name: Arc<str>,
    /// Names of the message types that it may have.
    pub(crate) types: Vec<Box<str>>,
    /// The listener waits for it.
    pub(crate) waits: bool,
}

impl Context<'_> {
    pub(crate) fn cluster(&mut self, name: &str) -> ClusterId {
        let id = self.names.cluster(name);
        if !self.uses.clusters.contains(&id) {
            self.uses.clusters.push(id);
        }
        id
    }

    pub(crate) fn route_table(&mut self, name: &str) -> RouteTableId {
        let id = self.names.route_table(name);
        if !self.uses.route_tables.contains(&id) {
            self.uses.route_tables.push(id);
        }
        id
    }
}
