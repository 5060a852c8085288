//! Connections that clients of one server share: so many streams on each, and fewer where the server takes no more.
use std::error::Error;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::Io;
use super::told::{Telling, too_late};

pub(super) const TAKES_NO_MORE: &str = "the server takes no new streams on this connection";

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Opening,
    /// The server takes so many streams on it at a time, if it said so.
    Open(Option<usize>),
    /// It could not be opened, or was lost; without a reason, nobody wanted it any longer before it was open.
    Over(Option<String>),
}

pub(super) struct Pool {
    /// Streams on one connection.
    most: usize,
    connections: Mutex<Vec<Weak<Connection>>>,
}

/// Is closed when no stream has it anymore.
struct Connection {
    channel: Channel,
    line: Arc<watch::Sender<Line>>,
}

impl Drop for Connection {
    /// Those who wait for it to open do not share its end: one of them opens another one.
    fn drop(&mut self) {
        over(&self.line, None);
    }
}

impl Pool {
    pub(super) fn new(most: usize) -> Self {
        Self { most: most.max(1), connections: Mutex::default() }
    }

    /// A place on a connection that has room, or on a new one, which `connect` makes. One that opens is waited for: beyond the
    /// server's limit a stream would wait for another one to end, which those of discovery do not.
    ///
    /// # Errors
    /// Why the connection that was waited for did not open.
    pub(super) async fn seat(&self, connect: impl Fn(Lifeline) -> Channel) -> Result<Seat, String> {
        loop {
            let mut opening = match self.find(&connect) {
                Found::Seat(seat) => return Ok(seat),
                Found::Opening(line) => line,
            };
            // Else it is open, or was given up and is not found again.
            if let Ok(Line::Over(Some(reason))) = opening.wait_for(|line| *line != Line::Opening).await.as_deref() {
                return Err(reason.clone());
            }
        }
    }

    fn find(&self, connect: impl Fn(Lifeline) -> Channel) -> Found {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.retain(|connection| connection.strong_count() > 0);
        for connection in connections.iter().filter_map(Weak::upgrade) {
            // With the one that was just made.
            let streams = Arc::strong_count(&connection) - 1;
            let has_room = match &*connection.line.borrow() {
                Line::Opening => return Found::Opening(connection.line.subscribe()),
                Line::Open(limit) => streams < limit.unwrap_or(self.most).clamp(1, self.most),
                Line::Over(_) => false,
            };
            if has_room {
                return Found::Seat(Seat { was_open: true, ..Seat::on(connection) });
            }
        }
        let line = Arc::new(watch::Sender::new(Line::Opening));
        let connection = Arc::new(Connection { channel: connect(Lifeline(line.clone())), line });
        connections.push(Arc::downgrade(&connection));
        Found::Seat(Seat::on(connection))
    }
}

/// Goes with a connection, and tells those who wait for it or would share it.
pub(super) struct Lifeline(Arc<watch::Sender<Line>>);

impl Lifeline {
    /// Another one of the same connection.
    pub(super) fn again(&self) -> Self {
        Self(Arc::clone(&self.0))
    }

    /// Whether the connection has yet to be opened, which is done once: who lost it finds another one, whose limit is known. One
    /// that the server takes no new streams on is over for these, while those that it has go on.
    pub(super) fn is_new(&self) -> bool {
        let is_new = *self.0.borrow() == Line::Opening;
        if !is_new {
            self.over(TAKES_NO_MORE);
        }
        is_new
    }

    /// Dials; both that and the server's first frame must be done within so long.
    pub(super) async fn open(self, within: Duration, dialing: impl Future<Output = io::Result<Box<dyn Io>>>) -> io::Result<Telling> {
        let until = Instant::now() + within;
        match timeout_at(until, dialing).await.unwrap_or_else(|_| Err(too_late("connection"))) {
            Ok(io) => Ok(Telling::new(io, self, until)),
            Err(error) => {
                self.over(&error.to_string());
                Err(error)
            }
        }
    }

    pub(super) fn is_open(&self, limit: Option<usize>) {
        self.0.send_replace(Line::Open(limit));
    }

    pub(super) fn over(&self, reason: &str) {
        over(&self.0, Some(reason));
    }
}

/// The first reason counts.
fn over(line: &watch::Sender<Line>, reason: Option<&str>) {
    line.send_if_modified(|line| {
        let is_news = !matches!(line, Line::Over(_));
        if is_news {
            *line = Line::Over(reason.map(str::to_owned));
        }
        is_news
    });
}

impl Drop for Lifeline {
    fn drop(&mut self) {
        self.over("the connection was lost");
    }
}

enum Found {
    Seat(Seat),
    Opening(watch::Receiver<Line>),
}

/// The place of one stream on a connection.
pub(super) struct Seat {
    channel: Channel,
    shared: Option<Arc<Connection>>,
    was_open: bool,
}

impl Seat {
    /// On a connection for it alone.
    pub(super) fn alone(channel: Channel) -> Self {
        Self { channel, shared: None, was_open: false }
    }

    fn on(connection: Arc<Connection>) -> Self {
        Self { channel: connection.channel.clone(), shared: Some(connection), was_open: false }
    }

    /// Whether a stream that failed so came too late for a connection that others have, of which each learns by itself.
    pub(super) fn came_late(&self, status: &Status) -> bool {
        let of_transport = status.source().is_some();
        let Some(connection) = self.shared.as_ref().filter(|_| self.was_open && of_transport) else { return false };
        // The library's word for a request that it has not sent: it finds the connection closed to new ones only by the first.
        if status.code() == Code::Cancelled {
            over(&connection.line, Some(TAKES_NO_MORE));
        }
        matches!(*connection.line.borrow(), Line::Over(_))
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}
