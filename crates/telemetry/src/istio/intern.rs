//! Small numbers for large label values, given out once and kept.
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

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

/// Values by number, bounded: what does not fit is number 0, the default value.
pub(super) struct Interner<T> {
    inner: Mutex<Inner<T>>,
    limit: usize,
}

struct Inner<T> {
    ids: HashMap<Arc<T>, u32>,
    values: Vec<Arc<T>>,
}

impl<T: Eq + Hash + Default> Interner<T> {
    pub(super) fn new(limit: usize) -> Self {
        let unknown = Arc::new(T::default());
        let inner = Inner { ids: HashMap::from([(unknown.clone(), 0)]), values: vec![unknown] };
        Self { inner: Mutex::new(inner), limit }
    }

    pub(super) fn intern(&self, value: T) -> u32 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(id) = inner.ids.get(&value) {
            return *id;
        }
        let id = inner.values.len();
        if id >= self.limit {
            return 0;
        }
        let value = Arc::new(value);
        inner.values.push(value.clone());
        inner.ids.insert(value, id as u32);
        id as u32
    }

    pub(super) fn get(&self, id: u32) -> Arc<T> {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.values.get(id as usize).or(inner.values.first()).cloned().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_values_share_a_number_and_the_number_of_numbers_is_bounded() {
        let names: Interner<String> = Interner::new(3);
        assert_eq!(names.intern(String::new()), 0);
        let a = names.intern("a".into());
        assert_eq!(names.intern("a".into()), a);
        assert_ne!(names.intern("b".into()), a);
        assert_eq!(names.intern("c".into()), 0, "full");
        assert_eq!(*names.get(a), "a");
        assert_eq!(*names.get(99), "");
    }
}
