//! What compiling a resource needs from, and leaves behind in, the compiler.
use std::collections::HashSet;
use std::sync::Arc;

use lateen_proto::envoy::config::route::v3 as proto;

use crate::dns::cache::DnsCaches;
use crate::route::RetryPolicy;
use crate::{ClusterId, RouteTableId};

use super::invalid::Result;
use super::names::Names;
use super::retry;
use super::secret::Secrets;
use super::shared::Shared;
use super::tls::Waiting;
use super::warming::FetchTimeout;

/// Passed down while one resource is compiled.
pub(crate) struct Context<'a> {
    pub(crate) names: &'a mut Names,
    pub(crate) secrets: &'a mut Secrets,
    pub(crate) dns_caches: &'a mut DnsCaches,
    /// What the resource refers to.
    pub(crate) uses: Uses,
    /// Whether a listener is compiled whose end of a call reports as the source.
    pub(crate) source: bool,
    pub(crate) shared: Shared,
}

/// The other resources that one resource refers to: what it waits for while it warms.
#[derive(Debug, Default)]
pub(crate) struct Uses {
    pub(crate) clusters: HashSet<ClusterId>,
    pub(crate) route_tables: Vec<(RouteTableId, FetchTimeout)>,
    pub(crate) tls: Vec<Waiting>,
    pub(crate) extensions: Vec<ExtensionUse>,
    /// How long it waits for its endpoints.
    pub(crate) endpoints: FetchTimeout,
    /// It has the scopes that are discovered.
    pub(crate) scopes: Option<ScopesUse>,
}

/// How long the scopes that are discovered are waited for, and the routes of each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ScopesUse {
    pub(crate) scopes: FetchTimeout,
    pub(crate) routes: FetchTimeout,
}

impl Uses {
    /// Of several managers of one listener those count that wait longest.
    pub(crate) fn wait_for_scopes(&mut self, new: ScopesUse) {
        let known = self.scopes.unwrap_or(new);
        self.scopes = Some(ScopesUse { scopes: known.scopes.max(new.scopes), routes: known.routes.max(new.routes) });
    }
}

/// Where a discovered filter stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Http,
    /// Among the filters of a connection before the last.
    Network,
    /// The last filter of a connection.
    Terminal,
    /// Among the listener filters.
    Inspection,
}

/// A discovered filter that a listener has.
#[derive(Debug)]
pub(crate) struct ExtensionUse {
    pub(crate) name: Arc<str>,
    /// Names of the message types that it may have.
    pub(crate) types: Vec<Box<str>>,
    pub(crate) place: Place,
    /// How long the listener waits for it, if it does.
    pub(crate) waits: Option<FetchTimeout>,
}

impl<'a> Context<'a> {
    pub(crate) fn new(names: &'a mut Names, secrets: &'a mut Secrets, dns_caches: &'a mut DnsCaches, source: bool) -> Self {
        Self { names, secrets, dns_caches, uses: Uses::default(), source, shared: Shared::default() }
    }

    pub(crate) fn cluster(&mut self, name: &str) -> ClusterId {
        let id = self.names.cluster(name);
        self.uses.clusters.insert(id);
        id
    }

    pub(crate) fn retry(&mut self, value: proto::RetryPolicy) -> Result<Arc<RetryPolicy>> {
        match self.shared.retries.get(&value) {
            Ok(known) => Ok(known),
            Err(key) => Ok(self.shared.retries.keep(key, retry::policy(value)?)),
        }
    }

    pub(crate) fn route_table(&mut self, name: &str, timeout: FetchTimeout) -> RouteTableId {
        let id = self.names.route_table(name);
        self.uses_route_table(id, timeout);
        id
    }

    pub(crate) fn uses_route_table(&mut self, id: RouteTableId, timeout: FetchTimeout) {
        match self.uses.route_tables.iter_mut().find(|(known, _)| *known == id) {
            Some((_, longest)) => *longest = timeout.max(*longest),
            None => self.uses.route_tables.push((id, timeout)),
        }
    }
}
