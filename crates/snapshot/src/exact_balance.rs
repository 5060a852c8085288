//! Equally many connections of a listener for every worker (Envoy `ConnectionBalanceConfig.ExactBalance`).
use std::sync::{Arc, Mutex, PoisonError};

/// How many connections of a listener each worker has. It takes a lock for every connection, which is the price of being
/// exact; whoever does not ask for it does not pay it.
#[derive(Debug, Default)]
pub struct ExactBalance {
    /// By the worker's number; `None` are those that do not serve the listener yet.
    connections: Mutex<Vec<Option<u32>>>,
}

impl ExactBalance {
    /// The worker serves the listener from now on.
    pub fn join(&self, worker: usize) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if connections.len() <= worker {
            connections.resize(worker + 1, None);
        }
        if let Some(count @ None) = connections.get_mut(worker) {
            *count = Some(0);
        }
    }

    /// Where a connection goes that `own` accepted: to the worker that has fewest, and there it counts.
    pub fn place(self: &Arc<Self>, own: usize) -> Place {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = connections.iter_mut().enumerate().filter_map(|(worker, count)| Some((worker, count.as_mut()?)));
        // Where some have equally few, it need not go elsewhere.
        let least = joined.min_by_key(|(worker, count)| (**count, *worker != own));
        let worker = least.map_or(own, |(worker, count)| {
            *count = count.saturating_add(1);
            worker
        });
        Place { worker, balance: Arc::clone(self) }
    }
}

/// A connection that counts with a worker while this lives.
#[derive(Debug)]
pub struct Place {
    worker: usize,
    balance: Arc<ExactBalance>,
}

impl Place {
    pub fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut connections = self.balance.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Some(count)) = connections.get_mut(self.worker) {
            *count = count.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_worker_gets_equally_many_of_those_that_are_open() {
        let balance = Arc::new(ExactBalance::default());
        assert_eq!(balance.place(1).worker(), 1, "nobody has joined");
        balance.join(2);
        balance.join(0);
        let mut places: Vec<Place> = (0..5).map(|_| balance.place(2)).collect();
        assert_eq!(places.iter().map(Place::worker).collect::<Vec<_>>(), [2, 0, 2, 0, 2]);
        places.retain(|place| place.worker() == 0);
        assert_eq!((0..3).map(|_| balance.place(0)).map(|p| p.worker()).collect::<Vec<_>>(), [2, 2, 2], "each ends at once");
        let more: Vec<Place> = (0..3).map(|_| balance.place(0)).collect();
        assert_eq!(more.iter().map(Place::worker).collect::<Vec<_>>(), [2, 2, 0]);
    }
}
