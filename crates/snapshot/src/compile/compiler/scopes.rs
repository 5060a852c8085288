//! Scopes of routes that are discovered (SRDS).
use std::collections::HashSet;
use std::time::Instant;

use super::{Compiler, Entry, Origin, Scope, ScopeProto, Update, same_name};
use crate::compile::context::Context;
use crate::compile::invalid::{Invalid, Result};
use crate::compile::scoped_routes;
use crate::scopes::Scopes;

impl Compiler {
    pub(super) fn take_scope(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { scopes, names, secrets, dns_caches, .. } = self;
        let key = |e: &Entry<Scope>| e.versions.newest().map(|v| v.value.key.clone());
        let taken: HashSet<_> = scopes.iter().filter(|(n, _)| ***n != *update.name).filter_map(|(_, e)| key(e)).collect();
        let entry = scopes.entry(update.name.as_str().into()).or_insert_with(|| Entry::new(origin));
        entry.take(update, origin, now, |proto: ScopeProto, name| {
            same_name(&proto.name, name)?;
            let scope = scoped_routes::scope(proto, &mut Context::new(names, secrets, dns_caches, false))?;
            if taken.contains(&scope.key) { Err(Invalid::field("key", "is that of another scope")) } else { Ok(scope) }
        })
    }

    /// As requests find them.
    pub(super) fn active_scopes(&self) -> Scopes {
        let active = self.scopes.values().filter_map(|e| e.versions.active.as_ref());
        active.map(|v| (v.value.key.clone(), v.value.target.clone())).collect()
    }
}
