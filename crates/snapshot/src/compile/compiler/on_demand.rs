//! What is asked for because a request wants it.
use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Compiler, Wanted};
use crate::{RouteTableId, Snapshot};

/// So many of a kind may be asked for by requests: their names come from callers.
const MOST: usize = 10_000;

/// Something that a request waits for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Wish {
    Cluster(Arc<str>),
    /// The virtual host of this host, as `name` by the protocol: `<routes>/<host>`.
    VirtualHost {
        routes: RouteTableId,
        host: Arc<str>,
        name: Arc<str>,
    },
    /// The routes of a scope.
    Routes(RouteTableId, Arc<str>),
}

impl Wish {
    /// Whether the snapshot has it.
    pub fn is_met(&self, snapshot: &Snapshot) -> bool {
        match self {
            Self::Cluster(name) => snapshot.cluster_named(name).is_some(),
            Self::VirtualHost { routes, host, .. } => snapshot.route_table(*routes).is_some_and(|t| t.virtual_host(host).is_some()),
            Self::Routes(id, _) => snapshot.route_table(*id).is_some(),
        }
    }

    /// Whether it is still asked for: no longer when the server said that there is none.
    pub fn is_wanted(&self, wanted: &Wanted) -> bool {
        match self {
            Self::Cluster(name) => wanted.clusters.contains(name),
            Self::VirtualHost { name, .. } => wanted.virtual_hosts.contains(name),
            Self::Routes(_, name) => wanted.routes.contains(name),
        }
    }

    fn name(&self) -> &Arc<str> {
        match self {
            Self::Cluster(name) | Self::VirtualHost { name, .. } | Self::Routes(_, name) => name,
        }
    }
}

/// The names that requests asked for, and that the server has not denied.
#[derive(Debug, Default)]
pub(super) struct OnDemand {
    pub(super) clusters: BTreeSet<Arc<str>>,
    pub(super) virtual_hosts: BTreeSet<Arc<str>>,
    pub(super) routes: BTreeSet<Arc<str>>,
}

impl OnDemand {
    fn of(&mut self, wish: &Wish) -> &mut BTreeSet<Arc<str>> {
        match wish {
            Wish::Cluster(_) => &mut self.clusters,
            Wish::VirtualHost { .. } => &mut self.virtual_hosts,
            Wish::Routes(..) => &mut self.routes,
        }
    }
}

impl Compiler {
    /// Asks for something because a request wants it. `false` when that are too many.
    pub fn want(&mut self, wish: &Wish) -> bool {
        let name = wish.name();
        let names = self.on_demand.of(wish);
        if names.contains(name) {
            return true;
        }
        if names.len() >= MOST {
            return false;
        }
        names.insert(Arc::clone(name));
        match wish {
            Wish::Cluster(_) if !self.wanted.clusters.contains(name) => self.add_wanted(name, |wanted| &mut wanted.clusters),
            Wish::Routes(..) if !self.wanted.routes.contains(name) => self.add_wanted(name, |wanted| &mut wanted.routes),
            Wish::VirtualHost { .. } if self.discovers(name) && !self.wanted.virtual_hosts.contains(name) => {
                self.add_wanted(name, |wanted| &mut wanted.virtual_hosts);
            }
            _ => {}
        }
        true
    }

    /// Nobody waits for these any more: what never came is not asked for any longer.
    pub fn unwant(&mut self, wishes: &[Wish]) {
        for wish in wishes {
            let came = match wish {
                Wish::Cluster(name) => self.clusters.contains_key(name),
                Wish::VirtualHost { .. } => wish.is_met(&self.snapshot),
                Wish::Routes(_, name) => self.routes.contains_key(name),
            };
            if !came {
                self.on_demand.of(wish).remove(wish.name());
            }
        }
        self.refresh_wanted();
    }
}
