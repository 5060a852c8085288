//! A source fed by another part of the same program: the runner tells which pods run and where.
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use super::{Source, State};

/// The end that gives. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Given {
    state: Arc<Mutex<Option<State>>>,
    changes: Arc<watch::Sender<u64>>,
}

/// The end the control plane reads.
#[derive(Debug)]
pub struct GivenSource {
    name: String,
    state: Arc<Mutex<Option<State>>>,
    changes: watch::Receiver<u64>,
}

impl Given {
    /// A source that is not ready until [`Given::set`] was called.
    pub fn new(name: impl Into<String>) -> (Self, GivenSource) {
        let state = Arc::new(Mutex::new(None));
        let (changes, receiver) = watch::channel(0);
        let source = GivenSource { name: name.into(), state: state.clone(), changes: receiver };
        (Self { state, changes: Arc::new(changes) }, source)
    }

    /// Replaces everything this source says.
    pub fn set(&self, state: State) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
        self.changes.send_modify(|n| *n += 1);
    }

    /// Changes what this source says in place; it starts out empty.
    pub fn modify(&self, change: impl FnOnce(&mut State)) {
        change(self.state.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default());
        self.changes.send_modify(|n| *n += 1);
    }
}

impl Source for GivenSource {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn changed(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async {
            if self.changes.changed().await.is_err() {
                // The giving end is gone: nothing will ever change.
                std::future::pending::<()>().await;
            }
        })
    }

    fn load(&mut self) -> Option<State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_is_not_ready_until_something_was_given() {
        let (given, mut source) = Given::new("runner");
        assert!(source.load().is_none());
        given.modify(|_| {});
        source.changed().await;
        assert!(source.load().is_some());
    }
}
