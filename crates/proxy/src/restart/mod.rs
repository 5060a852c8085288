//! Hot restart: a new process takes the place of an old one, and no caller notices.
//!
//! The old process (the parent) waits on a Unix domain socket named after its base id and epoch. The new one (the child, of
//! the next epoch) connects, is given duplicates of the listening sockets, and prepares itself without accepting anything:
//! until it is ready, it can die and nobody has lost a thing. Then it accepts, beside the parent and from the same queues,
//! and only after that tells the parent to leave, which finishes what it has and ends. Meanwhile the child asks for the
//! parent's figures, so that counters go on.
//!
//! Queues are the sockets', not the processes': a connection that waits in one is served by whoever still has the socket.
//! That is why sockets are handed over and not bound anew, and why a child with fewer workers takes all of them.
mod channel;
mod child;
mod inherited;
mod message;
mod parent;
mod place;

pub use place::{Bound, Place, SocketPath};

pub(crate) use child::{Child, take_over};
pub(crate) use inherited::Inherited;
pub(crate) use parent::Parent;

use std::time::{Duration, SystemTime};

use anyhow::Context;

/// What `/hot_restart_version` says: processes that say the same can follow one another.
pub fn version() -> String {
    format!("lateen.{}", message::VERSION)
}

/// How a process takes part in hot restarts.
#[derive(Debug)]
pub struct Options {
    /// Where this one waits for its successor.
    pub place: Place,
    /// That place, if it was taken already: [`Place::bind_any`].
    pub bound: Option<Bound>,
    /// After the hand-over, how long the old process may go on at most (Envoy `--parent-shutdown-time-s`).
    pub parent_shutdown: Duration,
    /// Start without a parent when there is none (Envoy `--skip-hot-restart-on-no-parent`).
    pub parent_optional: bool,
    /// Counters begin from zero (Envoy `--skip-hot-restart-parent-stats`).
    pub skip_figures: bool,
}

impl Options {
    /// Takes the place, before anything else is done: two processes of the same base id and epoch cannot both begin.
    pub(crate) fn bind(&mut self) -> anyhow::Result<Bound> {
        match self.bound.take() {
            Some(bound) => Ok(bound),
            None => self.place.bind().with_context(|| {
                format!(
                    "{} cannot be had; each proxy of a machine needs a --base-id of its own, and each restart the next --restart-epoch",
                    self.place
                )
            }),
        }
    }
}

/// Which in the row of processes this one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lineage {
    pub epoch: u64,
    /// How many processes there were, this one included (Envoy `server.hot_restart_generation`).
    pub generation: u64,
    /// When the first of them started.
    pub first_started: SystemTime,
}

impl Lineage {
    pub(crate) fn first(epoch: u64) -> Self {
        Self { epoch, generation: 1, first_started: SystemTime::now() }
    }
}
