//! What callers did and saw, and what went wrong for them.
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use anyhow::ensure;
use tokio_rustls::TlsConnector;

use crate::certificates::Authority;
use crate::config::Site;

/// Failures that are told; the number is always right.
const TOLD: usize = 40;

pub(crate) struct Tally {
    start: Instant,
    stop: AtomicBool,
    done: Mutex<BTreeMap<&'static str, u64>>,
    lost: Mutex<Vec<String>>,
    lost_count: AtomicU64,
    replaced: AtomicU64,
    /// By site: the newest number of the configuration and of the certificate that a caller saw.
    seen: Vec<[AtomicU64; 2]>,
    client: Mutex<Option<TlsConnector>>,
}

impl Tally {
    pub(crate) fn new(sites: &[Site]) -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            done: Mutex::default(),
            lost: Mutex::default(),
            lost_count: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
            seen: sites.iter().map(|_| Default::default()).collect(),
            client: Mutex::default(),
        })
    }

    pub(crate) fn done(&self, what: &'static str) {
        *lock(&self.done).entry(what).or_default() += 1;
    }

    pub(crate) fn lost(&self, site: usize, what: &str, why: impl fmt::Display) {
        self.lost_count.fetch_add(1, Relaxed);
        let mut lost = lock(&self.lost);
        if lost.len() < TOLD {
            lost.push(format!("after {:.1}s, site {site}, {what}: {why}", self.start.elapsed().as_secs_f64()));
        }
    }

    pub(crate) fn saw_configuration(&self, site: usize, number: u64) {
        self.seen[site][0].fetch_max(number, Relaxed);
    }

    pub(crate) fn saw_certificate(&self, site: usize, number: u64) {
        self.seen[site][1].fetch_max(number, Relaxed);
    }

    /// What of a site's newest state nobody has seen.
    pub(crate) fn misses(&self, number: usize, site: &Site) -> Option<String> {
        let [configuration, certificate] = &self.seen[number];
        let seen = (configuration.load(Relaxed), certificate.load(Relaxed));
        let newest = (site.configuration(), site.certificate());
        (seen.0 < newest.0 || seen.1 < newest.1).then(|| format!("{}: saw {seen:?} of {newest:?}", site.name()))
    }

    pub(crate) fn replaced(&self) {
        self.replaced.fetch_add(1, Relaxed);
    }

    pub(crate) fn new_client_certificate(&self, authority: &mut Authority) -> anyhow::Result<()> {
        *lock(&self.client) = Some(authority.connector()?);
        Ok(())
    }

    /// The identity that callers have now.
    pub(crate) fn connector(&self) -> Option<TlsConnector> {
        lock(&self.client).clone()
    }

    pub(crate) fn stop(&self) {
        self.stop.store(true, Relaxed);
    }

    pub(crate) fn goes_on(&self) -> bool {
        !self.stop.load(Relaxed)
    }

    pub(crate) fn nothing_was_lost(&self) -> anyhow::Result<()> {
        let lost = lock(&self.lost);
        ensure!(lost.is_empty(), "{} calls failed:\n  {}", self.lost_count.load(Relaxed), lost.join("\n  "));
        for what in crate::callers::KINDS {
            ensure!(lock(&self.done).get(what).is_some_and(|n| *n > 3), "hardly any {what}");
        }
        ensure!(self.replaced.load(Relaxed) > 1, "the process was hardly replaced");
        Ok(())
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let done = lock(&self.done);
        let parts: Vec<String> = done.iter().map(|(what, n)| format!("{n} {what}")).collect();
        let (lost, replaced) = (self.lost_count.load(Relaxed), self.replaced.load(Relaxed));
        write!(
            f,
            "in {:.0}s: {}; {lost} lost; the process was replaced {replaced} times",
            self.start.elapsed().as_secs_f64(),
            parts.join(", ")
        )
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
