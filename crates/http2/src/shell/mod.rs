//! Connections over a byte stream, for one thread: a driver that reads and writes, and a handle per stream.
//!
//! Handles and driver share the state machine without locks. Whatever handles send during a turn of the
//! event loop is written by the driver at once, in one write.
mod client;
mod driver;
mod pulse;
mod server;
mod session;
mod stream;

pub use client::{Driver, Sender, connect};
pub use pulse::Pulse;
pub use server::{Accepted, Server};
pub use session::Failure;
pub use stream::{Piece, ResponseHead, Stream};
