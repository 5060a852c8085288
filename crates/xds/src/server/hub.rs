//! Who is connected, and what each of them has yet to be told.
//!
//! A client has no pending push or one: a later change is merged into it. So a slow client costs no
//! memory, and catches up with one push however much happened meanwhile.
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::{Notify, Semaphore, watch};
use tokio::time::Instant;

use super::TypeStatus;
use crate::client::Mode;

/// Which types a change can have touched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Types {
    All,
    Only(BTreeSet<&'static str>),
}

impl Types {
    pub fn contains(&self, type_url: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(types) => types.contains(type_url),
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Only(mine), Self::Only(theirs)) => mine.extend(theirs),
            (_, Self::All) => *self = Self::All,
            (Self::All, _) => {}
        }
    }
}

/// A change on its way to a client.
#[derive(Clone, Debug)]
pub struct Push<S> {
    pub snapshot: S,
    pub types: Types,
    /// When the oldest change in it happened.
    pub since: Instant,
}

impl<S> Push<S> {
    /// One push that stands for both.
    pub(crate) fn followed_by(self, later: Self) -> Self {
        let mut types = self.types;
        types.merge(later.types);
        Self { snapshot: later.snapshot, types, since: self.since.min(later.since) }
    }
}

/// One stream of one client.
pub struct Connection<P, S> {
    /// Counts up; unique in this process.
    pub id: u64,
    pub node_id: String,
    pub mode: Mode,
    pub since: SystemTime,
    pub proxy: Arc<P>,
    types: Mutex<BTreeMap<String, TypeStatus>>,
    pending: Mutex<Option<Push<S>>>,
    wake: Notify,
}

impl<P, S> Connection<P, S> {
    /// What it subscribed to, and what it made of what it was sent, by type URL.
    pub fn types(&self) -> Vec<TypeStatus> {
        lock(&self.types).values().cloned().collect()
    }

    pub(crate) fn set_status(&self, status: TypeStatus) {
        lock(&self.types).insert(status.type_url.clone(), status);
    }

    /// Waits for a push and takes it.
    pub(crate) async fn next_push(&self) -> Push<S> {
        loop {
            if let Some(push) = self.take() {
                return push;
            }
            self.wake.notified().await;
        }
    }

    pub(crate) fn take(&self) -> Option<Push<S>> {
        lock(&self.pending).take()
    }

    fn offer(&self, push: Push<S>) {
        let mut pending = lock(&self.pending);
        *pending = Some(match pending.take() {
            Some(waiting) => waiting.followed_by(push),
            None => push,
        });
        drop(pending);
        self.wake.notify_one();
    }
}

/// All streams, and the snapshot they are to be brought to.
pub struct Hub<P, S> {
    inner: Mutex<Inner<P, S>>,
    next_id: AtomicU64,
    /// Generating for many clients at once would starve everything else: this many at a time.
    pub(crate) permits: Semaphore,
    closed: watch::Sender<bool>,
}

struct Inner<P, S> {
    latest: Option<S>,
    connections: BTreeMap<u64, Arc<Connection<P, S>>>,
}

impl<P, S: Clone> Hub<P, S> {
    /// A hub without a snapshot: streams are taken in, but nobody is answered before the first
    /// [`Hub::publish`], so that a control plane that has not read its configuration yet does not
    /// tell anyone that the world is empty.
    pub fn new(concurrency: usize) -> Self {
        Self {
            inner: Mutex::new(Inner { latest: None, connections: BTreeMap::new() }),
            next_id: AtomicU64::new(1),
            permits: Semaphore::new(concurrency.max(1)),
            closed: watch::Sender::new(false),
        }
    }

    /// Ends every stream, now and later, with `UNAVAILABLE`. Without it a server that shuts down
    /// gracefully would wait for its streams for ever. Clients come back to whoever listens next.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    pub(crate) async fn closed(&self) {
        // Fails only when the sender is gone, and it lives as long as `self`.
        let _ = self.closed.subscribe().wait_for(|closed| *closed).await;
    }

    /// Makes `snapshot` the current one and tells everyone; `types` bounds what can have changed,
    /// `since` is when.
    pub fn publish(&self, snapshot: S, types: Types, since: Instant) {
        self.publish_with(snapshot, since, |_| types.clone());
    }

    /// As [`Hub::publish`], where the types that can have changed depend on the client.
    pub fn publish_with(&self, snapshot: S, since: Instant, types: impl Fn(&P) -> Types) {
        let mut inner = lock(&self.inner);
        // A client that waits for the first snapshot has nothing of any type.
        let is_first = inner.latest.is_none();
        inner.latest = Some(snapshot.clone());
        for connection in inner.connections.values() {
            let types = if is_first { Types::All } else { types(&connection.proxy) };
            connection.offer(Push { snapshot: snapshot.clone(), types, since });
        }
    }

    /// The snapshot published last.
    pub fn latest(&self) -> Option<S> {
        lock(&self.inner).latest.clone()
    }

    /// All streams, oldest first.
    pub fn connections(&self) -> Vec<Arc<Connection<P, S>>> {
        lock(&self.inner).connections.values().cloned().collect()
    }

    /// Enters a stream; the snapshot is what it starts from, `None` when there is none yet.
    pub(crate) fn register(&self, node_id: &str, mode: Mode, proxy: P) -> (Arc<Connection<P, S>>, Option<S>) {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let connection = Arc::new(Connection {
            id,
            node_id: node_id.to_owned(),
            mode,
            since: SystemTime::now(),
            proxy: Arc::new(proxy),
            types: Mutex::default(),
            pending: Mutex::new(None),
            wake: Notify::new(),
        });
        let mut inner = lock(&self.inner);
        inner.connections.insert(id, connection.clone());
        (connection, inner.latest.clone())
    }

    pub(crate) fn forget(&self, id: u64) {
        lock(&self.inner).connections.remove(&id);
    }
}

/// A panic while holding one of these locks leaves plain data behind; it is still good.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{CLUSTER, ENDPOINT};

    fn only(types: &[&'static str]) -> Types {
        Types::Only(types.iter().copied().collect())
    }

    #[tokio::test(start_paused = true)]
    async fn changes_merge_into_the_one_pending_push() {
        let hub = Hub::new(1);
        hub.publish(1, Types::All, Instant::now());
        let (connection, first) = hub.register("n", Mode::Delta, ());
        assert_eq!(first, Some(1));
        let since = Instant::now();
        hub.publish(2, only(&[ENDPOINT]), since);
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        hub.publish(3, only(&[CLUSTER]), Instant::now());
        let push = connection.next_push().await;
        assert_eq!((push.snapshot, push.types, push.since), (3, only(&[CLUSTER, ENDPOINT]), since));
        assert!(connection.take().is_none());
        hub.publish(4, only(&[ENDPOINT]), since);
        hub.publish(5, Types::All, since);
        hub.publish(6, only(&[ENDPOINT]), since);
        assert_eq!(connection.next_push().await.types, Types::All);
    }

    #[tokio::test]
    async fn whoever_comes_before_the_first_snapshot_gets_all_of_it() {
        let hub = Hub::new(1);
        let (connection, first) = hub.register("n", Mode::Delta, ());
        assert_eq!(first, None);
        hub.publish(1, only(&[ENDPOINT]), Instant::now());
        assert_eq!(connection.next_push().await.types, Types::All);
    }

    #[test]
    fn those_who_left_are_forgotten() {
        let hub: Hub<(), u8> = Hub::new(1);
        let (connection, _) = hub.register("n", Mode::Sotw, ());
        assert_eq!(hub.connections().len(), 1);
        hub.forget(connection.id);
        assert!(hub.connections().is_empty());
    }
}
