//! One direction's part in a conversation: what was said and is not answered, and the answers that wait to be used.
use std::collections::VecDeque;

use bytes::Bytes;
use lateen_proto::Struct;
use lateen_proto::envoy::service::ext_proc::v3::ProcessingResponse;

use super::message;
use crate::io::Timer;

/// What an answer counts for beside the bytes of a body in it.
const ANSWER: usize = 256;

/// One of the two ways of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Request,
    Response,
}

/// What a processor was asked about last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Headers,
    Body,
    Trailers,
}

/// A direction's part in the conversation.
#[derive(Default)]
pub(super) struct Side {
    /// The answer about the head is still to come.
    pub(super) head: bool,
    /// How many answers about pieces of the body are still to come; in full duplex whether any may.
    pub(super) pieces: usize,
    pub(super) trailers: bool,
    /// Of a body in full duplex something has been shown: the processor alone has that.
    pub(super) given: bool,
    /// The processor has put another body in its place, or nobody takes the body any more: what it says of the one that it was
    /// shown counts no more.
    pub(super) replaced: bool,
    /// Those that have come, in order.
    answers: VecDeque<Box<ProcessingResponse>>,
    /// How much these are.
    pub(super) held: usize,
    /// Goes with the first that is said.
    pub(super) attributes: Option<Box<Struct>>,
    pub(super) timer: Timer,
}

impl Side {
    pub(super) fn waits(&self) -> bool {
        self.head || self.pieces > 0 || self.trailers
    }

    /// Nothing more is to come.
    pub(super) fn settle(&mut self) {
        (self.head, self.pieces, self.trailers) = (false, 0, false);
        self.timer.set(None);
    }

    /// Nobody wants to know any more.
    pub(super) fn forget(&mut self) {
        self.settle();
        self.answers.clear();
        (self.held, self.given, self.replaced) = (0, false, true);
    }

    /// Keeps an answer until it is used.
    pub(super) fn keep(&mut self, answer: Box<ProcessingResponse>) {
        self.held += size(&answer);
        self.answers.push_back(answer);
    }

    /// The oldest answer that is kept.
    pub(super) fn take(&mut self) -> Option<Box<ProcessingResponse>> {
        let answer = self.answers.pop_front()?;
        self.held -= size(&answer);
        Some(answer)
    }

    /// Whether an answer about this part may come now.
    pub(super) fn expects(&self, part: Part, full_duplex: bool) -> bool {
        match part {
            Part::Headers => self.head,
            Part::Body => !self.head && self.pieces > 0,
            // What is left of the body in full duplex ends with them.
            Part::Trailers => !self.head && self.trailers && (full_duplex || self.pieces == 0),
        }
    }

    pub(super) fn answered(&mut self, part: Part, full_duplex: bool, answer: &ProcessingResponse) {
        match part {
            Part::Headers => {
                self.head = false;
                if message::replaces(answer) {
                    (self.pieces, self.trailers, self.given, self.replaced) = (0, false, false, true);
                }
            }
            Part::Body if full_duplex => self.pieces = usize::from(!message::streamed(answer).is_some_and(|s| s.end_of_stream)),
            Part::Body => self.pieces -= 1,
            Part::Trailers => (self.pieces, self.trailers) = (0, false),
        }
    }
}

fn size(answer: &ProcessingResponse) -> usize {
    ANSWER + message::body_of(answer).map_or(0, Bytes::len)
}
