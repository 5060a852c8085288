//! Filters whose configuration is discovered (Envoy `config_discovery`): what stands in their place, and what was discovered.
use crate::ExtensionId;
use crate::http::HttpFilter;
use crate::listener::{Inspection, NetworkFilter, Terminal};

/// A place for a filter that is discovered by its name.
#[derive(Debug)]
pub struct DiscoveredFilter<T> {
    pub id: ExtensionId,
    /// Names of the message types that it may have.
    pub types: Vec<Box<str>>,
    /// Until something was discovered.
    pub default: Option<T>,
}

/// A discovered configuration, as each kind of place that it was wanted for takes it.
#[derive(Debug, Default)]
pub struct Extension {
    pub type_name: Box<str>,
    pub http: Option<Sides<HttpFilter>>,
    pub network: Option<Sides<NetworkFilter>>,
    pub terminal: Option<Sides<Terminal>>,
    pub inspection: Option<Inspection>,
}

/// One for listeners of inbound traffic, which report as the destination, and one for all others.
#[derive(Debug)]
pub struct Sides<T> {
    pub inbound: T,
    pub source: T,
}

impl<T> Sides<T> {
    fn of(&self, source: bool) -> &T {
        if source { &self.source } else { &self.inbound }
    }
}

/// What a place can be filled with.
pub trait Discoverable: Clone {
    fn of(found: &Extension, source: bool) -> Option<&Self>;
}

impl Discoverable for HttpFilter {
    fn of(found: &Extension, source: bool) -> Option<&Self> {
        Some(found.http.as_ref()?.of(source))
    }
}

impl Discoverable for NetworkFilter {
    fn of(found: &Extension, source: bool) -> Option<&Self> {
        Some(found.network.as_ref()?.of(source))
    }
}

impl Discoverable for Terminal {
    fn of(found: &Extension, source: bool) -> Option<&Self> {
        Some(found.terminal.as_ref()?.of(source))
    }
}

impl Discoverable for Inspection {
    fn of(found: &Extension, _: bool) -> Option<&Self> {
        found.inspection.as_ref()
    }
}

impl<T: Discoverable> DiscoveredFilter<T> {
    /// The filter of the moment; `None` when there is none, not even a default.
    pub fn resolve(&self, found: Option<&Extension>, source: bool) -> Option<T> {
        let found = found.filter(|e| self.types.contains(&e.type_name));
        found.and_then(|e| T::of(e, source)).or(self.default.as_ref()).cloned()
    }
}
