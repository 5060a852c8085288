//! A connection's streams, polled by the connection's own task, so that a stream costs neither a task nor memory of its own.
//!
//! A runner serves one stream after the other in the same memory. It is lent to a connection for a stream, and kept by the
//! thread between streams.
use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use tokio::task::coop;

use super::serve::{Job, stream};
use crate::worker::{Worker, poll_guarded};

/// Runners that a thread keeps.
const RUNNERS_KEPT: usize = 64;
/// Places for streams that a connection keeps while it has none.
const PLACES_KEPT: usize = 16;
/// How many streams are polled before other connections have their turn.
const POLLS: usize = 64;

/// Streams of one connection.
#[derive(Default)]
pub(super) struct Streams {
    places: Vec<Place>,
    free: Vec<u32>,
    active: u32,
    ready: Arc<Ready>,
    /// Those to be polled, taken from [`Self::ready`].
    turn: Vec<u32>,
}

/// Where a stream is polled; wakers name it by its number.
struct Place {
    mark: Arc<Mark>,
    waker: Waker,
    runner: Option<Runner>,
}

impl Streams {
    pub(super) fn active(&self) -> u32 {
        self.active
    }

    /// Begins with a stream, which is first polled by [`Self::poll`].
    pub(super) fn start(&mut self, job: Job) {
        let number = self.free.pop().unwrap_or_else(|| self.place());
        if let Some(place) = self.places.get_mut(number as usize) {
            place.runner = Some(Runner::lend(job));
            self.active += 1;
            place.mark.wake_by_ref();
        }
    }

    fn place(&mut self) -> u32 {
        let number = self.places.len() as u32;
        let mark = Arc::new(Mark { number, queued: AtomicBool::new(false), ready: Arc::clone(&self.ready) });
        self.places.push(Place { waker: Waker::from(Arc::clone(&mark)), mark, runner: None });
        number
    }

    /// Begins a poll of the task: until [`Self::rest`] streams that become ready wake nobody.
    pub(super) fn attend(&mut self, cx: &Context<'_>) {
        let mut state = self.ready.state();
        state.attended = true;
        if state.task.as_ref().is_none_or(|task| !task.will_wake(cx.waker())) {
            state.task = Some(cx.waker().clone());
        }
    }

    /// Polls streams that are ready; whether there were any.
    pub(super) fn poll(&mut self, worker: &Worker) -> bool {
        let mut polls = 0;
        loop {
            if self.turn.is_empty() {
                std::mem::swap(&mut self.turn, &mut self.ready.state().list);
            }
            let count = self.turn.len().min(POLLS - polls);
            if count == 0 || !coop::has_budget_remaining() {
                return polls > 0;
            }
            polls += count;
            for number in self.turn.drain(..count) {
                if let Some(place) = self.places.get_mut(number as usize)
                    && place.poll(worker)
                {
                    self.active -= 1;
                    self.free.push(number);
                }
            }
        }
    }

    /// Ends a poll of the task: it is woken when a stream is ready.
    pub(super) fn rest(&mut self, cx: &Context<'_>) {
        if self.active == 0 && self.places.len() > PLACES_KEPT {
            self.places.truncate(PLACES_KEPT);
            self.free.retain(|number| (*number as usize) < PLACES_KEPT);
        }
        let mut state = self.ready.state();
        state.attended = false;
        if !(self.turn.is_empty() && state.list.is_empty()) {
            cx.waker().wake_by_ref();
        }
    }

    /// Polls the streams to their end, after that of their connection.
    pub(super) async fn finish(mut self, worker: Rc<Worker>) {
        poll_fn(|cx| {
            self.attend(cx);
            self.poll(&worker);
            self.rest(cx);
            if self.active == 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

impl Place {
    /// Whether the stream has ended.
    fn poll(&mut self, worker: &Worker) -> bool {
        self.mark.queued.store(false, Ordering::Release);
        // Somebody may wake a stream that is over.
        let Some(runner) = &mut self.runner else { return false };
        let waker = &self.waker;
        match poll_guarded(worker, || runner.future.as_mut().poll(&mut Context::from_waker(waker))) {
            Some(_) if runner.jobs.busy.get() => false,
            Some(_) => {
                self.runner.take().into_iter().for_each(Runner::keep);
                true
            }
            None => {
                self.runner = None;
                true
            }
        }
    }
}

/// Streams to be polled, and whom to wake for them.
#[derive(Default)]
struct Ready(Mutex<State>);

#[derive(Default)]
struct State {
    list: Vec<u32>,
    task: Option<Waker>,
    /// The task is being polled and looks at the list before it rests.
    attended: bool,
}

impl Ready {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Puts a place into the list of those to be polled, once.
struct Mark {
    number: u32,
    queued: AtomicBool,
    ready: Arc<Ready>,
}

impl Wake for Mark {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        if self.queued.swap(true, Ordering::AcqRel) {
            return;
        }
        let mut state = self.ready.state();
        state.list.push(self.number);
        // A list that was not empty has woken the task already.
        if !state.attended
            && state.list.len() == 1
            && let Some(task) = &state.task
        {
            task.wake_by_ref();
        }
    }
}

thread_local! {
    static FREE: RefCell<Vec<Runner>> = const { RefCell::new(Vec::new()) };
}

/// Serves one stream after the other.
struct Runner {
    jobs: Rc<Jobs>,
    future: Pin<Box<dyn Future<Output = ()>>>,
}

#[derive(Default)]
struct Jobs {
    next: Cell<Option<Job>>,
    busy: Cell<bool>,
}

impl Runner {
    fn lend(job: Job) -> Self {
        let runner = FREE.with_borrow_mut(Vec::pop).unwrap_or_else(Self::new);
        runner.jobs.busy.set(true);
        runner.jobs.next.set(Some(job));
        runner
    }

    fn new() -> Self {
        let jobs = Rc::new(Jobs::default());
        let future = Box::pin(Self::run(Rc::clone(&jobs)));
        Self { jobs, future }
    }

    async fn run(jobs: Rc<Jobs>) {
        loop {
            let job = poll_fn(|_| jobs.next.take().map_or(Poll::Pending, Poll::Ready)).await;
            stream(job).await;
            jobs.busy.set(false);
        }
    }

    fn keep(self) {
        FREE.with_borrow_mut(|free| {
            if free.len() < RUNNERS_KEPT {
                free.push(self);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thread_keeps_for_streams_stays_below_half_a_megabyte() {
        let size = size_of_val(&Runner::run(Rc::default()));
        assert!(size * RUNNERS_KEPT <= 512 * 1024, "{size} bytes each");
    }

    #[test]
    fn a_place_is_listed_once_and_wakes_the_task_unless_it_looks_anyway() {
        struct Count(std::sync::atomic::AtomicUsize);
        impl Wake for Count {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = Arc::new(Count(Default::default()));
        let woken = || count.0.load(Ordering::Relaxed);
        let waker = Waker::from(Arc::clone(&count));
        let cx = Context::from_waker(&waker);
        let mut streams = Streams::default();
        let places = [streams.place(), streams.place()];
        let wake = |streams: &Streams, place: usize| streams.places[places[place] as usize].waker.wake_by_ref();
        streams.attend(&cx);
        wake(&streams, 0);
        wake(&streams, 0);
        assert_eq!((woken(), streams.ready.state().list.len()), (0, 1));
        streams.rest(&cx);
        assert_eq!(woken(), 1, "somebody was ready and not polled");
        streams.ready.state().list.clear();
        wake(&streams, 0);
        assert_eq!(woken(), 1, "not polled since it was listed");
        wake(&streams, 1);
        assert_eq!(woken(), 2);
        streams.places[0].mark.queued.store(false, Ordering::Release);
        wake(&streams, 0);
        assert_eq!((woken(), streams.ready.state().list.len()), (2, 2), "the task knows already");
    }
}
