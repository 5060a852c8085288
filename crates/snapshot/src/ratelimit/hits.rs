//! For how much a request counts.
use std::sync::Arc;

use super::TokenBucket;

/// Envoy's `HitsAddend`.
#[derive(Debug, Clone)]
pub struct HitsAddend {
    pub count: HitCount,
    pub negative: bool,
}

#[derive(Debug, Clone)]
pub enum HitCount {
    Number(u64),
    /// An operator of access logs that gives a number.
    Format(Arc<str>),
}

/// What one request comes to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Hits {
    /// One, unless something else is said.
    pub count: Option<u64>,
    /// They are given back.
    pub negative: bool,
}

impl Hits {
    /// Envoy's limit.
    pub const MOST: u64 = 1_000_000_000;

    /// From a number as a text, which may have decimals; they do not count.
    pub fn number(text: &str) -> Option<u64> {
        let number: f64 = text.parse().ok()?;
        (0.0..=Self::MOST as f64).contains(&number).then_some(number as u64)
    }

    /// Whether a bucket has enough for them.
    pub(super) fn take(self, bucket: &TokenBucket, now: u64) -> bool {
        let count = self.count.unwrap_or(1);
        if self.negative {
            bucket.give(count, now);
        }
        self.negative || bucket.take_some(count, now)
    }
}
