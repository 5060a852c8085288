//! What was last sent, accepted and refused of one type on one stream: the data of `/debug/syncz`.
use std::collections::VecDeque;
use std::time::SystemTime;

use super::{Feedback, Names};
use crate::types::{CLUSTER, LISTENER, ROUTE};

/// Responses that may wait for an answer; older ones are given up and their answers count as stale.
const MAX_OUTSTANDING: usize = 64;
/// A client's error text is kept up to this length.
const MAX_MESSAGE: usize = 8 * 1024;

/// A response that was sent or accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sent {
    pub nonce: String,
    pub at: SystemTime,
}

/// A response that was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nacked {
    pub nonce: String,
    pub at: SystemTime,
    pub message: String,
}

/// One type on one stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeStatus {
    pub type_url: String,
    pub names: Names,
    /// Resources the client holds as far as the server knows.
    pub holds: usize,
    pub sent: Option<Sent>,
    pub acked: Option<Sent>,
    /// The last refusal; `None` again once a later response was accepted.
    pub nacked: Option<Nacked>,
}

/// Nonces of one type: handed out, waited for, answered.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    outstanding: VecDeque<String>,
    pub(super) sent: Option<Sent>,
    pub(super) acked: Option<Sent>,
    pub(super) nacked: Option<Nacked>,
}

impl Ledger {
    pub(super) fn sent(&mut self, nonce: &str, at: SystemTime) {
        if self.outstanding.len() == MAX_OUTSTANDING {
            self.outstanding.pop_front();
        }
        self.outstanding.push_back(nonce.to_owned());
        self.sent = Some(Sent { nonce: nonce.to_owned(), at });
    }

    /// Files an answer to `nonce`. One that answers a response also settles all earlier ones of the type.
    pub(super) fn answered(&mut self, nonce: String, error: Option<String>, at: SystemTime) -> Feedback {
        let Some(position) = self.outstanding.iter().position(|n| *n == nonce) else { return Feedback::Stale };
        self.outstanding.drain(..=position);
        match error {
            None => {
                self.acked = Some(Sent { nonce, at });
                self.nacked = None;
                Feedback::Ack
            }
            Some(message) => {
                let message: String = message.chars().take(MAX_MESSAGE).collect();
                self.nacked = Some(Nacked { nonce, at, message: message.clone() });
                Feedback::Nack { message }
            }
        }
    }

    /// The client wants nothing of this type any more, so neither what it refused.
    pub(super) fn forgive(&mut self) {
        self.nacked = None;
    }

    /// Whether everything sent was answered.
    pub(super) fn is_answered(&self) -> bool {
        self.outstanding.is_empty()
    }

    pub(super) fn last_nonce(&self) -> Option<&str> {
        self.sent.as_ref().map(|s| s.nonce.as_str())
    }

    pub(super) fn status(&self, type_url: &str, names: &Names, holds: usize) -> TypeStatus {
        TypeStatus {
            type_url: type_url.to_owned(),
            names: names.clone(),
            holds,
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            nacked: self.nacked.clone(),
        }
    }
}

/// Whether removed clusters may be taken from a client whose types have these ledgers: see [`super::Stream::flush`].
pub(super) fn may_remove<'a>(ledgers: impl Iterator<Item = (&'a str, &'a Ledger)>, force: bool) -> bool {
    ledgers.into_iter().all(|(type_url, ledger)| match type_url {
        LISTENER | ROUTE => ledger.nacked.is_none() && (force || ledger.is_answered()),
        CLUSTER => force || ledger.is_answered(),
        _ => true,
    })
}

/// Nonces of one stream. The prefix differs between streams, so an answer meant for another is recognised.
#[derive(Clone, Debug)]
pub(super) struct Nonces {
    prefix: u32,
    next: u64,
}

impl Nonces {
    pub(super) fn new() -> Self {
        Self { prefix: rand::random(), next: 0 }
    }

    pub(super) fn next(&mut self) -> String {
        self.next += 1;
        format!("{:08x}-{}", self.prefix, self.next)
    }
}
