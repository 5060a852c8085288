//! Active health checks of a cluster, compiled (Envoy health_check.proto).
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method};
use lateen_balance::health::Pace;

use crate::matcher::StringMatcher;
use crate::proxy_protocol::ProxyProtocol;

/// One check that every member of a cluster gets.
#[derive(Debug, Clone)]
pub struct HealthCheck {
    /// A check that takes longer has failed.
    pub timeout: Duration,
    pub pace: Pace,
    /// Another port than the endpoint's own.
    pub alt_port: Option<u16>,
    /// The transport socket of the check, by index, where it is not the endpoint's own.
    pub transport: Option<u32>,
    /// ALPN to offer instead of the transport socket's.
    pub alpn: Option<Vec<Vec<u8>>>,
    pub kind: HealthCheckKind,
    /// Where its events are written; nowhere when there is none.
    pub events: EventLog,
}

/// Files that tell how hosts come and go, one event a line.
#[derive(Debug, Clone, Default)]
pub struct EventLog {
    pub paths: Vec<Arc<str>>,
    /// Failures that change nothing are told as well.
    pub always_failures: bool,
    /// Likewise successes.
    pub always_successes: bool,
}

#[derive(Debug, Clone)]
pub enum HealthCheckKind {
    Http(HttpCheck),
    /// `grpc.health.v1.Health/Check` for this service; empty asks for the server as a whole.
    Grpc {
        service: Arc<str>,
        authority: Arc<str>,
        headers: Vec<CheckHeader>,
    },
    /// Sends a PROXY protocol header, where there is one, and these bytes, then waits until each of the blocks was seen, in this order; with none, to be connected is enough.
    Tcp {
        proxy: Option<ProxyProtocol>,
        send: Vec<u8>,
        receive: Vec<Vec<u8>>,
    },
}

#[derive(Debug, Clone)]
pub struct HttpCheck {
    pub host: Arc<str>,
    pub path: Arc<str>,
    pub method: Method,
    pub http2: bool,
    /// Statuses of a healthy host.
    pub expected: Vec<Range<u16>>,
    /// Statuses that count towards the threshold like no answer; any other takes the host out at once.
    pub retriable: Vec<Range<u16>>,
    pub add: Vec<CheckHeader>,
    pub remove: Vec<HeaderName>,
    /// The request's body.
    pub send: Bytes,
    /// What the body of a healthy host's answer has, in this order, within its first bytes, of which so many are looked at.
    pub receive: Vec<Vec<u8>>,
    pub receive_within: usize,
    /// What a healthy host calls the cluster that it belongs to.
    pub service: Option<StringMatcher>,
}

/// A header that checks carry.
#[derive(Debug, Clone)]
pub struct CheckHeader {
    pub name: HeaderName,
    pub value: HeaderValue,
    /// Beside others of the name instead of in their place.
    pub append: bool,
}

/// Looks for blocks in what arrives, in order and wherever they stand (Envoy's fuzzy match). Holds back no more
/// than the longest block needs.
#[derive(Debug)]
pub struct Expectation<'a> {
    left: &'a [Vec<u8>],
    tail: Vec<u8>,
}

impl<'a> Expectation<'a> {
    pub fn new(blocks: &'a [Vec<u8>]) -> Self {
        Self { left: blocks, tail: Vec::new() }
    }

    /// Whether everything was seen.
    pub fn is_met(&self) -> bool {
        self.left.is_empty()
    }

    /// Takes what arrived next; says whether everything was seen by now.
    pub fn push(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        while let Some((block, rest)) = self.left.split_first() {
            let Some(at) = self.tail.windows(block.len().max(1)).position(|window| window == block.as_slice()) else {
                let keep = self.tail.len().min(block.len().saturating_sub(1));
                self.tail.drain(..self.tail.len() - keep);
                break;
            };
            self.tail.drain(..at + block.len());
            self.left = rest;
        }
        self.is_met()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_found_in_order_wherever_they_are_cut() {
        let blocks = [b"+OK".to_vec(), b"ready".to_vec()];
        for cut in 0..12 {
            let stream = b"..+OK+ready.";
            let mut seen = Expectation::new(&blocks);
            seen.push(&stream[..cut]);
            assert!(seen.push(&stream[cut..]), "cut at {cut}");
        }
        assert!(!Expectation::new(&blocks).push(b"ready+OK"), "the order counts");
        assert!(!Expectation::new(&blocks).push(b"+OKread"));
        assert!(Expectation::new(&[]).is_met());
    }

    #[test]
    fn what_cannot_match_any_more_is_not_kept() {
        let blocks = [b"needle".to_vec()];
        let mut seen = Expectation::new(&blocks);
        for _ in 0..1000 {
            assert!(!seen.push(&[b'x'; 100]));
            assert!(seen.tail.len() < 6);
        }
    }
}
