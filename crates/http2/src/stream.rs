//! One stream's state and the table of open streams.
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use crate::StreamId;

/// A stream that is open in at least one direction.
#[derive(Debug)]
pub(crate) struct Stream {
    /// What the peer allows us to send; negative after it shrank its initial window.
    pub(crate) send_window: i64,
    /// What we allow the peer to send.
    pub(crate) receive_window: i64,
    /// Handed to the shell and not yet released.
    pub(crate) outstanding: u32,
    /// Released and not yet announced.
    pub(crate) released: u32,
    pub(crate) receiving: bool,
    pub(crate) sending: bool,
    /// The request's head (server), or the final response's (client), has arrived.
    pub(crate) head_received: bool,
    /// [`crate::Connection::moment`] when a client opened it (server).
    pub(crate) born: u32,
    /// 1xx responses that have come (client).
    pub(crate) informational: u8,
    /// A final response's head was sent (server).
    pub(crate) answered: bool,
    /// Bytes that the windows did not let through; 0 when none wait.
    pub(crate) wanted: usize,
    /// Among those that wait for the connection's window.
    pub(crate) queued: bool,
    /// The part of the connection's window that is kept for this stream during [`Self::turn`].
    pub(crate) share: i64,
    pub(crate) turn: u64,
    /// Body bytes still due by `content-length`.
    pub(crate) length_left: Option<u64>,
    /// The response has no body whatever its `content-length` says.
    pub(crate) bodiless: bool,
}

impl Stream {
    pub(crate) fn new(send_window: u32, receive_window: u32) -> Self {
        Self {
            send_window: i64::from(send_window),
            receive_window: i64::from(receive_window),
            outstanding: 0,
            released: 0,
            receiving: true,
            sending: true,
            head_received: false,
            born: 0,
            informational: 0,
            answered: false,
            wanted: 0,
            queued: false,
            share: 0,
            turn: 0,
            length_left: None,
            bodiless: false,
        }
    }
}

/// Stream ids are consecutive odd numbers: a multiplication spreads them well enough.
#[derive(Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, _: &[u8]) {}
    fn write_u32(&mut self, id: u32) {
        self.0 = u64::from(id).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

pub(crate) type Streams = HashMap<StreamId, Stream, BuildHasherDefault<IdHasher>>;
