//! What becomes of the configurations of discovered filters, to be counted (Envoy `extension_config_discovery`).
use std::sync::Arc;

use super::Compiler;
use crate::compile::context::Place;

/// Something that happened to the configuration of a discovered filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reload {
    /// The part of the statistic's name that says what kind of filter it is.
    pub place: &'static str,
    pub name: Arc<str>,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// A listener has a place for it.
    Awaited,
    /// Another is in use, or none any more.
    Reloaded,
    /// What came was refused.
    Failed,
    /// What is there does not fit the place that a listener has for it.
    Conflicting,
}

/// Envoy's name for the filters of a place.
fn shown(place: Place) -> &'static str {
    match place {
        Place::Http => "http_filter",
        Place::Network | Place::Terminal => "network_filter",
        Place::Inspection => "tcp_listener_filter",
    }
}

impl Compiler {
    /// What happened since this was asked last.
    pub fn take_reloads(&mut self) -> Vec<Reload> {
        std::mem::take(&mut self.reloads)
    }

    /// It counts once for each kind of filter that listeners have of this name.
    pub(super) fn note_reload(&mut self, name: &str, outcome: Outcome) {
        let versions = self.listeners.values().flat_map(|e| e.versions.all());
        let uses = versions.flat_map(|v| &v.value.uses.extensions).filter(|u| *u.name == *name);
        let mut found: Vec<Reload> = Vec::new();
        for reload in uses.map(|u| Reload { place: shown(u.place), name: Arc::clone(&u.name), outcome }) {
            if !found.contains(&reload) {
                found.push(reload);
            }
        }
        self.reloads.append(&mut found);
    }

    /// A listener came with places for filters.
    pub(super) fn note_places(&mut self, listener: &str) {
        let Self { listeners, extensions, reloads, .. } = self;
        let newest = listeners.get(listener).and_then(|e| e.versions.newest());
        for place in newest.into_iter().flat_map(|v| &v.value.uses.extensions) {
            let active = extensions.get(&place.name).and_then(|e| e.versions.active.as_ref());
            let conflicts = active.is_some_and(|v| !place.types.contains(&v.value.type_name));
            let outcome = if conflicts { Outcome::Conflicting } else { Outcome::Awaited };
            reloads.push(Reload { place: shown(place.place), name: Arc::clone(&place.name), outcome });
        }
    }
}
