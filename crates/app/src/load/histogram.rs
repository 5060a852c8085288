//! A log-linear histogram of microseconds: 1/64 relative error, fixed memory.

const SUB_BITS: u32 = 6;
const SUB: usize = 1 << SUB_BITS;
/// Values from 2^36 microseconds (19 hours) share the last bucket.
const OCTAVES: usize = 30;

/// Counts of durations.
#[derive(Clone, Debug)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    sum: u64,
    max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; SUB * (OCTAVES + 1)], total: 0, sum: 0, max: 0 }
    }
}

impl Histogram {
    pub fn record(&mut self, micros: u64) {
        let last = self.counts.len() - 1;
        self.counts[index(micros).min(last)] += 1;
        self.total += 1;
        self.sum = self.sum.saturating_add(micros);
        self.max = self.max.max(micros);
    }

    pub fn count(&self) -> u64 {
        self.total
    }

    /// The mean in microseconds.
    pub fn mean(&self) -> f64 {
        if self.total == 0 { 0.0 } else { self.sum as f64 / self.total as f64 }
    }

    pub fn max(&self) -> u64 {
        self.max
    }

    /// The value in microseconds that `percent` of all do not exceed.
    pub fn percentile(&self, percent: f64) -> u64 {
        let rank = ((percent / 100.0 * self.total as f64).ceil() as u64).max(1);
        let mut below = 0;
        for (at, count) in self.counts.iter().enumerate() {
            below += count;
            if below >= rank {
                return upper(at).min(self.max);
            }
        }
        self.max
    }

    /// What has been recorded since `earlier`, an older reading of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self.counts.iter().zip(&earlier.counts).map(|(now, then)| now.saturating_sub(*then)).collect();
        Self { counts, total: self.total - earlier.total, sum: self.sum.saturating_sub(earlier.sum), max: self.max }
    }
}

/// The first octave is linear; each later one has `SUB` buckets.
fn index(micros: u64) -> usize {
    if micros < SUB as u64 {
        return micros as usize;
    }
    let octave = micros.ilog2() - SUB_BITS;
    (octave as usize + 1) * SUB + (micros >> octave) as usize - SUB
}

/// The largest value of a bucket.
fn upper(index: usize) -> u64 {
    if index < SUB {
        return index as u64;
    }
    let octave = index / SUB - 1;
    (((index % SUB + SUB + 1) as u64) << octave) - 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percentiles_are_within_a_bucket_of_the_truth(mut values in prop::collection::vec(0u64..50_000_000, 1..400), percent in 1.0f64..100.0) {
            let mut histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let rank = ((percent / 100.0 * values.len() as f64).ceil() as usize).max(1);
            let truth = values[rank - 1];
            let found = histogram.percentile(percent);
            prop_assert!(found >= truth && found as f64 <= truth as f64 * (1.0 + 1.0 / 64.0) + 1.0, "{} against {}", found, truth);
        }

        #[test]
        fn every_value_lies_in_its_bucket(value in 0u64..1 << 36) {
            let at = index(value);
            prop_assert!(value <= upper(at));
            prop_assert!(at == 0 || value > upper(at - 1));
        }
    }

    #[test]
    fn the_longest_times_do_not_overflow() {
        let mut histogram = Histogram::default();
        histogram.record(u64::MAX);
        assert_eq!(histogram.percentile(50.0).max(1), histogram.percentile(50.0));
        assert_eq!(histogram.max(), u64::MAX);
    }
}
