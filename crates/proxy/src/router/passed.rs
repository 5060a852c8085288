//! The priorities that retries go past (Envoy `previous_priorities`).
use std::num::NonZeroU32;
use std::sync::Arc;

use lateen_balance::{Host, Priority};

/// As bits; more priorities than these are never gone past.
const MOST: usize = 64;

/// What one request's tries went past.
#[derive(Default)]
pub(super) struct Passed {
    bits: u64,
    /// Earlier tries are forgotten: everybody had been tried.
    since: usize,
}

impl Passed {
    /// What the next try goes past: after each `every` tries, all priorities tried, and none once nobody is left.
    pub(super) fn by_now(
        &mut self,
        every: NonZeroU32,
        priorities: &[&Priority],
        priority_of: impl Fn(&Arc<Host>) -> Option<usize>,
        tried: &[Arc<Host>],
    ) -> u64 {
        let attempted = tried.get(self.since..).unwrap_or_default();
        let every = every.get() as usize;
        if attempted.len() < every {
            return 0;
        }
        if attempted.len().is_multiple_of(every) {
            // Those before were counted in when it was their turn.
            for priority in attempted.iter().rev().take(every).filter_map(priority_of).filter(|p| *p < MOST) {
                self.bits |= 1 << priority;
            }
            let serves = |priority: &Priority| priority.hosts().any(|h| h.is_healthy());
            let is_left = |index: usize| index >= MOST || self.bits >> index & 1 == 0;
            if !priorities.iter().enumerate().any(|(index, priority)| is_left(index) && serves(priority)) {
                (self.bits, self.since) = (0, tried.len());
            }
        }
        self.bits
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use lateen_balance::{Address, LocalityHosts, Priority};

    use super::*;

    #[test]
    fn priorities_are_passed_each_few_tries_and_forgotten_when_nobody_is_left() {
        let host = |port: u16| Arc::new(Host::new(Address::Socket(([10, 0, 0, 1], port).into())));
        let hosts = [host(1), host(2), host(3)];
        let priority =
            |host: &Arc<Host>| Priority { localities: vec![LocalityHosts { hosts: vec![Arc::clone(host)], ..Default::default() }] };
        let priorities: Vec<Priority> = hosts.iter().map(priority).collect();
        let priorities: Vec<&Priority> = priorities.iter().collect();
        let two = NonZeroU32::new(2).unwrap();
        let (mut passed, mut tried) = (Passed::default(), Vec::new());
        let mut after = |index: usize| {
            tried.push(Arc::clone(&hosts[index]));
            let asked = Cell::new(0);
            let priority_of = |host: &Arc<Host>| {
                asked.set(asked.get() + 1);
                hosts.iter().position(|h| Arc::ptr_eq(h, host))
            };
            let past = passed.by_now(two, &priorities, priority_of, &tried);
            assert_eq!(asked.get(), if tried.len().is_multiple_of(2) { 2 } else { 0 }, "only the new ones are looked up");
            past
        };
        assert_eq!([0, 0, 1, 1].map(&mut after), [0, 0b1, 0b1, 0b11]);
        assert_eq!([2, 2, 0, 0].map(&mut after), [0b11, 0, 0, 0b1]);
    }
}
