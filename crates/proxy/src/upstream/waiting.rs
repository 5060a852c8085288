//! Exchanges that wait for a connection of their pool, in the order in which they came.
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Poll, Waker};

use super::pool::{Idle, Pool};

/// The queue.
#[derive(Default)]
pub(super) struct Waiting(RefCell<VecDeque<Rc<Waiter>>>);

#[derive(Default)]
struct Waiter {
    handed: RefCell<Option<Idle>>,
    woken: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Waiting {
    pub(super) fn len(&self) -> usize {
        self.0.borrow().len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.borrow().is_empty()
    }

    /// Gives the connection to the first who waits, or back.
    pub(super) fn hand(&self, mut idle: Idle) -> Option<Idle> {
        let first = self.0.borrow_mut().pop_front();
        let Some(waiter) = first else { return Some(idle) };
        idle.served += 1;
        *waiter.handed.borrow_mut() = Some(idle);
        waiter.wake();
        None
    }

    pub(super) fn wake_one(&self) {
        let first = self.0.borrow_mut().pop_front();
        if let Some(waiter) = first {
            waiter.wake();
        }
    }

    pub(super) fn wake_all(&self) {
        self.0.borrow_mut().drain(..).for_each(|waiter| waiter.wake());
    }
}

/// Waits until a connection is handed over, or something changed.
pub(super) async fn wait(pool: &Rc<Pool>) -> Option<Idle> {
    let waiter = Rc::new(Waiter::default());
    pool.waiting.0.borrow_mut().push_back(Rc::clone(&waiter));
    let guard = Leave { pool, waiter: &waiter };
    poll_fn(|cx| {
        if waiter.woken.get() {
            return Poll::Ready(());
        }
        *waiter.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    })
    .await;
    let handed = waiter.handed.borrow_mut().take();
    drop(guard);
    handed
}

impl Waiter {
    fn wake(&self) {
        self.woken.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }
}

/// Takes a waiter out of the queue when its exchange is given up, passing on what it was handed.
struct Leave<'a> {
    pool: &'a Rc<Pool>,
    waiter: &'a Rc<Waiter>,
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.pool.waiting.0.borrow_mut().retain(|w| !Rc::ptr_eq(w, self.waiter));
        let handed = self.waiter.handed.borrow_mut().take();
        if let Some(idle) = handed {
            self.pool.put_back(idle);
        }
    }
}
