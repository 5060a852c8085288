//! When a new version of a resource is put to use: all that it refers to must have arrived, so that
//! no request meets half a configuration; the version before serves until then.
use std::time::{Duration, Instant};

use super::record::Record;

/// Envoy's default.
pub(crate) const FETCH_TIMEOUT: Duration = Duration::from_secs(15);

/// How long something is waited for that is discovered (Envoy `initial_fetch_timeout`); then it is done without.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FetchTimeout {
    After(Duration),
    Never,
}

impl Default for FetchTimeout {
    fn default() -> Self {
        Self::After(FETCH_TIMEOUT)
    }
}

/// What a version waits for, as it is looked through.
#[derive(Debug)]
pub(crate) struct Wait {
    since: Instant,
    waited: Duration,
    is_over: bool,
    /// When the next of it is done without.
    next: Option<Duration>,
}

impl Wait {
    /// One thing that has arrived, or is waited for so long.
    pub(crate) fn on(&mut self, arrived: bool, timeout: FetchTimeout) {
        match timeout {
            _ if arrived => {}
            FetchTimeout::After(limit) if self.waited >= limit => {}
            FetchTimeout::After(limit) => {
                self.is_over = false;
                self.next = Some(self.next.map_or(limit, |next| next.min(limit)));
            }
            FetchTimeout::Never => self.is_over = false,
        }
    }

    /// Something that holds others up until then, and none for longer than the default.
    pub(crate) fn until(&mut self, at: Instant) {
        let limit = at.saturating_duration_since(self.since).min(FETCH_TIMEOUT);
        self.on(false, FetchTimeout::After(limit));
    }
}

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
    since: Instant,
    /// When the first of the versions came that waited since one was put to use.
    first: Instant,
    /// When something that it waits for is done without.
    deadline: Option<Instant>,
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
        let first = self.warming.as_ref().map_or(now, |before| before.first);
        self.warming = Some(Box::new(Version { value, record, since: now, first, deadline: None }));
    }

    /// Until when what refers to this name waits for it, where nothing of it has been put to use yet: not anew for each version.
    pub(crate) fn holds_up_until(&self) -> Option<Instant> {
        self.warming.as_ref().filter(|_| self.is_new()).and_then(|w| w.first.checked_add(FETCH_TIMEOUT))
    }

    /// Puts the warming version to use when all that it waits for, as `waits` tells, is there or has been waited for long
    /// enough. Whether it did.
    pub(crate) fn promote(&mut self, now: Instant, waits: impl FnOnce(&T, &mut Wait)) -> bool {
        let Some(mut version) = self.warming.take() else { return false };
        let waited = now.saturating_duration_since(version.since);
        let mut wait = Wait { since: version.since, waited, is_over: true, next: None };
        waits(&version.value, &mut wait);
        if wait.is_over {
            self.active = Some(version);
        } else {
            version.deadline = wait.next.and_then(|next| version.since.checked_add(next));
            self.warming = Some(version);
        }
        wait.is_over
    }

    /// When [`Self::promote`] is to be called again if nothing arrives.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        self.warming.as_ref().and_then(|w| w.deadline)
    }
}
