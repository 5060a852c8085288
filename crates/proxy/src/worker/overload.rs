//! What the proxy does when resources run short: actions that the main thread switches, read by every worker.
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use lateen_snapshot::bootstrap::overload::{Action, Limits};

/// The switches and global numbers of a process; relaxed, since a request more or less decides nothing.
#[derive(Debug, Default)]
pub struct Overload {
    limits: Limits,
    open: AtomicU64,
    active: [AtomicBool; Action::ALL.len()],
}

impl Overload {
    pub fn new(limits: Limits) -> Arc<Self> {
        Arc::new(Self { limits, ..Self::default() })
    }

    /// Switches an action; true when that changed it.
    pub fn set(&self, action: Action, active: bool) -> bool {
        self.active[action as usize].swap(active, Relaxed) != active
    }

    pub(crate) fn is_active(&self, action: Action) -> bool {
        self.active[action as usize].load(Relaxed)
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
