//! Small numbers for large label values, given out once and kept.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// An interned peer; the default is an unknown one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PeerId(pub(super) u32);

/// An interned principal (`spiffe://…`); the default is none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PrincipalId(pub(super) u32);

impl PrincipalId {
    /// Whether a certificate named anybody.
    pub fn is_some(self) -> bool {
        self.0 != 0
    }
}

/// An interned destination service; the default is an unknown one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DestinationId(pub(super) u32);

/// Who gives a name. What callers say can be anything, and must not keep out what is known otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    /// Clusters, endpoints and verified certificates.
    Known,
    /// Headers of requests.
    Claimed,
}

/// The part of a limit that callers may use up: what is left is for what is known.
pub(super) const fn claimable(limit: usize) -> usize {
    limit - limit / 4
}

/// Values by number, bounded: what does not fit is number 0, the default value.
pub(super) struct Interner<T> {
    inner: Mutex<Inner<T>>,
    limit: usize,
}

struct Inner<T> {
    ids: HashMap<Arc<T>, u32>,
    values: Vec<(Arc<T>, Origin)>,
    /// How many values are claimed.
    claimed: usize,
}

impl<T: Eq + Hash + Default> Interner<T> {
    pub(super) fn new(limit: usize) -> Self {
        let unknown = Arc::new(T::default());
        let inner = Inner { ids: HashMap::from([(unknown.clone(), 0)]), values: vec![(unknown, Origin::Known)], claimed: 0 };
        Self { inner: Mutex::new(inner), limit }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn intern(&self, value: T, origin: Origin) -> u32 {
        let mut inner = self.inner();
        if let Some(id) = inner.ids.get(&value).copied() {
            if origin == Origin::Known {
                inner.confirm(id);
            }
            return id;
        }
        let id = inner.values.len();
        if id >= self.limit || origin == Origin::Claimed && inner.claimed >= claimable(self.limit) {
            return 0;
        }
        inner.claimed += usize::from(origin == Origin::Claimed);
        let value = Arc::new(value);
        inner.values.push((value.clone(), origin));
        inner.ids.insert(value, id as u32);
        id as u32
    }

    pub(super) fn get(&self, id: u32) -> Arc<T> {
        let inner = self.inner();
        inner.values.get(id as usize).or(inner.values.first()).map(|(value, _)| value.clone()).unwrap_or_default()
    }

    /// Whether callers alone have named it.
    pub(super) fn is_claimed(&self, id: u32) -> bool {
        self.inner().values.get(id as usize).is_some_and(|(_, origin)| *origin == Origin::Claimed)
    }
}

impl<T> Inner<T> {
    /// A caller has named it first, and now it is known.
    fn confirm(&mut self, id: u32) {
        if let Some((_, origin @ Origin::Claimed)) = self.values.get_mut(id as usize) {
            *origin = Origin::Known;
            self.claimed -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Origin::{Claimed, Known};
    use super::*;

    #[test]
    fn equal_values_share_a_number_and_the_number_of_numbers_is_bounded() {
        let names: Interner<String> = Interner::new(3);
        assert_eq!(names.intern(String::new(), Known), 0);
        let a = names.intern("a".into(), Known);
        assert_eq!(names.intern("a".into(), Claimed), a);
        assert_ne!(names.intern("b".into(), Known), a);
        assert_eq!(names.intern("c".into(), Known), 0, "full");
        assert_eq!(*names.get(a), "a");
        assert_eq!(*names.get(99), "");
    }

    #[test]
    fn what_callers_say_leaves_room_for_what_is_known() {
        let names: Interner<String> = Interner::new(9);
        let claims: Vec<u32> = (0..20).map(|n| names.intern(format!("claim{n}"), Claimed)).collect();
        assert_eq!(claims.iter().filter(|id| **id != 0).count(), 7);
        let known = names.intern("known".into(), Known);
        assert!(known != 0 && !names.is_claimed(known) && names.is_claimed(claims[0]));
        assert_eq!(names.intern("full".into(), Known), 0);
        assert_eq!(names.intern("claim0".into(), Known), claims[0], "one name has one number, whoever came first");
        assert!(!names.is_claimed(claims[0]));
    }
}
