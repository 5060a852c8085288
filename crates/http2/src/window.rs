//! Whose turn it is when the connection's window opens: streams that wait for it get it in the order they came, and no
//! more of them are told than it has room for.
//!
//! A stream that is told may have gone, or do nothing: what was kept for it goes to others with the next turn of the shell.
use std::collections::VecDeque;

use crate::StreamId;
use crate::connection::Connection;
use crate::event::Event;
use crate::stream::{Stream, Streams};

/// Streams that wait for the connection's window.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    order: VecDeque<StreamId>,
    /// Turns of the shell so far: shares of earlier ones are void.
    turn: u64,
    /// The sum of the shares of this turn.
    kept: i64,
}

impl Queue {
    /// How much of the connection's window the stream may use now.
    pub(crate) fn allowed(&self, window: i64, stream: &Stream) -> i64 {
        let share = self.share(stream);
        // Whoever was not told comes after those who wait.
        if share == 0 && !self.order.is_empty() { 0 } else { window - self.kept + share }
    }

    fn share(&self, stream: &Stream) -> i64 {
        if stream.turn == self.turn { stream.share } else { 0 }
    }

    /// The stream acted, or is gone: nothing is kept for it any more.
    pub(crate) fn settle(&mut self, stream: &mut Stream) {
        self.kept -= self.share(stream);
        stream.share = 0;
    }

    /// The stream could not send all: when its own window is open it waits for the connection's.
    pub(crate) fn wait(&mut self, id: StreamId, stream: &mut Stream, wanted: usize) {
        stream.wanted = wanted;
        if stream.send_window > 0 && !stream.queued {
            stream.queued = true;
            self.order.push_back(id);
        }
    }

    /// Forgets those that are gone, once they are more than those that are there.
    pub(crate) fn tidy(&mut self, streams: &Streams) {
        if self.order.len() > 16 + 2 * streams.len() {
            self.order.retain(|id| streams.get(id).is_some_and(|stream| stream.queued));
        }
    }
}

impl Connection {
    /// Call at the start of every turn: what streams did not use of what they were told of goes to those after them.
    pub fn next_turn(&mut self, events: &mut Vec<Event>) {
        self.waiting.turn += 1;
        self.waiting.kept = 0;
        self.share_window(events);
    }

    /// Whether the window has room while streams wait for it: then there must be another turn.
    pub fn owes_turn(&self) -> bool {
        self.send_window > 0 && !self.waiting.order.is_empty()
    }

    /// Tells streams that they may go on, as many as the window has room for.
    pub(crate) fn share_window(&mut self, events: &mut Vec<Event>) {
        while self.send_window > self.waiting.kept
            && let Some(id) = self.waiting.order.pop_front()
        {
            let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.queued) else { continue };
            stream.queued = false;
            // Its own window may have shrunk since.
            if stream.send_window <= 0 {
                continue;
            }
            let wanted = i64::try_from(stream.wanted).unwrap_or(i64::MAX).min(stream.send_window);
            let share = wanted.min(self.send_window - self.waiting.kept);
            (stream.share, stream.turn) = (share, self.waiting.turn);
            stream.wanted = 0;
            self.waiting.kept += share;
            events.push(Event::Capacity { id });
        }
    }

    /// The stream's own window has changed: if that is what it waited for, it waits for the connection's now.
    pub(crate) fn window_opened(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id).filter(|stream| stream.wanted > 0) else { return };
        let wanted = stream.wanted;
        self.waiting.wait(id, stream, wanted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_are_gone_are_not_kept_in_the_queue() {
        let (mut queue, mut streams) = (Queue::default(), Streams::default());
        for id in 0..10_000 {
            let mut stream = Stream::new(1, 1);
            queue.wait(id, &mut stream, 1);
            if id % 1000 == 0 {
                streams.insert(id, stream);
            }
            queue.tidy(&streams);
            assert!(queue.order.len() <= 16 + 2 * streams.len());
        }
        queue.order.retain(|id| streams.contains_key(id));
        assert_eq!(queue.order.len(), streams.len(), "those that are there stay");
    }
}
