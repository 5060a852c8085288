//! Telling connections that they should come to an end.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};
use std::time::Duration;

use tokio::time::Instant;

/// How long a connection may stay idle once every one is to end, before it is closed under its caller.
pub(crate) const DRAIN_IDLE: Duration = Duration::from_secs(5);

/// How connections are asked to end whose chain or listener is replaced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DrainTime {
    pub over: Duration,
    /// More and more of them, and not all from the beginning (Envoy `--drain-strategy`).
    pub gradually: bool,
}

impl Default for DrainTime {
    fn default() -> Self {
        Self { over: Duration::from_secs(5), gradually: true }
    }
}

/// How far a drain has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Stage {
    #[default]
    None,
    /// Connections end, each after a request, until the time has passed.
    Asking { since: Instant, time: DrainTime },
    /// Every connection ends, idle ones too.
    All { since: Instant },
}

/// A flag that connections look at whenever they run, and that wakes those that sleep.
#[derive(Default)]
pub(crate) struct DrainSignal {
    stage: Cell<Stage>,
    /// What nobody can be told to end is closed.
    closed: Cell<bool>,
    next: Cell<u64>,
    sleepers: RefCell<HashMap<u64, Waker>>,
}

impl DrainSignal {
    /// One that has come as far as this.
    pub(crate) fn like(other: &Self) -> Self {
        Self { stage: other.stage.clone(), closed: other.closed.clone(), ..Self::default() }
    }

    /// Whether every connection is to end, idle ones too.
    pub(crate) fn is_draining(&self) -> bool {
        self.since().is_some()
    }

    /// Since when every connection is to end.
    pub(crate) fn since(&self) -> Option<Instant> {
        if let Stage::All { since } = self.stage.get() { Some(since) } else { None }
    }

    /// Whether the connection of a request at this moment is to end after it; `roll` decides during a gradual drain.
    pub(crate) fn ends(&self, roll: impl FnOnce() -> u32) -> bool {
        match self.stage.get() {
            Stage::None => false,
            Stage::All { .. } => true,
            Stage::Asking { time, .. } if !time.gradually => true,
            Stage::Asking { since, time } => u64::from(roll()) % (time.over.as_millis() as u64).max(1) < since.elapsed().as_millis() as u64,
        }
    }

    /// Whether the time is over for connections that cannot be told to end.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.get()
    }

    /// Ends what there is no telling, if everyone else was told.
    pub(crate) fn close(&self) {
        if self.is_draining() && !self.closed.replace(true) {
            self.wake();
        }
    }

    pub(crate) fn start(&self) {
        if !self.is_draining() {
            self.stage.set(Stage::All { since: Instant::now() });
        }
        self.wake();
    }

    fn wake(&self) {
        for waker in self.sleepers.borrow().values() {
            waker.wake_by_ref();
        }
    }

    /// Asks connections to end, unless they are asked already.
    pub(crate) fn ask(&self, time: DrainTime) {
        if time.over.is_zero() {
            self.start();
        } else if self.stage.get() == Stage::None {
            self.stage.set(Stage::Asking { since: Instant::now(), time });
        }
    }

    /// Called now and then: once the time of asking is over, every connection is to end.
    pub(crate) fn tick(&self) {
        if let Stage::Asking { since, time } = self.stage.get()
            && since.elapsed() >= time.over
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
        signal.ask(DrainTime { over: Duration::from_secs(10), gradually: true });
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

    #[tokio::test(start_paused = true)]
    async fn a_drain_that_is_not_gradual_asks_every_connection_and_leaves_idle_ones() {
        let signal = DrainSignal::default();
        signal.ask(DrainTime { over: Duration::from_secs(10), gradually: false });
        assert!(signal.ends(|| u32::MAX) && !signal.is_draining());
        tokio::time::advance(Duration::from_secs(10)).await;
        signal.tick();
        let since = signal.since();
        assert_eq!(since, Some(Instant::now()));
        tokio::time::advance(Duration::from_secs(1)).await;
        signal.start();
        assert_eq!(signal.since(), since, "a drain does not begin again");
    }
}
