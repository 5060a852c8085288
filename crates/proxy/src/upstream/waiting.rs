//! Exchanges that wait for a connection of their pool, in the order in which they came.
use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use tokio::time::Instant;

use super::connect::ConnectFailure;
use super::lease::Lease;
use super::pool::Pool;

/// The queue.
#[derive(Default)]
pub(super) struct Waiting(RefCell<VecDeque<Rc<Waiter>>>);

#[derive(Default)]
struct Waiter {
    given: RefCell<Option<Given>>,
    waker: RefCell<Option<Waker>>,
}

/// What waiting brought.
#[allow(clippy::large_enum_variant, reason = "moved twice, and boxing would allocate")]
pub(super) enum Given {
    Lease(Lease),
    /// A connection that was being made meanwhile did not come about.
    Failure(ConnectFailure),
    /// Something changed: there may be a connection, or room for one.
    Change,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Gives it to the first who waits, or back.
    pub(super) fn hand(&self, lease: Lease) -> Option<Lease> {
        let first = self.0.borrow_mut().pop_front();
        let Some(waiter) = first else { return Some(lease) };
        waiter.give(Given::Lease(lease));
        None
    }

    /// Tells all who wait that it has failed, and how many they were.
    pub(super) fn fail_all(&self, failure: &ConnectFailure) -> usize {
        let all = std::mem::take(&mut *self.0.borrow_mut());
        all.iter().for_each(|waiter| waiter.give(Given::Failure(failure.clone())));
        all.len()
    }

    pub(super) fn wake_one(&self) {
        let first = self.0.borrow_mut().pop_front();
        if let Some(waiter) = first {
            waiter.give(Given::Change);
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.borrow_mut().drain(..).for_each(|waiter| waiter.give(Given::Change));
    }
}

/// Waits until there is something to know.
pub(super) async fn wait(pool: &Rc<Pool>) -> Given {
    let waiter = Rc::new(Waiter::default());
    pool.waiting.0.borrow_mut().push_back(Rc::clone(&waiter));
    let _guard = Leave { pool, waiter: &waiter };
    poll_fn(|cx| {
        if let Some(given) = waiter.given.borrow_mut().take() {
            return Poll::Ready(given);
        }
        *waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
    .await
}

impl Waiter {
    fn give(&self, given: Given) {
        *self.given.borrow_mut() = Some(given);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Takes a waiter out of the queue when its exchange is given up, passing on what it was given.
struct Leave<'a> {
    pool: &'a Rc<Pool>,
    waiter: &'a Rc<Waiter>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.pool.waiting.0.borrow_mut().retain(|w| !Rc::ptr_eq(w, self.waiter));
        let given = self.waiter.given.borrow_mut().take();
        match given {
            Some(Given::Lease(lease)) => lease.unused(Instant::now()),
            Some(Given::Change) => self.pool.waiting.wake_one(),
            Some(Given::Failure(_)) | None => {}
        }
    }
}
