//! What each connection of a pool counts in, from the attempt to its end.
use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use lateen_balance::Host;
use lateen_balance::breaker::Permit;
use lateen_identity::tls::PeerIdentity;
use lateen_snapshot::cluster::Transport;
use lateen_telemetry::Local;
use lateen_telemetry::envoy_names::cluster as names;
use lateen_telemetry::istio::PrincipalId;
use lateen_telemetry::stats::Held;
use tokio::time::Instant;

use super::cluster::ClusterState;
use super::connect::ConnectFailure;
use super::pool::{Counted, Pool};
use crate::io::{Io, Meter, longer};
use crate::worker::Worker;

/// Counts the end of a connection when it is dropped, by who ended it and whether it was in use (Envoy `reportUpstreamCxDestroy`).
pub(crate) struct Ending {
    stats: Local,
    by_peer: Rc<Cell<bool>>,
    in_use: Cell<bool>,
}

impl Ending {
    pub(crate) fn new(stats: &Local) -> Self {
        Self { stats: stats.clone(), by_peer: Rc::default(), in_use: Cell::new(false) }
    }

    /// Of one that is made no more. That it takes too long is our word.
    pub(crate) fn not_made(&self, why: &ConnectFailure) {
        self.by_peer.set(*why != ConnectFailure::Timeout);
    }

    pub(crate) fn by_peer(&self, by_peer: bool) {
        self.by_peer.set(by_peer);
    }

    /// Whether an exchange would end with it.
    pub(crate) fn in_use(&self, in_use: bool) {
        self.in_use.set(in_use);
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let remote = self.by_peer.get();
        let count = |local, of_peer| self.stats.inc(if remote { of_peer } else { local });
        self.stats.inc(names::UPSTREAM_CX_DESTROY);
        count(names::UPSTREAM_CX_DESTROY_LOCAL, names::UPSTREAM_CX_DESTROY_REMOTE);
        if self.in_use.get() {
            self.stats.inc(names::UPSTREAM_CX_DESTROY_WITH_ACTIVE_RQ);
            count(names::UPSTREAM_CX_DESTROY_LOCAL_WITH_ACTIVE_RQ, names::UPSTREAM_CX_DESTROY_REMOTE_WITH_ACTIVE_RQ);
        }
    }
}

/// Held by each open connection: gives back what it took when it closes.
pub(crate) struct Open {
    _permit: Option<Permit>,
    _active: Held,
    pub(super) ending: Ending,
    host: Arc<Host>,
    pool: Weak<Pool>,
    since: Instant,
    /// When the connection has lived long enough.
    ends: Option<Instant>,
    /// The pool's round when the connection was made.
    round: u64,
    /// The host's failures at that time.
    failures: u32,
    pub(crate) local: Option<SocketAddr>,
    pub(crate) principals: Principals,
}

/// Who the ends of a connection to a host are by their certificates, for Istio's metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Principals {
    /// Verified.
    pub(crate) host: PrincipalId,
    pub(crate) own: PrincipalId,
}

impl Principals {
    /// Once per connection.
    pub(crate) fn of(io: &Io, transport: Option<&Transport>, worker: &Worker) -> Self {
        let Some(tls) = io.tls() else { return Self::default() };
        let id = |uri: Option<&str>| uri.map_or(PrincipalId::default(), |uri| worker.istio.shared().principal(uri));
        let host = PeerIdentity::of_connection(tls);
        let own = transport.and_then(|transport| transport.tls.as_ref()?.uri.get());
        Self {
            host: id(host.as_ref().and_then(|peer| peer.uri_sans.first()).map(String::as_str)),
            own: id(own.as_deref().map(String::as_str)),
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.ending.stats.record(names::UPSTREAM_CX_LENGTH_MS, self.since.elapsed().as_micros() as u64);
        self.host.counters.cx_active.fetch_sub(1, Relaxed);
        if let Some(pool) = self.pool.upgrade() {
            pool.closed();
        }
    }
}

impl Open {
    /// Whether it takes no more exchanges: it is from a round of its pool that is over, or has lived long enough.
    pub(super) fn is_retired(&self, pool: &Pool, now: Instant) -> bool {
        self.round != pool.round() || self.is_old(now)
    }

    fn is_old(&self, now: Instant) -> bool {
        self.ends.is_some_and(|end| now >= end)
    }

    /// Whether it has lived long enough, or is from before its host failed.
    pub(super) fn is_spent(&self, now: Instant) -> bool {
        self.is_old(now) || self.host.failures() != self.failures
    }

    /// Where its bytes count, which sees its end too.
    pub(super) fn meter(&self) -> Meter {
        let meter = Meter::new(&self.ending.stats, names::UPSTREAM_CX_RX_BYTES_TOTAL, names::UPSTREAM_CX_TX_BYTES_TOTAL);
        meter.telling(&self.ending.by_peer)
    }

    /// The connection is there.
    pub(super) fn made(&mut self, io: &Io, transport: Option<&Transport>, worker: &Worker) {
        self.local = io.socket().local_address();
        self.principals = Principals::of(io, transport, worker);
        self.ending.stats.record(names::UPSTREAM_CX_CONNECT_MS, self.since.elapsed().as_micros() as u64);
    }
}

/// A connection to be made, counted from now on.
pub(super) struct Dial {
    pub(super) open: Open,
    pub(super) dialling: Counted,
}

impl Dial {
    pub(super) fn begin(pool: &Rc<Pool>, worker: &Worker, state: &ClusterState, host: &Arc<Host>, permit: Option<Permit>) -> Self {
        let config = &state.cluster.config;
        pool.opened();
        state.stats.inc(names::UPSTREAM_CX_TOTAL);
        host.counters.cx_total.fetch_add(1, Relaxed);
        host.counters.cx_active.fetch_add(1, Relaxed);
        let since = Instant::now();
        let lives = |limit| longer(limit, config.max_connection_duration_jitter_percent, worker.roll64());
        let open = Open {
            _permit: permit,
            _active: state.stats.hold(names::UPSTREAM_CX_ACTIVE),
            ending: Ending::new(&state.stats),
            host: Arc::clone(host),
            pool: Rc::downgrade(pool),
            since,
            ends: config.max_connection_duration.and_then(|limit| since.checked_add(lives(limit))),
            round: pool.round(),
            failures: host.failures(),
            local: None,
            principals: Principals::default(),
        };
        Self { open, dialling: pool.count_dial() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_connection_may_live_longer_by_its_jitter_and_no_more() {
        let second = Duration::from_secs(1);
        assert_eq!(longer(10 * second, 0.0, u64::MAX), 10 * second);
        assert_eq!(longer(10 * second, 50.0, 0), 10 * second);
        assert_eq!(longer(10 * second, 50.0, u64::MAX), 15 * second);
        assert!(longer(Duration::MAX, 100.0, u64::MAX) == Duration::MAX);
    }
}
