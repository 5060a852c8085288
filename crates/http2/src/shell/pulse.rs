//! Whether the peer still lives: what it said last, and questions that it has to answer.
use super::session::Session;

/// A view of a connection's signs of life.
pub struct Pulse(pub(super) Session);

impl Pulse {
    /// Asks the peer for a sign of life; [`Self::pongs`] counts the answers.
    pub fn ping(&self) {
        let mut inner = self.0.0.borrow_mut();
        if !inner.closed {
            inner.connection.ping();
            inner.wake_driver();
        }
    }

    pub fn pongs(&self) -> u64 {
        self.0.0.borrow().pongs
    }

    /// Grows with whatever the peer sends.
    pub fn heard(&self) -> u64 {
        self.0.0.borrow().heard
    }
}
