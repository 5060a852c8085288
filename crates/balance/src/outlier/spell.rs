//! How long a host stays out, or degraded: each time longer, and after quiet intervals shorter again.
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::config::OutlierSettings;

/// One kind of spell of one host. Times are milliseconds of the caller's clock.
#[derive(Debug, Default)]
pub(super) struct Spell {
    /// Meaningful while it lasts.
    began: AtomicU64,
    jitter: AtomicU64,
    /// Of the last one, plus one; 0 before there was any.
    ended: AtomicU64,
    /// Multiplies the base time: grows with each spell, shrinks with each quiet interval.
    backoff: AtomicU32,
}

impl Spell {
    pub(super) fn begin(&self, settings: &OutlierSettings, now: u64, roll: u32) {
        self.began.store(now, Relaxed);
        self.jitter.store(jitter(settings, roll), Relaxed);
        let (base, most) = (millis(settings.base_ejection_time), millis(settings.max_ejection_time));
        let backoff = self.backoff.load(Relaxed);
        // Further than this it would only take longer to come down again.
        if base.saturating_mul(u64::from(backoff)) < most.saturating_add(base) {
            self.backoff.store(backoff.saturating_add(1), Relaxed);
        }
    }

    pub(super) fn is_over(&self, settings: &OutlierSettings, now: u64) -> bool {
        let times = u64::from(self.backoff.load(Relaxed));
        let span = millis(settings.base_ejection_time).saturating_mul(times).min(millis(settings.max_ejection_time));
        span.saturating_add(self.jitter.load(Relaxed)) <= now.saturating_sub(self.began.load(Relaxed))
    }

    pub(super) fn end(&self, now: u64) {
        self.ended.store(now.saturating_add(1), Relaxed);
    }

    /// A whole interval has passed since the last one ended: the next will be shorter.
    pub(super) fn quieten(&self, settings: &OutlierSettings, now: u64) {
        let ended = self.ended.load(Relaxed);
        if ended > 0 && now.saturating_add(1).saturating_sub(ended) >= millis(settings.interval) {
            let _ = self.backoff.fetch_update(Relaxed, Relaxed, |b| b.checked_sub(1));
        }
    }

    pub(super) fn forget(&self) {
        self.backoff.store(0, Relaxed);
        self.ended.store(0, Relaxed);
    }
}

fn jitter(settings: &OutlierSettings, roll: u32) -> u64 {
    let most = millis(settings.max_ejection_time_jitter);
    // The roll has decided about the ejection already: its low part is not random any more.
    let stirred = u64::from(roll).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16;
    stirred % most.saturating_add(1)
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX - 1)
}
