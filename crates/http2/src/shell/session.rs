//! What driver and handles share: the state machine, and per stream what has arrived and who waits.
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::BuildHasherDefault;
use std::rc::Rc;
use std::task::Waker;

use bytes::Bytes;
use http::HeaderMap;

use crate::event::{Event, RequestHead};
use crate::frame::Reason;
use crate::shell::stream::{Piece, ResponseHead};
use crate::stream::IdHasher;
use crate::{Connection, StreamId};

/// While this much waits to be written, handles are told to wait before they send more.
pub(super) const SEND_HIGH: usize = 256 * 1024;

/// Why a stream ended before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// The connection ended or broke.
    Closed,
    /// The peer reset the stream, or broke a rule on it.
    Reset(Reason),
    /// The peer did nothing with the stream: repeating the request is safe.
    Refused,
}

/// What has arrived of a body and was not taken. Most bodies come in one piece, which needs no queue.
#[derive(Default)]
pub(super) struct Body {
    first: Bytes,
    more: VecDeque<Bytes>,
    trailers: Option<Box<HeaderMap>>,
}

impl Body {
    fn push(&mut self, data: Bytes) {
        if self.first.is_empty() { self.first = data } else { self.more.push_back(data) }
    }

    pub(super) fn pop(&mut self) -> Option<Piece> {
        if self.first.is_empty() {
            return self.trailers.take().map(Piece::Trailers);
        }
        let next = self.more.pop_front().unwrap_or_default();
        Some(Piece::Data(std::mem::replace(&mut self.first, next)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.first.is_empty() && self.trailers.is_none()
    }
}

/// State of one stream on its way to the handle.
#[derive(Default)]
pub(super) struct Slot {
    pub(super) response: Option<ResponseHead>,
    pub(super) informational: VecDeque<ResponseHead>,
    pub(super) body: Body,
    /// The peer sends nothing more.
    pub(super) ended: bool,
    pub(super) failure: Option<Failure>,
    pub(super) read_waker: Option<Waker>,
    pub(super) write_waker: Option<Waker>,
    pub(super) gone_waker: Option<Waker>,
    /// Is among [`Inner::stalled`].
    pub(super) stalled: bool,
}

impl Slot {
    fn wake_reader(&mut self) {
        if let Some(waker) = self.read_waker.take() {
            waker.wake();
        }
    }

    fn fail(&mut self, failure: Failure) {
        self.failure.get_or_insert(failure);
        for waker in [self.read_waker.take(), self.write_waker.take(), self.gone_waker.take()].into_iter().flatten() {
            waker.wake();
        }
    }
}

pub(super) struct Inner {
    pub(super) connection: Connection,
    pub(super) slots: HashMap<StreamId, Slot, BuildHasherDefault<IdHasher>>,
    /// Requests that the shell has not accepted yet.
    pub(super) incoming: VecDeque<(StreamId, Option<Box<RequestHead>>, bool)>,
    pub(super) driver: Option<Waker>,
    /// The driver was woken and has not run since: waking it again is for nothing.
    pub(super) driver_woken: bool,
    /// Those waiting to open a stream, or for the connection's end.
    pub(super) waiting: Vec<Waker>,
    /// Streams that stopped sending because too much waited to be written.
    pub(super) stalled: Vec<StreamId>,
    pub(super) closed: bool,
    pub(super) pongs: u64,
    /// Reads that brought something.
    pub(super) heard: u64,
}

/// A shared handle on a connection.
#[derive(Clone)]
pub(super) struct Session(pub(super) Rc<RefCell<Inner>>);

impl Session {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            connection,
            slots: HashMap::default(),
            incoming: VecDeque::new(),
            driver: None,
            driver_woken: false,
            waiting: Vec::new(),
            stalled: Vec::new(),
            closed: false,
            pongs: 0,
            heard: 0,
        })))
    }
}

impl Inner {
    /// Something is to be written: the driver runs once more this turn.
    pub(super) fn wake_driver(&mut self) {
        if !self.driver_woken
            && let Some(driver) = &self.driver
        {
            self.driver_woken = true;
            driver.wake_by_ref();
        }
    }

    /// Sorts what happened to where it is waited for.
    pub(super) fn dispatch(&mut self, events: &mut Vec<Event>) {
        for event in events.drain(..) {
            match event {
                Event::Request { id, head, end } => {
                    self.slots.insert(id, Slot { ended: end, ..Slot::default() });
                    self.incoming.push_back((id, Some(head), end));
                }
                Event::HeadersTooLarge { id, end } => {
                    self.slots.insert(id, Slot { ended: end, ..Slot::default() });
                    self.incoming.push_back((id, None, end));
                }
                Event::Response { id, status, length, headers, end, size } => {
                    let Some(slot) = self.slots.get_mut(&id) else { continue };
                    slot.response = Some(ResponseHead { status, length, headers, end, size });
                    slot.ended |= end;
                    slot.wake_reader();
                }
                Event::Informational { id, status, headers } => {
                    let Some(slot) = self.slots.get_mut(&id) else { continue };
                    // Bounded: the state machine ends a stream that has many.
                    let head = ResponseHead { status, length: None, headers, end: false, size: 0 };
                    slot.informational.push_back(head);
                    slot.wake_reader();
                }
                Event::Data { id, data, end } => {
                    let Some(slot) = self.slots.get_mut(&id) else {
                        self.connection.release(id, data.len());
                        continue;
                    };
                    slot.ended |= end;
                    if data.is_empty() {
                        self.connection.release(id, 0);
                    } else {
                        slot.body.push(data);
                    }
                    slot.wake_reader();
                }
                Event::Trailers { id, headers } => {
                    let Some(slot) = self.slots.get_mut(&id) else { continue };
                    slot.body.trailers = Some(Box::new(headers));
                    slot.ended = true;
                    slot.wake_reader();
                }
                Event::Reset { id, reason } => {
                    let failure = if reason == Reason::REFUSED_STREAM { Failure::Refused } else { Failure::Reset(reason) };
                    if let Some(slot) = self.slots.get_mut(&id) {
                        slot.fail(failure);
                    }
                }
                Event::Capacity { id } => {
                    if let Some(waker) = self.slots.get_mut(&id).and_then(|s| s.write_waker.take()) {
                        waker.wake();
                    }
                }
                Event::Settings | Event::GoAway { .. } => self.wake_waiting(),
                Event::Pong => self.pongs += 1,
            }
        }
    }

    pub(super) fn wake_stalled(&mut self) {
        if self.connection.output().len() >= SEND_HIGH {
            return;
        }
        for id in std::mem::take(&mut self.stalled) {
            let Some(slot) = self.slots.get_mut(&id) else { continue };
            slot.stalled = false;
            if let Some(waker) = slot.write_waker.take() {
                waker.wake();
            }
        }
    }

    /// Wakes whoever asks when a stream may be opened, or the connection ended.
    pub(super) fn wait(&mut self, waker: &Waker) {
        if !self.waiting.iter().any(|waiting| waiting.will_wake(waker)) {
            self.waiting.push(waker.clone());
        }
    }

    pub(super) fn wake_waiting(&mut self) {
        self.waiting.drain(..).for_each(Waker::wake);
    }

    /// The connection is over: every stream fails that is not complete.
    pub(super) fn close(&mut self) {
        self.closed = true;
        for slot in self.slots.values_mut() {
            slot.fail(Failure::Closed);
        }
        self.wake_waiting();
    }
}
