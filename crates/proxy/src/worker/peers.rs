//! Connections handed from the worker that accepted them to the one that has fewest.
use std::net::SocketAddr;
use std::sync::{Arc, PoisonError, RwLock};

use lateen_snapshot::Listener;
use lateen_snapshot::exact_balance::Place;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::mpsc::error::SendError;

use super::handle::Command;

/// The ends of all workers.
#[derive(Clone, Default)]
pub struct Peers(Arc<RwLock<Vec<Peer>>>);

struct Peer {
    index: usize,
    commands: UnboundedSender<Command>,
}

/// An accepted connection on its way.
pub(crate) struct Handed {
    pub(crate) listener: Arc<Listener>,
    pub(crate) stream: std::net::TcpStream,
    pub(crate) remote: SocketAddr,
    /// Counts the connection with the worker that is to have it.
    pub(crate) place: Place,
}

impl Peers {
    pub(super) fn add(&self, index: usize, commands: UnboundedSender<Command>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).push(Peer { index, commands });
    }

    /// Gives the connection back when there is nobody to take it.
    pub(crate) fn hand_over(&self, handed: Box<Handed>) -> Result<(), Box<Handed>> {
        let workers = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = workers.iter().find(|peer| peer.index == handed.place.worker()) else { return Err(handed) };
        match peer.commands.send(Command::Take(handed)) {
            Err(SendError(Command::Take(handed))) => Err(handed),
            _ => Ok(()),
        }
    }
}
