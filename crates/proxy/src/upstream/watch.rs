//! Connections of TCP proxies that end when their host fails (`close_connections_on_host_health_failure`).
use std::cell::RefCell;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use lateen_balance::Host;

/// What an open connection holds.
pub(crate) struct Watched {
    host: Arc<Host>,
    /// The host's failures when the connection was made: it may have been chosen although it had failed.
    failures: u32,
    waker: RefCell<Option<Waker>>,
}

impl Watched {
    fn has_failed(&self) -> bool {
        self.host.failures() != self.failures
    }

    /// Ready once the host failed.
    pub(crate) fn poll_failed(&self, cx: &Context<'_>) -> Poll<()> {
        if self.has_failed() {
            return Poll::Ready(());
        }
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|w| !w.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

/// Those of one cluster on one worker.
#[derive(Default)]
pub(super) struct AllWatched(RefCell<Vec<Weak<Watched>>>);

impl AllWatched {
    pub(super) fn add(&self, host: &Arc<Host>) -> Rc<Watched> {
        let watched = Rc::new(Watched { host: Arc::clone(host), failures: host.failures(), waker: RefCell::default() });
        self.0.borrow_mut().push(Rc::downgrade(&watched));
        watched
    }

    /// Wakes those whose host failed, and forgets those that have ended.
    pub(super) fn sweep(&self) {
        self.0.borrow_mut().retain(|watched| {
            let Some(watched) = watched.upgrade() else { return false };
            if watched.has_failed()
                && let Some(waker) = watched.waker.borrow_mut().take()
            {
                waker.wake();
            }
            true
        });
    }
}
