//! Connections that clients of one server share: so many streams on each, and fewer where the server takes no more.
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tonic::transport::Channel;

use super::Io;
use super::told::Telling;

/// What is known of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Line {
    Opening,
    /// The server takes so many streams on it at a time, if it said so.
    Open(Option<usize>),
    /// It could not be opened, or was lost.
    Over(String),
}

pub(super) struct Pool {
    /// Streams on one connection.
    most: usize,
    connections: Mutex<Vec<Weak<Connection>>>,
}

/// Is closed when no stream has it anymore.
struct Connection {
    channel: Channel,
    line: watch::Receiver<Line>,
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
            match opening.wait_for(|line| *line != Line::Opening).await.as_deref() {
                Ok(Line::Over(reason)) => return Err(reason.clone()),
                Ok(_) => {}
                Err(_) => return Err("the connection was given up".to_owned()),
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
                Line::Opening => return Found::Opening(connection.line.clone()),
                Line::Open(limit) => streams < limit.unwrap_or(self.most).clamp(1, self.most),
                Line::Over(_) => false,
            };
            if has_room {
                return Found::Seat(Seat::on(connection));
            }
        }
        let (tell, line) = watch::channel(Line::Opening);
        let connection = Arc::new(Connection { channel: connect(Lifeline(Arc::new(tell))), line });
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
            self.over("the server closed the connection");
        }
        is_new
    }

    pub(super) async fn open(self, dialing: impl Future<Output = io::Result<Box<dyn Io>>>) -> io::Result<Telling> {
        match dialing.await {
            Ok(io) => Ok(Telling::new(io, self)),
            Err(error) => {
                self.over(&error.to_string());
                Err(error)
            }
        }
    }

    pub(super) fn is_open(&self, limit: Option<usize>) {
        self.0.send_replace(Line::Open(limit));
    }

    fn over(&self, reason: &str) {
        self.0.send_if_modified(|line| {
            let is_news = !matches!(line, Line::Over(_));
            if is_news {
                *line = Line::Over(reason.to_owned());
            }
            is_news
        });
    }
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
    _shared: Option<Arc<Connection>>,
}

impl Seat {
    /// On a connection for it alone.
    pub(super) fn alone(channel: Channel) -> Self {
        Self { channel, _shared: None }
    }

    fn on(connection: Arc<Connection>) -> Self {
        Self { channel: connection.channel.clone(), _shared: Some(connection) }
    }

    pub(super) fn channel(&self) -> Channel {
        self.channel.clone()
    }
}
