//! Small numbers for large label values, given out once and kept.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
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
    /// A bit for each value that callers alone have named: changed with the lock held, and read without.
    claims: Box<[AtomicU64]>,
}

struct Inner<T> {
    ids: HashMap<Arc<T>, u32>,
    values: Vec<Arc<T>>,
    /// How many values are claimed.
    claimed: usize,
}

impl<T: Eq + Hash + Default> Interner<T> {
    pub(super) fn new(limit: usize) -> Self {
        let unknown = Arc::new(T::default());
        let inner = Inner { ids: HashMap::from([(unknown.clone(), 0)]), values: vec![unknown], claimed: 0 };
        let claims = (0..limit.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { inner: Mutex::new(inner), limit, claims }
    }

    fn inner(&self) -> MutexGuard<'_, Inner<T>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn intern(&self, value: T, origin: Origin) -> u32 {
        let mut inner = self.inner();
        if let Some(id) = inner.ids.get(&value).copied() {
            // A caller has named it first, and now it is known.
            if origin == Origin::Known && self.is_claimed(id) {
                self.mark(id, false);
                inner.claimed -= 1;
            }
            return id;
        }
        let id = inner.values.len();
        if id >= self.limit || origin == Origin::Claimed && inner.claimed >= claimable(self.limit) {
            return 0;
        }
        if origin == Origin::Claimed {
            inner.claimed += 1;
            self.mark(id as u32, true);
        }
        let value = Arc::new(value);
        inner.values.push(value.clone());
        inner.ids.insert(value, id as u32);
        id as u32
    }

    pub(super) fn get(&self, id: u32) -> Arc<T> {
        let inner = self.inner();
        inner.values.get(id as usize).or(inner.values.first()).cloned().unwrap_or_default()
    }

    /// Whether callers alone have named it.
    pub(super) fn is_claimed(&self, id: u32) -> bool {
        self.claims.get(id as usize / 64).is_some_and(|bits| bits.load(Relaxed) & bit(id) != 0)
    }

    fn mark(&self, id: u32, claimed: bool) {
        if let Some(bits) = self.claims.get(id as usize / 64) {
            if claimed {
                bits.fetch_or(bit(id), Relaxed)
            } else {
                bits.fetch_and(!bit(id), Relaxed)
            };
        }
    }
}

fn bit(id: u32) -> u64 {
    1 << (id % 64)
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
