//! One state of the world as it is served: immutable, shared by all streams.
use std::time::SystemTime;

use lateen_model::{Diagnostic, ResourceSet};
use lateen_translate::world::World;

use crate::resources::Cache;

/// Configuration, what was made of it, and the resources generated from it so far.
pub struct Snapshot {
    /// Counts up from 1.
    pub number: u64,
    pub built_at: SystemTime,
    pub resources: ResourceSet,
    pub world: World,
    /// Everything there is to say about the configuration, errors first.
    pub diagnostics: Vec<Diagnostic>,
    pub(crate) cache: Cache,
}

impl Snapshot {
    pub(crate) fn new(number: u64, resources: ResourceSet, world: World, mut diagnostics: Vec<Diagnostic>) -> Self {
        diagnostics.sort_by(|a, b| (b.severity, &a.file, a.line, a.column).cmp(&(a.severity, &b.file, b.line, b.column)));
        diagnostics.dedup();
        Self { number, built_at: SystemTime::now(), resources, world, diagnostics, cache: Cache::default() }
    }
}
