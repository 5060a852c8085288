//! The route of an exchange: found at first, again, or late.
use std::sync::Arc;

use lateen_snapshot::RouteTable;
use lateen_snapshot::http::RouteSource;

use super::{End, Exchange, upgrade};
use crate::router::lookup;

impl Exchange<'_> {
    /// The route; a missing one is answered by the router, after the filters had their say.
    pub(super) fn find_route(&mut self) -> Result<(), End> {
        let table = match &self.hcm.config.routes {
            RouteSource::Inline(table) => Some(Arc::clone(table)),
            RouteSource::Discovered(id) => self.live.snapshot.route_table(*id).cloned(),
            RouteSource::Scoped(scoped) => {
                let snapshot = &self.live.snapshot;
                let target = scoped.find(snapshot, &self.request.headers);
                target.and_then(|t| t.table(snapshot)).cloned()
            }
        };
        // In no scope, and before the first routes came, none matches, as in Envoy.
        let Some(table) = table else { return Ok(()) };
        if !table.internal_only_headers.is_empty() && !self.info.internal {
            table.internal_only_headers.iter().for_each(|name| drop(self.request.headers.remove(name)));
        }
        self.look_for_route(table);
        Ok(())
    }

    /// Keeps the table where nothing matches: a filter may change what is matched.
    fn look_for_route(&mut self, table: Arc<RouteTable>) {
        self.info.route = lookup::find(&table, self);
        if self.info.route.is_none() {
            self.info.unmatched = Some(table);
        }
    }

    /// The route of a request that had none, now that there may be more.
    ///
    /// # Errors
    /// Where the route does not let the request through.
    pub(crate) fn find_late_route(&mut self) -> Result<(), End> {
        self.find_route()?;
        upgrade::admit_late(self)
    }

    /// Finds the route again, after a filter changed what routes are matched by.
    ///
    /// # Errors
    /// Where the route, as the first that the request has, does not let it through.
    pub(crate) fn refresh_route(&mut self) -> Result<(), End> {
        let before = self.info.route.take();
        let is_first = before.is_none();
        let Some(table) = before.map(|matched| matched.table).or_else(|| self.info.unmatched.take()) else { return Ok(()) };
        self.look_for_route(table);
        if is_first { upgrade::admit_late(self) } else { Ok(()) }
    }
}
