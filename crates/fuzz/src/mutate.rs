//! New inputs from old ones: small damage, numbers at their limits, pieces of others.
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

/// Inputs stay below this; what is slow to read finds less.
const LONGEST: usize = 16 * 1024;
const LIMITS: [u8; 9] = [0, 1, 0x7f, 0x80, 0xff, b'\r', b'\n', b' ', b':'];

/// Makes inputs; the same seed makes the same ones.
pub struct Mutator(SmallRng);

impl Mutator {
    pub fn new(seed: u64) -> Self {
        Self(SmallRng::seed_from_u64(seed))
    }

    /// An input of the corpus, changed in one to eight places.
    pub fn next(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        let mut input = self.pick(corpus).to_vec();
        for _ in 0..1 << self.below(4) {
            self.change(&mut input, corpus);
        }
        input.truncate(LONGEST);
        input
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0.random_range(0..limit.max(1))
    }

    fn pick<'a>(&mut self, corpus: &'a [Vec<u8>]) -> &'a [u8] {
        let at = self.below(corpus.len());
        corpus.get(at).map_or(&[], Vec::as_slice)
    }

    /// A piece of at most 64 bytes, or of any length now and then.
    fn span(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let most = if self.below(8) == 0 { length - start } else { (length - start).min(64) };
        start..start + self.below(most + 1)
    }

    fn change(&mut self, input: &mut Vec<u8>, corpus: &[Vec<u8>]) {
        let at = self.below(input.len());
        let span = self.span(input.len());
        match self.below(9) {
            0 if !input.is_empty() => input[at] ^= 1 << self.below(8),
            1 if !input.is_empty() => input[at] = LIMITS[self.below(LIMITS.len())],
            2 if !input.is_empty() => input[at] = self.0.random(),
            3 => drop(input.drain(span)),
            4 => {
                let piece = input[span].to_vec();
                input.splice(at..at, piece);
            }
            5 => {
                let other = self.pick(corpus).to_vec();
                let piece = other[self.span(other.len())].to_vec();
                input.splice(at..at, piece);
            }
            6 => input.truncate(span.start),
            7 => {
                let byte = LIMITS[self.below(LIMITS.len())];
                let count = 1 << self.below(10);
                input.splice(at..at, std::iter::repeat_n(byte, count));
            }
            _ => {
                let number = [u32::MAX, i32::MAX as u32, 1 << 16, 0x3fff, 0][self.below(5)].to_be_bytes();
                for (slot, byte) in input.iter_mut().skip(at).zip(number.into_iter().skip(self.below(4))) {
                    *slot = byte;
                }
            }
        }
    }
}
