//! Tasks of the main thread that must not end: one that panics is started again.
//!
//! A task that ended would be missed by nobody: certificates would no longer be renewed, endpoints no longer checked, and the
//! process would look well. Each keeps its state in [`Main`](super::Main) and in snapshots, so a new run of it continues where
//! the last one was. One that panics again and again is given up with the process: whoever watches it starts it anew.
use std::collections::VecDeque;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::FutureExt;
use lateen_telemetry::envoy_names::server;
use lateen_telemetry::{Block, BlockName, Registry};
use tokio::sync::watch;

/// More panics than this within [`WINDOW`] are no accident.
const MOST: usize = 5;
const WINDOW: Duration = Duration::from_secs(60);
/// A task that panics at once would otherwise use up the thread.
const PAUSE: Duration = Duration::from_millis(200);

/// Counts panics, and tells when there were too many.
#[derive(Debug, Default)]
pub(crate) struct Panics(VecDeque<Instant>);

impl Panics {
    /// One more; false when that is one too many.
    pub(crate) fn bear(&mut self, now: Instant) -> bool {
        self.0.push_back(now);
        while self.0.front().is_some_and(|at| now.saturating_duration_since(*at) > WINDOW) {
            self.0.pop_front();
        }
        self.0.len() <= MOST
    }
}

/// Starts tasks again, and says when one is given up.
#[derive(Clone)]
pub(super) struct Supervisor {
    panics: Arc<Block>,
    died: Arc<watch::Sender<Option<String>>>,
}

impl Supervisor {
    pub(super) fn new(registry: &Registry) -> Self {
        Self { panics: Arc::new(registry.block(server::DEFS, BlockName::plain("server"))), died: Arc::new(watch::channel(None).0) }
    }

    /// Why the process must end, if it must.
    pub(super) fn died(&self) -> watch::Receiver<Option<String>> {
        self.died.subscribe()
    }

    /// Runs what `task` makes to its end, and again after a panic.
    pub(super) async fn run<F: Future<Output = ()>>(self, name: &'static str, task: impl Fn() -> F) {
        let mut panics = Panics::default();
        while AssertUnwindSafe(task()).catch_unwind().await.is_err() {
            if !self.bear(name, &mut panics) {
                return;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Runs what is tried again by whoever hears that it failed: nothing comes of it where it panics. The panics of all that is
    /// alike count together.
    pub(super) async fn attempt<T>(&self, name: &'static str, panics: &Mutex<Panics>, task: impl Future<Output = T>) -> Option<T> {
        let result = AssertUnwindSafe(task).catch_unwind().await.ok();
        if result.is_none() {
            self.bear(name, &mut panics.lock().unwrap_or_else(PoisonError::into_inner));
        }
        result
    }

    /// Counts a panic, and gives the process up when it is one too many.
    fn bear(&self, name: &'static str, panics: &mut Panics) -> bool {
        self.panics.add_shared(server::PANICS, 1);
        let is_borne = panics.bear(Instant::now());
        if is_borne {
            tracing::error!("the task `{name}` was interrupted by a mistake of this program, please report it; it is started again");
        } else {
            self.died.send_replace(Some(format!("the task `{name}` panicked {} times within {WINDOW:?}", MOST + 1)));
        }
        is_borne
    }

    /// Runs what cannot be started again: a panic ends the process.
    pub(super) async fn only_once(self, name: &'static str, task: impl Future<Output = ()>) {
        if AssertUnwindSafe(task).catch_unwind().await.is_err() {
            self.panics.add_shared(server::PANICS, 1);
            self.died.send_replace(Some(format!("the task `{name}` panicked")));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    #[tokio::test(start_paused = true)]
    async fn a_task_that_panics_is_started_again_and_given_up_when_it_goes_on() {
        let (registry, _) = Registry::new(1, Default::default());
        let supervisor = Supervisor::new(&registry);
        let (runs, seen) = (Arc::new(AtomicUsize::new(0)), supervisor.died());
        let theirs = runs.clone();
        supervisor
            .clone()
            .run("now and then", move || {
                let run = theirs.fetch_add(1, SeqCst);
                async move { assert!(run >= 3, "injected") }
            })
            .await;
        assert_eq!((runs.load(SeqCst), seen.borrow().clone()), (4, None));
        let block = registry.block(server::DEFS, BlockName::plain("server"));
        assert_eq!(block.counter(server::PANICS), 3);
        supervisor.clone().run("always", || async { panic!("injected") }).await;
        assert!(seen.borrow().as_ref().is_some_and(|why| why.contains("`always`")), "{seen:?}");
        assert_eq!(block.counter(server::PANICS), 3 + 6);
    }

    #[test]
    fn panics_far_apart_are_borne() {
        let (mut panics, start) = (Panics::default(), Instant::now());
        assert!((0..100).all(|n| panics.bear(start + WINDOW / 4 * n)));
        assert!((0..20).any(|_| !panics.bear(start + WINDOW * 25)));
    }
}
