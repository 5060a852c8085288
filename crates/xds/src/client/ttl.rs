//! When resources end by themselves: those that were sent with a time to live, unless it is renewed (Envoy xds_protocol.rst, TTL).
use std::collections::{BTreeSet, HashMap};
use std::time::{Duration, Instant};

use lateen_proto::envoy::service::discovery::v3 as proto;

/// The time to live that a resource comes with.
///
/// # Errors
/// What is wrong with it.
pub(super) fn of(resource: &proto::Resource) -> Result<Option<Duration>, String> {
    let Some(ttl) = resource.ttl else { return Ok(None) };
    Duration::try_from(ttl).map(Some).map_err(|_| "ttl: is not a time span from 0 on".to_owned())
}

/// The ends of the resources of one type.
#[derive(Clone, Debug, Default)]
pub(super) struct Ends {
    by_name: HashMap<String, Instant>,
    in_order: BTreeSet<(Instant, String)>,
}

impl Ends {
    /// From now on the resource lives so long; without a time, until it is removed.
    pub(super) fn set(&mut self, name: &str, ttl: Option<Duration>, now: Instant) {
        self.forget(name);
        // One that overflows the clock will not be lived to see.
        if let Some(at) = ttl.and_then(|ttl| now.checked_add(ttl)) {
            self.by_name.insert(name.to_owned(), at);
            self.in_order.insert((at, name.to_owned()));
        }
    }

    pub(super) fn forget(&mut self, name: &str) {
        if let Some(at) = self.by_name.remove(name) {
            self.in_order.remove(&(at, name.to_owned()));
        }
    }

    pub(super) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.by_name.retain(|name, _| keep(name));
        self.in_order.retain(|(_, name)| keep(name));
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.in_order.first().map(|(at, _)| *at)
    }

    /// Takes out what has ended.
    pub(super) fn take_ended(&mut self, now: Instant) -> Vec<String> {
        let mut ended = Vec::new();
        while self.next().is_some_and(|at| at <= now) {
            let Some((_, name)) = self.in_order.pop_first() else { break };
            self.by_name.remove(&name);
            ended.push(name);
        }
        ended
    }
}
