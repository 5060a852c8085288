//! What a connection tells its shell.
use std::cell::RefCell;

use bytes::Bytes;
use http::{HeaderMap, Method, StatusCode};

use crate::StreamId;
use crate::frame::Reason;

/// Heads that a thread keeps for requests to come.
const SPARE: usize = 64;

/// The box is what is kept.
type Spare = Box<RequestHead>;

thread_local! {
    static FREE: RefCell<Vec<Spare>> = const { RefCell::new(Vec::new()) };
}

/// A request's head. `host`, `content-length` and `te` are not among the headers: other fields say what they said.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    pub method: Method,
    /// As sent, normally `http` or `https`; empty for plain CONNECT.
    pub scheme: Bytes,
    /// Visible ASCII or UTF-8 without spaces; empty when neither `:authority` nor `host` came.
    pub authority: Bytes,
    /// With query; empty for plain CONNECT.
    pub path: Bytes,
    /// The protocol of an extended CONNECT (RFC 8441).
    pub protocol: Option<Bytes>,
    pub headers: HeaderMap,
    /// The one number that all `content-length` fields agree on.
    pub length: Option<u64>,
    /// `te: trailers`.
    pub te_trailers: bool,
    /// `expect` is among the headers.
    pub expect: bool,
    /// What [`crate::Config::mark`] says of the names.
    pub marks: u8,
    /// Decoded size: names, values and 32 for each field.
    pub size: usize,
}

impl RequestHead {
    /// An empty one, of a request that is over if there is one.
    pub(crate) fn spare() -> Box<Self> {
        FREE.with_borrow_mut(Vec::pop).unwrap_or_default()
    }

    /// Takes what it holds and keeps the rest for another request.
    pub fn take(mut self: Box<Self>) -> Self {
        let head = std::mem::take(&mut *self);
        FREE.with_borrow_mut(|free| {
            if free.len() < SPARE {
                free.push(self);
            }
        });
        head
    }

    pub fn as_ref(&self) -> RequestRef<'_> {
        RequestRef {
            method: &self.method,
            scheme: &self.scheme,
            authority: &self.authority,
            path: &self.path,
            protocol: self.protocol.as_deref(),
            headers: &self.headers,
            more: &[],
        }
    }
}

/// A request's head on its way out, borrowed from wherever it lives.
#[derive(Clone, Copy, Debug)]
pub struct RequestRef<'a> {
    pub method: &'a Method,
    pub scheme: &'a [u8],
    pub authority: &'a [u8],
    /// With query; left out for plain CONNECT.
    pub path: &'a [u8],
    pub protocol: Option<&'a [u8]>,
    pub headers: &'a HeaderMap,
    /// Lower-case names and values to send after `headers`.
    pub more: &'a [(&'static str, &'a [u8])],
}

/// Something happened on a stream or on the connection.
#[derive(Debug)]
pub enum Event {
    /// A client opened a stream.
    Request { id: StreamId, head: Box<RequestHead>, end: bool },
    /// A request's headers were over the limit: answer 431 and reset the stream.
    HeadersTooLarge { id: StreamId, end: bool },
    /// The final response's head; its `content-length` is `length` and not among the headers.
    Response { id: StreamId, status: StatusCode, length: Option<u64>, headers: HeaderMap, end: bool, size: usize },
    /// A 1xx response; 101 does not exist in HTTP/2.
    Informational { id: StreamId, status: StatusCode, headers: HeaderMap },
    /// Part of a body. Its bytes count against the windows until [`crate::Connection::release`] is called.
    Data { id: StreamId, data: Bytes, end: bool },
    /// The fields after the body; the peer sends nothing more on the stream.
    Trailers { id: StreamId, headers: HeaderMap },
    /// The stream is gone, by the peer or because the peer broke a rule on it.
    Reset { id: StreamId, reason: Reason },
    /// A stream that had wanted to send more can.
    Capacity { id: StreamId },
    /// The peer takes no new streams after `last`; those beyond it were not processed and may be retried.
    GoAway { last: StreamId, reason: Reason },
    /// The peer's settings arrived or changed: [`crate::Connection::can_open`] may answer differently.
    Settings,
    /// The answer to [`crate::Connection::ping`].
    Pong,
}

/// The peer broke a rule of the connection: a GOAWAY is in the output; write it and close.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("HTTP/2 connection error {reason:?}: {text}")]
pub struct ConnectionError {
    pub reason: Reason,
    pub text: &'static str,
}

impl ConnectionError {
    pub(crate) fn protocol(text: &'static str) -> Self {
        Self { reason: Reason::PROTOCOL_ERROR, text }
    }

    pub(crate) fn calm(text: &'static str) -> Self {
        Self { reason: Reason::ENHANCE_YOUR_CALM, text }
    }
}
