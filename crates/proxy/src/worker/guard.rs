//! Where a task ends: a panic in it takes down that task alone, is counted, and is told once for each place.
use std::cell::RefCell;
use std::collections::HashSet;
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::rc::Rc;
use std::sync::Once;

use futures_util::FutureExt;
use lateen_telemetry::envoy_names::server;

use super::Worker;

/// Places that are remembered as told; there are only so many in a program.
const MOST_PLACES: usize = 256;

thread_local! {
    /// Set on workers: where the last panic of this thread came from.
    static PLACE: RefCell<Option<String>> = const { RefCell::new(None) };
    static TOLD: RefCell<HashSet<String>> = RefCell::default();
}

/// Makes panics of workers silent where they happen: [`spawn`] tells them. Other threads keep their hook.
pub(super) fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            let ours = std::thread::current().name().is_some_and(|n| n.starts_with("worker-"));
            if !ours {
                return before(info);
            }
            let place = info.location().map(|l| format!("{}:{}", l.file(), l.line())).unwrap_or_default();
            PLACE.set(Some(format!("{place}: {}", message(info.payload()))));
        }));
    });
}

fn message(payload: &dyn std::any::Any) -> &str {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str)).unwrap_or("no message")
}

/// What the last panic of this thread said, with its place.
pub(super) fn last_words() -> String {
    PLACE.take().unwrap_or_else(|| "a panic that said nothing".to_owned())
}

/// Runs a task of this worker. What the task shared stays sound: every guard it held is dropped as it unwinds.
pub(crate) fn spawn(worker: &Rc<Worker>, task: impl Future<Output = ()> + 'static) -> tokio::task::JoinHandle<()> {
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(guarded(task, move || worker.panicked("a connection or stream was ended")))
}

/// Not an `async` block: that has room for the task twice, as what it was made with and as what it waits for.
fn guarded(task: impl Future<Output = ()>, panicked: impl FnOnce()) -> impl Future<Output = ()> {
    AssertUnwindSafe(task).catch_unwind().map(|end| {
        if end.is_err() {
            panicked();
        }
    })
}

/// Polls a part of a task; `None` when it panicked, which ends that part alone.
pub(crate) fn poll_guarded<T>(worker: &Worker, poll: impl FnOnce() -> T) -> Option<T> {
    panic::catch_unwind(AssertUnwindSafe(poll)).map_err(|_| worker.panicked("a connection or stream was ended")).ok()
}

impl Worker {
    /// Counts a panic, and tells each place once.
    pub(crate) fn panicked(&self, what: &str) {
        self.server.inc(server::PANICS);
        let words = last_words();
        TOLD.with_borrow_mut(|told| {
            if told.len() < MOST_PLACES && told.insert(words.clone()) {
                tracing::error!("{what} by a mistake of this program, please report it: {words}");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_is_guarded_in_hardly_more_room_than_it_needs_itself() {
        let told = std::cell::Cell::new(0);
        let panicked = || told.set(told.get() + 1);
        let task = |fails: bool| async move {
            let held = [0u8; 1000];
            tokio::task::yield_now().await;
            assert!(!fails, "injected {}", held.len());
        };
        let room = size_of_val(&guarded(task(false), panicked));
        assert!(room <= size_of_val(&task(false)) + 64, "{room} bytes");
        guarded(task(false), panicked).await;
        assert_eq!(told.get(), 0);
        guarded(task(true), panicked).await;
        assert_eq!(told.get(), 1);
    }
}
