//! What must be subscribed to, and since when.
use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::Compiler;
use crate::compile::secret::SecretKey;

/// The names of resources that what is in use, or warming, refers to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    pub routes: Since<Arc<str>>,
    pub endpoints: Since<Arc<str>>,
    pub secrets: Since<SecretKey>,
    pub extensions: Since<Arc<str>>,
    /// Clusters that requests asked for.
    pub clusters: Since<Arc<str>>,
    /// `<routes>` where virtual hosts are discovered, and `<routes>/<host>` for those that requests asked for.
    pub virtual_hosts: Since<Arc<str>>,
    /// All scopes.
    pub scopes: bool,
    /// When they came to be wanted.
    pub scopes_since: Turn,
}

/// Counts the times at which what is wanted changed.
pub type Turn = u64;

/// Names, each with the turn at which it came to be wanted.
///
/// Whoever follows what is wanted may see only the last of several changes. Of a name that was given up and is wanted again all
/// that was known is forgotten: its turn is another, which tells that it must be asked for anew.
/// Where nothing changed they are the same from one time to the next, and need not be looked through.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Since<K>(Arc<BTreeMap<K, Turn>>);

impl<K> Default for Since<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Ord + Clone> Since<K> {
    pub fn contains<Q: Ord + ?Sized>(&self, name: &Q) -> bool
    where
        K: Borrow<Q>,
    {
        self.0.contains_key(name)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }

    /// Whether nothing changed between the two, seen without a look at the names.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// The names that are not in `other`, or there since another turn.
    pub fn beside<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = &'a K> {
        let differs = (!self.is_same(other)).then_some(&*self.0);
        differs.into_iter().flatten().filter(|(name, turn)| other.0.get(*name) != Some(*turn)).map(|(name, _)| name)
    }

    pub(super) fn insert(&mut self, name: K) {
        Arc::make_mut(&mut self.0).insert(name, 0);
    }

    /// Names that were wanted already are so since then, the others since now.
    fn date(&mut self, before: &Self, now: Turn) {
        Arc::make_mut(&mut self.0).iter_mut().for_each(|(name, turn)| *turn = before.0.get(name).copied().unwrap_or(now));
        if self == before {
            self.clone_from(before);
        }
    }
}

impl<K: Ord + Clone> Extend<K> for Since<K> {
    fn extend<I: IntoIterator<Item = K>>(&mut self, names: I) {
        names.into_iter().for_each(|name| self.insert(name));
    }
}

impl<K: Ord> FromIterator<K> for Since<K> {
    fn from_iter<I: IntoIterator<Item = K>>(names: I) -> Self {
        Self(Arc::new(names.into_iter().map(|name| (name, 0)).collect()))
    }
}

impl Wanted {
    fn date(&mut self, before: &Self, now: Turn) {
        self.routes.date(&before.routes, now);
        self.endpoints.date(&before.endpoints, now);
        self.secrets.date(&before.secrets, now);
        self.extensions.date(&before.extensions, now);
        self.clusters.date(&before.clusters, now);
        self.virtual_hosts.date(&before.virtual_hosts, now);
        self.scopes_since = match (self.scopes, before.scopes) {
            (true, false) => now,
            _ => before.scopes_since,
        };
    }
}

impl Compiler {
    /// What must be subscribed to. The same value as before when nothing changed.
    pub fn wanted(&self) -> Arc<Wanted> {
        self.wanted.clone()
    }

    pub(super) fn refresh_wanted(&mut self) {
        let mut wanted = self.all_wanted();
        wanted.date(&self.wanted, self.turn + 1);
        if *self.wanted != wanted {
            self.wanted = Arc::new(wanted);
            self.turn += 1;
        }
    }

    /// One name more is wanted; all that was stays so, and is not looked through.
    pub(super) fn add_wanted(&mut self, name: &Arc<str>, which: fn(&mut Wanted) -> &mut Since<Arc<str>>) {
        self.turn += 1;
        // The names of a kind are shared until they change.
        let names = &mut which(Arc::make_mut(&mut self.wanted)).0;
        Arc::make_mut(names).insert(Arc::clone(name), self.turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::Wish;

    #[test]
    fn a_wish_changes_what_is_wanted_of_its_kind_alone() {
        let mut compiler = Compiler::new();
        let wish = |name: &str| Wish::Cluster(name.into());
        assert!(compiler.want(&wish("a")));
        let before = compiler.wanted();
        assert!(compiler.want(&wish("a")));
        assert!(Arc::ptr_eq(&before, &compiler.wanted()), "it is wanted already");
        assert!(compiler.want(&wish("b")) && compiler.want(&Wish::Routes(crate::RouteTableId(0), "r".into())));
        let after = compiler.wanted();
        assert!(after.clusters.beside(&before.clusters).map(|name| &**name).eq(["b"]));
        assert!(after.routes.iter().map(|name| &**name).eq(["r"]));
        assert!(after.endpoints.is_same(&before.endpoints) && after.secrets.is_same(&before.secrets));
        assert!(!after.clusters.is_same(&before.clusters));
        // Nothing else comes of it than of looking through everything.
        compiler.refresh_wanted();
        assert!(Arc::ptr_eq(&after, &compiler.wanted()));
        compiler.unwant(&[wish("a"), wish("b")]);
        assert!(compiler.wanted().clusters.is_empty() && compiler.wanted().routes.is_same(&after.routes));
    }
}
