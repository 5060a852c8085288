//! What compiling a resource needs from, and leaves behind in, the compiler.
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lateen_proto::envoy::config::route::v3 as proto;
use prost::Message;

use crate::route::RetryPolicy;
use crate::{ClusterId, RouteTableId};

use super::invalid::Result;
use super::names::Names;
use super::retry;
use super::secret::Secrets;
use super::tls::Waiting;

/// Passed down while one resource is compiled.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) secrets: &'a mut Secrets,
    /// What the resource refers to.
    pub(crate) uses: Uses,
    /// Whether a listener for outbound traffic is compiled: its end of a call reports as the source.
    pub(crate) outbound: bool,
    /// Retry policies as they were sent: thousands of routes share a few, which then stay in the processor's caches.
    pub(crate) retries: HashMap<Vec<u8>, Arc<RetryPolicy>>,
}

/// The other resources that one resource refers to: what it waits for while it warms.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    pub(crate) clusters: HashSet<ClusterId>,
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
        self.uses.clusters.insert(id);
        id
    }

    pub(crate) fn retry(&mut self, value: proto::RetryPolicy) -> Result<Arc<RetryPolicy>> {
        let sent = value.encode_to_vec();
        if let Some(known) = self.retries.get(&sent) {
            return Ok(Arc::clone(known));
        }
        let policy = Arc::new(retry::policy(value)?);
        self.retries.insert(sent, Arc::clone(&policy));
        Ok(policy)
    }

    pub(crate) fn route_table(&mut self, name: &str) -> RouteTableId {
        let id = self.names.route_table(name);
        if !self.uses.route_tables.contains(&id) {
            self.uses.route_tables.push(id);
        }
        id
    }
}
