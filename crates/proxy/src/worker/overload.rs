//! What the proxy does when resources run short: actions that the main thread switches, read by every worker.
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

use lateen_snapshot::bootstrap::overload::{Action, Limits};

use super::queues::Queues;

/// The switches and global numbers of a process; relaxed, since a request more or less decides nothing.
#[derive(Debug, Default)]
pub struct Overload {
    limits: Limits,
    open: AtomicU64,
    switches: [Switch; Action::ALL.len()],
    queues: Option<Queues>,
}

#[derive(Debug, Default)]
struct Switch {
    /// Of connections or requests, the share that the action concerns: `u32::MAX` is every one.
    share: AtomicU32,
    /// How many a load shed point has concerned.
    hit: AtomicU64,
}

impl Overload {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, ..Self::default() })
    }

    /// As [`Self::new`], and the workers tell how long work waits for them.
    pub(crate) fn watching(limits: Limits, queues: Queues) -> Arc<Self> {
        Arc::new(Self { limits, queues: Some(queues), ..Self::default() })
    }

    pub(crate) fn queues(&self) -> Option<&Queues> {
        self.queues.as_ref()
    }

    /// Has an action concern this share (0 to 1) of what comes.
    pub fn set(&self, action: Action, share: f64) {
        // Truncation keeps anything short of all below `u32::MAX`.
        self.switch(action).share.store((share * f64::from(u32::MAX)) as u32, Relaxed);
    }

    /// Whether the action concerns everything, for those that cannot concern a part.
    pub(crate) fn is_saturated(&self, action: Action) -> bool {
        self.switch(action).share.load(Relaxed) == u32::MAX
    }

    /// Whether the action concerns this connection or request. Dice are thrown only for a share.
    pub(crate) fn concerns(&self, action: Action, roll: impl FnOnce() -> u32) -> bool {
        let switch = self.switch(action);
        let hit = match switch.share.load(Relaxed) {
            0 => return false,
            u32::MAX => true,
            share => roll() < share,
        };
        if hit && action.is_load_shed_point() {
            switch.hit.fetch_add(1, Relaxed);
        }
        hit
    }

    /// How many a load shed point concerned since the last call.
    pub(crate) fn take_hits(&self, action: Action) -> u64 {
        self.switch(action).hit.swap(0, Relaxed)
    }

    fn switch(&self, action: Action) -> &Switch {
        &self.switches[action as usize]
    }

    /// Downstream connections of all workers, from their acceptance on.
    pub(crate) fn open(&self) -> u64 {
        self.open.load(Relaxed)
    }

    /// The configured number of connections of a listener, over all workers.
    pub(crate) fn listener_limit(&self, name: &str) -> Option<u64> {
        self.limits.listeners.get(name).copied()
    }

    /// Room for one more connection, unless the process has too many; `exempt` ones are counted all the same.
    pub(crate) fn admit(self: &Arc<Self>, exempt: bool) -> Option<Admitted> {
        let before = self.open.fetch_add(1, Relaxed);
        let admitted = Admitted(Arc::clone(self));
        (exempt || self.limits.connections.is_none_or(|most| before < most)).then_some(admitted)
    }
}

/// A counted connection.
pub(crate) struct Admitted(Arc<Overload>);

impl Drop for Admitted {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_concerns_as_many_as_it_says_and_is_counted() {
        let overload = Overload::new(Limits::default());
        let action = Action::ShedRequests;
        let never = || panic!("no dice are needed");
        assert!(!overload.concerns(action, never));
        overload.set(action, 1.0);
        assert!(overload.concerns(action, never) && overload.is_saturated(action));
        overload.set(action, 0.25);
        assert!(!overload.is_saturated(action));
        assert!(overload.concerns(action, || u32::MAX / 5) && !overload.concerns(action, || u32::MAX / 3));
        assert_eq!((overload.take_hits(action), overload.take_hits(action)), (2, 0));
        assert!(!overload.concerns(Action::DisableKeepalive, never));
    }
}
