//! How long work that is ready waits for each worker: the length of its event loop's queue, in time.
//!
//! Each worker sets itself a timer again and again, and tells how late it came to it. What is ready at the same time waits as
//! long. Of an interval the shortest wait counts: it is zero again as soon as the queue was empty once, so a burst that is
//! worked off is no overload (the "good queue" of Nichols and Jacobson, "Controlling Queue Delay", 2012).
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use super::Overload;

/// The waits of all workers; written by them, read by the main thread.
#[derive(Debug)]
pub(crate) struct Queues {
    started: Instant,
    /// How often a worker looks.
    period: Duration,
    workers: Box<[Queue]>,
}

#[derive(Debug)]
struct Queue {
    /// When the worker looked last, in nanoseconds from `started`.
    looked: AtomicU64,
    /// The shortest wait since the main thread asked, in nanoseconds; [`NONE`] when the worker has not looked since.
    shortest: AtomicU64,
}

const NONE: u64 = u64::MAX;

/// Looks between two questions of the main thread: more tell little and wake a worker that could sleep.
const LOOKS: u32 = 4;

impl Queues {
    /// For so many workers, asked at intervals of `refresh`.
    pub(crate) fn new(workers: usize, refresh: Duration, now: Instant) -> Self {
        let queue = || Queue { looked: AtomicU64::new(0), shortest: AtomicU64::new(NONE) };
        Self {
            started: now,
            period: (refresh / LOOKS).clamp(Duration::from_millis(1), Duration::from_millis(25)),
            workers: std::iter::repeat_with(queue).take(workers).collect(),
        }
    }

    /// A worker came to its timer, so late.
    fn look(&self, worker: usize, late: Duration, now: Instant) {
        let Some(queue) = self.workers.get(worker) else { return };
        queue.shortest.fetch_min(nanos(late), Relaxed);
        queue.looked.store(nanos(now.saturating_duration_since(self.started)), Relaxed);
    }

    /// The wait at the worker where it is longest, and a new interval begins. A worker that has not looked for all of the
    /// interval is as late as it is by now.
    pub(crate) fn take(&self, now: Instant) -> Duration {
        let now = now.saturating_duration_since(self.started);
        let wait = |queue: &Queue| match queue.shortest.swap(NONE, Relaxed) {
            NONE => now.saturating_sub(Duration::from_nanos(queue.looked.load(Relaxed)) + self.period),
            shortest => Duration::from_nanos(shortest),
        };
        self.workers.iter().map(wait).max().unwrap_or_default()
    }
}

/// A worker's looks, as long as it runs.
pub(super) async fn watch(overload: Arc<Overload>, worker: usize) {
    let Some(queues) = overload.queues() else { return };
    loop {
        let due = tokio::time::Instant::now() + queues.period;
        tokio::time::sleep_until(due).await;
        let now = tokio::time::Instant::now();
        queues.look(worker, now.saturating_duration_since(due), now.into_std());
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(NONE - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn the_shortest_wait_of_an_interval_counts_at_the_worker_where_it_is_longest() {
        let start = Instant::now();
        let queues = Queues::new(2, 40 * MS, start);
        for (at, late) in [(12, 30), (22, 200), (32, 90)] {
            queues.look(0, late * MS, start + at * MS);
        }
        queues.look(1, 500 * MS, start + 20 * MS);
        queues.look(1, Duration::ZERO, start + 30 * MS);
        assert_eq!(queues.take(start + 40 * MS), 30 * MS);
        queues.look(0, 2 * MS, start + 50 * MS);
        queues.look(1, 7 * MS, start + 50 * MS);
        assert_eq!(queues.take(start + 80 * MS), 7 * MS, "what was before counts no more");
    }

    #[test]
    fn a_worker_that_does_not_come_to_look_is_as_late_as_it_is_by_now() {
        let start = Instant::now();
        let queues = Queues::new(1, 40 * MS, start);
        queues.look(0, Duration::ZERO, start + 10 * MS);
        assert_eq!(queues.take(start + 40 * MS), Duration::ZERO);
        assert_eq!(queues.take(start + 80 * MS), 60 * MS, "70 since the last look, 10 of which it had");
        assert_eq!(queues.take(start + 1000 * MS), 980 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_looks_a_few_times_an_interval() {
        let queues = Queues::new(1, 40 * MS, Instant::now());
        let overload = Overload::watching(Default::default(), queues);
        let task = tokio::spawn(watch(overload.clone(), 0));
        let queues = overload.queues().unwrap();
        tokio::time::sleep(MS).await;
        for _ in 0..LOOKS {
            tokio::time::sleep(10 * MS).await;
            assert!(queues.workers[0].shortest.swap(NONE, Relaxed) < nanos(2 * MS));
        }
        task.abort();
    }
}
