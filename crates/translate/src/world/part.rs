//! A part of the world that is made from the resources of one kind, and is kept while they stay the same.
use std::sync::Arc;

use lateen_model::{Diagnostic, Resource};

/// An index with what it was made from.
#[derive(Clone, Debug)]
pub(crate) struct Part<S, T> {
    sources: Vec<Arc<Resource<S>>>,
    value: Arc<T>,
    diagnostics: Vec<Diagnostic>,
}

impl<S, T: Default> Default for Part<S, T> {
    fn default() -> Self {
        Self { sources: Vec::new(), value: Arc::default(), diagnostics: Vec::new() }
    }
}

impl<S: PartialEq, T> Part<S, T> {
    /// The part before where `sources` are the same resources, written at the same places; else a new one.
    pub(crate) fn make<'a>(
        before: Option<&Self>,
        sources: impl Iterator<Item = &'a Arc<Resource<S>>>,
        make: impl FnOnce(&mut Vec<Diagnostic>) -> T,
    ) -> Self
    where
        S: 'a,
    {
        let sources: Vec<Arc<Resource<S>>> = sources.cloned().collect();
        if let Some(before) = before.filter(|before| same(&before.sources, &sources)) {
            return Self { sources, value: Arc::clone(&before.value), diagnostics: before.diagnostics.clone() };
        }
        let mut diagnostics = Vec::new();
        let value = Arc::new(make(&mut diagnostics));
        Self { sources, value, diagnostics }
    }

    pub(crate) fn value(&self) -> &Arc<T> {
        &self.value
    }

    pub(crate) fn diagnostics(&self) -> &[Diagnostic] {
        &self.diagnostics
    }
}

fn same<S: PartialEq>(a: &[Arc<Resource<S>>], b: &[Arc<Resource<S>>]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| Arc::ptr_eq(a, b) || a == b)
}
