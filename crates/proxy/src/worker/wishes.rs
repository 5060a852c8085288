//! Clusters that requests wait for: workers ask, and the main thread subscribes to them and answers.
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

/// Questions that the main thread has not looked at yet.
const UNREAD: usize = 1024;

/// A request waits for this cluster.
#[derive(Debug)]
pub struct Wish {
    pub cluster: Arc<str>,
    /// Gets the version of the first snapshot that has it; is dropped when there is no such cluster.
    pub answer: oneshot::Sender<u64>,
}

/// A worker's end. The default one is never answered.
#[derive(Clone, Debug, Default)]
pub struct Wishes(Option<mpsc::Sender<Wish>>);

impl Wishes {
    /// With the end of the main thread.
    pub fn channel() -> (Self, mpsc::Receiver<Wish>) {
        let (sender, receiver) = mpsc::channel(UNREAD);
        (Self(Some(sender)), receiver)
    }

    /// `None` when nobody listens, or too many ask at once.
    pub(crate) fn ask(&self, cluster: &str) -> Option<oneshot::Receiver<u64>> {
        let (answer, receiver) = oneshot::channel();
        self.0.as_ref()?.try_send(Wish { cluster: cluster.into(), answer }).ok()?;
        Some(receiver)
    }
}
