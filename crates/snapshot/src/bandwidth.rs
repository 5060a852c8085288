//! Bandwidth limits: a rate of bytes that streams and workers share (Envoy `bandwidth_limit` filter).
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use http::HeaderName;

/// What is not used is kept for as long.
const MOST: u64 = 1_000_000_000;

/// Bytes that may go, at a rate; up to a second's worth is saved up.
#[derive(Debug)]
pub struct ByteBucket {
    /// Bytes a second.
    rate: u64,
    epoch: Instant,
    /// When, in nanoseconds since the epoch, there will be a second's worth again.
    full_at: AtomicU64,
}

impl ByteBucket {
    /// A full bucket of `rate` bytes a second.
    pub fn new(rate: u64) -> Self {
        Self { rate: rate.max(1), epoch: Instant::now(), full_at: AtomicU64::new(0) }
    }

    /// One that holds what comes within `saved`.
    pub fn holding(rate: u64, saved: Duration) -> Self {
        let missing = MOST.saturating_sub(u64::try_from(saved.as_nanos()).unwrap_or(u64::MAX));
        Self { full_at: AtomicU64::new(missing), ..Self::new(rate) }
    }

    /// Takes up to `wanted` bytes' worth, and says how much there was.
    pub fn take(&self, wanted: u64, now: Instant) -> u64 {
        let now = u64::try_from(now.saturating_duration_since(self.epoch).as_nanos()).unwrap_or(u64::MAX / 2);
        let worth = |nanos: u64| u64::try_from(u128::from(nanos) * u128::from(self.rate) / u128::from(MOST)).unwrap_or(u64::MAX);
        let price = |bytes: u64| u64::try_from((u128::from(bytes) * u128::from(MOST)).div_ceil(u128::from(self.rate))).unwrap_or(u64::MAX);
        let mut taken = 0;
        let _ = self.full_at.fetch_update(Relaxed, Relaxed, |full_at| {
            let full_at = full_at.max(now);
            taken = worth((now + MOST).saturating_sub(full_at)).min(wanted);
            (taken > 0).then(|| full_at.saturating_add(price(taken)))
        });
        taken
    }
}

/// The filter, or what a route says instead of it.
#[derive(Debug)]
pub struct BandwidthLimit {
    /// Statistics are under `<stat_prefix>.http_bandwidth_limit.`.
    pub stat_prefix: Arc<str>,
    /// `None` where nothing is limited.
    pub limit: Option<Limit>,
}

impl BandwidthLimit {
    /// The same limit of other streams.
    pub(crate) fn anew(&self) -> Self {
        let limit = self.limit.clone().map(|limit| Limit { bucket: Arc::new(ByteBucket::new(limit.bucket.rate)), ..limit });
        Self { stat_prefix: Arc::clone(&self.stat_prefix), limit }
    }
}

/// A limit in force.
#[derive(Clone, Debug)]
pub struct Limit {
    pub request: bool,
    pub response: bool,
    /// Both directions of all streams draw from it.
    pub bucket: Arc<ByteBucket>,
    /// How often a stream that waits looks again; Envoy's default is 50 ms.
    pub fill_interval: Duration,
    /// Tell the caller what the limit cost it.
    pub trailers: Option<Arc<DelayTrailers>>,
}

/// Names of trailers with times in milliseconds.
#[derive(Debug)]
pub struct DelayTrailers {
    pub request: HeaderName,
    pub request_filter: HeaderName,
    pub response: HeaderName,
    pub response_filter: HeaderName,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_gives_a_second_at_once_and_then_its_rate() {
        let bucket = ByteBucket::new(1000);
        let start = bucket.epoch;
        assert_eq!((bucket.take(600, start), bucket.take(600, start), bucket.take(1, start)), (600, 400, 0));
        assert_eq!(bucket.take(1000, start + Duration::from_millis(50)), 50);
        let later = start + Duration::from_secs(100);
        assert_eq!((bucket.take(5000, later), bucket.take(1, later)), (1000, 0));
    }

    #[test]
    fn a_bucket_may_begin_nearly_empty_and_a_large_rate_is_none_too_large() {
        let bucket = ByteBucket::holding(1000, Duration::from_millis(16));
        assert_eq!(bucket.take(1000, bucket.epoch), 16);
        let wide = ByteBucket::new(u64::MAX);
        assert_eq!(wide.take(1 << 40, wide.epoch), 1 << 40);
    }
}
