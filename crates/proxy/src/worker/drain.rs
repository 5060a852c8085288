//! Telling connections that they should come to an end.
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::{Context, Waker};

/// A flag that connections look at whenever they run, and that wakes those that sleep.
#[derive(Default)]
pub(crate) struct DrainSignal {
    draining: Cell<bool>,
    next: Cell<u64>,
    sleepers: RefCell<HashMap<u64, Waker>>,
}

impl DrainSignal {
    pub(crate) fn is_draining(&self) -> bool {
        self.draining.get()
    }

    pub(crate) fn start(&self) {
        self.draining.set(true);
        for waker in self.sleepers.borrow().values() {
            waker.wake_by_ref();
        }
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
