//! Earliest deadline first: weighted round robin that interleaves, as Envoy's scheduler does.
use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Deals out indices in proportion to their weights.
#[derive(Debug, Default)]
pub(crate) struct Edf {
    heap: BinaryHeap<Entry>,
    now: f64,
    order: u64,
}

#[derive(Debug)]
struct Entry {
    deadline: f64,
    /// Breaks ties by age, so that equal weights take turns.
    order: u64,
    index: u32,
}

impl Edf {
    /// `start` rotates where the dealing begins, so that not every worker starts with the same host.
    pub(crate) fn new(weights: impl ExactSizeIterator<Item = f64>, start: u32) -> Self {
        let mut edf = Self::default();
        let weights: Vec<f64> = weights.collect();
        for (index, weight) in weights.iter().enumerate() {
            edf.add(index as u32, *weight);
        }
        for _ in 0..if weights.is_empty() { 0 } else { start as usize % weights.len() } {
            if let Some(index) = edf.take() {
                edf.add(index, weights[index as usize]);
            }
        }
        edf
    }

    /// Takes the next index out; put it back with [`Self::add`] and its weight of the moment.
    pub(crate) fn take(&mut self) -> Option<u32> {
        let entry = self.heap.pop()?;
        self.now = entry.deadline;
        Some(entry.index)
    }

    pub(crate) fn add(&mut self, index: u32, weight: f64) {
        self.order += 1;
        let deadline = self.now + 1.0 / weight.max(1e-6);
        self.heap.push(Entry { deadline, order: self.order, index });
    }
}

impl Ord for Entry {
    /// Reversed: the heap's greatest is the earliest deadline.
    fn cmp(&self, other: &Self) -> Ordering {
        other.deadline.total_cmp(&self.deadline).then_with(|| other.order.cmp(&self.order))
    }
}

impl PartialOrd for Entry {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Entry {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_interleave() {
        let weights = [1.0, 3.0];
        let mut edf = Edf::new(weights.iter().copied(), 0);
        let dealt: Vec<u32> = (0..8)
            .map(|_| {
                let index = edf.take().unwrap();
                edf.add(index, weights[index as usize]);
                index
            })
            .collect();
        assert_eq!(dealt.iter().filter(|i| **i == 0).count(), 2, "{dealt:?}");
        assert_ne!(dealt[..2], [0, 0]);
    }
}
