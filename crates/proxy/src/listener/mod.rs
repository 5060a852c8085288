//! Where connections come in: sockets, inspection of first bytes, choice of the filter chain.
mod accept;
mod chain;
mod connection;
mod hello;
mod inspect;
mod manager;
pub(crate) mod proxy_header;
mod socket;
#[cfg(feature = "fuzzing")]
pub(crate) mod verdict;

pub(crate) use accept::take;
pub(crate) use chain::{ChainState, ListenerState, TerminalState};
pub(crate) use connection::{Conn, TlsInfo};
pub(crate) use manager::Manager;
pub(crate) use socket::{apply, set_option};
