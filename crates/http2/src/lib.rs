//! HTTP/2 connections as state machines: bytes and calls in, events and bytes out. No clock; sockets only
//! in [`shell`], which drives a connection over any byte stream on one thread.
//!
//! On the path of a request this stands between a connection's bytes and the proxy's messages, on both
//! sides. A shell reads into a buffer, hands it to [`Connection::receive`], acts on the [`Event`]s and
//! writes [`Connection::output`] once per turn of its event loop, however many streams had something to say.
//!
//! Frames, HPACK and flow control follow RFC 9113 and RFC 7541; limits on what a peer may provoke follow
//! Envoy's (protocol.proto, `Http2ProtocolOptions`).
mod connection;
mod event;
mod flood;
mod frame;
mod hpack;
mod names;
mod output;
mod receive;
pub mod shell;
mod stream;
mod window;

pub use connection::{Config, Connection, Refused, Role};
pub use event::{ConnectionError, Event, RequestHead, RequestRef};
pub use frame::Reason;
pub use names::known as known_name;
pub use output::Output;

/// What an HTTP/2 client sends before its first frame; a listener may look for it.
pub const PREFACE: &[u8] = frame::PREFACE;

/// A stream's number; odd for requests.
pub type StreamId = u32;
