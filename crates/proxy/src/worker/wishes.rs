//! What requests wait for: workers ask, and the main thread subscribes to them and answers.
use std::future::Future;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

/// Questions that the main thread has not looked at yet.
const UNREAD: usize = 1024;

use lateen_snapshot::compile::Wish;

use super::Worker;

/// A request waits.
#[derive(Debug)]
pub struct Asked {
    pub wish: Wish,
    /// Gets the version of the first snapshot that has it; is dropped when there is no such thing.
    pub answer: oneshot::Sender<u64>,
}

/// A worker's end. The default one is never answered.
#[derive(Clone, Debug, Default)]
pub struct Wishes(Option<mpsc::Sender<Asked>>);

impl Wishes {
    /// With the end of the main thread.
    pub fn channel() -> (Self, mpsc::Receiver<Asked>) {
        let (sender, receiver) = mpsc::channel(UNREAD);
        (Self(Some(sender)), receiver)
    }

    /// `None` when nobody listens, or too many ask at once.
    pub(crate) fn ask(&self, wish: Wish) -> Option<oneshot::Receiver<u64>> {
        let (answer, receiver) = oneshot::channel();
        self.0.as_ref()?.try_send(Asked { wish, answer }).ok()?;
        Some(receiver)
    }
}

/// How the wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Discovered {
    /// This worker has it.
    There,
    /// There is none, or too many ask for one.
    Missing,
    /// The time is over.
    Late,
}

impl Worker {
    /// Asks for what is not there, and waits until it is, but not longer than this.
    pub(crate) fn discover(&self, wish: Wish, limit: Duration) -> impl Future<Output = Discovered> + use<> {
        let (answer, mut applied) = (self.wishes.ask(wish), self.applied());
        async move {
            let Some(answer) = answer else { return Discovered::Missing };
            let there = async {
                let Ok(version) = answer.await else { return Discovered::Missing };
                match applied.wait_for(|now| *now >= version).await {
                    Ok(_) => Discovered::There,
                    Err(_) => Discovered::Missing,
                }
            };
            tokio::time::timeout(limit, there).await.unwrap_or(Discovered::Late)
        }
    }
}
