//! Keys that are fetched from an address: one set for all workers, good until a fetch brings another.
//!
//! Reading them takes no lock. Who finds them missing or out of date may fetch, one at a time in the whole process; the others
//! wait for that. A fetch that fails leaves the keys as they were.
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;
use lateen_identity::jwks::KeySet;

use super::JwtFault;
use crate::service::HttpUri;

/// After a failure keys that are out of date serve so long before the next fetch.
const PAUSE: Duration = Duration::from_secs(1);

/// Envoy's `RemoteJwks`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySource {
    pub uri: HttpUri,
    /// How long keys are good.
    pub cache: Duration,
    /// Fetched before anybody asks, and after a failure again in this time.
    pub refetch: Option<Duration>,
    pub retries: u32,
    /// The first pause before a retry, and the longest.
    pub back_off: (Duration, Duration),
}

/// The keys of one source.
pub struct RemoteKeys {
    pub source: KeySource,
    current: ArcSwapOption<Fetched>,
    fetch: Mutex<Fetch>,
}

struct Fetched {
    keys: KeySet,
    until: Instant,
}

#[derive(Default)]
struct Fetch {
    running: bool,
    /// Somebody keeps the keys fresh.
    kept: bool,
    not_before: Option<Instant>,
    waiting: Vec<Waker>,
}

impl fmt::Debug for RemoteKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemoteKeys").field("source", &self.source).finish_non_exhaustive()
    }
}

impl RemoteKeys {
    pub fn new(source: KeySource) -> Arc<Self> {
        Arc::new(Self { source, current: ArcSwapOption::empty(), fetch: Mutex::default() })
    }

    fn fetch(&self) -> MutexGuard<'_, Fetch> {
        self.fetch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_fresh(&self, now: Instant) -> bool {
        self.current.load().as_ref().is_some_and(|fetched| now < fetched.until)
    }

    pub(super) fn verify(&self, token: &str) -> Result<(), JwtFault> {
        match &*self.current.load() {
            Some(fetched) => Ok(fetched.keys.verify(token)?),
            None => Err(JwtFault::Fetch),
        }
    }

    /// The right to fetch, if nobody has it.
    pub fn begin(self: &Arc<Self>, now: Instant) -> Option<Fetching> {
        let mut fetch = self.fetch();
        let paused = self.current.load().is_some() && fetch.not_before.is_some_and(|at| now < at);
        if fetch.running || paused {
            return None;
        }
        fetch.running = true;
        Some(Fetching(Arc::clone(self)))
    }

    /// The duty to keep the keys fresh, for the first that asks.
    pub fn keep(&self) -> bool {
        self.source.refetch.is_some() && !std::mem::replace(&mut self.fetch().kept, true)
    }

    /// Ready when nobody fetches.
    pub fn poll_idle(&self, cx: &mut Context<'_>) -> Poll<()> {
        let mut fetch = self.fetch();
        if !fetch.running {
            return Poll::Ready(());
        }
        if !fetch.waiting.iter().any(|waker| waker.will_wake(cx.waker())) {
            fetch.waiting.push(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// A fetch under way. Dropped without a result it counts as failed.
pub struct Fetching(Arc<RemoteKeys>);

impl Fetching {
    pub fn of(&self) -> &Arc<RemoteKeys> {
        &self.0
    }

    /// Puts what was fetched to use.
    pub fn done(self, keys: KeySet, now: Instant) {
        let until = now + self.0.source.cache;
        self.0.current.store(Some(Arc::new(Fetched { keys, until })));
        self.0.fetch().not_before = None;
    }

    pub fn failed(self, now: Instant) {
        self.0.fetch().not_before = now.checked_add(PAUSE);
    }
}

impl Drop for Fetching {
    fn drop(&mut self) {
        let waiting = {
            let mut fetch = self.0.fetch();
            fetch.running = false;
            std::mem::take(&mut fetch.waiting)
        };
        waiting.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterId;
    use lateen_identity::token::TokenIssuer;

    fn keys() -> Arc<RemoteKeys> {
        let uri = HttpUri { cluster: ClusterId(0), authority: "a".into(), path: "/".into(), timeout: None };
        let back_off = (Duration::ZERO, Duration::ZERO);
        RemoteKeys::new(KeySource { uri, cache: Duration::from_secs(60), refetch: None, retries: 0, back_off })
    }

    fn set() -> KeySet {
        KeySet::parse(&TokenIssuer::generate("https://issuer").unwrap().jwks()).unwrap()
    }

    #[test]
    fn one_fetch_at_a_time_and_a_failure_keeps_the_keys() {
        let (keys, now) = (keys(), Instant::now());
        assert_eq!(keys.verify("x"), Err(JwtFault::Fetch));
        let fetching = keys.begin(now).unwrap();
        assert!(keys.begin(now).is_none());
        let mut cx = Context::from_waker(Waker::noop());
        assert!(keys.poll_idle(&mut cx).is_pending());
        fetching.failed(now);
        assert!(keys.poll_idle(&mut cx).is_ready());
        keys.begin(now).expect("with no keys at all the next may try at once").done(set(), now);
        assert!(keys.is_fresh(now + Duration::from_secs(59)) && !keys.is_fresh(now + Duration::from_secs(60)));
        let later = now + Duration::from_secs(61);
        keys.begin(later).unwrap().failed(later);
        assert_ne!(keys.verify("x"), Err(JwtFault::Fetch), "the keys are still there");
        assert!(keys.begin(later).is_none(), "old keys serve a while before the next fetch");
        drop(keys.begin(later + PAUSE).unwrap());
        assert!(keys.begin(later + PAUSE).is_some(), "a fetch that was given up is over");
    }
}
