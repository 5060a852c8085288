//! The client of a discovery service: what a proxy runs to receive its configuration.
//!
//! [`ClientState`] is the protocol without sockets; [`Client`] connects it to a stream and keeps it
//! connected. What arrives goes to a [`Handler`]; what the handler finds it needs next (the routes a
//! listener names, the endpoints a cluster names) it asks for through [`Subscriptions`].
mod connect;
mod nack;
mod pool;
mod shell;
mod state;
mod told;
mod ttl;
mod wrapped;

pub use connect::{Connector, Io};
pub use shell::{Client, ConnectionEvent, Options, Service, TokenSource};
pub use state::{ClientState, Mode, Request, Response};

use crate::resource::Resource;
use tokio::sync::mpsc;

/// Receives resources as they arrive. Runs between two messages of the stream: it must not block.
pub trait Handler {
    /// Takes `updates` in use and forgets `removed`; returns what could not be taken in use and why.
    ///
    /// A rejected resource is reported to the server by name; the others of the same response stay
    /// applied, and the version of a rejected one is not remembered, so that the server sends it
    /// again after a reconnect. `removed` also names subscribed resources that the server says do
    /// not exist, and those whose time to live is over. Call [`Subscriptions`] from here freely.
    fn apply(&mut self, type_url: &str, updates: Vec<Resource>, removed: Vec<String>) -> Vec<Rejected>;

    /// Resources that could not even be handed over, of another type for example. Who waits for the first word of them has it.
    fn refused(&mut self, _type_url: &str, _names: &[String]) {}

    /// The stream came up or went down. What was applied stays valid in both cases.
    fn connection(&mut self, _event: ConnectionEvent) {}
}

/// A resource that could not be taken in use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    pub name: String,
    /// For the operator who reads the control plane's log: which field, and what is wrong with it.
    pub reason: String,
}

/// Changes what the client is subscribed to; cheap to clone, usable from any thread.
#[derive(Clone, Debug)]
pub struct Subscriptions {
    commands: mpsc::UnboundedSender<Command>,
}

/// A wish about subscriptions. A client drains these also while it is not connected, so their number
/// is bounded by what the caller does between two turns of the client's task.
#[derive(Clone, Debug)]
pub(crate) enum Command {
    Wildcard { type_url: String },
    NoWildcard { type_url: String },
    Subscribe { type_url: String, names: Vec<String> },
    Unsubscribe { type_url: String, names: Vec<String> },
    Set { type_url: String, names: Vec<String> },
}

impl Subscriptions {
    /// Subscribes to every resource of the type.
    pub fn wildcard(&self, type_url: &str) {
        self.send(Command::Wildcard { type_url: type_url.to_owned() });
    }

    /// Takes that back, on an incremental stream; the handler must forget by itself what it did not name.
    pub fn no_wildcard(&self, type_url: &str) {
        self.send(Command::NoWildcard { type_url: type_url.to_owned() });
    }

    /// Adds names. One that is subscribed already is asked for again, and the server sends it again.
    pub fn subscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Subscribe { type_url: type_url.to_owned(), names: names.into_iter().collect() });
    }

    /// Takes names away; the handler must forget those resources by itself.
    pub fn unsubscribe(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Unsubscribe { type_url: type_url.to_owned(), names: names.into_iter().collect() });
    }

    /// Makes the subscription exactly these names; those subscribed already are not asked for again.
    pub fn set(&self, type_url: &str, names: impl IntoIterator<Item = String>) {
        self.send(Command::Set { type_url: type_url.to_owned(), names: names.into_iter().collect() });
    }

    fn send(&self, command: Command) {
        // Fails only when the client was dropped, and then nobody waits for resources.
        let _ = self.commands.send(command);
    }
}

impl Command {
    fn obey(self, state: &mut ClientState) {
        match self {
            Self::Wildcard { type_url } => state.subscribe_wildcard(&type_url),
            Self::NoWildcard { type_url } => state.unsubscribe_wildcard(&type_url),
            Self::Subscribe { type_url, names } => state.subscribe(&type_url, names),
            Self::Unsubscribe { type_url, names } => state.unsubscribe(&type_url, &names),
            Self::Set { type_url, names } => state.set(&type_url, names),
        }
    }
}
