//! Filters whose configuration is discovered (Envoy `config_discovery`): what stands in their place, and what was discovered.
use std::sync::{Arc, Mutex, PoisonError};

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
    /// Newest first; the one before it too, since a worker may come later to what was discovered than others.
    counting: Mutex<[Option<Counting<T>>; 2]>,
}

/// What was discovered that counts, and what stands in the place instead, where each place counts for itself.
#[derive(Debug)]
struct Counting<T> {
    found: T,
    own: T,
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

    /// The same with counts of its own, where it counts anything.
    fn anew(&self) -> Option<Self> {
        None
    }

    /// Whether both count together.
    fn counts_with(&self, _: &Self) -> bool {
        false
    }
}

impl Discoverable for HttpFilter {
    fn of(found: &Extension, source: bool) -> Option<&Self> {
        Some(found.http.as_ref()?.of(source))
    }

    fn anew(&self) -> Option<Self> {
        match self {
            Self::LocalRateLimit(limit) => Some(Self::LocalRateLimit(Arc::new(limit.anew()))),
            Self::BandwidthLimit(limit) => Some(Self::BandwidthLimit(Arc::new(limit.anew()))),
            _ => None,
        }
    }

    fn counts_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::LocalRateLimit(one), Self::LocalRateLimit(other)) => Arc::ptr_eq(one, other),
            (Self::BandwidthLimit(one), Self::BandwidthLimit(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
    }
}

impl Discoverable for NetworkFilter {
    fn of(found: &Extension, source: bool) -> Option<&Self> {
        Some(found.network.as_ref()?.of(source))
    }

    fn anew(&self) -> Option<Self> {
        match self {
            Self::ConnectionLimit(limit) => Some(Self::ConnectionLimit(Arc::new(limit.anew()))),
            Self::LocalRateLimit(limit) => Some(Self::LocalRateLimit(Arc::new(limit.anew()))),
            _ => None,
        }
    }

    fn counts_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::ConnectionLimit(one), Self::ConnectionLimit(other)) => Arc::ptr_eq(one, other),
            (Self::LocalRateLimit(one), Self::LocalRateLimit(other)) => Arc::ptr_eq(one, other),
            _ => false,
        }
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

    fn anew(&self) -> Option<Self> {
        if let Self::RateLimit(limit) = self { Some(Self::RateLimit(Arc::new(limit.anew()))) } else { None }
    }

    fn counts_with(&self, other: &Self) -> bool {
        matches!((self, other), (Self::RateLimit(one), Self::RateLimit(other)) if Arc::ptr_eq(one, other))
    }
}

impl<T> DiscoveredFilter<T> {
    pub(crate) fn new(id: ExtensionId, types: Vec<Box<str>>, default: Option<T>) -> Self {
        Self { id, types, default, counting: Mutex::new([None, None]) }
    }
}

impl<T: Discoverable> DiscoveredFilter<T> {
    /// The filter of the moment; `None` when there is none, not even a default.
    pub fn resolve(&self, found: Option<&Extension>, source: bool) -> Option<T> {
        let found = found.filter(|e| self.types.contains(&e.type_name));
        match found.and_then(|e| T::of(e, source)) {
            Some(found) => Some(self.own(found)),
            None => self.default.clone(),
        }
    }

    /// What was discovered may be in many places, each of which counts for itself, and for all workers (Envoy makes a filter's
    /// configuration for each of its places).
    fn own(&self, found: &T) -> T {
        let mut counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = counting.iter().flatten().find(|known| known.found.counts_with(found)) {
            return known.own.clone();
        }
        let Some(own) = found.anew() else { return found.clone() };
        counting.rotate_right(1);
        counting[0] = Some(Counting { found: found.clone(), own: own.clone() });
        own
    }
}
