//! Scopes of routes that are discovered (SRDS).
use std::sync::Arc;
use std::time::Instant;

use super::entry::{Entry, same_name};
use super::{Compiler, Origin, Scope, Update};
use crate::compile::context::Context;
use crate::compile::invalid::{Invalid, Result};
use crate::compile::scoped_routes;
use crate::scopes::Scopes;

fn key_of(entry: &Entry<Scope>) -> Option<Box<str>> {
    entry.versions.newest().map(|version| version.value.key.clone())
}

impl Compiler {
    pub(super) fn take_scope(&mut self, update: Update, origin: Origin, now: Instant) -> Result<()> {
        let Self { scopes, scope_keys, names, secrets, dns_caches, .. } = self;
        let name: Arc<str> = update.name.as_str().into();
        let entry = scopes.entry(Arc::clone(&name)).or_insert_with(|| Entry::new(origin));
        let before = key_of(entry);
        entry.take_sent(update, origin, now, |body, _| {
            let sent = scoped_routes::Sent::open(body)?;
            same_name(&sent.rest.name, &name)?;
            let scope = sent.scope(&mut Context::new(names, secrets, dns_caches, false))?;
            match scope_keys.get(&scope.key) {
                Some(owner) if *owner != name => Err(Invalid::field("key", "is that of another scope")),
                _ => Ok(scope),
            }
        })?;
        if let Some(before) = before {
            scope_keys.remove(&before);
        }
        scope_keys.extend(key_of(entry).map(|key| (key, name)));
        Ok(())
    }

    pub(super) fn remove_scope(&mut self, name: &str) {
        let Some(entry) = self.scopes.remove(name) else { return };
        if let Some(version) = entry.versions.newest() {
            self.scope_keys.remove(&version.value.key);
        }
        self.dirty = true;
    }

    /// Without a listener that has scopes nobody is subscribed to them: what would be kept of them would be stale when one comes.
    /// Where discovery is not incremental the subscription cannot be given up, and they stay.
    pub(super) fn forget_scopes(&mut self) {
        if self.by_delta && self.has_scopes && !self.wanted.scopes {
            self.scopes.clear();
            self.scope_keys.clear();
            self.has_scopes = false;
            self.dirty = true;
        }
    }

    /// As requests find them.
    pub(super) fn active_scopes(&self) -> Scopes {
        let active = self.scopes.values().filter_map(|e| e.versions.active.as_ref());
        active.map(|v| (v.value.key.clone(), v.value.target.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::compiler::{ListenerProto, ScopeProto};
    use crate::test_support::{ANY_80, LISTENER, manager, update};

    const SCOPE: &str = "type.googleapis.com/envoy.config.route.v3.ScopedRouteConfiguration";

    fn scope(name: &str, key: &str) -> Update {
        let routes = format!("{{name: r-{name}, virtual_hosts: [{{name: v, domains: [{name}.test]}}]}}");
        update::<ScopeProto>(&format!("{{name: {name}, key: {{fragments: [{{string_key: {key}}}]}}, route_configuration: {routes}}}"))
    }

    fn listener() -> Update {
        let scoped = "scoped_routes: {name: s, scope_key_builder: {fragments: [{header_value_extractor: {name: x, index: 0}}]}, \
                      scoped_rds: {scoped_rds_config_source: {ads: {}}}}";
        update::<ListenerProto>(&format!("{{name: l, address: {ANY_80}, filter_chains: [{{filters: [{}]}}]}}", manager(scoped)))
    }

    fn with_scopes(incremental: bool) -> Compiler {
        let (mut compiler, now) = (Compiler::new(), Instant::now());
        compiler.set_incremental(incremental);
        assert_eq!(compiler.apply(LISTENER, vec![listener()], &[], now), []);
        assert_eq!(compiler.apply(SCOPE, vec![scope("a", "k"), scope("b", "l")], &[], now), []);
        compiler
    }

    #[test]
    fn a_key_is_free_again_when_its_scope_has_another_or_goes() {
        let (mut compiler, now) = (with_scopes(true), Instant::now());
        let mut refused = |updates: Vec<Update>, removed: &[String]| {
            let rejected = compiler.apply(SCOPE, updates, removed, now);
            rejected.into_iter().map(|r| format!("{}: {}", r.name, r.reason)).collect::<Vec<_>>()
        };
        assert_eq!(refused(vec![scope("c", "k")], &[]), ["c: key: is that of another scope"]);
        assert!(refused(vec![scope("a", "m"), scope("c", "k")], &[]).is_empty());
        assert!(refused(vec![], &["c".to_owned()]).is_empty() && refused(vec![scope("d", "k")], &[]).is_empty());
        let snapshot = compiler.snapshot();
        let mut keys: Vec<&str> = snapshot.scopes.keys().map(|key| &**key).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["k", "l", "m"]);
        assert!(snapshot.scopes["m"].table(&snapshot).is_some_and(|table| table.virtual_host("a.test").is_some()));
    }

    #[test]
    fn scopes_go_with_the_last_listener_that_has_them() {
        for (incremental, left) in [(true, 0), (false, 2)] {
            let (mut compiler, now) = (with_scopes(incremental), Instant::now());
            assert_eq!((compiler.snapshot().listeners.len(), compiler.snapshot().scopes.len()), (1, 2));
            assert_eq!(compiler.apply(LISTENER, Vec::new(), &["l".to_owned()], now), []);
            assert!(!compiler.wanted().scopes);
            assert_eq!((compiler.scopes.len(), compiler.snapshot().scopes.len()), (left, left));
            // One that comes again waits for them anew, where they are gone.
            assert_eq!(compiler.apply(LISTENER, vec![listener()], &[], now), []);
            assert_eq!(compiler.snapshot().listeners.len(), usize::from(left > 0));
        }
    }
}
