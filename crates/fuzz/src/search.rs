//! Runs one target for a while and keeps what made it panic.
use std::panic::{self, AssertUnwindSafe};
use std::time::{Duration, Instant};

use crate::{Mutator, Target};

/// What a search did.
#[derive(Debug, Default)]
pub struct Found {
    pub runs: u64,
    /// The first input that panicked.
    pub failure: Option<Vec<u8>>,
    /// The longest that one input took, with the input.
    pub slowest: (Duration, Vec<u8>),
}

/// Whether the target survives the input.
pub fn survives(target: Target, input: &[u8]) -> bool {
    panic::catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_ok()
}

/// Feeds mutations until the time is over or one panics.
pub fn run(target: Target, seed: u64, time: Duration) -> Found {
    let corpus = target.corpus();
    let mut mutator = Mutator::new(seed);
    let (start, mut found) = (Instant::now(), Found::default());
    while start.elapsed() < time {
        let input = mutator.next(&corpus);
        let began = Instant::now();
        let fine = survives(target, &input);
        found.runs += 1;
        if began.elapsed() > found.slowest.0 {
            found.slowest = (began.elapsed(), input.clone());
        }
        if !fine {
            found.failure = Some(smaller(target, input));
            return found;
        }
    }
    found
}

/// Takes away what the panic does not need.
fn smaller(target: Target, mut input: Vec<u8>) -> Vec<u8> {
    let mut size = input.len() / 2;
    while size > 0 {
        let mut at = 0;
        while at + size <= input.len() {
            let mut less = input.clone();
            less.drain(at..at + size);
            if survives(target, &less) { at += size } else { input = less }
        }
        size /= 2;
    }
    input
}
