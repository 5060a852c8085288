//! Telling connections that they should come to an end.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    None,
    /// More and more connections end, each after a request, until `over` has passed (Envoy `--drain-strategy gradual`).
    Gradual { since: Instant, over: Duration },
    /// Every connection ends.
    All,
}

/// A flag that connections look at whenever they run, and that wakes those that sleep.
#[derive(Default)]
pub(crate) struct DrainSignal {
    stage: Cell<Stage>,
    next: Cell<u64>,
    sleepers: RefCell<HashMap<u64, Waker>>,
}

impl DrainSignal {
    /// Whether every connection is to end, idle ones too.
    pub(crate) fn is_draining(&self) -> bool {
        self.stage.get() == Stage::All
    }

    /// Whether the connection of a request at this moment is to end after it; `roll` decides during a gradual drain.
    pub(crate) fn ends(&self, roll: impl FnOnce() -> u32) -> bool {
        match self.stage.get() {
            Stage::None => false,
            Stage::All => true,
            Stage::Gradual { since, over } => u64::from(roll()) % (over.as_millis() as u64).max(1) < since.elapsed().as_millis() as u64,
        }
    }

    pub(crate) fn start(&self) {
        self.stage.set(Stage::All);
        for waker in self.sleepers.borrow().values() {
            waker.wake_by_ref();
        }
    }

    /// Starts a gradual drain, unless one is on.
    pub(crate) fn start_over(&self, over: Duration) {
        if self.stage.get() == Stage::None {
            self.stage.set(Stage::Gradual { since: Instant::now(), over });
        }
    }

    /// Called now and then: a gradual drain whose time is over becomes one of all connections.
    pub(crate) fn tick(&self) {
        if let Stage::Gradual { since, over } = self.stage.get()
            && since.elapsed() >= over
        {
            self.start();
        }
    }

    /// Connections that were not told yet may stay after all.
    pub(crate) fn cancel(&self) {
        self.stage.set(Stage::None);
    }

    /// Wakes this task when the drain starts, until the registration is dropped.
    pub(crate) fn register(self: &Rc<Self>, cx: &Context<'_>) -> Registration {
        let key = self.next.get();
        self.next.set(key + 1);
        self.sleepers.borrow_mut().insert(key, cx.waker().clone());
        Registration { signal: Rc::clone(self), key }
    }
}

pub(crate) struct Registration {
    signal: Rc<DrainSignal>,
    key: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.signal.sleepers.borrow_mut().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_gradual_drain_ends_more_and_more_connections_and_all_in_the_end() {
        let signal = DrainSignal::default();
        assert!(!signal.ends(|| 0));
        signal.start_over(Duration::from_secs(10));
        let share = |signal: &DrainSignal| (0..10_000).filter(|n| signal.ends(|| *n)).count();
        let mut before = share(&signal);
        assert_eq!(before, 0);
        for _ in 0..9 {
            tokio::time::advance(Duration::from_secs(1)).await;
            let now = share(&signal);
            assert!(now == before + 1000, "{before} to {now}");
            before = now;
            signal.tick();
            assert!(!signal.is_draining());
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        signal.tick();
        assert!(signal.is_draining() && signal.ends(|| u32::MAX));
        signal.cancel();
        assert!(!signal.is_draining() && !signal.ends(|| 0));
    }
}
