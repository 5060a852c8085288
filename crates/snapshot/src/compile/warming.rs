//! When a new version of a resource is put to use: all that it refers to must have arrived, so that
//! no request meets half a configuration; the version before serves until then.
use std::time::{Duration, Instant};

use super::record::Record;

/// How long a resource waits for what it refers to (Envoy `initial_fetch_timeout`); then it is used without.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// The versions of one resource.
#[derive(Debug)]
pub(crate) struct Versions<T> {
    pub(crate) active: Option<Box<Version<T>>>,
    /// Nearly always none: apart, it takes no room then.
    pub(crate) warming: Option<Box<Version<T>>>,
}

#[derive(Debug)]
pub(crate) struct Version<T> {
    pub(crate) value: T,
    pub(crate) record: Record,
    pub(crate) since: Instant,
}

impl<T> Default for Versions<T> {
    fn default() -> Self {
        Self { active: None, warming: None }
    }
}

impl<T> Versions<T> {
    pub(crate) fn newest(&self) -> Option<&Version<T>> {
        self.warming.as_deref().or(self.active.as_deref())
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Version<T>> {
        self.active.iter().chain(&self.warming).map(|version| &**version)
    }

    /// Whether nothing of this name has been put to use yet.
    pub(crate) fn is_new(&self) -> bool {
        self.active.is_none()
    }

    pub(crate) fn warm(&mut self, value: T, record: Record, now: Instant) {
        self.warming = Some(Box::new(Version { value, record, since: now }));
    }

    /// Puts the warming version to use when it is ready or has waited long enough. Whether it did.
    pub(crate) fn promote(&mut self, now: Instant, ready: impl FnOnce(&T) -> bool) -> bool {
        let Some(version) = self.warming.take() else { return false };
        if now.saturating_duration_since(version.since) >= FETCH_TIMEOUT || ready(&version.value) {
            self.active = Some(version);
            true
        } else {
            self.warming = Some(version);
            false
        }
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.warming.as_ref().map(|w| w.since + FETCH_TIMEOUT)
    }
}
