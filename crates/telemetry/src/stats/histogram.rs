//! Fixed-bucket histograms: Envoy's boundaries, and a finer grid inside them for better quantiles.

/// Upper bounds (inclusive) of a histogram's buckets, in raw units.
#[derive(Debug, PartialEq, Eq)]
pub struct Buckets {
    /// Ascending; values above the last fall into the overflow bucket.
    pub bounds: &'static [u64],
    /// How many raw units make one printed unit: 1000 for microseconds printed as milliseconds.
    pub scale: u64,
    /// Each `step`th bound is exposed to Prometheus; the others only sharpen quantiles.
    pub step: usize,
}

/// Envoy's default bounds, in thousandths of a printed unit (`histogram_bucket_settings` in stats.proto).
const ENVOY_MILLI: [u64; 19] = [
    500,
    1_000,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
    30_000_000,
    60_000_000,
    300_000_000,
    600_000_000,
    1_800_000_000,
    3_600_000_000,
];

/// Each of Envoy's buckets cut into this many equal parts.
const PARTS: usize = 4;
const FINE_MILLI: [u64; 19 * PARTS] = fine();

const fn fine() -> [u64; 19 * PARTS] {
    let mut out = [0; 19 * PARTS];
    let mut low = 0;
    let mut at = 0;
    while at < 19 {
        let high = ENVOY_MILLI[at];
        let mut part = 0;
        while part < PARTS {
            out[at * PARTS + part] = low + (high - low) * (part as u64 + 1) / PARTS as u64;
            part += 1;
        }
        low = high;
        at += 1;
    }
    out
}

/// Durations recorded in microseconds, printed in milliseconds, Envoy's default buckets.
pub static ENVOY_MS: Buckets = Buckets { bounds: &ENVOY_MILLI, scale: 1000, step: 1 };
/// As [`ENVOY_MS`] outside, four times finer inside.
pub static ENVOY_MS_FINE: Buckets = Buckets { bounds: &FINE_MILLI, scale: 1000, step: PARTS };
/// Sizes in whole bytes, with Envoy's default bounds; a count cannot lie between 0 and 0.5, so that bound is 0.
pub static ENVOY_BYTES: Buckets = Buckets {
    bounds: &[0, 1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 1_800_000, 3_600_000],
    scale: 1,
    step: 1,
};

/// The quantiles of Envoy's `/stats`, in percent.
pub(crate) const QUANTILES: [(&str, f64); 10] = [
    ("P0", 0.0),
    ("P25", 25.0),
    ("P50", 50.0),
    ("P75", 75.0),
    ("P90", 90.0),
    ("P95", 95.0),
    ("P99", 99.0),
    ("P99.5", 99.5),
    ("P99.9", 99.9),
    ("P100", 100.0),
];

impl Buckets {
    /// The bucket that `raw` falls into; `bounds.len()` is overflow.
    #[inline]
    pub fn index(&self, raw: u64) -> usize {
        self.bounds.partition_point(|bound| *bound < raw)
    }

    /// The label `le` of an exposed bound: `0.5`, `1`, `3600000`.
    pub(crate) fn le(&self, index: usize) -> String {
        // Envoy's first default bound is 0.5 for sizes too; a whole byte count below it is 0.
        match self.bounds.get(index) {
            Some(0) => "0.5".to_owned(),
            Some(bound) => trim(*bound as f64 / self.scale as f64),
            None => "+Inf".to_owned(),
        }
    }
}

/// Prints a number without a trailing `.0`.
pub(crate) fn trim(value: f64) -> String {
    format!("{value}")
}

/// A histogram summed over all shards.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistogramValue {
    pub buckets: &'static Buckets,
    /// One count per bound and one for overflow.
    pub counts: Vec<u64>,
    /// In raw units.
    pub sum: u64,
}

impl HistogramValue {
    pub fn empty(buckets: &'static Buckets) -> Self {
        Self { buckets, counts: vec![0; buckets.bounds.len() + 1], sum: 0 }
    }

    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Adds another histogram of the same buckets.
    pub fn merge(&mut self, other: &Self) {
        for (mine, theirs) in self.counts.iter_mut().zip(&other.counts) {
            *mine += theirs;
        }
        self.sum += other.sum;
    }

    /// What has been recorded since `earlier`, an older reading of the same histogram.
    pub fn since(&self, earlier: &Self) -> Self {
        let counts = self
            .counts
            .iter()
            .zip(earlier.counts.iter().chain(std::iter::repeat(&0)))
            .map(|(now, then)| now.saturating_sub(*then))
            .collect();
        Self { buckets: self.buckets, counts, sum: self.sum.saturating_sub(earlier.sum) }
    }

    /// The value below which `percent` of the recorded values lie, in printed units; `None` when empty.
    ///
    /// Linear inside a bucket, so the error is at most a bucket's width; the overflow bucket answers its lower bound.
    pub fn quantile(&self, percent: f64) -> Option<f64> {
        let total = self.count();
        if total == 0 {
            return None;
        }
        let rank = (percent / 100.0 * total as f64).clamp(0.0, total as f64);
        let mut below = 0.0;
        for (index, count) in self.counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            let count = *count as f64;
            if below + count >= rank {
                let low = if index == 0 { 0 } else { self.buckets.bounds[index - 1] } as f64;
                let high = self.buckets.bounds.get(index).map_or(low, |bound| *bound as f64);
                return Some((low + (high - low) * ((rank - below) / count)) / self.buckets.scale as f64);
            }
            below += count;
        }
        None
    }

    /// Pairs of exposed `le` label and cumulative count, ending with `+Inf`.
    pub fn cumulative(&self) -> Vec<(String, u64)> {
        let mut out = Vec::with_capacity(self.buckets.bounds.len() / self.buckets.step + 1);
        let mut below = 0;
        for (index, count) in self.counts.iter().enumerate() {
            below += count;
            if index == self.buckets.bounds.len() || (index + 1) % self.buckets.step == 0 {
                out.push((self.buckets.le(index), below));
            }
        }
        out
    }

    /// The buckets that hold something: lower bound and width in printed units, and the count.
    pub(crate) fn filled(&self) -> impl Iterator<Item = (f64, f64, u64)> {
        let scale = self.buckets.scale as f64;
        let bounds = self.buckets.bounds;
        self.counts.iter().enumerate().filter(|(_, count)| **count > 0).map(move |(index, count)| {
            let low = if index == 0 { 0 } else { bounds[index - 1] };
            let high = bounds.get(index).copied().unwrap_or(low);
            (low as f64 / scale, (high - low) as f64 / scale, *count)
        })
    }

    /// The sum in printed units.
    pub fn scaled_sum(&self) -> f64 {
        self.sum as f64 / self.buckets.scale as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(buckets: &'static Buckets, values: &[u64]) -> HistogramValue {
        let mut histogram = HistogramValue::empty(buckets);
        for value in values {
            histogram.counts[buckets.index(*value)] += 1;
            histogram.sum += value;
        }
        histogram
    }

    #[test]
    fn bounds_are_inclusive_and_exposed_as_envoys() {
        let histogram = with(&ENVOY_MS, &[500, 501, 1_000, 3_600_000_000, 3_600_000_001]);
        let cumulative = histogram.cumulative();
        assert_eq!(cumulative.len(), 20);
        assert_eq!(cumulative[0], ("0.5".to_owned(), 1));
        assert_eq!(cumulative[1], ("1".to_owned(), 3));
        assert_eq!(cumulative[18], ("3600000".to_owned(), 4));
        assert_eq!(cumulative[19], ("+Inf".to_owned(), 5));
    }

    #[test]
    fn the_fine_grid_exposes_the_same_bounds_with_the_same_counts() {
        let values: Vec<u64> = (0..2000).map(|i| i * i).collect();
        assert_eq!(with(&ENVOY_MS, &values).cumulative(), with(&ENVOY_MS_FINE, &values).cumulative());
    }

    #[test]
    fn quantiles_lie_in_the_bucket_of_the_true_value() {
        let values: Vec<u64> = (1..=10_000).collect();
        let histogram = with(&ENVOY_MS_FINE, &values);
        for percent in [25.0, 50.0, 90.0, 99.0] {
            let truth = percent / 100.0 * 10.0;
            let found = histogram.quantile(percent).unwrap();
            assert!((found - truth).abs() <= 1.3, "p{percent}: {found} against {truth}");
        }
        assert_eq!(HistogramValue::empty(&ENVOY_MS).quantile(50.0), None);
    }

    #[test]
    fn since_is_the_difference() {
        let mut now = with(&ENVOY_MS, &[700]);
        let then = now.clone();
        now.merge(&with(&ENVOY_MS, &[20_000]));
        assert_eq!(now.since(&then), with(&ENVOY_MS, &[20_000]));
    }

    #[test]
    fn sizes_use_the_same_labels() {
        let labels: Vec<String> = with(&ENVOY_BYTES, &[]).cumulative().into_iter().map(|(le, _)| le).collect();
        let times: Vec<String> = with(&ENVOY_MS, &[]).cumulative().into_iter().map(|(le, _)| le).collect();
        assert_eq!(labels, times);
    }
}
