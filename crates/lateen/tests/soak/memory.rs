//! Whether a process grows.
use std::fmt;
use std::time::Duration;

use anyhow::{Context as _, ensure};

const MEGABYTE: u64 = 1 << 20;
/// What the last third may need more than the first third after warming up, in percent and bytes.
const MORE_PERCENT: u64 = 20;
const MORE_BYTES: u64 = 8 * MEGABYTE;
/// Connections come and go; descriptors that leak do so with every change.
const MORE_DESCRIPTORS: usize = 100;

#[derive(Clone, Copy)]
struct Sample {
    at: Duration,
    resident: u64,
    descriptors: usize,
}

/// Samples over time. For a proxy that is replaced they go from process to process, each of which must be like the first.
pub(crate) struct Curve {
    length: Duration,
    samples: Vec<Sample>,
}

impl Curve {
    pub(crate) fn new(length: Duration) -> Self {
        Self { length, samples: Vec::new() }
    }

    pub(crate) fn sample(&mut self, at: Duration, pid: u32) -> anyhow::Result<()> {
        let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).with_context(|| format!("process {pid}"))?;
        let pages: u64 = statm.split_whitespace().nth(1).and_then(|n| n.parse().ok()).context("statm")?;
        let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        self.samples.push(Sample { at, resident: pages * 4096, descriptors });
        Ok(())
    }

    /// The largest values of a part of the time.
    fn most(&self, from: u32, to: u32) -> (u64, usize) {
        let part = self.samples.iter().filter(|s| s.at >= self.length * from / 100 && s.at <= self.length * to / 100);
        part.fold((0, 0), |(resident, descriptors), s| (resident.max(s.resident), descriptors.max(s.descriptors)))
    }

    pub(crate) fn is_flat(&self) -> anyhow::Result<()> {
        let ((early, early_descriptors), (late, late_descriptors)) = (self.most(10, 40), self.most(70, 200));
        ensure!(early > 0 && late > 0, "too few samples");
        let bound = early + early * MORE_PERCENT / 100 + MORE_BYTES;
        ensure!(late <= bound, "memory grew from {} to {} MiB", early / MEGABYTE, late / MEGABYTE);
        ensure!(
            late_descriptors <= early_descriptors + MORE_DESCRIPTORS,
            "descriptors grew from {early_descriptors} to {late_descriptors}"
        );
        Ok(())
    }
}

impl fmt::Display for Curve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let tenth = |n: u32| self.most(n * 10, n * 10 + 10).0 as f64 / MEGABYTE as f64;
        let tenths: Vec<String> = (0..10).map(|n| format!("{:.1}", tenth(n))).collect();
        write!(f, "resident MiB by tenths of the time: {}; descriptors at most {}", tenths.join(" "), self.most(0, 200).1)
    }
}
